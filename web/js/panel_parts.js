// Pieces that panels are made of: elements, buttons, icons, style sheets.

import { text } from "./texts.js";

/** Make an element: properties, attributes, children. */
export function make(tag, properties = {}, attributes = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A button with a translated label; `data-action` is the label's key. */
export function button(label, tip, onClick) {
  const title = text(tip || label);
  const element = make("button", { type: "button", textContent: text(label), title },
    { "data-action": label });
  element.addEventListener("click", onClick);
  return element;
}

/** A button that shows an icon, and before it may have its label. */
export function iconButton(name, label, tip, onClick, { isLabelled = false } = {}) {
  const element = button(label, tip, onClick);
  element.replaceChildren(icon(name), ...(isLabelled ? [make("span", { textContent: text(label) })] : []));
  element.classList.add("more4d-icon-button");
  if (!isLabelled) element.ariaLabel = text(label);
  return element;
}

/** A button that stays pressed; `onChange(isPressed)`. */
export function toggle(name, label, tip, onChange) {
  const element = iconButton(name, label, tip, () => {
    press(element, element.getAttribute("aria-pressed") !== "true");
    onChange(element.getAttribute("aria-pressed") === "true");
  }, { isLabelled: true });
  press(element, false);
  return element;
}

export function press(element, isPressed) {
  element.setAttribute("aria-pressed", Boolean(isPressed));
}

// Outlines in a square of 24 x 24.
const ICONS = {
  play: "M7 4.5v15l12-7.5z",
  pause: "M8 5v14M16 5v14",
  reset: "M4 11l8-7 8 7M6 9.5V20h12V9.5",
  screenshot: "M4 8h3.5l1.5-2.5h6L16.5 8H20v11H4zM12 16.5a3.2 3.2 0 1 0 0-6.4 3.2 3.2 0 0 0 0 6.4",
  wide: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  help: "M9 9a3 3 0 1 1 4.2 2.8c-.9.4-1.2 1-1.2 2.2M12 17.5v.01",
  through: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12z"
    + "M12 15a3 3 0 1 0 0-6 3 3 0 0 0 0 6",
  frusta: "M3 7h11v10H3zM14 11l7-4v10l-7-4",
  trails: "M3 18c5 0 4-8 9-8 3 0 3.5 3 6 1M20.5 9.5a1.5 1.5 0 1 0-3 0 1.5 1.5 0 0 0 3 0",
  unseen: "M9 4h11v11H9zM4 9v.01M4 13v.01M4 17v.01M4 20.5v.01M8 20.5v.01M12 20.5v.01M15 20.5v.01",
  holes: "M12 4.5v.01M16 5.6v.01M18.7 8.5v.01M19.5 12v.01M18.7 15.6v.01M16 18.4v.01M12 19.5v.01"
    + "M8 18.4v.01M5.3 15.6v.01M4.5 12v.01M5.3 8.5v.01M8 5.6v.01",
  size: "M6 14a1.5 1.5 0 1 0 0-3 1.5 1.5 0 0 0 0 3M16 16.5a4 4 0 1 0 0-8 4 4 0 0 0 0 8",
};

/** One of ICONS, as large as the text around it. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", ICONS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "more4d-icon");
  svg.append(path);
  return svg;
}

/** Use web/css/<name>.css in the page, once. */
export function addStyle(name) {
  const { href } = new URL(`../css/${name}.css`, import.meta.url);
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(make("link", { rel: "stylesheet", href }));
}
