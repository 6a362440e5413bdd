"use strict";
// Folds trees, sorts and searches tables, and draws only the visible rows of a long table. Text is only put into text nodes.
const ROW = 28; // pixels, as in the style sheet
const AROUND = 20; // rows drawn above and below those in view
const UNITS = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, K: 1e3, M: 1e6, B: 1e9, T: 1e12 };
const collator = new Intl.Collator(undefined, { numeric: true });

// 1.5 GiB, 8.19B, 640 B, 12.3%, +1,234 as a number; null, which sorts last, if the text is no number.
function quantity(text) {
  const match = /^([+-]?[\d,]*\.?\d+)( ?)(KiB|MiB|GiB|TiB|[KMBT]\b)?/.exec(text);
  if (!match) return null;
  const bytes = match[2] === " " && match[3] === "B";
  return Number(match[1].replaceAll(",", "")) * (bytes ? 1 : UNITS[match[3]] ?? 1);
}

// The inverse of html.py's `_packed`.
function unpacked(column) {
  if (column.values) return column.indices.map((index) => column.values[index]);
  let before = "";
  return column.rest.map((rest, row) => (before = before.slice(0, column.shared[row]) + rest));
}

function rowsOf(block, body) {
  const island = block.querySelector('script[type="application/json"]');
  if (!island) return [...body.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
  const columns = JSON.parse(island.textContent).map(unpacked);
  return columns[0].map((_, row) => columns.map((column) => column[row]));
}

function element(name, kind) {
  const node = document.createElement(name);
  if (kind) node.className = kind;
  return node;
}

// Formats as units.py does: thousands separators; the largest binary unit with two decimals, rounded half to even.
const counted = (value) => (value === null ? "–" : value.toLocaleString("en-US"));
function sized(bytes) {
  if (bytes === null) return "–";
  for (const [unit, power] of [["TiB", 40n], ["GiB", 30n], ["MiB", 20n], ["KiB", 10n]]) {
    const unitBytes = 1n << power;
    if (BigInt(bytes) < unitBytes) continue;
    let hundredths = (BigInt(bytes) * 100n) / unitBytes;
    const twice = 2n * ((BigInt(bytes) * 100n) % unitBytes);
    if (twice > unitBytes || (twice === unitBytes && hundredths % 2n)) hundredths += 1n;
    return `${(hundredths / 100n).toLocaleString("en-US")}.${String(hundredths % 100n).padStart(2, "0")} ${unit}`;
  }
  return `${bytes} B`;
}

function enhance(block) {
  const [table, scroll] = [block.querySelector("table"), block.querySelector(".scroll")];
  const [body, heads] = [table.tBodies[0], [...table.tHead.rows[0].cells]];
  const [isLong, isCards] = ["long", "cards"].map((kind) => block.classList.contains(kind));
  const kinds = heads.map((head) => head.className);
  const rows = rowsOf(block, body);
  let order = rows.map((_, row) => row);
  let drawn = "";

  function rowElement(index) {
    const row = element("tr");
    rows[index].forEach((text, column) => {
      const cell = element("td", kinds[column]);
      cell.textContent = text;
      if (isLong) cell.title = text;
      if (isCards && column) cell.dataset.label = heads[column].textContent;
      row.append(cell);
    });
    return row;
  }
  function gap(pixels) {
    const row = element("tr", "gap");
    const cell = element("td");
    cell.colSpan = heads.length;
    cell.style.height = `${pixels}px`;
    row.append(cell);
    return row;
  }
  function draw() {
    if (!isLong) return body.replaceChildren(...order.map(rowElement));
    const first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - AROUND);
    const end = Math.min(order.length, Math.ceil((scroll.scrollTop + scroll.clientHeight) / ROW) + AROUND);
    const now = `${first} ${end}`;
    if (now === drawn) return;
    drawn = now;
    body.replaceChildren(gap(first * ROW), ...order.slice(first, end).map(rowElement), gap((order.length - end) * ROW));
  }
  function redraw() {
    drawn = "";
    if (isLong) scroll.scrollTop = 0;
    draw();
  }

  // Column widths from the longest cell, so that columns keep their place while rows are drawn and removed.
  if (isLong) {
    const wide = (text) => [...text].reduce((sum, character) => sum + (character.codePointAt(0) > 0x2e7f ? 2 : 1), 0);
    const columns = element("colgroup");
    heads.forEach((head, column) => {
      const longest = rows.reduce((most, row) => Math.max(most, row[column].length), 0);
      const col = element("col");
      col.style.width = `${Math.min(90, Math.max(longest, wide(head.textContent) + 2) + 3)}ch`;
      columns.append(col);
    });
    table.prepend(columns);
    scroll.addEventListener("scroll", draw, { passive: true });
    addEventListener("resize", draw);
    addEventListener("beforeprint", () => body.replaceChildren(...order.map(rowElement)));
    addEventListener("afterprint", redraw);
    draw();
  }

  let sorted = null;
  const original = new Map();
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.disabled = rows.length < 2;
    button.addEventListener("click", () => {
      const downwards = head.getAttribute("aria-sort") === "ascending" || (kinds[column] === "right" && sorted !== column);
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", downwards ? "descending" : "ascending");
      sorted = column;
      arrange();
    });
  });
  function arrange() {
    order = matchingRows();
    if (sorted !== null) {
      const sign = heads[sorted].getAttribute("aria-sort") === "descending" ? -1 : 1;
      const asNumber = kinds[sorted] === "right";
      const keys = original.get(sorted) ?? rows.map((row) => (asNumber ? quantity(row[sorted]) : row[sorted]));
      original.set(sorted, keys);
      order.sort((a, b) => {
        const [left, right] = [keys[a], keys[b]];
        if (left === null || right === null) return (left === null) - (right === null) || a - b;
        return sign * (asNumber ? left - right : collator.compare(left, right)) || a - b;
      });
    }
    redraw();
  }

  const search = block.querySelector(".search");
  const input = search?.querySelector("input");
  const status = search?.querySelector("output");
  let lowered = null;
  function matchingRows() {
    const words = input ? input.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    const all = rows.map((_, row) => row);
    if (!words.length) return all;
    lowered ??= rows.map((row) => row.join("\n").toLowerCase());
    return all.filter((row) => words.every((word) => lowered[row].includes(word)));
  }
  function showCount() {
    const number = new Intl.NumberFormat("en-US");
    status.textContent = status.dataset.pattern
      .replace("{shown}", number.format(order.length)).replace("{total}", number.format(rows.length));
  }
  if (search) {
    search.hidden = false;
    showCount();
    input.addEventListener("input", () => { arrange(); showCount(); });
  }
}

for (const block of document.querySelectorAll(".table")) enhance(block);
for (const tree of document.querySelectorAll(".tree")) {
  const folding = tree.querySelector(".folding");
  folding.hidden = !tree.querySelector("details");
  folding.addEventListener("click", ({ target }) => {
    if (target.dataset.open === undefined) return;
    for (const details of tree.querySelectorAll("details")) details.open = target.dataset.open !== "";
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const label = button.textContent;
    await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    button.textContent = button.dataset.done;
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}
// Marks what can be scrolled to the right; the style sheet shows it.
const watch = new ResizeObserver((entries) => mark(new Set(entries.map(({ target }) => target.closest(".wider")))));
function mark(widers) {
  const marks = [...widers].map((wider) => {
    const inside = wider.querySelector(".scroll, pre, ul");
    return [wider, inside.scrollWidth - inside.clientWidth - inside.scrollLeft > 1];
  });
  for (const [wider, more] of marks) wider.classList.toggle("more", more); // all measured first: a change lays out again
}
function hint(wider) {
  const inside = wider.querySelector(".scroll, pre, ul");
  inside.addEventListener("scroll", () => mark([wider]), { passive: true });
  for (const observed of [inside, inside.firstElementChild]) watch.observe(observed);
}
for (const wider of document.querySelectorAll(".wider")) hint(wider);

// The contents' entry of the section in view.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const sections = [...links.keys()].map((id) => document.getElementById(id));
function follow() {
  const read = sections.findLast((heading) => heading.getBoundingClientRect().top < innerHeight / 4);
  for (const [id, link] of links) {
    if (id !== read?.id) link.removeAttribute("aria-current");
    else if (!link.hasAttribute("aria-current")) {
      link.setAttribute("aria-current", "true");
      const list = link.closest("ul");
      list.scrollTo({ left: link.offsetLeft - list.clientWidth / 3 });
    }
  }
}
if (sections.length) {
  addEventListener("scroll", follow, { passive: true });
  follow();
}

// Roving tabindex over a picture's parts: Tab reaches one part; arrow keys, Home and End move between parts.
for (const svg of document.querySelectorAll("figure svg")) {
  const parts = [...svg.querySelectorAll("[tabindex]")];
  if (!parts.length) continue;
  const status = element("output");
  status.setAttribute("aria-live", "polite");
  svg.parentElement.append(status);
  const announce = (part) => { status.textContent = part.querySelector("title").textContent; };
  for (const part of parts) {
    part.addEventListener("pointerenter", () => announce(part));
    part.addEventListener("focus", () => announce(part));
    part.addEventListener("keydown", (event) => {
      const at = parts.indexOf(event.currentTarget);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: parts.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const next = parts[Math.min(Math.max(to, 0), parts.length - 1)];
      event.currentTarget.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }
}
