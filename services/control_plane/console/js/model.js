// What the stream has told, as it is drawn: one session, its newest figures, its points and its events.

import { short } from "./format.js";
import { Series } from "./series.js";
import { Sequence } from "./stream.js";

export const EVENTS_KEPT = 300;
const CHANGES_KEPT = 200;

export class Model {
  constructor() {
    this.series = new Series();
    this.points = new Sequence();
    this.numbers = new Sequence(); // of events
    this.health = null;
    this.connected = null; // not known yet
    this.access = null; // who looks
    this.#clear();
  }

  #clear() {
    this.session = null;
    this.metrics = null;
    this.origin = 0; // Unix seconds; time is shown from here on
    this.events = [];
    this.acquisitionChanges = []; // [Unix seconds, config_id]
    this.series.clear();
    this.points.clear();
    this.numbers.clear();
  }

  /** Take up a message; false: it was known already. */
  hear(kind, data) {
    switch (kind) {
      case "session":
        if (this.session?.id !== data.id) this.#clear();
        this.session = data;
        this.origin = Date.parse(data.opened_at ?? data.created_at) / 1000;
        return true;
      case "point":
        if (!this.points.take(data.number)) return false;
        this.series.push(row(data, this.session?.specification.link_mbit_per_s));
        return true;
      case "event":
        if (!this.numbers.take(data.number)) return false;
        this.events.push(data);
        if (this.events.length > EVENTS_KEPT) this.events.shift();
        if (data.kind === "acquisition" && data.details.config_id) {
          this.acquisitionChanges.push([Date.parse(data.at) / 1000, data.details.config_id]);
          if (this.acquisitionChanges.length > CHANGES_KEPT) this.acquisitionChanges.shift();
        }
        return true;
      case "metrics":
        this.metrics = data;
        return true;
      default:
        this.health = data;
        return true;
    }
  }

  get active() {
    return this.session !== null && !["completed", "failed"].includes(this.session.state);
  }

  /** Whether its mask and recovery can be changed. */
  get steerable() {
    return this.session !== null && ["running", "paused"].includes(this.session.state);
  }

  /** Whether who looks may change anything. */
  get mayChange() {
    return this.access?.mayChange ?? false;
  }

  get acquisition() {
    return this.session?.acquisition.at(-1) ?? null;
  }

  get recovery() {
    return this.session?.recovery.at(-1) ?? null;
  }

  /** [{at, label}]: when which compression factor came into force, seconds after the origin. */
  changes() {
    if (this.session === null || this.session.acquisition.length === 0) return [];
    const factors = new Map(this.session.acquisition.map((a) => [a.config_id, a.compression_factor]));
    const label = (id) => (factors.has(id) ? `C ${short(factors.get(id))}` : "C ?");
    return [
      { at: 0, label: label(this.session.acquisition[0].config_id) },
      ...this.acquisitionChanges.map(([at, id]) => ({ at: at - this.origin, label: label(id) })),
    ];
  }
}

/** A point as a row of the series. */
function row(point, link) {
  const quality = point.recent_quality ?? {};
  return {
    at: Date.parse(point.at) / 1000,
    frames_per_s: point.frames_per_s,
    wire: point.wire_mbit_per_s,
    raw: point.raw_mbit_per_s,
    gain: point.throughput_gain,
    lossless_gain: point.gain_over_lossless,
    rate_gain: link ? point.raw_mbit_per_s / link : null, // frames/s over those of the same link, uncoded
    psnr: quality.psnr,
    ssim: quality.ssim,
    frc: quality.frc_resolution_angstrom,
    free: quality.free_residual,
    p50: point.latency?.p50_seconds,
    p99: point.latency?.p99_seconds,
    in_flight: point.frames.in_flight,
    queued: point.frames.queued,
  };
}
