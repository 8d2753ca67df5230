// The graphics card's part: points and lines of one scene, in one WebGL2 context.
//
// A point of size 1 covers the pixel that it falls on and the nearest wins, first point first: what
// the renderer's mode "nearest" draws. Depth is stored as its logarithm, with equal relative
// precision from 1e-5 to 1e5 times the scene's scale.

import { IDENTITY } from "./camera_math.js";
import { SEGMENTS_A_ROW, Segments } from "./segments.js";

const TEXELS_A_ROW = 4 * SEGMENTS_A_ROW;

/** The browser has no WebGL2, or will not give another context. */
export class NoWebGLError extends Error {}

const PROJECTION = `
uniform mat4 u_world_to_camera;
uniform vec2 u_focal;
uniform vec2 u_principal;
uniform vec2 u_size;
uniform float u_scale;
float depth_of(float z) { return clamp(log2(max(z / u_scale, 1e-5)) / 16.7, -1.0, 1.0); }
vec4 projected(vec3 seen) {
  float z = seen.z;
  vec2 pixel_z = u_focal * seen.xy + u_principal * z;
  vec2 clip = 2.0 * pixel_z / u_size - z;
  return vec4(clip.x, -clip.y, depth_of(z) * z, z);
}`;

const POINT_VERTEX = `#version 300 es
precision highp float;
in uvec4 a_point;
in vec4 a_color;
uniform vec3 u_seen_center;
uniform vec3 u_source_forward;
uniform float u_source_size;
uniform float u_fixed_size;
uniform bool u_unseen;
out vec3 v_color;
flat out float v_size;
${PROJECTION}
// In the middle of the pixels that are covered: graphics cards know a place to 1/16 px only.
vec4 on_pixels(vec3 seen) {
  float middle = mod(u_fixed_size, 2.0) * 0.5;
  vec2 pixel = floor(u_focal * seen.xy / seen.z + u_principal + 0.5 - middle) + middle;
  vec2 clip = 2.0 * pixel / u_size - 1.0;
  return vec4(clip.x, -clip.y, depth_of(seen.z), 1.0);
}
void main() {
  vec3 bent = (vec3(a_point.xyz) - 32767.0) / 32768.0;
  vec3 offset = bent / (1.0 - abs(bent)) * u_scale;
  vec3 seen = mat3(u_world_to_camera) * offset + u_seen_center;
  bool is_shown = a_point.w == 1u;
  bool is_missing = a_point.x == 65535u || seen.z <= 0.0 || !(is_shown || u_unseen);
  if (is_missing) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
  else gl_Position = u_fixed_size > 0.0 ? on_pixels(seen) : projected(seen);
  float source_depth = max(abs(dot(u_source_forward, offset)), 1e-6);
  float size = u_source_size * source_depth / max(seen.z, 1e-6);
  v_size = u_fixed_size > 0.0 ? u_fixed_size : clamp(size, 1.0, 64.0);
  gl_PointSize = v_size;
  v_color = is_shown ? a_color.rgb : mix(a_color.rgb, vec3(1.0, 0.25, 0.1), 0.65);
}`;

const POINT_FRAGMENT = `#version 300 es
precision mediump float;
in vec3 v_color;
flat in float v_size;
out vec4 color;
void main() {
  vec2 from_middle = gl_PointCoord - 0.5;
  if (v_size > 5.0 && dot(from_middle, from_middle) > 0.25) discard;
  color = vec4(v_color, 1.0);
}`;

// A segment is two triangles, as wide as asked for. Its ends are four texels of a texture: as
// instances of a strip, software drivers would draw each on its own, twenty times as slowly.
const LINE_VERTEX = `#version 300 es
precision highp float;
uniform highp sampler2D u_segments;
uniform float u_width;
out vec4 v_color;
${PROJECTION}
vec2 pixel_of(vec3 seen) { return u_focal * seen.xy / seen.z + u_principal; }
vec4 texel(int part) {
  int index = 4 * (gl_VertexID / 6) + part;
  return texelFetch(u_segments, ivec2(index % ${TEXELS_A_ROW}, index / ${TEXELS_A_ROW}), 0);
}
void main() {
  int corner = int[6](0, 1, 2, 2, 1, 3)[gl_VertexID % 6];
  bool is_end = (corner & 1) == 1;
  vec3 start = (u_world_to_camera * vec4(texel(0).xyz, 1.0)).xyz;
  vec3 end = (u_world_to_camera * vec4(texel(2).xyz, 1.0)).xyz;
  v_color = texel(is_end ? 3 : 1);
  float near = u_scale * 1e-3;
  if (max(start.z, end.z) < near) {
    gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
    return;
  }
  float ratio = clamp((near - start.z) / (end.z - start.z), 0.0, 1.0);
  if (start.z < near) start = mix(start, end, ratio);
  if (end.z < near) end = mix(start, end, ratio);
  vec2 along = pixel_of(end) - pixel_of(start);
  vec2 across = length(along) < 1e-3 ? vec2(0.0) : normalize(vec2(-along.y, along.x));
  vec3 seen = is_end ? end : start;
  float side = (corner & 2) == 2 ? 0.5 : -0.5;
  vec2 clip = 2.0 * (pixel_of(seen) + across * side * u_width) / u_size - 1.0;
  gl_Position = vec4(clip.x, -clip.y, depth_of(seen.z * 0.99), 1.0);
}`;

const LINE_FRAGMENT = `#version 300 es
precision mediump float;
in vec4 v_color;
out vec4 color;
void main() { color = v_color; }`;

export class SceneGL {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false });
    if (!gl) throw new NoWebGLError("no WebGL2");
    this.gl = gl;
    this.points = program(gl, POINT_VERTEX, POINT_FRAGMENT);
    this.lines = program(gl, LINE_VERTEX, LINE_FRAGMENT);
    this.pointArrays = gl.createVertexArray();
    this.lineArrays = gl.createVertexArray();
    this.lineTexture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.lineTexture);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    this.frames = [];
    this.colors = [];
    this.target = null;
    gl.enable(gl.DEPTH_TEST);
  }

  /** Upload a scene, in place of the last one. */
  setScene(scene) {
    const { gl } = this;
    [...this.frames, ...this.colors].forEach((buffer) => gl.deleteBuffer(buffer));
    const upload = (values, count) => Array.from({ length: count }, (_, i) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      const part = values.subarray(4 * scene.numPoints * i, 4 * scene.numPoints * (i + 1));
      gl.bufferData(gl.ARRAY_BUFFER, part, gl.STATIC_DRAW);
      return buffer;
    });
    this.frames = upload(scene.points, scene.numFrames);
    this.colors = upload(scene.colors, scene.coloredFrames);
    this.scene = scene;
    if (gl.getError() === gl.OUT_OF_MEMORY) throw new RangeError("graphics memory");
  }

  /** Have the driver compile, which may take it half a second, before there is a scene. */
  warmUp() {
    const camera = { worldToCamera: IDENTITY, fx: 1, fy: 1, cx: 0, cy: 0, width: 1, height: 1 };
    this.setScene({ numPoints: 1, numFrames: 1, coloredFrames: 1, points: new Uint16Array(4),
      colors: new Uint8Array(4), center: [0, 0, 0], scale: 1, stride: 1, cameras: [camera] });
    this.drawPoints(0, camera, { fixedSize: 0, relativeSize: 1, unseen: true });
    const segments = new Segments();
    segments.add([0, 0, 1], [0, 0, 0], 0, [0, 0, 2], [0, 0, 0], 0);
    this.drawLines(segments, camera, 1);
    this.scene = null;
  }

  /** Start a picture of width x height on the canvas, or of a picture beside it. */
  begin(width, height, background, beside = false) {
    const { gl } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, beside ? this.besideTarget(width, height) : null);
    gl.viewport(0, 0, width, height);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  }

  /** Draw the points of a frame. `fixedSize` in pixels, or 0: as large as their part of a surface. */
  drawPoints(frame, camera, { fixedSize, relativeSize, unseen }) {
    const { gl, scene, points } = this;
    if (!scene?.numPoints) return;
    gl.bindVertexArray(this.pointArrays);
    gl.useProgram(points.id);
    this.setCamera(points, camera);
    const m = camera.worldToCamera;
    const [x, y, z] = scene.center;
    const row = (i) => m[i] * x + m[i + 1] * y + m[i + 2] * z + m[i + 3];
    gl.uniform3f(points.u_seen_center, row(0), row(4), row(8));
    const source = scene.cameras[0];
    gl.uniform3f(points.u_source_forward, ...source.worldToCamera.slice(8, 11));
    const spacing = (relativeSize * scene.stride * camera.fx) / source.fx;
    gl.uniform1f(points.u_source_size, spacing);
    gl.uniform1f(points.u_fixed_size, fixedSize);
    gl.uniform1i(points.u_unseen, unseen ? 1 : 0);
    attribute(gl, points.a_point, this.frames[frame], gl.UNSIGNED_SHORT);
    attribute(gl, points.a_color, this.colors[Math.min(frame, scene.coloredFrames - 1)],
      gl.UNSIGNED_BYTE);
    gl.drawArrays(gl.POINTS, 0, scene.numPoints);
  }

  /** Draw Segments, each as wide as asked for. */
  drawLines(segments, camera, widthPx) {
    if (!segments.count) return;
    const { gl, lines } = this;
    gl.bindVertexArray(this.lineArrays);
    gl.useProgram(lines.id);
    this.setCamera(lines, camera);
    gl.uniform1f(lines.u_width, widthPx);
    gl.bindTexture(gl.TEXTURE_2D, this.lineTexture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, TEXELS_A_ROW, segments.numRows, 0, gl.RGBA,
      gl.FLOAT, segments.values);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.drawArrays(gl.TRIANGLES, 0, 6 * segments.count);
    gl.disable(gl.BLEND);
  }

  /** Show the picture beside the canvas in a rectangle of it (from the top left). */
  showBeside({ left, top, width, height }, canvasSize, background) {
    const { gl, target } = this;
    this.begin(canvasSize.width, canvasSize.height, background);
    gl.bindFramebuffer(gl.READ_FRAMEBUFFER, target.framebuffer);
    const bottom = canvasSize.height - top - height;
    const filter = width >= 2 * target.width ? gl.NEAREST : gl.LINEAR;
    gl.blitFramebuffer(0, 0, target.width, target.height, left, bottom, left + width,
      bottom + height, gl.COLOR_BUFFER_BIT, filter);
    gl.bindFramebuffer(gl.READ_FRAMEBUFFER, null);
  }

  /** RGBA of the picture beside the canvas, the top row first. */
  readBeside() {
    const { gl, target } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    const row = 4 * target.width;
    const pixels = new Uint8Array(row * target.height);
    gl.readPixels(0, 0, target.width, target.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    const upright = new Uint8ClampedArray(pixels.length);
    for (let y = 0; y < target.height; y++)
      upright.set(pixels.subarray(y * row, (y + 1) * row), (target.height - 1 - y) * row);
    return new ImageData(upright, target.width, target.height);
  }

  /** Wait until everything is drawn. */
  finish() {
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  /** Give all graphics memory back, at once. */
  destroy() {
    this.scene = null;
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  setCamera(where, camera) {
    const { gl, scene } = this;
    const m = camera.worldToCamera;
    gl.uniformMatrix4fv(where.u_world_to_camera, true, m);
    gl.uniform2f(where.u_focal, camera.fx, camera.fy);
    gl.uniform2f(where.u_principal, camera.cx, camera.cy);
    gl.uniform2f(where.u_size, camera.width, camera.height);
    gl.uniform1f(where.u_scale, scene.scale);
  }

  besideTarget(width, height) {
    const { gl } = this;
    if (this.target?.width === width && this.target.height === height)
      return this.target.framebuffer;
    if (this.target) {
      gl.deleteFramebuffer(this.target.framebuffer);
      gl.deleteRenderbuffer(this.target.color);
      gl.deleteRenderbuffer(this.target.depth);
    }
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    const store = (format, place) => {
      const buffer = gl.createRenderbuffer();
      gl.bindRenderbuffer(gl.RENDERBUFFER, buffer);
      gl.renderbufferStorage(gl.RENDERBUFFER, format, width, height);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, place, gl.RENDERBUFFER, buffer);
      return buffer;
    };
    const color = store(gl.RGBA8, gl.COLOR_ATTACHMENT0);
    const depth = store(gl.DEPTH_COMPONENT32F, gl.DEPTH_ATTACHMENT);
    this.target = { framebuffer, color, depth, width, height };
    return framebuffer;
  }
}

/** Four numbers a point: integers as they are, bytes from 0 to 1. */
function attribute(gl, place, buffer, kind) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(place);
  if (kind === gl.UNSIGNED_BYTE) gl.vertexAttribPointer(place, 4, kind, true, 0, 0);
  else gl.vertexAttribIPointer(place, 4, kind, 0, 0);
}

function program(gl, vertex, fragment) {
  const id = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(id, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost())
      throw new NoWebGLError(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(id);
  const places = { id };
  const uniforms = gl.getProgramParameter(id, gl.ACTIVE_UNIFORMS) ?? 0;
  for (let i = 0; i < uniforms; i++) {
    const { name } = gl.getActiveUniform(id, i);
    places[name] = gl.getUniformLocation(id, name);
  }
  const attributes = gl.getProgramParameter(id, gl.ACTIVE_ATTRIBUTES) ?? 0;
  for (let i = 0; i < attributes; i++) {
    const { name } = gl.getActiveAttrib(id, i);
    places[name] = gl.getAttribLocation(id, name);
  }
  return places;
}
