/** Keys of the page, and the help that lists them. */

/**
 * A key: its names (as in KeyboardEvent.key; "Shift+" and "Ctrl+" before them), what it does, how the help names it.
 *
 * `stage`: only while the image, or nothing, has the focus. `repeats`: again and again while the key is held. Without a
 * text the help leaves it out.
 *
 * @typedef {{keys: string[], run: (event: KeyboardEvent) => void, text?: string, shown?: string, stage?: boolean,
 *   repeats?: boolean}} Binding
 */

/** Binds the keys of groups. */
export class Keys {
  #bindings = new Map();

  /** @param {Record<string, Binding[]>} groups by heading */
  constructor(groups) {
    this.groups = groups;
    for (const binding of Object.values(groups).flat()) {
      for (const key of binding.keys) this.#bindings.set(key, binding);
    }
    document.addEventListener("keydown", (event) => this.#pressed(event));
  }

  #pressed(event) {
    if (event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const target = event.target;
    if (target.matches("input[type=text], input[type=search], input[type=number], select, textarea")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const control = event.ctrlKey || event.metaKey ? "Ctrl+" : "";
    const shift = event.shiftKey && (event.key.length > 1 || control) ? "Shift+" : "";
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const binding = this.#bindings.get(control + shift + key);
    if (!binding) return;
    const onStage = target === document.body || target.id === "marks";
    if (binding.stage && !onStage) return;
    event.preventDefault();
    if (!event.repeat || binding.repeats) binding.run(event);
  }

  /** Fills the help. @param {HTMLElement} box */
  describe(box) {
    for (const [heading, bindings] of Object.entries(this.groups)) {
      const section = document.createElement("section");
      const title = document.createElement("h3");
      title.textContent = heading;
      const list = document.createElement("dl");
      for (const { keys, shown, text } of bindings) {
        if (!text) continue;
        const term = document.createElement("dt");
        for (const name of shown?.split(" ") ?? [keys[0]]) {
          const key = document.createElement("kbd");
          key.textContent = name.length === 1 ? name.toUpperCase() : name;
          term.append(key, " ");
        }
        const meaning = document.createElement("dd");
        meaning.textContent = text;
        list.append(term, meaning);
      }
      section.append(title, list);
      box.append(section);
    }
  }
}
