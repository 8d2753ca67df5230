// A panel in a node, for as long as the node is in a graph.
//
// Hosts also make nodes that never get into one: copying does, and so does making a subgraph. Those
// must not take graphics memory, of which a browser has a dozen pieces, nor timers or downloads.

import { make } from "./panel_parts.js";

/**
 * Add a widget, at least `leastHeight` high, to a node. `open()` makes its panel when the node comes
 * into a graph: {element, destroy()}; `closed(panel)` is told before it is destroyed.
 */
export function addPanel(node, name, kind, { leastHeight, open, closed }) {
  const holder = make("div", {}, { style: "width: 100%; height: 100%" });
  const widget = node.addDOMWidget(name, kind, holder, {
    serialize: false, hideOnZoom: false, getMinHeight: () => leastHeight,
  });
  widget.serialize = false;
  let panel = null;
  const { onAdded, onRemoved } = node;
  node.onAdded = function () {
    onAdded?.apply(this, arguments);
    if (panel) return;
    panel = open();
    holder.replaceChildren(panel.element);
  };
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    if (!panel) return;
    closed?.(panel);
    panel.destroy();
    panel = null;
  };
}
