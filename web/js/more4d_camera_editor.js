// Puts the camera editor on its node. The host's page imports this file.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { CameraEditor } from "./camera_editor.js";
import { addPanel } from "./node_panel.js";

const NODE = "More4DCameraEditor";
const SIZE = [660, 860];
const LEAST_HEIGHT = 480;
const VIEW = "more4d_view"; // properties of the node: what it shows, for after a reload
const SHOWN = "more4d_editor";

// Undo of the host makes all nodes anew: what the one before looked at, by node and scene.
const viewed = new Map();

let presets = null; // one request for all editors of a page

async function answerOf(route) {
  const answer = await api.fetchApi(route);
  if (answer.ok) return answer.json();
  const isOurs = answer.headers.get("content-type")?.includes("json");
  const reason = isOurs ? (await answer.json()).error : `${answer.status} ${answer.statusText}`;
  throw new Error(reason);
}

function getPresets() {
  presets ??= answerOf("/more4d/camera_presets").catch((error) => {
    presets = null; // the next editor asks again
    throw error;
  });
  return presets;
}

function getPreset(node, name, amplitude) {
  const mean = node.properties[SHOWN]?.mean_point ?? [0, 0, 1];
  const asked = new URLSearchParams({ amplitude, mean_point: mean.join(",") });
  return answerOf(`/more4d/camera_presets/${encodeURIComponent(name)}?${asked}`);
}

/** The text stays the widget of the node, but the editor is what one sees. */
function hide(widget) {
  widget.hidden = true;
  widget.options.hidden = true; // Nodes 2.0 reads this one
}

function isConnected(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot >= 0 && Boolean(node.isInputConnected?.(slot));
}

/** How many frames the path has, 0: as many as the scene. Through a wire: as many as it had. */
function numFramesOf(node) {
  if (isConnected(node, "num_frames")) return node.properties[SHOWN]?.num_frames ?? 0;
  return node.widgets.find((widget) => widget.name === "num_frames")?.value ?? 0;
}

/** Run this node and what it needs, not the whole workflow. */
function runNode(node) {
  app.canvas.selectNode?.(node, false);
  app.extensionManager.command.execute("Comfy.QueueSelectedOutputNodes");
}

function makeEditor(node) {
  const keyframes = node.widgets.find((widget) => widget.name === "keyframes");
  return new CameraEditor({
    getText: () => keyframes.value,
    setText: (value) => {
      keyframes.value = value;
      keyframes.callback?.(value);
    },
    edited: () => { // for the host's own undo, and its mark of what is not saved
      app.canvas?.emitBeforeChange?.();
      app.canvas?.emitAfterChange?.();
    },
    getNumFrames: () => numFramesOf(node),
    getFramesOfRun: () => node.properties[SHOWN]?.num_frames,
    getPresets,
    getPreset: (name, amplitude) => getPreset(node, name, amplitude),
    runNode: () => runNode(node),
  });
}

const url = ({ filename, subfolder, type }) => (
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
);

const keyOf = (node) => `${node.id} ${JSON.stringify(node.properties[VIEW])}`;

function addEditor(node) {
  let editor = null;
  let shown = ""; // a run after an edit of the path says the same places again
  const show = () => {
    const written = node.properties[VIEW];
    const now = JSON.stringify(written);
    if (!editor || !written || (now === shown && editor.scene)) return;
    shown = now;
    const before = viewed.get(keyOf(node));
    viewed.delete(keyOf(node));
    if (before && !editor.scene) editor.look(before);
    editor.load({ half: url(written.half), full: url(written.full) });
  };
  addPanel(node, "editor", "more4d_camera_editor", {
    leastHeight: LEAST_HEIGHT,
    open: () => {
      editor = node.more4dEditor = makeEditor(node); // of the node: for tests, other extensions
      show();
      return editor;
    },
    closed: () => {
      if (editor.viewed) viewed.set(keyOf(node), editor.viewed);
      editor = node.more4dEditor = null;
    },
  });
  node.setSize(SIZE.map((size, i) => Math.max(size, node.size[i])));
  const { onExecuted, onConfigure } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    if (!output?.[VIEW]?.[0]) return;
    for (const key of [VIEW, SHOWN]) node.properties[key] = output[key]?.[0];
    show();
  };
  node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    editor?.reset();
    show();
  };
}

app.registerExtension({
  name: "more4d.camera_editor",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    hide(node.widgets.find((widget) => widget.name === "keyframes"));
    addEditor(node);
  },
});
