/**
 * Masks of targets.
 *
 * A mask is a box in image pixels and run lengths in its row-major order, first of pixels that do not belong to it:
 * {top, left, height, width, runs}.
 */

/** @typedef {{top: number, left: number, height: number, width: number, runs: number[]}} Mask */

const bitsOf = new WeakMap();
const pathOf = new WeakMap();

/**
 * @param {Mask} mask
 * @returns {Uint8Array} 1 for pixels of the mask, row-major in its box
 */
export function bits(mask) {
  let found = bitsOf.get(mask);
  if (!found) {
    found = new Uint8Array(mask.height * mask.width);
    let at = 0;
    mask.runs.forEach((run, number) => {
      if (number % 2) found.fill(1, at, at + run);
      at += run;
    });
    bitsOf.set(mask, found);
  }
  return found;
}

/**
 * @param {number} top
 * @param {number} left
 * @param {number} height
 * @param {number} width
 * @param {(index: number) => boolean} inside by row-major index in the box
 * @returns {Mask}
 */
export function fromTest(top, left, height, width, inside) {
  const runs = [];
  let value = false;
  let run = 0;
  for (let i = 0; i < height * width; i++) {
    if (inside(i) !== value) {
      runs.push(run);
      run = 0;
      value = !value;
    }
    run++;
  }
  runs.push(run);
  return { top, left, height, width, runs };
}

/** @returns {boolean} whether a pixel belongs to a mask, which may be null. */
export function has(mask, x, y) {
  if (!mask) return false;
  const row = y - mask.top;
  const column = x - mask.left;
  if (row < 0 || column < 0 || row >= mask.height || column >= mask.width) return false;
  return bits(mask)[row * mask.width + column] === 1;
}

/** @returns {number} pixels of a mask */
export function area(mask) {
  return mask ? mask.runs.reduce((sum, run, number) => sum + (number % 2 ? run : 0), 0) : 0;
}

/**
 * Outlines a mask along the edges of its pixels.
 *
 * @param {Mask} mask
 * @returns {Path2D} where pixel (x, y) covers x..x+1 and y..y+1
 */
export function outline(mask) {
  let path = pathOf.get(mask);
  if (path) return path;
  path = new Path2D();
  const { top, left, height, width } = mask;
  const inside = bits(mask);
  const at = (row, column) => row >= 0 && column >= 0 && row < height && column < width && inside[row * width + column];
  // Edges between rows, then between columns, each drawn as one line as far as it goes.
  for (let row = 0; row <= height; row++) {
    for (let column = 0; column < width; column++) {
      if (Boolean(at(row - 1, column)) === Boolean(at(row, column))) continue;
      const start = column;
      while (column < width && Boolean(at(row - 1, column)) !== Boolean(at(row, column))) column++;
      path.moveTo(left + start, top + row);
      path.lineTo(left + column, top + row);
    }
  }
  for (let column = 0; column <= width; column++) {
    for (let row = 0; row < height; row++) {
      if (Boolean(at(row, column - 1)) === Boolean(at(row, column))) continue;
      const start = row;
      while (row < height && Boolean(at(row, column - 1)) !== Boolean(at(row, column))) row++;
      path.moveTo(left + column, top + start);
      path.lineTo(left + column, top + row);
    }
  }
  pathOf.set(mask, path);
  return path;
}

/** Pixels of a mask that a brush changes, on an image of `width` x `height` pixels. */
export class Painting {
  #width;
  #height;
  #pixels = new Set();

  /**
   * @param {Mask | null} mask
   * @param {number} width
   * @param {number} height
   */
  constructor(mask, width, height) {
    this.#width = width;
    this.#height = height;
    if (!mask) return;
    bits(mask).forEach((bit, index) => {
      if (bit) this.#pixels.add((mask.top + Math.floor(index / mask.width)) * width + mask.left + (index % mask.width));
    });
  }

  /**
   * Adds or takes away the disc along a line.
   *
   * @param {{x: number, y: number}} from pixel
   * @param {{x: number, y: number}} to pixel
   * @param {number} size diameter of the disc, pixels
   * @param {boolean} on
   */
  stroke(from, to, size, on) {
    const steps = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y), 1);
    for (let step = 0; step <= steps; step++) {
      const x = Math.round(from.x + ((to.x - from.x) * step) / steps);
      const y = Math.round(from.y + ((to.y - from.y) * step) / steps);
      for (const [dx, dy] of disc(size)) this.#set(x + dx, y + dy, on);
    }
  }

  #set(x, y, on) {
    if (x < 0 || y < 0 || x >= this.#width || y >= this.#height) return;
    if (on) this.#pixels.add(y * this.#width + x);
    else this.#pixels.delete(y * this.#width + x);
  }

  /** @returns {Mask | null} null where no pixel is left */
  mask() {
    if (!this.#pixels.size) return null;
    let [top, left, bottom, right] = [Infinity, Infinity, -1, -1];
    for (const pixel of this.#pixels) {
      const x = pixel % this.#width;
      const y = (pixel - x) / this.#width;
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
      left = Math.min(left, x);
      right = Math.max(right, x);
    }
    const width = right - left + 1;
    const inside = (index) =>
      this.#pixels.has((top + Math.floor(index / width)) * this.#width + left + (index % width));
    return fromTest(top, left, bottom - top + 1, width, inside);
  }
}

/** @returns {[number, number][]} offsets of a disc's pixels; sizes 1, 2, 3 are 1, 4 and 9 pixels */
export function disc(size) {
  const offsets = [];
  const low = -Math.floor((size - 1) / 2);
  const middle = low + (size - 1) / 2;
  for (let dy = low; dy < low + size; dy++) {
    for (let dx = low; dx < low + size; dx++) {
      if (size <= 3 || (dx - middle) ** 2 + (dy - middle) ** 2 <= (size / 2) ** 2) offsets.push([dx, dy]);
    }
  }
  return offsets;
}

/** @returns {Uint8Array} bytes of a base64 text */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
