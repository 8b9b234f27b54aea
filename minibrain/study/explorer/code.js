"use strict";

// Python source, line by line: coloured, long lines wrapped under their beginning, the docstring
// folded away, and one line pointed at.
const code = (() => {
  const { el } = draw;

  const TOKENS =
    /("""[\s\S]*?"""|"[^"\n]*"|'[^'\n]*')|(#.*)|\b(def|return|for|in|if|else|elif|not|and|or|is|while|yield|with|as|raise|lambda|class|None|True|False|from|import)\b|(@\w+)/g;

  /** For each line its pieces: spans for what has a colour, plain text for the rest. */
  function piecesOf(text) {
    const lines = [[]];
    const add = (kind, words) =>
      words.split("\n").forEach((part, i) => {
        if (i) lines.push([]);
        if (part) lines.at(-1).push(kind ? el("span", { class: kind }, part) : part);
      });
    let end = 0;
    for (const match of text.matchAll(TOKENS)) {
      add(null, text.slice(end, match.index));
      const kind = ["string", "comment", "keyword", "decorator"].find((_, i) => match[i + 1]);
      add(kind, match[0]);
      end = match.index + match[0].length;
    }
    add(null, text.slice(end));
    return lines;
  }

  /** Hides all of a docstring but its first line, behind a button that brings it back. */
  function foldDocstring(text, lines) {
    const found = text.match(/"""[\s\S]*?"""/);
    const height = found ? found[0].split("\n").length : 1;
    if (height < 3) return;
    const first = text.slice(0, found.index).split("\n").length - 1;
    const folded = lines.slice(first + 1, first + height);
    folded.forEach((line) => (line.hidden = true));
    const more = el(
      "button",
      {
        type: "button",
        class: "more",
        "aria-label": "the whole docstring",
        onclick: () => {
          folded.forEach((line) => (line.hidden = false));
          more.remove();
        },
      },
      "⋯",
    );
    lines[first].append(more);
  }

  /** source is {text}, with {mark}, the number of a line, if there is one to point at. */
  return ({ text, mark }) => {
    const indents = text.split("\n").map((line) => line.search(/\S|$/));
    const lines = piecesOf(text).map((pieces, i) =>
      el(
        "span",
        { class: i === mark ? "line marked" : "line", style: `--indent: ${indents[i]}ch` },
        pieces,
      ),
    );
    foldDocstring(text, lines);
    return el("pre", { tabindex: "0" }, el("code", {}, lines));
  };
})();
