/**
 * Pixels of one image: tiles of real values at several levels, loaded where they are looked at.
 *
 * A pixel of level L is a block of 2^L x 2^L pixels of the image, the brightest of them (the darkest where targets are
 * dark), so that a small target does not vanish from the overview.
 */

import { pixelsOf } from "./tone.js";

const RAW_BYTES = 160e6;
const PAINTED = 64;

/** Events: "tile" when one has come. */
export class Frame extends EventTarget {
  #api;
  #tiles = new Map();
  #painted = new Map();
  #wanted = new Set();
  #bytes = 0;
  #closing = new AbortController();

  /**
   * @param {import("./api.js").Api} api
   * @param {object} info answer of /api/images/{index}
   * @param {number} side pixels of a tile's side
   * @param {"max" | "min"} pool
   */
  constructor(api, info, side, pool) {
    super();
    this.#api = api;
    this.info = info;
    this.side = side;
    this.pool = pool;
  }

  get width() {
    return this.info.width;
  }

  get height() {
    return this.info.height;
  }

  /** Stops loading. */
  close() {
    this.#closing.abort();
  }

  /** @returns {{width: number, height: number}} pixels of a level */
  size(level) {
    return { width: Math.ceil(this.width / 2 ** level), height: Math.ceil(this.height / 2 ** level) };
  }

  /** @returns {number} coarsest level: one tile */
  get top() {
    return this.info.levels - 1;
  }

  /** @returns {number} finest level whose pixels are not smaller than those of the screen */
  levelFor(scale) {
    return Math.min(Math.max(Math.ceil(Math.log2(1 / scale) - 1e-6), 0), this.top);
  }

  /**
   * Returns a tile, or null until it has been loaded.
   *
   * @returns {{level: number, row: number, column: number, width: number, height: number, pixels: ArrayLike<number>} | null}
   */
  tile(level, row, column) {
    const key = `${level}/${row}/${column}`;
    const tile = this.#tiles.get(key);
    if (tile) {
      this.#tiles.delete(key);
      this.#tiles.set(key, tile); // the last one used is the last to go
      return tile;
    }
    this.#load(key, level, row, column);
    return null;
  }

  async #load(key, level, row, column) {
    if (this.#wanted.has(key)) return;
    this.#wanted.add(key);
    try {
      const buffer = await this.#api.tile(this.info.index, level, row, column, this.pool, this.#closing.signal);
      const size = this.size(level);
      const width = Math.min(this.side, size.width - column * this.side);
      const height = Math.min(this.side, size.height - row * this.side);
      this.#tiles.set(key, { level, row, column, width, height, pixels: pixelsOf(buffer, this.info.dtype) });
      this.#bytes += buffer.byteLength;
      for (const [old, tile] of this.#tiles) {
        if (this.#bytes <= RAW_BYTES || old === key) break;
        this.#tiles.delete(old);
        this.#bytes -= tile.pixels.byteLength;
      }
      this.dispatchEvent(new Event("tile"));
    } catch (error) {
      // Asked for again at the next draw, once the connection is back.
      if (error.name !== "AbortError" && error.status) {
        this.dispatchEvent(new CustomEvent("problem", { detail: error.message }));
        return;
      }
    }
    this.#wanted.delete(key);
  }

  /**
   * Returns a tile in colors, or null until it has been loaded.
   *
   * @param {import("./tone.js").Tone} tone
   * @returns {OffscreenCanvas | null}
   */
  painted(level, row, column, tone) {
    const tile = this.tile(level, row, column);
    if (!tile) return null;
    let entry = this.#painted.get(tile);
    if (!entry) {
      const canvas = new OffscreenCanvas(tile.width, tile.height);
      entry = { canvas, image: new ImageData(tile.width, tile.height), version: -1 };
    }
    this.#painted.delete(tile);
    this.#painted.set(tile, entry);
    if (this.#painted.size > PAINTED) this.#painted.delete(this.#painted.keys().next().value);
    if (entry.version !== tone.version) {
      tone.paint(tile.pixels, this.info.dtype, this.info.channels, entry.image);
      entry.canvas.getContext("2d").putImageData(entry.image, 0, 0);
      entry.version = tone.version;
    }
    return entry.canvas;
  }

  /** @returns {boolean} whether a tile is here, without loading it */
  has(level, row, column) {
    return this.#tiles.has(`${level}/${row}/${column}`);
  }

  /** @returns {number[] | null} values of a pixel of the image, or null until its tile has been loaded */
  value(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return null;
    const tile = this.tile(0, Math.floor(y / this.side), Math.floor(x / this.side));
    if (!tile) return null;
    const channels = this.info.channels;
    const at = ((y % this.side) * tile.width + (x % this.side)) * channels;
    return Array.from(tile.pixels.slice(at, at + channels));
  }

  /**
   * Copies a part of a level; of color frames the mean of the channels.
   *
   * @returns {Float32Array | null} row-major, or null until all its tiles have been loaded
   */
  region(level, left, top, right, bottom) {
    const width = right - left;
    const values = new Float32Array(width * (bottom - top));
    const { channels } = this.info;
    let complete = true;
    for (let row = Math.floor(top / this.side); row * this.side < bottom; row++) {
      for (let column = Math.floor(left / this.side); column * this.side < right; column++) {
        const tile = this.tile(level, row, column);
        complete &&= tile !== null;
        if (!complete) continue; // the other tiles are still asked for
        const [x0, y0] = [column * this.side, row * this.side];
        for (let y = Math.max(top, y0); y < Math.min(bottom, y0 + tile.height); y++) {
          for (let x = Math.max(left, x0); x < Math.min(right, x0 + tile.width); x++) {
            const at = ((y - y0) * tile.width + x - x0) * channels;
            const value = channels === 1 ? tile.pixels[at] : (tile.pixels[at] + tile.pixels[at + 1] + tile.pixels[at + 2]) / 3;
            values[(y - top) * width + x - left] = value;
          }
        }
      }
    }
    return complete ? values : null;
  }

  /**
   * Samples values of a part of the image from the tiles that are here.
   *
   * @param {{left: number, top: number, right: number, bottom: number}} box image pixels
   * @param {number} level
   * @param {number} [most] values, about
   * @returns {Float32Array} in rising order
   */
  sample(box, level, most = 40000) {
    const { width, height } = this.size(level);
    const block = 2 ** level;
    const clip = (value, last) => Math.min(Math.max(value, 0), last);
    const left = clip(Math.floor(box.left / block), width - 1);
    const right = clip(Math.ceil(box.right / block) - 1, width - 1);
    const top = clip(Math.floor(box.top / block), height - 1);
    const bottom = clip(Math.ceil(box.bottom / block) - 1, height - 1);
    const step = Math.max(1, Math.floor(Math.sqrt(((right - left + 1) * (bottom - top + 1)) / most)));
    const values = [];
    const channels = this.info.channels;
    for (let y = top; y <= bottom; y += step) {
      const row = Math.floor(y / this.side);
      for (let x = left; x <= right; x += step) {
        const column = Math.floor(x / this.side);
        const tile = this.#tiles.get(`${level}/${row}/${column}`);
        if (tile) values.push(tile.pixels[((y % this.side) * tile.width + (x % this.side)) * channels]);
      }
    }
    return Float32Array.from(values).sort();
  }
}
