// The newest frames side by side. Pictures are drawn on canvases from decoded bitmaps that are let go of at
// once, so a day of them takes no more memory than one.

import { api, call, Problem, request } from "./api.js";
import { draw } from "./beat.js";
import { Line } from "./command.js";
import { by, element, mark, say } from "./dom.js";
import { clock, count, fixed, NONE, number, seconds, short } from "./format.js";

const VIEWS = [
  ["measurement", "Measurement", "what came over the wire"],
  ["recovered", "Recovered", "the image"],
  ["reference", "Reference", "the frame as acquired"],
  ["residual", "Residual", "unexplained: A⁺(y − A x)"],
];
const LARGEST_SIDE = 640; // larger frames are asked for at this size
const CONTRAST = { low: 1, high: 99, scale: "own" };

export const PRIOR_SHIFT = "how far the learned prior moved the image from the linear (Wiener) estimate of the same "
  + "data, relative to that: the larger, the more of what you see is the prior's";

const FACTS = [
  ["psnr", "PSNR", (f) => fixed(f.psnr, 2), "dB"],
  ["ssim", "SSIM", (f) => fixed(f.ssim, 3), ""],
  ["frc", "FRC", (f) => fixed(f.frc_resolution_angstrom, 2), "Å"],
  ["free", "Free residual", (f) => fixed(f.free_residual, 3), ""],
  ["shift", "Prior shift", (f) => fixed(f.prior_shift, 3), "", PRIOR_SHIFT],
  ["spread", "Spread", (f) => number(f.posterior_spread), "", "standard deviation of the samples, mean over the frame, "
    + "in the frame's units: where it is large the data leave the image open"],
  ["evaluations", "Evaluations", (f) => count(f.evaluations), "", "of the learned prior's network, for each sample"],
  ["c", "C", (f) => short(f.compression_factor, 3), ""],
  ["config", "Configuration", (f) => f.config_id, ""],
  ["method", "Recovery", (f) => f.method.replace("_", " "), ""],
  ["latency", "Latency", (f) => seconds(f.latency_seconds).join(" "), ""],
  ["at", "Exposed at", (f) => clock(Date.parse(f.acquired_at)), ""],
  ["worker", "Worker", (f) => (f.attempt > 1 ? `${f.worker}, delivery ${f.attempt}` : f.worker), ""],
  ["defocus", "Defocus", (f) => defocus(f.metadata), "µm"],
];

const ONLY_WHERE_KNOWN = new Set(["shift", "spread", "evaluations", "defocus"]);

export class Pictures {
  constructor(model) {
    this.model = model;
    this.mode = "reference"; // reference: newest that was also sent whole; newest; number
    this.chosen = 0;
    this.paused = false;
    this.contrast = { ...CONTRAST };
    this.shown = null; // what is drawn: frame and contrast
    this.loading = null;
    this.again = false;
    this.session = null;
    this.#tools();
    this.panes = new Map(VIEWS.map(([view, name, what]) => {
      const canvas = element("canvas", { width: 1, height: 1, role: "img", "aria-label": `${name}: nothing yet` });
      const empty = element("p", { class: "pane-empty" }, "no frame yet");
      const note = element("span", { class: "quiet" }, what);
      const place = element("figure", { class: "pane", "data-view": view },
        element("div", { class: "screen" }, canvas, empty), element("figcaption", {}, element("b", {}, name), note));
      by("pictures").append(place);
      return [view, { canvas, empty, name, note, what, context: canvas.getContext("2d") }];
    }));
    this.facts = new Map(FACTS.map(([id, name, , unit, hint]) => {
      const value = element("dd", {}, NONE);
      by("frame-facts").append(element("div", { "data-fact": id, title: hint, hidden: ONLY_WHERE_KNOWN.has(id) },
        element("dt", {}, name), value));
      return [id, { value, unit }];
    }));
    document.addEventListener("visibilitychange", () => document.hidden || this.follow());
  }

  #tools() {
    const modes = [["reference", "newest reference"], ["newest", "newest"], ["number", "frame"]];
    this.modes = modes.map(([mode, name]) => {
      const button = element("button", { class: "chip", type: "button", "data-mode": mode, "aria-pressed": "false" }, name);
      button.addEventListener("click", () => this.#choose(mode));
      return button;
    });
    this.number = element("input", { type: "number", min: "0", step: "1", id: "frame-number", value: "0", "aria-label": "Frame number" });
    this.number.addEventListener("change", () => {
      this.chosen = Math.max(0, Math.round(Number(this.number.value) || 0));
      this.#choose("number");
    });
    this.pause = element("button", { class: "chip", type: "button", id: "pause-pictures", "aria-pressed": "false" }, "hold");
    this.pause.title = "keep the frame that is shown";
    this.pause.addEventListener("click", () => {
      this.paused = !this.paused;
      mark(this.pause, "aria-pressed", String(this.paused));
      this.follow();
    });
    this.title = element("span", { class: "frame-title", id: "frame-title" });
    by("picture-tools").append(this.title, element("div", { class: "chips", role: "group", "aria-label": "Frame shown" },
      ...this.modes, this.number), this.pause);

    this.sliders = {};
    const slider = (id, name, low, high) => {
      const input = element("input", { type: "range", id: `contrast-${id}`, min: low, max: high, step: "0.5", value: CONTRAST[id] });
      const value = element("output", { for: `contrast-${id}` });
      input.addEventListener("input", () => {
        this.contrast[id] = Number(input.value);
        this.#contrast();
      });
      this.sliders[id] = { input, value };
      return element("label", { class: "slider", for: `contrast-${id}` }, element("span", {}, name), input, value);
    };
    this.scale = element("input", { type: "checkbox", id: "contrast-scale" });
    this.scale.addEventListener("change", () => {
      this.contrast.scale = this.scale.checked ? "reference" : "own";
      this.#contrast();
    });
    const reset = element("button", { class: "chip", type: "button" }, "reset");
    reset.addEventListener("click", () => {
      Object.assign(this.contrast, CONTRAST);
      this.#contrast();
    });
    this.line = new Line("a picture");
    by("contrast").append(slider("low", "Black", 0, 49.5), slider("high", "White", 50.5, 100),
      element("label", { class: "check-label", for: "contrast-scale" }, this.scale,
        element("span", {}, "all on the reference's grey scale")), reset, this.line.place);
    this.#contrast();
  }

  #choose(mode) {
    this.mode = mode;
    if (mode === "number") {
      if (document.activeElement !== this.number && this.shown) {
        this.chosen = this.shown.frame;
        this.number.value = this.chosen;
      }
    } else if (this.paused) {
      this.pause.click();
    }
    this.follow();
  }

  #contrast() {
    for (const [id, { input, value }] of Object.entries(this.sliders)) {
      input.value = this.contrast[id];
      say(value, `${this.contrast[id].toFixed(1)} %`);
      mark(input, "aria-valuetext", `${this.contrast[id]} percent`);
    }
    this.scale.checked = this.contrast.scale === "reference";
    this.follow();
  }

  /** The frame to show; null: there is none yet. */
  #wanted() {
    const { metrics } = this.model;
    if (this.mode === "number") return this.chosen;
    if (this.paused && this.shown !== null) return this.shown.frame;
    const newest = metrics?.newest_frame ?? null;
    return this.mode === "reference" ? (metrics?.newest_reference ?? newest) : newest;
  }

  /** Show what is wanted now, if it is not shown already; one load at a time, the last wish counts. */
  follow() {
    for (const button of this.modes ?? []) mark(button, "aria-pressed", String(button.dataset.mode === this.mode));
    const session = this.model.session?.id ?? null;
    if (session !== this.session) {
      this.session = session;
      this.#begin();
    }
    const frame = this.#wanted();
    if (this.line) this.line.show({ method: "GET", path: this.#path(frame ?? 0, "recovered"), file: "frame.png" });
    if (document.hidden || session === null || frame === null) return;
    const key = `${session} ${frame} ${JSON.stringify(this.contrast)}`;
    if (this.shown?.key === key) return;
    if (this.loading !== null) {
      this.again = true;
      return;
    }
    this.loading = this.#load(session, frame, key).finally(() => {
      this.loading = null;
      if (this.again) {
        this.again = false;
        this.follow();
      }
    });
  }

  /** Another session: nothing of the one before stays. */
  #begin() {
    this.shown = null;
    this.paused = false;
    mark(this.pause, "aria-pressed", "false");
    const spec = this.model.session?.specification;
    this.mode = spec?.camera?.reference_every === 0 ? "newest" : "reference";
    for (const pane of this.panes?.values() ?? []) this.#empty(pane, "no frame yet");
    for (const { value } of this.facts?.values() ?? []) say(value, NONE);
    say(this.title, "");
    for (const button of this.modes) mark(button, "aria-pressed", String(button.dataset.mode === this.mode));
  }

  #path(frame, view) {
    const { low, high, scale } = this.contrast;
    const shape = this.model.session?.shape;
    const size = shape && Math.max(...shape) > LARGEST_SIDE ? `&size=${LARGEST_SIDE}` : "";
    return `sessions/${this.session ?? "current"}/frames/${frame}/preview.png?view=${view}&low=${low}&high=${high}&scale=${scale}${size}`;
  }

  async #load(session, frame, key) {
    let facts;
    try {
      facts = await call({ method: "GET", path: `sessions/${session}/frames/${frame}` });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 0) return; // the connection is gone; what is shown stays
      this.shown = { frame, key: error.status === 404 ? key : "" };
      draw("pictures", () => {
        for (const pane of this.panes.values()) this.#empty(pane, error.message);
        this.#tell(frame, null);
      });
      return;
    }
    const bitmaps = await Promise.all(VIEWS.map(async ([view]) => {
      if (view === "reference" && !facts.reference) return null;
      try {
        const answer = await request(api(this.#path(frame, view)), { cache: "no-store", signal: AbortSignal.timeout(20_000) });
        return await createImageBitmap(await answer.blob());
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        return error.message;
      }
    }));
    this.shown = { frame, key };
    draw("pictures", () => {
      VIEWS.forEach(([view], at) => this.#paint(this.panes.get(view), bitmaps[at], frame));
      this.#tell(frame, facts);
    });
  }

  #paint(pane, bitmap, frame) {
    if (bitmap === null) {
      this.#empty(pane, `frame ${count(frame)} was not sent whole, so there is nothing to compare with`);
      return;
    }
    if (typeof bitmap === "string") {
      this.#empty(pane, bitmap);
      return;
    }
    const { canvas, context } = pane;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    pane.empty.hidden = true;
    canvas.hidden = false;
    mark(canvas, "aria-label", `${pane.name} of frame ${frame}: ${pane.what}`);
    mark(canvas, "data-frame", frame);
  }

  #empty(pane, why) {
    pane.canvas.hidden = true;
    pane.canvas.removeAttribute("data-frame");
    pane.empty.hidden = false;
    say(pane.empty, why);
  }

  #tell(frame, facts) {
    say(this.title, `frame ${count(frame)}`);
    if (document.activeElement !== this.number) this.number.value = frame;
    for (const [id, , show, unit] of FACTS) {
      const text = facts === null ? NONE : show(facts);
      say(this.facts.get(id).value, text === NONE || !unit ? text : `${text} ${unit}`);
      this.facts.get(id).value.parentElement.hidden = ONLY_WHERE_KNOWN.has(id) && text === NONE;
    }
  }
}

function defocus(metadata) {
  const [u, v] = [Number(metadata?.rlnDefocusU), Number(metadata?.rlnDefocusV)];
  return Number.isFinite(u) && Number.isFinite(v) ? fixed((u + v) / 20_000, 2) : NONE;
}
