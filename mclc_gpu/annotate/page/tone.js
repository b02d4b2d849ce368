/**
 * Tone: maps real pixel values to colors of the screen.
 *
 * A window low..high of values becomes black..white with a gamma, then a color. Frames of integers go through a table
 * with an entry for every value, so that no gray level is merged with another before the screen.
 */

/** Colors at equal distances from the low to the high end. */
const STOPS = {
  gray: ["#000000", "#ffffff"],
  "gray, inverted": ["#ffffff", "#000000"],
  iron: ["#000005", "#22006b", "#7a0c88", "#c33a60", "#ee7b24", "#fbc335", "#ffffe6"],
  inferno: ["#000004", "#1f0c48", "#550f6d", "#88226a", "#ba3655", "#e35933", "#f98e09", "#f9cb35", "#fcffa4"],
  viridis: ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"],
  turbo: ["#30123b", "#4669db", "#26bce1", "#3ff58a", "#a4fc3c", "#ecd13a", "#fb8022", "#d02f05", "#7a0403"],
};

export const COLOR_MAPS = Object.keys(STOPS);
const RAMP = 4096;
const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

/** @returns {Uint8Array | Uint16Array | Float32Array} pixels of a tile */
export function pixelsOf(buffer, dtype) {
  return new ARRAYS[dtype](buffer);
}

/** Colors of a map, as RGBA words of an image's memory. */
function ramp(name) {
  const stops = STOPS[name].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const colors = new Uint32Array(RAMP);
  for (let i = 0; i < RAMP; i++) {
    const place = (i / (RAMP - 1)) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    const mix = [0, 1, 2].map((c) => Math.round(stops[below][c] + (stops[below + 1][c] - stops[below][c]) * (place - below)));
    colors[i] = (255 << 24) | (mix[2] << 16) | (mix[1] << 8) | mix[0];
  }
  return colors;
}

/** A window, gamma and color map. `version` changes with each change, so that painted tiles know that they are old. */
export class Tone {
  low = 0;
  high = 1;
  gamma = 1;
  map = "gray";
  version = 0;
  #tables = new Map();

  /** @param {{low?: number, high?: number, gamma?: number, map?: string}} change */
  set(change) {
    const before = [this.low, this.high, this.gamma, this.map].join();
    Object.assign(this, change);
    if ([this.low, this.high, this.gamma, this.map].join() === before) return false;
    this.version++;
    this.#tables.clear();
    return true;
  }

  /** @returns {number} place 0..RAMP - 1 of a value in the color map */
  #place(value) {
    const share = (value - this.low) / Math.max(this.high - this.low, 1e-30);
    return Math.round((RAMP - 1) * Math.min(Math.max(share, 0), 1) ** (1 / this.gamma));
  }

  /** Colors by value of integer pixels, or by place in the window of float pixels. */
  #table(dtype) {
    let table = this.#tables.get(dtype);
    if (table) return table;
    const colors = ramp(this.map);
    if (dtype === "float32") {
      table = Uint32Array.from({ length: RAMP }, (_, i) => colors[this.#place(this.low + (i / (RAMP - 1)) * (this.high - this.low))]);
    } else {
      table = Uint32Array.from({ length: dtype === "uint8" ? 256 : 65536 }, (_, value) => colors[this.#place(value)]);
    }
    this.#tables.set(dtype, table);
    return table;
  }

  /**
   * Paints pixels.
   *
   * @param {Uint8Array | Uint16Array | Float32Array} pixels row-major, channels interleaved
   * @param {string} dtype
   * @param {1 | 3} channels color frames keep their colors where the map is gray, else their mean is mapped
   * @param {ImageData} image
   */
  paint(pixels, dtype, channels, image) {
    const out = new Uint32Array(image.data.buffer);
    const table = this.#table(dtype);
    const scale = dtype === "float32" ? (RAMP - 1) / Math.max(this.high - this.low, 1e-30) : 1;
    const offset = dtype === "float32" ? this.low : 0;
    const last = table.length - 1;
    if (channels === 1 && dtype !== "float32") {
      for (let i = 0; i < out.length; i++) out[i] = table[pixels[i]];
      return;
    }
    const color = (value) => table[Math.min(Math.max(Math.round((value - offset) * scale), 0), last)];
    if (channels === 1) {
      for (let i = 0; i < out.length; i++) out[i] = color(pixels[i]);
    } else if (this.map.startsWith("gray")) {
      for (let i = 0, at = 0; i < out.length; i++, at += 3) {
        out[i] = (color(pixels[at]) & 0xff0000ff) | (color(pixels[at + 1]) & 0xff00) | (color(pixels[at + 2]) & 0xff0000);
      }
    } else {
      for (let i = 0, at = 0; i < out.length; i++, at += 3) out[i] = color((pixels[at] + pixels[at + 1] + pixels[at + 2]) / 3);
    }
  }
}

/**
 * @param {Float32Array | number[]} sorted values in rising order
 * @param {number} share 0..1
 */
export function quantile(sorted, share) {
  return sorted[Math.min(Math.max(Math.round(share * (sorted.length - 1)), 0), sorted.length - 1)];
}
