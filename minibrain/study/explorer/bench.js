"use strict";

// The controls of room 2: they change the state they are given and say so.
const bench = (() => {
  const { el } = draw;

  const KNOBS = {
    n: ["n, input size", 1, 10],
    k: ["k, kernel size", 1, 6],
    s: ["s, stride", 1, 4],
    p: ["p, padding", 0, 5],
    d: ["d, dilation", 1, 3],
    e: ["output padding", 0, 3],
  };
  // Fewer voxels in more dimensions: a page has only so many pixels
  const LARGEST = { 1: { n: 10, k: 6 }, 2: { n: 8, k: 5 }, 3: { n: 6, k: 4 } };

  const EXAMPLES = {
    checkerboard: { n: 5, k: 3, s: 2, p: 0, d: 1, e: 0, transposed: true, rank: 2 },
    "the U-Net’s way up": { n: 4, k: 2, s: 2, p: 0, d: 1, e: 0, transposed: true, rank: 2 },
    "same size": { n: 7, k: 3, s: 1, p: 1, d: 1, e: 0, transposed: false, rank: 1 },
    dilated: { n: 9, k: 3, s: 1, p: 2, d: 2, e: 0, transposed: false, rank: 1 },
  };

  /** Where things begin: a convolution at its first position, a transposed one with all its kernels
   *  laid, and in 3D a slice that kernels of more than one slice reach. */
  function beginning({ transposed, rank }) {
    if (rank === 3) return 2;
    return transposed ? Infinity : 0;
  }

  /** state is {n, k, s, p, d, e, transposed, rank, at}; changed() is called after every change. */
  function make(state, changed) {
    const knobs = Object.entries(KNOBS).map(([name, [text, min, max]]) => {
      const change = (value) => begin({ [name]: value });
      return [name, controls.slider({ name, text, min, max, value: state[name], change })];
    });
    const sliders = Object.fromEntries(knobs);
    const position = controls.slider({
      ...{ name: "position", text: "position", min: 0, max: 1, value: 0 },
      change: (value) => go(value),
    });
    const play = controls.player({
      interval: 650,
      step: () => change({ at: (state.at + 1) % (+position.input.max + 1) }),
      wide: true,
    });
    const modes = { conv: "convolution", transposed: "transposed" };
    const mode = controls.choice("direction", modes, "conv", (value) =>
      begin({ transposed: value === "transposed" }),
    );
    const dimensions = { 1: "1D", 2: "2D", 3: "3D slices" };
    const ranks = controls.choice("dimensions", dimensions, "1", (value) =>
      begin({ rank: +value }),
    );

    function change(values) {
      Object.assign(state, values);
      changed();
    }

    function go(at) {
      play.stop();
      change({ at: Math.min(+position.input.max, Math.max(0, at)) });
    }

    function begin(values) {
      Object.assign(state, values);
      for (const [name, max] of Object.entries(LARGEST[state.rank])) {
        sliders[name].input.max = max;
        state[name] = Math.min(state[name], max);
      }
      for (const [name, slider] of knobs) slider.set(state[name]);
      mode.press(state.transposed ? "transposed" : "conv");
      ranks.press(String(state.rank));
      sliders.e.element.hidden = !state.transposed;
      change({ at: beginning(state) });
    }

    /** There are positions up to this one; null where the setting has none. */
    function limit(last) {
      if (last === null) return play.stop();
      state.at = Math.min(state.at, last);
      position.input.max = last;
      position.set(state.at);
      position.rename(state.rank === 3 ? "slice of the output" : "kernel position");
    }

    function load(example) {
      play.stop();
      begin(example);
    }

    function key(name) {
      const target = { ArrowRight: state.at + 1, ArrowLeft: state.at - 1, Home: 0, End: Infinity };
      if (name === " ") play.button.click();
      else if (name in target) go(target[name]);
      else return false;
      return true;
    }

    const examples = Object.entries(EXAMPLES).map(([name, example]) =>
      el("button", { type: "button", onclick: () => load(example) }, name),
    );
    const element = el(
      "div",
      { class: "controls" },
      mode.element,
      ranks.element,
      knobs.map(([, slider]) => slider.element),
      position.element,
      play.button,
      el("div", { class: "examples" }, el("span", { class: "quiet" }, "try"), examples),
    );
    const start = () => begin({});
    const example = (index) => load(Object.values(EXAMPLES)[index % 4]);
    return { element, start, limit, key, example, stop: play.stop };
  }

  return { make };
})();
