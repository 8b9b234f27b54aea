// Drives the explorer from within: every slider to its ends, every step, every key. What is wrong
// on the way is what `drive` returns in the end. See test_explorer.py.
const problems = [];
const counts = {};
const formulas = new Set(); // sizes as they stand on the page, numbers filled in
const pause = (ms = 30) => new Promise((go) => setTimeout(go, ms));
function look(where) {
  counts[where] = (counts[where] ?? 0) + 1;
  const section = document.querySelector("main > section:not([hidden])");
  const text = section.textContent;
  const measured = where === "network" || counts[where] % 20 === 1; // it takes a layout
  const beyond = measured ? document.documentElement.scrollWidth - innerWidth : 0;
  if (beyond > 0) problems.push(`${where}: ${beyond} pixels wider than the window`);
  const found = text.match(/.{0,40}(NaN|undefined|Infinity|\[object).{0,40}/);
  if (found) problems.push(`${where}: ${found[0]}`);
  for (const node of section.querySelectorAll("svg, svg *, canvas, .bar-fill, .stack-bar span")) {
    for (const { name, value } of node.attributes) {
      if (/NaN|undefined|Infinity/.test(value)) problems.push(`${where}: ${node.tagName} ${name}`);
    }
  }
  const both = text.match(/⟨C a, b⟩ = (−?\d+)⟨a, Cᵀ b⟩ = (−?\d+)/);
  if (both) counts.identities = (counts.identities ?? 0) + 1;
  if (both && both[1] !== both[2]) problems.push(`${where}: the adjoint identity`);
  for (const node of section.querySelectorAll(".stage svg, .stage canvas, td, .line, .formula")) {
    const measures = measured && node.getClientRects().length;
    const beyond = measures ? node.getBoundingClientRect().right - innerWidth : 0;
    if (beyond > 0) problems.push(`${where}: ${node.tagName} is cut off by ${beyond} pixels`);
  }
  if (where === "convolution") recount(section);
  const status = section.querySelector(".status")?.textContent ?? "";
  const marked = section.querySelectorAll(".line.marked").length;
  if (marked !== (status.startsWith("sum") ? 2 : 0)) problems.push(`${where}: ${marked} marks`);
}
/** Does the arithmetic that room 2 shows come out, and are these the slices that kernels reach? */
function recount(section) {
  if (section.querySelector(".obstacle")) return;
  formulas.add(section.querySelector(".size > div:last-child").textContent);
  const working = section.querySelector(".working").textContent;
  const sum = working.match(/^y\[[\d, ]+\] = (.*) = (\d+)$/);
  if (sum) {
    const products = sum[1].split(" + ").map((product) => product.split("·"));
    const total = products.reduce((all, [a, b]) => all + a * b, 0);
    if (total !== +sum[2]) problems.push(working);
    counts.sums = (counts.sums ?? 0) + 1;
  }
  const slice = working.match(/^Slice (\d+) of y is made of (?:slices? )?([\d, ]*)/);
  if (slice) {
    const [n, k, s, p, d, e] = inRoom("convolution").map((slider) => +slider.value);
    const transposed = section.querySelectorAll(".choice button")[1].ariaPressed === "true";
    const shape = arithmetic.geometry(transposed, { n, k, s, p, d, e });
    const reached = arithmetic
      .contacts(shape)
      .map(([position, , voxel]) => (transposed ? [voxel, position] : [position, voxel]))
      .flatMap(([z, from]) => (z === +slice[1] ? [from] : []));
    if (reached.join(", ") !== slice[2].trim()) problems.push(`${working} not ${reached}`);
    counts.slices = (counts.slices ?? 0) + 1;
  }
}
function move(slider, value) {
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}
function every(sliders, where) {
  for (let bits = 0; bits < 2 ** sliders.length; bits++) {
    sliders.forEach((slider, i) => move(slider, (bits >> i) & 1 ? slider.max : slider.min));
    look(where);
  }
}
const inRoom = (name) => [...document.querySelectorAll(`#${name} input[type=range]`)];
const press = (key) =>
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
/** The arrows move the slider by one, space plays and stops. */
async function stepAndPlay(name, slider) {
  const steps = [];
  press("Home");
  move(slider, slider.min);
  for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft"]) {
    press(key);
    steps.push(+slider.value);
  }
  press(" ");
  await pause(1500);
  steps.push(+slider.value);
  press(" ");
  await pause(800);
  steps.push(+slider.value);
  if (String(steps) !== "1,2,1,3,3") problems.push(`${name}: keys went ${steps}`);
}
async function drive(rooms) {
  for (const name of rooms) {
    location.hash = name;
    await pause();
    const sliders = inRoom(name);
    counts[`${name} sliders`] = sliders.length;
    if (name === "network") {
      for (let step = 0; step <= +sliders[0].max; step++) {
        move(sliders[0], step);
        look(name);
        const kept = document.querySelectorAll(".block.kept").length;
        counts.mostKept = Math.max(counts.mostKept ?? 0, kept);
        if (step === +sliders[0].max && kept) problems.push(`${kept} blocks kept after the end`);
      }
    } else if (name === "convolution") {
      for (const button of [0, 1].flatMap((mode) => [2, 3, 4].map((rank) => [mode, rank]))) {
        button.forEach((i) => document.querySelectorAll("#convolution .choice button")[i].click());
        every(sliders.slice(0, 6), name); // n, k, s, p, d, output padding
        [5, 3, 2, 0, 1, 0].forEach((value, i) => move(sliders[i], value)); // a legal setting
        for (const slider of sliders.slice(6)) {
          for (const value of [slider.max, slider.min]) {
            move(slider, value);
            look(name);
          }
        }
      }
    } else {
      every(
        sliders.filter((slider) => slider.name.startsWith("count")),
        name,
      );
      for (const slider of sliders) {
        for (const value of [slider.max, slider.min]) {
          move(slider, value);
          look(name);
        }
      }
      for (const end of ["max", "min"]) {
        sliders.forEach((slider) => move(slider, slider[end]));
        look(name);
      }
    }
    for (const button of document.querySelectorAll(`#${name} .examples button`)) {
      button.click();
      look(name);
    }
    if (name !== "loss") await stepAndPlay(name, name === "network" ? sliders[0] : sliders[6]);
    for (const key of ["ArrowRight", "ArrowLeft", " ", " ", "Home", "End"]) {
      press(key);
      look(name);
    }
    document.getElementById("theme").click();
    await pause();
    look(name);
  }
  return { problems: problems.slice(0, 20), counts, formulas: [...formulas] };
}
