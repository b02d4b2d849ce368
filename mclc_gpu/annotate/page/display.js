/**
 * How values are shown: window of values, gamma and color map, with a histogram of what is seen.
 *
 * The window follows the whole image, or the part that is seen, or is set by hand; or values are shown less those of
 * their surroundings.
 */

import { LocalView } from "./local.js";
import { COLOR_MAPS, Tone, quantile } from "./tone.js";

const BINS = 120;
const MODES = ["image", "view", "local"];
const SHARES = [0.005, 0.998]; // shares of the values in view that become black and white

/** Events: "tone" when the colors changed. */
export class Display extends EventTarget {
  tone = new Tone();
  /** @type {"image" | "view" | "local" | "manual"} what the window of values follows */
  mode = "image";
  local = new LocalView();
  #root;
  #frame = null;
  #values = new Float32Array();
  #range = [0, 1];
  #timer = 0;

  /** @param {HTMLElement} root section of the page with the controls */
  constructor(root) {
    super();
    this.#root = root;
    const find = (name) => root.querySelector(`[name=${name}]`);
    this.inputs = { low: find("low"), high: find("high"), gamma: find("gamma"), map: find("map") };
    for (const name of COLOR_MAPS) this.inputs.map.add(new Option(name));
    for (const name of ["low", "high"]) {
      this.inputs[name].addEventListener("change", () => this.window({ [name]: Number(this.inputs[name].value) }));
    }
    this.inputs.gamma.addEventListener("input", () => this.set({ gamma: 2 ** Number(this.inputs.gamma.value) }));
    this.inputs.map.addEventListener("change", () => this.set({ map: this.inputs.map.value }));
    for (const radio of root.querySelectorAll("[name=mode]")) {
      radio.addEventListener("change", () => this.follow(radio.value));
    }
    this.histogram = root.querySelector("canvas");
    this.histogram.addEventListener("pointerdown", (event) => this.#drag(event));
    const kept = JSON.parse(localStorage.getItem("mclc-display") ?? "{}");
    if (COLOR_MAPS.includes(kept.map)) this.tone.set({ map: kept.map });
    if (kept.gamma > 0) this.tone.set({ gamma: kept.gamma });
    if (MODES.includes(kept.mode)) this.mode = kept.mode;
    this.#show();
  }

  /** @param {{low?: number, high?: number, gamma?: number, map?: string}} change */
  set(change) {
    if (!this.tone.set(change)) return;
    this.#show();
    this.dispatchEvent(new Event("tone"));
    this.#keep();
  }

  #keep() {
    localStorage.setItem("mclc-display", JSON.stringify({ map: this.tone.map, gamma: this.tone.gamma, mode: this.mode }));
  }

  /** Sets the window by hand. */
  window(change) {
    const low = Number.isFinite(change.low) ? change.low : this.tone.low;
    const high = Number.isFinite(change.high) ? change.high : this.tone.high;
    this.mode = "manual";
    this.set({ low: Math.min(low, high), high: Math.max(low, high) });
    this.#show();
  }

  /** @param {"image" | "view" | "local" | "manual"} mode */
  follow(mode) {
    this.mode = mode;
    if (mode === "image" && this.#frame) this.#whole(this.#frame.info);
    this.#show();
    this.#keep();
    this.dispatchEvent(new Event("tone"));
  }

  nextMode() {
    this.follow(MODES[(MODES.indexOf(this.mode) + 1) % MODES.length]);
  }

  nextMap() {
    this.set({ map: COLOR_MAPS[(COLOR_MAPS.indexOf(this.tone.map) + 1) % COLOR_MAPS.length] });
  }

  #whole({ percentiles, min, max }) {
    const [low, high] = [percentiles["0.1"], percentiles["99.9"]];
    this.set(high > low ? { low, high } : { low: min, high: max > min ? max : min + 1 });
  }

  /**
   * Notes what is drawn now, and fits the window to it where it follows it.
   *
   * @returns {boolean} whether `local` has the picture; else the tiles are painted with `tone`
   * @param {import("./frame.js").Frame} frame
   * @param {object} box image pixels that are seen
   * @param {number} level
   */
  look(frame, box, level) {
    if (frame !== this.#frame) {
      this.#frame = frame;
      this.#values = new Float32Array();
      const step = frame.info.dtype === "float32" ? "any" : "1";
      this.inputs.low.step = this.inputs.high.step = step;
      if (this.mode !== "manual") this.#whole(frame.info);
    }
    if (this.mode === "view") {
      this.#values = frame.sample(box, level, 12000);
      if (this.#values.length > 1) {
        const [low, high] = SHARES.map((share) => quantile(this.#values, share));
        this.tone.set(high > low ? { low, high } : { low, high: low + 1 });
        this.#show();
      }
    }
    const local = this.mode === "local" && this.local.render(frame, box, level, this.tone);
    if (local) this.#showWindow();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#values = local ? this.local.values : frame.sample(box, level, 12000);
      this.#drawHistogram();
    }, 80);
    return local;
  }

  /** Window of what is shown: of differences in local contrast. */
  get #window() {
    return this.mode === "local" ? this.local.tone : this.tone;
  }

  #showWindow() {
    const text = (value) => String(Number(value.toPrecision(6)));
    this.inputs.low.value = text(this.#window.low);
    this.inputs.high.value = text(this.#window.high);
    this.inputs.low.disabled = this.inputs.high.disabled = this.mode === "local";
  }

  #show() {
    const { gamma, map } = this.tone;
    this.#showWindow();
    this.inputs.gamma.value = String(Math.log2(gamma));
    this.inputs.map.value = map;
    this.#root.querySelector("#gamma-value").textContent = gamma.toFixed(2);
    for (const radio of this.#root.querySelectorAll("[name=mode]")) radio.checked = radio.value === this.mode;
    this.#drawHistogram();
  }

  #drawHistogram() {
    const canvas = this.histogram;
    const ratio = devicePixelRatio;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
    if (!width) return;
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const { low, high } = this.#window;
    const values = this.#values;
    const [least, most] = values.length ? [values[0], values.at(-1)] : [low, high];
    const space = 0.04 * (Math.max(high, most) - Math.min(low, least) || 1);
    this.#range = [Math.min(low, least) - space, Math.max(high, most) + space];
    const [from, to] = this.#range;
    const counts = new Array(BINS).fill(0);
    for (const value of values) counts[Math.min(Math.floor(((value - from) / (to - from)) * BINS), BINS - 1)]++;
    const tallest = Math.log1p(Math.max(...counts, 1));
    const style = getComputedStyle(canvas);
    const place = (value) => ((value - from) / (to - from)) * width;
    context.fillStyle = style.getPropertyValue("--window");
    context.fillRect(place(low), 0, Math.max(place(high) - place(low), 1), height);
    context.fillStyle = style.getPropertyValue("--bar");
    counts.forEach((count, bin) => {
      const tall = (Math.log1p(count) / tallest) * (height - 4 * ratio);
      context.fillRect((bin * width) / BINS, height - tall, Math.max(width / BINS - 0.5 * ratio, 1), tall);
    });
    context.fillStyle = style.getPropertyValue("--handle");
    for (const value of [low, high]) context.fillRect(Math.round(place(value) - ratio), 0, 2 * ratio, height);
  }

  /** Drags the nearer end of the window. */
  #drag(event) {
    if (this.mode === "local") return;
    const box = this.histogram.getBoundingClientRect();
    const [from, to] = this.#range;
    const valueAt = ({ clientX }) => {
      const value = from + Math.min(Math.max((clientX - box.left) / box.width, 0), 1) * (to - from);
      return this.#frame?.info.dtype === "float32" ? value : Math.round(value);
    };
    const start = valueAt(event);
    const end = Math.abs(start - this.tone.low) < Math.abs(start - this.tone.high) ? "low" : "high";
    this.histogram.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const value = valueAt(moved);
      this.window({ [end]: end === "low" ? Math.min(value, this.tone.high) : Math.max(value, this.tone.low) });
    };
    move(event);
    this.histogram.addEventListener("pointermove", move);
    const stop = () => this.histogram.removeEventListener("pointermove", move);
    this.histogram.addEventListener("pointerup", stop, { once: true });
    this.histogram.addEventListener("pointercancel", stop, { once: true });
  }
}
