/** The panel at the right: the selected target, the targets of the image, and the suggestions. */

const CORRECTED = { step: "other candidate", brush: "by brush", polygon: "by polygon" };

/** @returns {string} place of a target or suggestion, which may lie between pixels */
function place({ x, y }) {
  return `x ${Number(x.toFixed(1))}, y ${Number(y.toFixed(1))}`;
}

/** @returns {HTMLElement} */
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Panel {
  #edits;
  #view;
  #find;

  /**
   * @param {HTMLElement} root
   * @param {import("./edits.js").Edits} edits
   * @param {import("./view.js").View} view
   */
  constructor(root, edits, view) {
    this.#edits = edits;
    this.#view = view;
    this.#find = (id) => root.querySelector(`#${id}`);
    this.#find("mask-step").addEventListener("input", (event) => edits.step(Number(event.target.value)));
    this.#find("smaller").addEventListener("click", () => edits.grow(-1));
    this.#find("larger").addEventListener("click", () => edits.grow(1));
    this.#find("automatic").addEventListener("click", () => edits.automatic());
    this.#find("delete").addEventListener("click", () => edits.remove());
    this.#find("accept").addEventListener("click", () => edits.decide(true));
    this.#find("reject").addEventListener("click", () => edits.decide(false));
    for (const radio of root.querySelectorAll("[name=category]")) {
      radio.addEventListener("change", () => edits.category(radio.value || null));
    }
    this.#find("targets").addEventListener("click", (event) => {
      const row = event.target.closest("[data-id]");
      if (row) this.#choose(Number(row.dataset.id));
    });
    this.#find("show-tpm").addEventListener("change", (event) => {
      view.tpmShown = event.target.checked;
      view.draw();
    });
    this.#find("show-masks").addEventListener("change", (event) => {
      view.masksShown = event.target.checked;
      view.draw();
    });
    edits.addEventListener("targets", () => this.#show());
    edits.addEventListener("open", () => this.#show());
  }

  #choose(id) {
    const target = this.#edits.targets.get(id);
    if (!target) return;
    this.#edits.select(id);
    this.#view.lookAt(target.x, target.y);
  }

  /** Switches the TPM or the masks on or off, by key. */
  toggle(what) {
    const box = this.#find(what === "tpm" ? "show-tpm" : "show-masks");
    box.checked = !box.checked;
    box.dispatchEvent(new Event("change"));
  }

  #show() {
    this.#showTarget(this.#edits.target);
    this.#showTargets();
    this.#showSuggestions();
  }

  #showTarget(target) {
    const find = this.#find;
    find("target-facts").hidden = !target;
    find("target-none").hidden = Boolean(target);
    find("target-title").textContent = target ? `Target ${target.number + 1}` : "Target";
    find("target-place").textContent = target ? place(target) : "";
    if (!target) return;
    find("target-area").textContent = `${target.area} px`;
    const sure = target.confidence;
    find("target-confidence").textContent = sure === null ? "–" : sure.toFixed(2);
    find("confidence-bar").value = sure ?? 0;
    find("target-corrected").textContent = target.corrected ? CORRECTED[target.corrected] : "automatic";
    const [least, most] = target.steps;
    const slider = find("mask-step");
    slider.min = String(least);
    slider.max = String(most);
    slider.value = String(target.step);
    slider.disabled = least === most;
    slider.setAttribute("aria-valuetext", `${target.area} pixels`);
    find("smaller").disabled = target.step <= least;
    find("larger").disabled = target.step >= most;
    find("automatic").disabled = !target.corrected;
    for (const radio of document.querySelectorAll("[name=category]")) radio.checked = radio.value === (target.category ?? "");
    const estimated = find("estimated");
    estimated.hidden = Boolean(target.category) || !target.estimated;
    estimated.textContent = `estimated: ${target.estimated}`;
    const signs = find("target-flags");
    signs.replaceChildren();
    if (target.problem) signs.append(element("li", "", target.problem));
    for (const [sign, detail] of target.flags ?? []) signs.append(element("li", "", detail ? `${sign}: ${detail}` : sign));
  }

  #showTargets() {
    const { ordered, selected } = this.#edits;
    this.#find("targets-count").textContent = String(ordered.length);
    const rows = ordered.map((target) => {
      const row = element("button", "target-row");
      row.type = "button";
      row.dataset.id = String(target.id);
      row.setAttribute("aria-pressed", String(target.id === selected));
      const doubtful = target.problem || target.flags?.length;
      const state = doubtful ? "doubtful" : target.corrected ? "mended" : "fine";
      row.append(element("span", `dot ${state}`), element("span", "target-number", String(target.number + 1)));
      row.append(element("span", "grow", target.problem ? "no mask" : `${target.area} px`));
      row.append(element("span", "faint", target.confidence === null ? "" : target.confidence.toFixed(2)));
      row.setAttribute("aria-label", `Target ${target.number + 1}, ${target.area} pixels${doubtful ? ", doubtful" : ""}`);
      return row;
    });
    const box = this.#find("targets");
    const focused = box.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    box.replaceChildren(...rows);
    if (focused) box.querySelector(`[data-id="${focused}"]`)?.focus();
    this.#find("targets-none").hidden = ordered.length > 0;
  }

  #showSuggestions() {
    const { session, frame, suggestions, suggestion, suggestionsState } = this.#edits;
    const section = this.#find("suggestions");
    section.hidden = !session?.suggest || !frame;
    if (section.hidden) return;
    const states = { pending: "being computed …", failed: "could not be computed", none: "", ready: "none left in this image" };
    this.#find("suggestions-count").textContent = suggestions.length ? String(suggestions.length) : "";
    this.#find("suggestion-text").textContent = suggestion
      ? `Next: ${place(suggestion)}, score ${suggestion.score.toFixed(2)}`
      : `By ${session.suggest}: ${states[suggestionsState]}`;
    this.#find("accept").disabled = this.#find("reject").disabled = !suggestion;
  }
}
