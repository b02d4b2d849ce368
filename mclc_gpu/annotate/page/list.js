/**
 * List of all images with thumbnails and their states. Only the rows that are seen exist, so that 10,000 images are
 * as quick as ten.
 */

const ROW_PX = 76;
const SPARE = 3; // rows above and below those that are seen

/** Orders and filters: index -> whether it is shown. */
const SHOWN = {
  all: () => true,
  open: (images, index) => !images.done[index],
  doubtful: (images, index) => images.flagged[index] > 0 && !images.done[index],
  corrected: (images, index) => images.corrected[index] > 0,
  problems: (images, index) => index in images.problems,
};

/** Events: "choose" (detail: index). */
export class ImageList extends EventTarget {
  /** Indices of the images in the order shown. */
  order = [];
  #api;
  #edits;
  #box;
  #space;
  #rows = new Map();
  #filter;
  #search;
  #count;

  /**
   * @param {HTMLElement} root
   * @param {import("./edits.js").Edits} edits
   * @param {import("./api.js").Api} api
   */
  constructor(root, edits, api) {
    super();
    this.#api = api;
    this.#edits = edits;
    this.#box = root.querySelector("#rows");
    this.#space = root.querySelector("#rows-space");
    this.#filter = root.querySelector("#filter");
    this.#search = root.querySelector("#search");
    this.#count = root.querySelector("#list-count");
    this.#filter.addEventListener("change", () => this.sort());
    this.#search.addEventListener("input", () => this.sort());
    this.#search.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.order.length) this.#choose(this.order[0]);
    });
    this.#box.addEventListener("scroll", () => this.#draw());
    this.#box.addEventListener("keydown", (event) => {
      const steps = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!steps) return;
      event.preventDefault();
      this.go(steps);
    });
    new ResizeObserver(() => this.#draw()).observe(this.#box);
    edits.addEventListener("images", (event) => {
      if (event.detail === null) this.sort();
      else if (this.#rows.has(event.detail)) this.#fill(this.#rows.get(event.detail), event.detail);
      this.#summary();
    });
    edits.addEventListener("open", () => this.#show());
  }

  /** Applies the order and filter anew. Images do not jump away while they are worked on. */
  sort() {
    const { images } = this.#edits;
    const word = this.#search.value.trim().toLowerCase();
    const shown = SHOWN[this.#filter.value];
    this.order = [...images.names.keys()].filter(
      (index) => shown(images, index) && (!word || images.names[index].toLowerCase().includes(word)),
    );
    if (this.#filter.value === "doubtful") this.order.sort((a, b) => (images.urgency[b] ?? 0) - (images.urgency[a] ?? 0) || a - b);
    for (const row of this.#rows.values()) row.remove();
    this.#rows.clear();
    this.#space.style.height = `${this.order.length * ROW_PX}px`;
    this.#show();
    this.#summary();
  }

  /** Moves to another image of the list. */
  go(step) {
    const { index } = this.#edits;
    const place = this.order.indexOf(index);
    let next = place + step;
    if (place < 0) {
      next = this.order.findIndex((one) => one > index);
      if (next < 0) next = this.order.length;
      if (step < 0) next--;
    }
    if (next >= 0 && next < this.order.length) this.#choose(this.order[next]);
    else this.#edits.say(step > 0 ? "This is the last image." : "This is the first image.");
  }

  /** Opens the first or last image of the list. */
  end(last) {
    if (this.order.length) this.#choose(last ? this.order.at(-1) : this.order[0]);
  }

  /** Opens the next image that is not done, from the open one on. */
  nextOpen() {
    const { index, images } = this.#edits;
    const place = this.order.indexOf(index);
    const rest = [...this.order.slice(place + 1), ...this.order.slice(0, Math.max(place, 0))];
    const next = rest.find((one) => !images.done[one] && one !== index);
    if (next === undefined) this.#edits.say("All images of the list are done.");
    else this.#choose(next);
  }

  #choose(index) {
    this.dispatchEvent(new CustomEvent("choose", { detail: index }));
  }

  #summary() {
    const { images } = this.#edits;
    const done = images.done.reduce((sum, one) => sum + one, 0);
    const all = images.names.length;
    this.#count.textContent = `${done} of ${all} done` + (this.order.length < all ? `, ${this.order.length} shown` : "");
  }

  #show() {
    const place = this.order.indexOf(this.#edits.index);
    if (place >= 0) {
      const top = place * ROW_PX;
      const { scrollTop, clientHeight } = this.#box;
      if (top < scrollTop || top + ROW_PX > scrollTop + clientHeight) this.#box.scrollTop = top - clientHeight / 2 + ROW_PX / 2;
    }
    this.#draw();
  }

  #draw() {
    const first = Math.max(Math.floor(this.#box.scrollTop / ROW_PX) - SPARE, 0);
    const last = Math.min(Math.ceil((this.#box.scrollTop + this.#box.clientHeight) / ROW_PX) + SPARE, this.order.length);
    const seen = new Set(this.order.slice(first, last));
    for (const [index, row] of this.#rows) {
      if (seen.has(index)) continue;
      row.remove();
      this.#rows.delete(index);
    }
    for (let place = first; place < last; place++) {
      const index = this.order[place];
      let row = this.#rows.get(index);
      if (!row) {
        row = this.#row(index, place);
        this.#rows.set(index, row);
        this.#space.append(row);
        if (!(index in this.#edits.images.problems)) this.#api.thumbnail(row.querySelector("img"), index);
      }
      const chosen = index === this.#edits.index;
      row.setAttribute("aria-selected", String(chosen));
      if (chosen) this.#box.setAttribute("aria-activedescendant", row.id);
    }
  }

  #row(index, place) {
    const row = document.createElement("div");
    row.id = `image-${index}`;
    row.className = "row";
    row.setAttribute("role", "option");
    row.setAttribute("aria-posinset", String(place + 1));
    row.setAttribute("aria-setsize", String(this.order.length));
    row.style.top = `${place * ROW_PX}px`;
    const frame = document.createElement("span");
    frame.className = "thumb";
    const image = new Image();
    image.alt = "";
    frame.append(image);
    const text = document.createElement("span");
    text.className = "row-text";
    row.append(frame, text);
    row.addEventListener("click", () => this.#choose(index));
    this.#fill(row, index);
    return row;
  }

  #fill(row, index) {
    const { images } = this.#edits;
    const text = row.querySelector(".row-text");
    text.replaceChildren();
    const add = (className, content, title) => {
      const line = document.createElement("span");
      line.className = className;
      line.textContent = content;
      if (title) line.title = title;
      text.append(line);
      return line;
    };
    add("row-name", images.names[index], images.names[index]);
    const count = images.targets[index];
    if (index in images.problems) add("badge bad", "cannot be read", images.problems[index]);
    else add("row-count", count === 1 ? "1 target" : `${count} targets`);
    const states = add("row-states", "");
    const badge = (className, content) => {
      const mark = document.createElement("span");
      mark.className = `badge ${className}`;
      mark.textContent = content;
      states.append(mark);
    };
    if (images.done[index]) badge("done", "done");
    else if (images.flagged[index]) badge("doubtful", `${images.flagged[index]} doubtful`);
    if (images.corrected[index]) badge("mended", `${images.corrected[index]} mended`);
  }
}
