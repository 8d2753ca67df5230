// A small picture beside the free view: what the path's camera sees at the playhead. A click
// looks through that camera, in its own size.

import { resized } from "./camera_math.js";
import { make } from "./panel_parts.js";
import { text } from "./texts.js";

const LARGEST_PX = 480; // of its width; a larger camera is drawn in a smaller size

export class PathPreview {
  constructor(panel) {
    this.panel = panel;
    this.wanted = true;
    this.canvas = make("canvas");
    this.label = make("span");
    const tip = text("editor.previewTip");
    this.element = make(
      "button", { type: "button", title: tip, ariaLabel: tip, hidden: true },
      { "data-name": "preview" }, [this.canvas, this.label],
    );
    this.element.onclick = () => panel.view.lookThrough("path");
    panel.stage.append(this.element);
  }

  /** Draw it again, with the next picture of the page. */
  update() {
    this.waiting ||= requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  draw() {
    const { view } = this.panel;
    const isShown = this.wanted && view?.scene && view.path && !view.through;
    this.element.hidden = !isShown;
    if (!isShown || view.graphics.gl.isContextLost()) return;
    const camera = view.pathCamera;
    // In steps of the points there are: at half the density, half the size has no gaps.
    const scale = Math.min(1 / view.scene.stride, LARGEST_PX / camera.width);
    const [width, height] = [camera.width, camera.height].map((size) => Math.ceil(size * scale));
    const picture = view.pictureOf(resized(camera, width, height));
    Object.assign(this.canvas, { width: picture.width, height: picture.height });
    this.canvas.getContext("2d").putImageData(picture, 0, 0);
    const values = { frame: view.frame + 1, frames: view.numFrames };
    this.label.textContent = text("editor.preview", values);
  }

  destroy() {
    cancelAnimationFrame(this.waiting);
    this.element.remove();
  }
}
