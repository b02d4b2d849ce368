/**
 * Requests to the server and the state of the connection.
 *
 * A browser opens about six connections to a server. Pixels and thumbnails share four of them, the event stream has
 * one, so that an edit never waits behind a tile.
 */

/** The server answered with an error; `message` is its one line. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server did not answer. */
export class ConnectionError extends Error {}

const PARALLEL = 4;
const BACKGROUND = 2; // of them for thumbnails, which may take the server long
const RETRY_MS = [500, 1000, 2000, 4000];

/**
 * Runs tasks, some at a time: higher priority first, of equal ones the newest, which the user now looks at. Priority 0
 * is for the background.
 */
class Slots {
  #waiting = [];
  #running = 0;

  /**
   * @param {number} priority
   * @param {() => Promise<T>} task
   * @returns {Promise<T>}
   * @template T
   */
  run(priority, task) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ priority, task, resolve, reject });
      this.#next();
    });
  }

  async #next() {
    if (this.#running >= PARALLEL || !this.#waiting.length) return;
    let best = this.#waiting.length - 1;
    for (let i = best; i >= 0; i--) if (this.#waiting[i].priority > this.#waiting[best].priority) best = i;
    if (this.#waiting[best].priority < 1 && this.#running >= BACKGROUND) return;
    const [{ task, resolve, reject }] = this.#waiting.splice(best, 1);
    this.#running++;
    try {
      resolve(await task());
    } catch (error) {
      reject(error);
    } finally {
      this.#running--;
      this.#next();
    }
  }
}

/** @returns {string} random characters that name a tab or an edit. */
export function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns {Promise<boolean>} whether no other tab has the name; it is then held until this tab closes. */
function hold(name) {
  return new Promise((resolve) => {
    const take = (lock) => {
      resolve(Boolean(lock));
      return lock && new Promise(() => {});
    };
    navigator.locks.request(`mclc-client-${name}`, { ifAvailable: true }, take).catch(() => resolve(true));
  });
}

/**
 * The server's interface.
 *
 * Events: "lost" and "back" (detail: the session) of the connection; "listening" when the event stream begins, and
 * "server" with `detail.type` and `detail.data` of each of its events.
 */
export class Api extends EventTarget {
  /** Name of this tab, kept while it is open: undo stacks and working times are per tab. */
  client = sessionStorage.getItem("mclc-client") ?? randomName();
  connected = true;
  /** Line that says why asking again is no use while the connection is lost. */
  problem = null;
  slots = new Slots();
  #stream = null;
  #attempt = 0;
  #timer = 0;

  /** Takes another name where the tab is a copy of one that is open: it came with that one's name. */
  async claimName() {
    // Browsers have locks on this machine's own pages and with https only.
    if (navigator.locks && !(await hold(this.client))) {
      this.client = randomName();
      await hold(this.client);
    }
    sessionStorage.setItem("mclc-client", this.client);
  }

  /**
   * Sends a request, again where the server asks to wait.
   *
   * @param {string} path
   * @param {{body?: object, signal?: AbortSignal, kind?: "json" | "arrayBuffer"}} [options] a body makes it a POST
   * @returns {Promise<any>}
   * @throws {ServerError | ConnectionError}
   */
  async request(path, { body, signal, kind = "json" } = {}) {
    for (let tries = 0; ; tries++) {
      let response;
      try {
        response = await fetch(path, {
          method: body ? "POST" : "GET",
          headers: body ? { "Content-Type": "application/json" } : {},
          body: body ? JSON.stringify(body) : undefined,
          signal,
        });
        if (response.ok) return await response[kind]();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        this.#lost();
        throw new ConnectionError("the server does not answer");
      }
      if (response.status === 429 && tries < 20) {
        const seconds = Number(response.headers.get("Retry-After")) || 0.5;
        await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(seconds, 10)));
        continue;
      }
      const answer = await response.json().catch(() => ({}));
      throw new ServerError(response.status, answer.error ?? `the server answered ${response.status}`);
    }
  }

  get(path, options) {
    return this.request(path, options);
  }

  post(path, body = {}) {
    return this.request(path, { body: { client: this.client, ...body } });
  }

  /** @returns {Promise<ArrayBuffer>} raw pixels of a tile. */
  tile(index, level, row, column, pool, signal) {
    const path = `/api/images/${index}/tiles/${level}/${row}/${column}?pool=${pool}`;
    return this.slots.run(1 + level / 100, () => {
      signal.throwIfAborted();
      return this.request(path, { signal, kind: "arrayBuffer" });
    });
  }

  /**
   * Loads a thumbnail when a connection is free.
   *
   * @param {HTMLImageElement} image
   * @param {number} index
   */
  thumbnail(image, index) {
    this.slots
      .run(0, () => {
        if (!image.isConnected) return null;
        return new Promise((resolve) => {
          image.onload = image.onerror = resolve;
          image.src = `/api/images/${index}/thumbnail`;
        });
      })
      .catch(() => {});
  }

  /** Opens the stream of the server's events. */
  listen() {
    this.#stream?.close();
    this.#stream = new EventSource("/api/events");
    for (const type of ["edit", "image", "suggestions", "settings", "task"]) {
      this.#stream.addEventListener(type, (event) => {
        this.dispatchEvent(new CustomEvent("server", { detail: { type, data: JSON.parse(event.data) } }));
      });
    }
    this.#stream.onopen = () => this.dispatchEvent(new Event("listening"));
    this.#stream.onerror = () => this.#lost();
  }

  /** Asks at once whether the server is there again. */
  retry() {
    this.#attempt = 0;
    clearTimeout(this.#timer);
    return this.#ask();
  }

  #lost() {
    if (!this.connected) return;
    this.connected = false;
    this.#stream?.close();
    this.dispatchEvent(new Event("lost"));
    this.#attempt = 0;
    this.#wait();
  }

  #wait() {
    const delay = RETRY_MS[Math.min(this.#attempt++, RETRY_MS.length - 1)];
    this.#timer = setTimeout(() => this.#ask(), delay);
  }

  async #ask() {
    if (this.connected) return;
    let session;
    try {
      session = await this.get("/api/session");
    } catch (error) {
      if (error.status === 401) {
        this.problem = "The token is no longer valid: open the address that the server printed.";
        this.dispatchEvent(new Event("lost"));
      } else this.#wait();
      return;
    }
    this.connected = true;
    this.problem = null;
    this.listen();
    this.dispatchEvent(new CustomEvent("back", { detail: session }));
  }
}
