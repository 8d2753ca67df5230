// The viewer node's picture in the page.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addPanel } from "./node_panel.js";
import { ScenePanel } from "./scene_panel.js";

const NODE = "More4DSceneViewer";
const KEPT = "more4d_view"; // in node.properties: what to show again after a reload
const OPTIONS = "more4d_view_options"; // there, too: what is switched on
const SIZE = [580, 560];
const LEAST_HEIGHT = 320;

/** The page's addresses of the view files that a node says it wrote. */
export function placesOf(written) {
  const url = ({ filename, subfolder, type }) =>
    api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
  return { half: url(written.half), full: url(written.full) };
}

app.registerExtension({
  name: "more4d.viewer",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addViewer(node);
  },
});

/** Have the host run what a node needs, and no more. */
export function runNode(node) {
  app.canvas.selectItems?.([node]);
  app.extensionManager.command.execute("Comfy.QueueSelectedOutputNodes");
}

function addViewer(node) {
  let panel = null;
  const show = () => {
    const written = node.properties[KEPT];
    if (panel && written) panel.load(placesOf(written));
  };
  addPanel(node, "view", "more4d_view", {
    leastHeight: LEAST_HEIGHT,
    open: () => {
      panel = new ScenePanel({
        runNode: () => runNode(node),
        onOptions: (options) => { node.properties[OPTIONS] = options; },
        options: node.properties[OPTIONS],
      });
      node.more4dPanel = panel; // for tests, and other extensions
      show();
      return panel;
    },
    closed: () => { panel = node.more4dPanel = null; },
  });
  node.setSize?.(SIZE.map((size, i) => Math.max(size, node.size[i])));

  const { onExecuted, onConfigure } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    const written = output?.more4d_view?.[0];
    if (!written) return;
    node.properties[KEPT] = written;
    show();
  };
  node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    panel?.setOptions(node.properties[OPTIONS] ?? {});
    show();
  };
}
