// Lines that are drawn with a scene: where points came from, and where cameras are.

import { axesOf, add, length, positionOf, scaled, subtract } from "./camera_math.js";
import { isShown, pointAt } from "./scene_file.js";

const TRAIL_FRAMES = 12;
const MAX_TRAILS = 700;
const MAX_LOOKED_AT = 20_000;
const LEAST_MOTION = 0.01; // of the scene's scale, over all frames
const MAX_FRUSTA = 16;
const MARKED = [1, 0.6, 0.1];
const KEYFRAME = [0.3, 0.75, 1];

/** Add where some of the points that move were in the frames before, each in a color of its own. */
export function addTrails(segments, scene, frame) {
  if (!scene.isTracks || frame < 1) return;
  const first = Math.max(0, frame - TRAIL_FRAMES);
  const movers = moversOf(scene);
  movers.forEach((index, number) => {
    if (!isShown(scene, frame, index)) return;
    const color = rainbow(number / movers.length);
    let last = pointAt(scene, first, index);
    for (let i = first + 1; i <= frame; i++) {
      const next = pointAt(scene, i, index);
      if (!next) continue;
      const [old, young] = [i - 1, i].map((at) => 1 - (frame - at) / (TRAIL_FRAMES + 1));
      if (last) segments.add(last, color, old, next, color, young);
      last = next;
    }
  });
}

const found = new WeakMap();

/** Points that move, spread over all that do; looked for once a scene. */
function moversOf(scene) {
  if (found.has(scene)) return found.get(scene);
  const least = scene.scale * LEAST_MOTION;
  const step = Math.max(1, Math.floor(scene.numPoints / MAX_LOOKED_AT));
  const moving = [];
  for (let index = 0; index < scene.numPoints; index += step) {
    const places = [0, 0.25, 0.5, 0.75, 1].map((part) =>
      pointAt(scene, Math.round(part * (scene.numFrames - 1)), index)).filter((place) => place);
    if (places.some((place) => length(subtract(place, places[0])) > least)) moving.push(index);
  }
  const every = Math.max(1, Math.ceil(moving.length / MAX_TRAILS));
  const movers = moving.filter((_, i) => i % every === 0);
  found.set(scene, movers);
  return movers;
}

/** Red over green to violet, for 0 to 1. */
function rainbow(u) {
  return [0, 2 / 3, 1 / 3].map((shift) => {
    const hue = (0.85 * u + shift) % 1;
    return Math.min(1, Math.max(0, Math.abs(6 * hue - 3) - 1)) * 0.85 + 0.15;
  });
}

/**
 * Add the way of the cameras, some of their frusta, the one of now, and those of keyframes. A
 * frustum around the `eye` would only be lines across the picture: it is left out.
 */
export function addPath(segments, cameras, now, keyframes, size, eye) {
  const frustum = (camera, scale, color, alpha) => {
    const isClose = length(subtract(positionOf(camera.worldToCamera), eye)) < size;
    if (!isClose) addFrustum(segments, camera, scale, color, alpha);
  };
  const color = (i) => mixed([0.2, 0.85, 0.35], [1, 0.5, 0.1], i / Math.max(1, cameras.length - 1));
  const positions = cameras.map((camera) => positionOf(camera.worldToCamera));
  for (let i = 1; i < cameras.length; i++)
    segments.add(positions[i - 1], color(i - 1), 0.9, positions[i], color(i), 0.9);
  const step = Math.max(1, Math.ceil(cameras.length / MAX_FRUSTA));
  if (!keyframes.cameras.length)
    for (let i = 0; i < cameras.length; i += step) frustum(cameras[i], size / 2, color(i), 0.5);
  keyframes.cameras.forEach((camera, i) => {
    frustum(camera, size, i === keyframes.selected ? MARKED : KEYFRAME, 1);
  });
  frustum(now, size, [1, 1, 1], 1);
}

function addFrustum(segments, camera, size, color, alpha) {
  const at = positionOf(camera.worldToCamera);
  const { right, down, forward } = axesOf(camera.worldToCamera);
  const corner = (x, y) => add(add(add(at, scaled(forward, size)),
    scaled(right, (size * (x - camera.cx)) / camera.fx)),
    scaled(down, (size * (y - camera.cy)) / camera.fy));
  const line = (a, b) => segments.add(a, color, alpha, b, color, alpha);
  const { width, height } = camera;
  const rim = [corner(0, 0), corner(width, 0), corner(width, height), corner(0, height)];
  rim.forEach((point, i) => {
    line(at, point);
    line(point, rim[(i + 1) % 4]);
  });
  const above = add(corner(width / 2, 0), scaled(down, -size * 0.2));
  line(rim[0], above);
  line(rim[1], above);
}

const mixed = (a, b, u) => a.map((value, i) => value * (1 - u) + b[i] * u);
