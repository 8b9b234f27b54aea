"use strict";

// Kernels where they lie in one dimension: rows of cells.
const rows = (() => {
  const { el, svg } = draw;

  const READABLE = 14; // pixels: cells that are narrower show colours, but no numbers

  /** Cells as wide as fit, and high enough for the names beside them; `place(i)` is where one is. */
  function ruler(columns, width, indent) {
    const size = Math.min(46, (width - indent - 4) / columns);
    const place = (i) => indent + i * size;
    return { size, height: Math.max(size, 18), place, total: place(columns) + 4 };
  }

  function cell({ size, height, place }, column, y, value, kind, title) {
    const x = place(column);
    const inset = size > 8 ? 1 : 0.5;
    return svg(
      "g",
      { class: `cell ${kind}` },
      title ? svg("title", {}, title) : null,
      svg("rect", {
        ...{ x: x + inset, y: y + 1, width: size - 2 * inset, height: height - 2 },
        rx: Math.min(2, size / 4),
      }),
      value === null || size < READABLE
        ? null
        : svg("text", { x: x + size / 2, y: y + height / 2 }, String(value).replace("-", "−")),
    );
  }

  const rowName = ({ height }, y, text) =>
    svg("text", { x: 0, y: y + height / 2, class: "name" }, text);

  const picture = ({ total, size }, height, ...children) =>
    svg(
      "svg",
      {
        ...{ width: total, height, viewBox: `0 0 ${total} ${height}` },
        style: `--text: ${Math.min(13, 0.64 * size)}px`,
      },
      children,
    );

  const working = (...text) =>
    el(
      "p",
      { class: "working" },
      text.map((part) => part.replaceAll("-", "−")),
    );

  /** Input with padding, the kernel where it lies, and the output under the kernel's middle. */
  function convolve1(shape, x, w, y, at, width) {
    const { n, k, s, p, d, positions } = shape;
    const scale = ruler(n + 2 * p, width, 30);
    const { size, height, place } = scale;
    const top = { x: 8, w: 8 + 1.35 * height, y: 8 + 3.1 * height };
    const taps = Array.from({ length: k }, (_, tap) => s * at + d * tap);
    const value = (i) => (i >= p && i < n + p ? x[i - p] : 0);
    const middle = (arithmetic.extent(k, d) - 1) / 2;
    const centre = (i) => place(i) + size / 2;
    const inputs = Array.from({ length: n + 2 * p }, (_, i) => {
      const kind = i >= p && i < n + p ? "value" : "padding";
      return cell(scale, i, top.x, value(i), taps.includes(i) ? `${kind} seen` : kind);
    });
    const kernel = taps.map((i, tap) => cell(scale, i, top.w, w[tap], "kernel"));
    const outputs = Array.from({ length: positions }, (_, i) => {
      const kind = i === at ? "result now" : "result";
      return cell(scale, s * i + middle, top.y, i <= at ? y[i] : null, kind);
    });
    const [from, to] = [top.w + height, top.y];
    const rays = taps.map((i) =>
      svg("path", { class: "ray", d: `M${centre(i)},${from}L${centre(s * at + middle)},${to}` }),
    );
    const names = ["x", "w", "y"].map((name) => rowName(scale, top[name], name));
    const products = taps.map((i, tap) => `${w[tap]}·${value(i)}`);
    return [
      picture(scale, top.y + height + 8, rays, names, inputs, kernel, outputs),
      working(`y[${at}] = ${products.join(" + ")} = ${y[at]}`),
    ];
  }

  /** The kernel that one voxel of x places, in a row of its own. */
  function placedKernel(scale, shape, x, w, r, at, top, isKept) {
    const { k, s, d } = shape;
    const kind = r === at ? "kernel now" : r < at ? "kernel" : "kernel later";
    const cells = Array.from({ length: k }, (_, tap) => {
      const i = s * r + d * tap;
      const title = `w[${tap}]·x[${r}]`;
      return cell(scale, i, top, w[tap] * x[r], isKept(i) ? kind : `${kind} cut`, title);
    });
    return [cells, rowName(scale, top, `${x[r]} · w`)];
  }

  /** How many kernels lie on column i of y, and what they add up to. */
  function sumOf(scale, shape, i, y, count, top, isKept) {
    const { n, k, s, p, d } = shape;
    const below = top + 1.15 * scale.height;
    if (!isKept(i)) {
      const empty = cell(scale, i, below, null, "padding", "cut off by p");
      return [cell(scale, i, top, null, "padding"), empty];
    }
    const overlap = cell(scale, i, top, count[i - p], "count", `kernels: ${count[i - p]}`);
    overlap.style.setProperty("--share", count[i - p] / Math.max(1, ...count));
    const isExtra = i >= (n - 1) * s + arithmetic.extent(k, d); // there by output padding
    return [overlap, cell(scale, i, below, y[i - p], isExtra ? "result extra" : "result")];
  }

  /** A row for each placed kernel, then how many overlap and what they add up to. */
  function transpose1(shape, x, w, y, count, at, width) {
    const { n, k, s, p, d, e, field } = shape;
    const full = field + 2 * p; // output padding included: it comes after the last kernel
    const scale = ruler(full, width, 68);
    const { height } = scale;
    const isKept = (i) => i >= p && i < full - p;
    const top = (r) => 8 + 0.92 * r * height;
    const below = top(n) + 0.45 * height;
    const kernels = x.map((_, r) => placedKernel(scale, shape, x, w, r, at, top(r), isKept));
    const sums = Array.from({ length: full }, (_, i) =>
      sumOf(scale, shape, i, y, count, below, isKept),
    );
    const names = [
      rowName(scale, below, "overlap"),
      rowName(scale, below + 1.15 * height, "y = sum"),
    ];
    const last = k > 1 ? ` to y[${s * at + d * (k - 1) - p}]` : "";
    return [
      picture(scale, below + 2.3 * height, kernels, sums, names),
      working(
        `x[${at}] = ${x[at]} places ${x[at]} · w from y[${s * at - p}]${last}`,
        p ? "; dashed cells are cut off by p" : "",
        e ? `; the last ${e} come from output padding` : "",
      ),
    ];
  }

  return { convolve1, transpose1 };
})();
