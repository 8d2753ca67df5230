// A scene with its controls, as one element for a node.

import { addStyle, button, icon, iconButton, make, press, toggle } from "./panel_parts.js";
import { fetchScene, ViewFileError } from "./scene_file.js";
import { DEFAULTS, NoWebGLError, SceneView } from "./scene_view.js";
import { text } from "./texts.js";

export { addStyle, button, icon, iconButton, make } from "./panel_parts.js";

const TOGGLES = ["frusta", "trails", "unseen", "holes"];
const SPEEDS = [0.25, 0.5, 1, 2];
const HELP = ["orbit", "pan", "nearer", "zoom", "center", "fly", "look", "play", "step", "home"];

let hasMoved = false; // who has moved a view of this page needs no hint

export class ScenePanel {
  /**
   * `extra`: an element below the controls. `help`: more rows of it, each the texts `<key>How` and
   * `<key>What`. `followsFile`: show the camera path that comes with the
   * scene. `options`: what differs from the view's DEFAULTS. `runNode()`: have the host make the
   * scene. `onFrame(frame)`, `onCamera()`, `onScene(scene)`, `onOptions(options)`: what happened.
   */
  constructor({ extra = null, help = [], followsFile = true, options = {}, ...on } = {}) {
    Object.assign(this, { followsFile, on });
    this.makeHelp([...HELP, ...help]);
    this.view = this.places = this.shownPlace = null;
    addStyle("scene_panel");
    // In Nodes 2.0 the graph takes the wheel, except from what says so and has the focus.
    this.element = make("div", { className: "more4d-panel" }, { "data-capture-wheel": "true" },
      [this.makeStage(), this.makeTimeline(), this.makeTools(), ...(extra ? [extra] : []), this.help]);
    this.element.addEventListener("keydown", (event) => {
      keepKeys(event);
      if (event.code === "Escape") this.showHelp(false);
    });
    this.element.addEventListener("pointerdown", (event) => event.stopPropagation());
    this.open();
    this.setOptions(options);
  }

  /** Start drawing; says so where the browser cannot. */
  open() {
    try {
      this.view = new SceneView(this.canvas, {
        onFrame: (frame) => { this.showFrame(); this.on.onFrame?.(frame); },
        onCamera: () => { this.showState(); this.on.onCamera?.(); },
        onMoved: () => { hasMoved = true; this.hint.hidden = true; },
        onPlaying: () => this.showState(),
        onLost: (isLost) => this.message(isLost ? text("lostContext") : ""),
      });
      this.message(text("run"), this.runButton());
    } catch (error) {
      if (!(error instanceof NoWebGLError)) throw error;
      this.message(text("noWebGL"));
    }
    this.showState();
  }

  /** Load a scene from {half, full}: the URLs of view files. Half is shown first. */
  async load(places) {
    const isShown = this.shownPlace && JSON.stringify(places) === JSON.stringify(this.places);
    if (isShown && this.view?.scene) return;
    this.places = places;
    await this.fetch(places.half);
  }

  async fetch(url) {
    if (!this.view) return;
    this.loading?.abort();
    const loading = this.loading = new AbortController();
    this.busy(0, 0);
    try {
      const scene = await fetchScene(url, {
        signal: loading.signal, onProgress: (done, all) => this.busy(done, all) });
      if (loading.signal.aborted || this.destroyed) return;
      this.show(scene, url);
    } catch (error) {
      if (loading.signal.aborted || this.destroyed) return;
      this.failed(error, url);
    }
    this.progress.style.width = 0;
    this.showState();
  }

  /** Say how much has come; a scene that is shown stays in sight. */
  busy(done, all) {
    const mebibytes = (size) => (size / 2 ** 20).toFixed(1);
    const part = done ? `${mebibytes(done)} / ${all ? mebibytes(all) : "?"} MiB` : "";
    const words = text("loading", { part });
    if (this.view.scene) this.info.textContent = words;
    else this.message(words);
    this.progress.style.width = all ? `${(100 * done) / all}%` : 0;
    this.fullButton.hidden = true;
  }

  show(scene, url) {
    const isDenser = url === this.places?.full;
    if (this.followsFile) this.view.setPath(scene.path);
    this.view.setScene(scene, { keepView: isDenser || this.shownPlace !== null });
    this.shownPlace = url;
    this.message(scene.numPoints ? "" : text("empty"));
    this.slider.max = this.view.numFrames - 1;
    this.showFrame();
    this.on.onScene?.(scene);
  }

  failed(error, url) {
    if (error instanceof RangeError) return this.message(text("tooLarge"), this.keepButton());
    const isGone = error instanceof ViewFileError && /HTTP 40[34]/.test(error.message);
    if (isGone) return this.message(text("gone"), this.runButton());
    const isLost = error instanceof TypeError;
    const why = isLost ? text("lostLink") : text("failed", { why: error.message });
    const again = make("button", { type: "button", textContent: text("again") });
    again.addEventListener("click", () => this.fetch(url));
    this.message(why, again);
  }

  /** Say something over the picture; nothing shows the picture again. */
  message(words, ...more) {
    this.note.replaceChildren(words, ...more);
    this.note.hidden = !words;
  }

  runButton() {
    if (!this.on.runNode) return "";
    const run = make("button", { type: "button", textContent: text("runNode") });
    run.addEventListener("click", () => this.on.runNode());
    return run;
  }

  keepButton() {
    if (!this.view.scene) return "";
    const keep = make("button", { type: "button", textContent: text("keep") });
    keep.addEventListener("click", () => this.message(""));
    return keep;
  }

  /** Draw a camera path; see SceneView.setPath. */
  setPath(cameras, keyframes) {
    if (!this.view) return;
    this.view.setPath(cameras, keyframes);
    this.slider.max = this.view.numFrames - 1;
    this.showFrame();
  }

  setOptions(options) {
    this.view?.setOptions(options);
    const now = { ...DEFAULTS, ...this.view?.options };
    TOGGLES.forEach((name, i) => press(this.toggles[i], now[name]));
    this.size.value = now.pointSize;
    this.speed.value = now.speed;
  }

  changeOptions(options) {
    this.setOptions(options);
    const changed = Object.entries(this.view?.options ?? {}).filter(([k, v]) => v !== DEFAULTS[k]);
    this.on.onOptions?.(Object.fromEntries(changed));
  }

  makeStage() {
    this.canvas = make("canvas", { tabIndex: 0 }, { role: "application", "aria-label": text("canvas") });
    this.note = make("div", { className: "more4d-note" }, { role: "status" });
    this.info = make("span", { className: "more4d-info" });
    this.fullButton = button("full", "fullTip", () => this.fetch(this.places.full));
    this.hint = make("span", { className: "more4d-hint", textContent: text("hint"), hidden: true });
    const chips = make("div", { className: "more4d-chips" }, {},
      [this.info, this.fullButton, this.hint]);
    this.throughNote = make("div", { className: "more4d-through", hidden: true });
    this.resetButton = iconButton("reset", "reset", "resetTip", () => this.view.reset());
    this.shotButton = iconButton("screenshot", "screenshot", "screenshotTip", () => this.screenshot());
    const corner = make("div", { className: "more4d-corner" }, {}, [this.resetButton,
      this.shotButton, iconButton("wide", "wide", "", () => this.toggleWide()), this.helpButton]);
    this.progress = make("div", { className: "more4d-progress" });
    this.stage = make("div", { className: "more4d-stage" }, {}, [this.canvas, this.throughNote,
      chips, this.note, corner, this.progress]);
    return this.stage;
  }

  makeTimeline() {
    this.playButton = iconButton("play", "play", "", () =>
      this.view.playing ? this.view.pause() : this.view.play());
    this.slider = make("input", { type: "range", min: 0, max: 0, value: 0 }, { "aria-label": text("frame") });
    this.slider.addEventListener("input", () => {
      this.view?.pause();
      this.view?.setFrame(Number(this.slider.value));
    });
    this.counter = make("span", { className: "more4d-counter" });
    this.speed = make("select", { title: text("speed") }, { "aria-label": text("speed") },
      SPEEDS.map((value) => make("option", { value, textContent: `${value}x` })));
    this.speed.addEventListener("change", () => this.changeOptions({ speed: Number(this.speed.value) }));
    return make("div", { className: "more4d-row" }, {},
      [this.playButton, this.slider, this.counter, this.speed]);
  }

  makeTools() {
    this.throughButton = iconButton("through", "through", "throughTip", () =>
      this.view.lookThrough(this.view.through ? null : "path"), { isLabelled: true });
    this.toggles = TOGGLES.map((name) => {
      const element = toggle(name, name, `${name}Tip`, (on) => this.changeOptions({ [name]: on }));
      element.dataset.option = name;
      return element;
    });
    this.size = make("input", { type: "range", min: 0.4, max: 5, step: 0.1 }, { "aria-label": text("size") });
    this.size.addEventListener("input", () => this.changeOptions({ pointSize: Number(this.size.value) }));
    const size = make("label", { className: "more4d-size", title: text("size") }, {}, [icon("size"), this.size]);
    return make("div", { className: "more4d-row more4d-tools" }, {},
      [this.throughButton, ...this.toggles, size]);
  }

  makeHelp(keys) {
    const cells = (key) => ["How", "What"].map((part) => make("td", { textContent: text(key + part) }));
    const rows = keys.map((key) => make("tr", {}, {}, cells(key)));
    this.help = make("div", { className: "more4d-help", hidden: true }, {}, [make("table", {}, {}, rows)]);
    this.help.addEventListener("click", () => this.showHelp(false));
    this.helpButton = iconButton("help", "help", "", () => this.showHelp(this.help.hidden));
  }

  showHelp(isShown) {
    this.help.hidden = !isShown;
    press(this.helpButton, isShown);
  }

  toggleWide() {
    if (document.fullscreenElement) return document.exitFullscreen();
    return this.element.requestFullscreen();
  }

  showFrame() {
    const { view } = this;
    this.slider.value = view.frame;
    const seconds = view.scene ? (view.frame / view.scene.fps).toFixed(2) : "0.00";
    this.counter.replaceChildren(`${view.frame + 1} / ${view.numFrames} `,
      make("small", { textContent: `${seconds} s` }));
    this.showThrough();
  }

  showState() {
    const scene = this.view?.scene;
    const needScene = [this.playButton, this.slider, this.speed, this.throughButton, this.size,
      this.resetButton, this.shotButton, ...this.toggles];
    for (const item of needScene) item.disabled = !scene;
    const trails = this.toggles[TOGGLES.indexOf("trails")];
    if (scene) trails.disabled = !scene.isTracks;
    trails.title = text(scene && !scene.isTracks ? "trailsNone" : "trailsTip");
    const action = this.view?.playing ? "pause" : "play";
    this.playButton.replaceChildren(icon(action));
    Object.assign(this.playButton, { title: text(action), ariaLabel: text(action) });
    press(this.throughButton, this.view?.through);
    this.fullButton.hidden = !scene || !this.places?.full || this.shownPlace === this.places.full
      || scene.numPoints === scene.numPointsOfScene;
    this.info.textContent = scene ? density(scene) : "";
    this.info.title = scene?.stride > 1 ? text("someTip", scene) : "";
    this.info.hidden = !scene;
    this.hint.hidden = !scene || hasMoved;
    this.showThrough();
  }

  showThrough() {
    const { view } = this;
    this.throughNote.hidden = !view?.through;
    if (!view?.through) return;
    const key = view.scene.stride > 1 ? "throughHalf" : "throughExact";
    this.throughNote.textContent = text(key, { frame: view.frame + 1 });
  }

  async screenshot() {
    const link = make("a", { download: `more4d_${String(this.view.frame).padStart(4, "0")}.png` });
    link.href = URL.createObjectURL(await this.view.screenshot());
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  /** Stop, and give the graphics memory back. */
  destroy() {
    this.destroyed = true;
    this.loading?.abort();
    this.view?.destroy();
    this.view = null;
    this.element.remove();
  }
}

function density(scene) {
  const [shown, all] = [scene.numPoints, scene.numPointsOfScene].map((n) => n.toLocaleString());
  return text(scene.stride > 1 ? "some" : "everything", { shown, all });
}

const EDITS_TEXT = /^(Key[ACVXYZ]|Arrow.*|Backspace|Delete|Home|End)$/; // with Ctrl

/** The graph behind must not take our keys; its shortcuts with Ctrl, such as to save, work here. */
function keepKeys(event) {
  const isCommand = event.ctrlKey || event.metaKey;
  const isTyping = event.target.matches("textarea, select, input:not([type=range])");
  if (!isCommand || (isTyping && EDITS_TEXT.test(event.code))) event.stopPropagation();
}
