"use strict";
// Tables: sort by a column, filter by words and world. Figures: draw what the page holds as JSON.

// Sorting

function key(row, column) {
  const cell = row.cells[column];
  return cell.dataset.order === "" ? cell.textContent.trim() : Number(cell.dataset.order);
}

function compare(a, b) {
  const numbers = [a, b].map((value) => typeof value === "number");
  if (numbers[0] && numbers[1]) return a - b;
  if (numbers[0] !== numbers[1]) return null; // what is not measured stays below, either way
  return a.localeCompare(b, "en", { numeric: true });
}

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const head = heads[column];
  const down = head.getAttribute("aria-sort") === "ascending";
  heads.forEach((one) => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [key(row, column), row]);
  const anyNumber = rows.some(([value]) => typeof value === "number");
  rows.sort(([a], [b]) => {
    const order = compare(a, b);
    if (order === null) return typeof a === "number" ? -1 : 1;
    if (anyNumber && typeof a !== "number") return 0;
    return down ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => sort(table, column));
  });
});

// Filtering

document.querySelectorAll(".filter").forEach((filter) => {
  const table = document.getElementById(filter.dataset.for);
  const input = filter.querySelector("input");
  const select = filter.querySelector("select");
  const count = filter.querySelector(".count");
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  const world = heads.indexOf("world");
  const rows = [...table.tBodies[0].rows];
  function apply() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const pressed = document.querySelector(".rows[aria-pressed=true]");
    const cases = pressed && pressed.dataset.cases.split(" ");
    let shown = 0;
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      const fits = words.every((word) => text.includes(word)) &&
        (!cases || cases.includes(row.dataset.case)) &&
        (!select || !select.value || row.cells[world].textContent.trim() === select.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  }
  const buttons = [...document.querySelectorAll(".rows")]; // a sentence shows what it is made of
  buttons.forEach((button) => button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    buttons.forEach((one) => one.setAttribute("aria-pressed", String(on && one === button)));
    apply();
  }));
  input.addEventListener("input", apply);
  if (select) select.addEventListener("change", apply);
  apply();
});

// Figures

const figures = JSON.parse(document.getElementById("figures").textContent);
const hidden = {}; // by figure: names a reader has switched, to whether they are off
const printing = window.matchMedia("print");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function theme() {
  const [ink, line, paper] = ["--ink", "--line", "--paper"].map(colour);
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line };
  return { layout: {
    font: { color: ink, family: "system-ui, sans-serif", size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: ink },
    hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink } },
  } };
}

function draw(place) {
  const name = place.dataset.figure;
  const figure = figures[name];
  const choice = figure.choices[figure.chosen];
  const off = hidden[name] ??= {};
  const data = choice.data.map((trace) => {
    const group = trace.legendgroup;
    return group in off ? { ...trace, visible: off[group] ? "legendonly" : true } : trace;
  });
  const narrow = place.clientWidth < 600;
  const small = narrow ? { font: { size: 11 } } : {};
  const layout = {
    ...small, ...figure.layout, ...choice.layout, template: theme(), showlegend: false, autosize: true,
    margin: { l: narrow ? 8 : 48, r: narrow ? 8 : 24, t: 32, b: 40 },
    dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
    uirevision: figure.chosen,
  };
  place.style.minHeight = `${layout.height}px`;
  Plotly.react(place, data, layout, {
    responsive: true, displaylogo: false, displayModeBar: !narrow,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  });
  place.dataset.drawn = "yes";
  legend(place, name, data);
}

function legend(place, name, data) {
  const box = place.parentElement.querySelector(".legend");
  const entries = new Map();
  for (const trace of data) {
    if (!trace.legendgroup || !trace.name || entries.has(trace.legendgroup)) continue;
    entries.set(trace.legendgroup, trace);
  }
  box.replaceChildren(...[...entries].map(([group, trace]) => {
    const button = document.createElement("button");
    const swatch = document.createElement("i");
    const off = trace.visible === "legendonly";
    swatch.style.background = trace.line?.color ?? trace.marker?.color;
    button.type = "button";
    button.setAttribute("aria-pressed", String(!off));
    button.append(swatch, text(trace.name));
    button.addEventListener("click", () => {
      hidden[name][group] = !off;
      draw(place);
      [...box.children].find((one) => one.dataset.group === group).focus();
    });
    button.dataset.group = group;
    return button;
  }));
}

function text(escaped) { // names are escaped once, for plotly
  return new DOMParser().parseFromString(escaped, "text/html").documentElement.textContent;
}

document.querySelectorAll("figure select").forEach((select) => {
  select.addEventListener("change", () => {
    const figure = figures[select.dataset.for];
    figure.chosen = Number(select.value);
    document.getElementById(`said-${select.dataset.for}`).textContent = figure.choices[figure.chosen].said;
    draw(document.getElementById(`plot-${select.dataset.for}`));
  });
});

async function library() {
  const packed = document.getElementById("library").textContent;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

library().then(() => {
  const places = [...document.querySelectorAll(".plot")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });
  places.forEach((place) => seen.observe(place));
  const all = () => {
    document.querySelectorAll("details").forEach((one) => { one.open = true; });
    places.forEach(draw);
  };
  const again = () => places.filter((place) => place.dataset.drawn).forEach(draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  printing.addEventListener("change", all);
  window.addEventListener("beforeprint", all);
});
