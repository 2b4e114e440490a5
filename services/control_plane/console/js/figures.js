// The figures of now: gains (always the three together), rates, and what became of every frame.

import { by, element, mark, say } from "./dom.js";
import { bytes, count, duration, fixed, NONE, number, plural, seconds, short, signed } from "./format.js";

/** A definition list of numbers that are changed in place. */
class Numbers {
  constructor(place, items) {
    this.parts = {};
    for (const [id, name, hint] of items) {
      const value = element("span", { class: "value" }, NONE);
      const unit = element("span", { class: "unit" });
      const note = element("span", { class: "note" });
      place.append(element("div", { class: "number", "data-number": id },
        element("dt", { title: hint }, name), element("dd", {}, value, unit, note)));
      this.parts[id] = { value, unit, note };
    }
  }

  set(id, value, unit = "", note = "") {
    const part = this.parts[id];
    say(part.value, value);
    say(part.unit, value === NONE ? "" : unit);
    say(part.note, note);
  }
}

export class Figures {
  constructor() {
    this.gains = new Numbers(by("gains"), [
      ["raw", "Throughput gain", "raw bytes of the acquired frames over bytes on the wire, headers and all"],
      ["lossless", "Gain over lossless", "the same frames losslessly compressed, over bytes on the wire"],
      ["frames", "Gained under the link limit", "frames per second more than the same link carries uncompressed"],
    ]);
    this.rates = new Numbers(by("rates"), [
      ["frames", "Frames", "acquired, over the last seconds"],
      ["latency", "Latency p50", "from the end of the exposure to the acknowledgement"],
      ["wire", "On the wire", "all that was sent to workers, over the last seconds"],
      ["raw", "Raw-equivalent", "what the same frames are uncoded"],
    ]);
    this.account = new Account(by("account"));
  }

  show({ metrics, session, series }) {
    if (metrics === null || session === null) return;
    const [wire, wireUnit] = bytes(metrics.bytes.wire);
    const [raw, rawUnit] = bytes(metrics.bytes.raw);
    const [lossless, losslessUnit] = bytes(metrics.bytes.raw_lossless);
    this.gains.set("raw", number(metrics.throughput_gain), "×", `${raw} ${rawUnit} raw as ${wire} ${wireUnit}`);
    this.gains.set("lossless", number(metrics.gain_over_lossless), "×",
      lossless === NONE ? "" : `${lossless} ${losslessUnit} if losslessly coded`);
    this.#underLimit(metrics, session);

    const over = !["running", "paused", "created", "stopping"].includes(session.state);
    this.rates.set("frames", number(metrics.frames_per_s), "frames/s",
      over ? "mean of the session" : idle(metrics));
    this.rates.set("wire", number(metrics.wire_mbit_per_s), "Mbit/s",
      session.specification.link_mbit_per_s ? `link ${short(session.specification.link_mbit_per_s)} Mbit/s`
        : "no link limit");
    this.rates.set("raw", number(metrics.raw_mbit_per_s ?? series.newest("raw")), "Mbit/s", "uncoded");
    const [p50, unit] = seconds(metrics.latency.p50_seconds);
    const [p99, p99Unit] = seconds(metrics.latency.p99_seconds);
    this.rates.set("latency", p50, unit, p99 === NONE ? "" : `p99 ${p99} ${p99Unit}`);
    this.account.show(metrics.frames);
  }

  #underLimit(metrics, session) {
    const [raw, lossless] = [metrics.raw_frames_per_s_limit, metrics.lossless_frames_per_s_limit];
    if (!session.specification.link_mbit_per_s) {
      this.gains.set("frames", NONE, "", "no link limit is set, so nothing to gain under it");
    } else if (typeof raw !== "number") {
      this.gains.set("frames", NONE, "", "not known yet");
    } else {
      const carried = `the link carries ${number(raw)} uncompressed`;
      this.gains.set("frames", signed(metrics.frames_per_s - raw), "frames/s",
        typeof lossless === "number" ? `${carried}, ${number(lossless)} lossless` : carried);
    }
  }
}

function idle(metrics) {
  const [value, unit] = seconds(metrics.idle_seconds);
  return metrics.idle_seconds > 0.05 ? `camera waited ${value} ${unit}` : "camera never waited";
}

/** acquired = acknowledged + in flight + spooled + lost, checked here once more. */
class Account {
  constructor(place) {
    const term = (id, name) => {
      const value = element("b", {}, NONE);
      const note = element("small");
      const made = element("div", { class: "term", "data-term": id }, value, element("span", {}, name), note);
      return { made, value, note };
    };
    this.terms = {
      acquired: term("acquired", "acquired"),
      acknowledged: term("acknowledged", "acknowledged"),
      in_flight: term("in_flight", "in flight"),
      spooled: term("spooled", "spooled"),
      lost: term("lost", "lost"),
    };
    const sign = (text) => element("span", { class: "sign" }, text);
    const { acquired, acknowledged, in_flight, spooled, lost } = this.terms;
    place.append(acquired.made, sign("="), acknowledged.made, sign("+"), in_flight.made, sign("+"),
      spooled.made, sign("+"), lost.made);
    this.check = by("account-check");
  }

  show(frames) {
    const queued = frames.queued ?? 0;
    const spooled = frames.spooled ?? 0;
    for (const name of ["acquired", "acknowledged", "in_flight", "lost"]) {
      say(this.terms[name].value, count(frames[name]));
    }
    say(this.terms.spooled.value, count(spooled));
    say(this.terms.acknowledged.note, "result on disk");
    say(this.terms.in_flight.note, `of which queued ${count(queued)}`);
    const reasons = Object.entries(frames.lost_by_reason ?? {}).filter(([, lost]) => lost > 0);
    say(this.terms.lost.note, reasons.map(([reason, lost]) => `${reason}: ${count(lost)}`).join("; "));
    mark(this.terms.lost.made, "data-tone", frames.lost > 0 ? "bad" : null);
    const off = frames.acquired - frames.acknowledged - frames.in_flight - spooled - frames.lost;
    say(this.check, off === 0 ? "adds up" : `does not add up: ${plural(Math.abs(off), "frame")} ${off > 0 ? "missing" : "too many"}`);
    mark(this.check, "data-tone", off === 0 ? "good" : "bad");
  }
}

/** The bar: state, progress, elapsed and remaining time. */
export function showStanding({ session, metrics }) {
  by("standing").hidden = session === null;
  if (session === null) return;
  const state = metrics?.session === session.id && metrics.state === "stopping" ? "stopping" : session.state;
  say(by("state"), state);
  mark(by("state"), "data-state", state);
  say(by("session-id"), session.id);
  const expected = session.frames_expected;
  const acquired = metrics?.frames.acquired ?? 0;
  const bar = by("progress");
  bar.hidden = !expected;
  mark(bar.parentElement, "data-endless", !expected);
  if (expected) mark(bar, "value", Math.min(1, acquired / expected));
  say(by("progress-frames"), expected ? `${count(acquired)} of ${plural(expected, "frame")}`
    : `${plural(acquired, "frame")}, until stopped`);
  const elapsed = metrics?.elapsed_seconds;
  let time = elapsed === undefined ? "" : `${duration(elapsed)} elapsed`;
  if (expected && session.state === "running" && metrics?.frames_per_s > 0) {
    time += `, about ${duration((expected - acquired) / metrics.frames_per_s)} left`;
  }
  say(by("progress-time"), time);
  document.title = `${state} · ${count(acquired)} frames · CryoFlux`;
}

/** Mean quality, for a row of a table. */
export function qualityCells(quality) {
  return [
    fixed(quality?.psnr, 2), fixed(quality?.ssim, 3), fixed(quality?.frc_resolution_angstrom, 2),
    fixed(quality?.free_residual, 3), fixed(quality?.prior_shift, 3),
  ];
}
