/**
 * The open image with its targets, and every change of them.
 *
 * The server holds the truth: a change goes to it through the outbox and comes back as new targets. Until then a click
 * is shown as waiting, and a mask that becomes larger or smaller is drawn from the candidates that were loaded with it.
 */

import { Frame } from "./frame.js";
import * as masks from "./masks.js";
import { Outbox } from "./outbox.js";

const CLICK_REACH = 1.5; // pixels around a click that select its target
const LOADING_MS = 300; // after which a slow image is announced
const CATEGORY_CYCLE = [null, "point", "spot", "extended"];

/**
 * Events: "open" (another image), "targets" (targets, suggestions or the selection changed), "images" (detail: index
 * or null for all; facts of the list), "settings" (of the label maker), "message" (detail: {text, bad}).
 */
export class Edits extends EventTarget {
  /** Answer of /api/session. */
  session;
  /** Answer of /api/images: arrays by index. */
  images;
  index = -1;
  /** @type {Frame | null} */
  frame = null;
  /** Line that says why the open image cannot be shown. */
  problem = null;
  done = false;
  /** @type {Map<number, object>} targets of the open image by id */
  targets = new Map();
  suggestions = [];
  suggestionsState = "none";
  /** Id of the selected target. */
  selected = null;
  /** Place in `suggestions` that accept and reject act on. */
  current = 0;
  /** Answers of /targets/{id} with TPM and candidates decoded, by id. */
  details = new Map();
  #api;
  #opening = 0;
  #revision = 0;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    super();
    this.#api = api;
  }

  /** Loads the session and the list of images. */
  async start() {
    await this.#api.claimName();
    this.session = await this.#api.get("/api/session");
    this.outbox = new Outbox(this.#api, this.session.folder);
    this.outbox.addEventListener("answer", (event) => this.#answered(event.detail.entry, event.detail.answer));
    this.outbox.addEventListener("refused", (event) => this.#refused(event.detail.error));
    this.outbox.addEventListener("change", () => this.#tell("targets"));
    this.#api.addEventListener("server", (event) => this.#heard(event.detail.type, event.detail.data));
    this.#api.addEventListener("back", (event) => this.#back(event.detail));
    this.#api.addEventListener("listening", () => this.reload()); // what happened before was not heard
    await this.loadImages();
    this.outbox.flush();
  }

  async loadImages() {
    this.images = await this.#api.get("/api/images");
    this.#tell("images", null);
  }

  get name() {
    return this.images.names[this.index];
  }

  get target() {
    return this.targets.get(this.selected) ?? null;
  }

  get suggestion() {
    return this.suggestions[this.current] ?? null;
  }

  /** @returns {object[]} targets in their order in the files */
  get ordered() {
    return [...this.targets.values()].sort((a, b) => a.number - b.number);
  }

  /**
   * Opens an image.
   *
   * @param {number} index
   * @param {{id?: number, number?: number}} [target] selected at once, by id or by its place in the image
   */
  async open(index, target = {}) {
    const opening = ++this.#opening;
    let slow = false;
    const loading = setTimeout(() => {
      slow = true;
      this.say(`Loading ${this.images.names[index]} …`);
    }, LOADING_MS);
    let info;
    try {
      info = await this.#api.get(`/api/images/${index}`);
    } catch (error) {
      if (opening !== this.#opening) return;
      if (!error.status) return; // the banner says that the connection is lost
      info = null;
      this.problem = error.message;
    } finally {
      clearTimeout(loading);
    }
    if (opening !== this.#opening) return;
    this.frame?.close();
    this.index = index;
    this.selected = null;
    this.details.clear();
    this.current = 0;
    if (slow) this.say("");
    if (info) this.problem = null;
    this.frame = info && new Frame(this.#api, info, this.session.tile, this.pool);
    this.#take(info ?? { targets: [], suggestions: [], suggestions_state: "none", done: false });
    const chosen = this.ordered.find((one) => one.id === target.id || one.number === target.number);
    this.#tell("open");
    this.select(chosen?.id ?? null);
    this.#api.post(`/api/images/${index}/open`).catch(() => {});
  }

  /** Loads the targets of the open image again. */
  async reload() {
    const index = this.index;
    if (index < 0) return;
    if (!this.frame) {
      await this.open(index);
      return;
    }
    try {
      const info = await this.#api.get(`/api/images/${index}`);
      // What is on its way is newer than this answer, and brings the targets that it changes.
      if (index !== this.index || this.outbox.of(index).length) return;
      this.#take(info);
      if (!this.targets.has(this.selected)) this.selected = null;
      this.select(this.selected);
    } catch (error) {
      if (error.status) this.say(error.message, true);
    }
  }

  get pool() {
    return this.session.settings.polarity === "dark" ? "min" : "max";
  }

  #take(info) {
    this.targets = new Map(info.targets.map((target) => [target.id, target]));
    this.suggestions = info.suggestions;
    this.suggestionsState = info.suggestions_state;
    this.done = info.done;
    this.#revision = info.revision ?? this.#revision;
    this.#fact(this.index, { targets: this.targets.size, done: Number(info.done) });
  }

  #fact(index, facts) {
    for (const [key, value] of Object.entries(facts)) if (this.images[key] && index >= 0) this.images[key][index] = value;
    this.#tell("images", index);
  }

  // Selection

  /** @returns {object | null} target whose mask or click is at a pixel, the smallest of several */
  at(x, y) {
    let best = null;
    for (const target of this.targets.values()) {
      const near = target.kind === "click" && Math.hypot(target.x - x, target.y - y) <= CLICK_REACH;
      if (!near && !masks.has(target.mask, x, y)) continue;
      if (!best || target.area < best.area) best = target;
    }
    return best;
  }

  /** @param {number | null} id */
  select(id) {
    this.selected = id;
    this.#tell("targets");
    if (id !== null) this.#load(id);
  }

  /** Selects the next or previous target of the image. */
  cycle(step) {
    const ids = this.ordered.map((target) => target.id);
    if (!ids.length) return;
    const place = ids.indexOf(this.selected);
    this.select(ids[place < 0 ? (step > 0 ? 0 : ids.length - 1) : (place + step + ids.length) % ids.length]);
  }

  async #load(id) {
    const index = this.index;
    try {
      const detail = await this.#api.get(`/api/images/${index}/targets/${id}`);
      if (index !== this.index) return;
      if (detail.tpm) detail.tpm = new Uint16Array(masks.fromBase64(detail.tpm).buffer);
      if (detail.ranks) detail.ranks = masks.fromBase64(detail.ranks);
      this.details.set(id, detail);
      this.#tell("targets");
    } catch (error) {
      if (error.status && error.status !== 404) this.say(error.message, true);
    }
  }

  // Changes

  /** @param {...object} edits one undo step */
  edit(...edits) {
    this.outbox.add(`/api/images/${this.index}/edits`, this.index, { edits });
  }

  /**
   * Adds a target.
   *
   * @param {object} marks x and y; or seeds, stroke, box; see the server's interface
   */
  add(marks) {
    if (this.frame) this.edit({ op: "add", ...marks });
  }

  /** Draws a box or scribble: it replaces the marks of the selected target where it touches it, else adds one. */
  mark(marks, touches) {
    const target = this.target;
    const own = target && (touches(target.x, target.y) || this.#touchesMask(target.mask, touches));
    if (own) this.edit({ op: "marks", id: target.id, ...marks });
    else this.add(marks);
  }

  #touchesMask(mask, touches) {
    if (!mask) return false;
    return masks.bits(mask).some((bit, at) => bit && touches(mask.left + (at % mask.width), mask.top + Math.floor(at / mask.width)));
  }

  /** Moves the click of the selected target. */
  move(x, y) {
    const target = this.target;
    if (!target) this.say("Select a target first, then move its click.", true);
    else if (target.kind !== "click") this.say("Only a single click can be moved: draw the scribble or box again.", true);
    else if (target.x !== x || target.y !== y) this.edit({ op: "move", id: target.id, x, y });
  }

  remove() {
    if (this.target) this.edit({ op: "delete", id: this.target.id });
  }

  /** @param {number} by candidates up or down */
  grow(by) {
    if (this.target) this.step(this.target.step + by);
  }

  /** Takes another candidate as the mask of the selected target; 0 is the automatic one. */
  step(step) {
    const target = this.target;
    if (!target) return;
    const wanted = Math.min(Math.max(step, target.steps[0]), target.steps[1]);
    if (wanted === target.step && target.corrected !== "brush" && target.corrected !== "polygon") {
      if (step !== wanted) this.say(step > wanted ? "This is the largest candidate." : "This is the smallest candidate.");
      return;
    }
    const preview = this.#candidate(target, wanted);
    const corrected = wanted ? "step" : null;
    this.targets.set(target.id, { ...target, step: wanted, corrected, ...(preview ?? {}) });
    this.outbox.step(`/api/images/${this.index}/edits`, this.index, { op: "step", id: target.id, step: wanted });
  }

  /** Mask of a candidate, from what was loaded with the target. */
  #candidate(target, step) {
    const detail = this.details.get(target.id);
    if (!detail?.ranks || !target.window || step === 0) return null;
    const { top, left, height, width } = target.window;
    const mask = masks.fromTest(top, left, height, width, (at) => detail.ranks[at] <= detail.chosen + step);
    return { mask, area: masks.area(mask) };
  }

  cycleCategory() {
    const target = this.target;
    if (!target) return;
    const next = (CATEGORY_CYCLE.indexOf(target.category) + 1) % CATEGORY_CYCLE.length;
    this.category(CATEGORY_CYCLE[next]);
  }

  category(category) {
    if (this.target && this.target.category !== category) this.edit({ op: "category", id: this.target.id, category });
  }

  /** Forgets a mask drawn or stepped by hand. */
  automatic() {
    const target = this.target;
    if (!target?.corrected) return;
    if (target.corrected === "step") this.step(0);
    else this.edit({ op: "automatic", id: target.id });
  }

  /** Takes a mask drawn by hand. */
  paint(id, mask) {
    const target = this.targets.get(id);
    if (!target) return;
    if (!mask) {
      this.say("A mask needs a pixel: press Delete to remove the target.", true);
      this.#tell("targets");
      return;
    }
    this.targets.set(id, { ...target, mask, area: masks.area(mask), corrected: "brush" });
    this.edit({ op: "mask", id, mask, how: "brush" });
  }

  markDone(done = !this.done) {
    this.done = done;
    this.edit({ op: "done", done });
  }

  /** Accepts or rejects the current suggestion. */
  decide(accept) {
    const suggestion = this.suggestion;
    if (!suggestion) {
      this.say(this.suggestionsState === "pending" ? "Suggestions are still computed." : "No suggestion is left here.");
      return;
    }
    const { x, y } = suggestion;
    this.suggestions = this.suggestions.filter((one) => one !== suggestion);
    this.current = Math.min(this.current, Math.max(this.suggestions.length - 1, 0));
    if (accept) this.add({ x, y, suggestion: true });
    else this.edit({ op: "reject", x, y });
  }

  /** Makes the suggestion whose ring holds a place, if there is one, the current one. */
  pointAt(x, y) {
    const found = this.suggestions.findIndex((one) => Math.hypot(one.x - x, one.y - y) <= Math.max(one.radius, 3));
    if (found < 0 || found === this.current) return;
    this.current = found;
    this.#tell("targets");
  }

  undo() {
    if (this.outbox.takeBack()) this.reload();
    else this.outbox.add("/api/undo", null, {});
  }

  redo() {
    this.outbox.add("/api/redo", null, {});
  }

  /** @param {{polarity?: string, outline?: string}} settings */
  async settings(settings) {
    try {
      const answer = await this.#api.post("/api/settings", settings);
      Object.assign(this.session.settings, answer.settings);
      await this.open(this.index);
      this.say("The untouched targets of all images get new masks.");
    } catch (error) {
      this.say(error.message, true);
    }
  }

  // What the server answers and tells

  #answered(entry, answer) {
    const undone = entry.index === null;
    if (answer.index !== this.index) {
      const targets = this.images.targets[answer.index] + answer.added.length - answer.removed.length;
      this.#fact(answer.index, { targets, done: Number(answer.done) });
      if (undone) this.open(answer.index);
      return;
    }
    const waiting = this.outbox.of(this.index);
    const newer = new Set(waiting.filter((edit) => edit.op === "step" || edit.op === "mask").map((edit) => edit.id));
    for (const id of answer.removed) {
      this.targets.delete(id);
      if (this.selected === id) this.selected = null;
    }
    for (const target of answer.targets) if (!newer.has(target.id)) this.targets.set(target.id, target);
    if (!waiting.length) this.suggestions = answer.suggestions;
    this.current = Math.min(this.current, Math.max(this.suggestions.length - 1, 0));
    this.done = answer.done;
    const corrected = [...this.targets.values()].filter((target) => target.corrected).length;
    this.#fact(this.index, { targets: this.targets.size, done: Number(answer.done), corrected });
    const added = answer.added.at(-1);
    if (added !== undefined && this.targets.has(added)) this.select(added);
    else this.select(this.selected);
    this.#report(entry, answer);
    const missed = answer.revision > this.#revision + 1; // a change of another window
    this.#revision = answer.revision;
    if (missed) this.reload();
  }

  #report(entry, answer) {
    const op = entry.body.edits?.[0].op;
    if (entry.path === "/api/undo") this.say("Undone.");
    else if (entry.path === "/api/redo") this.say("Done again.");
    else if (op === "delete") this.say("Target deleted.");
    else if (op === "reject") this.say("Suggestion rejected.");
    else if (op === "done") this.say(answer.done ? "Image marked as done." : "Image marked as not done.");
    else if (this.target?.problem) this.say(this.target.problem, true);
    else if (this.target) {
      const { number, area, confidence } = this.target;
      const sure = confidence === null ? "" : `, confidence ${confidence.toFixed(2)}`;
      this.say(`Target ${number + 1}: ${area} px${sure} (${Date.now() - entry.since} ms)`);
    }
  }

  #refused(error) {
    const text = error.message;
    this.say(text.charAt(0).toUpperCase() + text.slice(1), true);
    this.reload();
  }

  #heard(type, data) {
    if (type === "edit" && data.index === this.index && data.client !== this.#api.client) {
      this.say("Another window changed this image.");
      this.reload();
    } else if (type === "image") {
      const { index, ...facts } = data;
      this.#fact(index, { ...facts, done: Number(facts.done) });
      if (index === this.index && !this.outbox.entries.length) this.reload();
    } else if (type === "suggestions" && data.index === this.index) this.reload();
    else if (type === "settings") this.#follow();
    else if (type === "task") this.dispatchEvent(new CustomEvent("task", { detail: data }));
  }

  async #back(session) {
    if (session.folder !== this.session.folder) {
      location.reload();
      return;
    }
    this.outbox.flush();
    await this.#follow(session);
  }

  /** Takes the settings and facts of the server, which another window may have changed. */
  async #follow(session = null) {
    try {
      this.session = session ?? (await this.#api.get("/api/session"));
      this.#tell("settings");
      await this.loadImages();
    } catch (error) {
      if (error.status) this.say(error.message, true);
      return;
    }
    if (this.frame && this.frame.pool !== this.pool) await this.open(this.index, { id: this.selected });
  }

  /** Shows a line to the user. */
  say(text, bad = false) {
    this.dispatchEvent(new CustomEvent("message", { detail: { text, bad } }));
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
