// The texts of the open room whose contrast with what lies behind them is below 4.5 (WCAG 2.2).
(() => {
  /** [r, g, b, opacity] of a computed colour, bytes. */
  function parse(colour) {
    const [kind, ...parts] = colour.match(/^[a-z]+|[\d.]+(?:e-?\d+)?/g);
    const [r, g, b, opacity = 1] = parts.map(Number);
    return kind === "color" ? [255 * r, 255 * g, 255 * b, opacity] : [r, g, b, opacity];
  }
  const over = (top, below) => below.map((byte, i) => byte + (top[i] - byte) * top[3]);
  function luminance(colour) {
    const [r, g, b] = colour.map((byte) =>
      byte <= 10 ? byte / 255 / 12.92 : ((byte / 255 + 0.055) / 1.055) ** 2.4,
    );
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function behind(node) {
    if (!node) return [255, 255, 255];
    const cell = node.closest(".cell")?.querySelector("rect");
    const own = cell ? getComputedStyle(cell).fill : getComputedStyle(node).backgroundColor;
    const below = behind(cell ? node.closest("div") : node.parentElement);
    return own === "none" ? below : over(parse(own), below);
  }
  function contrast(node) {
    const style = getComputedStyle(node);
    const back = behind(node);
    const front = over(parse(node instanceof SVGElement ? style.fill : style.color), back);
    const [dark, bright] = [luminance(front), luminance(back)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  }
  const isText = (node) =>
    node.getClientRects().length &&
    !node.closest(".later, title") && // kernels still to come are faint on purpose
    [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  const places = ".top *, main > section:not([hidden]) *, footer *";
  return [...document.querySelectorAll(places)]
    .filter((node) => isText(node) && contrast(node) < 4.5)
    .map((node) => `${node.textContent.slice(0, 40)}: ${contrast(node).toFixed(2)}`);
})();
