// Camera keyframes: the document of docs/camera-keyframes.md, and the path between its poses.
// Pure functions of plain values, without the page: the same as camera_paths/keyframes.py.
// The poses are camera-to-world in the axes of the input view (+x right, +y down, +z forward).

export const FORMAT = "more4d-camera-keyframes";
export const VERSION = 1;
export const EASES = {
  linear: (u) => u,
  in: (u) => u * u,
  out: (u) => u * (2 - u),
  "in-out": (u) => u * u * (3 - 2 * u),
};
const MAX_KEYFRAMES = 10000;
const MAX_VALUE = 1e9;
const MAX_ZOOM = 1e3;
const LENGTH_TOLERANCE = 1e-3;
const DECIMALS = 8; // of what the editor writes: it hides the noise of float arithmetic
export const MIN_GAP = 1e-4; // in time: the editor keeps keyframes this far apart

/** A document that is refused: `field` names what, `expected` is a key of the texts. */
export class KeyframeError extends Error {
  constructor(field, expected, got) {
    super(`${field}: expected ${expected}, got ${got}`);
    this.field = field;
    this.expected = expected;
    this.got = got;
  }
}

export function newDocument() {
  return {
    format: FORMAT,
    version: VERSION,
    scene_scale: 1,
    keyframes: [
      { time: 0, position: [0, 0, 0], quaternion_wxyz: [1, 0, 0, 0], zoom: 1, ease: "in-out" },
    ],
  };
}

/** Read a document, with every field that is not ours left as it is; optional ones are filled. */
export function parseDocument(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new KeyframeError("JSON", "json", error.message);
  }
  return checkDocument(value);
}

/** Write a document as text, a keyframe a line. */
export function formatDocument(document) {
  const fields = Object.entries(document).filter(([, value]) => value !== undefined);
  const lines = fields.map(([name, value]) => {
    const shown = name === "keyframes" ? `[\n    ${value.map(inLine).join(",\n    ")}\n  ]` : inLine(value);
    return `  ${JSON.stringify(name)}: ${shown}`;
  });
  return `{\n${lines.join(",\n")}\n}\n`;
}

/** JSON in one line, with spaces. Line breaks of JSON text are never in its strings. */
function inLine(value) {
  return JSON.stringify(value, null, 1)
    .replace(/([[{])\n\s*/g, "$1").replace(/\n\s*([\]}])/g, "$1").replace(/,\n\s*/g, ", ");
}

function checkDocument(value) {
  if (!isObject(value)) throw new KeyframeError("JSON", "object", shown(value));
  if (value.format !== FORMAT) throw new KeyframeError("format", "format", shown(value.format));
  if (value.version !== VERSION) {
    throw new KeyframeError("version", "version", shown(value.version));
  }
  const { scene_scale: scale, keyframes } = value;
  if (scale !== undefined && scale !== null) {
    checkNumber(scale, "scene_scale", "positive", (x) => x > 0 && x <= MAX_VALUE);
  }
  if (!Array.isArray(keyframes)) throw new KeyframeError("keyframes", "array", shown(keyframes));
  if (keyframes.length < 1 || keyframes.length > MAX_KEYFRAMES) {
    throw new KeyframeError("keyframes", "count", `${keyframes.length}`);
  }
  const checked = keyframes.map((item, i) => checkKeyframe(item, `keyframes[${i}]`));
  checked.slice(1).forEach((keyframe, i) => {
    if (!(keyframe.time > checked[i].time)) {
      throw new KeyframeError(`keyframes[${i + 1}].time`, "increasing", `${keyframe.time}`);
    }
  });
  return { ...value, keyframes: checked };
}

function checkKeyframe(item, where) {
  if (!isObject(item)) throw new KeyframeError(where, "object", shown(item));
  const keyframe = { ...item, zoom: item.zoom ?? 1, ease: item.ease ?? "linear" };
  for (const name of ["zoom", "ease"]) { // null is not the same as left out
    if (item[name] === null) throw new KeyframeError(`${where}.${name}`, name, "null");
  }
  checkNumber(keyframe.time, `${where}.time`, "time", (x) => x >= 0 && x <= 1);
  checkNumbers(keyframe.position, 3, `${where}.position`, "position");
  checkNumbers(keyframe.quaternion_wxyz, 4, `${where}.quaternion_wxyz`, "quaternion_wxyz");
  const length = Math.hypot(...keyframe.quaternion_wxyz);
  if (!(Math.abs(length - 1) <= LENGTH_TOLERANCE)) {
    throw new KeyframeError(`${where}.quaternion_wxyz`, "quaternion_wxyz", `${length}`);
  }
  const isZoom = (x) => x >= 1 / MAX_ZOOM && x <= MAX_ZOOM;
  checkNumber(keyframe.zoom, `${where}.zoom`, "zoom", isZoom);
  if (!Object.keys(EASES).includes(keyframe.ease)) {
    throw new KeyframeError(`${where}.ease`, "ease", shown(keyframe.ease));
  }
  return keyframe;
}

function checkNumber(value, field, expected, isRight) {
  if (typeof value !== "number" || !isRight(value)) {
    throw new KeyframeError(field, expected, shown(value));
  }
}

function checkNumbers(value, count, field, expected) {
  if (!Array.isArray(value) || value.length !== count) {
    throw new KeyframeError(field, expected, shown(value));
  }
  value.forEach((item, i) => {
    checkNumber(item, `${field}[${i}]`, "number", (x) => Math.abs(x) <= MAX_VALUE);
  });
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function shown(value) {
  const text = JSON.stringify(value) ?? "-";
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}

/** Pose at a time in [0, 1]: {position, quaternion_wxyz, zoom}. */
export function poseAt(keyframes, time) {
  const last = keyframes.length - 1;
  if (last === 0) return poseOf(keyframes[0]);
  const clamped = Math.min(Math.max(time, keyframes[0].time), keyframes[last].time);
  let i = 0;
  while (i < last - 1 && keyframes[i + 1].time <= clamped) i += 1;
  const [start, end] = [keyframes[i], keyframes[i + 1]];
  const u = EASES[start.ease]((clamped - start.time) / (end.time - start.time));
  return {
    position: positionBetween(keyframes, i, u),
    quaternion_wxyz: slerp(unit(start.quaternion_wxyz), unit(end.quaternion_wxyz), u),
    zoom: Math.exp((1 - u) * Math.log(start.zoom) + u * Math.log(end.zoom)),
  };
}

/** The poses of all frames of a path. */
export function posesAtFrames(keyframes, numFrames) {
  const last = Math.max(numFrames - 1, 1);
  return Array.from({ length: numFrames }, (_, frame) => poseAt(keyframes, frame / last));
}

function poseOf({ position, quaternion_wxyz, zoom }) {
  return { position: [...position], quaternion_wxyz: unit(quaternion_wxyz), zoom };
}

/** A pose as the editor writes it. */
export function shortPose({ position, quaternion_wxyz, zoom }) {
  return {
    position: position.map(rounded),
    quaternion_wxyz: quaternion_wxyz.map(rounded),
    zoom: limitedZoom(zoom),
  };
}

export function limitedZoom(zoom) {
  return Math.min(Math.max(rounded(zoom), 1 / MAX_ZOOM), MAX_ZOOM);
}

export function rounded(value) {
  return Number(value.toFixed(DECIMALS)) + 0; // + 0: no -0
}

/** Cubic Hermite curve; the velocity at a knot is that of the parabola through it. */
function positionBetween(keyframes, i, u) {
  const h = keyframes[i + 1].time - keyframes[i].time;
  const [from, to] = [velocity(keyframes, i), velocity(keyframes, i + 1)];
  const [start, end] = [keyframes[i].position, keyframes[i + 1].position];
  return start.map((p, axis) => (
    (1 + 2 * u) * (1 - u) ** 2 * p
    + u * (1 - u) ** 2 * h * from[axis]
    + u * u * (3 - 2 * u) * end[axis]
    - u * u * (1 - u) * h * to[axis]
  ));
}

function velocity(keyframes, i) {
  const last = keyframes.length - 1;
  if (i === 0) return meanVelocity(keyframes, 0);
  if (i === last) return meanVelocity(keyframes, last - 1);
  const [before, after] = [meanVelocity(keyframes, i - 1), meanVelocity(keyframes, i)];
  const rests = (v) => v.every((x) => x === 0);
  if (rests(before) || rests(after)) return [0, 0, 0]; // no swing around a rest
  const hBefore = keyframes[i].time - keyframes[i - 1].time;
  const hAfter = keyframes[i + 1].time - keyframes[i].time;
  return before.map((v, axis) => (hAfter * v + hBefore * after[axis]) / (hBefore + hAfter));
}

function meanVelocity(keyframes, i) {
  const [start, end] = [keyframes[i], keyframes[i + 1]];
  return end.position.map((p, axis) => (p - start.position[axis]) / (end.time - start.time));
}

function slerp(start, end, fraction) {
  const dot = start.reduce((sum, x, i) => sum + x * end[i], 0);
  const near = dot < 0 ? end.map((x) => -x) : end;
  const difference = Math.hypot(...start.map((x, i) => near[i] - x));
  const sum = Math.hypot(...start.map((x, i) => near[i] + x));
  const angle = 2 * Math.atan2(difference, sum); // keeps digits where acos loses them
  if (angle < 1e-8) return start.map((x, i) => (1 - fraction) * x + fraction * near[i]);
  const fromStart = Math.sin((1 - fraction) * angle) / Math.sin(angle);
  const fromEnd = Math.sin(fraction * angle) / Math.sin(angle);
  return start.map((x, i) => fromStart * x + fromEnd * near[i]);
}

function unit(vector) {
  const length = Math.hypot(...vector);
  return vector.map((x) => x / length);
}

/** A rotation as angles in degrees: first roll (clockwise), then pitch (up), then yaw (right). */
export function anglesOf(quaternion_wxyz) {
  const [w, x, y, z] = unit(quaternion_wxyz);
  const degrees = (sine, cosine) => (Math.atan2(sine, cosine) * 180) / Math.PI;
  const forward = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)];
  const level = Math.hypot(forward[0], forward[2]);
  const pitch = degrees(-forward[1], level);
  if (level < 1e-6) { // straight up or down: yaw and roll are one turn
    return { yaw: degrees(-2 * (x * z - w * y), 1 - 2 * (y * y + z * z)), pitch, roll: 0 };
  }
  const roll = degrees(2 * (x * y + w * z), 1 - 2 * (x * x + z * z));
  return { yaw: degrees(forward[0], forward[2]), pitch, roll };
}

/** Inverse of `anglesOf`. */
export function quaternionOf({ yaw, pitch, roll }) {
  const half = (degrees) => (degrees * Math.PI) / 360;
  const turned = (angle) => [Math.cos(half(angle)), Math.sin(half(angle))];
  const [[cy, sy], [cp, sp], [cr, sr]] = [turned(yaw), turned(pitch), turned(roll)];
  const [w, x, y, z] = [cy * cp, cy * sp, sy * cp, -sy * sp];
  return [w * cr - z * sr, x * cr + y * sr, y * cr - x * sr, z * cr + w * sr];
}

// Edits. Each returns {keyframes, selected} and leaves its argument alone.

/** Add a pose at a time. Never in place of another one: where the last keyframe already is at
 * the end, the others move closer together, so that one view after the other makes an even path. */
export function addKeyframe(keyframes, pose, time) {
  const taken = keyframes.findIndex((k) => Math.abs(k.time - time) < MIN_GAP);
  let others = keyframes;
  let at = time;
  if (taken >= 0 && taken < keyframes.length - 1) {
    at = (keyframes[taken].time + keyframes[taken + 1].time) / 2;
  } else if (taken >= 0) {
    const last = keyframes[taken].time;
    const share = keyframes.length > 1 ? (keyframes.length - 1) / keyframes.length : 0;
    if (last > 1 - MIN_GAP) others = keyframes.map((k) => ({ ...k, time: k.time * share }));
    at = 1;
  }
  const before = others.filter((k) => k.time < at);
  const ease = before.length ? before[before.length - 1].ease : "in-out";
  const { position, quaternion_wxyz, zoom } = pose;
  const added = { time: at, position, quaternion_wxyz, zoom, ease };
  return { keyframes: sorted([...others, added]), selected: before.length };
}

/** Give a keyframe another pose; its time, ease and foreign fields stay. */
export function replacePose(keyframes, index, pose) {
  const { position, quaternion_wxyz, zoom } = pose;
  const changed = { ...keyframes[index], position, quaternion_wxyz, zoom };
  return { keyframes: keyframes.with(index, changed), selected: index };
}

export function changeField(keyframes, index, name, value) {
  return { keyframes: keyframes.with(index, { ...keyframes[index], [name]: value }), selected: index };
}

/** Move a keyframe in time; past another one, the order changes. Not onto another one. */
export function moveInTime(keyframes, index, time) {
  const others = keyframes.filter((_, i) => i !== index);
  const isFree = (t) => t >= 0 && t <= 1 && others.every((k) => Math.abs(k.time - t) >= MIN_GAP / 2);
  let at = Math.min(Math.max(time, 0), 1);
  for (let step = 1; !isFree(at); step += 1) {
    const candidates = [at + step * MIN_GAP, at - step * MIN_GAP].filter(isFree);
    if (candidates.length) [at] = candidates;
    if (step > 2 * others.length + 2) return { keyframes, selected: index };
  }
  const moved = { ...keyframes[index], time: at };
  const result = sorted([...others, moved]);
  return { keyframes: result, selected: result.indexOf(moved) };
}

/** Exchange a keyframe with its neighbour (-1 or +1): the times stay where they are. */
export function swapWithNeighbour(keyframes, index, step) {
  const other = index + step;
  if (other < 0 || other >= keyframes.length) return { keyframes, selected: index };
  const result = [...keyframes];
  result[index] = { ...keyframes[other], time: keyframes[index].time };
  result[other] = { ...keyframes[index], time: keyframes[other].time };
  return { keyframes: result, selected: other };
}

/** Remove a keyframe; the only one stays, for a path needs one. */
export function deleteKeyframe(keyframes, index) {
  if (keyframes.length === 1) return { keyframes, selected: 0 };
  const rest = keyframes.filter((_, i) => i !== index);
  return { keyframes: rest, selected: Math.min(index, rest.length - 1) };
}

function sorted(keyframes) {
  return [...keyframes].sort((a, b) => a.time - b.time);
}
