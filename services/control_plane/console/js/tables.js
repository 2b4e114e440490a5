// Configurations, workers, and the log of events.

import { by, element, mark, say, Table } from "./dom.js";
import { clock, count, fixed, NONE, number, percent, short } from "./format.js";
import { qualityCells } from "./figures.js";
import { PRIOR_SHIFT } from "./pictures.js";

const GONE_KEPT = 6;

/** A mask in the field's words. */
export function maskText(mask) {
  switch (mask.kind) {
    case "coded-aperture":
      return `coded aperture, K = ${mask.kernel_size}, b = ${mask.mask_count}`;
    case "phase-plate":
      return `phase plate, ${mask.pattern}`;
    default:
      return "no mask";
  }
}

export class Configurations {
  constructor() {
    this.table = new Table(by("configurations"), [
      { title: "Configuration", hint: "hash of mask, frame shape and coding", class: "code" },
      { title: "Mask" },
      { title: "C", class: "right", hint: "honest: pixels over real numbers measured" },
      { title: "C printed", class: "right", hint: "what the papers print for this mask" },
      { title: "From frame", class: "right", hint: "the first that was acquired so" },
      { title: "Frames", class: "right" },
      { title: "Refs", class: "right", hint: "frames also sent whole: PSNR, SSIM and FRC are theirs" },
      { title: "PSNR dB", class: "right" },
      { title: "SSIM", class: "right" },
      { title: "FRC Å", class: "right", hint: "resolution at FRC = 0.143; smaller is finer" },
      { title: "Free res.", class: "right", hint: "error in predicting held-out measurements; 1: nothing predicted" },
      { title: "Prior shift", class: "right learned", hint: PRIOR_SHIFT },
    ], "no frame was acquired yet");
  }

  show({ metrics, acquisition, session }) {
    const used = new Map((metrics?.configurations ?? []).map((known) => [known.config_id, known]));
    mark(by("configurations"), "data-learned", metrics?.quality.learned_frames > 0 ? "" : null);
    // one that was just set has no frames yet, but it is there
    for (const setting of session?.acquisition ?? []) {
      if (!used.has(setting.config_id)) used.set(setting.config_id, { ...setting, frames: 0, quality: null });
    }
    this.table.show([...used.values()].map((known) => ({
      key: known.config_id,
      standing: known.config_id === acquisition?.config_id ? "now" : null,
      cells: [
        known.config_id,
        { text: maskText(known.mask), title: `${JSON.stringify(known.mask)}; error of the coding: ${known.error_bound}` },
        fixed(known.compression_factor, 3),
        short(known.printed_compression_factor, 3),
        count(known.first_frame ?? known.effective_from_frame),
        count(known.frames),
        count(known.quality?.references ?? 0),
        ...qualityCells(known.quality),
      ],
    })));
  }
}

export class Workers {
  constructor() {
    this.seen = new Map(); // key of a process -> what was known last
    this.gone = new Map(); // those that are not heard any more, as they were last
    this.session = null;
    this.table = new Table(by("workers"), [
      { title: "Worker" },
      { title: "Health" },
      { title: "Frames/s", class: "right" },
      { title: "Busy", class: "right", hint: "share of its time spent in recoveries" },
      { title: "Frames", class: "right", hint: "recovered by this process" },
      { title: "Batch", class: "right", hint: "frames recovered together, mean" },
      { title: "Credits", class: "right", hint: "blocks it may still be sent" },
      { title: "Process", hint: "device, process id; host and threads in its tooltip" },
    ], "no worker is registered");
  }

  /** A process that ended stays in the table as gone; its successor has a row of its own. */
  show({ metrics, session }) {
    if (metrics === null) return;
    if (this.session !== session?.id) {
      this.session = session?.id;
      this.gone.clear();
      this.seen.clear();
    }
    const keys = new Set();
    for (const worker of metrics.workers) {
      const key = `${worker.name} ${worker.host} ${worker.pid}`;
      keys.add(key);
      this.seen.set(key, worker);
      if (worker.present) this.gone.delete(key);
      else this.gone.set(key, worker);
    }
    for (const [key, worker] of this.seen) {
      if (!keys.has(key)) {
        this.seen.delete(key);
        this.gone.set(key, { ...worker, present: false });
      }
    }
    while (this.gone.size > GONE_KEPT) this.gone.delete(this.gone.keys().next().value);
    const heard = metrics.workers.filter((worker) => worker.present);
    const rows = [...heard, ...[...this.gone.values()].reverse()];
    this.table.show(rows.map((worker) => ({
      key: `${worker.name} ${worker.host} ${worker.pid}`,
      standing: worker.present ? "heard" : "gone",
      cells: [
        worker.name,
        { text: worker.present ? "heard" : "gone", tone: worker.present ? "good" : "bad" },
        { text: worker.present ? number(worker.frames_per_s) : NONE, title: pace(worker) },
        worker.present ? percent(worker.busy_share) : NONE,
        { text: count(worker.frames_recovered), title: `${count(worker.frames_rejected)} rejected` },
        worker.present ? short(worker.batch_frames_mean, 1) : NONE,
        worker.present ? count(worker.credits) : NONE,
        {
          text: `${worker.device ? `${worker.device}, ` : ""}${worker.pid}`,
          title: `${worker.host}${worker.threads ? `, ${worker.threads} threads` : ""}`,
        },
      ],
    })));
  }
}

/** How a worker keeps up with a learned prior. */
function pace(worker) {
  if (!worker.present || !worker.evaluations) return null;
  return `${worker.evaluations} evaluations of the learned prior for each image; `
    + `${number(worker.frames_per_s_possible)} frames/s possible, ${number(worker.frames_per_s_asked)} asked for`;
}

const TONES = { failed: "bad", silent: "bad", killed: "bad", bad_file: "warn", rejected: "warn", lost: "bad",
  redelivered: "warn", recovery_slow: "warn", prior_doubtful: "warn", prior: "accent", acquisition: "accent", recovery: "accent", completed: "good", registered: "good",
  returned: "good", started: "good" }; // prettier-ignore

export class Log {
  constructor() {
    this.place = by("log");
    this.first = null; // number of the newest event that is shown
    this.session = null;
  }

  show({ events, session }) {
    if (this.session !== session?.id || events.length === 0) {
      this.session = session?.id;
      this.first = 0;
      this.place.replaceChildren(element("li", { class: "empty" }, "nothing has happened yet"));
    }
    if (events.length === 0) return;
    this.place.querySelector(".empty")?.remove();
    const fresh = events.filter((event) => event.number > this.first);
    for (const event of fresh) {
      this.place.prepend(element("li", { "data-kind": event.kind, "data-tone": TONES[event.kind] },
        element("time", { datetime: event.at }, clock(Date.parse(event.at))),
        element("b", {}, event.kind.replaceAll("_", " ")),
        element("span", {}, event.name && event.name !== "control" ? `${event.name}: ${event.message}` : event.message)));
      this.first = event.number;
    }
    while (this.place.childElementCount > events.length) this.place.lastElementChild.remove();
  }
}

/** One line for the page's foot. */
export function showVersion(version) {
  say(by("version"), `version ${version}`);
}
