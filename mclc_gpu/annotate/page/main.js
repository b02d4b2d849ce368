/** Puts the page together: buttons, keys, dialogs, and the banner of a lost connection. */

import { Api } from "./api.js";
import { Display } from "./display.js";
import { Edits } from "./edits.js";
import { Keys } from "./keys.js";
import { ImageList } from "./list.js";
import { Panel } from "./panel.js";
import { Task } from "./tasks.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const CLOSE_UP = 12; // device pixels of an image pixel when a target is looked at

const MOUSE = [
  ["Click", "new target, or selects the one there"],
  ["Hover", "a ring becomes the bright one"],
  ["Shift Click", "new target, also on another's mask"],
  ["Drag", "move the image, or the selected click"],
  ["Right-drag", "move the image with any tool; or Space"],
  ["Wheel", "zoom"],
  ["Shift Wheel", "larger, smaller mask or brush"],
];
const FORMATS = {
  coco: "COCO",
  "yolo-boxes": "YOLO boxes",
  "yolo-polygons": "YOLO polygons",
  labelme: "LabelMe",
  "label-studio": "Label Studio",
  cvat: "CVAT",
};

const find = (id) => document.getElementById(id);
const api = new Api();
const edits = new Edits(api);
const display = new Display(find("display"));

/** Image and target that the address names: #NAME or #NAME:NUMBER. */
function placeInAddress() {
  let text = location.hash.slice(1);
  try {
    text = decodeURIComponent(text);
  } catch {
    // A name with a bare %, typed by hand.
  }
  const whole = edits.images.names.indexOf(text);
  if (whole >= 0) return { index: whole };
  const [, name, number] = /^(.*):(\d+)$/.exec(text) ?? [];
  const index = edits.images.names.indexOf(name);
  return index >= 0 ? { index, number: Number(number) } : null;
}

function showMessage({ text, bad }) {
  find("message").textContent = text;
  find("message").classList.toggle("bad", bad);
}

function lookAtTarget(view) {
  const { x, y } = edits.target ?? view.cursor;
  view.moveCursor(Math.round(x), Math.round(y), view.cursorShown);
  view.lookAt(x, y, CLOSE_UP * devicePixelRatio);
}

/** Marks the image as done and goes on; a done image is taken back. */
function finish(list) {
  if (!edits.frame) {
    list.go(1);
    return;
  }
  edits.markDone();
  if (edits.done) list.nextOpen();
}

/** Opens an image, with a target in the middle where one is named. */
async function open(view, index, target) {
  await edits.open(index, target);
  if (edits.target) lookAtTarget(view);
}

/** Goes to the most doubtful target that was not looked at in this round. */
function doubtfulTargets(view) {
  let seen = new Set();
  return async () => {
    const queue = await api.get("/api/queue").catch(() => null);
    if (!queue) return;
    const name = (target) => `${target.index}/${target.id}`;
    let next = queue.targets.find((target) => !seen.has(name(target)));
    if (!next && queue.targets.length) {
      seen = new Set();
      next = queue.targets[0];
    }
    if (!next) {
      edits.say(queue.pending ? `No doubtful target yet; ${queue.pending} images are still checked.` : "No doubtful target is left.");
      return;
    }
    seen.add(name(next));
    await open(view, next.index, { id: next.id });
    const rest = queue.targets.filter((target) => !seen.has(name(target))).length;
    edits.say(`${next.flags.map(([sign]) => sign).join(", ")}. ${rest} more doubtful.`);
  };
}

/** Keys of the page by heading of the help. */
function bindings({ view, tools, list, panel, doubtful, help }) {
  const arrow = (name, x, y) => ({
    keys: [name, `Shift+${name}`],
    stage: true,
    repeats: true,
    run: (event) => {
      const far = event.shiftKey ? 10 : 1;
      view.moveCursor(view.cursor.x + far * x, view.cursor.y + far * y);
      tools.follow();
    },
  });
  const enter = (event) => tools.enter(event);
  const use = (name) => () => tools.use(name);
  return {
    Targets: [
      { keys: ["Enter"], stage: true, text: "click at the cursor", run: enter },
      { keys: ["Shift+Enter"], shown: "Shift Enter", stage: true, text: "new target, also on another's mask", run: enter },
      { keys: [".", ","], shown: ". ,", repeats: true, text: "next, previous target", run: (event) => edits.cycle(event.key === "." ? 1 : -1) },
      { keys: ["]", "Ctrl+ArrowUp"], shown: "] Ctrl ↑", repeats: true, text: "larger mask, or brush", run: () => tools.grow(1) },
      { keys: ["[", "Ctrl+ArrowDown"], shown: "[ Ctrl ↓", repeats: true, text: "smaller mask, or brush", run: () => tools.grow(-1) },
      { keys: ["r"], text: "automatic mask again", run: () => edits.automatic() },
      { keys: ["c"], text: "category: auto, point, spot, extended", run: () => edits.cycleCategory() },
      { keys: ["m"], text: "move the click to the cursor", run: () => edits.move(view.cursor.x, view.cursor.y) },
      { keys: ["Delete", "Backspace"], shown: "Delete", text: "delete the target", run: () => edits.remove() },
      { keys: ["a"], text: "accept the bright ring (a suggestion)", run: () => edits.decide(true) },
      { keys: ["x"], text: "reject the bright ring", run: () => edits.decide(false) },
      { keys: ["u", "Ctrl+z"], shown: "U Ctrl+Z", text: "undo", run: () => edits.undo() },
      { keys: ["y", "Ctrl+y", "Ctrl+Shift+z"], shown: "Y Ctrl+Y", text: "redo", run: () => edits.redo() },
      {
        keys: ["Escape"],
        shown: "Esc",
        text: "give up a drawing; select nothing",
        run: () => tools.cancel() || edits.select(null),
      },
    ],
    Images: [
      { keys: ["n", "PageDown"], shown: "N PgDn", repeats: true, text: "next image", run: () => list.go(1) },
      { keys: ["p", "PageUp"], shown: "P PgUp", repeats: true, text: "previous image", run: () => list.go(-1) },
      { keys: ["Home", "End"], shown: "Home End", stage: true, text: "first, last image", run: (event) => list.end(event.key === "End") },
      { keys: ["f"], text: "done, and on to the next that is not", run: () => finish(list) },
      { keys: ["d"], text: "next doubtful target", run: doubtful },
      { keys: ["g"], text: "find an image by name", run: () => find("search").select() },
    ],
    Tools: [
      { keys: ["v"], text: "click", run: use("click") },
      { keys: ["w"], text: "box", run: use("box") },
      { keys: ["s"], text: "scribble", run: use("scribble") },
      { keys: ["b"], text: "brush", run: use("brush") },
      { keys: ["e"], text: "eraser", run: use("eraser") },
    ],
    View: [
      { ...arrow("ArrowLeft", -1, 0), shown: "← ↑ ↓ →", text: "move the cursor; with Shift by 10" },
      arrow("ArrowRight", 1, 0),
      arrow("ArrowUp", 0, -1),
      arrow("ArrowDown", 0, 1),
      { keys: ["+", "=", "-"], shown: "+ -", repeats: true, text: "zoom", run: (event) => view.zoom(event.key === "-" ? 1 / 1.5 : 1.5) },
      { keys: ["0"], text: "whole image", run: () => view.fit() },
      { keys: ["z"], text: "look at the target or cursor closely", run: () => lookAtTarget(view) },
      { keys: ["l"], text: "contrast: image, view, local", run: () => display.nextMode() },
      { keys: ["k"], text: "next color map", run: () => display.nextMap() },
      { keys: ["t"], text: "target probability map", run: () => panel.toggle("tpm") },
      { keys: ["o"], text: "masks on and off", run: () => panel.toggle("masks") },
      { keys: ["?", "F1"], shown: "?", text: "this help", run: help },
    ],
    Mouse: MOUSE.map(([shown, text]) => ({ keys: [], shown, text })),
  };
}

/** The banner, and the word in the footer on what is saved. */
function showConnection() {
  const { outbox } = edits;
  const waiting = outbox.entries.length;
  const changes = waiting === 1 ? "1 change" : `${waiting} changes`;
  const lost = !api.connected;
  find("banner").hidden = !lost && !outbox.trouble;
  find("discard").hidden = lost || !outbox.trouble;
  if (lost) {
    const kept = waiting ? ` ${changes} kept here until it answers.` : " Nothing is lost.";
    const problem = api.problem ?? "The server does not answer. Is mclc-gpu annotate running?";
    find("banner-text").textContent = problem + kept;
  } else if (outbox.trouble) find("banner-text").textContent = `${outbox.trouble} (${changes} kept here)`;
  find("saved").textContent = waiting ? `${changes} not saved yet` : "All changes saved";
}

/** Everything about the open image outside of the stage and panel. */
function showImage() {
  const { images, index, frame, problem } = edits;
  find("image-name").textContent = edits.name;
  find("image-name").title = edits.name;
  const size = frame ? `, ${frame.width} × ${frame.height}, ${frame.info.dtype}` : "";
  find("image-number").textContent = `${index + 1} of ${images.names.length}${size}`;
  find("stage-problem").hidden = !problem;
  find("stage-problem").textContent = problem ?? "";
  find("marks").setAttribute("aria-label", `Image ${edits.name}, ${edits.targets.size} targets`);
  document.title = `${edits.name} – mclc-gpu annotate`;
  history.replaceState(null, "", `#${encodeURIComponent(edits.name)}`);
}

function showCursor(view) {
  const { x, y } = view.cursor;
  const values = edits.frame?.value(x, y);
  const text = (value) => String(Number(value.toPrecision(7)));
  find("cursor-place").textContent = edits.frame ? `x ${x}  y ${y}` : "";
  find("cursor-value").textContent = values ? values.map(text).join("  ") : "";
}

/** Fills a menu of label settings, where the label maker has the setting. */
function settingMenu(name, titles) {
  const { settings, choices } = edits.session;
  find(`${name}-label`).hidden = !choices?.[name] || settings[name] === undefined;
  if (find(`${name}-label`).hidden) return;
  const menu = find(name);
  menu.replaceChildren(...choices[name].map((choice) => new Option(titles[choice] ?? choice, choice)));
  menu.value = settings[name];
}

function settingMenus() {
  settingMenu("polarity", { bright: "bright", dark: "dark", auto: "bright or dark" });
  settingMenu("outline", {});
}

/** Wires the buttons of header and toolbar; after the mouse used one, keys go to the image again. */
function buttons(actions) {
  for (const [id, action] of Object.entries(actions)) {
    find(id).addEventListener("click", (event) => {
      action();
      if (event.detail && !document.querySelector("dialog[open]")) find("marks").focus({ preventScroll: true });
    });
  }
}

async function start() {
  try {
    await edits.start();
  } catch (error) {
    find("banner").hidden = false;
    find("banner-text").textContent = error.message;
    find("retry").addEventListener("click", () => location.reload());
    return;
  }
  const view = new View(find("stage"), edits, display);
  const tools = new Tools(edits, view);
  const list = new ImageList(find("list"), edits, api);
  const panel = new Panel(find("panel"), edits, view);
  const doubtful = doubtfulTargets(view);
  const help = () => find("help-dialog").showModal();
  const keys = new Keys(bindings({ view, tools, list, panel, doubtful, help }));
  keys.describe(find("help-keys"));

  const tune = new Task("tune", api, () => ({}));
  const chosen = () => [...find("export-formats").querySelectorAll(":checked")].map((box) => box.value);
  const exporting = new Task("export", api, () => ({ formats: chosen() }));
  find("export-out").textContent = edits.session.out;
  for (const format of edits.session.formats) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: format });
    label.append(box, FORMATS[format] ?? format);
    find("export-formats").append(label);
  }
  edits.addEventListener("task", (event) => {
    for (const task of [tune, exporting]) task.heard(event.detail);
  });
  api
    .get("/api/tasks")
    .then((tasks) => [tune.heard(tasks.tune), exporting.heard(tasks.export)])
    .catch(() => {});

  buttons({
    previous: () => list.go(-1),
    next: () => list.go(1),
    done: () => finish(list),
    doubtful,
    help,
    tune: () => tune.show(),
    export: () => exporting.show(),
    undo: () => edits.undo(),
    redo: () => edits.redo(),
    "zoom-in": () => view.zoom(1.5),
    "zoom-out": () => view.zoom(1 / 1.5),
    fit: () => view.fit(),
  });
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => {
      tools.use(button.dataset.tool);
      find("marks").focus({ preventScroll: true });
    });
  }
  const showTool = () => {
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tools.name));
    }
  };
  tools.addEventListener("tool", showTool);
  showTool();
  const space = (event) => {
    if (event.key !== " " || event.target.closest("button, input, select, dialog")) return;
    tools.panning = event.type === "keydown";
    find("marks").classList.toggle("pan", tools.panning);
    event.preventDefault();
  };
  document.addEventListener("keydown", space);
  document.addEventListener("keyup", space);

  settingMenus();
  edits.addEventListener("settings", settingMenus);
  for (const name of ["polarity", "outline"]) {
    find(name).addEventListener("change", async () => {
      await edits.settings({ [name]: find(name).value });
      settingMenus();
    });
  }

  find("retry").addEventListener("click", () => {
    if (api.connected) edits.outbox.flush();
    else api.retry();
  });
  find("discard").addEventListener("click", () => {
    edits.outbox.discard();
    edits.reload();
  });
  edits.outbox.addEventListener("change", showConnection);
  for (const type of ["lost", "back"]) api.addEventListener(type, showConnection);
  showConnection();

  edits.addEventListener("message", (event) => showMessage(event.detail));
  edits.addEventListener("open", () => {
    showImage();
    edits.frame?.addEventListener("tile", () => showCursor(view));
  });
  edits.addEventListener("targets", () => find("done").setAttribute("aria-pressed", String(edits.done)));
  view.addEventListener("cursor", () => showCursor(view));
  view.addEventListener("view", () => {
    const percent = (100 * view.scale) / devicePixelRatio;
    find("zoom-value").textContent = `${percent < 10 ? percent.toFixed(1) : Math.round(percent)} %`;
  });
  list.addEventListener("choose", (event) => open(view, event.detail));
  const follow = () => {
    const place = placeInAddress();
    if (place) open(view, place.index, place);
  };
  addEventListener("hashchange", follow);

  const { done } = edits.images;
  const first = placeInAddress() ?? { index: Math.max(done.indexOf(0), 0) };
  list.sort();
  await open(view, first.index, first);
  find("marks").focus({ preventScroll: true });
  api.listen();
}

start();
