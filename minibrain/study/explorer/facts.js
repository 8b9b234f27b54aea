"use strict";

// What the numbers of a convolution say, in sentences.
const facts = (() => {
  const { el } = draw;

  // Small whole numbers, the same every time: products can be checked in one's head.
  function scatter(i, seed) {
    let bits = Math.imul(i + 1, 2654435761) ^ Math.imul(seed, 2246822519);
    bits = Math.imul(bits ^ (bits >>> 15), 3266489917);
    return (bits ^ (bits >>> 13)) >>> 0;
  }

  const values = (count, seed, low, span) =>
    Array.from({ length: count }, (_, i) => low + (scatter(i, seed) % span));

  const fact = (title, formula, ...sentences) =>
    el(
      "div",
      { class: "fact" },
      el("h3", {}, title),
      el("p", { class: "formula" }, formula),
      sentences.map((sentence) => el("p", {}, sentence)),
    );

  const alongEach = (rank) => (rank > 1 ? " along each axis" : "");

  /** ⟨C a, b⟩ and ⟨a, Cᵀ b⟩; one of a and b is the input on the page. */
  function adjoint(transposed, rank, shape, x, w) {
    const { positions, field } = shape;
    const a = transposed ? values(field ** rank, 5, 0, 5) : x;
    const b = transposed ? x : values(positions ** rank, 3, 0, 4);
    const one = arithmetic.dot(arithmetic.correlate(rank, shape, a, w), b);
    const other = arithmetic.dot(a, arithmetic.spread(rank, shape, b, w));
    return fact(
      "The adjoint identity",
      [`⟨C a, b⟩ = ${one}`, el("br"), `⟨a, Cᵀ b⟩ = ${other}`],
      `C is the convolution from ${field} to ${positions}, Cᵀ the transposed one from ` +
        `${positions} to ${field}${alongEach(rank)}. ` +
        (transposed
          ? "b is the x above, a any array of the larger size. "
          : "a is the x above, b any array of the smaller size. ") +
        "The two numbers are equal for every a and b: " +
        "that is why the one is the gradient of the other.",
    );
  }

  /** How many kernels meet a voxel far from the ends, over one period of the stride. */
  function inside({ k, s, d }) {
    const long = { positions: 60, field: 60 * s, k, s, p: 0, d };
    return [...new Set(arithmetic.coverage(1, long).slice(30 * s, 31 * s))].sort();
  }

  function overlap(rank, shape, count) {
    const inner = inside(shape);
    const range = `${Math.min(...count)} to ${Math.max(...count)} kernels a voxel`;
    if (inner.length === 1) {
      return fact(
        "An even overlap",
        range,
        "Away from the ends every voxel is under the same number of kernels. " +
          "The ends are under fewer, and p can cut them off.",
      );
    }
    return fact(
      "A checkerboard",
      range,
      `Away from the ends a voxel is under ${inner.join(" or ")} kernels${alongEach(rank)}, ` +
        `in turns with period s = ${shape.s}: whatever the weights, the network begins with a ` +
        "pattern it has to unlearn. At dilation 1, a kernel size divisible by the stride has none.",
    );
  }

  function wayBack({ n, k, s, p, d }, count) {
    const unseen = (n + 2 * p - arithmetic.extent(k, d)) % s;
    const [least, most] = [Math.min(...count), Math.max(...count)];
    const range = least === most ? most : `${least} to ${most}`;
    const spans =
      d > 1
        ? `With dilation ${d} the kernel of ${k} spans ${arithmetic.extent(k, d)} voxels. `
        : "";
    return fact(
      "The way back to n",
      `(n + 2p − extent) mod s = ${unseen}`,
      unseen
        ? `So many voxels at the end of the padded input are under no kernel. A transposed ` +
            `convolution needs output padding ${unseen} to come back to n = ${n}.`
        : "The kernels end exactly where the padded input ends: " +
            "a transposed convolution comes back to n without output padding.",
      `${spans}A voxel of x is used ${range} ${most === 1 ? "time" : "times"}; ` +
        "its gradient is the sum of as many terms.",
    );
  }

  return { values, adjoint, overlap, wayBack };
})();
