// Steps back and forth through the states of a document.

const LIMIT = 200;

export class EditHistory {
  constructor() {
    this.clear();
  }

  clear() {
    this.past = [];
    this.future = [];
    this.group = null;
  }

  /** Keep the state before an edit. Edits of one group in a row, such as a drag, are one step. */
  record(state, group = null) {
    if (group === null || group !== this.group) this.past.push(state);
    if (this.past.length > LIMIT) this.past.shift();
    this.group = group;
    this.future = [];
  }

  /** The next edit starts a step, whatever its group. */
  endGroup() {
    this.group = null;
  }

  /** The state before the last step, given the present one; null if there is none. */
  undo(now) {
    return this.step(this.past, this.future, now);
  }

  /** The state that was left by `undo`; null if there is none. */
  redo(now) {
    return this.step(this.future, this.past, now);
  }

  step(from, to, now) {
    if (!from.length) return null;
    this.group = null;
    to.push(now);
    return from.pop();
  }
}
