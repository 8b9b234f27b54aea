// The page from its data: overview, slices, scores, cases, confusion, curves, background test.

const data = JSON.parse(document.getElementById("data").textContent);
const { runs, classes, regions } = data;
const several = runs.length > 1;
const structures = [...classes.map((name, i) => ({ name, labels: [i] })), ...regions];
const METRICS = [["dice", "Dice"], ["iou", "IoU"], ["recall", "Recall"], ["precision", "Precision"]];
const WAYS = [["pooled", "Pooled over the set"], ["per_case", "Mean over cases"]];

const runName = run => element("span", { class: "run" }, dot(runColour(runs.indexOf(run))), " ", run.name);
const runColumn = { name: "Run", text: true, value: row => row.run.name, cell: row => runName(row.run) };
const fewCases = data.cases < 10 ? " With fewer than ten cases intervals are too narrow." : "";
const withInterval = (value, ends, write = number) => [write(value), between(ends, write)];

function header() {
  const theme = element("button", { type: "button", title: "Light or dark", "aria-label": "Light or dark", onclick: () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
      || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  } }, "◐");
  const links = [...document.querySelectorAll("section")].map(part =>
    element("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
  const names = classes.slice(1).map((name, i) => element("li", {}, dot(classColour(i + 1), "square"), name));
  return [
    element("nav", { "aria-label": "Sections" }, element("div", {}, element("div", { class: "links" }, links), theme)),
    element("div", { class: "top" },
      element("p", { class: "eyebrow" }, several ? "minibrain comparison" : "minibrain run"),
      element("h1", {}, data.title),
      element("p", { class: "quiet" }, `${data.task}: ${count(data.cases)} ${data.cases === 1 ? "case" : "cases"}, judged in the space of the original files.`),
      element("ul", { class: "legend" }, names),
      several ? null : tiles(runs[0])),
  ];
}

function tiles({ scores, baseline }) {
  const tile = (score, field, label, note) => element("div", { class: "tile" },
    element("span", {}, label), element("strong", {}, number(scores[score][field])),
    between(scores[score][`${field}_interval`]), element("small", { style: { display: "block" } }, note));
  return element("div", { class: "tiles" },
    tile("dice", "pooled_foreground_mean", "Mean Dice", "pooled, without background"),
    tile("iou", "pooled_foreground_mean", "Mean IoU", "pooled, without background"),
    tile("dice", "per_case_foreground_mean", "Mean Dice", "per case, without background"),
    tile("iou", "pooled_mean", "Mean IoU", "pooled, with background"),
    baseline === null ? null : element("div", { class: "tile quiet" }, element("span", {}, "Without context"), element("strong", {}, number(baseline)),
      element("small", { style: { display: "block" } }, "mean IoU of a classifier that sees single voxels, pooled, without background")));
}

function comparison() {
  const mean = (score, field, name) => ({
    name, value: run => run.scores[score][field],
    cell: run => withInterval(run.scores[score][field], run.scores[score][`${field}_interval`]),
  });
  const settings = Object.keys(runs[0].settings).map(name => ({
    name, value: run => run.settings[name].value, cell: run => run.settings[name].text, text: typeof runs[0].settings[name].value === "string",
  }));
  const difference = {
    name: `Difference of Dice from ${runs[0].name}`,
    value: run => run.difference && run.difference.value,
    cell: run => run.difference ? withInterval(run.difference.value, run.difference.interval, signed) : DASH,
  };
  const named = { ...runColumn, value: run => run.name, cell: runName };
  const outcome = table([
    named,
    mean("dice", "pooled_foreground_mean", "Mean Dice"), difference,
    mean("dice", "per_case_foreground_mean", "Mean Dice per case"),
    mean("iou", "pooled_foreground_mean", "Mean IoU"),
    mean("iou", "pooled_mean", "Mean IoU with background")], runs, "Outcome");
  const explained = element("p", { class: "quiet" }, "Without background and pooled over the set but where said otherwise; small figures are "
    + "95 % intervals. Differences are taken on the same cases: an interval that leaves out 0 is more than the chance of these cases." + fewCases);
  const given = table([named, ...settings], runs, "Settings of the runs");
  return several ? section("comparison", "Comparison", null, outcome, explained, given) : section("settings", "Settings", null, given);
}

function scores() {
  const shown = { metric: "dice", way: "pooled" };
  const chart = element("div", {}), numbers = element("div", {});
  function draw() {
    const value = (run, i) => run.scores[shown.metric][shown.way][i];
    const ends = (run, i, metric = shown.metric) => run.scores[metric][`${shown.way}_interval`][i];
    chart.replaceChildren(forest(structures.map((structure, i) => ({
      name: structure.name,
      values: runs.map((run, r) => ({ run: run.name, value: value(run, i), ends: ends(run, i), colour: several ? runColour(r) : classColour(i < classes.length ? i : structure.labels[0]) })),
    })).slice(1)));
    const rows = structures.flatMap((structure, i) => runs.map(run => ({ run, structure, i })));
    const metric = ([key, name]) => ({
      name, value: row => row.run.scores[key][shown.way][row.i],
      cell: row => withInterval(row.run.scores[key][shown.way][row.i], ends(row.run, row.i, key)),
    });
    const perCase = (key, name, write) => ({
      name, value: row => row.run.scores[key].per_case[row.i],
      cell: row => withInterval(row.run.scores[key].per_case[row.i], row.run.scores[key].per_case_interval[row.i], write),
    });
    numbers.replaceChildren(table([
      { name: "Class or region", text: true, value: row => row.structure.name },
      ...(several ? [runColumn] : []),
      ...METRICS.map(metric),
      perCase("hausdorff95_mm", "Hausdorff 95, mm", value => number(value, 1)),
      perCase("volume_error_ml", "Volume error, ml", value => signed(value, 2)),
      { name: "Absent in", value: row => row.run.scores.dice.absent[row.i], cell: row => `${row.run.scores.dice.absent[row.i]} of ${row.run.scores.cases}` },
    ], rows, "Scores"));
  }
  const choose = key => value => { shown[key] = value; draw(); };
  draw();
  return section("scores", "Scores",
    element("div", { class: "controls", style: { marginBottom: 0 } }, choice("Score", METRICS, shown.metric, choose("metric")), choice("Average", WAYS, shown.way, choose("way"))),
    chart, several ? element("ul", { class: "legend", style: { marginBottom: "1rem" } }, runs.map(run => element("li", {}, runName(run)))) : null, numbers,
    element("p", { class: "quiet" }, "Bars and small figures: 95 % bootstrap interval over cases. Hausdorff distance and volume error are means over cases." + fewCases));
}

function caseTable(look) {
  const inBrowser = new Map(data.slices.map((item, i) => [item.case, i]));
  const rows = runs[0].cases.flatMap((_, i) => runs.map(run => ({ run, ...run.cases[i] })));
  const distance = regions.length ? classes.length : null;  // of the first region, the whole tumour
  const named = ({ case: name }) => inBrowser.has(name) ? element("button", { type: "button", class: "link", title: "look at its slices", onclick: () => {
    look(inBrowser.get(name));
    document.getElementById("slices").scrollIntoView();
    document.getElementById("slices").focus({ preventScroll: true });
  } }, name) : name;
  return section("cases", "Cases", null, table([
    { name: "Case", text: true, value: row => row.case, cell: named },
    ...(several ? [runColumn] : []),
    { name: "Mean", value: row => row.mean, cell: row => number(row.mean) },
    ...structures.slice(1).map((structure, i) => ({
      name: structure.name, value: row => row.dice[i + 1], cell: row => number(row.dice[i + 1]),
    })),
    ...(distance === null ? [] : [{ name: "Hausdorff 95, mm", value: row => row.hausdorff95[distance], cell: row => number(row.hausdorff95[distance], 1) }]),
    { name: "Tumour, ml", value: row => row.truth_ml, cell: row => number(row.truth_ml, 2) },
    { name: "Predicted, ml", value: row => row.prediction_ml, cell: row => number(row.prediction_ml, 2) },
  ], rows, "Dice of every case"),
  element("p", { class: "quiet" }, `Dice per class and region, and its mean over the classes without background${distance === null ? "" : "; Hausdorff distance of the whole tumour"}. A dash: in neither truth nor prediction.`));
}

function confusions() {
  return section("confusion", "Confusion", null, element("div", { class: "columns" },
    runs.map(run => confusionMatrix(run.scores.confusion, classes, several ? runName(run) : "Share of the true voxels of each class"))));
}

function curves() {
  const line = (run, key, name, dashed) => ({
    name: several ? `${run.name}, ${name}` : name, legend: several ? dashed ? null : run.name : name, colour: several ? runColour(runs.indexOf(run)) : runColour(dashed ? 0 : 1), dashed,
    points: run.history.map(row => [row.epoch, row[key]]),
  });
  return section("curves", "Curves", null, element("div", { class: "columns" },
    lineChart(several ? "Loss: validation, and training dashed" : "Loss, half cross-entropy and half Dice", runs.flatMap(run => [line(run, "train_loss", "training", true), line(run, "validation_loss", "validation", false)])),
    lineChart("Mean foreground IoU on the validation cases", runs.map(run => line(run, "validation_iou", "validation", false)), 1)),
  element("p", { class: "quiet" }, "Judged is the network of the epoch with the highest IoU on the validation cases, which are none of the cases above."));
}

function background() {
  const rows = runs.filter(run => run.background).map(run => ({ run, ...run.background }));
  const share = (name, key, of) => ({
    name, value: row => row[key],
    cell: row => [`${percent(row[key])}`, element("small", {}, `of ${count(row[of])}`), between(row[`${key}_interval`], percent)],
  });
  return section("background", "Background test", null, table([
    runColumn,
    { name: "Cases", value: row => row.cases },
    { name: "False tumour per case, ml", value: row => row.false_ml, cell: row => withInterval(row.false_ml, row.false_ml_interval, value => number(value, 2)) },
    { name: "largest, ml", value: row => row.false_ml_largest, cell: row => number(row.false_ml_largest, 2) },
    share("Slices with a false alarm", "alarmed_slices", "free_slices"),
    share("Cases with a false alarm", "alarmed_cases", "free_cases"),
  ], rows, "False alarms"),
  element("p", { class: "quiet" }, "On the cases set aside for having under 1 % tumour, which no network was trained on: "
    + "what it sees where the truth is background, and on how many axial slices, and cases, without any tumour it sees some."));
}

function notes() {
  const note = (term, text) => [element("dt", {}, term), element("dd", {}, text)];
  const regionText = regions.map(region => `${region.name} (${region.labels.map(label => classes[label]).join(", ")})`).join("; ");
  return element("footer", {}, element("dl", {},
    note("Pooled or per case", "Pooled: all voxels of the set are counted together, so large tumours weigh more. Mean over cases: every case has its own score and weighs the same."),
    note("Absent", "A class that is in neither truth nor prediction of a case has no score there; it is left out of the mean, and counted."),
    note("Hausdorff 95", "The larger of the two directed 95th-percentile distances between the surfaces, in mm. Without truth or prediction there is none, so a tumour that was missed altogether lowers Dice and recall but not this."),
    regions.length ? note("Regions", `Classes judged as one: ${regionText}.`) : []),
  element("p", {}, "Slices are axial, seen from above: the patient's right is at the right. Not for clinical use."));
}

const look = data.slices.length ? sliceBrowser(data.slices, runs, classes, data.modalities) : null;
const main = element("main", {}, several ? comparison() : null, look && look.browser, scores(), caseTable(look && look.show),
  confusions(), runs.some(run => run.history.length) ? curves() : null, runs.some(run => run.background) ? background() : null,
  several || !Object.keys(runs[0].settings).length ? null : comparison(), notes());
document.body.append(main);
const [navigation, top_] = header();
document.body.prepend(navigation);
main.prepend(top_);
document.documentElement.dataset.ready = "true";
