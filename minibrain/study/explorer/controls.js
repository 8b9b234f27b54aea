"use strict";

// Sliders, switches and the button that plays.
const controls = (() => {
  const { el } = draw;

  /** A labelled range input that shows its value; change(value) is called as it moves. */
  function slider({ name, text, min, max, value, step = 1, change, show = String }) {
    const output = el("output", {}, show(value));
    const input = el("input", {
      type: "range",
      name,
      min,
      max,
      step,
      value,
      "aria-label": text,
      oninput: () => {
        output.textContent = show(+input.value);
        change(+input.value);
      },
    });
    const set = (next) => {
      input.value = next;
      output.textContent = show(+input.value);
    };
    const title = el("span", {}, text);
    const rename = (next) => {
      title.textContent = next;
      input.setAttribute("aria-label", next);
    };
    const element = el("label", { class: "slider" }, title, input, output);
    return { input, set, rename, element };
  }

  /** Buttons of which one is pressed; options is {value: text}. */
  function choice(label, options, value, change) {
    const buttons = Object.entries(options).map(([option, text]) =>
      el(
        "button",
        {
          type: "button",
          "aria-pressed": String(option === value),
          onclick: () => {
            press(option);
            change(option);
          },
        },
        text,
      ),
    );
    const press = (chosen) =>
      Object.keys(options).forEach((option, i) =>
        buttons[i].setAttribute("aria-pressed", String(option === chosen)),
      );
    return {
      press,
      element: el("div", { class: "choice", role: "group", "aria-label": label }, buttons),
    };
  }

  /** A button that calls step() again and again, until that returns false or it is pressed again. */
  function player({ interval, step, wide = false }) {
    let timer = null;
    const button = el("button", {
      type: "button",
      class: wide ? "wide" : "",
      onclick: () => (timer ? stop() : start()),
    });
    function show(icon, word) {
      button.textContent = wide ? `${icon} ${word}` : icon;
      button.setAttribute("aria-label", word);
    }
    function start() {
      timer = setInterval(() => step() === false && stop(), interval);
      show("❚❚", "pause");
    }
    function stop() {
      clearInterval(timer);
      timer = null;
      show("▶", "play");
    }
    stop();
    return { button, stop };
  }

  return { slider, choice, player };
})();
