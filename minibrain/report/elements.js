// Elements, numbers and tables. Text is only ever set as text: names come from untrusted files.

const DASH = "–";
const CLASS_COLOURS = ["#8b96a5", "#2fc08a", "#4f8cff", "#ffb020", "#ef5350", "#b07cff", "#19b8d2"];
const RUN_COLOURS = ["#3b7cf5", "#ef7d32", "#17a673", "#a45cf0", "#d9457f", "#8f9b1f"];

const classColour = i => CLASS_COLOURS[i] ?? `hsl(${(i * 137.5) % 360} 65% 58%)`;
const runColour = i => RUN_COLOURS[i % RUN_COLOURS.length];

function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawing(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "colour") node.style.setProperty("--colour", value);
    else if (name === "style") Object.assign(node.style, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}

const dot = (colour, shape = "") => element("span", { class: `dot ${shape}`, colour });
const number = (value, digits = 3) => (value === null ? DASH : value.toFixed(digits));
const percent = value => (value === null ? DASH : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`);
const count = value => value.toLocaleString("en");
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits).replace("-", "−");

function between(ends, write = number) {
  return ends && ends[0] !== null ? element("small", {}, `${write(ends[0])} to ${write(ends[1])}`) : null;
}

// One choice of several, as radio buttons: arrow keys move between them.
function choice(name, options, chosen, onchange) {
  const label = ([value, text]) => element("label", {},
    element("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchange(value) }),
    element("span", {}, text));
  return element("fieldset", { class: "choice", "aria-label": name }, options.map(label));
}

// columns: { name, value(row) to sort by, cell(row) to show (default: the value), text: true if words }
function table(columns, rows, label) {
  const body = element("tbody");
  const draw = sorted => body.replaceChildren(...sorted.map(row => element("tr", {},
    columns.map(column => element("td", { class: column.text ? "text" : null },
      [column.cell ? column.cell(row) : String(column.value(row) ?? DASH)].flat())))));
  const heads = columns.map(column => element("th", { scope: "col", class: column.text ? "text" : null },
    element("button", { type: "button", onclick: () => sort(column) }, column.name)));
  function sort(column) {
    const head = heads[columns.indexOf(column)];
    const before = head.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : !column.text;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const known = rows.filter(row => column.value(row) !== null);
    const order = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    known.sort((a, b) => (descending ? -1 : 1) * order(column.value(a), column.value(b)));
    draw([...known, ...rows.filter(row => column.value(row) === null)]);
  }
  draw(rows);
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    element("table", {}, element("thead", {}, element("tr", {}, heads)), body));
}

function section(id, title, controls, ...content) {
  return element("section", { id, "aria-labelledby": `${id}-title` },
    element("header", {}, element("h2", { id: `${id}-title` }, title), controls), content);
}
