// Lines that are drawn with a scene: where points came from, and where cameras are.
// Seven numbers a corner, two corners a segment: x y z r g b a.

import { axesOf, add, positionOf, scaled } from "./camera_math.js";
import { pointAt } from "./scene_file.js";

const TRAIL_FRAMES = 12;
const MAX_TRAILS = 1200;
const MAX_FRUSTA = 16;
const MARKED = [1, 0.6, 0.1];
const KEYFRAME = [0.3, 0.75, 1];

/** Where some of the points, which move, were in the frames before. */
export function trailLines(scene, frame) {
  const corners = [];
  if (!scene.isTracks || frame < 1) return corners;
  const step = Math.max(1, Math.floor(scene.numPoints / MAX_TRAILS));
  const first = Math.max(0, frame - TRAIL_FRAMES);
  const least = scene.scale * 0.002;
  for (let index = Math.floor(step / 2); index < scene.numPoints; index += step) {
    if (!scene.shown[frame * scene.numPoints + index]) continue;
    const [start, end] = [pointAt(scene, first, index), pointAt(scene, frame, index)];
    if (!start || !end || Math.hypot(...start.map((x, i) => x - end[i])) < least) continue;
    let last = start;
    for (let i = first + 1; i <= frame; i++) {
      const next = pointAt(scene, i, index);
      if (!next) continue;
      const age = (frame - i) / TRAIL_FRAMES;
      corners.push(...last, 1, 1 - 0.7 * age, 0.2, 0.9 * (1 - age) + 0.1);
      corners.push(...next, 1, 1 - 0.7 * age, 0.2, 0.9 * (1 - age) + 0.1);
      last = next;
    }
  }
  return corners;
}

/** The way of the cameras, some of their frusta, the one of now, and those of keyframes. */
export function pathLines(cameras, now, keyframes, size) {
  const corners = [];
  const color = (i) => mixed([0.2, 0.85, 0.35], [1, 0.5, 0.1], i / Math.max(1, cameras.length - 1));
  const positions = cameras.map((camera) => positionOf(camera.worldToCamera));
  for (let i = 1; i < cameras.length; i++)
    segment(corners, positions[i - 1], positions[i], [...color(i), 0.9]);
  const step = Math.max(1, Math.ceil(cameras.length / MAX_FRUSTA));
  if (!keyframes.cameras.length)
    for (let i = 0; i < cameras.length; i += step) frustum(corners, cameras[i], size / 2, color(i), 0.5);
  keyframes.cameras.forEach((camera, i) => {
    frustum(corners, camera, size, i === keyframes.selected ? MARKED : KEYFRAME, 1);
  });
  frustum(corners, now, size, [1, 1, 1], 1);
  return corners;
}

function frustum(corners, camera, size, color, alpha) {
  const at = positionOf(camera.worldToCamera);
  const { right, down, forward } = axesOf(camera.worldToCamera);
  const corner = (x, y) => add(add(add(at, scaled(forward, size)),
    scaled(right, (size * (x - camera.cx)) / camera.fx)),
    scaled(down, (size * (y - camera.cy)) / camera.fy));
  const { width, height } = camera;
  const rim = [corner(0, 0), corner(width, 0), corner(width, height), corner(0, height)];
  rim.forEach((point, i) => {
    segment(corners, at, point, [...color, alpha]);
    segment(corners, point, rim[(i + 1) % 4], [...color, alpha]);
  });
  const above = add(corner(width / 2, 0), scaled(down, -size * 0.2));
  segment(corners, rim[0], above, [...color, alpha]);
  segment(corners, rim[1], above, [...color, alpha]);
}

const segment = (corners, a, b, rgba) => corners.push(...a, ...rgba, ...b, ...rgba);
const mixed = (a, b, u) => a.map((value, i) => value * (1 - u) + b[i] * u);
