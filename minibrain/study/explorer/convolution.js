"use strict";

// Room 2: what n, k, s, p, d and output padding do, in one, two and three dimensions.
const convolution = (() => {
  const { el } = draw;

  /** The size formula, the same with its numbers, and the size. */
  function sizeFormula(transposed, { n, k, s, p, d, e }) {
    if (transposed) {
      return [
        "(n − 1)·s + d·(k − 1) + 1 − 2p + output padding",
        `(${n} − 1)·${s} + ${d}·(${k} − 1) + 1 − 2·${p} + ${e}`,
        arithmetic.transposedSize({ n, k, s, p, d, e }),
      ];
    }
    return [
      "⌊(n + 2p − d·(k − 1) − 1) / s⌋ + 1",
      `⌊(${n} + 2·${p} − ${d}·(${k} − 1) − 1) / ${s}⌋ + 1`,
      arithmetic.convSize({ n, k, s, p, d }),
    ];
  }

  function sizeLines(state) {
    const [general, filled, size] = sizeFormula(state.transposed, state);
    return [
      el("div", { class: "quiet" }, `output size = ${general}`),
      el("div", {}, `= ${filled} = `, el("b", {}, String(size).replace("-", "−"))),
    ];
  }

  const refusal = (why) =>
    el(
      "div",
      { class: "obstacle", role: "alert" },
      el("h3", {}, "This cannot be"),
      el("p", {}, why.replaceAll(" -", " −")),
    );

  /** The kernel at one position, or the slices that one slice of the output is made of. */
  function taken(rank, shape, x, w, at, width) {
    const y = arithmetic.correlate(rank, shape, x, w);
    if (rank === 3) return slices.convolve3(shape, x, w, y, at, width);
    return (rank === 1 ? rows.convolve1 : grids.convolve2)(shape, x, w, y, at, width);
  }

  /** The kernels up to the position are there, the others still to come; in 3D all of them. */
  function placed(rank, shape, x, w, at, width) {
    const here = x.map((_, i) => +(rank === 3 || i <= at));
    const seen = x.map((value, i) => value * here[i]);
    const ones = w.map(() => 1);
    const y = arithmetic.spread(rank, shape, seen, w);
    const overlap = arithmetic.spread(rank, shape, here, ones);
    const drawing = [rows.transpose1, grids.transpose2, slices.transpose3][rank - 1];
    return drawing(shape, x, w, y, overlap, at, width);
  }

  function open(root) {
    const state = { n: 7, k: 3, s: 2, p: 1, d: 1, e: 0, transposed: false, rank: 1, at: 0 };
    const stage = el("div", { class: "stage" });
    const formula = el("div", { class: "formula size", "aria-live": "polite" });
    const notes = el("div", { class: "facts" });
    const desk = bench.make(state, render);

    function render() {
      const { transposed, rank } = state;
      formula.replaceChildren(...sizeLines(state));
      const why = arithmetic.obstacle(transposed, state);
      if (why) {
        stage.replaceChildren(refusal(why));
        notes.replaceChildren();
        return desk.limit(null);
      }
      const shape = arithmetic.geometry(transposed, state);
      const output = transposed ? shape.field : shape.positions;
      desk.limit(rank === 3 ? output - 1 : shape.positions ** rank - 1);
      const w = facts.values(state.k ** rank, 1, 1, 3);
      const x = facts.values(state.n ** rank, 2, 0, 5);
      const width = Math.max(280, stage.clientWidth);
      stage.replaceChildren(...(transposed ? placed : taken)(rank, shape, x, w, state.at, width));
      const count = arithmetic.coverage(rank, shape);
      notes.replaceChildren(
        facts.adjoint(transposed, rank, shape, x, w),
        transposed ? facts.overlap(rank, shape, count) : facts.wayBack(shape, count),
      );
    }

    root.append(
      el(
        "p",
        { class: "lead" },
        "A convolution lays a kernel over its input and adds up products. Its transpose does the reverse: it lays a copy of the kernel, scaled, at every voxel, and where copies overlap they add.",
      ),
      el("div", { class: "workbench" }, desk.element, el("div", {}, formula, stage, notes)),
    );
    new ResizeObserver(() => stage.clientWidth && render()).observe(root);
    desk.start();
    return { key: desk.key, go: desk.example, repaint: render, leave: desk.stop };
  }

  return { open };
})();
