// Reads the view files of more4d_backend/scene_files/view_file.py; docs/view-files.md.

const MAGIC = "M4DVIEW\0";
const VERSION = 1;
const HEAD_BYTES = 16;
export const MISSING = 65535;

/** A file that is damaged, cut off, or something else. */
export class ViewFileError extends Error {}

/** Download and decode. `onProgress` gets (bytes so far, all bytes or 0 where unknown). */
export async function fetchScene(url, { signal, onProgress } = {}) {
  const answer = await fetch(url, { signal, cache: "no-store" });
  if (!answer.ok) throw new ViewFileError(`HTTP ${answer.status}`);
  const total = Number(answer.headers.get("Content-Length")) || 0;
  const parts = [];
  let received = 0;
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    received += part.value.length;
    onProgress?.(received, total);
  }
  const bytes = new Uint8Array(received);
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return decodeScene(bytes.buffer);
}

/**
 * A scene from the bytes of a view file. `points` has x, y, z and 0 or 1 for hidden or shown,
 * `colors` r, g, b, 255: fours are what graphics cards read as they are.
 */
export function decodeScene(buffer) {
  const { header, start } = readHeader(buffer);
  const block = (name, Kind) => {
    const { offset, shape } = header.blocks[name];
    const size = shape.reduce((a, b) => a * b, 1);
    const end = start + offset + size * Kind.BYTES_PER_ELEMENT;
    if (end > buffer.byteLength)
      throw new ViewFileError(`${buffer.byteLength} bytes; ${name} ends at ${end}`);
    return { values: new Kind(buffer, start + offset, size), frames: shape[0] };
  };
  const shown = block("shown", Uint8Array);
  const colors = block("colors", Uint8Array);
  return {
    numFrames: header.num_frames,
    numPoints: header.num_points,
    numPointsOfScene: header.num_points_of_scene,
    stride: header.stride,
    fps: header.fps,
    isTracks: header.is_tracks,
    center: header.center,
    scale: header.scale,
    sceneScale: header.scene_scale,
    cameras: camerasOf(header.cameras),
    path: header.camera_path && camerasOf(header.camera_path),
    points: withFlags(block("positions", Uint16Array).values, shown.values, header),
    colors: withFourth(colors.values),
    coloredFrames: colors.frames,
  };
}

/** The world coordinates of a point in a frame, or null where it has none. */
export function pointAt(scene, frame, index) {
  const at = 4 * (frame * scene.numPoints + index);
  if (scene.points[at] === MISSING) return null;
  return [0, 1, 2].map((axis) => {
    const bent = (scene.points[at + axis] - 32767) / 32768;
    return (bent / (1 - Math.abs(bent))) * scene.scale + scene.center[axis];
  });
}

/** Whether a point is seen in a frame, or valid. */
export function isShown(scene, frame, index) {
  return scene.points[4 * (frame * scene.numPoints + index) + 3] === 1;
}

function readHeader(buffer) {
  const head = new Uint8Array(buffer, 0, Math.min(8, buffer.byteLength));
  if (String.fromCharCode(...head) !== MAGIC) throw new ViewFileError("not a view file");
  if (buffer.byteLength < HEAD_BYTES) throw new ViewFileError("cut off");
  const [version, length] = new Uint32Array(buffer, 8, 2);
  if (version !== VERSION) throw new ViewFileError(`version ${version}; expected ${VERSION}`);
  const start = HEAD_BYTES + length;
  if (start > buffer.byteLength) throw new ViewFileError("cut off");
  const text = new TextDecoder().decode(new Uint8Array(buffer, HEAD_BYTES, length));
  return { header: JSON.parse(text), start };
}

function camerasOf({ width, height, world_to_camera, focal_px, center_px }) {
  return world_to_camera.map((worldToCamera, i) => ({
    worldToCamera,
    fx: focal_px[i][0],
    fy: focal_px[i][1],
    cx: center_px[i][0],
    cy: center_px[i][1],
    width,
    height,
  }));
}

/** Positions with a fourth number each: the flag, of eight a byte; each frame starts a new byte. */
function withFlags(positions, packed, { num_frames: numFrames, num_points: numPoints }) {
  const bytesPerFrame = Math.ceil(numPoints / 8);
  const points = new Uint16Array(4 * numFrames * numPoints);
  for (let frame = 0, from = 0, to = 0; frame < numFrames; frame++)
    for (let i = 0; i < numPoints; i++, from += 3, to += 4) {
      points[to] = positions[from];
      points[to + 1] = positions[from + 1];
      points[to + 2] = positions[from + 2];
      points[to + 3] = (packed[frame * bytesPerFrame + (i >> 3)] >> (i & 7)) & 1;
    }
  return points;
}

function withFourth(colors) {
  const fours = new Uint8Array((colors.length / 3) * 4);
  for (let from = 0, to = 0; from < colors.length; from += 3, to += 4) {
    fours[to] = colors[from];
    fours[to + 1] = colors[from + 1];
    fours[to + 2] = colors[from + 2];
    fours[to + 3] = 255;
  }
  return fours;
}
