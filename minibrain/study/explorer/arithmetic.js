"use strict";

// The page's own arithmetic, in a few lines: tests/test_explorer.py holds it against minibrain.
// An array of rank r is flat, with the same size along every axis, the last axis fastest.
const arithmetic = (() => {
  const extent = (k, d) => d * (k - 1) + 1;

  const convSize = ({ n, k, s, p, d }) => Math.floor((n + 2 * p - extent(k, d)) / s) + 1;

  const transposedSize = ({ n, k, s, p, d, e }) => (n - 1) * s + extent(k, d) - 2 * p + e;

  /** Why minibrain would refuse the setting, or null. */
  function obstacle(transposed, setting) {
    const { n, k, s, p, d, e } = setting;
    if (transposed && e >= Math.max(s, d)) {
      return (
        `Output padding ${e} must be smaller than the stride ${s} or the dilation ${d}: ` +
        "it says which of the sizes that a strided convolution maps to one size is meant, " +
        "and there are no more of them."
      );
    }
    if (transposed && transposedSize(setting) < 1) {
      return (
        `Cutting ${p} off both ends leaves nothing of the ` +
        `${transposedSize(setting) + 2 * p} voxels: the output size would be ` +
        `${transposedSize(setting)}.`
      );
    }
    if (!transposed && convSize(setting) < 1) {
      return (
        `The kernel spans ${extent(k, d)} voxels but finds only ${n + 2 * p}, ` +
        `padding included: the output size would be ${convSize(setting)}.`
      );
    }
    return null;
  }

  /** Where kernels meet voxels: size of the positions, size of the field they lie over. */
  function geometry(transposed, setting) {
    return transposed
      ? { positions: setting.n, field: transposedSize(setting), ...setting }
      : { positions: convSize(setting), field: setting.n, ...setting };
  }

  /** [position, tap, voxel] along one axis, for every tap that meets a voxel and not padding. */
  function contacts({ positions, field, k, s, p, d }) {
    const found = [];
    for (let position = 0; position < positions; position++) {
      for (let tap = 0; tap < k; tap++) {
        const voxel = s * position + d * tap - p;
        if (voxel >= 0 && voxel < field) found.push([position, tap, voxel]);
      }
    }
    return found;
  }

  /** Call visit(position, tap, voxel) with flat indexes for every contact of a rank. */
  function everyContact(rank, shape, visit) {
    const along = contacts(shape);
    const descend = (axes, position, tap, voxel) => {
      if (!axes) return visit(position, tap, voxel);
      for (const [a, b, c] of along) {
        descend(
          axes - 1,
          position * shape.positions + a,
          tap * shape.k + b,
          voxel * shape.field + c,
        );
      }
    };
    descend(rank, 0, 0, 0);
  }

  /** y[p] = Σ_k w[k] · x[s·p + d·k − padding], the convolution. */
  function correlate(rank, shape, x, w) {
    const y = new Array(shape.positions ** rank).fill(0);
    everyContact(rank, shape, (position, tap, voxel) => {
      y[position] += w[tap] * x[voxel];
    });
    return y;
  }

  /** x[s·p + d·k − padding] += w[k] · y[p], its adjoint, the transposed convolution. */
  function spread(rank, shape, y, w) {
    const x = new Array(shape.field ** rank).fill(0);
    everyContact(rank, shape, (position, tap, voxel) => {
      x[voxel] += w[tap] * y[position];
    });
    return x;
  }

  /** How many taps meet each voxel. */
  function coverage(rank, shape) {
    const count = new Array(shape.field ** rank).fill(0);
    everyContact(rank, shape, (position, tap, voxel) => {
      count[voxel] += 1;
    });
    return count;
  }

  const sum = (values) => values.reduce((total, value) => total + value, 0);

  const dot = (a, b) => sum(a.map((value, i) => value * b[i]));

  function softmax(logits) {
    const largest = Math.max(...logits);
    const powers = logits.map((z) => Math.exp(z - largest));
    const total = sum(powers);
    return powers.map((power) => power / total);
  }

  const oneHot = (label, classes) => Array.from({ length: classes }, (_, c) => +(c === label));

  /** Mean of −log p[label] over all voxels; counts[v] voxels are like voxel v. The gradient is
   *  that of one of them. */
  function crossEntropy(logits, labels, counts) {
    const voxels = sum(counts);
    const losses = logits.map((z, v) => {
      const largest = Math.max(...z);
      return Math.log(sum(z.map((value) => Math.exp(value - largest)))) + largest - z[labels[v]];
    });
    const gradient = logits.map((z, v) => {
      const t = oneHot(labels[v], z.length);
      return softmax(z).map((p, c) => (p - t[c]) / voxels);
    });
    return { loss: dot(counts, losses) / voxels, gradient };
  }

  /** 1 − mean over classes of (2 Σ p·t + smooth) / (Σ p + Σ t + smooth). */
  function diceLoss(logits, labels, counts, smooth = 1) {
    const classes = logits[0].length;
    const p = logits.map(softmax);
    const t = labels.map((label) => oneHot(label, classes));
    const perClass = (value) =>
      oneHot(0, classes).map((_, c) => sum(counts.map((count, v) => count * value(v, c))));
    const overlap = perClass((v, c) => p[v][c] * t[v][c]).map((value) => 2 * value + smooth);
    const total = perClass((v, c) => p[v][c] + t[v][c]).map((value) => value + smooth);
    const gradient = p.map((pv, v) => {
      const dp = pv.map(
        (_, c) => (overlap[c] / total[c] ** 2 - (2 * t[v][c]) / total[c]) / classes,
      );
      const mean = dot(dp, pv);
      return pv.map((value, c) => value * (dp[c] - mean));
    });
    const scores = overlap.map((value, c) => value / total[c]);
    return { loss: 1 - sum(scores) / classes, gradient, scores };
  }

  return {
    extent,
    convSize,
    transposedSize,
    obstacle,
    geometry,
    contacts,
    correlate,
    spread,
    coverage,
    sum,
    dot,
    softmax,
    crossEntropy,
    diceLoss,
  };
})();

if (typeof module !== "undefined") module.exports = arithmetic;
