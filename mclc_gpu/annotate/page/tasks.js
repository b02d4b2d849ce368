/** A long task of the server, its dialog and its button: tune, export. */

export class Task {
  #name;
  #api;
  #body;
  #label;
  #seen = "idle";
  #news = 0;

  /**
   * @param {string} name of the task; its elements are NAME, NAME-dialog, NAME-start, NAME-progress, NAME-message
   * @param {import("./api.js").Api} api
   * @param {() => object} body of the request that starts it
   */
  constructor(name, api, body) {
    this.#name = name;
    this.#api = api;
    this.#body = body;
    this.#label = this.#find("").textContent;
    this.#find("-start").addEventListener("click", () => this.#start());
  }

  #find(suffix) {
    return document.getElementById(this.#name + suffix);
  }

  /** Opens the dialog. */
  show() {
    this.#find("-dialog").showModal();
  }

  async #start() {
    const news = this.#news;
    this.#find("-start").disabled = true;
    this.#find("-progress").removeAttribute("value");
    this.#find("-message").textContent = "";
    try {
      const { task } = await this.#api.post(`/api/${this.#name}`, this.#body());
      if (news === this.#news) this.heard(task); // else its end may have been heard already
    } catch (error) {
      this.#find("-start").disabled = false;
      this.#find("-progress").value = 0;
      this.#find("-message").textContent = error.message;
    }
  }

  /** Takes the state of a task, which may be another one. */
  heard(task) {
    if (task?.name !== this.#name) return;
    this.#news++;
    const running = task.state === "running";
    const share = task.total ? task.done / task.total : 0;
    const progress = this.#find("-progress");
    if (running && !task.total) progress.removeAttribute("value");
    else progress.value = task.state === "done" ? 1 : share;
    this.#find("-message").textContent = task.message;
    this.#find("-start").disabled = running;
    this.#find("").textContent = running ? `${this.#label} ${Math.round(100 * share)} %` : this.#label;
    const ended = this.#seen === "running" && !running;
    this.#seen = task.state;
    if (ended) {
      const dialog = this.#find("-dialog");
      if (!dialog.open) dialog.showModal();
    }
  }
}
