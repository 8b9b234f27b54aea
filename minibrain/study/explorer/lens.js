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
    const arriving = name === "dy" ? " arriving" : "";
    return `${name}${arriving}, ${shown}${every}; here ${end(picture.low, "blue")} to ${end(picture.high, "orange")}`;
  }

  /** What becomes of an array that a forward keeps. */
  function fate(node, saved) {
    if (saved.kept_by === node.name) return "the same array again";
    if (saved.kept_by?.startsWith(`${node.name}.`)) return "a parameter, there anyway";
    if (saved.kept_by) return `kept by ${saved.kept_by} already`;
    if (!saved.freed_after) return "held to the end";
    return saved.freed_after === node.name
      ? "freed by this backward"
      : `freed by ${saved.freed_after}`;
  }

  /** The path of a field, which may be broken after its dots. */
  const path = (field) => field.split(".").map((part, i) => (i ? [".", el("wbr"), part] : part));

  function savedTable(node) {
    if (!node.saved.length)
      return el("p", { class: "quiet" }, "Saves no array: its shapes are enough for the way back.");
    const rows = node.saved.map((saved) => [
      el("code", {}, path(saved.field)),
      shapeText(saved.shape),
      saved.bytes ? prefixed(saved.bytes, "B") : "–",
      fate(node, saved),
    ]);
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

  function sources(list, twin = "reference") {
    return el(
      "div",
      { class: "sources" },
      twin === "fast"
        ? el(
            "p",
            { class: "quiet" },
            "The readable body; a fast twin of it in minibrain/kernels ran here.",
          )
        : null,
      list.map((item, i) =>
        el(
          "details",
          { open: i === 0 },
          el("summary", {}, el("b", {}, item.name), el("span", {}, item.file)),
          code(item),
        ),
      ),
    );
  }

  /** Slices of an array and its statistics; of a loss, the number. */
  function look(node, name, picture, measure) {
    if (!picture) return el("p", { class: "big" }, number(measure.mean, 4));
    const what = `${name} of ${node.name}`;
    const tiles = draw.tiles(picture, "signed", what, caption(name, node, picture));
    return [tiles, statistics(measure)];
  }

  function forwardColumn(data, node) {
    return el(
      "section",
      { class: "pass forward" },
      el("h3", {}, "Forward"),
      cost(node.forward),
      draw.formula(data.formulas[node.operation].forward),
      look(node, "y", node.picture, node.forward.results.y),
      savedTable(node),
      sources(data.sources[node.operation].forward, node.forward.twin),
    );
  }

  function backwardColumn(data, node) {
    const spared = node.operation.startsWith("conv") && !node.backward.results.dx;
    const note =
      "No dx: nothing before it is learned, so this pass is spared (input_gradient=False).";
    return el(
      "section",
      { class: "pass backward" },
      el("h3", {}, "Backward"),
      cost(node.backward),
      draw.formula(data.formulas[node.operation].backward),
      look(node, "dy", node.gradient, node.arriving),
      gradientTable(node),
      spared ? el("p", { class: "quiet" }, note) : null,
      sources(data.sources[node.operation].backward, node.backward.twin),
    );
  }

  /** The two gradients of a result that was used twice, and their sum. */
  function meeting(node) {
    const row = (sign, name, picture, measure) =>
      el(
        "div",
        { class: "term" },
        el("span", { class: "sign" }, sign),
        draw.tiles(picture, "signed", name, name),
        statistics(measure),
      );
    const [below, across] = node.meeting;
    return el(
      "section",
      { class: "pass backward meeting" },
      el("h3", {}, "Two gradients meet"),
      row("", `from ${below.from}`, below.picture, below),
      row("+", `from ${across.from}`, across.picture, across),
      row("=", `dy of ${node.name}`, node.gradient, node.arriving),
    );
  }

  function usedTwice(node) {
    const [below, across] = node.meeting;
    return (
      `The result of ${node.name} was used twice: by ${below.from} and, further on, by ` +
      `${across.from}. The loss depends on it along both ways, so the gradients of the two ways ` +
      `add. That sum is what ${node.name} gets.`
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

  function head(node, formula, idea) {
    const ins = node.inputs.map(shapeText).join("  and  ");
    const parameters = node.parameters
      ? ` · ${node.parameters.toLocaleString("en")} parameters`
      : "";
    return el(
      "header",
      {},
      el("h2", {}, node.name, el("small", {}, formula.title)),
      el(
        "p",
        { class: "shapes" },
        `${ins} → ${shapeText(node.forward.results.y.shape)}${parameters}`,
      ),
      el("p", { class: "idea" }, idea),
    );
  }

  /** The network's own code, at the lines where a result is used again and its gradients add. */
  function meetingColumns(functions) {
    const column = (kind, title) =>
      el("section", { class: `pass ${kind}` }, el("h3", {}, title), sources(functions[kind]));
    return el(
      "div",
      { class: "columns" },
      column("forward", "Forward: used twice"),
      column("backward", "Backward: the sum"),
    );
  }

  function lens(data, event) {
    const node = data.nodes[event.i];
    const formula = data.formulas[node.operation];
    if (event.kind === "meet") {
      const columns = meetingColumns(data.sources[node.meets_in]);
      return [head(node, formula, usedTwice(node)), meeting(node), columns];
    }
    return [
      head(node, formula, formula.idea),
      ...(node.operation === "cce_dice_loss" ? scene(data) : []),
      el("div", { class: "columns" }, forwardColumn(data, node), backwardColumn(data, node)),
      node.meeting.length
        ? [el("p", { class: "idea apart" }, usedTwice(node)), meeting(node)]
        : null,
    ];
  }

  return lens;
})();
