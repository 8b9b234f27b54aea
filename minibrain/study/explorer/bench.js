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

  /** A slider a number; `fit` moves them to the state, within what its rank allows. */
  function makeKnobs(state, begin) {
    const knobs = Object.entries(KNOBS).map(([name, [text, min, max]]) => {
      const change = (value) => begin({ [name]: value });
      return [name, controls.slider({ name, text, min, max, value: state[name], change })];
    });
    function fit() {
      for (const [name, { input, set, element }] of knobs) {
        input.max = LARGEST[state.rank][name] ?? KNOBS[name][2];
        state[name] = Math.min(state[name], input.max);
        set(state[name]);
        element.hidden = name === "e" && !state.transposed;
      }
    }
    return { elements: knobs.map(([, slider]) => slider.element), fit };
  }

  function makeSwitches(state, begin) {
    const modes = { conv: "convolution", transposed: "transposed" };
    const mode = controls.choice("direction", modes, "conv", (value) =>
      begin({ transposed: value === "transposed" }),
    );
    const dimensions = { 1: "1D", 2: "2D", 3: "3D slices" };
    const rank = controls.choice("dimensions", dimensions, "1", (value) => begin({ rank: +value }));
    function fit() {
      mode.press(state.transposed ? "transposed" : "conv");
      rank.press(String(state.rank));
    }
    return { elements: [mode.element, rank.element], fit };
  }

  function makeExamples(load) {
    const buttons = Object.entries(EXAMPLES).map(([name, example]) =>
      el("button", { type: "button", onclick: () => load(example) }, name),
    );
    return el("div", { class: "examples" }, el("span", { class: "quiet" }, "try"), buttons);
  }

  /** state is {n, k, s, p, d, e, transposed, rank, at}; changed() is called after every change. */
  function make(state, changed) {
    const knobs = makeKnobs(state, begin);
    const switches = makeSwitches(state, begin);
    const position = controls.slider({
      ...{ name: "position", text: "position", min: 0, max: 1, value: 0 },
      change: go,
    });
    const last = () => +position.input.max;
    const step = () => change({ at: (state.at + 1) % (last() + 1) });
    const play = controls.player({ interval: 650, step, wide: true });

    function change(values) {
      Object.assign(state, values);
      changed();
    }

    function go(at) {
      play.stop();
      change({ at: Math.min(last(), Math.max(0, at)) });
    }

    function begin(values) {
      Object.assign(state, values);
      knobs.fit();
      switches.fit();
      change({ at: beginning(state) });
    }

    function load(example) {
      play.stop();
      begin(example);
    }

    /** There are positions up to this one; null where the setting has none. */
    function limit(end) {
      if (end === null) return play.stop();
      position.input.max = end;
      state.at = Math.min(state.at, end);
      position.set(state.at);
      position.rename(state.rank === 3 ? "slice of the output" : "kernel position");
    }

    function key(name) {
      const target = { ArrowRight: state.at + 1, ArrowLeft: state.at - 1, Home: 0, End: Infinity };
      if (name === " ") play.button.click();
      else if (name in target) go(target[name]);
      else return false;
      return true;
    }

    const parts = [switches.elements, knobs.elements, position.element, play.button];
    const element = el("div", { class: "controls" }, parts, makeExamples(load));
    const example = (index) => load(Object.values(EXAMPLES)[index % 4]);
    return { element, start: () => begin({}), limit, key, example, stop: play.stop };
  }

  return { make };
})();
