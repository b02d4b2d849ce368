/**
 * Local contrast: each value less the mean of its surroundings.
 *
 * A target a few counts above a background that varies by thousands is not seen in any window of values; here it is.
 * The part of the image in view is computed anew for each view, from real values at the level that is drawn.
 */

import { Tone, quantile } from "./tone.js";

const RADIUS = 12; // blocks: half the side of the surroundings
const SHARES = [0.005, 0.9985]; // of the differences, that become black and white
const SAMPLES = 12000;

/**
 * Subtracts from each value the mean of the box around it, which shrinks evenly at the border, so that a slope gives 0.
 *
 * @param {Float32Array} values row-major, replaced
 * @param {number} width
 * @param {number} height
 */
export function subtractMean(values, width, height) {
  const rows = new Float32Array(values.length);
  const sums = new Float64Array(Math.max(width, height) + 1);
  for (let y = 0; y < height; y++) {
    const at = y * width;
    for (let x = 0; x < width; x++) sums[x + 1] = sums[x] + values[at + x];
    for (let x = 0; x < width; x++) {
      const radius = Math.min(RADIUS, x, width - 1 - x);
      rows[at + x] = (sums[x + radius + 1] - sums[x - radius]) / (2 * radius + 1);
    }
  }
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) sums[y + 1] = sums[y] + rows[y * width + x];
    for (let y = 0; y < height; y++) {
      const radius = Math.min(RADIUS, y, height - 1 - y);
      values[y * width + x] -= (sums[y + radius + 1] - sums[y - radius]) / (2 * radius + 1);
    }
  }
}

/** The part in view, in local contrast. */
export class LocalView {
  /** Sample of the differences, in rising order. */
  values = new Float32Array();
  tone = new Tone();
  canvas = new OffscreenCanvas(1, 1);
  /** First column and row of the canvas, in blocks of the level. */
  left = 0;
  top = 0;
  #key = "";
  #differences = null;
  #painted = -1;

  /**
   * Computes and paints the view.
   *
   * @param {import("./frame.js").Frame} frame
   * @param {object} box image pixels that are seen
   * @param {number} level
   * @param {Tone} tone its gamma and color map are used
   * @returns {boolean} false until all tiles are here
   */
  render(frame, box, level, tone) {
    const block = 2 ** level;
    const size = frame.size(level);
    const left = Math.max(Math.floor(box.left / block) - RADIUS, 0);
    const top = Math.max(Math.floor(box.top / block) - RADIUS, 0);
    const right = Math.min(Math.ceil(box.right / block) + RADIUS, size.width);
    const bottom = Math.min(Math.ceil(box.bottom / block) + RADIUS, size.height);
    const key = [frame.info.index, frame.info.etag, frame.pool, level, left, top, right, bottom].join();
    if (key !== this.#key) {
      const differences = frame.region(level, left, top, right, bottom);
      if (!differences) return false;
      subtractMean(differences, right - left, bottom - top);
      this.#key = key;
      this.#differences = differences;
      [this.left, this.top] = [left, top];
      const step = Math.max(1, Math.floor(differences.length / SAMPLES));
      this.values = differences.filter((_, at) => at % step === 0).sort();
      const [low, high] = SHARES.map((share) => quantile(this.values, share));
      this.tone.set(high > low ? { low, high } : { low, high: low + 1 });
      this.canvas.width = right - left;
      this.canvas.height = bottom - top;
      this.#painted = -1;
    }
    this.tone.set({ gamma: tone.gamma, map: tone.map });
    if (this.#painted !== this.tone.version) {
      const image = new ImageData(this.canvas.width, this.canvas.height);
      this.tone.paint(this.#differences, "float32", 1, image);
      this.canvas.getContext("2d").putImageData(image, 0, 0);
      this.#painted = this.tone.version;
    }
    return true;
  }
}
