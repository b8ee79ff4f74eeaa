"use strict";
(() => {
  const NARROW = 640; // CSS pixels: below, labels get less room
  const ROW = 17; // CSS pixels for each bar
  const MULTIPLES = { B: 1, KB: 2 ** 10, MB: 2 ** 20, GB: 2 ** 30, k: 1e3, M: 1e6, G: 1e9, T: 1e12, us: 1e-3, ms: 1, s: 1e3 };
  const drawings = [];

  // Plotly reads a little HTML in its texts; names are no HTML.
  const literal = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const element = (tag, properties = {}, children = []) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // ---- figures

  const SETTINGS = { displaylogo: false, responsive: false, displayModeBar: false };

  function layout(extra) {
    const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), automargin: false };
    const { xaxis, yaxis, ...rest } = extra;
    return {
      paper_bgcolor: color("ground"), plot_bgcolor: color("ground"), dragmode: false,
      font: { color: color("text"), size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: color("panel"), bordercolor: color("line"), font: { color: color("text") }, align: "left", namelength: -1 },
      legend: { orientation: "h", x: 0, y: 1, yref: "container", yanchor: "top", xanchor: "left" },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }

  // The end of a name tells more than its beginning: /model/layer1/conv1/Conv.
  const cut = (text, most) => (text.length <= most ? text : `…${text.slice(text.length - most + 1)}`);

  // Plotly leaves out a label that is taller than the figure, so a name gets the lines that there are.
  function wrapped(text, width, height) {
    const letters = Math.max(24, Math.floor((0.75 * width) / 7));
    const most = Math.max(1, Math.floor((height - 70) / 17));
    const lines = [];
    for (let at = 0; at < text.length; at += letters) lines.push(literal(text.slice(at, at + letters)));
    return lines.length <= most ? lines.join("<br>") : [...lines.slice(0, most - 1), literal(cut(text, letters))].join("<br>");
  }

  function order(figure, byCost, wanted) {
    const all = figure.labels.map((_, index) => index).filter((index) => figure.labels[index].toLowerCase().includes(wanted));
    const most = (index) => Math.max(...figure.series.map((one) => one.values[index] ?? -Infinity));
    return byCost ? all.sort((a, b) => most(b) - most(a)) : all;
  }

  const COUNTS = ["bytes", "B", "MACs", "parameters"]; // what takes k, M and G; a time in ms does not
  const figures = (unit, digits) => `${digits}~${COUNTS.includes(unit) ? "s" : "g"}`;

  // A logarithmic axis begins at the power of ten below the shortest bar, so that there is something of each to see.
  function across(figure, shown, narrow) {
    if (!figure.log) return { type: "linear", nticks: narrow ? 4 : 8, tickformat: figures(figure.unit, ""), rangemode: "tozero" };
    const values = figure.series.flatMap((one) => shown.map((index) => one.values[index])).filter((one) => one > 0);
    if (!values.length) return { type: "log" };
    const [low, high] = [Math.log10(Math.min(...values)), Math.log10(Math.max(...values))];
    const range = [Math.ceil(low) - 1, Math.max(high + 0.05 * (high - low), Math.ceil(low))];
    return { type: "log", range, dtick: Math.ceil((range[1] - range[0]) / (narrow ? 5 : 12)), exponentformat: "power" };
  }

  function bars(figure, width, { byCost, wanted }) {
    const shown = order(figure, byCost, wanted);
    const narrow = width < NARROW;
    const letters = Math.min(narrow ? 18 : 44, Math.max(4, ...shown.map((index) => figure.labels[index].length)));
    const colors = [color("before"), color("after"), color("third")];
    const only = figure.series.length === 1;
    const top = only ? 54 : 72;
    const height = Math.max(150, top + 8 + shown.length * Math.max(20, ROW * figure.series.length - 6));
    const data = figure.series.map((one, number) => ({
      type: "bar", orientation: "h", name: literal(one.name),
      y: shown.map((_, row) => row), x: shown.map((index) => one.values[index]),
      customdata: shown.map((index) => wrapped(figure.labels[index], width, height)),
      marker: { color: only ? colors[1] : colors[number % colors.length] },
      hovertemplate: `%{customdata}<br>${literal(one.name)}: %{x:${figures(figure.unit, ".4")}} ${literal(figure.unit)}<extra></extra>`,
    }));
    return [data, layout({
      height, width, barmode: "group", bargap: 0.3, bargroupgap: 0.05, showlegend: !only,
      margin: { l: 12 + 7.2 * letters, r: 22, t: top, b: 8 },
      xaxis: { ...across(figure, shown, narrow), side: "top", fixedrange: true,
        title: { text: literal(figure.unit), standoff: 8, font: { size: 12 } } },
      yaxis: { range: [Math.max(shown.length, 1) - 0.5, -0.5], fixedrange: true, showgrid: false, zeroline: false,
        tickvals: shown.map((_, row) => row), ticktext: shown.map((index) => literal(cut(figure.labels[index], letters))) },
    })];
  }

  function curve(figure, width) {
    const hover = `${literal(figure.across)}: %{x:.3f}<br>${literal(figure.up)}: %{y:.3~g}%{customdata}<extra></extra>`;
    const trace = (points, extra) => ({
      type: "scatter", x: points.map((point) => point.x), y: points.map((point) => point.y),
      customdata: points.map((point) => (point.note ? `<br>${literal(point.note)}` : "")), hovertemplate: hover, ...extra,
    });
    const path = [...figure.points].sort((a, b) => a.x - b.x);
    const marked = figure.points.filter((point) => point.marked);
    const data = [
      trace(path, { mode: "lines+markers", name: "frontier", line: { color: color("after"), width: 2 }, marker: { size: 5 } }),
      trace(marked, { mode: "markers", name: "chosen", marker: { size: 13, color: color("mark"), symbol: "diamond" } }),
    ];
    return [data, layout({
      height: 340, width, hovermode: "closest", showlegend: true, margin: { l: 66, r: 16, t: 34, b: 48 },
      xaxis: { title: { text: literal(figure.across), standoff: 8 }, rangemode: "tozero", fixedrange: true },
      yaxis: { type: "log", title: { text: literal(figure.up), standoff: 4 }, exponentformat: "power", dtick: 1, fixedrange: true, },
    })];
  }

  function draw(drawing) {
    const width = drawing.host.clientWidth;
    if (!width) return; // in a closed section: drawn when that is opened
    const figure = drawing.figures[drawing.chosen];
    const [data, form] = figure.kind === "curve" ? curve(figure, width) : bars(figure, width, drawing);
    Plotly.react(drawing.host, data, form, SETTINGS);
    drawing.width = width;
  }

  const drawAll = () => drawings.forEach(draw);

  function choice(drawing, names, current, legend, change) {
    const group = `choice${drawings.length}-${legend}`;
    const labels = names.map((name, index) => {
      const button = element("input", { type: "radio", name: group, checked: index === current });
      button.addEventListener("change", () => { change(index); draw(drawing); });
      return element("label", {}, [button, name]);
    });
    return element("fieldset", { className: "choices" }, [element("legend", { textContent: legend }), ...labels]);
  }

  function figureOf(holder) {
    const given = JSON.parse(holder.querySelector("script").textContent);
    const list = given.kind === "panels" ? given.figures : [given];
    const host = element("div", { className: "drawing" });
    const drawing = { host, figures: list, chosen: 0, byCost: false, wanted: "", width: 0 };
    if (list.length > 1) {
      holder.append(choice(drawing, list.map((one) => one.name), 0, "Show", (index) => { drawing.chosen = index; }));
    }
    if (list[0].kind === "bars" && list[0].labels.length > 2) {
      holder.append(choice(drawing, [given.kind === "panels" ? "of the model" : "as listed", "largest first"], 0, "Order", (index) => { drawing.byCost = index === 1; }));
    }
    holder.append(host);
    drawings.push(drawing);
    return drawing;
  }

  // ---- tables

  function value(text) {
    if (text === "exact") return Infinity;
    const match = /^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([A-Za-z]*)/.exec(text);
    return match ? Number(match[1].replace(/,/g, "")) * (MULTIPLES[match[2]] ?? 1) : null;
  }

  function compare(a, b, column, numbers) {
    const [left, right] = [a, b].map((row) => row.cells[column].textContent);
    if (!numbers) return left.localeCompare(right, undefined, { numeric: true });
    const [x, y] = [value(left), value(right)];
    return x === null || y === null ? (x === null) - (y === null) : x === y ? 0 : x - y;
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    if (original.length < 3) return;
    heads.forEach((head, column) => {
      if (!head.textContent) return;
      const button = element("button", { type: "button", title: "Sort by this column" }, [...head.childNodes]);
      head.append(button);
      button.addEventListener("click", () => {
        const numbers = head.classList.contains("n");
        const [first, second] = numbers ? ["descending", "ascending"] : ["ascending", "descending"];
        const now = head.getAttribute("aria-sort");
        const next = now === first ? second : now === second ? null : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        body.append(...(next ? [...original].sort((a, b) => sign * compare(a, b, column, numbers)) : original));
      });
    });
  }

  function filtered(section, drawing) {
    const input = section.querySelector(".filter");
    const found = section.querySelector(".found");
    const rows = [...section.querySelectorAll("tbody tr")];
    input?.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      const hits = rows.filter((row) => !(row.hidden = !row.textContent.toLowerCase().includes(wanted)));
      found.textContent = wanted ? `${hits.length} of ${rows.length}` : "";
      if (drawing && drawing.figures[0].kind === "bars") { drawing.wanted = wanted; draw(drawing); }
    });
  }

  function copyable(listing) {
    const text = listing.querySelector("pre");
    const button = element("button", { type: "button", className: "copy", textContent: "Copy" });
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(text);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected: copy it with the keyboard";
      }
    });
    text.before(button);
  }

  // ---- the page

  document.querySelectorAll("main section").forEach((section) => {
    const holder = section.querySelector(".figure");
    const drawing = holder && figureOf(holder);
    section.querySelectorAll("table").forEach(sortable);
    if (section.querySelector("table")) filtered(section, drawing);
    if (section.matches(".listing")) copyable(section);
    if (drawing) section.querySelector("details").addEventListener("toggle", () => draw(drawing));
  });
  drawAll();
  addEventListener("resize", () => drawings.filter((one) => one.host.clientWidth !== one.width).forEach(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  matchMedia("print").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
