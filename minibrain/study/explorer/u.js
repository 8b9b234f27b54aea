"use strict";

// The network as a U, and what of it is in memory at each event of the step.
const u = (() => {
  const { svg, times } = draw;

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
      const find = (owner, name) =>
        owner &&
        owner.saved.find(
          (saved) =>
            saved.bytes &&
            saved.field.split(".").pop() === name &&
            times(saved.shape) === times(node.forward.results.y.shape),
        );
      const saved = find(node, "y") || find(nodes[i + 1], "x");
      return saved ? { until: saved.freed_after } : null;
    });
  }

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

  /** By the number of each node whose result is used twice: where the second use is, and a line. */
  function skipsOf(data, plan) {
    const skips = new Map();
    data.nodes.forEach((node, i) => {
      if (!node.meeting.length) return;
      const target = data.nodes.findIndex((other) => other.name === node.meeting.at(-1).from);
      const [from, to] = [plan.boxes[i], plan.boxes[target]];
      const d = `M${from.x + from.w},${from.y + 5}H${to.x}`;
      skips.set(i, { target, path: svg("path", { class: "link skip", d }) });
    });
    return skips;
  }

  /** A result: its shape, in a group that also has its name and room for a finger. */
  function blockOf({ x, y, w, h, channels }, name, onclick) {
    const shape = channels
      ? svg("rect", { x, y, width: w, height: h, rx: 1.5, class: "block" })
      : svg("circle", { cx: x + 5, cy: y + 5, r: 5, class: "block" });
    const around = { x: x - 3, y: y - 6, width: w + 6, height: h + 12 };
    const parts = [svg("title", {}, name), svg("rect", { ...around, class: "reach" }), shape];
    return { shape, group: svg("g", { onclick, class: "node" }, parts) };
  }

  function drawU(data, plan, width, jump) {
    const chain = [plan.input, ...plan.boxes];
    const links = plan.boxes.map((box, i) =>
      svg("path", { d: connector(chain[i], box), class: "link" }),
    );
    const skips = skipsOf(data, plan);
    const blocks = plan.boxes.map((box, i) => blockOf(box, data.nodes[i].name, () => jump(i)));
    const { x, y, w, h } = plan.input;
    const drawing = svg(
      "svg",
      {
        ...{ viewBox: `0 0 ${width} ${plan.height}`, width, height: plan.height, role: "img" },
        "aria-label":
          "The network as a U: blocks as wide as their channels and as high as their size",
      },
      [...skips.values()].map((skip) => skip.path),
      links,
      svg("rect", { x, y, width: w, height: h, class: "block input" }),
      blocks.map((block) => block.group),
      labels(data, plan),
    );
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
    const channels = plan.boxes.map((box, i) =>
      box.channels && box.channels !== chain[i].channels
        ? svg(
            "text",
            {
              x: box.x + box.w / 2,
              y: chain[i].level > box.level ? box.y - 5 : box.y + box.h + 13,
              class: "channels",
            },
            box.channels,
          )
        : null,
    );
    return [sizes, channels];
  }

  /** Classes on blocks and links that say what is there at this point of the step. */
  function paintU(drawn, data, lives, events, at) {
    const now = events[at];
    const done = (kind, i) =>
      events.slice(0, at + 1).some((event) => event.kind === kind && event.i === i);
    const backwardOver = (name) =>
      events
        .slice(0, at + 1)
        .some((event) => event.kind === "backward" && data.nodes[event.i].name === name);
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
      link.classList.toggle(
        "live-back",
        (now.kind === "backward" && now.i === i - 1) || (now.kind === "meet" && now.i === i - 1),
      );
    });
    for (const [i, skip] of drawn.skips) {
      skip.path.classList.toggle("live", now.kind === "forward" && now.i === skip.target);
      skip.path.classList.toggle("live-back", now.i === i && now.kind !== "forward");
    }
  }

  function drawMemory(events, width) {
    const height = 64;
    const largest = Math.max(...events.map((event) => event.held));
    const step = width / events.length;
    const y = (held) => height - 1 - (held / largest) * (height - 8);
    const turn = events.findIndex((event) => event.kind !== "forward");
    const area = (from, to) =>
      `M${from * step},${height}` +
      events
        .slice(from, to)
        .map((event, i) => `L${(from + i) * step},${y(event.held)}H${(from + i + 1) * step}`)
        .join("") +
      `V${height}Z`;
    const cursor = svg("rect", { y: 0, width: Math.max(2, step), height, class: "cursor" });
    const drawing = svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
      svg("path", { d: area(0, turn), class: "area forward" }),
      svg("path", { d: area(turn, events.length), class: "area backward" }),
      cursor,
    );
    return { drawing, move: (at) => cursor.setAttribute("x", at * step) };
  }

  return { eventsOf, livesOf, layout, drawU, paintU, drawMemory };
})();
