"""What a page looks like, measured in the browser: what is cut, overlaps or is too faint or small to read."""

from __future__ import annotations

from playwright.sync_api import Page

FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
REDRAWN = """() => [...document.querySelectorAll(".charts figure")].every((figure) =>
    figure.querySelector("svg")?.viewBox.baseVal.width === Math.max(figure.clientWidth, 260))"""

# Adds `texts`: [element, box] of everything visible that has text of its own; and `is_shown`.
COMMON = """
const is_shown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
function texts(root) {
  const found = [], walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, title, noscript") || !is_shown(element)) continue;
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) if (box.width > 0.5) found.push([element, box, node.data.trim().slice(0, 60)]);
  }
  return found;
}
"""

DEFECTS = (
    "() => {"
    + COMMON
    + """
  const page = document.documentElement, defects = [];
  if (page.scrollWidth !== page.clientWidth) defects.push(`the page is ${page.scrollWidth} wide`);
  const within = (box, other, slack) => box.left >= other.left - slack && box.right <= other.right + slack
    && box.top >= other.top - slack && box.bottom <= other.bottom + slack;
  const scrolling = (element) => element.closest(".scroll, pre, nav ul");
  for (const [element, box, text] of texts(document.body)) {
    if (element.closest("svg") || scrolling(element)) continue;
    if (box.left < -0.5 || box.right > page.clientWidth + 0.5) defects.push(`beyond the page: ${text}`);
  }
  for (const inside of document.querySelectorAll(".scroll, pre, nav ul")) {
    if (!is_shown(inside)) continue;
    const box = inside.getBoundingClientRect(), name = inside.textContent.trim().slice(0, 40);
    if (box.left < -0.5 || box.right > page.clientWidth + 0.5) defects.push(`a box beyond the page: ${name}`);
    const hinted = inside.closest(".wider").classList.contains("more");
    if (hinted !== inside.scrollWidth - inside.clientWidth - inside.scrollLeft > 1) defects.push(`hint ${hinted}: ${name}`);
  }
  // A cell's text lies inside the cell: it is neither clipped nor over its neighbour's.
  for (const cell of document.querySelectorAll("td, th, dd, dt, li, figcaption, button, .answer p")) {
    if (is_shown(cell) && cell.scrollWidth > cell.clientWidth + 1 && getComputedStyle(cell).display !== "inline") {
      defects.push(`cut: ${cell.textContent.trim().slice(0, 60)}`);
    }
  }
  for (const svg of document.querySelectorAll("figure svg")) {
    if (!is_shown(svg)) continue;
    const whole = svg.getBoundingClientRect(), labels = [...svg.querySelectorAll("text")].filter(is_shown);
    if (whole.left < -0.5 || whole.right > page.clientWidth + 0.5) defects.push("a picture beyond the page");
    const boxes = labels.map((label) => label.getBoundingClientRect());
    const scale = svg.getScreenCTM().a;
    labels.forEach((label, index) => {
      const box = boxes[index], text = label.textContent;
      if (!within(box, whole, 0.5)) defects.push(`beyond its picture: ${text}`);
      if (parseFloat(getComputedStyle(label).fontSize) * scale < 9.5) defects.push(`letters too small: ${text}`);
      const tile = label.closest(".treemap [tabindex]")?.querySelector("rect").getBoundingClientRect();
      if (tile && !within(box, tile, 1)) defects.push(`beyond its tile: ${text}`);
      for (let other = 0; other < index; other += 1) {
        const [one, two] = [box, boxes[other]];
        const [wide, high] = [Math.min(one.right, two.right) - Math.max(one.left, two.left),
                              Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top)];
        // A line's box has room above and below its letters.
        const overlap = wide > 0.5 && high > 0.35 * Math.min(one.height, two.height);
        if (overlap) defects.push(`overlap: ${text} | ${labels[other].textContent}`);
      }
    });
  }
  return [...new Set(defects)];
}"""
)

# WCAG 2.2, 1.4.3: at least 4.5 to 1. Under a picture's text lies the last shape drawn before it that covers its middle.
FAINT = (
    "() => {"
    + COMMON
    + """
  const channels = (colour) => {
    const [red, green, blue, alpha = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [red, green, blue, alpha];
  };
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const shapes = new Map();
  function shapesOf(svg) {
    const all = [...svg.querySelectorAll("rect, circle")]
      .map((shape) => [shape, getComputedStyle(shape).fill, shape.getBoundingClientRect()]);
    return all.filter(([, fill]) => fill !== "none" && channels(fill)[3] !== 0);
  }
  function ground(element, box) {
    const svg = element.closest("figure svg");
    if (svg) {
      if (!shapes.has(svg)) shapes.set(svg, shapesOf(svg));
      const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
      const under = shapes.get(svg).findLast(([shape, , there]) =>
        there.left <= x && x <= there.right && there.top <= y && y <= there.bottom
          && shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING);
      if (under) return under[1];
    }
    for (let at = element; at; at = at.parentElement) {
      const { backgroundColor } = getComputedStyle(at);
      if (channels(backgroundColor)[3] === 1) return backgroundColor;
    }
  }
  const faint = new Set();
  for (const [element, box, text] of texts(document.body)) {
    const style = getComputedStyle(element), colour = element.closest("figure svg") ? style.fill : style.color;
    const [one, two] = [luminance(colour), luminance(ground(element, box))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (two + 0.05);
    if (ratio < 4.5) faint.add(`${ratio.toFixed(2)} ${colour}: ${text}`);
  }
  return [...faint];
}"""
)


def resize(page: Page, width: int) -> None:
    """Hints follow a width with the next frame, the explorer's bars some milliseconds later."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(FRAMES)
    page.wait_for_function(REDRAWN)


def defects(page: Page) -> list[str]:
    """What is cut, overlaps, or scrolls without a hint, at the page's present width."""
    found: list[str] = page.evaluate(DEFECTS)
    return found


def faint_texts(page: Page) -> list[str]:
    """Visible texts with a contrast below 4.5 to 1, in the page's present colours."""
    found: list[str] = page.evaluate(FAINT)
    return found
