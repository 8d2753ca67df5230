// Mouse and keys of a view. Drag: orbit; right drag or Shift: pan; wheel: nearer; Alt+wheel: zoom.
// Double click: orbit about that point. W A S D Q E: fly, faster with Shift; arrows: look around.
// Space: play; , and .: step; Home: input view; C: the path's camera; Escape: out of it.

import * as math from "./camera_math.js";

const FLY = { KeyW: [0, 0, 1], KeyS: [0, 0, -1], KeyA: [-1, 0, 0], KeyD: [1, 0, 0],
  KeyQ: [0, 1, 0], KeyE: [0, -1, 0] };
const LOOK = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FLY_PER_S = 0.6; // of the distance to what is looked at
const LOOK_RAD_PER_S = 0.8;
const ORBIT_RAD_PER_CANVAS = Math.PI;

export class ViewControls {
  constructor(view) {
    this.view = view;
    this.held = new Set();
    this.listeners = {
      pointerdown: this.pointerDown, pointermove: this.pointerMove, pointerup: this.pointerUp,
      pointercancel: this.pointerUp, wheel: this.wheel, dblclick: this.doubleClick,
      contextmenu: taken, keydown: this.keyDown, keyup: this.keyUp, blur: this.blur,
    };
    for (const [kind, listener] of Object.entries(this.listeners))
      view.canvas.addEventListener(kind, listener, { passive: false });
  }

  destroy() {
    this.held.clear();
    for (const [kind, listener] of Object.entries(this.listeners))
      this.view.canvas.removeEventListener(kind, listener);
  }

  pointerDown = (event) => {
    taken(event);
    this.view.canvas.focus({ preventScroll: true });
    if (!this.view.scene) return;
    this.view.canvas.setPointerCapture(event.pointerId);
    this.last = place(event);
  };

  pointerMove = (event) => {
    if (!this.last) return;
    taken(event);
    const now = place(event);
    const [dx, dy] = [now.x - this.last.x, now.y - this.last.y];
    this.last = now;
    const pans = event.shiftKey || event.buttons & 6;
    if (pans) this.pan(dx, dy);
    else this.orbit(dx * ORBIT_RAD_PER_CANVAS, dy * ORBIT_RAD_PER_CANVAS);
  };

  pointerUp = (event) => {
    if (this.last) taken(event);
    this.last = null;
  };

  wheel = (event) => {
    taken(event);
    if (!this.view.scene) return;
    const factor = Math.exp(-Math.sign(event.deltaY) * Math.min(0.2, Math.abs(event.deltaY) / 500));
    if (event.altKey) this.view.setZoom(this.view.pickCamera().zoom * factor);
    else this.approach(factor);
  };

  doubleClick = (event) => {
    taken(event);
    const { view } = this;
    if (!view.scene) return;
    const { x, y } = place(event);
    const point = view.pickPoint(x * view.canvas.width, y * view.canvas.height);
    if (!point) return;
    const { worldToCamera } = view.pickCamera();
    const [sideways, downwards, depth] = math.transformPoint(worldToCamera, point.position);
    const angles = [Math.atan2(sideways, depth), Math.atan2(downwards, Math.hypot(sideways, depth))];
    this.look(...angles);
    view.targetDistance = Math.hypot(sideways, downwards, depth);
  };

  keyDown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.view.scene) return;
    const { view } = this;
    this.isFast = event.shiftKey;
    if (event.code in FLY || event.code in LOOK) {
      if (!this.held.size) this.fly();
      this.held.add(event.code);
    } else if (event.code === "Space") view.playing ? view.pause() : view.play();
    else if (event.code === "Comma") view.setFrame(view.frame - 1);
    else if (event.code === "Period") view.setFrame(view.frame + 1);
    else if (event.code === "Home") view.reset();
    else if (event.code === "KeyC") view.lookThrough(view.through ? null : "path");
    else if (event.code === "Escape" && view.through) view.lookThrough(null);
    else if (event.code === "Equal" || event.code === "Minus")
      this.approach(event.code === "Equal" ? 1.1 : 1 / 1.1);
    else return;
    taken(event);
  };

  keyUp = (event) => {
    this.isFast = event.shiftKey;
    if (this.held.delete(event.code)) taken(event);
  };

  blur = () => this.held.clear();

  /** Move as long as keys are held. */
  fly() {
    let last = performance.now();
    const step = (now) => {
      if (!this.held.size || this.view.destroyed) return;
      const seconds = Math.min(0.1, Math.max(0, (now - last) / 1000));
      last = now;
      this.flyFor(seconds);
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  flyFor(seconds) {
    const { view } = this;
    const { right, down, forward } = math.axesOf(view.pickCamera().worldToCamera);
    let way = [0, 0, 0];
    let [yaw, pitch] = [0, 0];
    for (const key of this.held) {
      const [x, y, z] = FLY[key] ?? [0, 0, 0];
      way = [right, down, forward].reduce((sum, axis, i) => math.add(sum, math.scaled(axis, [x, y, z][i])), way);
      yaw += LOOK[key]?.[0] ?? 0;
      pitch += LOOK[key]?.[1] ?? 0;
    }
    const speed = FLY_PER_S * (this.isFast ? 4 : 1) * (view.scene.sceneScale ?? view.scene.scale);
    view.moveBy(shift(math.scaled(way, speed * seconds)));
    if (yaw || pitch) this.look(yaw * LOOK_RAD_PER_S * seconds, pitch * LOOK_RAD_PER_S * seconds);
  }

  /** Turn about what is looked at; the input view's vertical stays vertical. */
  orbit(yawRad, pitchRad) {
    const { view } = this;
    this.turn(view.target(view.pickCamera().worldToCamera), yawRad, -pitchRad);
  }

  /** Turn the head: right and down are positive. */
  look(yawRad, pitchRad) {
    const { view } = this;
    this.turn(view.pickCamera().position, yawRad, -pitchRad);
  }

  turn(about, yawRad, pitchRad) {
    const { view } = this;
    const vertical = math.axesOf(view.scene.cameras[0].worldToCamera).down;
    view.moveBy(rotation(vertical, yawRad, about));
    const sideways = math.axesOf(view.pickCamera().worldToCamera).right;
    view.moveBy(rotation(sideways, pitchRad, about));
  }

  pan(dx, dy) {
    const { view } = this;
    const { worldToCamera } = view.pickCamera();
    const { right, down } = math.axesOf(worldToCamera);
    const perCanvas = view.targetDistance / view.camera.fx;
    const [x, y] = [-dx * view.canvas.width * perCanvas, -dy * view.canvas.height * perCanvas];
    view.moveBy(shift(math.add(math.scaled(right, x), math.scaled(down, y))));
  }

  /** Go nearer to what is looked at; it stays where it is. */
  approach(factor) {
    const { view } = this;
    const { forward } = math.axesOf(view.pickCamera().worldToCamera);
    const nearer = view.targetDistance / factor;
    view.moveBy(shift(math.scaled(forward, view.targetDistance - nearer)));
    view.targetDistance = nearer;
  }
}

/** Events that are ours must not reach the graph behind. */
function taken(event) {
  event.preventDefault();
  event.stopPropagation();
}

/** Where an event is, from 0 to 1 across the canvas, whatever scales the page around it. */
function place(event) {
  const box = event.currentTarget.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

const shift = (by) => [1, 0, 0, by[0], 0, 1, 0, by[1], 0, 0, 1, by[2], 0, 0, 0, 1];

/** A turn by an angle about an axis through a place. */
function rotation(axis, angleRad, about) {
  const half = math.scaled(math.normalized(axis), Math.sin(angleRad / 2));
  const turn = math.rigid([Math.cos(angleRad / 2), ...half], [0, 0, 0]);
  return math.multiply(shift(about), math.multiply(turn, shift(math.scaled(about, -1))));
}
