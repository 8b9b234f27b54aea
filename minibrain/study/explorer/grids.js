"use strict";

// Kernels where they lie in two dimensions: grids of squares.
const grids = (() => {
  const { el } = draw;

  const READABLE = 17; // pixels: numbers stand in squares that are not smaller

  /** A colour of the style sheet, as three bytes. */
  function ink(name) {
    const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  }

  const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;

  const mix = (from, to, share) => from.map((byte, i) => byte + (to[i] - byte) * share);

  /** Black or white, whichever stands out more: the contrast is 4.58 or better. */
  function legibleOn(colour) {
    const [r, g, b] = colour.map((byte) =>
      byte <= 10 ? byte / 255 / 12.92 : ((byte / 255 + 0.055) / 1.055) ** 2.4,
    );
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
  }

  function square(context, size, colours, row, column, look) {
    const { text, share, of = "forward", edge, padding } = look(row, column);
    if (!Number.isFinite(share)) throw new Error(`no number at ${row}, ${column}`);
    const inset = size > 8 ? 1 : 0.5;
    const box = [column * size + inset, row * size + inset, size - 2 * inset, size - 2 * inset];
    const { paper, rule, muted } = colours;
    const fill = padding ? mix(paper, rule, 0.35) : mix(rule, colours[of], share);
    context.fillStyle = css(fill);
    context.fillRect(...box);
    if (edge) {
      context.strokeStyle = css(colours[edge]);
      context.lineWidth = 2;
      context.strokeRect(box[0] + 0.5, box[1] + 0.5, box[2] - 1, box[3] - 1);
    }
    if (size >= READABLE && text !== undefined) {
      context.fillStyle = padding ? css(muted) : legibleOn(fill);
      context.fillText(text, (column + 0.5) * size, (row + 0.54) * size);
    }
  }

  /** A square of values; `look` gives each cell {text, share, of, edge, padding}. */
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
    const names = ["forward", "backward", "ink", "rule", "muted", "paper"];
    const colours = Object.fromEntries(names.map((name) => [name, ink(name)]));
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        square(context, size, colours, row, column, look);
      }
    }
    return canvas;
  }

  const frame = (caption, ...content) =>
    el("figure", { class: "grid" }, ...content, el("figcaption", {}, caption));

  const squareSize = (side, width, most) => Math.max(3, Math.min(most, Math.floor(width / side)));

  /** Is this voxel under a tap of the kernel with its first tap at the corner? */
  const isUnder = ({ k, d }, corner, voxel) =>
    voxel.every((place, axis) => {
      const step = place - corner[axis];
      return step >= 0 && step % d === 0 && step / d < k;
    });

  /** One plane of the input with its padding, and the kernel over it where there is one. */
  function inputPlane(shape, values, corner, size, label) {
    const { n, p } = shape;
    return grid(n + 2 * p, size, label, (row, column) => {
      const inside = row >= p && row < n + p && column >= p && column < n + p;
      const value = inside ? values[(row - p) * n + column - p] : 0;
      return {
        text: value,
        share: 0.1 + value / 12,
        padding: !inside,
        edge: corner && isUnder(shape, corner, [row, column]) ? "backward" : null,
      };
    });
  }

  /** A plane of numbers, none below 0; `now` is the one with a frame. */
  function plane(side, size, label, values, { now = -1, of = "forward" } = {}) {
    const most = Math.max(1, ...values);
    return grid(side, size, label, (row, column) => {
      const i = row * side + column;
      const edge = i === now ? "backward" : null;
      return { text: values[i], share: 0.06 + 0.74 * (values[i] / most), of, edge };
    });
  }

  const kernelPlane = (k, w, size) =>
    frame("w", plane(k, Math.min(size, 26), "kernel", w, { of: "backward" }));

  function convolve2(shape, x, w, y, at, width) {
    const { n, k, s, p, d, positions } = shape;
    const place = [Math.floor(at / positions), at % positions];
    const corner = place.map((i) => i * s);
    const half = width > 640 ? (width - 32 - k * 26) / 2 : width;
    const products = w.map((weight, tap) => {
      const [row, column] = [Math.floor(tap / k), tap % k].map((t, i) => corner[i] + d * t - p);
      const inside = row >= 0 && row < n && column >= 0 && column < n;
      return `${weight}·${inside ? x[row * n + column] : 0}`;
    });
    return [
      el(
        "div",
        { class: "grids" },
        frame(
          "x with its padding, the kernel outlined",
          inputPlane(shape, x, corner, squareSize(n + 2 * p, half, 30), "input"),
        ),
        kernelPlane(k, w, 26),
        frame("y", plane(positions, squareSize(positions, half, 30), "output", y, { now: at })),
      ),
      el("p", { class: "working" }, `y[${place.join(", ")}] = ${products.join(" + ")} = ${y[at]}`),
    ];
  }

  function transpose2(shape, x, w, y, count, at, width) {
    const { n, k, s, p, field } = shape;
    const wide = width > 640;
    const small = squareSize(n, wide ? 140 : 200, 24);
    const left = Math.max(n * small, k * Math.min(small, 26));
    const size = squareSize(field, wide ? (width - left - 64) / 2 : width, 26);
    const place = [Math.floor(at / n), at % n];
    const corner = place.map((i) => i * s - p);
    const most = Math.max(1, ...count);
    const overlap = grid(field, size, "overlap", (row, column) => {
      const value = count[row * field + column];
      const edge = isUnder(shape, corner, [row, column]) ? "ink" : null;
      return { text: value, share: 0.06 + 0.74 * (value / most), of: "backward", edge };
    });
    return [
      el(
        "div",
        { class: "grids" },
        el(
          "div",
          { class: "stacked" },
          frame("x", plane(n, small, "input", x, { now: at })),
          kernelPlane(k, w, small),
        ),
        frame("how many kernels overlap", overlap),
        frame("y, their sum", plane(field, size, "output", y)),
      ),
      el(
        "p",
        { class: "working" },
        `x[${place.join(", ")}] = ${x[at]} places ${x[at]} · w where the outline is`,
      ),
    ];
  }

  return { frame, squareSize, inputPlane, plane, convolve2, transpose2 };
})();
