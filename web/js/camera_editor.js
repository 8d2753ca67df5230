// The camera editor: 3D view, keyframes and JSON of one node. All it knows of the path is in the
// node's JSON widget; what it shows is a picture of that text.

import {
  KeyframeError, addKeyframe, anglesOf, changeField, deleteKeyframe, formatDocument, limitedZoom,
  moveInTime, newDocument, parseDocument, poseAt, posesAtFrames, quaternionOf, replacePose, rounded,
  shortPose, swapWithNeighbour,
} from "./camera_keyframes.js";
import "./camera_editor_texts.js";
import { fromKeyframePose, toKeyframePose } from "./camera_math.js";
import { EditHistory } from "./edit_history.js";
import { KeyframeControls } from "./keyframe_controls.js";
import { KeyframeTrack } from "./keyframe_track.js";
import { PathPreview } from "./path_preview.js";
import { addStyle, make } from "./panel_parts.js";
import { ScenePanel } from "./scene_panel.js";
import { text } from "./texts.js";

const AXES = ["x", "y", "z"];
const ANGLES = ["yaw", "pitch", "roll"];
const FRAMES_OF_A_PICTURE = 49;
const WATCH_MS = 250; // the text also changes from outside: undo, subgraphs, loading

export class CameraEditor {
  /**
   * `host` has {getText(), setText(text), edited(), getNumFrames() (0: the scene's),
   * getFramesOfRun() (undefined before one), getPresets() -> Promise of {name: description},
   * getPreset(name, amplitude) -> Promise of a document, runNode()}.
   */
  constructor(host) {
    this.host = host;
    addStyle("camera_editor");
    this.selected = 0;
    this.time = 0;
    this.history = new EditHistory();
    this.controls = new KeyframeControls({
      action: (name) => this.act(name),
      field: (name, value) => this.setField(name, value),
      preset: (name, amplitude) => this.usePreset(name, amplitude),
      preview: (isWanted) => { this.preview.wanted = isWanted; this.preview.update(); },
    });
    this.track = new KeyframeTrack({
      select: (index) => this.select(index),
      goTo: (index) => this.goTo(index),
      seek: (time) => this.seek(time),
      addAt: (time) => { this.seek(time); this.act("add"); },
      move: (index, time) => this.move(index, time),
      endMove: () => this.endGroup(),
    });
    this.panel = new ScenePanel({
      extra: this.makeExtra(),
      followsFile: false,
      help: ["editorAdd", "editorSelect", "editorDelete", "editorUndo"],
      runNode: host.runNode,
      onFrame: (frame) => this.frameShown(frame),
      onCamera: () => this.preview?.update(),
      onScene: () => this.sceneShown(),
      onOptions: () => this.preview?.update(),
    });
    this.preview = new PathPreview(this.panel);
    this.element = this.panel.element;
    this.element.classList.add("more4d-camera-editor");
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.placeTrack();
    this.panel.canvas.addEventListener("pointerdown", (event) => { this.pressed = event; });
    this.panel.canvas.addEventListener("click", (event) => this.pick(event));
    this.refresh();
    this.watch = setInterval(() => this.refresh(), WATCH_MS);
    this.loadPresets();
  }

  get keyframes() { return this.document.keyframes; }

  get view() { return this.panel.view; }

  get scene() { return this.panel.view?.scene ?? null; }

  get numFrames() {
    const asked = this.host.getNumFrames();
    if (asked) return asked;
    if (!this.scene) return this.host.getFramesOfRun() ?? FRAMES_OF_A_PICTURE;
    return this.scene.numFrames > 1 ? this.scene.numFrames : FRAMES_OF_A_PICTURE;
  }

  /** World units of the scene for one unit of the document. */
  get scale() {
    const ofScene = this.scene?.sceneScale;
    return ofScene && this.document.scene_scale ? ofScene / this.document.scene_scale : 1;
  }

  makeExtra() {
    this.textarea = make(
      "textarea", { spellcheck: false, title: text("editor.jsonTip") },
      { "data-name": "json", "aria-label": text("editor.json") },
    );
    this.textarea.oninput = () => this.write(this.textarea.value, "typing");
    this.textarea.onchange = () => this.endGroup();
    this.error = make("div", {}, { "data-name": "error", role: "alert" });
    const summary = make("summary", { textContent: text("editor.json"), title: text("editor.jsonTip") });
    const details = make("details", {}, { "data-name": "text" }, [summary, this.textarea]);
    const children = [this.controls.element, this.error, details];
    return make("div", {}, { "data-name": "extra" }, children);
  }

  /** The marks of the keyframes go below the slider, each under its frame. */
  placeTrack() {
    const { slider } = this.panel;
    const timeline = make("div", {}, { "data-name": "timeline" });
    slider.replaceWith(timeline);
    timeline.append(slider, this.track.element);
  }

  /** Show a scene from {half, full}, the URLs of its files. */
  load(places) { return this.panel.load(places); }

  /** Take the text of the widget, if it is another one than what is shown. */
  refresh() {
    const given = this.host.getText();
    const numFrames = this.host.getNumFrames();
    if (given === this.text && numFrames === this.shownFrames) return;
    if (given !== this.text) this.read(given);
    this.shownFrames = numFrames;
    this.show();
  }

  /** Another document came with the graph: what was undone before is no step of this one. */
  reset() {
    this.history.clear();
    this.refresh();
  }

  read(given) {
    this.text = given;
    this.refused = null;
    try {
      this.document = parseDocument(given);
    } catch (error) {
      if (!(error instanceof KeyframeError)) throw error;
      this.document ??= newDocument();
      this.refused = error;
    }
    this.selected = Math.min(this.selected, this.keyframes.length - 1);
  }

  get state() { return { text: this.text, selected: this.selected }; }

  /** Give the widget another text; `group`: see EditHistory. */
  write(given, group = null, selected = this.selected) {
    if (given !== this.text) {
      this.history.record(this.state, group);
      this.host.setText(given);
      this.read(given);
      if (group === null) this.host.edited();
    }
    this.selected = Math.min(selected, this.keyframes.length - 1);
    this.show();
  }

  /** What was being dragged or typed is done. */
  endGroup() {
    this.history.endGroup();
    this.host.edited();
  }

  /** Make an edit the new document; return where the keyframe in question is now. */
  edit({ keyframes, selected }, { group = null, ...fields } = {}) {
    this.write(formatDocument({ ...this.document, ...fields, keyframes }), group, selected);
    return selected;
  }

  /** Go back (or forth) one step, to the keyframe that it was about. */
  travel(direction) {
    const found = this.history[direction](this.state);
    if (!found) return;
    this.host.setText(found.text);
    this.selected = found.selected;
    this.read(found.text);
    this.host.edited();
    if (this.refused) this.show();
    else this.select(this.selected);
  }

  show() {
    const { keyframes, selected, numFrames, refused, history } = this;
    const numShown = Math.max(numFrames, this.scene?.numFrames ?? 1);
    const state = {
      keyframes, selected, numFrames, numShown, time: this.time,
      values: this.valuesOf(keyframes[selected]),
      isRight: !refused, canUndo: history.past.length > 0, canRedo: history.future.length > 0,
    };
    this.controls.show(state);
    this.track.show(state);
    if (this.textarea.value !== this.text) this.textarea.value = this.text;
    this.error.textContent = refused ? reasonOf(refused) : "";
    if (!this.scene) return;
    const cameras = posesAtFrames(keyframes, numFrames).map((pose) => this.cameraOf(pose));
    const ofKeyframes = keyframes.map((keyframe) => this.cameraOf(keyframe));
    this.panel.setPath(cameras, { keyframes: ofKeyframes, selected });
    this.preview.update();
  }

  /** What the fields show of a keyframe. */
  valuesOf({ time, position, quaternion_wxyz, zoom, ease }) {
    const [x, y, z] = position;
    const frame = this.numFrames > 1 ? 1 + time * (this.numFrames - 1) : NaN;
    const fov = (2 * Math.atan(this.halfWidth / zoom) * 180) / Math.PI;
    return { frame, time, zoom, fov, ease, x, y, z, ...anglesOf(quaternion_wxyz) };
  }

  /** Half the input view's width in focal lengths; NaN without a scene. */
  get halfWidth() {
    const input = this.scene?.cameras[0];
    return input ? input.width / (2 * input.fx) : NaN;
  }

  sceneShown() {
    this.whenShown?.();
    this.whenShown = null;
    this.show();
  }

  seek(time) {
    this.time = time;
    this.track.showTime(time);
    if (!this.scene) return;
    this.isSeeking = true;
    this.view.setFrame(time * Math.max(this.numFrames - 1, 1));
    this.isSeeking = false;
  }

  /** The playhead moved: the slider, playing, or a key in the view. */
  frameShown(frame) {
    this.preview?.update();
    if (this.isSeeking || !this.scene) return;
    this.time = Math.min(frame / Math.max(this.numFrames - 1, 1), 1);
    this.track.showTime(this.time);
  }

  cameraOf({ position, quaternion_wxyz, zoom }) {
    const inWorld = position.map((x) => x * this.scale);
    return fromKeyframePose({ position: inWorld, quaternion_wxyz, zoom }, this.scene.cameras[0]);
  }

  /** The pose to store: what one looks at; without a scene, the path's at the playhead. */
  currentPose() {
    if (!this.scene) return shortPose(poseAt(this.keyframes, this.time));
    const pose = toKeyframePose(this.view.pickCamera().camera, this.scene.cameras[0]);
    return shortPose({ ...pose, position: pose.position.map((x) => x / this.scale) });
  }

  act(name) {
    if (name === "undo" || name === "redo") return this.travel(name);
    if (this.refused) return null;
    const { keyframes, selected } = this;
    const edits = {
      add: () => addKeyframe(keyframes, this.currentPose(), this.time),
      set: () => replacePose(keyframes, selected, this.currentPose()),
      earlier: () => swapWithNeighbour(keyframes, selected, -1),
      later: () => swapWithNeighbour(keyframes, selected, 1),
      delete: () => deleteKeyframe(keyframes, selected),
    };
    if (name === "go") return this.goTo(selected);
    const hadFocus = this.track.hasFocus;
    this.edit(edits[name]());
    this.seek(this.keyframes[this.selected].time);
    if (hadFocus) this.track.focus();
    return null;
  }

  /** Move a keyframe in time, as one step with the moves before it until `endGroup`. */
  move(index, time) {
    const at = this.edit(moveInTime(this.keyframes, index, time), { group: "move" });
    this.seek(this.keyframes[at].time);
    return at;
  }

  setField(name, value) {
    const { keyframes, selected } = this;
    const { position, quaternion_wxyz } = keyframes[selected];
    const change = (field, changed) => this.edit(changeField(keyframes, selected, field, changed));
    if (name === "time" || name === "frame") {
      const time = name === "time" ? value : (value - 1) / Math.max(this.numFrames - 1, 1);
      this.edit(moveInTime(keyframes, selected, time));
      this.seek(this.keyframes[this.selected].time);
    } else if (AXES.includes(name)) {
      change("position", position.with(AXES.indexOf(name), value));
    } else if (ANGLES.includes(name)) {
      const angles = { ...anglesOf(quaternion_wxyz), [name]: value };
      change("quaternion_wxyz", quaternionOf(angles).map(rounded));
    } else if (name === "fov") {
      change("zoom", limitedZoom(this.halfWidth / Math.tan((value * Math.PI) / 360)));
    } else change(name, value);
  }

  select(index) {
    this.selected = index;
    this.seek(this.keyframes[index].time);
    this.show();
  }

  goTo(index) {
    this.select(index);
    if (this.scene) this.view.setCamera(this.cameraOf(this.keyframes[index]));
  }

  async loadPresets() {
    try {
      this.controls.setPresets(await this.host.getPresets());
    } catch (error) {
      this.controls.presets.title = text("editor.noPresets", { reason: error.message });
    }
  }

  async usePreset(name, amplitude) {
    try {
      const { keyframes, scene_scale } = await this.host.getPreset(name, amplitude);
      const start = keyframes.map((k) => ({ ...k, time: rounded(k.time), ...shortPose(k) }));
      this.edit({ keyframes: start, selected: 0 }, { scene_scale });
      this.seek(0);
    } catch (error) {
      this.error.textContent = text("editor.noPresets", { reason: error.message });
    }
  }

  key(event) {
    const { target, code, shiftKey } = event;
    const isText = target === this.textarea || this.controls.isTyping(target);
    const isCommand = (event.ctrlKey || event.metaKey) && !event.altKey;
    if (isText || event.defaultPrevented) return;
    const isField = target.type === "number" || target.tagName === "SELECT";
    if (isCommand && (code === "KeyZ" || code === "KeyY")) {
      this.act(code === "KeyY" || shiftKey ? "redo" : "undo");
      keepFromHost(event);
    } else if (isCommand || event.altKey || isField) return;
    else if (code === "KeyK") this.act(shiftKey ? "set" : "add");
    else if (code === "Delete" || code === "Backspace") this.act("delete");
    else if (code === "BracketLeft" || code === "BracketRight") {
      const next = this.selected + (code === "BracketLeft" ? -1 : 1);
      if (next >= 0 && next < this.keyframes.length) this.select(next);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** A click, not a drag, on a keyframe's camera selects it. */
  pick(event) {
    const { clientX, clientY } = this.pressed ?? event;
    const isDrag = Math.hypot(event.clientX - clientX, event.clientY - clientY) > 3;
    if (!this.scene || isDrag || this.view.through) return;
    const { canvas } = this.panel;
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * canvas.width;
    const y = ((event.clientY - top) / height) * canvas.height;
    const index = this.view.pickKeyframe(x, y);
    if (index >= 0) this.select(index);
  }

  /** What one looks at, for an editor that takes this one's place. */
  get viewed() {
    if (!this.scene) return null;
    const { camera } = this.view.pickCamera();
    const { targetDistance } = this.view;
    return { camera, targetDistance, time: this.time, selected: this.selected };
  }

  /** Look there as soon as the scene is shown. */
  look({ camera, targetDistance, time, selected }) {
    this.whenShown = () => {
      this.selected = Math.min(selected, this.keyframes.length - 1);
      this.view.targetDistance = targetDistance;
      this.view.setCamera(camera);
      this.seek(time);
    };
  }

  destroy() {
    clearInterval(this.watch);
    this.preview.destroy();
    this.panel.destroy();
  }
}

function reasonOf({ field, expected, got }) {
  if (expected === "json") return text("editor.noJson", { got });
  return text("editor.refused", { field, expected: text(`expected.${expected}`), got });
}

/**
 * The host, too, undoes on Ctrl+Z: the whole graph, which makes all nodes anew. It looks at the
 * event later, after one's own listeners; for it, the key was pressed alone.
 */
function keepFromHost(event) {
  for (const key of ["ctrlKey", "metaKey"]) Object.defineProperty(event, key, { value: false });
}
