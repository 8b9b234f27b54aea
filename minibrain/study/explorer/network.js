"use strict";

// Room 1: one training step of a U-Net, operation by operation.
const network = (() => {
  const { el, svg, number, prefixed, times } = draw;

  /** Every forward, every backward, and the sums at the skips, in the order of the step. */
  function eventsOf(data) {
    const events = data.nodes.map((node, i) => ({ kind: "forward", i, held: data.held[i] }));
    let held = data.held[data.nodes.length - 1];
    for (let i = data.nodes.length - 1; i >= 0; i--) {
      if (data.nodes[i].meeting.length) events.push({ kind: "meet", i, held });
      held = data.held[2 * data.nodes.length - 1 - i];
      events.push({ kind: "backward", i, held });
    }
    return events;
  }

  /** Where each result is kept, and the node after whose backward it is free (null: not kept). */
  function livesOf(nodes) {
    return nodes.map((node, i) => {
      const find = (owner, name) => owner && owner.saved.find((saved) =>
        saved.bytes && saved.field.split(".").pop() === name && times(saved.shape) === times(node.forward.results.y.shape));
      const saved = find(node, "y") || find(nodes[i + 1], "x");
      return saved ? { until: saved.freed_after } : null;
    });
  }

  // ---- the drawing -------------------------------------------------------------------------

  /** Position and size of every block: width to the scale of channels, height to that of voxels. */
  function layout(data, width) {
    const narrow = width < 640;
    const shapes = data.nodes.map((node) => node.forward.results.y.shape);
    const first = data.nodes[0].inputs[0];
    const blocks = [first, ...shapes].map((shape, i) => ({
      channels: shape.length ? shape[shape.length - 1] : 0,
      size: shape.length ? shape[1] : 0,
      level: i ? data.nodes[i - 1].level : 0,
      part: i ? data.nodes[i - 1].name.split(".")[0] : "input",
    }));
    const near = narrow ? 3 : 6;
    const far = narrow ? 5 : 16;
    const gaps = blocks.map((block, i) => (i && block.part === blocks[i - 1].part ? near : far));
    gaps[0] = 0;
    const margin = 2;
    const room = width - 2 * margin - gaps.reduce((a, b) => a + b) - 10;
    const perChannel = room / blocks.reduce((total, block) => total + block.channels, 0);
    const tall = narrow ? 92 : 138;
    const levels = Math.max(...blocks.map((block) => block.level)) + 1;
    const heightOf = (level) => Math.max(3, tall / 2 ** level);
    const tops = [];
    for (let level = 0, top = 30; level < levels; level++) {
      tops.push(top);
      top += heightOf(level) + (narrow ? 26 : 38);
    }
    let x = margin;
    const placed = blocks.map((block, i) => {
      x += gaps[i];
      const w = block.channels ? Math.max(1.5, block.channels * perChannel) : 10;
      const h = block.channels ? heightOf(block.level) : 10;
      const box = { ...block, x, w, h, y: tops[block.level] + (heightOf(block.level) - h) / 2 };
      x += w;
      return box;
    });
    const bottom = tops[levels - 1] + heightOf(levels - 1) + 24;
    return { input: placed[0], boxes: placed.slice(1), height: bottom, tops, heightOf, narrow };
  }

  const right = (box) => [box.x + box.w, box.y + box.h / 2];
  const left = (box) => [box.x, box.y + box.h / 2];

  /** A line from one block to the next, at the level of both or stepping between levels. */
  function connector(from, to) {
    if (from.level === to.level) return `M${right(from)}L${left(to)}`;
    const [x, y] = [from.x + from.w / 2, to.x + to.w / 2];
    return to.level > from.level
      ? `M${x},${from.y + from.h}V${to.y + to.h / 2}H${to.x}`
      : `M${from.x + from.w},${from.y + from.h / 2}H${y}V${to.y + to.h}`;
  }

  function drawU(data, plan, width, jump) {
    const chain = [plan.input, ...plan.boxes];
    const links = plan.boxes.map((box, i) =>
      svg("path", { d: connector(chain[i], box), class: "link" }));
    const skips = new Map();
    data.nodes.forEach((node, i) => {
      if (!node.meeting.length) return;
      const target = data.nodes.findIndex((other) => other.name === node.meeting.at(-1).from);
      const [from, to] = [plan.boxes[i], plan.boxes[target]];
      const y = from.y + 5;
      skips.set(i, { target, path: svg("path", { class: "link skip", d: `M${from.x + from.w},${y}H${to.x}` }) });
    });
    const blocks = plan.boxes.map((box, i) => {
      const shape = box.channels
        ? svg("rect", { x: box.x, y: box.y, width: box.w, height: box.h, rx: 1.5, class: "block" })
        : svg("circle", { cx: box.x + 5, cy: box.y + 5, r: 5, class: "block" });
      const reach = svg("rect", { x: box.x - 3, y: box.y - 6, width: box.w + 6, height: box.h + 12, class: "reach" });
      return { shape, group: svg("g", { onclick: () => jump(i), class: "node" }, svg("title", {}, data.nodes[i].name), reach, shape) };
    });
    const { x, y, w, h } = plan.input;
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${plan.height}`, width, height: plan.height, role: "img",
      "aria-label": "The network as a U: blocks as wide as their channels and as high as their size" },
    skips.size ? [...skips.values()].map((skip) => skip.path) : [], links,
    svg("rect", { x, y, width: w, height: h, class: "block input" }),
    blocks.map((block) => block.group), labels(data, plan));
    return { drawing, links, skips, blocks };
  }

  function labels(data, plan) {
    const chain = [plan.input, ...plan.boxes];
    const sizes = plan.tops.map((top, level) => {
      const i = plan.boxes.findIndex((box) => box.level === level && box.size);
      const size = times(data.nodes[i].forward.results.y.shape.slice(1, -1));
      const at = level ? plan.boxes[i] : chain[0];
      return svg("text", { x: at.x, y: top - 9, class: "size" }, size);
    });
    if (plan.narrow) return sizes;
    const channels = plan.boxes.map((box, i) => (box.channels && box.channels !== chain[i].channels
      ? svg("text", { x: box.x + box.w / 2, y: chain[i].level > box.level ? box.y - 5 : box.y + box.h + 13, class: "channels" }, box.channels) : null));
    return [sizes, channels];
  }

  /** Classes on blocks and links that say what is there at this point of the step. */
  function paintU(drawn, data, lives, events, at) {
    const now = events[at];
    const done = (kind, i) => events.slice(0, at + 1).some((event) => event.kind === kind && event.i === i);
    const backwardOver = (name) => events.slice(0, at + 1).some((event) =>
      event.kind === "backward" && data.nodes[event.i].name === name);
    drawn.blocks.forEach((block, i) => {
      const made = done("forward", i);
      const life = lives[i];
      const kept = made && life && !(life.until && backwardOver(life.until));
      block.shape.classList.toggle("kept", Boolean(kept));
      block.shape.classList.toggle("passed", made && !kept);
      block.shape.classList.toggle("gradient", done("backward", i));
      block.shape.classList.toggle("now", now.i === i);
      block.shape.classList.toggle("back", now.i === i && now.kind !== "forward");
    });
    drawn.links.forEach((link, i) => {
      link.classList.toggle("live", now.kind === "forward" && now.i === i);
      link.classList.toggle("live-back", (now.kind === "backward" && now.i === i - 1) || (now.kind === "meet" && now.i === i - 1));
    });
    for (const [i, skip] of drawn.skips) {
      skip.path.classList.toggle("live", now.kind === "forward" && now.i === skip.target);
      skip.path.classList.toggle("live-back", now.i === i && now.kind !== "forward");
    }
  }

  // ---- what lies saved -----------------------------------------------------------------------

  function drawMemory(events, width) {
    const height = 64;
    const largest = Math.max(...events.map((event) => event.held));
    const step = width / events.length;
    const y = (held) => height - 1 - (held / largest) * (height - 8);
    const turn = events.findIndex((event) => event.kind !== "forward");
    const area = (from, to) => `M${from * step},${height}` + events.slice(from, to).map((event, i) =>
      `L${(from + i) * step},${y(event.held)}H${(from + i + 1) * step}`).join("") + `V${height}Z`;
    const cursor = svg("rect", { y: 0, width: Math.max(2, step), height, class: "cursor" });
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
      svg("path", { d: area(0, turn), class: "area forward" }),
      svg("path", { d: area(turn, events.length), class: "area backward" }), cursor);
    return { drawing, move: (at) => cursor.setAttribute("x", at * step) };
  }

  // ---- the operation under the lens ------------------------------------------------------------

  const shapeText = (shape) => (shape.length ? times(shape) : "a number");

  function statistics(measure) {
    return el("p", { class: "statistics" },
      el("span", {}, "mean ", el("b", {}, number(measure.mean))),
      el("span", {}, "std ", el("b", {}, number(measure.std))),
      el("span", {}, "largest ", el("b", {}, number(measure.max))));
  }

  function cost(pass) {
    const who = pass.twin === "fast" ? "fast twin" : "readable body";
    return el("p", { class: "cost" },
      `${who} · ${number(1e3 * pass.seconds)} ms · ${prefixed(pass.flops, "FLOP")}`);
  }

  const end = (value, colour) => (value < 0 || colour === "orange" ? `${number(value)} (${colour})` : number(value));

  function caption(name, node, picture) {
    const shape = node.forward.results.y.shape;
    const channels = shape[shape.length - 1];
    const shown = picture.channels < channels ? `first ${picture.channels} of ${channels} channels` : `all ${channels} channels`;
    return `${name}, ${shown}; here ${end(picture.low, "blue")} to ${end(picture.high, "orange")}`;
  }

  function savedTable(node) {
    if (!node.saved.length) return el("p", { class: "quiet" }, "Saves no array: its shapes are enough for the way back.");
    const rows = node.saved.map((saved) => {
      const parameter = saved.kept_by && saved.kept_by.startsWith(`${node.name}.`);
      const fate = parameter ? "a parameter, there anyway" : saved.kept_by
        ? `kept by ${saved.kept_by} already`
        : saved.freed_after === node.name ? "freed by this backward"
          : saved.freed_after ? `freed by ${saved.freed_after}` : "held to the end";
      return [el("code", {}, saved.field), shapeText(saved.shape),
        saved.bytes ? prefixed(saved.bytes, "B") : "–", fate];
    });
    return draw.table(["saved", "shape", "adds", "and then"], rows);
  }

  function gradientTable(node) {
    const rows = Object.entries(node.backward.results).map(([name, measure]) =>
      [el("code", {}, name), shapeText(measure.shape), number(measure.std), number(measure.max)]);
    return rows.length
      ? draw.table(["out comes", "shape", "std", "largest"], rows)
      : null;
  }

  function sources(list, { mark, twin } = {}) {
    const note = twin === "fast"
      ? el("p", { class: "quiet" }, "The readable body; a fast twin of it in minibrain/kernels ran here.") : null;
    return el("div", { class: "sources" }, note, list.map((item, i) =>
      el("details", { open: i === 0 }, el("summary", {}, el("b", {}, item.name), el("span", {}, `${item.file}:${item.line}`)),
        draw.code(item.text, mark))));
  }

  function forwardColumn(data, node) {
    const formula = data.formulas[node.operation];
    const y = node.forward.results.y;
    return el("section", { class: "pass forward" }, el("h3", {}, "Forward"), cost(node.forward),
      draw.formula(formula.forward),
      node.picture
        ? [draw.tiles(node.picture, "signed", `y of ${node.name}`, caption("y", node, node.picture)), statistics(y)]
        : el("p", { class: "big" }, number(y.mean)),
      savedTable(node), sources(data.sources[node.operation].forward, node.forward));
  }

  function backwardColumn(data, node) {
    const formula = data.formulas[node.operation];
    return el("section", { class: "pass backward" }, el("h3", {}, "Backward"), cost(node.backward),
      draw.formula(formula.backward),
      node.gradient
        ? [draw.tiles(node.gradient, "signed", `dy of ${node.name}`, caption("dy arriving", node, node.gradient)), statistics(node.arriving)]
        : el("p", { class: "big" }, number(node.arriving.mean)),
      gradientTable(node),
      node.operation.startsWith("conv") && !node.backward.results.dx
        ? el("p", { class: "quiet" }, "No dx: nothing before it is learned, so this pass is spared (input_gradient=False).") : null,
      sources(data.sources[node.operation].backward, node.backward));
  }

  /** The two gradients of a skip, and their sum. */
  function meeting(data, node) {
    const row = (sign, name, picture, measure) => el("div", { class: "term" },
      el("span", { class: "sign" }, sign),
      el("div", {}, draw.tiles(picture, "signed", name, name), statistics(measure)));
    const [below, across] = node.meeting;
    return el("section", { class: "pass backward meeting" },
      el("h3", {}, "Two gradients meet"),
      el("p", {}, `The result of ${node.name} was used twice: by ${below.from} and, further on, by ${across.from}. The loss depends on it along both ways, so the gradients of the two ways add. That sum is what ${node.name} gets.`),
      row("", `from ${below.from}`, below.picture, below),
      row("+", `from ${across.from}`, across.picture, across),
      row("=", `dy of ${node.name}`, node.gradient, node.arriving));
  }

  function scene(data) {
    const { image, labels, prediction } = data.scene;
    const key = data.classes.slice(1).map((name, i) =>
      el("span", {}, el("span", { class: "key", style: `background: ${draw.classColour(i + 1)}` }), `${name} `));
    return [el("div", { class: "scene" },
      draw.tiles(image, "grey", "input", `input x: ${data.channels.join(", ")}`),
      draw.tiles(labels, "classes", "labels", "label"),
      draw.tiles(prediction, "classes", "prediction", "prediction")),
    el("p", { class: "legend" }, key)];
  }

  function lens(data, event) {
    const node = data.nodes[event.i];
    const formula = data.formulas[node.operation];
    const ins = node.inputs.map(shapeText).join("  and  ");
    const out = shapeText(node.forward.results.y.shape);
    const head = el("header", {},
      el("h2", {}, node.name, el("small", {}, formula.title)),
      el("p", { class: "shapes" }, `${ins} → ${out}`, node.parameters ? ` · ${node.parameters.toLocaleString("en")} parameters` : ""),
      el("p", { class: "idea" }, formula.idea));
    if (event.kind === "meet") {
      return [head, meeting(data, node), el("div", { class: "columns" },
        el("section", { class: "pass forward" }, el("h3", {}, "Forward: used twice"), sources(data.sources.skip.forward, { mark: "skips.append(x)" })),
        el("section", { class: "pass backward" }, el("h3", {}, "Backward: the sum"), sources(data.sources.skip.backward, { mark: "dx = dx + dskips.pop()" })))];
    }
    return [head, ...(node.operation === "cce_dice_loss" ? scene(data) : []),
      el("div", { class: "columns" }, forwardColumn(data, node), backwardColumn(data, node)),
      node.meeting.length ? meeting(data, node) : null];
  }

  // ---- the room ----------------------------------------------------------------------------

  function open(root, data) {
    const events = eventsOf(data);
    const lives = livesOf(data.nodes);
    const turn = data.nodes.length;
    let at = 0;
    let timer = null;
    let drawn = null;
    let memory = null;

    const stage = el("div", { class: "u" });
    const graph = el("div", { class: "graph" });
    const status = el("p", { class: "status", "aria-live": "polite" });
    const detail = el("article", { class: "lens" });
    const scrubber = el("input", { type: "range", name: "step", min: 0, max: events.length - 1, value: 0,
      "aria-label": "step of forward and backward", oninput: () => { stop(); show(+scrubber.value); } });
    const button = (text, label, act) => el("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    const play = button("▶", "play", () => (timer ? stop() : start()));
    const bar = el("div", { class: "bar" },
      button("⇤", "first", () => { stop(); show(0); }), button("←", "back one", () => move(-1)), play,
      button("→", "on one", () => move(1)), button("⤓", "the turn", () => { stop(); show(turn - 1); }), status);

    function start() {
      if (at === events.length - 1) show(0);
      play.textContent = "❚❚";
      play.setAttribute("aria-label", "pause");
      timer = setInterval(() => (at < events.length - 1 ? show(at + 1) : stop()), 700);
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶";
      play.setAttribute("aria-label", "play");
    }

    function move(by) {
      stop();
      show(Math.min(events.length - 1, Math.max(0, at + by)));
    }

    function jump(i) {
      stop();
      const kind = events[at].kind === "forward" ? "forward" : "backward";
      show(events.findIndex((event) => event.i === i && event.kind === kind));
    }

    function render() {
      const width = Math.max(300, Math.floor(stage.clientWidth));
      drawn = drawU(data, layout(data, width), width, jump);
      memory = drawMemory(events, width);
      stage.replaceChildren(drawn.drawing);
      graph.replaceChildren(memory.drawing, scrubber);
      show(at);
    }

    function show(next) {
      at = next;
      const event = events[at];
      paintU(drawn, data, lives, events, at);
      memory.move(at);
      scrubber.value = at;
      const word = { forward: "forward", backward: "backward", meet: "sum of gradients" }[event.kind];
      status.replaceChildren(el("b", { class: event.kind === "forward" ? "forward" : "backward" }, word),
        ` ${data.nodes[event.i].name}`, el("span", {}, `step ${at + 1} of ${events.length} · ${prefixed(event.held, "B")} saved`));
      detail.replaceChildren(...lens(data, event).filter(Boolean));
    }

    root.append(
      el("p", { class: "lead" }, "One training step, recorded while it ran. Every block is an array: as wide as it has channels, as high as it has voxels along an axis. ",
        "Forward fills them from left to right and keeps what backward will need; backward returns from right to left, turns every kept array into a gradient, and lets it go."),
      stage, graph,
      el("p", { class: "legend" },
        el("span", {}, el("span", { class: "key kept" }), "kept for backward "),
        el("span", {}, el("span", { class: "key passed" }), "made, not kept "),
        el("span", {}, el("span", { class: "key gradient" }), "its gradient has arrived "),
        el("span", { class: "peak" }, `the curve: bytes saved, ${prefixed(Math.max(...data.held), "B")} at the turn`)),
      bar, detail);

    new ResizeObserver(() => stage.clientWidth && render()).observe(stage);
    render();
    return {
      key(name) {
        if (name === "ArrowRight") move(1);
        else if (name === "ArrowLeft") move(-1);
        else if (name === "Home") move(-events.length);
        else if (name === "End") move(events.length);
        else if (name === " ") play.click();
        else return false;
        return true;
      },
      go: (step) => { stop(); show(Math.min(events.length - 1, Math.max(0, step))); },
      repaint: () => stage.clientWidth && render(),
      leave: stop,
    };
  }

  return { open, eventsOf, livesOf };
})();
