"use strict";

// Room 3's three kinds of voxels: their sliders, and what softmax and the losses make of each.
const kinds = (() => {
  const { el, number } = draw;
  const CLASSES = ["background", "edema", "enhancing"];
  const LARGEST_LOGIT = 6;
  const DECADES = 4; // counts run from 1 to 10⁴

  const whole = (value) => Math.round(value).toLocaleString("en");

  /** A bar to the right of zero ("share"), or to both sides of it ("signed"). */
  function bar(value, largest, kind) {
    const share = largest ? value / largest : 0;
    const start = kind === "share" ? 0 : share < 0 ? 50 + 50 * share : 50;
    const width = kind === "share" ? 100 * share : 50 * Math.abs(share);
    return el(
      "span",
      { class: `bar-track ${kind}` },
      el("span", { class: "bar-fill", style: `left: ${start}%; width: ${width}%` }),
    );
  }

  const largestOf = (gradient) => Math.max(...gradient.flat().map(Math.abs));

  /** A row a class: p, and dz of both losses; losses is [cce, dice]. */
  function table(v, p, losses) {
    const cells = (c) => [
      el("td", {}, bar(p[c], 1, "share"), el("output", {}, p[c].toFixed(3))),
      losses.map(({ gradient }) =>
        el(
          "td",
          {},
          bar(gradient[v][c], largestOf(gradient), "signed"),
          el("output", {}, number(gradient[v][c])),
        ),
      ),
    ];
    const head = ["", "p", "dz of CCE", "dz of Dice"].map((name) => el("th", {}, name));
    const rows = CLASSES.map((name, c) => el("tr", {}, el("th", { scope: "row" }, name), cells(c)));
    return el(
      "table",
      { class: "values" },
      el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, rows),
    );
  }

  /** The card of kind v; state is {counts, logits, labels}, changed() is called after a change. */
  function card(v, state, changed) {
    const title = el("h3", {});
    const values = el("div", {});
    const set = (list, place, value) => {
      list[place] = value;
      changed();
    };
    const count = controls.slider({
      ...{ name: `count-${v}`, text: "voxels like it", min: 0, max: DECADES, step: 0.25, value: 0 },
      show: (value) => whole(10 ** value),
      change: (value) => set(state.counts, v, Math.round(10 ** value)),
    });
    const options = CLASSES.map((name, c) => el("option", { value: c }, name));
    const label = el(
      "select",
      { "aria-label": "true class", onchange: () => set(state.labels, v, +label.value) },
      options,
    );
    const logits = CLASSES.map((name, c) =>
      controls.slider({
        ...{ name: `logit-${v}-${c}`, text: name, step: 0.1, value: 0, show: number },
        ...{ min: -LARGEST_LOGIT, max: LARGEST_LOGIT },
        change: (value) => set(state.logits[v], c, value),
      }),
    );

    /** Sliders to where the state is. */
    function follow() {
      count.set(Math.log10(state.counts[v]));
      label.value = state.labels[v];
      logits.forEach((slider, c) => slider.set(state.logits[v][c]));
    }

    function show(losses) {
      title.textContent = `${whole(state.counts[v])} × ${CLASSES[state.labels[v]]}`;
      values.replaceChildren(table(v, arithmetic.softmax(state.logits[v]), losses));
    }

    const element = el(
      "article",
      { class: "card" },
      title,
      el("label", { class: "slider select" }, el("span", {}, "true class"), label),
      count.element,
      el("h4", {}, "logits z"),
      logits.map((slider) => slider.element),
      values,
    );
    return { element, follow, show };
  }

  return { CLASSES, card };
})();
