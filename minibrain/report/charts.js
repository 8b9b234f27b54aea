// Intervals on a common scale, curves over epochs, and confusion matrices.

// groups: { name, colour, values: [{ value, ends, colour, run }] }, all between 0 and 1
function forest(groups) {
  const lane = ({ value, ends, colour, run }) => element("div", {
    class: "lane", colour, title: `${run} ${number(value)}`, role: "img", "aria-label": `${run}: ${number(value)}`,
  },
  ends && ends[0] !== null && element("span", { class: "range", style: { left: `${100 * ends[0]}%`, right: `${100 * (1 - ends[1])}%` } }) || null,
  value === null ? null : element("span", { class: "point", style: { left: `${100 * value}%` } }));
  return element("div", { class: "forest" }, groups.map(group => [
    element("span", {}, group.name),
    element("div", { class: "lanes" }, group.values.map(lane)),
    element("div", { class: "numbers" }, group.values.map(item => element("span", {}, number(item.value)))),
  ]).flat());
}

// series: { name, legend, colour, dashed, points: [[epoch, value or null]] }; redrawn at every width
function lineChart(title, series, fixedTop) {
  const readout = element("output", {});
  const plot = element("div", {});
  const chart = element("div", { class: "chart" }, element("h3", {}, title), plot, readout);
  const values = series.flatMap(line => line.points.map(point => point[1])).filter(value => value !== null);
  const epochs = series.flatMap(line => line.points.map(point => point[0]));
  if (!values.length) return fill(chart, {}, ["nothing recorded"]);
  const top = fixedTop ?? tickStep(Math.max(...values)) * Math.ceil(Math.max(...values) / tickStep(Math.max(...values)));
  const [first, last] = [Math.min(...epochs), Math.max(...epochs, Math.min(...epochs) + 1)];

  function draw(width) {
    const height = 256, left = 38, right = 10, upper = 8, lower = 42;
    const x = epoch => left + (epoch - first) / (last - first) * (width - left - right);
    const y = value => height - lower - Math.min(value, top) / top * (height - upper - lower);
    const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": title });
    const step = tickStep(top);
    for (let tick = 0; tick <= top + 1e-9; tick += step) svg.append(
      drawing("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      drawing("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, +tick.toFixed(3)));
    const every = Math.max(1, Math.ceil(tickStep(last - first)));
    for (let epoch = Math.ceil(first / every) * every; epoch <= last; epoch += every) svg.append(
      drawing("text", { x: x(epoch), y: height - 23, "text-anchor": "middle" }, epoch));
    svg.append(drawing("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, "epoch"));
    for (const line of series) svg.append(drawing("path", {
      d: line.points.filter(point => point[1] !== null).map(([epoch, value], i) => `${i ? "L" : "M"}${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(""),
      stroke: line.colour, "stroke-dasharray": line.dashed ? "4 4" : null,
    }));
    const cursor = drawing("line", { class: "grid", y1: upper, y2: height - lower, visibility: "hidden" });
    svg.append(cursor);
    svg.addEventListener("pointermove", event => {
      const across = (event.clientX - svg.getBoundingClientRect().left - left) / (width - left - right);
      const epoch = Math.round(Math.min(1, Math.max(0, across)) * (last - first) + first);
      fill(cursor, { x1: x(epoch), x2: x(epoch), visibility: "visible" }, []);
      const said = series.map(line => [line.name, line.points.find(point => point[0] === epoch)]);
      readout.value = `epoch ${epoch}: ` + said.filter(([, point]) => point).map(([name, point]) => `${name} ${number(point[1])}`).join(", ");
    });
    plot.replaceChildren(svg);
  }
  new ResizeObserver(entries => draw(Math.max(200, entries[0].contentRect.width))).observe(plot);
  const legend = element("ul", { class: "legend" }, series.filter(line => line.legend).map(line => element("li", {}, dot(line.colour), line.legend)));
  chart.append(legend);
  return chart;
}

// About five ticks of 1, 2 or 5 times a power of ten.
function tickStep(extent) {
  const rough = extent / 5, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find(factor => factor * power >= rough);
}

// rows are the truth; each cell says which share of its row it holds
function confusionMatrix(confusion, classes, caption) {
  const cell = (voxels, row) => {
    const share = row ? voxels / row : null;
    return element("td", { style: { "--share": 0 }, title: `${count(voxels)} voxels` }, percent(share), element("small", {}, count(voxels)));
  };
  const body = confusion.map((row, i) => {
    const total = row.reduce((sum, voxels) => sum + voxels, 0);
    const cells = row.map(voxels => cell(voxels, total));
    cells.forEach((td, j) => td.style.setProperty("--share", total ? row[j] / total : 0));
    return element("tr", {}, element("th", { scope: "row" }, classes[i]), cells);
  });
  const heads = classes.map(name => element("th", { scope: "col" }, name));
  return element("div", {}, element("h3", {}, caption), element("div", { class: "scroll" },
    element("table", { class: "matrix" },
      element("thead", {}, element("tr", {}, element("th", {}, "truth ↓  predicted →"), heads)),
      element("tbody", {}, body))));
}
