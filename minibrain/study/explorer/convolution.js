"use strict";

// Room 2: what n, k, s, p, d and output padding do, in one, two and three dimensions.
const convolution = (() => {
  const { el, svg } = draw;

  const KNOBS = {
    n: ["n, input size", 1, 10], k: ["k, kernel size", 1, 6], s: ["s, stride", 1, 4],
    p: ["p, padding", 0, 5], d: ["d, dilation", 1, 3], e: ["output padding", 0, 3],
  };
  const LARGEST = { 1: { n: 10, k: 6 }, 2: { n: 8, k: 5 }, 3: { n: 6, k: 4 } };

  // Small whole numbers, the same every time: products can be checked in one's head.
  function scatter(i, seed) {
    let bits = Math.imul(i + 1, 2654435761) ^ Math.imul(seed, 2246822519);
    bits = Math.imul(bits ^ (bits >>> 15), 3266489917);
    return (bits ^ (bits >>> 13)) >>> 0;
  }

  const values = (count, seed, low, span) => Array.from({ length: count }, (_, i) => low + (scatter(i, seed) % span));

  /** The size formula, and the same with its numbers. */
  function sizeFormula(transposed, { n, k, s, p, d, e }) {
    if (transposed) {
      const size = arithmetic.transposedSize({ n, k, s, p, d, e });
      return [`(n − 1)·s + d·(k − 1) + 1 − 2p + output padding`,
        `(${n} − 1)·${s} + ${d}·(${k} − 1) + 1 − 2·${p} + ${e}`, size];
    }
    const size = arithmetic.convSize({ n, k, s, p, d });
    return [`⌊(n + 2p − d·(k − 1) − 1) / s⌋ + 1`,
      `⌊(${n} + 2·${p} − ${d}·(${k} − 1) − 1) / ${s}⌋ + 1`, size];
  }

  // ---- one dimension: rows of cells ------------------------------------------------------------

  function cell(x, y, size, value, kind, title) {
    return svg("g", { class: `cell ${kind}` }, title ? svg("title", {}, title) : null,
      svg("rect", { x: x + 1, y: y + 1, width: size - 2, height: size - 2, rx: 2 }),
      value === null ? null : svg("text", { x: x + size / 2, y: y + size / 2 }, String(value).replace("-", "−")));
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
      cells.push(cell(place(i), rows.x, size, inside ? x[i - p] : 0, (inside ? "value" : "padding") + seen));
    }
    taps.forEach((i, tap) => cells.push(cell(place(i), rows.w, size, w[tap], "kernel")));
    const centre = (i) => place(i) + size / 2;
    const middle = (arithmetic.extent(k, d) - 1) / 2;
    for (let i = 0; i < positions; i++) {
      const column = s * i + middle;
      cells.push(cell(place(column), rows.y, size, i <= at ? y[i] : "", i === at ? "result now" : "result"));
    }
    const lines = taps.map((i) => svg("path", { class: "ray", d: `M${centre(i)},${rows.w + size}L${centre(s * at + middle)},${rows.y}` }));
    const products = taps.map((i, tap) => {
      const value = i >= p && i < n + p ? x[i - p] : 0;
      return `${w[tap]}·${value}`;
    });
    const total = place(n + 2 * p) + 4;
    return [svg("svg", { width: total, height: rows.y + size + 8, viewBox: `0 0 ${total} ${rows.y + size + 8}` },
      lines, rowName(rows.x, size, "x"), rowName(rows.w, size, "w"), rowName(rows.y, size, "y"), cells),
    el("p", { class: "working" }, `y[${at}] = ${products.join(" + ")} = ${y[at]}`.replaceAll("-", "−"))];
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
        cells.push(cell(place(i), row(r), size, w[tap] * x[r], inside(i) ? kind : `${kind} cut`, `w[${tap}]·x[${r}]`));
      }
      cells.push(rowName(row(r), size, `${x[r]} · w`));
    }
    const below = row(n) + size * 0.45;
    const most = Math.max(1, ...count);
    for (let i = 0; i < full; i++) {
      const kept = inside(i);
      const kind = kept ? (i >= (n - 1) * s + d * (k - 1) + 1 ? "value extra" : "value") : "padding";
      const overlap = kept ? count[i - p] : null;
      const mark = cell(place(i), below, size, kept ? overlap : "", kept ? "count" : "padding");
      if (kept) mark.style.setProperty("--share", overlap / most);
      cells.push(mark, cell(place(i), below + size * 1.15, size, kept ? y[i - p] : "", kept ? `result ${kind}` : kind, kept ? null : "cut off by p"));
    }
    cells.push(rowName(below, size, "overlap"), rowName(below + size * 1.15, size, "y = sum"));
    const [total, height] = [place(full) + 4, below + size * 2.3];
    const span = `y[${s * at - p}]` + (k > 1 ? ` to y[${s * at + d * (k - 1) - p}]` : "");
    return [svg("svg", { width: total, height, viewBox: `0 0 ${total} ${height}` }, cells),
      el("p", { class: "working" }, `x[${at}] = ${x[at]} places ${x[at]} · w from ${span}`.replaceAll("-", "−"),
        p ? "; dashed cells are cut off by p" : "", e ? `; the last ${e} come from output padding` : "")];
  }

  // ---- two and three dimensions: grids ---------------------------------------------------------

  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** A square of values; `look` gives each cell {text, share, of, edge}. */
  function grid(side, size, label, look) {
    const scale = window.devicePixelRatio || 1;
    const canvas = el("canvas", { width: side * size * scale, height: side * size * scale, role: "img", "aria-label": label,
      style: `width: ${side * size}px; height: ${side * size}px` });
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `${Math.min(12, size * 0.5)}px ui-sans-serif, system-ui, sans-serif`;
    const colours = { forward: ink("--forward"), backward: ink("--backward"), ink: ink("--ink"), rule: ink("--rule"), muted: ink("--muted") };
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
          context.fillText(String(text).replace("-", "−"), (column + 0.5) * size, (row + 0.54) * size);
        }
      }
    }
    return canvas;
  }

  const frame = (caption, ...content) => el("figure", { class: "grid" }, ...content, el("figcaption", {}, caption));

  const squareSize = (side, width, most) => Math.max(3, Math.min(most, Math.floor(width / side)));

  /** One plane of the input with its padding, and the kernel over it where there is one. */
  function inputPlane(shape, plane, corner, size, label) {
    const { n, k, p, d } = shape;
    return grid(n + 2 * p, size, label, (row, column) => {
      const inside = row >= p && row < n + p && column >= p && column < n + p;
      const value = inside ? plane[(row - p) * n + column - p] : 0;
      const [down, over] = corner ? [row - corner[0], column - corner[1]] : [-1, -1];
      const seen = down >= 0 && over >= 0 && down % d === 0 && over % d === 0 && down / d < k && over / d < k;
      return { text: value, share: inside ? 0.1 + value / 12 : 0, padding: !inside, edge: seen ? "backward" : null };
    });
  }

  function plane(side, size, label, data, { now = -1, of = "forward", text = true } = {}) {
    const most = Math.max(1, ...data.map(Math.abs));
    return grid(side, size, label, (row, column) => {
      const i = row * side + column;
      return { text: text ? data[i] : undefined, share: 0.06 + 0.74 * (Math.abs(data[i]) / most), of, edge: i === now ? "backward" : null };
    });
  }

  function convolve2(shape, x, w, y, at, width) {
    const { n, s, p, positions } = shape;
    const corner = [Math.floor(at / positions) * s, (at % positions) * s];
    const half = width > 640 ? width / 2 - 20 : width;
    return [el("div", { class: "grids" },
      frame("x with its padding, the kernel outlined", inputPlane(shape, x, corner, squareSize(n + 2 * p, half, 30), "input")),
      frame("y", plane(positions, squareSize(positions, half, 30), "output", y, { now: at }))),
    el("p", { class: "working" }, `y[${Math.floor(at / positions)}, ${at % positions}] = ${y[at]}`.replaceAll("-", "−"))];
  }

  function transpose2(shape, x, w, y, count, at, width) {
    const { n, k, s, p, d, field } = shape;
    const wide = width > 640;
    const small = squareSize(n, wide ? 140 : 200, 24);
    const size = squareSize(field, wide ? (width - n * small - 64) / 2 : width, 26);
    const corner = [Math.floor(at / n) * s - p, (at % n) * s - p];
    const under = (row, column) => [row - corner[0], column - corner[1]].every((step) =>
      step >= 0 && step % d === 0 && step / d < k);
    const most = Math.max(1, ...count);
    const overlap = grid(field, size, "overlap", (row, column) => {
      const value = count[row * field + column];
      return { text: value, share: 0.06 + 0.74 * (value / most), of: "backward", edge: under(row, column) ? "ink" : null };
    });
    return [el("div", { class: "grids" },
      frame("x", plane(n, small, "input", x, { now: at })),
      frame("how many kernels overlap", overlap),
      frame("y, their sum", plane(field, size, "output", y))),
    el("p", { class: "working" }, `x[${Math.floor(at / n)}, ${at % n}] = ${x[at]} places its kernel where the outline is`)];
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
      return el("figure", { class: touched ? "grid" : "grid faint" }, drawn, el("figcaption", {}, `z = ${i}`));
    });
    const edge = transposed ? field : positions;
    const half = width > 640 ? width / 2 - 20 : width;
    const size = squareSize(edge, half, 28);
    const list = touches.flatMap((touched, i) => (touched ? [i] : []));
    const origin = list.length ? `slice${list.length > 1 ? "s" : ""} ${list.join(", ")} of x` : "padding alone";
    return [el("p", { class: "working" }, `Slice ${z} of y is made of ${origin}.`),
      el("div", { class: "grids small" }, inputs),
      el("div", { class: "grids" },
        transposed ? frame(`how many kernels overlap, slice ${z}`, plane(edge, size, "overlap", square(count, edge, z), { of: "backward" })) : null,
        frame(`y, slice ${z}`, plane(edge, size, "output", square(y, edge, z))))];
  }

  // ---- what the numbers say ---------------------------------------------------------------------

  function facts(transposed, rank, shape, x, w, count) {
    const { n, k, s, p, d, e, positions, field } = shape;
    const below = values(positions ** rank, 3, 0, 4); // any array in the place of the other side
    const above = values(field ** rank, 5, 0, 5);
    const down = transposed ? above : x;
    const up = transposed ? x : below;
    const one = arithmetic.dot(arithmetic.correlate(rank, shape, down, w), up);
    const other = arithmetic.dot(down, arithmetic.spread(rank, shape, up, w));
    const list = [el("div", { class: "fact" }, el("h3", {}, "The adjoint identity"),
      el("p", { class: "formula" }, `⟨C a, b⟩ = ${one}`, el("br"), `⟨a, Cᵀ b⟩ = ${other}`),
      el("p", {}, `C is the convolution from ${field} to ${positions}, Cᵀ the transposed one from ${positions} to ${field}${rank > 1 ? " along each axis" : ""}. `,
        transposed ? "b is the x above, a any array of the larger size." : "a is the x above, b any array of the smaller size.",
        " The two numbers are equal for every a and b: that is why the one is the gradient of the other."))];
    const [least, most] = [Math.min(...count), Math.max(...count)];
    if (transposed) {
      const inner = count.length ? new Set(arithmetic.coverage(1, { ...shape, positions: 60, field: 60 * s, p: 0 }).slice(30 * s, 31 * s)) : new Set();
      const even = inner.size === 1;
      list.push(el("div", { class: "fact" }, el("h3", {}, even ? "An even overlap" : "A checkerboard"),
        el("p", { class: "formula" }, `${least} to ${most} kernels a voxel`),
        el("p", {}, even
          ? "Away from the ends every voxel is under the same number of kernels. The ends are under fewer, and p can cut them off."
          : `Away from the ends a voxel is under ${[...inner].sort().join(" or ")} kernels${rank > 1 ? " along each axis" : ""}, in turns with period s = ${s}: whatever the weights, the network begins with a pattern it has to unlearn. A kernel size divisible by the stride (at dilation 1) has none.`)));
    } else {
      const unseen = (n + 2 * p - arithmetic.extent(k, d)) % s;
      list.push(el("div", { class: "fact" }, el("h3", {}, "The way back to n"),
        el("p", { class: "formula" }, `(n + 2p − extent) mod s = ${unseen}`),
        el("p", {}, unseen
          ? `${unseen === 1 ? "One voxel" : `${unseen} voxels`} at the end ${unseen === 1 ? "is" : "are"} under no kernel. A transposed convolution needs output padding ${unseen} to come back to n = ${n}.`
          : "The kernels end exactly where the input ends: a transposed convolution comes back to n without output padding."),
        el("p", {}, `${d > 1 ? `With dilation ${d} the kernel of ${k} spans ${arithmetic.extent(k, d)} voxels. ` : ""}A voxel of x is used ${least === most ? most : `${least} to ${most}`} ${most === 1 ? "time" : "times"}; its gradient is the sum of as many terms.`)));
    }
    return list;
  }

  // ---- the room ------------------------------------------------------------------------------

  function open(root) {
    const setting = { n: 7, k: 3, s: 2, p: 1, d: 1, e: 0 };
    const view = { transposed: false, rank: 1, at: 0, z: 0 };
    let timer = null;

    const stage = el("div", { class: "stage" });
    const formula = el("div", { class: "formula size", "aria-live": "polite" });
    const notes = el("div", { class: "facts" });
    const sliders = Object.fromEntries(Object.entries(KNOBS).map(([name, [text, min, max]]) =>
      [name, draw.slider({ name, text, min, max, value: setting[name], change: (value) => { setting[name] = value; begin(); render(); } })]));
    const position = draw.slider({ name: "position", text: "kernel position", min: 0, max: 1, value: 0, change: (value) => { stop(); view.at = value; render(); } });
    const depth = draw.slider({ name: "slice", text: "slice of the output", min: 0, max: 1, value: 0, change: (value) => { view.z = value; render(); } });
    const mode = draw.choice("direction", { conv: "convolution", transposed: "transposed" }, "conv", (value) => {
      view.transposed = value === "transposed";
      begin();
      render();
    });
    const ranks = draw.choice("dimensions", { 1: "1D", 2: "2D", 3: "3D slices" }, "1", (value) => {
      view.rank = +value;
      begin();
      view.z = 0;
      limit();
      render();
    });
    const play = el("button", { type: "button", class: "wide", onclick: () => (timer ? stop() : start()) }, "▶ move the kernel");
    const examples = {
      "checkerboard": { n: 5, k: 3, s: 2, p: 0, d: 1, e: 0, transposed: true, rank: 2 },
      "the U-Net’s way up": { n: 4, k: 2, s: 2, p: 0, d: 1, e: 0, transposed: true, rank: 2 },
      "same size": { n: 7, k: 3, s: 1, p: 1, d: 1, e: 0, transposed: false, rank: 1 },
      "dilated": { n: 9, k: 3, s: 1, p: 2, d: 2, e: 0, transposed: false, rank: 1 },
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
      formula.replaceChildren(el("div", { class: "quiet" }, `output size = ${general}`),
        el("div", {}, `= ${filled} = `, el("b", {}, String(size).replace("-", "−"))));
      sliders.e.element.hidden = !transposed;
      depth.element.hidden = rank !== 3;
      position.element.hidden = play.hidden = rank === 3;
      const why = arithmetic.obstacle(transposed, setting);
      if (why) {
        stage.replaceChildren(el("div", { class: "obstacle", role: "alert" }, el("h3", {}, "This cannot be"), el("p", {}, why.replaceAll(" -", " −"))));
        notes.replaceChildren();
        stop();
        return;
      }
      const shape = arithmetic.geometry(transposed, transposed ? setting : { ...setting, e: 0 });
      const w = values(setting.k ** rank, 1, 1, 3);
      const x = values(setting.n ** rank, 2, 0, 5);
      const count = arithmetic.coverage(rank, shape);
      position.input.max = shape.positions ** Math.min(rank, 2) - 1;
      depth.input.max = (transposed ? shape.field : shape.positions) - 1;
      view.at = Math.min(view.at, +position.input.max);
      view.z = Math.min(view.z, +depth.input.max);
      position.set(view.at);
      depth.set(view.z);
      const width = Math.max(280, stage.clientWidth);
      stage.replaceChildren(...(transposed ? placed : taken)(rank, shape, x, w, count, width));
      notes.replaceChildren(...facts(transposed, rank, shape, x, w, count));
    }

    function taken(rank, shape, x, w, count, width) {
      const y = arithmetic.correlate(rank, shape, x, w);
      if (rank === 3) return slices3(false, shape, x, w, y, count, view.z, width);
      return (rank === 1 ? convolve1 : convolve2)(shape, x, w, y, view.at, width);
    }

    /** The kernels up to the position are there, the others still to come. */
    function placed(rank, shape, x, w, count, width) {
      if (rank === 3) return slices3(true, shape, x, w, arithmetic.spread(rank, shape, x, w), count, view.z, width);
      const here = x.map((_, i) => +(i <= view.at));
      const y = arithmetic.spread(rank, shape, x.map((value, i) => value * here[i]), w);
      const overlap = arithmetic.spread(rank, shape, here, w.map(() => 1));
      return (rank === 1 ? transpose1 : transpose2)(shape, x, w, y, overlap, view.at, width);
    }

    root.append(
      el("p", { class: "lead" }, "A convolution lays a kernel over its input and adds up products. Its transpose does the reverse: it lays a copy of the kernel, scaled, at every voxel, and where copies overlap they add."),
      el("div", { class: "workbench" },
        el("div", { class: "controls" }, mode.element, ranks.element,
          Object.values(sliders).map((slider) => slider.element), position.element, depth.element, play,
          el("div", { class: "examples" }, el("span", { class: "quiet" }, "try"),
            Object.entries(examples).map(([name, example]) => el("button", { type: "button", onclick: () => load(example) }, name)))),
        el("div", {}, formula, stage, notes)));
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
