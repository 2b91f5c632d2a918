"use strict";
// Additions to htmx: charts, live progress and error messages. All pages also work without this script.

const notice = document.getElementById("notice");

function tell(text) {
  notice.textContent = text;
  notice.hidden = text === "";
}

// The action token. Each action needs it as well as the cookie, because browsers also send the cookie to other ports of this
// host. Only the sign-in response contains the token, and only pages of this port can read this storage.
const TOKEN = "sentiment-action-token";

function storedToken() {
  try {
    return localStorage.getItem(TOKEN) || "";
  } catch {
    return ""; // Storage is turned off; the gateway then asks for the key with each action.
  }
}

function actionHeaders() {
  return storedToken() ? { "X-Action-Token": storedToken() } : {};
}

const goOn = document.querySelector("[data-action-token]");
if (goOn) {
  try {
    localStorage.setItem(TOKEN, goOn.dataset.actionToken);
  } catch {
    // Storage is turned off.
  }
  location.replace(goOn.href);
}

document.addEventListener("htmx:configRequest", (event) => {
  if (event.detail.verb === "post") Object.assign(event.detail.headers, actionHeaders());
});

// Adds the token to forms that the browser sends without htmx.
document.addEventListener(
  "submit",
  (event) => {
    const form = event.target;
    if (form.method !== "post" || form.matches("[hx-post]") || form.elements.action_token || !storedToken()) return;
    form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "action_token", value: storedToken() }));
  },
  true,
);

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("[data-submit]")) {
    event.target.form.requestSubmit();
  }
});

// Stops polling while the page is hidden.
document.addEventListener("htmx:beforeRequest", (event) => {
  const isPoll = event.detail.requestConfig.triggeringEvent === undefined && event.detail.elt.matches("[hx-trigger^=every]");
  if (isPoll && document.hidden) event.preventDefault();
});

// Errors of the gateway itself are JSON problems, which are not inserted into the page.
document.addEventListener("htmx:beforeSwap", (event) => {
  const type = event.detail.xhr.getResponseHeader("Content-Type") || "";
  if (type.startsWith("text/html")) {
    tell("");
    return;
  }
  event.detail.shouldSwap = false;
  try {
    tell(JSON.parse(event.detail.xhr.responseText).detail);
  } catch {
    tell(`The gateway responded with status ${event.detail.xhr.status}.`);
  }
});
for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(name, () => tell("The gateway cannot be reached; retrying. The page may be out of date."));
}

// Charts. An element names its data, a JSON script in the page, which htmx may replace.
const charts = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Times are in UTC, as everywhere, so that people in different time zones mean the same time.
function timeOf(seconds, from, to) {
  const iso = new Date(seconds * 1000).toISOString();
  return to - from > 2 * 86_400 ? iso.slice(5, 10) : iso.slice(11, to - from >= 3_600 ? 16 : 19);
}

// As in the tables, whatever the browser's language.
function figure(value, least, most) {
  return value.toLocaleString("en", { minimumFractionDigits: least, maximumFractionDigits: most });
}

function marksOf(marks) {
  return (chart) => {
    const { ctx, bbox } = chart;
    ctx.save();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    for (const mark of marks) {
      const x = Math.round(chart.valToPos(mark.x, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(`--${mark.colour}`);
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillText(mark.sign, x + 3 * devicePixelRatio, bbox.top + 11 * devicePixelRatio);
    }
    ctx.restore();
  };
}

function draw(holder) {
  const source = document.getElementById(holder.dataset.chart);
  if (source === null) return;
  const told = JSON.parse(source.textContent);
  const data = [told.x, ...told.series.map((series) => series.values)];
  const known = charts.get(holder);
  if (known && !told.marks) {
    known.setData(data);
    return;
  }
  known?.destroy();
  const figures = (_, splits) => splits.map((value) => figure(value, 0, 4));
  const times = (chart, splits) => splits.map((at) => timeOf(at, chart.scales.x.min, chart.scales.x.max));
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  // Without a cursor over the chart, the legend shows the newest values.
  const newest = (values) => values[values.length - 1];
  const scales = [...new Set(told.series.map((series) => series.scale || "y"))];
  const named = (scale) => {
    const label = told.series.find((series) => (series.scale || "y") === scale).axis;
    return label ? { label, labelSize: 20 } : {};
  };
  const range = told.range ? { range: told.range } : { range: (_, low, high) => [0, Math.max(high || 0, 1) * 1.1] };
  charts.set(
    holder,
    new uPlot(
      {
        width: holder.clientWidth,
        height: 260,
        scales: {
          x: told.span ? { range: (_, low, high) => [high - told.span, high] } : {},
          ...Object.fromEntries(scales.map((name) => [name, range])),
        },
        axes: [{ ...axis, values: times, label: "Time (UTC)", labelSize: 20 }, ...scales.map((scale, index) => ({ ...axis, ...named(scale), values: figures, scale, side: index ? 1 : 3, grid: index ? { show: false } : axis.grid }))],
        series: [
          { label: "Time (UTC)", value: (_, at) => (at == null ? "newest" : new Date(at * 1000).toISOString().slice(0, 19).replace("T", " ")) },
          ...told.series.map((series, index) => ({
            label: series.name,
            scale: series.scale || "y",
            stroke: colour(`--c${series.colour ?? index}`),
            width: 2,
            dash: series.dash,
            spanGaps: true,
            points: series.dash ? { show: false } : { fill: colour("--card") },
            value: (chart, value, row, at) => {
              const shown = at == null ? newest(chart.data[row]) : value;
              return shown == null ? "–" : figure(shown, told.decimals ?? 1, told.decimals ?? 1) + (series.unit ? ` ${series.unit}` : "");
            },
          })),
        ],
        hooks: { draw: told.marks ? [marksOf(told.marks)] : [] },
      },
      data,
      holder,
    ),
  );
}

function drawAll() {
  for (const holder of document.querySelectorAll("[data-chart]")) draw(holder);
}

if (window.uPlot) {
  drawAll();
  document.addEventListener("htmx:afterSwap", drawAll);
  const anew = () => {
    for (const chart of charts.values()) chart.destroy();
    charts.clear();
    drawAll();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", anew);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    anew();
  });
}

// Live progress. The gateway streams the progress as HTML that it renders; changed parts of the page are loaded again.
for (const holder of document.querySelectorAll("[data-stream]")) {
  const source = new EventSource(holder.dataset.stream);
  source.addEventListener("progress", (event) => {
    tell("");
    // Not while the focus is inside, so that no button disappears just before it is pressed.
    if (!holder.contains(document.activeElement) || document.activeElement === document.body) holder.innerHTML = event.data;
  });
  source.addEventListener("changed", () => htmx.trigger(document.getElementById(holder.dataset.changes), "changed"));
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) tell("The progress of jobs cannot be shown; reload the page.");
  });
  addEventListener("pagehide", () => source.close());
}
