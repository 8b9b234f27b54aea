"use strict";

// Three dimensions, a slice at a time: which slices of the input one of the output is made of.
const slices = (() => {
  const { el } = draw;
  const { frame, squareSize, inputPlane, plane } = grids;

  const slice = (data, side, z) => data.slice(z * side ** 2, (z + 1) * side ** 2);

  /** For each slice of x the tap of the kernel's third axis that joins it to slice z of y, or null. */
  function tapsOf(transposed, { n, k, s, p, d }, z) {
    return Array.from({ length: n }, (_, i) => {
      const step = transposed ? z + p - s * i : i + p - s * z;
      return step >= 0 && step % d === 0 && step / d < k ? step / d : null;
    });
  }

  /** The slices of x in a row, those out of reach faint, and the slices of the kernel below. */
  function sources(taps, { n, k }, w, z, drawing) {
    const reached = taps.flatMap((tap, i) => (tap === null ? [] : [i]));
    const plural = reached.length > 1 ? "s" : "";
    const origin = reached.length ? `slice${plural} ${reached.join(", ")} of x` : "padding alone";
    const inputs = taps.map((tap, i) => {
      const figure = frame(tap === null ? `x[${i}]` : `x[${i}], under w[${tap}]`, drawing(i, tap));
      figure.classList.toggle("faint", tap === null);
      return figure;
    });
    const kernels = Array.from({ length: k }, (_, tap) =>
      frame(`w[${tap}]`, plane(k, 18, `kernel slice ${tap}`, slice(w, k, tap), { of: "backward" })),
    );
    return [
      el("p", { class: "working" }, `Slice ${z} of y is made of ${origin}.`),
      el("div", { class: "grids small" }, inputs),
      el("div", { class: "grids small" }, kernels),
    ];
  }

  const inputSize = (side, { n }, width) =>
    squareSize(side, width / (width > 640 ? n : Math.min(n, 3)) - 18, 18);

  const outputSize = (side, width) => squareSize(side, width > 640 ? width / 2 - 20 : width, 28);

  function convolve3(shape, x, w, y, z, width) {
    const { n, p, positions } = shape;
    const size = inputSize(n + 2 * p, shape, width);
    const input = (i, tap) =>
      inputPlane(shape, slice(x, n, i), tap === null ? null : [0, 0], size, `input slice ${i}`);
    const output = plane(
      ...[positions, outputSize(positions, width), "output", slice(y, positions, z), { now: 0 }],
    );
    return [
      ...sources(tapsOf(false, shape, z), shape, w, z, input),
      el("div", { class: "grids" }, frame(`y[${z}]; outlined, its first voxel`, output)),
    ];
  }

  function transpose3(shape, x, w, y, count, z, width) {
    const { n, field } = shape;
    const small = inputSize(n, shape, width);
    const size = outputSize(field, width);
    const input = (i) => plane(n, small, `input slice ${i}`, slice(x, n, i));
    const overlap = plane(field, size, "overlap", slice(count, field, z), { of: "backward" });
    const output = plane(field, size, "output", slice(y, field, z));
    return [
      ...sources(tapsOf(true, shape, z), shape, w, z, input),
      el(
        "div",
        { class: "grids" },
        frame(`how many kernels overlap in y[${z}]`, overlap),
        frame(`y[${z}]`, output),
      ),
    ];
  }

  return { convolve3, transpose3 };
})();
