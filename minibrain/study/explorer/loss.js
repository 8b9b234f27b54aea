"use strict";

// Room 3: logits on sliders, and what two losses make of them.
const loss = (() => {
  const { el, number } = draw;
  const CLASSES = ["background", "edema", "enhancing"];
  const LARGEST_LOGIT = 6;
  const DECADES = 4; // counts run from 1 to 10⁴

  const EXAMPLES = {
    balanced: {
      counts: [1, 1, 1],
      logits: [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
      ],
    },
    "a brain": {
      counts: [10000, 316, 10],
      logits: [
        [5, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
      ],
    },
    "all background": {
      counts: [10000, 300, 10],
      logits: [
        [4, 0, 0],
        [4, 0, 0],
        [4, 0, 0],
      ],
    },
    "sure and wrong": {
      counts: [100, 100, 100],
      logits: [
        [5, 0, 0],
        [0, 5, 0],
        [6, 0, -6],
      ],
    },
  };

  const whole = (value) => Math.round(value).toLocaleString("en");

  /** A bar to the right of zero, or to both sides of it. */
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

  const pullOf = (dz) => arithmetic.sum(dz.map(Math.abs));

  const largestOf = (gradient) => Math.max(...gradient.flat().map(Math.abs));

  function open(root) {
    const state = { counts: [], logits: [], labels: [0, 1, 2] };
    const cards = [];
    const summary = el("div", { class: "facts" });

    function card(v) {
      const title = el("h3", {});
      const count = draw.slider({
        name: `count-${v}`,
        text: "voxels like it",
        min: 0,
        max: DECADES,
        step: 0.25,
        value: 0,
        show: (value) => whole(10 ** value),
        change: (value) => {
          state.counts[v] = Math.round(10 ** value);
          render();
        },
      });
      const label = el(
        "select",
        {
          "aria-label": "true class",
          onchange: () => {
            state.labels[v] = +label.value;
            render();
          },
        },
        CLASSES.map((name, c) => el("option", { value: c, selected: c === v }, name)),
      );
      const logits = CLASSES.map((name, c) =>
        draw.slider({
          name: `logit-${v}-${c}`,
          text: name,
          min: -LARGEST_LOGIT,
          max: LARGEST_LOGIT,
          step: 0.1,
          value: 0,
          show: number,
          change: (value) => {
            state.logits[v][c] = value;
            render();
          },
        }),
      );
      const values = el("div", {});
      return {
        title,
        count,
        label,
        logits,
        values,
        element: el(
          "article",
          { class: "card" },
          title,
          el("label", { class: "slider select" }, el("span", {}, "true class"), label),
          count.element,
          el("h4", {}, "logits z"),
          logits.map((slider) => slider.element),
          values,
        ),
      };
    }

    function load(example) {
      state.counts = example.counts.map(Math.round);
      state.logits = example.logits.map((z) => [...z]);
      state.labels = [0, 1, 2];
      cards.forEach((each, v) => {
        each.count.set(Math.log10(state.counts[v]));
        each.label.value = state.labels[v];
        each.logits.forEach((slider, c) => slider.set(state.logits[v][c]));
      });
      render();
    }

    function render() {
      const cce = arithmetic.crossEntropy(state.logits, state.labels, state.counts);
      const dice = arithmetic.diceLoss(state.logits, state.labels, state.counts);
      cards.forEach((each, v) => {
        const p = arithmetic.softmax(state.logits[v]);
        each.title.textContent = `${whole(state.counts[v])} × ${CLASSES[state.labels[v]]}`;
        const row = (c) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, CLASSES[c]),
            el("td", {}, bar(p[c], 1, "share"), el("output", {}, p[c].toFixed(3))),
            [cce, dice].map((each) =>
              el(
                "td",
                {},
                bar(each.gradient[v][c], largestOf(each.gradient), "signed"),
                el("output", {}, number(each.gradient[v][c])),
              ),
            ),
          );
        each.values.replaceChildren(
          el(
            "table",
            { class: "values" },
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                ["", "p", "dz of CCE", "dz of Dice"].map((head) => el("th", {}, head)),
              ),
            ),
            el(
              "tbody",
              {},
              CLASSES.map((_, c) => row(c)),
            ),
          ),
        );
      });
      summary.replaceChildren(...totals(cce, dice));
    }

    /** Share of each kind of voxel in the sum of |dz|: who it is that the network hears. */
    function pulls({ gradient }) {
      const pull = gradient.map((dz, v) => state.counts[v] * pullOf(dz));
      const all = arithmetic.sum(pull);
      return pull.map((value) => (all ? value / all : 0));
    }

    function stack(name, shares) {
      return el(
        "div",
        { class: "stack" },
        el("span", {}, name),
        el(
          "div",
          {
            class: "stack-bar",
            role: "img",
            "aria-label": `${name}: ${shares.map((share, v) => `voxel ${v + 1} ${(100 * share).toFixed(0)} %`).join(", ")}`,
          },
          shares.map((share, v) =>
            el(
              "span",
              { class: `of-${v}`, style: `width: ${100 * share}%` },
              share > 0.12 ? `${(100 * share).toFixed(0)} %` : "",
            ),
          ),
        ),
      );
    }

    /** One voxel of the rarest kind against one of the most frequent. */
    function loudness(cce, dice) {
      const [rare, frequent] = [Math.min, Math.max].map((pick) =>
        state.counts.indexOf(pick(...state.counts)),
      );
      const ratio = ({ gradient }) => pullOf(gradient[rare]) / pullOf(gradient[frequent]);
      const [one, other] = [cce, dice].map((each) => number(ratio(each)));
      return rare === frequent
        ? ""
        : `One ${CLASSES[state.labels[rare]]} voxel pulls ${one} times as hard as one ${CLASSES[state.labels[frequent]]} voxel in cross-entropy, ${other} times in Dice.`;
    }

    function totals(cce, dice) {
      const voxels = arithmetic.sum(state.counts);
      const shares = state.counts.map((count) => count / voxels);
      return [
        el(
          "div",
          { class: "fact" },
          el("h3", {}, "The values"),
          el(
            "p",
            { class: "formula" },
            `CCE = ${cce.loss.toFixed(4)}`,
            el("br"),
            `Dice loss = ${dice.loss.toFixed(4)}`,
            el("br"),
            `½ CCE + ½ Dice = ${((cce.loss + dice.loss) / 2).toFixed(4)}`,
          ),
          el(
            "p",
            {},
            `Soft Dice scores: ${CLASSES.map((name, c) => `${name} ${dice.scores[c].toFixed(3)}`).join(", ")}. The mean counts every class alike, however few its voxels.`,
          ),
        ),
        el(
          "div",
          { class: "fact" },
          el("h3", {}, "Who pulls"),
          stack("voxels", shares),
          stack("Σ|dz|, CCE", pulls(cce)),
          stack("Σ|dz|, Dice", pulls(dice)),
          el(
            "p",
            { class: "legend" },
            state.labels.map((label, v) =>
              el("span", {}, el("span", { class: `key of-${v}` }), `${CLASSES[label]} `),
            ),
          ),
          el("p", {}, loudness(cce, dice)),
          el(
            "p",
            {},
            "Cross-entropy gives every voxel dz = (p − t) / voxels, whatever its class: a class is heard by its number of voxels and by how wrong they are. Dice divides by the size of the class, so a voxel of a rare class pulls harder. But dz goes through p: where the network is sure and wrong, p of the true class is near 0, and Dice falls silent while cross-entropy does not.",
          ),
        ),
      ];
    }

    cards.push(...[0, 1, 2].map(card));
    root.append(
      el(
        "p",
        { class: "lead" },
        "Three kinds of voxels, each with three logits and any number of voxels like it. Softmax makes probabilities p of the logits; the two losses compare them with the true class; dz is what backward hands to the network for one such voxel.",
      ),
      el(
        "div",
        { class: "examples" },
        el("span", { class: "quiet" }, "try"),
        Object.entries(EXAMPLES).map(([name, example]) =>
          el("button", { type: "button", onclick: () => load(example) }, name),
        ),
      ),
      el(
        "div",
        { class: "cards" },
        cards.map((each) => each.element),
      ),
      summary,
    );
    load(EXAMPLES["a brain"]);
    return {
      key: () => false,
      go: (index) => load(Object.values(EXAMPLES)[index % 4]),
      repaint: render,
      leave: () => {},
    };
  }

  return { open };
})();
