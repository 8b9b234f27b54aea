"use strict";

// One operation under the lens: its arrays, numbers, formulas and sources, forward beside backward.
const lens = (() => {
  const { el, number, prefixed, times } = draw;

  const shapeText = (shape) => (shape.length ? times(shape) : "a number");

  function statistics(measure) {
    return el(
      "p",
      { class: "statistics" },
      el("span", {}, "mean ", el("b", {}, number(measure.mean))),
      el("span", {}, "std ", el("b", {}, number(measure.std))),
      el("span", {}, "largest ", el("b", {}, number(measure.max))),
    );
  }

  function cost(pass) {
    const who = pass.twin === "fast" ? "fast twin" : "readable body";
    return el(
      "p",
      { class: "cost" },
      `${who} · ${number(1e3 * pass.seconds)} ms · ${prefixed(pass.flops, "FLOP")}`,
    );
  }

  const end = (value, colour) =>
    value < 0 || colour === "orange" ? `${number(value)} (${colour})` : number(value);

  function caption(name, node, picture) {
    const shape = node.forward.results.y.shape;
    const channels = shape[shape.length - 1];
    const shown =
      picture.channels < channels
        ? `first ${picture.channels} of ${channels} channels`
        : `all ${channels} channels`;
    const every = picture.every > 1 ? `, one voxel of ${picture.every} a side` : "";
    return `${name}, ${shown}${every}; here ${end(picture.low, "blue")} to ${end(picture.high, "orange")}`;
  }

  function savedTable(node) {
    if (!node.saved.length)
      return el("p", { class: "quiet" }, "Saves no array: its shapes are enough for the way back.");
    const rows = node.saved.map((saved) => {
      const parameter = saved.kept_by && saved.kept_by.startsWith(`${node.name}.`);
      const fate = parameter
        ? "a parameter, there anyway"
        : saved.kept_by
          ? `kept by ${saved.kept_by} already`
          : saved.freed_after === node.name
            ? "freed by this backward"
            : saved.freed_after
              ? `freed by ${saved.freed_after}`
              : "held to the end";
      return [
        el("code", {}, saved.field),
        shapeText(saved.shape),
        saved.bytes ? prefixed(saved.bytes, "B") : "–",
        fate,
      ];
    });
    return draw.table(["saved", "shape", "adds", "and then"], rows);
  }

  function gradientTable(node) {
    const rows = Object.entries(node.backward.results).map(([name, measure]) => [
      el("code", {}, name),
      shapeText(measure.shape),
      number(measure.std),
      number(measure.max),
    ]);
    return rows.length ? draw.table(["out comes", "shape", "std", "largest"], rows) : null;
  }

  function sources(list, { mark, twin } = {}) {
    const note =
      twin === "fast"
        ? el(
            "p",
            { class: "quiet" },
            "The readable body; a fast twin of it in minibrain/kernels ran here.",
          )
        : null;
    return el(
      "div",
      { class: "sources" },
      note,
      list.map((item, i) =>
        el(
          "details",
          { open: i === 0 },
          el("summary", {}, el("b", {}, item.name), el("span", {}, `${item.file}:${item.line}`)),
          draw.code(item.text, mark),
        ),
      ),
    );
  }

  function forwardColumn(data, node) {
    const formula = data.formulas[node.operation];
    const y = node.forward.results.y;
    return el(
      "section",
      { class: "pass forward" },
      el("h3", {}, "Forward"),
      cost(node.forward),
      draw.formula(formula.forward),
      node.picture
        ? [
            draw.tiles(
              node.picture,
              "signed",
              `y of ${node.name}`,
              caption("y", node, node.picture),
            ),
            statistics(y),
          ]
        : el("p", { class: "big" }, number(y.mean)),
      savedTable(node),
      sources(data.sources[node.operation].forward, node.forward),
    );
  }

  function backwardColumn(data, node) {
    const formula = data.formulas[node.operation];
    return el(
      "section",
      { class: "pass backward" },
      el("h3", {}, "Backward"),
      cost(node.backward),
      draw.formula(formula.backward),
      node.gradient
        ? [
            draw.tiles(
              node.gradient,
              "signed",
              `dy of ${node.name}`,
              caption("dy arriving", node, node.gradient),
            ),
            statistics(node.arriving),
          ]
        : el("p", { class: "big" }, number(node.arriving.mean)),
      gradientTable(node),
      node.operation.startsWith("conv") && !node.backward.results.dx
        ? el(
            "p",
            { class: "quiet" },
            "No dx: nothing before it is learned, so this pass is spared (input_gradient=False).",
          )
        : null,
      sources(data.sources[node.operation].backward, node.backward),
    );
  }

  /** The two gradients of a skip, and their sum. */
  function meeting(data, node) {
    const row = (sign, name, picture, measure) =>
      el(
        "div",
        { class: "term" },
        el("span", { class: "sign" }, sign),
        el("div", {}, draw.tiles(picture, "signed", name, name), statistics(measure)),
      );
    const [below, across] = node.meeting;
    return el(
      "section",
      { class: "pass backward meeting" },
      el("h3", {}, "Two gradients meet"),
      el(
        "p",
        {},
        `The result of ${node.name} was used twice: by ${below.from} and, further on, by ${across.from}. The loss depends on it along both ways, so the gradients of the two ways add. That sum is what ${node.name} gets.`,
      ),
      row("", `from ${below.from}`, below.picture, below),
      row("+", `from ${across.from}`, across.picture, across),
      row("=", `dy of ${node.name}`, node.gradient, node.arriving),
    );
  }

  function scene(data) {
    const { image, labels, prediction } = data.scene;
    const key = data.classes
      .slice(1)
      .map((name, i) =>
        el(
          "span",
          {},
          el("span", { class: "key", style: `background: ${draw.classColour(i + 1)}` }),
          `${name} `,
        ),
      );
    return [
      el(
        "div",
        { class: "scene" },
        draw.tiles(image, "grey", "input", `input x: ${data.channels.join(", ")}`),
        draw.tiles(labels, "classes", "labels", "label"),
        draw.tiles(prediction, "classes", "prediction", "prediction"),
      ),
      el("p", { class: "legend" }, key),
    ];
  }

  function lens(data, event) {
    const node = data.nodes[event.i];
    const formula = data.formulas[node.operation];
    const ins = node.inputs.map(shapeText).join("  and  ");
    const out = shapeText(node.forward.results.y.shape);
    const head = el(
      "header",
      {},
      el("h2", {}, node.name, el("small", {}, formula.title)),
      el(
        "p",
        { class: "shapes" },
        `${ins} → ${out}`,
        node.parameters ? ` · ${node.parameters.toLocaleString("en")} parameters` : "",
      ),
      el("p", { class: "idea" }, formula.idea),
    );
    if (event.kind === "meet") {
      return [
        head,
        meeting(data, node),
        el(
          "div",
          { class: "columns" },
          el(
            "section",
            { class: "pass forward" },
            el("h3", {}, "Forward: used twice"),
            sources(data.sources.skip.forward, { mark: "skips.append(x)" }),
          ),
          el(
            "section",
            { class: "pass backward" },
            el("h3", {}, "Backward: the sum"),
            sources(data.sources.skip.backward, { mark: "dx = dx + dskips.pop()" }),
          ),
        ),
      ];
    }
    return [
      head,
      ...(node.operation === "cce_dice_loss" ? scene(data) : []),
      el("div", { class: "columns" }, forwardColumn(data, node), backwardColumn(data, node)),
      node.meeting.length ? meeting(data, node) : null,
    ];
  }

  return lens;
})();
