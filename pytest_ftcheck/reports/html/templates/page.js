// Draws charts when they come into view, and builds their tables. Texts from a trace are only ever set as text content.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const known = new Map();
const chartOf = (element) => {
  const run = element.dataset.run;
  if (!known.has(run)) known.set(run, read(run + "-data"));
  return known.get(run)[element.dataset.chart];
};
const NUMBERS = new Set(["NaN", "Infinity", "-Infinity"]);
const TEXTS = new Set(["layer", "part", "state", "label", "series", "how", "when", "what"]);

// ---------------------------------------------------------------- numbers
function rowsOf(blocks) {
  const rows = [];
  for (const block of blocks) {
    const names = Object.keys(block.columns);
    const count = names.length ? block.columns[names[0]].length : 0;
    for (let i = 0; i < count; i++) {
      const row = Object.assign({}, block.same);
      for (const name of names) row[name] = block.columns[name][i];
      rows.push(row);
    }
    if (block.columns.count && block.same.high !== undefined) {
      // a histogram: borders of the bins, and densities whose areas add up to one
      const width = block.same.high / count - block.same.low / count;
      const total = block.columns.count.reduce((sum, n) => sum + n, 0);
      rows.slice(-count).forEach((row, i) => {
        row.from = block.same.low + i * width;
        row.to = i === count - 1 ? block.same.high : block.same.low + (i + 1) * width;
        row.density = row.count / total / width;
      });
    }
  }
  return rows;
}
function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(+value.toPrecision(5));
}
const percent = (value) => (typeof value === "number" ? shown(100 * value) + " %" : shown(value));
const finite = (value) => (typeof value === "number" ? value : null);
function shortened(name, width) {
  if (name.length <= width) return name;
  const head = Math.floor((width - 1) * 0.35);
  return name.slice(0, head) + "…" + name.slice(name.length - (width - 1 - head));
}
function axisNames(rows, field, width) {
  const names = new Map(), used = new Set();
  for (const row of rows) {
    const name = row[field];
    if (!names.has(name)) {
      let label = shortened(name, width);
      for (let i = 2; used.has(label); i++) label = shortened(name, width - 4) + " (" + i + ")";
      used.add(label);
      names.set(name, label);
    }
    row["full-" + field] = name;
    row[field] = names.get(name);
  }
}
// what a chart needs besides the trace's own numbers, which stay unchanged
const PREPARED = {
  curves(rows, log) {
    for (const row of rows) {
      const y = finite(row.y);
      row.bad = NUMBERS.has(row.y);
      row.text = shown(row.y);
      row.drawn = y === null || (log && y <= 0) ? null : y;
    }
    return rows;
  },
  motion(rows, room) {
    for (const row of rows) {
      row.text = percent(row.used);
      row.range = row.low === null ? "" : percent(row.low) + " to " + percent(row.high);
      row.ink = row.part === "head" ? "var(--head)" : "var(--base-0)";
      for (const name of ["used", "low", "high"]) row[name] = row[name] === "Infinity" ? 1e9 : finite(row[name]);
      row.end = Math.max(row.used || 0, row.high || 0);
    }
    axisNames(rows, "layer", room);
    return rows;
  },
};
function datasets(chart, width) {
  const prepared = {};
  for (const [name, blocks] of Object.entries(chart.data)) {
    const rows = rowsOf(blocks);
    if (name === "lines" || name === "below") PREPARED.curves(rows, chart.kind === "log");
    else if (chart.kind === "motion" && name === "bars") PREPARED.motion(rows, width < 420 ? 16 : 28);
    else {
      for (const row of rows)
        for (const key of Object.keys(row)) if (NUMBERS.has(row[key]) && !TEXTS.has(key)) row[key] = null;
      if (chart.kind === "rewound" && name === "bars") axisNames(rows, "part", width < 420 ? 16 : 28);
    }
    prepared[name] = rows;
  }
  return prepared;
}

// ---------------------------------------------------------------- drawing
const text = { labelColor: "var(--soft)", titleColor: "var(--soft)", labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" };
const CONFIG = {
  aria: false, // the chart is one picture with a description and a table
  background: "transparent",
  font: 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif',
  view: { stroke: null },
  axis: Object.assign({ gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)" }, text),
  axisY: { domain: false, ticks: false },
  text: { color: "var(--ink)" },
};
const tip = document.getElementById("tip");
function showTip(handler, event, item, value) {
  tip.hidden = value === null || value === undefined || value === "";
  if (tip.hidden) return;
  tip.replaceChildren();
  for (const [label, entry] of typeof value === "object" ? Object.entries(value) : [["", value]]) {
    if (entry === "" || entry === null || entry === undefined || entry === "null") continue;
    const line = document.createElement("div");
    for (const part of [label, entry]) {
      const cell = document.createElement("span");
      cell.textContent = String(part).slice(0, 300);
      line.append(cell);
    }
    tip.append(line);
  }
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const below = event.clientY + 16 + box.height < window.innerHeight;
  tip.style.left = Math.max(4, x) + "px";
  tip.style.top = (below ? event.clientY + 16 : event.clientY - box.height - 12) + "px";
}
// a curve that is level has one tick, with its value: the axis' own would be rounded to 0
function labelLevel(spec, datasets) {
  for (const part of spec.vconcat || [spec])
    for (const layer of part.layer || []) {
      const y = layer.encoding && layer.encoding.y, name = (layer.data || part.data || {}).name;
      if (!y || !y.field || !["lines", "below"].includes(name)) continue;
      const values = new Set(datasets[name].map((row) => row.drawn).filter((value) => value !== null));
      if (values.size !== 1) continue;
      const [value] = values;
      const logarithmic = y.scale && y.scale.type === "log";
      y.scale = Object.assign({}, y.scale, { nice: false, domain: logarithmic ? [value / 2, value * 2] : span(value) });
      y.axis = Object.assign({}, y.axis, { values: [value], labelExpr: JSON.stringify(shown(value)) });
    }
}
const span = (value) => (value === 0 ? [-1, 1] : value > 0 ? [0, 2 * value] : [2 * value, 0]);
const views = new Map();
function draw(canvas) {
  const width = Math.floor(canvas.clientWidth);
  const before = views.get(canvas);
  if (!width || (before && before.width === width)) return null;
  const chart = chartOf(canvas);
  const spec = structuredClone(specifications[chart.kind]);
  const bars = /^(motion|rewound|metric)/.test(chart.kind);
  spec.datasets = datasets(chart, width);
  labelLevel(spec, spec.datasets);
  let room = width - 70;
  if (bars) {
    const field = { motion: "layer", metric: "when" }[chart.kind] || "part";
    const longest = Math.max(...spec.datasets.bars.map((row) => row[field].length));
    room = width - Math.min(230, 6.6 * longest + 18) - 16;
    for (const end of spec.params || []) if (end.name in spec.datasets.bars[0]) end.value = spec.datasets.bars[0][end.name];
    const reach = spec.params && spec.params.find((p) => p.name === "reach");
    if (reach) {
      const rows = spec.datasets.bars;
      const ends = [...rows, ...(spec.datasets.rules || [])].map((row) => row.end || row.loss || row.at || 0);
      const longest = Math.max(...ends, 1e-12);
      const wanted = chart.kind === "motion" ? Math.max(0.5, Math.min(2, longest)) : longest;
      // room for the text behind the longest bar
      const letters = Math.max(...rows.map((row) => row.label.length));
      const free = Math.max(0.5, 1 - (letters * 6.2 + 12) / room);
      reach.value = (wanted * 1.02) / free;
      const fit = Math.floor((room * (1 - free)) / 6.2);
      for (const row of rows) if (row.label.length > fit + 1) row.label = row.label.slice(0, Math.max(6, fit)) + "…";
    }
  }
  room = Math.max(90, Math.floor(room));
  for (const part of spec.vconcat || [spec]) part.width = room;
  views.set(canvas, { width, view: before && before.view });
  return window
    .vegaEmbed(canvas, spec, {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, config: CONFIG, tooltip: showTip, logLevel: 1,
    })
    .then((result) => {
      if (before && before.view) before.view.finalize();
      views.set(canvas, { width, view: result.view });
      canvas.classList.add("drawn");
      const svg = canvas.querySelector("svg");
      if (svg) svg.setAttribute("aria-hidden", "true");
    })
    .catch((error) => {
      canvas.classList.add("drawn");
      canvas.textContent = "This chart could not be drawn: its numbers are below.";
      console.error("chart " + canvas.dataset.run + " " + canvas.dataset.chart + ": " + error.message);
    });
}
const canvases = [...document.querySelectorAll(".canvas")];
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, { rootMargin: "200px" });
for (const canvas of canvases) seen.observe(canvas);
let waiting = 0;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { for (const canvas of views.keys()) draw(canvas); }, 150);
});

// ---------------------------------------------------------------- tables
function table(chart) {
  let columns = chart.columns, rows = [];
  const all = Object.entries(chart.data).filter(([name]) => name !== "band").flatMap(([, blocks]) => blocks);
  if (chart.pivot) {
    const names = [...new Set(all.map((block) => block.same.series))], at = new Map();
    for (const row of rowsOf(all)) {
      if (!at.has(row.x)) at.set(row.x, { x: row.x });
      at.get(row.x)["curve:" + row.series] = row.y;
    }
    columns = [columns[0], ...names.map((name) => ["curve:" + name, name])];
    rows = [...at.values()].sort((a, b) => a.x - b.x);
  } else {
    rows = rowsOf(all);
    for (const row of rows) if (row.at !== undefined) {
      // a line across the bars: its name and its value
      row[columns[0][0]] = row.what;
      row[(columns.find(([field]) => field === "value" || field === "accuracy") || columns[columns.length - 1])[0]] = row.at;
    }
  }
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const [, title] of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = title;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const [field] of columns) {
      const value = row[field], cell = line.insertCell();
      cell.textContent = shown(value);
      if (typeof value === "number") cell.title = String(value);
    }
  }
  return table;
}
for (const details of document.querySelectorAll(".numbers"))
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", details.querySelector("summary").textContent);
    scroll.append(table(chartOf(details)));
    details.append(scroll);
  });

// ---------------------------------------------------------------- opening, printing, saving
const folded = [...document.querySelectorAll("details:not(.numbers)")];
const openAll = document.getElementById("open-all");
openAll.hidden = false;
openAll.addEventListener("click", () => {
  const open = openAll.getAttribute("aria-pressed") !== "true";
  for (const details of folded) details.open = open;
  openAll.setAttribute("aria-pressed", String(open));
});
function arrive() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
}
window.addEventListener("hashchange", arrive);
for (const link of document.querySelectorAll(".runs a"))
  link.addEventListener("click", () => {
    const run = document.getElementById(link.hash.slice(1));
    run.open = true;
    setTimeout(() => run.querySelector("summary").focus({ preventScroll: true }));
  });
let wasOpen = null;
async function prepare() {
  if (!wasOpen) wasOpen = folded.map((details) => details.open);
  for (const details of folded) details.open = true;
  await Promise.all(canvases.map(draw));
}
window.addEventListener("beforeprint", prepare);
window.addEventListener("afterprint", () => {
  if (wasOpen) folded.forEach((details, i) => { details.open = wasOpen[i]; });
  wasOpen = null;
});
const print = document.getElementById("print");
print.hidden = false;
print.addEventListener("click", async () => { await prepare(); window.print(); });

// without this, a link saves the compressed file
for (const link of document.querySelectorAll(".save"))
  link.addEventListener("click", async (event) => {
    if (link.dataset.ready || typeof DecompressionStream === "undefined") return;
    event.preventDefault();
    const packed = Uint8Array.from(atob(link.href.slice(link.href.indexOf(",") + 1)), (c) => c.charCodeAt(0));
    const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const blob = await new Response(plain).blob();
    const save = document.createElement("a");
    save.href = URL.createObjectURL(new Blob([blob], { type: "application/json" }));
    save.download = link.dataset.file;
    save.click();
    setTimeout(() => URL.revokeObjectURL(save.href), 60000);
  });
arrive();
