// Computes a run's memory for any workload, to the byte: it replays the run's requests through a model of CUDA's caching allocator.
// `AllocatorModel` is a port of qwen_inspect/predicting/allocation/allocator.py, which names the source of every step.
{
const MIB = 2 ** 20, ROUNDING = 512, SMALL = MIB, SMALL_SEGMENT = 2 * MIB, OWN_SEGMENT = 10 * MIB, OWN_ROUNDING = 2 * MIB;
const DRIVER_STEP = 32 * MIB;
const ADDRESS_PAGES = 2 ** 26; // 1.25 PiB of addresses, still exact in a double

class Pool {
  constructor(smallestRest, page) { this.smallestRest = smallestRest; this.page = page; this.free = []; this.unmapped = []; }
  // Index of the first block that is larger, or equal in size and not at a lower address. Unmapped blocks: by address alone.
  position(list, size, address) {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1, block = list[middle];
      const lower = block.address < address;
      const before = block.mapped ? block.size < size || (block.size === size && lower) : lower;
      if (before) low = middle + 1; else high = middle;
    }
    return low;
  }
  list(block) { return block.mapped ? this.free : this.unmapped; }
  add(block) { const list = this.list(block); list.splice(this.position(list, block.size, block.address), 0, block); }
  take(block) { const list = this.list(block); list.splice(this.position(list, block.size, block.address), 1); }
  merge(block) {
    const { next, previous } = block;
    if (next && !next.used && next.mapped === block.mapped) { this.take(next); absorbNext(block, next); }
    if (previous && !previous.used && previous.mapped === block.mapped) {
      this.take(previous);
      absorbNext(previous, block);
      return previous;
    }
    return block;
  }
}

function newBlock(pool, address, size, mapped) {
  return { pool, address, size, mapped, used: false, requested: 0, previous: null, next: null };
}
function cut(block, size) {
  const rest = newBlock(block.pool, block.address + size, block.size - size, block.mapped);
  rest.previous = block;
  rest.next = block.next;
  if (block.next) block.next.previous = rest;
  block.next = rest;
  block.size = size;
  return rest;
}
function absorbNext(block, next) {
  block.size += next.size;
  block.next = next.next;
  if (next.next) next.next.previous = block;
}
const reach = (block) => block.size + (block.next && !block.next.mapped ? block.next.size : 0);

// Addresses of segments: in the lowest gap (`rests`) with room, else at the bottom of new DRIVER_STEPs below all others.
class DriverModel {
  constructor() { this.lowest = 0; this.rests = []; } // rests: [address, size], by address
  place(size) {
    let index = this.rests.findIndex(([, rest]) => rest >= size);
    if (index < 0) {
      const reserved = Math.ceil(size / DRIVER_STEP) * DRIVER_STEP;
      this.lowest -= reserved;
      this.rests.unshift([this.lowest, reserved]);
      index = 0;
    }
    const [address, rest] = this.rests[index];
    this.rests.splice(index, 1, ...(rest > size ? [[address + size, rest - size]] : []));
    return address;
  }
}

class AllocatorModel {
  constructor(settings) {
    this.settings = settings;
    this.driver = new DriverModel();
    this.allocated = this.reserved = this.requested = 0;
    this.whole = settings.expandable || settings.maxSplit === null ? Infinity : settings.maxSplit;
    this.small = new Pool(ROUNDING, SMALL_SEGMENT);
    this.large = new Pool(settings.expandable ? ROUNDING : SMALL + 1, settings.largeSegment);
    this.rounded = new Map();
    if (settings.expandable) {
      this.small.add(newBlock(this.small, 0, this.small.page * ADDRESS_PAGES, false));
      this.large.add(newBlock(this.large, this.large.page * ADDRESS_PAGES, this.large.page * ADDRESS_PAGES, false));
    }
  }
  blockSize(size) {
    let power = 1, bits = 0; // power: 2 ** bits
    while (power <= size) { power *= 2; bits += 1; }
    const { divisions } = this.settings;
    const parts = divisions[Math.min(Math.max(bits - 21, 0), divisions.length - 1)];
    const step = parts > 1 && size > ROUNDING * parts ? power / 2 / parts : ROUNDING;
    return Math.max(Math.ceil(size / step) * step, ROUNDING);
  }
  segmentSize(size) {
    if (size <= SMALL) return SMALL_SEGMENT;
    return size < OWN_SEGMENT ? this.settings.largeSegment : Math.ceil(size / OWN_ROUNDING) * OWN_ROUNDING;
  }
  allocate(requested) {
    if (requested === 0) return newBlock(this.small, 0, 0, true);
    let size = this.rounded.get(requested);
    if (size === undefined) this.rounded.set(requested, size = this.blockSize(requested));
    const pool = size <= SMALL ? this.small : this.large;
    const block = this.bestFit(pool, size) ?? (this.settings.expandable ? this.grow(pool, size) : this.newSegment(pool, size));
    if (block.size - size >= pool.smallestRest && size < this.whole) pool.add(cut(block, size));
    block.used = true;
    block.requested = requested;
    this.allocated += block.size;
    this.requested += requested;
    return block;
  }
  free(block) {
    block.used = false;
    this.allocated -= block.size;
    this.requested -= block.requested;
    if (block.size) block.pool.add(block.pool.merge(block));
  }
  bestFit(pool, size) {
    const { free } = pool;
    let index = pool.position(free, size, -Infinity);
    if (index === free.length) return null;
    if (this.settings.expandable) while (index + 1 < free.length && reach(free[index + 1]) < reach(free[index])) index += 1;
    const split = this.settings.maxSplit ?? Infinity;
    if (free[index].size >= (size < split ? split : size + this.settings.maxNonSplit)) return null;
    return free.splice(index, 1)[0];
  }
  newSegment(pool, size) {
    const segment = this.segmentSize(size);
    const block = newBlock(pool, this.driver.place(segment), segment, true);
    this.reserved += segment;
    return block;
  }
  grow(pool, size) {
    let block = lowestRoom(pool, size);
    if (!block.mapped) block = this.map(block, Math.min(block.size, size));
    while (block.size < size) block = this.map(block.next, Math.min(size - block.size, block.next.size));
    pool.take(block);
    return block;
  }
  map(block, size) {
    const { pool } = block, mapped = Math.ceil(size / pool.page) * pool.page;
    pool.take(block);
    if (mapped < block.size) pool.add(cut(block, mapped));
    block.mapped = true;
    const merged = pool.merge(block);
    pool.add(merged);
    this.reserved += mapped;
    return merged;
  }
}

function lowestRoom(pool, size) {
  for (const unmapped of pool.unmapped) {
    const start = unmapped.previous && !unmapped.previous.used ? unmapped.previous : unmapped;
    let room = 0;
    for (let block = start; block && !block.used; block = block.next) if ((room += block.size) >= size) return start;
  }
  return null;
}

// The bytes of a request (exploration.py, RequestSize); NaN if a double cannot represent them exactly.
function sizeOf([coefficients, most, half, before, growth], batch, prompt, total, growths) {
  const tokens = most === null ? total : Math.min(total, most);
  const lengths = [1, prompt, prompt * prompt, tokens];
  const polynomial = (factors) => factors.reduce((sum, factor, at) => {
    const part = factor * lengths[at % 4] * (at < 4 ? 1 : batch);
    return Number.isSafeInteger(part) ? sum + part : NaN;
  }, 0);
  let size = polynomial(coefficients);
  if (growth) {
    const steps = total - prompt - 1, first = polynomial(before);
    // A part that ends smaller (a window) has its final size from the first step on.
    if (steps === 0 || size > first) size = first + (steps ? ((size - first) / steps) * grownTokens(steps, growth, growths) : 0);
  }
  if (!Number.isSafeInteger(size)) return NaN;
  return half === 0 ? size : half === 1 ? Math.floor(size / 2) : size - Math.floor(size / 2);
}

// Tokens added to the cache after `growth` of `growths` growths, which stand for all decoding steps.
const grownTokens = (steps, growth, growths) => Math.floor((steps * growth) / growths);

// Replays the run. Returns {steady, peak, reserved}, each moment as {terms: bytes by term, rounding, allocated}; the peak has a
// stage too. peak and reserved are null without a trace; the whole is null if a number cannot be represented exactly.
function replayed(run, batch, prompt, fresh) {
  const sizes = run.sizes.map((size) => sizeOf(size, batch, prompt, prompt + fresh - 1, run.growths));
  const longer = (growth) => grownTokens(fresh - 2, growth, run.growths);
  if (!sizes.every(Number.isSafeInteger)) return null;
  const model = new AllocatorModel(run.settings);
  const blocks = new Array(run.requests.length);
  const bytesOf = new Array(run.terms.length).fill(0); // by index of the term
  let [peak, reserved, peakAt, largest] = [null, 0, -1, 0];
  const moment = () => ({
    terms: Object.fromEntries(run.terms.map((term, index) => [term, bytesOf[index]])),
    rounding: model.allocated - model.requested, allocated: model.allocated,
  });
  let allocations = 0;
  for (let event = 0; event < run.order.length; event += 1) {
    // 0 allocates the next request; n > 0 frees the request allocated n allocations ago.
    const back = run.order[event];
    const request = back === 0 ? allocations++ : allocations - back;
    const [size, term] = run.kinds[run.requests[request]];
    const growth = run.sizes[size][4];
    if (back === 0 && growth && longer(growth) === longer(growth - 1)) { // no growth: keep the previous block, skip its free
      event += 1;
      blocks[request] = blocks[allocations - run.order[event]];
      continue;
    }
    if (back === 0) {
      blocks[request] = model.allocate(sizes[size]);
      bytesOf[term] += sizes[size];
    } else {
      model.free(blocks[request]);
      bytesOf[term] -= sizes[size];
    }
    reserved = Math.max(reserved, model.reserved);
    if (model.allocated > largest) { largest = model.allocated; peak = moment(); peakAt = event; }
  }
  const stage = run.stages.filter(([, first]) => first <= peakAt).at(-1)?.[0];
  const steady = moment();
  if (!Number.isSafeInteger(largest)) return null;
  return run.method === "trace" ? { steady, peak: { ...peak, stage }, reserved } : { steady, peak: null, reserved: null };
}

const short = (tokens) =>
  tokens % 2 ** 20 === 0 ? `${tokens / 2 ** 20}m` : tokens % 1024 === 0 ? `${tokens / 1024}k` : String(tokens);

// Round values from `least` to `most`: 1, 2, 3, 4, 6, 8, 12, ...
function steps(least, most) {
  const values = [];
  for (let power = 1; power <= most; power *= 2) values.push(power, power * 1.5);
  return [...new Set([least, ...values.filter((value) => Number.isInteger(value) && value > least && value < most), most])];
}

// Round values from 0 to `highest`, at most six, in the unit that suits them.
function ticks(highest) {
  const [name, unit] = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 1024], ["B", 1]].find(([, bytes]) => highest >= bytes);
  const power = 10 ** Math.floor(Math.log10(highest / unit / 5));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((candidate) => highest / unit / candidate < 6);
  return Array.from({ length: Math.floor(highest / unit / step) + 1 }, (_, index) => {
    const value = Number((index * step).toPrecision(6));
    return [value * unit, `${value.toLocaleString("en-US")} ${name}`];
  });
}

const SVG = "http://www.w3.org/2000/svg";
function drawn(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function explore(block) {
  const run = JSON.parse(block.querySelector('script[type="application/json"]').textContent);
  const say = run.labels;
  const chosen = { ...run.start };
  const cache = new Map();
  const [low, high] = run.context;
  const atLeast = (text) => say.at_least.replace("{value}", text);
  let turn = 0;

  function at(workload) {
    const key = `${workload.batch} ${workload.context} ${workload.fresh}`;
    if (!cache.has(key)) cache.set(key, computed(workload));
    return cache.get(key);
  }
  // What `replayed` gives, and of a run whose peak is a range: `low`, the lower end's, and `more`, what may be added to it.
  function computed({ batch, context, fresh }) {
    const result = replayed(run, batch, context, fresh);
    if (!run.between || !result) return result;
    const low = replayed(run.between, batch, context, fresh);
    const more = sizeOf(run.between.scratch, batch, context, context + fresh - 1, run.growths);
    return low && Number.isSafeInteger(low.reserved + more) ? { ...result, low, more } : null;
  }
  const ends = (bytes, more, format) => between(format(bytes), format(bytes + more));
  const between = (least, most) => (least === most ? least : say.range.replace("{low}", least).replace("{high}", most));

  const controls = element("div", "controls");
  const inputs = {};
  for (const name of ["context", "batch", "fresh"]) {
    const [least, most] = run.limits[name];
    const values = steps(least, most);
    const nearest = (value) => values.reduce((best, candidate, index) =>
      Math.abs(Math.log(candidate / value)) < Math.abs(Math.log(values[best] / value)) ? index : best, 0);
    const [label, range, number] = [element("label"), element("input"), element("input")];
    const caption = element("span");
    caption.textContent = say[name];
    Object.assign(range, { type: "range", min: 0, max: values.length - 1, step: 1, value: nearest(chosen[name]) });
    Object.assign(number, { type: "number", min: least, max: most, step: 1, value: chosen[name] });
    range.setAttribute("aria-label", say[name]);
    range.setAttribute("aria-valuetext", counted(chosen[name]));
    const set = (value) => {
      chosen[name] = value;
      range.setAttribute("aria-valuetext", counted(value));
      show();
    };
    range.addEventListener("input", () => {
      number.value = values[range.value];
      number.removeAttribute("aria-invalid");
      set(values[range.value]);
    });
    number.addEventListener("input", () => {
      const valid = Number.isInteger(number.valueAsNumber) && number.valueAsNumber >= least && number.valueAsNumber <= most;
      if (!valid) return number.setAttribute("aria-invalid", "true");
      number.removeAttribute("aria-invalid");
      range.value = nearest(number.valueAsNumber);
      set(number.valueAsNumber);
    });
    label.append(caption, range, number);
    controls.append(label);
    inputs[name] = { range, number };
  }

  const table = element("table", "figures");
  const charts = element("div", "charts");
  const [wider, scroll] = [element("div", "wider"), element("div", "scroll")];
  scroll.tabIndex = 0;
  scroll.append(table);
  wider.append(scroll);
  block.append(controls, charts, wider);
  hint(wider);
  const frames = Object.fromEntries(["context", "batch"].map((axis) => {
    const frame = element("figure");
    charts.append(frame);
    return [axis, frame];
  }));

  function rowOf(key, label, steady, peak, mark) {
    const row = element("tr");
    row.dataset.term = key;
    const head = element("th", "left");
    head.scope = "row";
    if (mark) {
      const square = drawn("svg", { width: 12, height: 12, "aria-hidden": "true" });
      square.append(drawn("rect", { width: 12, height: 12, class: `f-${key}` }));
      head.append(square, " ");
    }
    head.append(label);
    row.append(head);
    const texts = Array.isArray(peak) ? [counted, sized].map((format) => ends(...peak, format)) : [counted(peak), sized(peak)];
    for (const text of [counted(steady), sized(steady), ...texts]) {
      const cell = element("td", "right");
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  }
  function tabulate(result) {
    const value = (moment, term) => (!moment ? null : term === "rounding" ? moment.rounding : moment.terms[term] ?? 0);
    const [steady, peak] = [result?.steady ?? null, result?.peak ?? null];
    const heads = element("tr");
    for (const [index, text] of say.columns.entries()) {
      const head = element("th", index ? "right" : "left");
      head.scope = "col";
      head.textContent = text;
      heads.append(head);
    }
    const [top, body, foot] = [element("thead"), element("tbody"), element("tfoot")];
    top.append(heads);
    for (const [term, label] of Object.entries(say.terms)) {
      const unknown = term === "activations" && run.method === "formula";
      body.append(rowOf(term, label, unknown ? null : value(steady, term), value(peak, term), true));
    }
    const reserved = result?.reserved ?? null;
    const { least, most } = result ? requiredBy(result) : {};
    const sums = [
      ["reserved_only", say.reserved_only, reserved === null ? null : reserved - peak.allocated, true],
      ["reserved", say.reserved, result?.low ? [result.low.reserved, result.more] : reserved],
      ["context", say.cuda_context, low === high ? low : null, true],
      ...(least === undefined ? [] : say.required.map((label, end) => [`required_${end}`, label, end ? most : least])),
    ];
    const allocated = result?.low ? [result.low.peak.allocated, result.more] : peak?.allocated ?? null;
    foot.append(rowOf("allocated", say.allocated, steady?.allocated ?? null, allocated));
    if (run.method === "formula" && steady) {
      for (const cell of [...foot.lastChild.cells].slice(1, 3)) cell.textContent = atLeast(cell.textContent);
    }
    for (const [key, label, bytes, mark] of sums) {
      foot.append(rowOf(key, label, null, bytes, mark));
      for (const cell of [...foot.lastChild.cells].slice(1, 3)) cell.textContent = "";
    }
    table.replaceChildren(top, body, foot);
    table.dataset.stage = peak?.stage ?? "";
  }

  // Bars along one axis with the other fixed. Each is computed in its own task, so that the sliders stay responsive.
  function bars(axis) {
    const [least, most] = run.limits[axis];
    const grid = [];
    for (let value = axis === "context" ? 1024 : 1; value < most; value *= 2) if (value >= least) grid.push(value);
    return [...new Set([...grid, most, chosen[axis]])].sort((a, b) => a - b);
  }
  // A bar's segments from the bottom: [term, bytes, opacity]. With a peak, its top is the memory that a card needs; the range of
  // the CUDA context is lighter.
  function stackOf(result) {
    const { peak, reserved } = result.low ?? result;
    const moment = peak ?? result.steady;
    const terms = Object.keys(say.terms).map((term) => [term, term === "rounding" ? moment.rounding : moment.terms[term] ?? 0]);
    if (!peak) return terms;
    const { least, most } = requiredBy(result);
    return [...terms, ["reserved_only", reserved - peak.allocated], ["context", low], ["context", most - least, 0.45]];
  }
  // The memory that a card must have, at both ends of what is known; undefined without a peak.
  function requiredBy(result) {
    const { reserved } = result.low ?? result;
    return reserved === null ? {} : { least: reserved + low, most: reserved + (result.more ?? 0) + high };
  }
  function totalOf(result) {
    const { least, most } = requiredBy(result);
    return least === undefined ? atLeast(sized(result.steady.allocated)) : between(sized(least), sized(most));
  }
  function chart(axis, columns) {
    const [width, height, left, bottom, top] = [Math.max(frames[axis].clientWidth, 260), 300, 72, 36, 12];
    const floor = height - bottom;
    const stacks = columns.map(([, result]) => (result ? stackOf(result) : []));
    const highest = Math.max(...stacks.map((stack) => stack.reduce((sum, [, bytes]) => sum + bytes, 0)), 1);
    const y = (bytes) => floor - ((floor - top) * bytes) / highest;
    const slot = (width - left - 6) / columns.length;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": say[`by_${axis}`] });
    const text = (content, x, at, kind, anchor) => {
      const node = drawn("text", { x, y: at, class: kind, "text-anchor": anchor });
      node.textContent = content;
      svg.append(node);
    };
    for (const [bytes, label] of ticks(highest)) {
      svg.append(drawn("path", { d: `M${left} ${y(bytes)}H${width - 6}`, class: "grid" }));
      text(label, left - 6, y(bytes) + 4, "muted", "end");
    }
    const names = [];
    columns.forEach(([value, result], index) => {
      const [x, wide] = [left + slot * (index + 0.14), slot * 0.72];
      const bar = drawn("g", { class: value === chosen[axis] ? "bar chosen" : "bar" });
      const named = drawn("title", {});
      named.textContent = `${say[axis]} ${counted(value)}: ${result ? totalOf(result) : "–"}`;
      bar.append(named, drawn("rect", { x: left + slot * index, y: top, width: slot, height: floor - top, class: "ground" }));
      let sum = 0;
      for (const [term, bytes, opacity] of stacks[index]) {
        const shape = { x, y: y(sum + bytes), width: wide, height: y(sum) - y(sum + bytes), class: `f-${term}` };
        bar.append(drawn("rect", opacity ? { ...shape, opacity } : shape));
        sum += bytes;
      }
      if (value === chosen[axis]) {
        bar.append(drawn("rect", { x: x - 2, y: y(sum) - 2, width: wide + 4, height: floor - y(sum) + 3, class: "frame" }));
      }
      bar.addEventListener("click", () => {
        inputs[axis].number.value = value;
        inputs[axis].number.dispatchEvent(new Event("input"));
      });
      svg.append(bar);
      const name = axis === "context" ? short(value) : String(value);
      names.push([name, x + wide / 2, value === chosen[axis]]);
    });
    // The chosen bar's name, then the others' that have room beside those already there.
    const taken = [];
    for (const [name, x, isChosen] of [...names].sort((a, b) => b[2] - a[2])) {
      const half = 4 * name.length + 2;
      const at = Math.min(x, width - half);
      if (taken.some(([other, room]) => Math.abs(other - at) < room + half)) continue;
      taken.push([at, half]);
      text(name, at, floor + 15, isChosen ? "ink" : "muted", "middle");
    }
    text(say[axis], (left + width) / 2, height - 3, "muted", "middle");
    const caption = element("figcaption");
    caption.textContent = say[`by_${axis}`];
    frames[axis].replaceChildren(caption, svg);
  }
  async function chartAll(mine) {
    for (const axis of ["context", "batch"]) {
      const columns = [];
      for (const value of bars(axis)) {
        columns.push([value, at({ ...chosen, [axis]: value })]);
        await new Promise((resolve) => setTimeout(resolve));
        if (mine !== turn) return;
      }
      chart(axis, columns);
    }
    block.dataset.drawn = String(mine);
  }
  function show() {
    turn += 1;
    tabulate(at(chosen));
    chartAll(turn);
  }
  show();
  let drawnWidth = charts.clientWidth;
  new ResizeObserver(() => {
    if (charts.clientWidth === drawnWidth) return;
    drawnWidth = charts.clientWidth;
    turn += 1;
    chartAll(turn);
  }).observe(charts);
}

for (const block of document.querySelectorAll(".explorer")) explore(block);
}
