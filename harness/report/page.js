// Tables that sort, filter, open and are downloaded, and plots that show a run; every text from a store is set as text.
"use strict";

const MISSING = new Set(["", "–"]);
const UNITS = { "": 1, "%": 0.01, B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };
const TEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
  ">": "\\textgreater{}", "|": "\\textbar{}", "±": "$\\pm$", "★": "$\\star$", "≈": "$\\approx$", "–": "--" };
const FILTER_ROWS = 6;
const plots = [...document.querySelectorAll("script[type='application/json']")].map((data) => JSON.parse(data.textContent));

function make(kind, properties, ...children) {
  const found = Object.assign(document.createElement(kind), properties);
  found.append(...children);
  return found;
}

function numeric(text) {
  const found = /^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(%|[kMG]?B)?$/i.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) * UNITS[found[2] ?? ""] : NaN;
}

const rowsOf = (table) => [...table.tBodies[0].rows].filter((row) => row.className !== "opened");
const textOf = (cell) => cell.textContent.trim();

function closeRows(table) {
  table.querySelectorAll("tr.opened").forEach((row) => row.remove());
  table.querySelectorAll(".more").forEach((button) => button.setAttribute("aria-expanded", "false"));
}

function sortTable(table, column, descending) {
  closeRows(table);
  const rows = rowsOf(table).map((row) => {
    const text = textOf(row.cells[column]);
    return { row, text, number: numeric(text), missing: MISSING.has(text) };
  });
  const numbers = rows.every((item) => item.missing || !Number.isNaN(item.number));
  const sign = descending ? -1 : 1;
  const order = (a, b) => (numbers ? a.number - b.number : a.text.localeCompare(b.text, "en", { numeric: true }));
  // What is not known comes last in both directions.
  rows.sort((a, b) => a.missing - b.missing || (a.missing ? 0 : sign * order(a, b)));
  table.tBodies[0].append(...rows.map((item) => item.row));
}

// A wide table scrolls sideways; one that fits keeps its head in sight while the page scrolls.
function fit(table) {
  const room = table.parentElement;
  room.classList.remove("scrolls");
  room.classList.toggle("scrolls", table.offsetWidth > room.clientWidth);
}

function showColumn(table, column, shown) {
  for (const row of [table.tHead.rows[0], ...rowsOf(table)]) row.cells[column].hidden = !shown;
  fit(table);
}

// As a spreadsheet reads it: a text that it would run as a formula has a quote before it.
const safe = (text) => (/^[=+\-@\t\r]/.test(text) && Number.isNaN(numeric(text)) ? `'${text}` : text);
const tex = (text) => text.replace(/[\\~^<>|±★≈–]|[{}$&#%_]/g, (found) => TEX[found] ?? `\\${found}`);
const lines = (cells, write, between, end) => cells.map((row) => row.map(write).join(between) + end).join("\n");

const FORMS = {
  CSV: ([head, ...cells]) => lines([head, ...cells], (text) => `"${safe(text).replaceAll('"', '""')}"`, ",", ""),
  LaTeX: ([head, ...cells]) => [`\\begin{tabular}{${"l".repeat(head.length)}}`, "\\toprule",
    lines([head], tex, " & ", " \\\\"), "\\midrule", lines(cells, tex, " & ", " \\\\"), "\\bottomrule", "\\end{tabular}"].join("\n"),
  JSON: ([head, ...cells]) => JSON.stringify(cells.map((row) => Object.fromEntries(row.map((text, at) => [head[at], text]))), null, 1),
};
const ENDINGS = { CSV: "csv", LaTeX: "tex", JSON: "json" };

function download(table, form) {
  const rows = [table.tHead.rows[0], ...rowsOf(table).filter((row) => !row.hidden)];
  // A paper gets the columns that are seen, a program all of them.
  const cells = rows.map((row) => [...row.cells].filter((cell) => form !== "LaTeX" || !cell.hidden).map(textOf));
  const address = URL.createObjectURL(new Blob([FORMS[form](cells)], { type: "text/plain" }));
  make("a", { href: address, download: `${table.dataset.title.replace(/\W+/g, "_")}.${ENDINGS[form]}` }).click();
  URL.revokeObjectURL(address);
}

function tools(table) {
  const heads = [...table.tHead.rows[0].cells];
  const place = make("div", { className: "tools" });
  if (rowsOf(table).length > FILTER_ROWS) {
    const field = make("input", { type: "search", placeholder: "Filter", ariaLabel: `Filter ${table.dataset.title}` });
    field.dataset.table = table.id;
    field.addEventListener("input", () => {
      closeRows(table);
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of rowsOf(table)) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    place.append(field);
  }
  if (heads.length > 2) {
    const boxes = heads.slice(1).map((head, at) => {
      const box = make("input", { type: "checkbox", checked: !("secondary" in head.dataset) });
      box.addEventListener("change", () => showColumn(table, at + 1, box.checked));
      return make("label", {}, box, ` ${textOf(head)}`);
    });
    place.append(make("details", {}, make("summary", {}, "Columns"), make("div", { className: "picker" }, ...boxes)));
  }
  for (const form of Object.keys(FORMS)) {
    const button = make("button", { type: "button", title: `Download this table as ${form}` }, form);
    button.addEventListener("click", () => download(table, form));
    place.append(button);
  }
  table.parentElement.before(place);
}

// A row of scores opens to its runs, which the plot of all runs holds.
function openable(table, plot) {
  const { task, configuration, seed, y, rate } = plot.columns;
  const runs = new Map();
  task.forEach((name, row) => {
    if (name !== table.dataset.task) return;
    runs.set(configuration[row], runs.get(configuration[row]) ?? []);
    runs.get(configuration[row]).push(row);
  });
  for (const row of rowsOf(table)) {
    const name = textOf(row.cells[0]);
    if (!runs.has(name)) continue;
    const button = make("button", { type: "button", className: "more", title: "Show its runs" }, name);
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) return row.nextElementSibling.remove();
      const told = runs.get(name).map((at) =>
        make("div", {}, `seed ${seed[at]}: ${y[at].toFixed(4)}` + (rate[at] === "–" ? "" : `, learning rate ${rate[at]}`)));
      row.after(make("tr", { className: "opened" }, make("td", { colSpan: row.cells.length }, ...told)));
    });
    row.cells[0].replaceChildren(button);
  }
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortTable(table, column, descending);
    });
    if ("secondary" in head.dataset) showColumn(table, column, false);
  });
  tools(table);
  const all = plots.find((plot) => plot.place === "runs");
  if (all && table.dataset.task) openable(table, all);
  fit(table);
  table.closest("details.section")?.addEventListener("toggle", () => fit(table));
  addEventListener("resize", () => fit(table));
}

// A link into a folded section opens it.
function unfold() {
  const found = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (found instanceof HTMLDetailsElement) found.open = true;
}
addEventListener("hashchange", unfold);
unfold();

const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");

// Black is the one color of a method that a dark page swallows.
const visible = (color) => (dark.matches && color === "#000000" ? "#ffffff" : color);

// As the pictures write costs; without a unit it is a plain number.
function short(value, unit) {
  if (unit === null) return String(Number(value.toPrecision(4)));
  const factors = [["T", 1e12], [unit ? "G" : "B", 1e9], ["M", 1e6], ["k", 1e3]];
  const [factor, size] = factors.find((pair) => value >= pair[1]) ?? ["", 1];
  return `${Number((value / size).toPrecision(3))}${unit ? " " : ""}${factor}${unit}`;
}

// Powers of ten, and where they are few also twice and five times them.
function ticksOf(values) {
  if (!values.length) return [];
  const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
  const steps = high - low > 1.5 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(low) - 1; power <= high + 1; power += 1) found.push(...steps.map((step) => step * 10 ** power));
  return found;
}

// The page's text color on the axes of a plot, on a dark page as on a light one.
function paint(figure) {
  const style = getComputedStyle(document.body);
  const gray = style.getPropertyValue("--quiet").trim();
  for (const axis of [...figure.below, ...figure.left]) {
    Object.assign(axis, { axis_label_text_color: style.color, major_label_text_color: style.color });
    Object.assign(axis, { axis_line_color: gray, major_tick_line_color: gray, minor_tick_line_color: gray });
  }
  for (const part of figure.center) {
    if (part.type === "Label") part.text_color = gray;
  }
}

function choose(place, label, options) {
  const field = make("select", {});
  options.forEach((text, index) => field.add(new Option(text, index)));
  place.append(make("label", { hidden: options.length < 2 }, `${label} `, field));
  return field;
}

// The methods of a plot with their colors; one that is asked for keeps its color, and the others turn gray.
const LEGEND = 14;
const NOT_ASKED = "#9a9a9a88";

function legend(place, names, asked, ask) {
  const buttons = [...names].map(([name, color]) => {
    const button = make("button", { type: "button", ariaPressed: String(asked === name) }, name);
    button.style.setProperty("--swatch", visible(color));
    button.addEventListener("click", () => ask(asked === name ? "" : name));
    return button;
  });
  place.replaceChildren(...(buttons.length > LEGEND ? [] : buttons));
}

async function show(plot) {
  const place = document.getElementById(plot.place);
  const view = (await Bokeh.embed.embed_item(plot.item, plot.place))[plot.item.root_id]
    ?? Bokeh.index[plot.item.root_id];
  const figure = view.model;
  const source = figure.renderers[0].data_source;
  const hover = figure.toolbar.tools.find((tool) => tool.type === "HoverTool");
  const told = make("p", { className: "told", ariaLive: "polite" });
  place.after(told);
  const choices = make("p", { className: "choices" });
  const named = make("div", { className: "legend" });
  place.before(choices, named);
  const line = figure.renderers[1]?.data_source;
  const written = figure.center.find((part) => part.type === "Label");
  let asked = "";
  const task = choose(choices, "Task", plot.tasks);
  const across = choose(choices, "Across", plot.across.map((axis) => axis.label));
  const highlight = choose(choices, "Highlight", ["all methods", "one"]);
  const draw = () => {
    const axis = plot.across[across.value];
    const { configuration, color } = plot.columns;
    const wanted = plot.columns.task.flatMap((name, row) =>
      name === plot.tasks[task.value] && plot.columns[axis.column][row] !== null ? [row] : []);
    const names = new Map(wanted.map((row) => [configuration[row], color[row]]));
    asked = names.has(asked) ? asked : "";
    const ask = (name) => {
      asked = name;
      draw();
    };
    legend(named, names, asked, ask);
    highlight.replaceChildren(new Option("all methods", ""), ...[...names.keys()].map((name) => new Option(name, name)));
    highlight.value = asked;
    highlight.parentElement.hidden = names.size < 2;
    // What is asked for lies on top.
    wanted.sort((a, b) => (configuration[a] === asked) - (configuration[b] === asked) || a - b);
    const data = Object.fromEntries(plot.shown.map((name) => [name, wanted.map((row) => plot.columns[name][row])]));
    const x = wanted.map((row) => plot.columns[axis.column][row]);
    const write = (value) => short(value, axis.unit);
    source.data = {
      ...data,
      x,
      at: plot.place === "runs" ? x.map(write) : x,
      color: wanted.map((row) => (asked && configuration[row] !== asked ? NOT_ASKED : visible(color[row]))),
    };
    // On a phone a box beside the pointer would be cut off; the line below the plot says the same.
    hover.tooltips = narrow.matches ? null : [...plot.tips, [axis.label, plot.at]];
    figure.below[0].axis_label = axis.label;
    figure.left[0].axis_label = plot.metrics[plot.tasks[task.value]];
    const least = plot.majority[plot.tasks[task.value]] ?? null;
    if (line) line.data = least === null || !x.length ? { x: [], y: [] } : { x: [Math.min(...x), Math.max(...x)], y: [least, least] };
    if (plot.place === "runs") {
      const ticks = ticksOf(x);
      figure.below[0].ticker.ticks = ticks;
      figure.below[0].major_label_overrides = new Map(ticks.map((tick) => [tick, write(tick)]));
    }
    if (written) Object.assign(written, { y: least ?? 0, visible: least !== null });
  };
  task.addEventListener("change", draw);
  highlight.addEventListener("change", () => {
    asked = highlight.value;
    draw();
  });
  across.addEventListener("change", draw);
  source.inspect.connect(() => {
    const row = source.inspected.indices[0];
    if (row === undefined) return;
    const { name, configuration, rate } = source.data;
    told.textContent = `${name[row]}: ${configuration[row]}, learning rate ${rate[row]}`;
  });
  const adapt = () => {
    paint(figure);
    draw();
  };
  dark.addEventListener("change", adapt);
  narrow.addEventListener("change", adapt);
  adapt();
}

plots.forEach(show);
