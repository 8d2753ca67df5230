// Buttons for keyframes, and the numbers of the selected one. They know nothing of the 3D view;
// the editor gives them what to show and hears what was asked for.

import { EASES } from "./camera_keyframes.js";
import { make } from "./panel_parts.js";
import { text } from "./texts.js";

const ACTIONS = ["add", "set", "go", "delete", "earlier", "later", "undo", "redo"];
const FIELDS = [ // a row each
  {
    frame: { min: 1, step: 1 },
    time: { min: 0, max: 1, step: 0.01 },
    zoom: { min: 0.001, max: 1000, step: 0.05 },
    fov: { min: 0.1, max: 179, step: 1 },
    ease: null,
  },
  {
    x: { step: 0.01 },
    y: { step: 0.01 },
    z: { step: 0.01 },
    yaw: { min: -180, max: 180, step: 1 },
    pitch: { min: -90, max: 90, step: 1 },
    roll: { min: -180, max: 180, step: 1 },
  },
];
const LIMITS = Object.assign({}, ...FIELDS);
const MAX_VALUE = 1e9;
const DIGITS = { frame: 2, fov: 2, yaw: 2, pitch: 2, roll: 2 }; // shown; others have 4

function named(tag, name, properties = {}, children = []) {
  return make(tag, properties, { "data-name": name }, children);
}

export class KeyframeControls {
  /** `on` has {action(name), field(name, value), preset(name, amplitude), preview(isWanted)}. */
  constructor(on) {
    this.on = on;
    this.buttons = Object.fromEntries(ACTIONS.map((name) => [name, this.makeButton(name)]));
    this.fields = {};
    const fields = FIELDS.map((row) => (
      named("div", "fields", {}, Object.entries(row).map((field) => this.makeField(...field)))
    ));
    const row = (...children) => make("div", { className: "more4d-row" }, {}, children);
    this.element = named("div", "controls", {}, [
      row(...Object.values(this.buttons)), row(...this.makePresets(), this.makePreview()), ...fields,
    ]);
  }

  makeButton(name) {
    const words = { textContent: text(`editor.${name}`), title: text(`editor.${name}Tip`) };
    return named("button", name, { type: "button", onclick: () => this.on.action(name), ...words });
  }

  makeField(name, limits) {
    const input = limits ? this.makeNumber(name, limits) : this.makeEase();
    this.fields[name] = input;
    const title = text(`editor.tip.${name}`);
    return make("label", { title }, {}, [make("span", { textContent: text(`editor.field.${name}`) }), input]);
  }

  makeNumber(name, limits) {
    const input = named("input", name, { type: "number", ...limits });
    input.oninput = () => { this.typedIn = input; };
    input.onchange = () => this.enter(name, input);
    input.onblur = () => { if (this.typedIn === input) this.typedIn = null; };
    return input;
  }

  makeEase() {
    const options = Object.keys(EASES).map((ease) => (
      make("option", { value: ease, textContent: text(`editor.ease.${ease}`) })
    ));
    const ease = named("select", "ease", {}, options);
    ease.onchange = () => this.on.field("ease", ease.value);
    return ease;
  }

  makePresets() {
    const noPreset = make("option", { value: "", textContent: text("editor.presets") });
    const tip = text("editor.presetsTip");
    this.presets = named("select", "presets", { title: tip, ariaLabel: tip }, [noPreset]);
    this.presets.onchange = () => this.choosePreset();
    this.amplitude = named("input", "amplitude", {
      type: "number", value: 1, min: -10, max: 10, step: 0.1,
    });
    const title = text("editor.amplitudeTip");
    const label = make("label", { title }, {}, [text("editor.amplitude"), this.amplitude]);
    return [this.presets, label];
  }

  makePreview() {
    const box = named("input", "wantsPreview", { type: "checkbox", checked: true });
    box.onchange = () => this.on.preview(box.checked);
    return make("label", { title: text("editor.previewTip") }, {}, [box, text("editor.wantsPreview")]);
  }

  /** Whether keys belong to a field: a number that is being typed. */
  isTyping(target) { return target === this.typedIn; }

  enter(name, input) {
    this.typedIn = null;
    const { min = -MAX_VALUE, max = MAX_VALUE } = LIMITS[name];
    const value = input.valueAsNumber;
    if (Number.isFinite(value)) this.on.field(name, Math.min(Math.max(value, min), max));
    else this.show(this.shown);
  }

  choosePreset() {
    const { value } = this.presets;
    this.presets.value = "";
    const amplitude = this.amplitude.valueAsNumber;
    if (value) this.on.preset(value, Number.isFinite(amplitude) ? amplitude : 1);
  }

  /** Offer presets: {name: description}. */
  setPresets(presets) {
    const names = Object.entries(presets).map(([name, title]) => (
      make("option", { value: name, textContent: name, title })
    ));
    this.presets.replaceChildren(this.presets.firstChild, ...names);
  }

  /**
   * Show {keyframes, selected, values: numbers of the selected one by field (NaN: not known),
   * numFrames: of the path, numShown: of the slider, isRight, canUndo, canRedo}. With isRight
   * false, the text being no document, nothing can be asked but to undo.
   */
  show(state) {
    this.shown = state;
    const { keyframes, selected, values, isRight, canUndo, canRedo } = state;
    for (const [name, input] of Object.entries(this.fields)) {
      const value = values[name];
      const isKnown = typeof value === "string" || Number.isFinite(value);
      input.disabled = !isRight || !isKnown;
      if (input === this.typedIn) continue;
      if (!isKnown) input.value = "";
      else input.value = typeof value === "string" ? value : Number(value.toFixed(DIGITS[name] ?? 4));
    }
    this.fields.frame.max = state.numFrames;
    this.fields.ease.disabled ||= selected === keyframes.length - 1;
    this.presets.disabled = !isRight;
    const { buttons } = this;
    for (const element of Object.values(buttons)) element.disabled = !isRight;
    buttons.earlier.disabled ||= selected === 0;
    buttons.later.disabled ||= selected === keyframes.length - 1;
    buttons.delete.disabled ||= keyframes.length === 1;
    buttons.undo.disabled = !canUndo;
    buttons.redo.disabled = !canRedo;
  }
}
