// What images take at each stop of the sliders: figures of one sequence stand in the page, and the batch multiplies bytes.
{
function followImages(block) {
  const { stops, numbers, figures, start, most, labels: say } = JSON.parse(block.querySelector('script[type="application/json"]').textContent);
  const chosen = { ...start };
  const controls = element("div", "controls");
  const table = element("table", "figures");
  const [wider, scroll] = [element("div", "wider"), element("div", "scroll")];
  scroll.tabIndex = 0;
  scroll.append(table);
  wider.append(scroll);
  block.append(controls, wider);
  hint(wider);

  // texts: what the slider's positions stand for.
  function slider(name, positions, textOf) {
    const [label, caption, shown, range] = [element("label"), element("span"), element("output"), element("input")];
    caption.textContent = say[name];
    const first = name === "batch" ? chosen.batch - 1 : chosen[name];
    Object.assign(range, { type: "range", min: 0, max: positions - 1, step: 1, value: first });
    range.setAttribute("aria-label", say[name]);
    const tell = () => {
      shown.textContent = textOf(Number(range.value));
      range.setAttribute("aria-valuetext", shown.textContent);
    };
    range.addEventListener("input", () => {
      chosen[name] = Number(range.value) + (name === "batch" ? 1 : 0);
      tell();
      show();
    });
    tell();
    label.append(caption, shown, range);
    controls.append(label);
  }
  slider("size", stops.length, (index) => stops[index].size);
  slider("number", numbers.length, (index) => counted(numbers[index]));
  slider("batch", most.batch, (index) => counted(index + 1));

  function show() {
    const stop = stops[chosen.size];
    const [tokens, least, cache, pixels] = figures[chosen.size][chosen.number];
    const bytes = (value) => (value === null ? "–" : `${sized(value * chosen.batch)} (${counted(value * chosen.batch)} B)`);
    const bounded = (text) => (stop.marks === null ? say.at_least.replace("{value}", text) : text);
    const rows = [
      ["resized", stop.resized],
      ["tokens", counted(stop.tokens)],
      ["marks", counted(stop.marks)],
      ["of_prompt", bounded(counted(tokens))],
      ["least_prompt", bounded(counted(least))],
      ["cache", cache === null ? "–" : bounded(bytes(cache))],
      ["pixels", bytes(pixels)],
    ];
    const body = element("tbody");
    for (const [key, text] of rows) {
      const [row, head, cell] = [element("tr"), element("th", "left"), element("td", "right")];
      row.dataset.figure = key;
      head.scope = "row";
      head.textContent = say[key];
      cell.textContent = text;
      row.append(head, cell);
      body.append(row);
    }
    table.replaceChildren(body);
  }
  show();
}

for (const block of document.querySelectorAll(".live.images")) followImages(block);
}
