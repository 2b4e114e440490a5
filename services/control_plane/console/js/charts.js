// Small charts against time, with the changes of configuration marked. uPlot draws them.

import uPlot from "../vendor/uPlot-1.6.32.esm.js";
import { draw } from "./beat.js";
import { by, element, mark, say } from "./dom.js";
import { clock, duration, fixed, NONE, number, seconds } from "./format.js";

const HEIGHT = 148;
const FONT = '11px Inter, system-ui, sans-serif';
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800];
const SPANS = [["all", Infinity], ["10 min", 600], ["1 min", 60]];

const times = (value) => (value === null ? NONE : `${number(value)}×`);
const duty = (value) => (value === null ? NONE : seconds(value).join(" "));

// `limits`: horizontal lines for comparison, from the newest metrics
const CHARTS = [
  {
    id: "frames", title: "Frames per second", unit: "frames/s", show: number, zero: true,
    series: [["frames_per_s", "acquired"]],
    limits: (metrics) => [
      [metrics.raw_frames_per_s_limit, "link, uncompressed"],
      [metrics.lossless_frames_per_s_limit, "link, lossless"],
    ],
  },
  {
    id: "bandwidth", title: "Bandwidth", unit: "Mbit/s", show: number, zero: true,
    series: [["wire", "on the wire"], ["raw", "raw-equivalent"]],
    limits: (metrics, session) => [[session.specification.link_mbit_per_s, "link"]],
  },
  {
    id: "gain", title: "Gain", unit: "×", show: times, zero: true,
    series: [["gain", "raw"], ["lossless_gain", "lossless"], ["rate_gain", "frames/s"]],
  },
  { id: "psnr", title: "PSNR", unit: "dB", show: (v) => fixed(v, 2), series: [["psnr", "references"]] },
  { id: "ssim", title: "SSIM", unit: "", show: (v) => fixed(v, 3), series: [["ssim", "references"]] },
  {
    id: "frc", title: "FRC resolution", unit: "Å", show: (v) => fixed(v, 2),
    series: [["frc", "references; smaller is finer"]],
  },
  {
    id: "free", title: "Free residual", unit: "", show: (v) => fixed(v, 3),
    series: [["free", "held-out measurements"]],
  },
  {
    id: "latency", title: "Latency", unit: "s", show: duty, zero: true,
    series: [["p50", "p50"], ["p99", "p99"]],
  },
  {
    id: "queue", title: "Queue", unit: "frames", show: number, zero: true,
    series: [["in_flight", "in flight"], ["queued", "of which queued"]],
  },
];

/** The charts of the session that is shown. `model` is read whenever something is drawn. */
export class Charts {
  constructor(place, tools, model) {
    this.model = model;
    this.span = Infinity;
    this.zoom = null;
    this.colours = {};
    this.panels = CHARTS.map((what) => this.#panel(place, what));
    this.buttons = SPANS.map(([name, span]) => {
      const button = element("button", { class: "chip", type: "button", "aria-pressed": String(span === this.span) },
        name);
      button.addEventListener("click", () => this.#show(span));
      return button;
    });
    this.back = element("button", { class: "chip", type: "button", hidden: true }, "undo zoom");
    this.back.addEventListener("click", () => this.#zoomTo(null));
    tools.append(this.back, ...this.buttons);
    this.recolour();
    new ResizeObserver(() => draw("chart-sizes", () => this.#resize())).observe(place);
  }

  /** Draw what is new, one chart at a time, so that no frame is late. */
  refresh() {
    for (const panel of this.panels) draw(`chart-${panel.what.id}`, () => this.#refresh(panel));
  }

  /** Take up the colours of the theme. */
  recolour() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["text", "muted", "grid", "line", "mark", "surface", "series-1", "series-2",
      "series-3", "series-fill"]) {
      this.colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
    for (const panel of this.panels) {
      panel.plot?.destroy();
      panel.plot = panel.drawn = null;
    }
    this.refresh();
  }

  #show(span) {
    this.span = span;
    this.buttons.forEach((button, at) => mark(button, "aria-pressed", String(SPANS[at][1] === span)));
    this.#zoomTo(null);
  }

  #zoomTo(range) {
    this.zoom = range;
    this.back.hidden = range === null;
    this.refresh();
  }

  /** [begin, end] in seconds after the session's start */
  #range() {
    if (this.zoom !== null) return this.zoom;
    const { series, origin } = this.model;
    if (series.length === 0) return [0, 60];
    const [first, last] = [series.columns.at[0] - origin, series.columns.at[series.length - 1] - origin];
    const [begin, end] = [first < 30 ? 0 : first, Math.max(last, 10)];
    return [Math.max(begin, end - this.span), end];
  }

  #panel(place, what) {
    const values = what.series.map(() => element("b", {}, NONE));
    const legend = what.series.map(([, name], at) =>
      element("li", {}, element("i", { class: `swatch s${at + 1}`, "aria-hidden": "true" }), values[at],
        element("span", {}, name)));
    const title = element("h3", { id: `chart-${what.id}-title` }, what.title,
      what.unit && what.unit !== "×" ? element("small", {}, ` ${what.unit}`) : null);
    const when = element("span", { class: "when" });
    const canvas = element("div", { class: "plot", "aria-hidden": "true" });
    const empty = element("p", { class: "plot-empty" }, "nothing measured yet");
    const figure = element("figure", { class: "chart", "data-chart": what.id,
      "aria-labelledby": `chart-${what.id}-title` },
    element("figcaption", {}, title, when, element("ul", { class: "legend" }, ...legend)), canvas, empty);
    place.append(figure);
    return { what, values, when, canvas, empty, figure, legend, plot: null, data: null, drawn: null };
  }

  #refresh(panel) {
    const { series, origin } = this.model;
    const range = this.#range();
    if (!this.#moved(panel, range)) {
      this.#tell(panel);
      return;
    }
    const names = panel.what.series.map(([name]) => name);
    panel.data = series.view(names, origin, range[0]);
    const none = panel.data[0].length === 0;
    if (panel.empty.hidden === none) panel.empty.hidden = !none;
    panel.legend.forEach((item, at) => {
      const unknown = at > 0 && this.model.series.newest(names[at]) === null;
      if (item.hidden !== unknown) item.hidden = unknown;
    });
    if (panel.plot === null) panel.plot = this.#plot(panel);
    panel.plot.batch(() => {
      panel.plot.setData(panel.data, false);
      panel.plot.setScale("x", { min: range[0], max: range[1] });
    });
    this.#tell(panel);
  }

  /**
   * Whether a chart would look otherwise. A drawing that moves by less than a pixel is not worth the work: an
   * hour on 300 pixels is drawn anew every twelve seconds, a minute every time.
   */
  #moved(panel, range) {
    const pixel = (range[1] - range[0]) / Math.max(120, panel.canvas.clientWidth);
    const limits = this.#limits(panel.what).map(([value]) => number(value));
    const look = [this.model.session?.id, this.model.changes().length, this.zoom, this.span, limits].join();
    const { drawn } = panel;
    const { series, origin } = this.model;
    const edges = [...range, series.length ? series.columns.at[series.length - 1] - origin : -Infinity];
    const near = drawn !== null && edges.every((at, n) => at === drawn.edges[n] || Math.abs(at - drawn.edges[n]) < pixel);
    if (panel.plot !== null && near && drawn.look === look) return false;
    panel.drawn = { edges, look };
    return true;
  }

  /** The values at the cursor, else the newest. */
  #tell(panel) {
    const at = panel.plot?.cursor.idx ?? null;
    const hovering = at !== null && panel.plot.cursor.left >= 0 && at < panel.data[0].length;
    panel.what.series.forEach(([name], n) => {
      const value = hovering ? panel.data[n + 1][at] : this.model.series.newest(name);
      say(panel.values[n], panel.what.show(value === null || Number.isNaN(value) ? null : value));
    });
    const when = hovering ? panel.data[0][at] : null;
    say(panel.when, when === null ? "" : `${duration(when)} · ${clock(1000 * (this.model.origin + when))}`);
  }

  #resize() {
    for (const panel of this.panels) {
      const width = Math.floor(panel.canvas.clientWidth);
      if (panel.plot !== null && width > 0 && panel.plot.width !== width) {
        panel.plot.setSize({ width, height: HEIGHT });
      }
    }
  }

  #plot(panel) {
    const { colours } = this;
    const { what } = panel;
    const lone = what.series.length === 1;
    const sparse = ["psnr", "ssim", "frc"].includes(what.id);
    const options = {
      width: Math.max(120, Math.floor(panel.canvas.clientWidth)),
      height: HEIGHT,
      padding: [14, 8, 0, 0],
      legend: { show: false },
      scales: { x: { time: false, auto: false }, y: { range: (plot, low, high) => this.#bounds(what, low, high) } },
      cursor: {
        y: false,
        sync: { key: "cryoflux", scales: ["x", null] },
        drag: { x: true, y: false, setScale: false },
        points: { size: 6, fill: (plot, n) => colours[`series-${n}`], stroke: colours.surface, width: 1 },
        bind: { dblclick: () => () => this.#zoomTo(null) },
      },
      axes: [
        {
          stroke: colours.muted, font: FONT, size: 24, gap: 3, space: 56, incrs: STEPS,
          grid: { stroke: colours.grid, width: 1 }, ticks: { show: false },
          values: (plot, splits) => splits.map((at) => (at < 0 ? "" : duration(at))),
        },
        {
          stroke: colours.muted, font: FONT, size: 44, gap: 5, space: 22,
          grid: { stroke: colours.grid, width: 1 }, ticks: { show: false },
          values: (plot, splits) => splits.map((value) => axisNumber(value, splits)),
        },
      ],
      series: [
        {},
        ...what.series.map((_, n) => ({
          stroke: colours[`series-${n + 1}`],
          width: 1.75,
          fill: lone && what.zero ? colours["series-fill"] : undefined,
          spanGaps: true,
          points: sparse ? { show: (plot) => plot.data[0].length < 80, size: 4 } : { show: false },
        })),
      ],
      hooks: {
        draw: [(plot) => this.#marks(panel, plot)],
        setCursor: [() => this.#tell(panel)],
        setSelect: [
          (plot) => {
            const { left, width } = plot.select;
            if (width < 4) return;
            const range = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
            plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
            this.#zoomTo(range);
          },
        ],
      },
    };
    return new uPlot(options, panel.data, panel.canvas);
  }

  #bounds(what, low, high) {
    const limits = this.#limits(what).map(([value]) => value);
    let least = Math.min(low ?? Infinity, ...limits);
    let most = Math.max(high ?? -Infinity, ...limits);
    if (!Number.isFinite(least) || !Number.isFinite(most)) [least, most] = [0, 1];
    if (what.zero) least = Math.min(0, least);
    const room = most - least || Math.abs(most) || 1;
    return [what.zero && least === 0 ? 0 : least - 0.12 * room, most + 0.12 * room];
  }

  #limits(what) {
    const { metrics, session } = this.model;
    if (what.limits === undefined || metrics === null || session === null) return [];
    return what.limits(metrics, session).filter(([value]) => typeof value === "number");
  }

  /** Lines where the configuration changed, and at the limits. */
  #marks(panel, plot) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.font = `${10 * ratio}px Inter, system-ui, sans-serif`;
    ctx.lineWidth = ratio;
    ctx.textBaseline = "bottom";
    for (const [value, name] of this.#limits(panel.what)) {
      const y = Math.round(plot.valToPos(value, "y", true)) + 0.5;
      ctx.strokeStyle = this.colours.mark;
      ctx.setLineDash([2 * ratio, 3 * ratio]);
      line(ctx, bbox.left, y, bbox.left + bbox.width, y);
      const width = ctx.measureText(name).width;
      const left = bbox.left + bbox.width - width - 4 * ratio;
      ctx.fillStyle = this.colours.surface;
      ctx.fillRect(left - 3 * ratio, y - 6 * ratio, width + 6 * ratio, 12 * ratio);
      ctx.fillStyle = this.colours.muted;
      ctx.textAlign = "left";
      ctx.textBaseline = "middle";
      ctx.fillText(name, left, y);
      ctx.textBaseline = "bottom";
    }
    let shown = 0;
    let free = Infinity; // no label over another; the newest has the right of way
    ctx.textAlign = "left";
    for (const { at, label } of this.model.changes().reverse()) {
      const x = Math.round(plot.valToPos(at, "x", true)) + 0.5;
      if (x > bbox.left + bbox.width + 1) continue;
      const before = x <= bbox.left + 1; // in force when what is shown begins
      if (!before) {
        ctx.strokeStyle = this.colours.mark;
        ctx.setLineDash([4 * ratio, 3 * ratio]);
        line(ctx, x, bbox.top, x, bbox.top + bbox.height);
        shown += 1;
      }
      const width = ctx.measureText(label).width;
      const left = Math.min(Math.max(x - ratio, bbox.left), bbox.left + bbox.width - width);
      if (left + width <= free) {
        ctx.fillStyle = this.colours.text;
        ctx.fillText(label, left, bbox.top - 2 * ratio);
        free = left - 6 * ratio;
      }
      if (before) break;
    }
    ctx.restore();
    mark(panel.figure, "data-marks", shown);
  }
}

function line(ctx, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

/** As many decimals as the step between splits has. */
function axisNumber(value, splits) {
  if (value === null) return "";
  if (Math.abs(value) >= 10_000) return `${Number((value / 1000).toFixed(1))}k`;
  const step = splits.length > 1 ? Math.abs(splits[1] - splits[0]) : 1;
  let decimals = 0;
  while (decimals < 4 && Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6) decimals += 1;
  return value.toFixed(decimals).replace("-", "\u2212");
}

export const charts = (model) => new Charts(by("charts"), by("chart-tools"), model);
