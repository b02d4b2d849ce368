/**
 * The stage: draws the open image with its targets, zoomed and moved.
 *
 * Two canvases lie on each other: pixels, which change with zoom and tone, and marks, which change with the targets.
 * In plane coordinates pixel (x, y) covers x..x+1 and y..y+1; in image coordinates its center is (x, y).
 */

import * as masks from "./masks.js";

const LARGEST_SCALE = 64; // device pixels of an image pixel
const COLORS = { target: "#3fd0ff", selected: "#ffd83d", doubtful: "#ff8a5c", suggestion: "#b7f5a5", halo: "rgba(0,0,0,.65)" };

/** Events: "view" after a change of zoom, place or size; "cursor" when the cursor is at another pixel. */
export class View extends EventTarget {
  /** Device pixels of an image pixel. */
  scale = 1;
  /** Plane coordinates in the middle of the stage. */
  center = { x: 0, y: 0 };
  /** Pixel under the mouse, or moved by the arrow keys. */
  cursor = { x: 0, y: 0 };
  cursorShown = false;
  masksShown = true;
  tpmShown = false;
  /** The tool in use; draws its preview. */
  tool = null;
  #edits;
  #display;
  #stage;
  #pixels;
  #marks;
  #drawing = 0;
  #tpms = new WeakMap();

  /**
   * @param {HTMLElement} stage holds the canvases "pixels" and "marks"
   * @param {import("./edits.js").Edits} edits
   * @param {import("./display.js").Display} display
   */
  constructor(stage, edits, display) {
    super();
    this.#edits = edits;
    this.#display = display;
    this.#stage = stage;
    this.#pixels = stage.querySelector("#pixels");
    this.#marks = stage.querySelector("#marks");
    new ResizeObserver(() => this.#resize()).observe(stage);
    edits.addEventListener("open", () => {
      edits.frame?.addEventListener("tile", () => this.draw());
      edits.frame?.addEventListener("problem", (event) => edits.say(event.detail, true));
      this.fit();
      this.moveCursor(Math.floor((edits.frame?.width ?? 1) / 2), Math.floor((edits.frame?.height ?? 1) / 2), false);
    });
    edits.addEventListener("targets", () => this.draw());
    display.addEventListener("tone", () => this.draw());
    this.#resize();
  }

  get frame() {
    return this.#edits.frame;
  }

  get canvas() {
    return this.#marks;
  }

  #resize() {
    const ratio = devicePixelRatio;
    const { clientWidth, clientHeight } = this.#stage;
    for (const canvas of [this.#pixels, this.#marks]) {
      canvas.width = Math.max(1, Math.round(clientWidth * ratio));
      canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    }
    this.#changed();
  }

  // Zoom and place

  /** @returns {number} scale at which the whole image is seen */
  get fitScale() {
    if (!this.frame) return 1;
    const scale = Math.min(this.#marks.width / this.frame.width, this.#marks.height / this.frame.height);
    return scale > 1 ? Math.min(Math.floor(scale * 4) / 4, 16) : scale;
  }

  fit() {
    if (!this.frame) {
      this.draw();
      return;
    }
    this.scale = this.fitScale;
    this.center = { x: this.frame.width / 2, y: this.frame.height / 2 };
    this.#changed();
  }

  /**
   * Zooms, with a pixel staying where it is on the stage.
   *
   * @param {number} factor
   * @param {{x: number, y: number}} [at] image coordinates; if left out the cursor, or the middle where it is not seen
   */
  zoom(factor, at = this.#anchor) {
    const least = Math.min(this.fitScale, 1) / 2;
    const scale = Math.min(Math.max(this.scale * factor, least), LARGEST_SCALE);
    const used = this.scale / scale;
    this.center.x = at.x + 0.5 + (this.center.x - at.x - 0.5) * used;
    this.center.y = at.y + 0.5 + (this.center.y - at.y - 0.5) * used;
    this.scale = scale;
    this.#changed();
  }

  get #anchor() {
    const { x, y } = this.cursor;
    const { left, top, right, bottom } = this.box;
    const seen = x >= left && x < right && y >= top && y < bottom;
    return seen ? this.cursor : { x: this.center.x - 0.5, y: this.center.y - 0.5 };
  }

  /** Shows a place in the middle, at least at a scale. */
  lookAt(x, y, scale = this.scale) {
    this.scale = Math.max(this.scale, scale);
    this.center = { x: x + 0.5, y: y + 0.5 };
    this.#changed();
  }

  /** Moves the image by screen pixels. */
  pan(dx, dy) {
    this.center.x -= (dx * devicePixelRatio) / this.scale;
    this.center.y -= (dy * devicePixelRatio) / this.scale;
    this.#changed();
  }

  #changed() {
    if (this.frame) {
      this.center.x = Math.min(Math.max(this.center.x, 0), this.frame.width);
      this.center.y = Math.min(Math.max(this.center.y, 0), this.frame.height);
    }
    this.draw();
    this.dispatchEvent(new Event("view"));
  }

  /** Device pixel of a place of the plane. */
  #place(x, y) {
    return {
      x: (x - this.center.x) * this.scale + this.#marks.width / 2,
      y: (y - this.center.y) * this.scale + this.#marks.height / 2,
    };
  }

  /** @returns {{x: number, y: number}} screen pixel, inside the window, of an image coordinate */
  toScreen(x, y) {
    const box = this.#marks.getBoundingClientRect();
    const at = this.#place(x + 0.5, y + 0.5);
    return { x: box.left + at.x / devicePixelRatio, y: box.top + at.y / devicePixelRatio };
  }

  /** @returns {{x: number, y: number}} pixel of the image under a mouse event, which may lie outside */
  toPixel(event) {
    const box = this.#marks.getBoundingClientRect();
    const x = ((event.clientX - box.left) * devicePixelRatio - this.#marks.width / 2) / this.scale + this.center.x;
    const y = ((event.clientY - box.top) * devicePixelRatio - this.#marks.height / 2) / this.scale + this.center.y;
    return { x: Math.floor(x), y: Math.floor(y) };
  }

  /** @returns {boolean} whether a pixel lies in the image */
  inside({ x, y }) {
    return Boolean(this.frame) && x >= 0 && y >= 0 && x < this.frame.width && y < this.frame.height;
  }

  /** Part of the image that is seen, image pixels. */
  get box() {
    const halfWidth = this.#marks.width / 2 / this.scale;
    const halfHeight = this.#marks.height / 2 / this.scale;
    return {
      left: Math.max(this.center.x - halfWidth, 0),
      right: Math.min(this.center.x + halfWidth, this.frame.width),
      top: Math.max(this.center.y - halfHeight, 0),
      bottom: Math.min(this.center.y + halfHeight, this.frame.height),
    };
  }

  /**
   * Puts the cursor on a pixel.
   *
   * @param {number} x
   * @param {number} y
   * @param {boolean} [byKeys] the cursor is drawn and kept on the stage
   */
  moveCursor(x, y, byKeys = true) {
    if (!this.frame) return;
    x = Math.min(Math.max(x, 0), this.frame.width - 1);
    y = Math.min(Math.max(y, 0), this.frame.height - 1);
    const moved = x !== this.cursor.x || y !== this.cursor.y || byKeys !== this.cursorShown;
    this.cursor = { x, y };
    this.cursorShown = byKeys;
    if (byKeys) {
      const margin = 24 * devicePixelRatio;
      const at = this.#place(x + 0.5, y + 0.5);
      if (at.x < margin || at.y < margin || at.x > this.#marks.width - margin || at.y > this.#marks.height - margin) {
        this.lookAt(x, y);
      }
    }
    if (moved) {
      this.draw();
      this.dispatchEvent(new Event("cursor"));
    }
  }

  // Drawing

  /** Draws at the next frame of the screen. */
  draw() {
    if (this.#drawing) return;
    this.#drawing = requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#drawPixels();
      this.#drawMarks();
    });
  }

  #drawPixels() {
    const context = this.#pixels.getContext("2d", { alpha: true });
    context.clearRect(0, 0, this.#pixels.width, this.#pixels.height);
    if (!this.frame) return;
    context.imageSmoothingEnabled = false;
    const level = this.frame.levelFor(this.scale);
    if (this.#display.look(this.frame, this.box, level)) {
      this.#drawBlocks(context, this.#display.local.canvas, this.#display.local.left, this.#display.local.top, level);
      this.#trim(context);
      return;
    }
    // Until the tiles of this level are here, the one tile of the coarsest level shows their place.
    if (level < this.frame.top && !this.#covered(level)) this.#drawLevel(context, this.frame.top);
    this.#drawLevel(context, level);
  }

  *#tiles(level) {
    const block = 2 ** level * this.frame.side;
    const { left, top, right, bottom } = this.box;
    for (let row = Math.floor(top / block); row * block < bottom; row++) {
      for (let column = Math.floor(left / block); column * block < right; column++) yield { row, column };
    }
  }

  #covered(level) {
    return [...this.#tiles(level)].every(({ row, column }) => this.frame.has(level, row, column));
  }

  #drawLevel(context, level) {
    for (const { row, column } of this.#tiles(level)) {
      const canvas = this.frame.painted(level, row, column, this.#display.tone);
      if (canvas) this.#drawBlocks(context, canvas, column * this.frame.side, row * this.frame.side, level);
    }
    this.#trim(context);
  }

  /** Draws blocks of a level, the first one at a column and row. */
  #drawBlocks(context, canvas, column, row, level) {
    const block = 2 ** level;
    const from = this.#place(column * block, row * block);
    const to = this.#place((column + canvas.width) * block, (row + canvas.height) * block);
    const x = Math.round(from.x);
    const y = Math.round(from.y);
    context.drawImage(canvas, x, y, Math.round(to.x) - x, Math.round(to.y) - y);
  }

  /** Clears what blocks at the right and lower edge stand over. */
  #trim(context) {
    const end = this.#place(this.frame.width, this.frame.height);
    context.clearRect(Math.round(end.x), 0, this.#pixels.width, this.#pixels.height);
    context.clearRect(0, Math.round(end.y), this.#pixels.width, this.#pixels.height);
  }

  #drawMarks() {
    const context = this.#marks.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.#marks.width, this.#marks.height);
    if (!this.frame) return;
    const origin = this.#place(0, 0);
    context.setTransform(this.scale, 0, 0, this.scale, origin.x, origin.y);
    context.lineJoin = context.lineCap = "round";
    if (this.masksShown) {
      if (this.tpmShown) this.#drawTpm(context);
      for (const suggestion of this.#edits.suggestions) this.#drawSuggestion(context, suggestion);
      for (const target of this.#edits.targets.values()) this.#drawTarget(context, target);
      for (const edit of this.#edits.outbox.of(this.#edits.index)) if (edit.op === "add") this.#drawWaiting(context, edit);
    }
    this.tool?.draw?.(context, this);
    if (this.cursorShown) this.#drawCursor(context);
  }

  /** @returns {number} a length on the screen, in the plane */
  length(screenPixels) {
    return (screenPixels * devicePixelRatio) / this.scale;
  }

  /** Strokes a path with a dark halo, which is seen on bright and dark pixels. */
  stroke(context, path, color, width = 1.6) {
    context.lineWidth = this.length(width + 1.8);
    context.strokeStyle = COLORS.halo;
    context.stroke(path);
    context.lineWidth = this.length(width);
    context.strokeStyle = color;
    context.stroke(path);
  }

  #drawTarget(context, target) {
    const chosen = target.id === this.#edits.selected;
    const color = chosen ? COLORS.selected : target.problem || target.flags?.length ? COLORS.doubtful : COLORS.target;
    if (target.mask) this.stroke(context, masks.outline(target.mask), color, chosen ? 2.2 : 1.6);
    const small = this.scale < 4 * devicePixelRatio;
    if (small || chosen) this.#drawBrackets(context, target, color, small ? 7 : 10);
    if (!small) for (const [x, y] of [[target.x, target.y], ...(target.seeds ?? [])]) this.#drawCross(context, x, y, color);
    if (target.box && chosen) {
      const [left, top, right, bottom] = target.box;
      const path = new Path2D();
      path.rect(left, top, right - left + 1, bottom - top + 1);
      context.setLineDash([this.length(4), this.length(4)]);
      this.stroke(context, path, color, 1);
      context.setLineDash([]);
    }
  }

  /** Four corners around a target: a mask of few pixels is not seen in an overview. */
  #drawBrackets(context, target, color, space) {
    const around = target.mask ?? { left: target.x, top: target.y, width: 1, height: 1 };
    const gap = this.length(space);
    const arm = this.length(6);
    const [left, top] = [around.left - gap, around.top - gap];
    const [right, bottom] = [around.left + around.width + gap, around.top + around.height + gap];
    const path = new Path2D();
    for (const [x, y, dx, dy] of [[left, top, 1, 1], [right, top, -1, 1], [right, bottom, -1, -1], [left, bottom, 1, -1]]) {
      path.moveTo(x + dx * arm, y);
      path.lineTo(x, y);
      path.lineTo(x, y + dy * arm);
    }
    this.stroke(context, path, color, 1.4);
  }

  #drawCross(context, x, y, color) {
    const arm = Math.min(0.28, this.length(5));
    const path = new Path2D();
    path.moveTo(x + 0.5 - arm, y + 0.5);
    path.lineTo(x + 0.5 + arm, y + 0.5);
    path.moveTo(x + 0.5, y + 0.5 - arm);
    path.lineTo(x + 0.5, y + 0.5 + arm);
    this.stroke(context, path, color, 1.2);
  }

  #drawSuggestion(context, suggestion) {
    const current = suggestion === this.#edits.suggestion;
    const path = new Path2D();
    path.arc(suggestion.x + 0.5, suggestion.y + 0.5, Math.max(suggestion.radius, this.length(9)), 0, 2 * Math.PI);
    context.globalAlpha = current ? 1 : 0.7;
    context.setLineDash(current ? [] : [this.length(4), this.length(4)]);
    this.stroke(context, path, COLORS.suggestion, current ? 1.8 : 1.2);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  /** Marks a click whose mask has not come yet. */
  #drawWaiting(context, edit) {
    const [x, y] = edit.x !== undefined ? [edit.x, edit.y] : edit.box ? [(edit.box[0] + edit.box[2]) / 2, (edit.box[1] + edit.box[3]) / 2] : edit.stroke[0];
    const path = new Path2D();
    path.arc(x + 0.5, y + 0.5, this.length(6), 0, 2 * Math.PI);
    context.setLineDash([this.length(2), this.length(3)]);
    this.stroke(context, path, COLORS.selected, 1.4);
    context.setLineDash([]);
  }

  #drawTpm(context) {
    const target = this.#edits.target;
    const detail = target && this.#edits.details.get(target.id);
    if (!detail?.tpm || !detail.window) return;
    const { top, left, height, width } = detail.window;
    let canvas = this.#tpms.get(detail);
    if (!canvas) {
      canvas = new OffscreenCanvas(width, height);
      const image = new ImageData(width, height);
      detail.tpm.forEach((value, at) => image.data.set([255, Math.round(210 - (value / 65535) * 150), 0, (value / 65535) * 170], 4 * at));
      canvas.getContext("2d").putImageData(image, 0, 0);
      this.#tpms.set(detail, canvas);
    }
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, left, top, width, height);
    const path = new Path2D();
    path.rect(left, top, width, height);
    context.setLineDash([this.length(3), this.length(4)]);
    this.stroke(context, path, "#ff9d2e", 0.8);
    context.setLineDash([]);
  }

  #drawCursor(context) {
    const { x, y } = this.cursor;
    const path = new Path2D();
    path.rect(x, y, 1, 1);
    const [near, far] = [Math.max(this.length(5), 0.5), this.length(14) + 0.5];
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      path.moveTo(x + 0.5 + dx * near, y + 0.5 + dy * near);
      path.lineTo(x + 0.5 + dx * far, y + 0.5 + dy * far);
    }
    this.stroke(context, path, "#ffffff", 1.2);
  }
}
