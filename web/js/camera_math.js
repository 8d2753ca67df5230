// Cameras and poses, exactly as in more4d_backend/geometry.py.
//
// Camera axes are OpenCV's: +x right, +y down, +z forward. A camera is
//   { worldToCamera, fx, fy, cx, cy, width, height }
// where worldToCamera is a rigid 4x4 matrix as 16 numbers, row after row, and the rest is in
// pixels. Pixel centres are at half-integers: a centred camera has cx = width / 2.
// Quaternions are [w, x, y, z]. Nothing here is changed in place.

export const IDENTITY = Object.freeze([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);

export const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
export const subtract = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
export const scaled = (a, factor) => [a[0] * factor, a[1] * factor, a[2] * factor];
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const length = (a) => Math.hypot(a[0], a[1], a[2]);
export const normalized = (a) => scaled(a, 1 / length(a));
export const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];

/** The product of two 4x4 matrices. */
export function multiply(a, b) {
  const product = new Array(16).fill(0);
  for (let i = 0; i < 4; i++)
    for (let j = 0; j < 4; j++)
      for (let k = 0; k < 4; k++) product[4 * i + j] += a[4 * i + k] * b[4 * k + j];
  return product;
}

/** The inverse of a rigid transform, by transposing its rotation. */
export function invertRigid(m) {
  const t = [m[3], m[7], m[11]];
  const rows = [[m[0], m[4], m[8]], [m[1], m[5], m[9]], [m[2], m[6], m[10]]];
  return [...rows.flatMap((row) => [...row, -dot(row, t)]), 0, 0, 0, 1];
}

export function transformPoint(m, p) {
  return [
    m[0] * p[0] + m[1] * p[1] + m[2] * p[2] + m[3],
    m[4] * p[0] + m[5] * p[1] + m[6] * p[2] + m[7],
    m[8] * p[0] + m[9] * p[1] + m[10] * p[2] + m[11],
  ];
}

/** A rigid transform of a unit quaternion and a translation. */
export function rigid(quaternionWxyz, translation) {
  const norm = Math.hypot(...quaternionWxyz);
  const [w, x, y, z] = quaternionWxyz.map((value) => value / norm);
  return [
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), translation[0],
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), translation[1],
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), translation[2],
    0, 0, 0, 1,
  ];
}

/** The unit quaternion, w >= 0, of a transform's rotation (Shepperd 1978). */
export function quaternionWxyz(m) {
  const [xx, yy, zz] = [m[0], m[5], m[10]];
  const [wx, wy, wz] = [m[9] - m[6], m[2] - m[8], m[4] - m[1]];
  const [xy, xz, yz] = [m[4] + m[1], m[2] + m[8], m[9] + m[6]];
  const candidates = [
    [1 + xx + yy + zz, wx, wy, wz],
    [wx, 1 + xx - yy - zz, xy, xz],
    [wy, xy, 1 - xx + yy - zz, yz],
    [wz, xz, yz, 1 - xx - yy + zz],
  ];
  const best = candidates.reduce((a, b, i) => (b[i] > candidates[a][a] ? i : a), 0);
  const norm = Math.hypot(...candidates[best]) * (candidates[best][0] < 0 ? -1 : 1);
  return candidates[best].map((value) => value / norm || 0);
}

/** The shortest way between two rotations. */
export function slerp(a, b, u) {
  let cosine = a.reduce((sum, value, i) => sum + value * b[i], 0);
  const sign = cosine < 0 ? -1 : 1;
  cosine = Math.min(1, cosine * sign);
  const angleRad = Math.acos(cosine);
  const sine = Math.sin(angleRad);
  const [p, q] = sine < 1e-6 ? [1 - u, u]
    : [Math.sin((1 - u) * angleRad) / sine, Math.sin(u * angleRad) / sine];
  const mixed = a.map((value, i) => p * value + q * sign * b[i]);
  const norm = Math.hypot(...mixed);
  return mixed.map((value) => value / norm);
}

/** World-to-camera of a camera at `position` whose +z meets `target`; `up` shows upwards. */
export function lookAt(position, target, up) {
  const forward = normalized(subtract(target, position));
  const right = normalized(cross(forward, up));
  const down = cross(forward, right);
  const rows = [right, down, forward];
  return [...rows.flatMap((row) => [...row, -dot(row, position)]), 0, 0, 0, 1];
}

/** Where a camera is, in the world. */
export function positionOf(worldToCamera) {
  const m = invertRigid(worldToCamera);
  return [m[3], m[7], m[11]];
}

/** The camera's axes in the world: right, down, forward. */
export function axesOf(worldToCamera) {
  const m = worldToCamera;
  return { right: [m[0], m[1], m[2]], down: [m[4], m[5], m[6]], forward: [m[8], m[9], m[10]] };
}

/** The pixel and the depth (camera z) of a world point; the pixel means nothing for depth <= 0. */
export function project(camera, point) {
  const [x, y, z] = transformPoint(camera.worldToCamera, point);
  return { x: (camera.fx * x) / z + camera.cx, y: (camera.fy * y) / z + camera.cy, depth: z };
}

/** The world point of a pixel at a depth. Inverse of `project`. */
export function unproject(camera, x, y, depth) {
  const seen = [((x - camera.cx) / camera.fx) * depth, ((y - camera.cy) / camera.fy) * depth, depth];
  return transformPoint(invertRigid(camera.worldToCamera), seen);
}

/** The same view as a picture of another size; another aspect stretches it. */
export function resized(camera, width, height) {
  const [sx, sy] = [width / camera.width, height / camera.height];
  return { ...camera, width, height, fx: camera.fx * sx, fy: camera.fy * sy,
    cx: camera.cx * sx, cy: camera.cy * sy };
}

/** The same view in the middle of a canvas of any aspect, as large as it fits without stretching. */
export function fitted(camera, width, height) {
  const scale = Math.min(width / camera.width, height / camera.height);
  return { ...camera, width, height, fx: camera.fx * scale, fy: camera.fy * scale,
    cx: camera.cx * scale + (width - camera.width * scale) / 2,
    cy: camera.cy * scale + (height - camera.height * scale) / 2 };
}

/** Both focal lengths times `zoom`. */
export function zoomed(camera, zoom) {
  return { ...camera, fx: camera.fx * zoom, fy: camera.fy * zoom };
}

/** A camera as a keyframe has it: its pose in the axes of the input view, and its zoom. */
export function toKeyframePose(camera, inputView) {
  const pose = multiply(inputView.worldToCamera, invertRigid(camera.worldToCamera));
  const zoom = camera.fx / camera.width / (inputView.fx / inputView.width);
  return { position: [pose[3], pose[7], pose[11]], quaternion_wxyz: quaternionWxyz(pose), zoom };
}

/** The camera of a keyframe. Inverse of `toKeyframePose`. */
export function fromKeyframePose({ position, quaternion_wxyz, zoom = 1 }, inputView) {
  const pose = rigid(quaternion_wxyz, position);
  const worldToCamera = multiply(invertRigid(pose), inputView.worldToCamera);
  return zoomed({ ...inputView, worldToCamera }, zoom);
}
