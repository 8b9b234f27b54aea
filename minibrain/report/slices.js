// The slice browser: one canvas for the truth and one for each run, all showing the same slice.

const MISTAKES = [["missed", "#ff4d8d"], ["false alarm", "#22c7f2"], ["other class", "#ffd166"]];
const CANVAS_WIDTH = 640;  // voxels are drawn larger, so that borders between classes stay sharp

// Class volumes are zlib-compressed bytes, slice after slice, row after row.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const rgb = colour => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  context.fillStyle = colour;  // the browser turns any colour into #rrggbb
  return [1, 3, 5].map(i => parseInt(context.fillStyle.slice(i, i + 2), 16));
};

async function openCase(packed) {
  const load = url => { const image = new Image(); image.src = url; return image.decode().then(() => image); };
  const [images, labels] = await Promise.all([
    Promise.all(packed.images.map(load)),
    Promise.all([packed.truth, ...packed.predictions].map(unpack)),
  ]);
  return { ...packed, images, labels };
}

function sliceBrowser(cases, runs, classes, modalities) {
  const state = { case: Math.floor(cases.length / 2), modality: 0, slice: 0, opacity: 0.7, view: "classes", truth: false };
  const classColours = classes.map((_, i) => rgb(classColour(i)));
  const mistakeColours = MISTAKES.map(([, colour]) => rgb(colour));
  const opened = new Map();
  let current = null;

  const select = element("select", { onchange: () => show(Number(select.value)) },
    cases.map((item, i) => element("option", { value: i }, `${item.case} (${item.note})`)));
  const opacity = element("input", { type: "range", min: 0, max: 1, step: 0.05, value: state.opacity,
    oninput: () => change({ opacity: Number(opacity.value) }) });
  const flip = element("button", { type: "button", "aria-pressed": "false", onclick: () => change({ truth: !state.truth }) }, "Show truth");
  const slider = element("input", { type: "range", min: 0, step: 1, "aria-label": "Slice", oninput: () => change({ slice: Number(slider.value) }) });
  const profile = drawing("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
  const place = element("output", {});
  const modality = choice("Modality", modalities.map((name, i) => [i, name]), 0, i => change({ modality: Number(i) }));
  const view = choice("Overlay", [["classes", "Classes"], ["mistakes", "Mistakes"], ["none", "Image only"]], "classes", value => change({ view: value }));
  const panels = ["Truth", ...runs.map(run => run.name)].map((name, i) => {
    const canvas = element("canvas", { role: "img" });
    const title = element("span", {}, i ? [dot(runColour(i - 1)), " "] : "", name);
    const found = element("small", {});
    const letters = ["L", "R", "A", "P"].map(letter => element("i", { "aria-hidden": "true" }, letter));
    return { name, canvas, title, found, figure: element("figure", {},
      element("figcaption", {}, title, found), element("div", { class: "film" }, canvas, letters)) };
  });

  async function show(index) {
    state.case = index;
    select.value = index;
    if (!opened.has(index)) opened.set(index, openCase(cases[index]));
    const ready = await opened.get(index);
    if (state.case !== index) return;  // another one was chosen meanwhile
    current = ready;
    slider.max = current.slices.length - 1;
    drawProfile();
    change({ slice: current.start });
  }

  function change(changes) {
    Object.assign(state, changes);
    if (!current) return;
    state.slice = Math.max(0, Math.min(current.slices.length - 1, state.slice));
    slider.value = state.slice;
    opacity.value = state.opacity;
    flip.setAttribute("aria-pressed", state.truth);
    for (const [name, value] of [["Modality", state.modality], ["Overlay", state.view]]) {
      browser.querySelector(`input[name="${name}"][value="${value}"]`).checked = true;
    }
    place.value = `slice ${current.slices[state.slice]} (0 to ${current.depth - 1})`;
    slider.setAttribute("aria-valuetext", place.value);
    panels.forEach(draw);
    const { modality, slice, view, truth, opacity: strength } = state;
    Object.assign(browser.dataset, { case: current.case, modality, slice: current.slices[slice], view, truth, opacity: strength });
  }

  function draw(panel, i) {
    const [width, height] = current.size, plane = width * height;
    const at = state.slice * plane;
    const truth = current.labels[0].subarray(at, at + plane);
    const labels = current.labels[state.truth ? 0 : i].subarray(at, at + plane);
    const scale = Math.max(1, Math.round(CANVAS_WIDTH / width));
    Object.assign(panel.canvas, { width: width * scale, height: height * scale });
    panel.canvas.style.aspectRatio = current.aspect;
    const context = panel.canvas.getContext("2d");
    const column = state.slice % current.across, row = Math.floor(state.slice / current.across);
    context.drawImage(current.images[state.modality], column * width, row * height, width, height, 0, 0, width * scale, height * scale);
    if (state.view !== "none") {
      const mistakes = state.view === "mistakes" && i > 0;
      const shown = mistakes ? mistakesOf(truth, labels) : labels;
      context.imageSmoothingEnabled = false;
      context.drawImage(paint(shown, width, height, mistakes ? mistakeColours : classColours, !mistakes), 0, 0, width * scale, height * scale);
    }
    const voxels = labels.reduce((sum, label) => sum + (label > 0), 0);
    panel.found.textContent = `${(voxels * current.pixel / 100).toFixed(1)} cm²`;
    panel.found.title = "area of all tumour classes in this slice";
    panel.canvas.setAttribute("aria-label", `${panel.name}, ${place.value}, ${panel.found.textContent}`);
  }

  // Where both are right there is no mistake: colour 0 is nothing, 1 missed, 2 false alarm, 3 other.
  function mistakesOf(truth, labels) {
    return labels.map((label, i) => label === truth[i] ? 0 : label === 0 ? 1 : truth[i] === 0 ? 2 : 3);
  }

  // Fills are translucent and their borders solid, both as strong as the opacity says.
  function paint(labels, width, height, colours, first) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let i = 0; i < labels.length; i++) {
      const label = labels[i];
      if (!label) continue;
      const border = labels[i - 1] !== label || labels[i + 1] !== label || labels[i - width] !== label || labels[i + width] !== label;
      image.data.set(colours[first ? label : label - 1], 4 * i);
      image.data[4 * i + 3] = 255 * state.opacity * (border ? 1 : 0.6);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  // Above the slider: how much tumour each slice has, in truth (filled) and as predicted (lines).
  function drawProfile() {
    const plane = current.size[0] * current.size[1], depth = current.slices.length;
    const areas = current.labels.map(labels => current.slices.map((_, z) =>
      labels.subarray(z * plane, (z + 1) * plane).reduce((sum, label) => sum + (label > 0), 0)));
    const most = Math.max(1, ...areas.flat());
    const line = area => area.map((voxels, z) => `${z + 0.5},${(1 - voxels / most) * 38 + 1}`).join(" ");
    profile.setAttribute("viewBox", `0 0 ${depth} 40`);
    profile.replaceChildren(
      drawing("polygon", { points: `0.5,40 ${line(areas[0])} ${depth - 0.5},40`, fill: "var(--quiet)", opacity: 0.35 }),
      ...areas.slice(1).map((area, i) => drawing("polyline", { points: line(area), fill: "none", stroke: runColour(i), "stroke-width": 2, "vector-effect": "non-scaling-stroke" })));
  }

  const keys = {
    ArrowUp: () => change({ slice: state.slice + 1 }),
    ArrowDown: () => change({ slice: state.slice - 1 }),
    m: () => change({ modality: (state.modality + 1) % modalities.length }),
    t: () => change({ truth: !state.truth }),
    e: () => change({ view: state.view === "mistakes" ? "classes" : "mistakes" }),
    h: () => change({ view: state.view === "none" ? "classes" : "none" }),
    n: () => show((state.case + 1) % cases.length),
  };
  const browser = section("slices", "Slices", null,
    element("div", { class: "controls" }, element("label", {}, "Case", select), modality, view,
      element("label", {}, "Opacity", opacity), flip),
    element("div", { class: "panels", style: {} }, panels.map(panel => panel.figure)),
    element("div", { class: "scrubber" }, profile, place, slider),
    element("ul", { class: "legend" },
      classes.slice(1).map((name, i) => element("li", { class: "class" }, dot(classColour(i + 1), "square"), name)),
      MISTAKES.map(([name, colour]) => element("li", { class: "mistake quiet" }, dot(colour, "square"), name))),
    element("p", { class: "quiet" }, "Keys: ", [["↑ ↓", "slice"], ["M", "modality"], ["T", "truth"], ["E", "mistakes"], ["H", "hide colours"], ["N", "next case"]]
      .map(([key, meaning]) => [element("kbd", {}, key), ` ${meaning}   `]).flat()));
  browser.querySelector(".panels").style.setProperty("--across", panels.length > 4 ? 3 : panels.length);
  browser.tabIndex = 0;
  browser.addEventListener("keydown", event => {
    const typing = event.target.matches("select") || (event.target.matches("input") && event.key.startsWith("Arrow"));
    const key = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!key || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    key();
  });
  show(state.case);
  return { browser, show };
}
