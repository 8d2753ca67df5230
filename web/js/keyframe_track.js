// The keyframes as marks on a line below the slider of frames.

import { make } from "./panel_parts.js";
import { text } from "./texts.js";

const CLICK_PX = 3; // a pointer that moves less has not dragged

export class KeyframeTrack {
  /**
   * `on` has select(index), goTo(index), addAt(time), seek(time), and move(index, time), which
   * answers where the keyframe is now, and endMove().
   */
  constructor(on) {
    this.on = on;
    this.marks = [];
    const words = text("editor.track");
    this.playhead = make("span", {}, { "data-name": "playhead" });
    this.element = make(
      "div", { role: "group", title: words, ariaLabel: words }, { "data-name": "track" }, [this.playhead],
    );
    this.element.onclick = (event) => this.press(event, on.seek);
    this.element.ondblclick = (event) => this.press(event, on.addAt);
  }

  /** Show {keyframes, selected, time, numFrames, numShown, isRight}; see KeyframeControls.show. */
  show(state) {
    this.shown = state;
    const { keyframes, selected, numFrames, numShown, isRight } = state;
    while (this.marks.length > keyframes.length) this.marks.pop().remove();
    while (this.marks.length < keyframes.length) {
      const mark = this.makeMark(this.marks.length);
      this.marks.push(mark);
      this.element.append(mark);
    }
    // The slider goes over all frames of a scene; a shorter path has its keyframes in its part.
    this.share = numShown > 1 ? Math.max(numFrames - 1, 1) / (numShown - 1) : 1;
    this.showTime(state.time);
    const frames = Math.max(numShown - 1, 1);
    this.element.style.setProperty("--more4d-step", `${100 / frames}%`);
    this.element.classList.toggle("more4d-ticks", frames <= 120);
    keyframes.forEach(({ time }, i) => {
      const frame = Number((time * (numFrames - 1) + 1).toFixed(2));
      const values = { number: i + 1, count: keyframes.length, frame, time: Number(time.toFixed(3)) };
      const mark = this.marks[i];
      mark.style.left = `${100 * time * this.share}%`;
      mark.disabled = !isRight;
      mark.tabIndex = i === selected ? 0 : -1; // Tab goes to the selected one; arrows further
      mark.title = text("editor.keyframe", values);
      mark.ariaLabel = mark.title;
      mark.ariaPressed = `${i === selected}`;
    });
  }

  /** Put the playhead at a time of the path. */
  showTime(time) {
    this.playhead.style.left = `${100 * time * this.share}%`;
  }

  makeMark(index) {
    const mark = make("button", { type: "button" }, { "data-name": "mark" });
    mark.onclick = () => this.on.select(index);
    mark.ondblclick = () => this.on.goTo(index);
    mark.onkeydown = (event) => this.key(event, index);
    mark.onpointerdown = (event) => {
      if (event.button) return;
      mark.setPointerCapture(event.pointerId);
      this.dragged = { from: event.clientX, index, moved: false };
    };
    mark.onpointermove = (event) => this.drag(event);
    mark.onpointerup = () => {
      if (this.dragged?.moved) this.on.endMove();
      this.dragged = null;
    };
    mark.onpointercancel = mark.onpointerup;
    return mark;
  }

  /** The time under a pointer, at a whole frame. */
  timeAt(event) {
    const { left, width } = this.element.getBoundingClientRect();
    const steps = Math.max(this.shown.numFrames - 1, 1);
    const frame = Math.round(((event.clientX - left) / width / this.share) * steps);
    return Math.min(Math.max(frame / steps, 0), 1);
  }

  press(event, then) {
    if (event.target === this.element && this.shown.isRight) then(this.timeAt(event));
  }

  drag(event) {
    const { dragged } = this;
    if (!dragged) return;
    dragged.moved ||= Math.abs(event.clientX - dragged.from) > CLICK_PX;
    if (!dragged.moved) return;
    // Past a neighbour the order changes, and the pointer goes on with the same keyframe.
    dragged.index = this.on.move(dragged.index, this.timeAt(event));
  }

  key(event, index) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = { ArrowUp: index - 1, ArrowDown: index + 1, Home: 0, End: this.marks.length - 1 };
    if (step) {
      const { keyframes, numFrames } = this.shown;
      this.on.move(index, keyframes[index].time + step / Math.max(numFrames - 1, 1));
      this.focus();
    } else if (event.key in next) {
      const chosen = Math.min(Math.max(next[event.key], 0), this.marks.length - 1);
      this.on.select(chosen);
      this.focus();
    } else if (event.key === "Enter") this.on.goTo(index);
    else return;
    event.preventDefault();
  }

  get hasFocus() { return this.element.contains(document.activeElement); }

  /** Put the keyboard on the selected keyframe. */
  focus() { this.marks[this.shown.selected].focus(); }
}
