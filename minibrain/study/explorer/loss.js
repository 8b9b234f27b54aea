"use strict";

// Room 3: logits on sliders, and what two losses make of them.
const loss = (() => {
  const { el, number } = draw;
  const { CLASSES, card } = kinds;

  const RIGHT = [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
  ];
  const EXAMPLES = {
    balanced: { counts: [1, 1, 1], logits: RIGHT },
    "a brain": { counts: [10000, 316, 10], logits: [[5, 0, 0], RIGHT[1], RIGHT[2]] },
    "all background": { counts: [10000, 316, 10], logits: Array(3).fill([4, 0, 0]) },
    "sure and wrong": {
      counts: [100, 100, 100],
      logits: [
        [5, 0, 0],
        [0, 5, 0],
        [6, 0, -6],
      ],
    },
  };

  const pullOf = (dz) => arithmetic.sum(dz.map(Math.abs));

  /** Share of each kind of voxel in the sum of |dz|: who it is that the network hears. */
  function pulls(counts, { gradient }) {
    const pull = gradient.map((dz, v) => counts[v] * pullOf(dz));
    const all = arithmetic.sum(pull);
    return pull.map((value) => (all ? value / all : 0));
  }

  const percent = (share) => `${(100 * share).toFixed(0)} %`;

  /** A bar that is divided among the kinds. */
  function stack(name, shares) {
    const said = shares.map((share, v) => `voxel ${v + 1} ${percent(share)}`).join(", ");
    const parts = shares.map((share, v) =>
      el(
        "span",
        { class: `of-${v}`, style: `width: ${100 * share}%` },
        share > 0.12 ? percent(share) : "",
      ),
    );
    return el(
      "div",
      { class: "stack" },
      el("span", {}, name),
      el("div", { class: "stack-bar", role: "img", "aria-label": `${name}: ${said}` }, parts),
    );
  }

  /** One voxel of the rarest kind against one of the most frequent. */
  function loudness({ counts, labels }, losses) {
    const rare = counts.indexOf(Math.min(...counts));
    const frequent = counts.indexOf(Math.max(...counts));
    if (rare === frequent) return "The three kinds are equally frequent.";
    const [one, other] = losses.map(({ gradient }) =>
      number(pullOf(gradient[rare]) / pullOf(gradient[frequent])),
    );
    return (
      `One ${CLASSES[labels[rare]]} voxel pulls ${one} times as hard as one ` +
      `${CLASSES[labels[frequent]]} voxel in cross-entropy, ${other} times in Dice.`
    );
  }

  function values([cce, dice]) {
    const scores = CLASSES.map((name, c) => `${name} ${dice.scores[c].toFixed(3)}`).join(", ");
    return el(
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
        `Soft Dice scores: ${scores}. The mean counts every class alike, however few its voxels.`,
      ),
    );
  }

  function whoPulls(state, losses) {
    const { counts, labels } = state;
    const voxels = arithmetic.sum(counts);
    const keys = labels.map((label, v) =>
      el("span", {}, el("span", { class: `key of-${v}` }), `${CLASSES[label]} `),
    );
    return el(
      "div",
      { class: "fact" },
      el("h3", {}, "Who pulls"),
      stack(
        "voxels",
        counts.map((count) => count / voxels),
      ),
      stack("Σ|dz|, CCE", pulls(counts, losses[0])),
      stack("Σ|dz|, Dice", pulls(counts, losses[1])),
      el("p", { class: "legend" }, keys),
      el("p", {}, loudness(state, losses)),
    );
  }

  const imbalance = () =>
    el(
      "div",
      { class: "fact across" },
      el("h3", {}, "What imbalance does"),
      el(
        "p",
        {},
        "Cross-entropy gives every voxel dz = (p − t) / voxels, whatever its class: a class is heard by its number of voxels and by how wrong they are. Dice divides by the size of the class, so a voxel of a rare class pulls harder. But dz goes through p: where the network is sure and wrong, p of the true class is near 0, and Dice falls silent while cross-entropy does not.",
      ),
    );

  function open(root) {
    const state = { counts: [], logits: [], labels: [] };
    const cards = CLASSES.map((_, v) => card(v, state, render));
    const summary = el("div", { class: "facts" });

    function load({ counts, logits }) {
      state.counts = [...counts];
      state.logits = logits.map((z) => [...z]);
      state.labels = [0, 1, 2];
      cards.forEach((each) => each.follow());
      render();
    }

    function render() {
      const { logits, labels, counts } = state;
      const losses = [arithmetic.crossEntropy, arithmetic.diceLoss].map((of) =>
        of(logits, labels, counts),
      );
      cards.forEach((each) => each.show(losses));
      summary.replaceChildren(values(losses), whoPulls(state, losses), imbalance());
    }

    const examples = Object.entries(EXAMPLES).map(([name, example]) =>
      el("button", { type: "button", onclick: () => load(example) }, name),
    );
    const elements = cards.map((each) => each.element);
    root.append(
      el(
        "p",
        { class: "lead" },
        "Three kinds of voxels, each with three logits and any number of voxels like it. Softmax makes probabilities p of the logits; the two losses compare them with the true class; dz is what backward hands to the network for one such voxel.",
      ),
      el("div", { class: "examples" }, el("span", { class: "quiet" }, "try"), examples),
      el("div", { class: "cards" }, elements),
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
