"use strict";

// Elements, numbers and pictures: what the three rooms share.
const draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value);
    }
    node.append(
      ...children.flat(Infinity).filter((child) => child !== null && child !== undefined),
    );
    return node;
  }

  /** An element; text among the children stays text, whatever it holds. */
  const el = (tag, attributes = {}, ...children) =>
    fill(document.createElement(tag), attributes, children);

  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  /** Three digits, with a true minus; what is not finite is a string already. */
  function number(value, digits = 3) {
    if (value === 0) return "0";
    if (typeof value === "string") return value;
    const size = Math.abs(value);
    const text =
      size >= 1e4 || size < 1e-3
        ? value.toExponential(1).replace("e+", "e")
        : String(+value.toPrecision(digits));
    return text.replaceAll("-", "−");
  }

  /** 1.23 M for 1234567. */
  function prefixed(value, unit) {
    const prefixes = ["", "k", "M", "G", "T"];
    let step = 0;
    while (Math.abs(value) >= 999.5 && step < prefixes.length - 1) {
      value /= 1000;
      step += 1;
    }
    return `${+value.toPrecision(3)} ${prefixes[step]}${unit}`;
  }

  const times = (shape) => shape.join("×");

  function decode(picture) {
    if (!picture.bytes) {
      picture.bytes = Uint8Array.from(atob(picture.data), (character) => character.charCodeAt(0));
    }
    return picture.bytes;
  }

  const CLASSES = [
    [0, 0, 0, 0],
    [68, 170, 153, 255],
    [68, 119, 190, 255],
    [238, 170, 51, 255],
    [204, 102, 119, 255],
    [153, 102, 204, 255],
  ];

  const classColour = (label) => `rgb(${CLASSES[label % CLASSES.length].slice(0, 3).join(" ")})`;

  // The ends of the scale for gradients, and its middle, on light and on dark paper
  const SCALE = {
    light: { low: [33, 102, 172], zero: [248, 246, 241], high: [190, 74, 24] },
    dark: { low: [110, 176, 240], zero: [27, 28, 35], high: [246, 150, 88] },
  };

  const isDark = () => document.documentElement.dataset.theme === "dark";

  function colour(kind, value, largest) {
    if (kind === "classes") return CLASSES[Math.round(value) % CLASSES.length];
    const { low, zero, high } = SCALE[isDark() ? "dark" : "light"];
    const end = value < 0 ? low : high;
    const share = largest ? Math.sqrt(Math.abs(value) / largest) : 0;
    return [...zero.map((from, i) => from + (end[i] - from) * share), 255];
  }

  /** One channel of a picture as a canvas; kind is "grey", "signed" or "classes". */
  function tile(picture, channel, kind, label) {
    const { width, height, low, high } = picture;
    const canvas = el("canvas", { width, height, class: "tile", role: "img", "aria-label": label });
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const bytes = decode(picture).subarray(
      channel * width * height,
      (channel + 1) * width * height,
    );
    const largest = Math.max(Math.abs(low), Math.abs(high));
    const quantum = (high - low) / 255;
    bytes.forEach((byte, i) => {
      const exact = low + byte * quantum;
      const value = Math.abs(exact) < quantum / 2 ? 0 : exact; // eight bits may just miss zero
      const rgba = kind === "grey" ? [byte, byte, byte, 255] : colour(kind, value, largest);
      image.data.set(rgba, 4 * i);
    });
    context.putImageData(image, 0, 0);
    return canvas;
  }

  /** All channels of a picture in a row, with a caption. */
  function tiles(picture, kind, name, caption) {
    if (!picture) return null;
    const channels = Array.from({ length: picture.channels }, (_, c) =>
      tile(picture, c, kind, `${name}, channel ${c}`),
    );
    return el(
      "figure",
      { class: "tiles" },
      el("div", { class: "row", style: `--ratio: ${picture.width} / ${picture.height}` }, channels),
      el("figcaption", {}, caption),
    );
  }

  /** A table from rows of cells; the first row is the head. */
  function table(head, rows) {
    const line = (cells, tag) =>
      el(
        "tr",
        {},
        cells.map((cell) => el(tag, {}, cell)),
      );
    return el(
      "div",
      { class: "scroll" },
      el(
        "table",
        {},
        el("thead", {}, line(head, "th")),
        el(
          "tbody",
          {},
          rows.map((row) => line(row, "td")),
        ),
      ),
    );
  }

  /** Lines of mathematics, in which Σ_k,c has its indexes below. */
  const formula = (lines) =>
    el(
      "div",
      { class: "formula" },
      lines.map((line) =>
        el(
          "div",
          {},
          line
            .split(/_([a-z](?:,[a-z])*)/)
            .map((piece, i) => (i % 2 ? el("sub", {}, piece) : piece)),
        ),
      ),
    );

  return {
    el,
    svg,
    number,
    prefixed,
    times,
    tile,
    tiles,
    table,
    formula,
    isDark,
    classColour,
  };
})();
