"use strict";

// Room 1: one training step of a U-Net, operation by operation.
const network = (() => {
  const { el, prefixed } = draw;

  const WORDS = { forward: "forward", backward: "backward", meet: "sum of gradients" };

  const lead = () =>
    el(
      "p",
      { class: "lead" },
      "One training step, recorded while it ran. Every block is an array: as wide as it has channels, as high as it has voxels along an axis. ",
      "Forward fills them from left to right and keeps what backward will need; backward returns from right to left, turns every kept array into a gradient, and lets it go.",
    );

  function legend(largest) {
    const key = (name, text) => el("span", {}, el("span", { class: `key ${name}` }), text);
    return el(
      "p",
      { class: "legend" },
      key("kept", "kept for backward "),
      key("passed", "made, not kept "),
      key("gradient", "its gradient has arrived "),
      el(
        "span",
        { class: "peak" },
        `the curve: bytes saved, ${prefixed(largest, "B")} at the turn`,
      ),
    );
  }

  /** The buttons and the slider that move through the step; go(to) does it. */
  function transport({ last, turn, go, by, advance }) {
    const play = controls.player({ interval: 700, step: advance });
    const move = (to) => {
      play.stop();
      go(Math.min(last, Math.max(0, to)));
    };
    const button = (text, label, act) =>
      el("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    const status = el("p", { class: "status", "aria-live": "polite" });
    const scrubber = el("input", {
      ...{ type: "range", name: "step", min: 0, max: last, value: 0 },
      "aria-label": "step of forward and backward",
      oninput: () => move(+scrubber.value),
    });
    const bar = el(
      "div",
      { class: "bar" },
      button("⇤", "first", () => move(0)),
      button("←", "back one", () => move(by(-1))),
      play.button,
      button("→", "on one", () => move(by(1))),
      button("⤓", "the turn", () => move(turn)),
      status,
    );
    return { play, move, status, scrubber, bar };
  }

  const said = ({ kind, held }, name, place) => [
    el("b", { class: kind === "forward" ? "forward" : "backward" }, WORDS[kind]),
    ` ${name}`,
    el("span", {}, `${place} · ${prefixed(held, "B")} saved`),
  ];

  function open(root, data) {
    const events = u.eventsOf(data);
    const lives = u.livesOf(data.nodes);
    let at = 0;
    let drawn = null;
    let memory = null;
    const stage = el("div", { class: "u" });
    const graph = el("div", { class: "graph" });
    const detail = el("article", { class: "lens" });
    const { play, move, status, scrubber, bar } = transport({
      last: events.length - 1,
      turn: data.nodes.length - 1,
      go: show,
      by: (steps) => at + steps,
      advance,
    });

    /** One event further while it plays, and after the end from the beginning. */
    function advance() {
      show((at + 1) % events.length);
      return at < events.length - 1;
    }

    function jump(i) {
      const kind = events[at].kind === "forward" ? "forward" : "backward";
      move(events.findIndex((event) => event.i === i && event.kind === kind));
    }

    function render() {
      const width = Math.max(300, Math.floor(stage.clientWidth));
      drawn = u.drawU(data, u.layout(data, width), width, jump);
      memory = u.drawMemory(events, width);
      stage.replaceChildren(drawn.drawing);
      graph.replaceChildren(memory.drawing, scrubber);
      show(at);
    }

    function show(next) {
      at = next;
      const event = events[at];
      const place = `step ${at + 1} of ${events.length}`;
      u.paintU(drawn, data, lives, events, at);
      memory.move(at);
      scrubber.value = at;
      status.replaceChildren(...said(event, data.nodes[event.i].name, place));
      detail.replaceChildren(...lens(data, event).flat().filter(Boolean));
    }

    function key(name) {
      const targets = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: events.length };
      if (name === " ") play.button.click();
      else if (name in targets) move(targets[name]);
      else return false;
      return true;
    }

    root.append(lead(), stage, graph, legend(Math.max(...data.held)), bar, detail);
    new ResizeObserver(() => stage.clientWidth && render()).observe(stage);
    render();
    return { key, go: move, repaint: () => stage.clientWidth && render(), leave: play.stop };
  }

  return { open };
})();
