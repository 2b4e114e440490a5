// The one event stream. It resumes where it was broken off: the browser sends the last cursor it got
// (Last-Event-ID), and where the browser gives up, a new stream is opened after that cursor.

import { api } from "./api.js";

const FIRST_PAUSE_MILLISECONDS = 500;
const LONGEST_PAUSE_MILLISECONDS = 8_000;
const SILENCE_MILLISECONDS = 15_000; // while a session runs, something is said every second

const KINDS = ["session", "point", "event", "metrics", "health"];

export class Stream {
  /**
   * @param {(kind: string, data: object) => void} hear  called for every message
   * @param {(connected: boolean) => void} standing  called when the connection comes or goes
   * @param {() => Promise<boolean>} mayGoOn  asked when it was refused, for the browser does not tell why
   */
  constructor(hear, standing, mayGoOn) {
    this.hear = hear;
    this.standing = standing;
    this.mayGoOn = mayGoOn;
    this.over = false;
    this.cursor = "";
    this.pause = FIRST_PAUSE_MILLISECONDS;
    this.heardAt = performance.now();
    this.expectsMore = false; // a session runs
    this.#open();
    setInterval(() => this.#watch(), 5_000);
    addEventListener("online", () => this.#again());
    document.addEventListener("visibilitychange", () => document.hidden || this.#watch());
  }

  /** For good. */
  close() {
    this.over = true;
    clearTimeout(this.timer);
    this.source.close();
  }

  #open() {
    const query = this.cursor ? `?after=${encodeURIComponent(this.cursor)}` : "";
    const source = (this.source = new EventSource(api(`sessions/current/stream${query}`)));
    source.onopen = () => {
      this.pause = FIRST_PAUSE_MILLISECONDS;
      this.heardAt = performance.now();
      this.standing(true);
    };
    source.onerror = () => {
      this.standing(false);
      if (source.readyState === EventSource.CLOSED) this.#later(); // refused: the browser does not try again
    };
    for (const kind of KINDS) {
      source.addEventListener(kind, (message) => {
        this.heardAt = performance.now();
        if (message.lastEventId) this.cursor = message.lastEventId;
        this.hear(kind, JSON.parse(message.data));
      });
    }
  }

  async #later() {
    if (!(await this.mayGoOn())) {
      this.close();
      return;
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#again(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MILLISECONDS);
  }

  #again() {
    if (this.over) return;
    this.source.close();
    this.#open();
  }

  /** A connection can die without a word, say while the laptop slept. */
  #watch() {
    const silent = performance.now() - this.heardAt > SILENCE_MILLISECONDS;
    if (!this.over && this.expectsMore && silent && this.source.readyState === EventSource.OPEN) {
      this.heardAt = performance.now();
      this.standing(false);
      this.#again();
    }
  }
}

/** Checks that numbers follow one another; nothing is believed to be whole only because it was promised. */
export class Sequence {
  constructor() {
    this.clear();
  }

  clear() {
    this.last = null;
    this.missing = 0;
    this.repeated = 0;
  }

  /** Whether `number` is new. */
  take(number) {
    if (this.last !== null && number <= this.last) {
      this.repeated += 1;
      return false;
    }
    if (this.last !== null) this.missing += number - this.last - 1;
    this.last = number;
    return true;
  }
}
