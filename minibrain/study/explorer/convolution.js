"use strict";

// Room 2: what n, k, s, p, d and output padding do, in one, two and three dimensions.
const convolution = (() => {
  const { el } = draw;
  const { convolve1, transpose1 } = rows;
  const { convolve2, transpose2, slices3 } = grids;

  const KNOBS = {
    n: ["n, input size", 1, 10],
    k: ["k, kernel size", 1, 6],
    s: ["s, stride", 1, 4],
    p: ["p, padding", 0, 5],
    d: ["d, dilation", 1, 3],
    e: ["output padding", 0, 3],
  };
  const LARGEST = { 1: { n: 10, k: 6 }, 2: { n: 8, k: 5 }, 3: { n: 6, k: 4 } };

  /** The size formula, and the same with its numbers. */
  function sizeFormula(transposed, { n, k, s, p, d, e }) {
    if (transposed) {
      const size = arithmetic.transposedSize({ n, k, s, p, d, e });
      return [
        `(n − 1)·s + d·(k − 1) + 1 − 2p + output padding`,
        `(${n} − 1)·${s} + ${d}·(${k} − 1) + 1 − 2·${p} + ${e}`,
        size,
      ];
    }
    const size = arithmetic.convSize({ n, k, s, p, d });
    return [
      `⌊(n + 2p − d·(k − 1) − 1) / s⌋ + 1`,
      `⌊(${n} + 2·${p} − ${d}·(${k} − 1) − 1) / ${s}⌋ + 1`,
      size,
    ];
  }

  function open(root) {
    const setting = { n: 7, k: 3, s: 2, p: 1, d: 1, e: 0 };
    const view = { transposed: false, rank: 1, at: 0, z: 0 };
    let timer = null;

    const stage = el("div", { class: "stage" });
    const formula = el("div", { class: "formula size", "aria-live": "polite" });
    const notes = el("div", { class: "facts" });
    const sliders = Object.fromEntries(
      Object.entries(KNOBS).map(([name, [text, min, max]]) => [
        name,
        draw.slider({
          name,
          text,
          min,
          max,
          value: setting[name],
          change: (value) => {
            setting[name] = value;
            begin();
            render();
          },
        }),
      ]),
    );
    const position = draw.slider({
      name: "position",
      text: "kernel position",
      min: 0,
      max: 1,
      value: 0,
      change: (value) => {
        stop();
        view.at = value;
        render();
      },
    });
    const depth = draw.slider({
      name: "slice",
      text: "slice of the output",
      min: 0,
      max: 1,
      value: 0,
      change: (value) => {
        view.z = value;
        render();
      },
    });
    const mode = draw.choice(
      "direction",
      { conv: "convolution", transposed: "transposed" },
      "conv",
      (value) => {
        view.transposed = value === "transposed";
        begin();
        render();
      },
    );
    const ranks = draw.choice("dimensions", { 1: "1D", 2: "2D", 3: "3D slices" }, "1", (value) => {
      view.rank = +value;
      begin();
      view.z = 0;
      limit();
      render();
    });
    const play = el(
      "button",
      { type: "button", class: "wide", onclick: () => (timer ? stop() : start()) },
      "▶ move the kernel",
    );
    const examples = {
      checkerboard: { n: 5, k: 3, s: 2, p: 0, d: 1, e: 0, transposed: true, rank: 2 },
      "the U-Net’s way up": { n: 4, k: 2, s: 2, p: 0, d: 1, e: 0, transposed: true, rank: 2 },
      "same size": { n: 7, k: 3, s: 1, p: 1, d: 1, e: 0, transposed: false, rank: 1 },
      dilated: { n: 9, k: 3, s: 1, p: 2, d: 2, e: 0, transposed: false, rank: 1 },
    };

    /** Before anything moves: a convolution at its first position, of a transposed one all kernels. */
    function begin() {
      view.at = view.transposed ? Infinity : 0;
    }

    function load({ transposed, rank, ...numbers }) {
      stop();
      Object.assign(setting, numbers);
      Object.assign(view, { transposed, rank, z: 0 });
      begin();
      limit();
      for (const name of Object.keys(KNOBS)) sliders[name].set(setting[name]);
      mode.press(transposed ? "transposed" : "conv");
      ranks.press(String(rank));
      render();
    }

    /** Fewer voxels in more dimensions: a page has only so many pixels. */
    function limit() {
      for (const [name, max] of Object.entries(LARGEST[view.rank])) {
        sliders[name].input.max = max;
        setting[name] = Math.min(setting[name], max);
        sliders[name].set(setting[name]);
      }
    }

    function start() {
      play.textContent = "❚❚ pause";
      timer = setInterval(() => {
        view.at = (view.at + 1) % (+position.input.max + 1);
        render();
      }, 650);
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶ move the kernel";
    }

    function render() {
      const { transposed, rank } = view;
      const [general, filled, size] = sizeFormula(transposed, setting);
      formula.replaceChildren(
        el("div", { class: "quiet" }, `output size = ${general}`),
        el("div", {}, `= ${filled} = `, el("b", {}, String(size).replace("-", "−"))),
      );
      sliders.e.element.hidden = !transposed;
      depth.element.hidden = rank !== 3;
      position.element.hidden = play.hidden = rank === 3;
      const why = arithmetic.obstacle(transposed, setting);
      if (why) {
        stage.replaceChildren(
          el(
            "div",
            { class: "obstacle", role: "alert" },
            el("h3", {}, "This cannot be"),
            el("p", {}, why.replaceAll(" -", " −")),
          ),
        );
        notes.replaceChildren();
        stop();
        return;
      }
      const shape = arithmetic.geometry(transposed, transposed ? setting : { ...setting, e: 0 });
      const w = facts.values(setting.k ** rank, 1, 1, 3);
      const x = facts.values(setting.n ** rank, 2, 0, 5);
      const count = arithmetic.coverage(rank, shape);
      position.input.max = shape.positions ** Math.min(rank, 2) - 1;
      depth.input.max = (transposed ? shape.field : shape.positions) - 1;
      view.at = Math.min(view.at, +position.input.max);
      view.z = Math.min(view.z, +depth.input.max);
      position.set(view.at);
      depth.set(view.z);
      const width = Math.max(280, stage.clientWidth);
      stage.replaceChildren(...(transposed ? placed : taken)(rank, shape, x, w, count, width));
      notes.replaceChildren(
        facts.adjoint(transposed, rank, shape, x, w),
        transposed ? facts.overlap(rank, shape, count) : facts.wayBack(shape, count),
      );
    }

    function taken(rank, shape, x, w, count, width) {
      const y = arithmetic.correlate(rank, shape, x, w);
      if (rank === 3) return slices3(false, shape, x, w, y, count, view.z, width);
      return (rank === 1 ? convolve1 : convolve2)(shape, x, w, y, view.at, width);
    }

    /** The kernels up to the position are there, the others still to come. */
    function placed(rank, shape, x, w, count, width) {
      if (rank === 3)
        return slices3(
          true,
          shape,
          x,
          w,
          arithmetic.spread(rank, shape, x, w),
          count,
          view.z,
          width,
        );
      const here = x.map((_, i) => +(i <= view.at));
      const y = arithmetic.spread(
        rank,
        shape,
        x.map((value, i) => value * here[i]),
        w,
      );
      const overlap = arithmetic.spread(
        rank,
        shape,
        here,
        w.map(() => 1),
      );
      return (rank === 1 ? transpose1 : transpose2)(shape, x, w, y, overlap, view.at, width);
    }

    root.append(
      el(
        "p",
        { class: "lead" },
        "A convolution lays a kernel over its input and adds up products. Its transpose does the reverse: it lays a copy of the kernel, scaled, at every voxel, and where copies overlap they add.",
      ),
      el(
        "div",
        { class: "workbench" },
        el(
          "div",
          { class: "controls" },
          mode.element,
          ranks.element,
          Object.values(sliders).map((slider) => slider.element),
          position.element,
          depth.element,
          play,
          el(
            "div",
            { class: "examples" },
            el("span", { class: "quiet" }, "try"),
            Object.entries(examples).map(([name, example]) =>
              el("button", { type: "button", onclick: () => load(example) }, name),
            ),
          ),
        ),
        el("div", {}, formula, stage, notes),
      ),
    );
    new ResizeObserver(() => stage.clientWidth && render()).observe(root);
    render();
    return {
      key(name) {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[name];
        if (name === " ") play.click();
        else if (!by) return false;
        else {
          stop();
          const last = +position.input.max;
          if (view.rank === 3) view.z = Math.min(+depth.input.max, Math.max(0, view.z + by));
          else view.at = Math.min(last, Math.max(0, view.at + by));
          render();
        }
        return true;
      },
      go: (index) => load(Object.values(examples)[index % 4]),
      repaint: render,
      leave: stop,
    };
  }

  return { open };
})();
