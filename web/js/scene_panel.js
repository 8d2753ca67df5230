// A scene with its controls, as one element for a node.

import { fetchScene, ViewFileError } from "./scene_file.js";
import { DEFAULTS, NoWebGLError, SceneView } from "./scene_view.js";
import { text } from "./texts.js";

const TOGGLES = ["frusta", "trails", "unseen", "holes"];

export class ScenePanel {
  /**
   * `extra`: an element below the controls. `followsFile`: show the camera path that comes with the
   * scene. `onFrame(frame)`, `onCamera()`, `onScene(scene)`: what happened.
   */
  constructor({ extra = null, followsFile = true, onFrame, onCamera, onScene } = {}) {
    Object.assign(this, { followsFile, onFrame, onCamera, onScene });
    this.view = this.places = this.shownPlace = null;
    addStyle();
    this.canvas = make("canvas", { tabIndex: 0, title: text("canvas") }, { role: "application", "aria-label": text("canvas") });
    this.note = make("div", { className: "more4d-note" }, { role: "status" });
    this.info = make("div", { className: "more4d-info" });
    this.stage = make("div", { className: "more4d-stage" }, {}, [this.canvas, this.note, this.info]);
    this.element = make("div", { className: "more4d-panel" }, {},
      [this.stage, this.timeline(), this.tools(), ...(extra ? [extra] : [])]);
    this.element.addEventListener("keydown", (event) => event.stopPropagation());
    this.element.addEventListener("pointerdown", (event) => event.stopPropagation());
    this.open();
  }

  /** Start drawing; says so where the browser cannot. */
  open() {
    try {
      this.view = new SceneView(this.canvas, {
        onFrame: (frame) => { this.showFrame(); this.onFrame?.(frame); },
        onCamera: () => { this.showState(); this.onCamera?.(); },
        onKey: () => this.showState(),
        onLost: (isLost) => this.message(isLost ? text("lostContext") : ""),
      });
      this.message(text("run"));
    } catch (error) {
      if (!(error instanceof NoWebGLError)) throw error;
      this.message(text("noWebGL"));
    }
    this.showState();
  }

  /** Load a scene from {half, full}: the URLs of view files. Half is shown first. */
  async load(places) {
    this.places = places;
    await this.fetch(places.half);
  }

  async fetch(url) {
    if (!this.view) return;
    this.loading?.abort();
    const loading = this.loading = new AbortController();
    const mebibytes = (size) => (size / 2 ** 20).toFixed(1);
    this.message(text("loading", { part: "" }));
    try {
      const scene = await fetchScene(url, {
        signal: loading.signal,
        onProgress: (done, all) => this.message(text("loading", {
          part: `${mebibytes(done)} / ${all ? mebibytes(all) : "?"} MiB` })),
      });
      if (loading.signal.aborted || this.destroyed) return;
      this.show(scene, url);
    } catch (error) {
      if (loading.signal.aborted || this.destroyed) return;
      this.failed(error, url);
    }
  }

  show(scene, url) {
    const isDenser = url === this.places?.full;
    if (this.followsFile) this.view.setPath(scene.path);
    this.view.setScene(scene, { keepView: isDenser || this.shownPlace !== null });
    this.shownPlace = url;
    this.message(scene.numPoints ? "" : text("empty"));
    this.info.textContent = density(scene);
    this.slider.max = this.view.numFrames - 1;
    this.showFrame();
    this.showState();
    this.onScene?.(scene);
  }

  failed(error, url) {
    if (error instanceof RangeError) return this.message(text("tooLarge"));
    const isGone = error instanceof ViewFileError && /HTTP 40[34]/.test(error.message);
    if (isGone) return this.message(text("gone"));
    const isLost = error instanceof TypeError;
    const why = isLost ? text("lostLink") : text("failed", { why: error.message });
    const again = make("button", { type: "button", textContent: text("again") });
    again.addEventListener("click", () => this.fetch(url));
    this.message(why, again);
  }

  message(words, ...more) {
    this.note.replaceChildren(words, ...more);
    this.note.hidden = !words;
  }

  /** Draw a camera path; see SceneView.setPath. */
  setPath(cameras, keyframes) {
    if (!this.view) return;
    this.view.setPath(cameras, keyframes);
    this.slider.max = this.view.numFrames - 1;
    this.showFrame();
  }

  timeline() {
    this.playButton = button("play", "", () => {
      if (this.view.playing) this.view.pause();
      else this.view.play();
      this.showState();
    });
    this.slider = make("input", { type: "range", min: 0, max: 0, value: 0 }, { "aria-label": text("frame") });
    this.slider.addEventListener("input", () => {
      this.view?.pause();
      this.view?.setFrame(Number(this.slider.value));
      this.showState();
    });
    this.counter = make("span", { className: "more4d-counter" });
    return make("div", { className: "more4d-row" }, {}, [this.playButton, this.slider, this.counter]);
  }

  tools() {
    this.throughButton = button("through", "throughTip", () =>
      this.view.lookThrough(this.view.through ? null : "path"));
    this.fullButton = button("full", "fullTip", () => this.fetch(this.places.full));
    this.size = make("input", { type: "range", min: 0.5, max: 6, step: 0.1, value: DEFAULTS.pointSize },
      { "aria-label": text("size") });
    this.size.addEventListener("input", () => this.view?.setOptions({ pointSize: Number(this.size.value) }));
    const size = make("label", { title: text("size") }, {}, [`${text("size")} `, this.size]);
    this.needScene = [this.playButton, this.throughButton, this.fullButton,
      button("reset", "resetTip", () => this.view.reset()),
      button("screenshot", "screenshotTip", () => this.screenshot())];
    const [, , , reset, screenshot] = this.needScene;
    return make("div", { className: "more4d-row more4d-tools" }, {}, [this.throughButton, reset,
      ...TOGGLES.map((name) => this.toggle(name)), size, this.fullButton, screenshot]);
  }

  toggle(name) {
    const box = make("input", { type: "checkbox", checked: DEFAULTS[name] }, { "data-option": name });
    box.addEventListener("change", () => this.view?.setOptions({ [name]: box.checked }));
    return make("label", { title: text(`${name}Tip`) }, {}, [box, ` ${text(name)}`]);
  }

  showFrame() {
    const { view } = this;
    this.slider.value = view.frame;
    this.counter.textContent = text("frameOf", { frame: view.frame + 1, frames: view.numFrames });
  }

  showState() {
    const scene = this.view?.scene;
    this.needScene.forEach((item) => { item.disabled = !scene; });
    this.slider.disabled = !scene;
    const label = text(this.view?.playing ? "pause" : "play");
    this.playButton.textContent = this.view?.playing ? "\u23f8" : "\u25b6";
    Object.assign(this.playButton, { title: label, ariaLabel: label });
    this.throughButton.setAttribute("aria-pressed", Boolean(this.view?.through));
    this.fullButton.hidden = !scene || !this.places?.full || this.places.full === this.places.half
      || this.shownPlace === this.places.full;
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
  const key = { 1: "everything", 2: "everyHalf" }[scene.stride] ?? "every";
  return text(key, { shown, all, stride: scene.stride });
}

/** Make an element: properties, attributes, children. */
export function make(tag, properties = {}, attributes = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A button with a translated label, disabled until `disabled` is set to false by its owner. */
export function button(label, tip, onClick) {
  const title = tip ? text(tip) : text(label);
  const element = make("button", { type: "button", textContent: text(label), title }, { "data-action": label });
  element.addEventListener("click", onClick);
  return element;
}

function addStyle() {
  if (document.getElementById("more4d-style")) return;
  const style = make("style", { id: "more4d-style", textContent: STYLE });
  document.head.append(style);
}

const STYLE = `
.more4d-panel { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%;
  min-height: 260px; box-sizing: border-box; color: var(--input-text, #ddd); font: 12px sans-serif;
  pointer-events: auto; }
.more4d-stage { position: relative; flex: 1 1 0; min-height: 160px; overflow: hidden;
  border-radius: 4px; background: #17171c; }
.more4d-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block;
  touch-action: none; cursor: grab; }
.more4d-stage canvas:focus-visible { outline: 2px solid #5fb2ff; outline-offset: -2px; }
.more4d-note { position: absolute; inset: 0; display: flex; flex-direction: column; gap: 8px;
  align-items: center; justify-content: center; text-align: center; padding: 12px;
  pointer-events: none; background: #17171cb0; }
.more4d-note[hidden] { display: none; }
.more4d-note button { pointer-events: auto; }
.more4d-info { position: absolute; left: 6px; bottom: 4px; pointer-events: none; opacity: 0.85;
  text-shadow: 0 0 3px #000, 0 0 3px #000; color: #eee; font-size: 11px; }
.more4d-row { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; flex: none; }
.more4d-row > input[type=range] { flex: 1; min-width: 80px; }
.more4d-row label { display: inline-flex; align-items: center; gap: 3px; white-space: nowrap; }
.more4d-row label input[type=range] { width: 70px; }
.more4d-panel button { background: var(--comfy-input-bg, #333); color: inherit; cursor: pointer;
  border: 1px solid var(--border-color, #555); border-radius: 4px; padding: 2px 8px; font: inherit; }
.more4d-panel button[aria-pressed=true] { background: #2b6cb0; color: #fff; }
.more4d-panel button:disabled { opacity: 0.45; cursor: default; }
.more4d-panel button[hidden] { display: none; }
.more4d-panel :is(button, input):focus-visible { outline: 2px solid #5fb2ff; outline-offset: 1px; }
.more4d-counter { min-width: 56px; text-align: right; font-variant-numeric: tabular-nums; }
`;
