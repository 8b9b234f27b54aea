"use strict";

// The frame around the rooms: which one is open, the keys, the colours.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const names = ["network", "convolution", "loss"];
  const makers = { network, convolution, loss };
  const rooms = {};

  function open(name, detail) {
    for (const other of names) {
      document.getElementById(other).hidden = other !== name;
      document.getElementById(`to-${other}`).toggleAttribute("aria-current", other === name);
      if (other !== name && rooms[other]) rooms[other].leave();
    }
    rooms[name] ??= makers[name].open(document.getElementById(name), data);
    if (detail !== undefined && rooms[name].go) rooms[name].go(+detail);
    if (detail === undefined) rooms[name].repaint();
  }

  /** The address after # is a room and, if there is one, a place in it: #network/31. */
  function follow() {
    const [name, detail] = location.hash.slice(1).split("/");
    open(
      names.includes(name) ? name : names[0],
      Number.isInteger(+detail) && detail ? detail : undefined,
    );
  }

  const current = () => names.find((name) => !document.getElementById(name).hidden);

  function dress(theme) {
    document.documentElement.dataset.theme = theme;
    document.getElementById("theme").textContent = theme === "dark" ? "light" : "dark";
    Object.values(rooms).forEach((room) => room.repaint());
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const pressing =
      [" ", "Enter"].includes(event.key) && event.target.closest("a, button, summary");
    const taken = pressing || event.target.closest("input, select, pre"); // they have uses for keys
    if (["1", "2", "3"].includes(event.key)) {
      location.hash = names[event.key - 1];
    } else if (!taken && rooms[current()].key(event.key)) {
      event.preventDefault();
    }
  });
  document
    .getElementById("theme")
    .addEventListener("click", () => dress(draw.isDark() ? "light" : "dark"));
  const preference = matchMedia("(prefers-color-scheme: dark)");
  preference.addEventListener("change", () => dress(preference.matches ? "dark" : "light"));
  window.addEventListener("hashchange", follow);
  dress(preference.matches ? "dark" : "light");
  follow();
  document.documentElement.dataset.ready = "true";
})();
