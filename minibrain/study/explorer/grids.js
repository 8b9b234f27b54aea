"use strict";

// Kernels where they lie in two dimensions, and in the slices of three: grids of squares.
const grids = (() => {
  const { el } = draw;

  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** A square of values; `look` gives each cell {text, share, of, edge}. */
  function grid(side, size, label, look) {
    const scale = window.devicePixelRatio || 1;
    const canvas = el("canvas", {
      width: side * size * scale,
      height: side * size * scale,
      role: "img",
      "aria-label": label,
      style: `width: ${side * size}px; height: ${side * size}px`,
    });
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `${Math.min(12, size * 0.5)}px ui-sans-serif, system-ui, sans-serif`;
    const colours = {
      forward: ink("--forward"),
      backward: ink("--backward"),
      ink: ink("--ink"),
      rule: ink("--rule"),
      muted: ink("--muted"),
    };
    const inset = size > 8 ? 1 : 0.5;
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const { text, share, of = "forward", edge, padding } = look(row, column);
        if (!Number.isFinite(share)) throw new Error(`no number at ${row}, ${column}`);
        const box = [column * size + inset, row * size + inset, size - 2 * inset, size - 2 * inset];
        context.globalAlpha = padding ? 0.35 : 1;
        context.fillStyle = colours.rule;
        context.fillRect(...box);
        context.globalAlpha = Math.min(1, share);
        context.fillStyle = colours[of];
        context.fillRect(...box);
        context.globalAlpha = 1;
        if (edge) {
          context.strokeStyle = colours[edge];
          context.lineWidth = 2;
          context.strokeRect(box[0] + 0.5, box[1] + 0.5, box[2] - 1, box[3] - 1);
        }
        if (size >= 17 && text !== undefined) {
          context.fillStyle = padding ? colours.muted : colours.ink;
          context.fillText(
            String(text).replace("-", "−"),
            (column + 0.5) * size,
            (row + 0.54) * size,
          );
        }
      }
    }
    return canvas;
  }

  const frame = (caption, ...content) =>
    el("figure", { class: "grid" }, ...content, el("figcaption", {}, caption));

  const squareSize = (side, width, most) => Math.max(3, Math.min(most, Math.floor(width / side)));

  /** One plane of the input with its padding, and the kernel over it where there is one. */
  function inputPlane(shape, plane, corner, size, label) {
    const { n, k, p, d } = shape;
    return grid(n + 2 * p, size, label, (row, column) => {
      const inside = row >= p && row < n + p && column >= p && column < n + p;
      const value = inside ? plane[(row - p) * n + column - p] : 0;
      const [down, over] = corner ? [row - corner[0], column - corner[1]] : [-1, -1];
      const seen =
        down >= 0 && over >= 0 && down % d === 0 && over % d === 0 && down / d < k && over / d < k;
      return {
        text: value,
        share: inside ? 0.1 + value / 12 : 0,
        padding: !inside,
        edge: seen ? "backward" : null,
      };
    });
  }

  function plane(side, size, label, data, { now = -1, of = "forward", text = true } = {}) {
    const most = Math.max(1, ...data.map(Math.abs));
    return grid(side, size, label, (row, column) => {
      const i = row * side + column;
      return {
        text: text ? data[i] : undefined,
        share: 0.06 + 0.74 * (Math.abs(data[i]) / most),
        of,
        edge: i === now ? "backward" : null,
      };
    });
  }

  function convolve2(shape, x, w, y, at, width) {
    const { n, s, p, positions } = shape;
    const corner = [Math.floor(at / positions) * s, (at % positions) * s];
    const half = width > 640 ? width / 2 - 20 : width;
    return [
      el(
        "div",
        { class: "grids" },
        frame(
          "x with its padding, the kernel outlined",
          inputPlane(shape, x, corner, squareSize(n + 2 * p, half, 30), "input"),
        ),
        frame("y", plane(positions, squareSize(positions, half, 30), "output", y, { now: at })),
      ),
      el(
        "p",
        { class: "working" },
        `y[${Math.floor(at / positions)}, ${at % positions}] = ${y[at]}`.replaceAll("-", "−"),
      ),
    ];
  }

  function transpose2(shape, x, w, y, count, at, width) {
    const { n, k, s, p, d, field } = shape;
    const wide = width > 640;
    const small = squareSize(n, wide ? 140 : 200, 24);
    const size = squareSize(field, wide ? (width - n * small - 64) / 2 : width, 26);
    const corner = [Math.floor(at / n) * s - p, (at % n) * s - p];
    const under = (row, column) =>
      [row - corner[0], column - corner[1]].every(
        (step) => step >= 0 && step % d === 0 && step / d < k,
      );
    const most = Math.max(1, ...count);
    const overlap = grid(field, size, "overlap", (row, column) => {
      const value = count[row * field + column];
      return {
        text: value,
        share: 0.06 + 0.74 * (value / most),
        of: "backward",
        edge: under(row, column) ? "ink" : null,
      };
    });
    return [
      el(
        "div",
        { class: "grids" },
        frame("x", plane(n, small, "input", x, { now: at })),
        frame("how many kernels overlap", overlap),
        frame("y, their sum", plane(field, size, "output", y)),
      ),
      el(
        "p",
        { class: "working" },
        `x[${Math.floor(at / n)}, ${at % n}] = ${x[at]} places its kernel where the outline is`,
      ),
    ];
  }

  /** Slices of volumes: which input slices a slice of the output is made of. */
  function slices3(transposed, shape, x, w, y, count, z, width) {
    const { n, s, p, d, k, positions, field } = shape;
    const side = transposed ? n : n + 2 * p;
    const small = squareSize(side, width / (width > 640 ? n : Math.min(n, 3)) - 18, 16);
    const square = (data, edge, i) => data.slice(i * edge ** 2, (i + 1) * edge ** 2);
    const touches = Array.from({ length: n }, (_, i) => {
      const step = transposed ? z + p - s * i : i + p - s * z;
      return step >= 0 && step % d === 0 && step / d < k;
    });
    const inputs = touches.map((touched, i) => {
      const drawn = transposed
        ? plane(n, small, `input slice ${i}`, square(x, n, i), { text: small >= 17 })
        : inputPlane(shape, square(x, n, i), touched ? [0, 0] : null, small, `input slice ${i}`);
      return el(
        "figure",
        { class: touched ? "grid" : "grid faint" },
        drawn,
        el("figcaption", {}, `z = ${i}`),
      );
    });
    const edge = transposed ? field : positions;
    const half = width > 640 ? width / 2 - 20 : width;
    const size = squareSize(edge, half, 28);
    const list = touches.flatMap((touched, i) => (touched ? [i] : []));
    const origin = list.length
      ? `slice${list.length > 1 ? "s" : ""} ${list.join(", ")} of x`
      : "padding alone";
    return [
      el("p", { class: "working" }, `Slice ${z} of y is made of ${origin}.`),
      el("div", { class: "grids small" }, inputs),
      el(
        "div",
        { class: "grids" },
        transposed
          ? frame(
              `how many kernels overlap, slice ${z}`,
              plane(edge, size, "overlap", square(count, edge, z), { of: "backward" }),
            )
          : null,
        frame(`y, slice ${z}`, plane(edge, size, "output", square(y, edge, z))),
      ),
    ];
  }

  return { convolve2, transpose2, slices3 };
})();
