"use strict";

// Room 1: one training step of a U-Net, operation by operation.
const network = (() => {
  const { el, prefixed } = draw;

  function open(root, data) {
    const events = u.eventsOf(data);
    const lives = u.livesOf(data.nodes);
    const turn = data.nodes.length;
    let at = 0;
    let timer = null;
    let drawn = null;
    let memory = null;

    const stage = el("div", { class: "u" });
    const graph = el("div", { class: "graph" });
    const status = el("p", { class: "status", "aria-live": "polite" });
    const detail = el("article", { class: "lens" });
    const scrubber = el("input", {
      type: "range",
      name: "step",
      min: 0,
      max: events.length - 1,
      value: 0,
      "aria-label": "step of forward and backward",
      oninput: () => {
        stop();
        show(+scrubber.value);
      },
    });
    const button = (text, label, act) =>
      el("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    const play = button("▶", "play", () => (timer ? stop() : start()));
    const bar = el(
      "div",
      { class: "bar" },
      button("⇤", "first", () => {
        stop();
        show(0);
      }),
      button("←", "back one", () => move(-1)),
      play,
      button("→", "on one", () => move(1)),
      button("⤓", "the turn", () => {
        stop();
        show(turn - 1);
      }),
      status,
    );

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
      drawn = u.drawU(data, u.layout(data, width), width, jump);
      memory = u.drawMemory(events, width);
      stage.replaceChildren(drawn.drawing);
      graph.replaceChildren(memory.drawing, scrubber);
      show(at);
    }

    function show(next) {
      at = next;
      const event = events[at];
      u.paintU(drawn, data, lives, events, at);
      memory.move(at);
      scrubber.value = at;
      const word = { forward: "forward", backward: "backward", meet: "sum of gradients" }[
        event.kind
      ];
      status.replaceChildren(
        el("b", { class: event.kind === "forward" ? "forward" : "backward" }, word),
        ` ${data.nodes[event.i].name}`,
        el("span", {}, `step ${at + 1} of ${events.length} · ${prefixed(event.held, "B")} saved`),
      );
      detail.replaceChildren(...lens(data, event).filter(Boolean));
    }

    root.append(
      el(
        "p",
        { class: "lead" },
        "One training step, recorded while it ran. Every block is an array: as wide as it has channels, as high as it has voxels along an axis. ",
        "Forward fills them from left to right and keeps what backward will need; backward returns from right to left, turns every kept array into a gradient, and lets it go.",
      ),
      stage,
      graph,
      el(
        "p",
        { class: "legend" },
        el("span", {}, el("span", { class: "key kept" }), "kept for backward "),
        el("span", {}, el("span", { class: "key passed" }), "made, not kept "),
        el("span", {}, el("span", { class: "key gradient" }), "its gradient has arrived "),
        el(
          "span",
          { class: "peak" },
          `the curve: bytes saved, ${prefixed(Math.max(...data.held), "B")} at the turn`,
        ),
      ),
      bar,
      detail,
    );

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
      go: (step) => {
        stop();
        show(Math.min(events.length - 1, Math.max(0, step)));
      },
      repaint: () => stage.clientWidth && render(),
      leave: stop,
    };
  }

  return { open };
})();
