// Tables that sort and filter, and plots that show a run; every text from a store is set as text, never as markup.
"use strict";

const MISSING = new Set(["", "–"]);
const UNITS = { "": 1, "%": 0.01, B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };

function numeric(text) {
  const found = /^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(%|[kMG]?B)?$/i.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) * UNITS[found[2] ?? ""] : NaN;
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => {
    const text = row.cells[column].textContent.trim();
    return { row, text, number: numeric(text), missing: MISSING.has(text) };
  });
  const numbers = rows.every((item) => item.missing || !Number.isNaN(item.number));
  const sign = descending ? -1 : 1;
  const order = (a, b) => (numbers ? a.number - b.number : a.text.localeCompare(b.text, "en", { numeric: true }));
  // What is not known comes last in both directions.
  rows.sort((a, b) => a.missing - b.missing || (a.missing ? 0 : sign * order(a, b)));
  body.append(...rows.map((item) => item.row));
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
  });
}

for (const field of document.querySelectorAll("input[type=search]")) {
  const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

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

// The page's text color on the axes of a plot, on a dark page as on a light one.
function paint(figure) {
  const style = getComputedStyle(document.body);
  const gray = style.getPropertyValue("--quiet").trim();
  for (const axis of [...figure.below, ...figure.left]) {
    Object.assign(axis, { axis_label_text_color: style.color, major_label_text_color: style.color });
    Object.assign(axis, { axis_line_color: gray, major_tick_line_color: gray, minor_tick_line_color: gray });
  }
}

function choose(place, label, options) {
  const field = document.createElement("select");
  options.forEach((text, index) => field.add(new Option(text, index)));
  const name = document.createElement("label");
  name.append(`${label} `, field);
  name.hidden = options.length < 2;
  place.append(name);
  return field;
}

async function show(plot) {
  const place = document.getElementById(plot.place);
  const view = (await Bokeh.embed.embed_item(plot.item, plot.place))[plot.item.root_id]
    ?? Bokeh.index[plot.item.root_id];
  const figure = view.model;
  const source = figure.renderers[0].data_source;
  const hover = figure.toolbar.tools.find((tool) => tool.type === "HoverTool");
  const told = document.createElement("p");
  told.className = "told";
  told.setAttribute("aria-live", "polite");
  place.after(told);
  const choices = document.createElement("p");
  choices.className = "choices";
  place.before(choices);
  const task = choose(choices, "Task", plot.tasks);
  const across = choose(choices, "Across", plot.across.map((axis) => axis.label));
  const draw = () => {
    const axis = plot.across[across.value];
    const wanted = plot.columns.task.flatMap((name, row) =>
      name === plot.tasks[task.value] && plot.columns[axis.column][row] !== null ? [row] : []);
    const data = Object.fromEntries(plot.shown.map((name) => [name, wanted.map((row) => plot.columns[name][row])]));
    const x = wanted.map((row) => plot.columns[axis.column][row]);
    const write = (value) => short(value, axis.unit);
    source.data = {
      ...data,
      x,
      at: plot.place === "runs" ? x.map(write) : x,
      color: data.color.map(visible),
    };
    // On a phone a box beside the pointer would be cut off; the line below the plot says the same.
    hover.tooltips = narrow.matches ? null : [...plot.tips, [axis.label, plot.at]];
    figure.below[0].axis_label = axis.label;
    figure.left[0].axis_label = plot.metrics[plot.tasks[task.value]];
  };
  task.addEventListener("change", draw);
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

for (const data of document.querySelectorAll("script[type='application/json']")) show(JSON.parse(data.textContent));
