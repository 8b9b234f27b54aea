"use strict";

// Kernels where they lie in one dimension: rows of cells.
const rows = (() => {
  const { el, svg } = draw;

  function cell(x, y, size, value, kind, title) {
    return svg(
      "g",
      { class: `cell ${kind}` },
      title ? svg("title", {}, title) : null,
      svg("rect", { x: x + 1, y: y + 1, width: size - 2, height: size - 2, rx: 2 }),
      value === null
        ? null
        : svg("text", { x: x + size / 2, y: y + size / 2 }, String(value).replace("-", "−")),
    );
  }

  const rowName = (y, size, text) => svg("text", { x: 0, y: y + size / 2, class: "name" }, text);

  function cellSize(columns, width, indent) {
    return Math.max(18, Math.min(38, (width - indent - 4) / columns));
  }

  /** Input with padding, the kernel where it lies, and the output under the kernel's first tap. */
  function convolve1(shape, x, w, y, at, width) {
    const { n, k, s, p, d, positions } = shape;
    const indent = 58;
    const size = cellSize(n + 2 * p, width, indent);
    const place = (i) => indent + i * size;
    const rows = { x: 8, w: 8 + size * 1.35, y: 8 + size * 3.1 };
    const taps = Array.from({ length: k }, (_, tap) => s * at + d * tap);
    const cells = [];
    for (let i = 0; i < n + 2 * p; i++) {
      const inside = i >= p && i < n + p;
      const seen = taps.includes(i) ? " seen" : "";
      cells.push(
        cell(place(i), rows.x, size, inside ? x[i - p] : 0, (inside ? "value" : "padding") + seen),
      );
    }
    taps.forEach((i, tap) => cells.push(cell(place(i), rows.w, size, w[tap], "kernel")));
    const centre = (i) => place(i) + size / 2;
    const middle = (arithmetic.extent(k, d) - 1) / 2;
    for (let i = 0; i < positions; i++) {
      const column = s * i + middle;
      cells.push(
        cell(place(column), rows.y, size, i <= at ? y[i] : "", i === at ? "result now" : "result"),
      );
    }
    const lines = taps.map((i) =>
      svg("path", {
        class: "ray",
        d: `M${centre(i)},${rows.w + size}L${centre(s * at + middle)},${rows.y}`,
      }),
    );
    const products = taps.map((i, tap) => {
      const value = i >= p && i < n + p ? x[i - p] : 0;
      return `${w[tap]}·${value}`;
    });
    const total = place(n + 2 * p) + 4;
    return [
      svg(
        "svg",
        { width: total, height: rows.y + size + 8, viewBox: `0 0 ${total} ${rows.y + size + 8}` },
        lines,
        rowName(rows.x, size, "x"),
        rowName(rows.w, size, "w"),
        rowName(rows.y, size, "y"),
        cells,
      ),
      el(
        "p",
        { class: "working" },
        `y[${at}] = ${products.join(" + ")} = ${y[at]}`.replaceAll("-", "−"),
      ),
    ];
  }

  /** A row for each placed kernel, then how many overlap and what they add up to. */
  function transpose1(shape, x, w, y, count, at, width) {
    const { n, k, s, p, d, e, field } = shape;
    const full = field + 2 * p; // output padding included: it comes after the last kernel
    const indent = 74;
    const size = cellSize(full, width, indent);
    const place = (i) => indent + i * size;
    const inside = (i) => i >= p && i < full - p;
    const cells = [];
    const row = (r) => 8 + r * (size * 0.92);
    for (let r = 0; r < n; r++) {
      const kind = r === at ? "kernel now" : r < at ? "kernel" : "kernel later";
      for (let tap = 0; tap < k; tap++) {
        const i = s * r + d * tap;
        cells.push(
          cell(
            place(i),
            row(r),
            size,
            w[tap] * x[r],
            inside(i) ? kind : `${kind} cut`,
            `w[${tap}]·x[${r}]`,
          ),
        );
      }
      cells.push(rowName(row(r), size, `${x[r]} · w`));
    }
    const below = row(n) + size * 0.45;
    const most = Math.max(1, ...count);
    for (let i = 0; i < full; i++) {
      const kept = inside(i);
      const kind = kept
        ? i >= (n - 1) * s + d * (k - 1) + 1
          ? "value extra"
          : "value"
        : "padding";
      const overlap = kept ? count[i - p] : null;
      const mark = cell(place(i), below, size, kept ? overlap : "", kept ? "count" : "padding");
      if (kept) mark.style.setProperty("--share", overlap / most);
      cells.push(
        mark,
        cell(
          place(i),
          below + size * 1.15,
          size,
          kept ? y[i - p] : "",
          kept ? `result ${kind}` : kind,
          kept ? null : "cut off by p",
        ),
      );
    }
    cells.push(rowName(below, size, "overlap"), rowName(below + size * 1.15, size, "y = sum"));
    const [total, height] = [place(full) + 4, below + size * 2.3];
    const span = `y[${s * at - p}]` + (k > 1 ? ` to y[${s * at + d * (k - 1) - p}]` : "");
    return [
      svg("svg", { width: total, height, viewBox: `0 0 ${total} ${height}` }, cells),
      el(
        "p",
        { class: "working" },
        `x[${at}] = ${x[at]} places ${x[at]} · w from ${span}`.replaceAll("-", "−"),
        p ? "; dashed cells are cut off by p" : "",
        e ? `; the last ${e} come from output padding` : "",
      ),
    ];
  }

  return { convolve1, transpose1 };
})();
