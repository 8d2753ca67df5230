// Lines to be drawn: segments between two places, each with a color at both ends.

export const SEGMENTS_A_ROW = 256; // of the texture that they are drawn from
const NUMBERS = 16; // start x y z 0, its r g b a, end x y z 0, its r g b a

/** A list of segments that grows. */
export class Segments {
  count = 0;
  values = new Float32Array(NUMBERS * SEGMENTS_A_ROW);

  /** Rows of the texture; `values` fills them. */
  get numRows() {
    return this.values.length / (NUMBERS * SEGMENTS_A_ROW);
  }

  /** From a place and rgb, alpha there to a place and rgb, alpha there. */
  add(start, startColor, startAlpha, end, endColor, endAlpha) {
    if (this.count * NUMBERS === this.values.length) this.grow();
    const { values } = this;
    const at = NUMBERS * this.count++;
    for (let i = 0; i < 3; i++) {
      values[at + i] = start[i];
      values[at + 4 + i] = startColor[i];
      values[at + 8 + i] = end[i];
      values[at + 12 + i] = endColor[i];
    }
    values[at + 7] = startAlpha;
    values[at + 15] = endAlpha;
  }

  grow() {
    const larger = new Float32Array(2 * this.values.length);
    larger.set(this.values);
    this.values = larger;
  }
}
