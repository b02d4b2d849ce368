/**
 * Tools of the stage: what a press, drag and release of the mouse or of the Enter key do.
 *
 * A tool gets pixels of the image. With the keyboard, Enter presses at the cursor; for tools that drag, a second Enter
 * releases.
 */

import * as masks from "./masks.js";

const DRAG_PX = 4; // screen pixels by which a click may slip
const PREVIEW = "#ffd83d";

/** Click: adds a target, or selects the one that is there; a drag moves the image, or the selected target's click. */
class ClickTool {
  drags = false;
  #moving = null;

  constructor(edits, view) {
    this.edits = edits;
    this.view = view;
  }

  press(at, event) {
    const target = this.edits.target;
    const close = target?.kind === "click" && Math.hypot(target.x - at.x, target.y - at.y) < 1;
    this.#moving = close && !event?.shiftKey ? { at, moved: false } : null;
  }

  /** @returns {boolean} whether the drag is the tool's; else the image is moved */
  drag(at) {
    if (!this.#moving) return false;
    this.#moving.at = at;
    this.#moving.moved = true;
    this.view.draw();
    return true;
  }

  release(at, event, dragged) {
    const moving = this.#moving;
    this.#moving = null;
    if (moving?.moved) this.edits.move(at.x, at.y);
    else if (!dragged) this.#click(at, event?.shiftKey);
  }

  #click(at, always) {
    const found = !always && this.edits.at(at.x, at.y);
    if (found) this.edits.select(found.id);
    else this.edits.add(at);
  }

  draw(context, view) {
    if (!this.#moving?.moved) return;
    const path = new Path2D();
    path.arc(this.#moving.at.x + 0.5, this.#moving.at.y + 0.5, view.length(6), 0, 2 * Math.PI);
    view.stroke(context, path, PREVIEW);
  }
}

/** Box: two corners. */
class BoxTool {
  drags = true;
  #from = null;
  #to = null;

  constructor(edits, view) {
    this.edits = edits;
    this.view = view;
  }

  press(at) {
    this.#from = this.#to = at;
  }

  drag(at) {
    this.#to = at;
    this.view.draw();
    return true;
  }

  release(at) {
    this.#to = at;
    const box = this.#box();
    const [left, top, right, bottom] = box;
    this.#from = null;
    const touches = (x, y) => x >= left && x <= right && y >= top && y <= bottom;
    if (left === right || top === bottom) this.edits.say("Draw the box from one corner of the target to the other.", true);
    else this.edits.mark({ box }, touches);
    this.view.draw();
  }

  cancel() {
    this.#from = null;
  }

  #box() {
    const [a, b] = [this.#from, this.#to];
    return [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];
  }

  draw(context, view) {
    if (!this.#from) return;
    const [left, top, right, bottom] = this.#box();
    const path = new Path2D();
    path.rect(left, top, right - left + 1, bottom - top + 1);
    view.stroke(context, path, PREVIEW);
  }
}

/** Scribble: a line over the target. */
class ScribbleTool {
  drags = true;
  #stroke = null;

  constructor(edits, view) {
    this.edits = edits;
    this.view = view;
  }

  press(at) {
    this.#stroke = [[at.x, at.y]];
  }

  drag(at) {
    const [x, y] = this.#stroke.at(-1);
    if (x !== at.x || y !== at.y) this.#stroke.push([at.x, at.y]);
    this.view.draw();
    return true;
  }

  release() {
    const stroke = this.#stroke;
    this.#stroke = null;
    this.edits.mark({ stroke }, (x, y) => stroke.some(([sx, sy]) => sx === x && sy === y));
    this.view.draw();
  }

  cancel() {
    this.#stroke = null;
  }

  draw(context, view) {
    if (!this.#stroke) return;
    const path = new Path2D();
    this.#stroke.forEach(([x, y], number) => (number ? path.lineTo(x + 0.5, y + 0.5) : path.moveTo(x + 0.5, y + 0.5)));
    if (this.#stroke.length === 1) path.arc(this.#stroke[0][0] + 0.5, this.#stroke[0][1] + 0.5, 0.3, 0, 2 * Math.PI);
    view.stroke(context, path, PREVIEW);
  }
}

/** Brush and eraser: pixels of the selected target's mask. */
class BrushTool {
  drags = true;
  size = 1;
  #painting = null;
  #last = null;
  #id = null;
  #shown = null;

  /** @param {boolean} on whether it adds pixels */
  constructor(edits, view, on) {
    this.edits = edits;
    this.view = view;
    this.on = on;
  }

  press(at) {
    const { edits } = this;
    if (!edits.target) {
      const found = edits.at(at.x, at.y);
      if (!found) {
        edits.say("Click a target first: brush and eraser mend the selected mask.", true);
        return;
      }
      edits.select(found.id);
    }
    this.#id = edits.selected;
    this.#painting = new masks.Painting(edits.target.mask, edits.frame.width, edits.frame.height);
    this.#last = at;
    this.drag(at);
  }

  drag(at) {
    if (!this.#painting) return true;
    this.#painting.stroke(this.#last, at, this.size, this.on);
    this.#last = at;
    this.#shown = this.#painting.mask();
    this.view.draw();
    return true;
  }

  release() {
    if (!this.#painting) return;
    const mask = this.#painting.mask();
    this.cancel();
    this.edits.paint(this.#id, mask);
  }

  cancel() {
    this.#painting = this.#shown = null;
  }

  resize(by) {
    this.size = Math.min(Math.max(this.size + by, 1), 41);
    this.edits.say(`Brush: ${this.size} px`);
    this.view.draw();
  }

  draw(context, view) {
    if (this.#shown) view.stroke(context, masks.outline(this.#shown), this.on ? "#7dff8a" : "#ff7d7d", 2);
    const path = new Path2D();
    const offsets = masks.disc(this.size);
    const left = Math.min(...offsets.map(([dx]) => dx));
    const inside = new Set(offsets.map(([dx, dy]) => (dy - left) * this.size + dx - left));
    const shape = masks.fromTest(view.cursor.y + left, view.cursor.x + left, this.size, this.size, (at) => inside.has(at));
    path.addPath(masks.outline(shape));
    view.stroke(context, path, "#ffffff", 1);
  }
}

/** The tools, the one in use, and the mouse on the stage. */
export class Tools extends EventTarget {
  #edits;
  #view;
  #pressed = null; // {tool, x, y, dragged, pan}
  #byKey = false;
  #wheel = 0;

  /**
   * @param {import("./edits.js").Edits} edits
   * @param {import("./view.js").View} view
   */
  constructor(edits, view) {
    super();
    this.#edits = edits;
    this.#view = view;
    this.all = {
      click: new ClickTool(edits, view),
      box: new BoxTool(edits, view),
      scribble: new ScribbleTool(edits, view),
      brush: new BrushTool(edits, view, true),
      eraser: new BrushTool(edits, view, false),
    };
    this.panning = false; // while the space bar is held
    this.use("click");
    const canvas = view.canvas;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("wheel", (event) => this.#turn(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    edits.addEventListener("open", () => this.cancel());
  }

  /** @param {string} name */
  use(name) {
    this.cancel();
    this.name = name;
    this.tool = this.#view.tool = this.all[name];
    this.dispatchEvent(new Event("tool"));
    this.#view.draw();
  }

  /** Gives up what is being drawn. @returns {boolean} whether there was anything */
  cancel() {
    const active = Boolean(this.#pressed) || this.#byKey;
    this.tool?.cancel?.();
    this.#pressed = null;
    this.#byKey = false;
    this.#view.draw();
    return active;
  }

  /** Makes the mask, or the brush where one is in use, larger or smaller. */
  grow(by) {
    if (this.tool.resize) this.tool.resize(by);
    else this.#edits.grow(by);
  }

  /** Enter at the cursor. */
  enter(event) {
    if (!this.#edits.frame || this.#pressed) return;
    const at = this.#view.cursor;
    if (this.tool.drags && !this.tool.resize && !this.#byKey) {
      this.tool.press(at, event);
      this.#byKey = true;
      this.#edits.say("Move with the arrow keys, then press Enter again.");
      this.#view.draw();
      return;
    }
    if (!this.#byKey) this.tool.press(at, event);
    this.#byKey = false;
    this.tool.release(at, event, false);
  }

  /** The cursor was moved by keys. */
  follow() {
    if (this.#byKey) this.tool.drag(this.#view.cursor);
  }

  #down(event) {
    this.#view.canvas.focus({ preventScroll: true });
    if (!this.#edits.frame) return;
    const at = this.#view.toPixel(event);
    const pan = event.button !== 0 || this.panning || !this.#view.inside(at);
    this.#view.canvas.setPointerCapture(event.pointerId);
    this.#pressed = { x: event.clientX, y: event.clientY, dragged: false, pan };
    if (pan) return;
    this.#byKey = false; // the mouse begins anew
    this.tool.press(at, event);
  }

  #move(event) {
    if (!this.#edits.frame) return;
    const at = this.#view.toPixel(event);
    this.#view.moveCursor(at.x, at.y, false);
    const pressed = this.#pressed;
    if (!pressed) {
      this.#edits.pointAt(at.x, at.y);
      return;
    }
    if (!pressed.dragged && Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) < DRAG_PX && !this.tool.drags) return;
    const [dx, dy] = [event.clientX - pressed.x, event.clientY - pressed.y];
    pressed.dragged = true;
    if (pressed.pan || !this.tool.drag(this.#view.cursor)) {
      this.#view.pan(dx, dy);
      [pressed.x, pressed.y] = [event.clientX, event.clientY];
    }
  }

  #up(event) {
    const pressed = this.#pressed;
    this.#pressed = null;
    if (!pressed || pressed.pan) return;
    const at = this.#view.toPixel(event);
    if (this.tool.drags || this.#view.inside(at)) {
      this.#view.moveCursor(at.x, at.y, false);
      this.tool.release(this.#view.cursor, event, pressed.dragged);
    }
  }

  #turn(event) {
    event.preventDefault();
    if (!this.#edits.frame) return;
    if (!event.shiftKey) {
      const lines = event.deltaMode ? event.deltaY * 33 : event.deltaY;
      this.#view.zoom(2 ** (-Math.max(-200, Math.min(200, lines)) / 200), this.#view.toPixel(event));
      return;
    }
    // With Shift some systems turn the wheel sideways. A trackpad sends many small turns.
    this.#wheel += (event.deltaY || event.deltaX) * (event.deltaMode ? 33 : 1);
    const turns = Math.trunc(this.#wheel / 50);
    this.#wheel -= 50 * turns;
    if (turns) this.grow(-Math.sign(turns));
  }
}
