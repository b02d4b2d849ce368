/**
 * Edits on their way to the server, in order, one at a time.
 *
 * An edit stays here, and in the browser's storage, until the server has answered that it is on disk. Each has a
 * random name, by which the server knows one that is sent twice because its first answer was lost.
 */

import { ConnectionError, randomName } from "./api.js";

/**
 * An edit: where it goes, the image that it changes (null for undo and redo), and when the user made it.
 *
 * @typedef {{path: string, index: number | null, since: number, body: {request: string, edits?: object[]}}} Entry
 */

const FINAL = [400, 404, 409, 413, 422]; // answers that a second try would get again

/** Events: "change" after every change of what waits; "answer" (detail: {entry, answer}); "refused" ({entry, error}). */
export class Outbox extends EventTarget {
  /** @type {Entry[]} the first one may be under way */
  entries = [];
  /** Line of an error of the server that may pass, such as a full disk or an old token. */
  trouble = null;
  #api;
  #key;
  #sending = false;

  /**
   * @param {import("./api.js").Api} api
   * @param {string} folder digest of the image names: edits kept from an earlier visit are for the same images
   */
  constructor(api, folder) {
    super();
    this.#api = api;
    this.#key = `mclc-unsent-${folder}-${api.client}`;
    // Of closed tabs too. One that is still open sends its own as well: the server knows them by their names.
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(`mclc-unsent-${folder}-`));
    for (const key of keys) {
      this.entries.push(...JSON.parse(localStorage.getItem(key)));
      if (key !== this.#key) localStorage.removeItem(key);
    }
    if (keys.length) this.#changed();
  }

  /**
   * Sends an edit after all earlier ones.
   *
   * @param {string} path
   * @param {number | null} index image that it changes, null for undo and redo
   * @param {object} body
   */
  add(path, index, body) {
    this.entries.push({ path, index, since: Date.now(), body: { request: randomName(), ...body } });
    this.#changed();
    this.flush();
  }

  /**
   * Sends a new step of a target's mask; an older one that still waits is replaced.
   *
   * @param {string} path
   * @param {number} index
   * @param {{op: "step", id: number, step: number}} edit
   */
  step(path, index, edit) {
    const last = this.entries.length - 1;
    const waits = this.entries[last]?.body.edits?.[0];
    if (last > 0 && waits?.op === "step" && waits.id === edit.id && this.entries[last].index === index) {
      this.entries[last].body.edits = [edit];
      this.#changed();
      return;
    }
    this.add(path, index, { edits: [edit] });
  }

  /** @returns {boolean} whether the newest edit was taken back before it was sent. */
  takeBack() {
    const sendable = this.#sending ? 1 : 0;
    if (this.entries.length <= sendable || this.#api.connected) return false;
    this.entries.pop();
    this.#changed();
    return true;
  }

  /** @returns {object[]} edits of an image that are not answered yet. */
  of(index) {
    return this.entries.filter((entry) => entry.index === index).flatMap((entry) => entry.body.edits ?? []);
  }

  /** Gives up all that waits. */
  discard() {
    this.entries.length = 0;
    this.trouble = null;
    this.#changed();
  }

  /** Sends what waits, until all is answered or the connection is lost. */
  async flush() {
    if (this.#sending) return;
    this.#sending = true;
    while (this.entries.length) {
      const entry = this.entries[0];
      try {
        const answer = await this.#api.post(entry.path, entry.body);
        this.#finish(entry);
        this.dispatchEvent(new CustomEvent("answer", { detail: { entry, answer } }));
      } catch (error) {
        if (error instanceof ConnectionError) break;
        if (!FINAL.includes(error.status)) {
          this.trouble = error.message;
          this.#changed();
          break;
        }
        this.#finish(entry);
        this.dispatchEvent(new CustomEvent("refused", { detail: { entry, error } }));
      }
    }
    this.#sending = false;
  }

  #finish(entry) {
    this.trouble = null;
    this.entries = this.entries.filter((one) => one !== entry);
    this.#changed();
  }

  #changed() {
    if (this.entries.length) localStorage.setItem(this.#key, JSON.stringify(this.entries));
    else localStorage.removeItem(this.#key);
    this.dispatchEvent(new Event("change"));
  }
}
