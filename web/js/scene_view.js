// A 4D scene on a canvas: which frame, from where, with what drawn on it.
//
// Pictures are drawn when something changed, never in a loop of their own.

import * as math from "./camera_math.js";
import { addPath, addTrails } from "./overlays.js";
import { isShown, pointAt } from "./scene_file.js";
import { SceneGL } from "./scene_gl.js";
import { Segments } from "./segments.js";
import { ViewControls } from "./view_controls.js";

export { NoWebGLError } from "./scene_gl.js";

const BACKGROUND = [0.09, 0.09, 0.11];
const BLACK = [0, 0, 0];
const HOLE = [0.85, 0, 0.85];
export const DEFAULTS = Object.freeze({
  pointSize: 1.5, // of the part of the surface that a point stands for
  trails: false,
  unseen: false,
  holes: false,
  frusta: true,
  speed: 1, // of playing
});
const LINE_WIDTH_PX = 1.6; // of the page
const MAX_RATIO = 2; // pixels of the picture for one of the page, where a graph is zoomed in

export class SceneView {
  /** `on` may have onFrame(frame), onCamera(), onMoved(), onPlaying(), onLost(isLost). */
  constructor(canvas, on = {}) {
    this.canvas = canvas;
    this.on = on;
    this.graphics = new SceneGL(canvas);
    this.options = { ...DEFAULTS };
    this.scene = this.path = this.through = null;
    this.keyframes = { cameras: [], selected: -1 };
    this.frame = 0;
    this.playing = false;
    this.numDrawn = 0;
    this.controls = new ViewControls(this);
    this.resize = new ResizeObserver(() => this.redraw());
    this.resize.observe(canvas);
    canvas.addEventListener("webglcontextlost", this.lost);
    canvas.addEventListener("webglcontextrestored", this.restored);
    setTimeout(() => {
      if (!this.scene && !this.destroyed) this.graphics.warmUp();
    });
  }

  lost = (event) => {
    event.preventDefault(); // so that it can be restored
    this.on.onLost?.(true);
  };

  restored = () => {
    this.graphics = new SceneGL(this.canvas);
    if (this.scene) this.graphics.setScene(this.scene);
    this.on.onLost?.(false);
    this.redraw();
  };

  /** Show a scene. The view stays where it is unless this is the first one, or another. */
  setScene(scene, { keepView = false } = {}) {
    try {
      this.graphics.setScene(scene);
    } catch (error) {
      if (this.scene) this.graphics.setScene(this.scene); // what was shown stays
      throw error;
    }
    this.scene = scene;
    if (!keepView || !this.pose) this.reset();
    this.setFrame(Math.min(this.frame, this.numFrames - 1));
  }

  /** How many frames there are to see: the path's, or else the scene's. */
  get numFrames() {
    return Math.max(this.scene?.numFrames ?? 1, this.path?.length ?? 1);
  }

  setFrame(frame) {
    this.frame = Math.max(0, Math.min(this.numFrames - 1, Math.round(frame)));
    this.redraw();
    this.on.onFrame?.(this.frame);
  }

  play() {
    if (this.playing || this.numFrames < 2) return;
    this.playing = true;
    let last = performance.now();
    let exact = this.frame;
    const step = (now) => {
      if (!this.playing || this.destroyed) return;
      if (Math.floor(exact) !== this.frame) exact = this.frame; // somebody scrubbed
      exact += (Math.max(0, now - last) / 1000) * this.scene.fps * this.options.speed;
      exact %= this.numFrames;
      last = now;
      if (Math.floor(exact) !== this.frame) this.setFrame(Math.floor(exact));
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
    this.on.onPlaying?.();
  }

  pause() {
    this.playing = false;
    this.on.onPlaying?.();
  }

  setOptions(options) {
    Object.assign(this.options, options);
    this.redraw();
  }

  /** Draw a path: a line and frusta. Keyframe cameras get large frusta, the selected one a mark. */
  setPath(cameras, { keyframes = [], selected = -1 } = {}) {
    this.path = cameras?.length ? cameras : null;
    this.keyframes = { cameras: keyframes, selected };
    if (this.frame >= this.numFrames) this.setFrame(this.numFrames - 1);
    this.redraw();
  }

  /** The camera of the path, or else of the scene, in the frame that is shown. */
  get pathCamera() {
    const cameras = this.path ?? this.scene.cameras;
    return cameras[Math.min(this.frame, cameras.length - 1)];
  }

  /** Show exactly what a camera sees; "path": the path's, frame by frame; null: the free view. */
  lookThrough(camera) {
    this.through = camera;
    this.redraw();
    this.on.onCamera?.();
  }

  /** Put the free view where a camera is. */
  setCamera(camera) {
    this.through = null;
    const input = this.scene.cameras[0];
    this.pose = camera.worldToCamera;
    this.zoom = camera.fx / camera.width / (input.fx / input.width);
    this.cameraMoved();
  }

  /** The free view is the input view again. */
  reset() {
    this.targetDistance = this.scene.sceneScale ?? this.scene.scale;
    this.setCamera(this.scene.cameras[0]);
  }

  /** What is seen from now, as the input view's camera would see it. */
  pickCamera() {
    const camera = this.throughCamera ?? {
      ...math.zoomed(this.scene.cameras[0], this.zoom), worldToCamera: this.pose };
    const { worldToCamera } = camera;
    const zoom = this.throughCamera
      ? math.toKeyframePose(camera, this.scene.cameras[0]).zoom : this.zoom;
    return { camera, worldToCamera, zoom, position: math.positionOf(worldToCamera),
      target: this.target(worldToCamera) };
  }

  target(worldToCamera = this.pose) {
    const forward = math.axesOf(worldToCamera).forward;
    return math.add(math.positionOf(worldToCamera), math.scaled(forward, this.targetDistance));
  }

  get throughCamera() {
    return this.through === "path" ? this.pathCamera : this.through;
  }

  /** The camera of the canvas as it is shown. */
  get camera() {
    const { width, height } = this.canvas;
    return math.fitted(this.pickCamera().camera, width, height);
  }

  /** Move the free view by a rigid motion of the world; a look through a camera ends there. */
  moveBy(motion) {
    if (this.through) this.setCamera(this.throughCamera);
    this.pose = math.multiply(this.pose, math.invertRigid(motion));
    this.on.onMoved?.();
    this.cameraMoved();
  }

  setZoom(zoom) {
    if (this.through) this.setCamera(this.throughCamera);
    this.zoom = Math.max(0.05, Math.min(50, zoom));
    this.cameraMoved();
  }

  cameraMoved() {
    this.redraw();
    this.on.onCamera?.();
  }

  /** The point under a place of the canvas (in its pixels), as {index, position}; or null. */
  pickPoint(x, y, reachPx = 12) {
    const { scene, camera } = this;
    let best = null;
    for (let index = 0; index < scene.numPoints; index++) {
      if (!isShown(scene, this.sceneFrame, index)) continue;
      const position = pointAt(scene, this.sceneFrame, index);
      if (!position) continue;
      const seen = math.project(camera, position);
      const far = Math.hypot(seen.x - x, seen.y - y);
      if (seen.depth <= 0 || far > reachPx) continue;
      const cost = seen.depth * (1 + far / reachPx);
      if (!best || cost < best.cost) best = { index, position, depth: seen.depth, cost };
    }
    return best;
  }

  /** Which keyframe's camera is at a place of the canvas (in its pixels); -1: none. */
  pickKeyframe(x, y, reachPx = 20) {
    let [best, distance] = [-1, reachPx];
    this.keyframes.cameras.forEach((keyframe, index) => {
      const seen = math.project(this.camera, math.positionOf(keyframe.worldToCamera));
      const far = Math.hypot(seen.x - x, seen.y - y);
      if (seen.depth > 0 && far < distance) [best, distance] = [index, far];
    });
    return best;
  }

  /** The frame of the scene that belongs to the frame shown: a scene of one frame has one. */
  get sceneFrame() {
    return Math.min(this.frame, this.scene.numFrames - 1);
  }

  redraw() {
    if (this.waiting || this.destroyed) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.drawNow();
    });
  }

  /** Pixels of the picture for one of the page; a graph that is zoomed scales the canvas. */
  get pixelRatio() {
    const zoom = this.canvas.getBoundingClientRect().width / this.canvas.clientWidth || 1;
    const ofScreen = globalThis.devicePixelRatio || 1;
    return ofScreen * Math.max(1, Math.min(MAX_RATIO, zoom));
  }

  /** Draw at once. */
  drawNow() {
    const { canvas, graphics } = this;
    if (this.destroyed || graphics.gl.isContextLost()) return;
    if (!canvas.clientWidth) return; // not in sight
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((size) =>
      Math.max(1, Math.round(size * this.pixelRatio)));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const background = this.options.holes ? HOLE : BACKGROUND;
    if (!this.scene) graphics.begin(width, height, BACKGROUND);
    else if (this.through) this.drawThrough();
    else {
      const camera = this.camera;
      graphics.begin(width, height, background);
      graphics.drawPoints(this.sceneFrame, camera, { fixedSize: 0,
        relativeSize: this.options.pointSize, unseen: this.options.unseen });
      graphics.drawLines(this.lines(camera), camera, LINE_WIDTH_PX * this.pixelRatio);
    }
    this.numDrawn++;
  }

  drawThrough() {
    const { canvas, graphics } = this;
    const camera = this.throughCamera;
    this.drawBeside(camera);
    const scale = Math.min(canvas.width / camera.width, canvas.height / camera.height);
    const [width, height] = [camera.width * scale, camera.height * scale].map(Math.round);
    const left = Math.floor((canvas.width - width) / 2);
    const top = Math.floor((canvas.height - height) / 2);
    graphics.showBeside({ left, top, width, height }, canvas, BACKGROUND);
  }

  /** What the renderer's mode "nearest" draws, in the camera's own size. */
  drawBeside(camera) {
    const { graphics, options } = this;
    graphics.begin(camera.width, camera.height, options.holes ? HOLE : BLACK, true);
    graphics.drawPoints(this.sceneFrame, camera, { fixedSize: this.scene.stride,
      relativeSize: 1, unseen: options.unseen });
    if (!options.trails) return;
    const trails = new Segments();
    addTrails(trails, this.scene, this.sceneFrame);
    graphics.drawLines(trails, camera, LINE_WIDTH_PX);
  }

  /** The picture of a camera in its own size, as ImageData. */
  pictureOf(camera) {
    this.drawBeside(camera);
    return this.graphics.readBeside();
  }

  lines(camera) {
    const { scene, options } = this;
    const segments = new Segments();
    if (options.trails) addTrails(segments, scene, this.sceneFrame);
    if (!options.frusta) return segments;
    const size = (scene.sceneScale ?? scene.scale) / 12;
    const eye = math.positionOf(camera.worldToCamera);
    addPath(segments, this.path ?? scene.cameras, this.pathCamera, this.keyframes, size, eye);
    return segments;
  }

  /** A PNG of what is shown: through a camera in that camera's size, else in the canvas's. */
  screenshot() {
    let canvas = this.canvas;
    if (this.through) {
      const picture = this.pictureOf(this.throughCamera);
      canvas = new OffscreenCanvas(picture.width, picture.height);
      canvas.getContext("2d").putImageData(picture, 0, 0);
      this.redraw();
      return canvas.convertToBlob({ type: "image/png" });
    }
    this.drawNow();
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** Stop, and give the graphics memory back. */
  destroy() {
    if (this.destroyed) return;
    this.destroyed = true;
    this.pause();
    cancelAnimationFrame(this.waiting);
    this.resize.disconnect();
    this.controls.destroy();
    this.canvas.removeEventListener("webglcontextlost", this.lost);
    this.canvas.removeEventListener("webglcontextrestored", this.restored);
    this.graphics.destroy();
    this.scene = null;
  }
}
