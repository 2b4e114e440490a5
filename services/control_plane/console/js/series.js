// What is drawn against time: a column of numbers per figure, in memory that is taken once.

export const COLUMNS = [
  "at", "frames_per_s", "wire", "raw", "gain", "lossless_gain", "rate_gain", "psnr", "ssim", "frc", "free",
  "p50", "p99", "in_flight", "queued",
];

const CAPACITY = 4096; // more than an hour of points, one a second

export class Series {
  constructor(capacity = CAPACITY) {
    this.capacity = capacity;
    this.columns = Object.fromEntries(COLUMNS.map((name) => [name, new Float64Array(capacity)]));
    this.length = 0;
  }

  clear() {
    this.length = 0;
  }

  /** Add a row; what is missing or null is not known. */
  push(row) {
    if (this.length === this.capacity) this.#thin();
    for (const name of COLUMNS) this.columns[name][this.length] = row[name] ?? NaN;
    this.length += 1;
  }

  /** The value that was known last. */
  newest(name) {
    const column = this.columns[name];
    for (let at = this.length - 1; at >= 0; at -= 1) if (!Number.isNaN(column[at])) return column[at];
    return null;
  }

  /**
   * [times, values, …] of the rows in which at least the first of `names` is known, from the time `since` on
   * and one row before it, so that a line comes in from the edge. Times are seconds after `origin`.
   */
  view(names, origin, since = -Infinity) {
    const [at, first] = [this.columns.at, this.columns[names[0]]];
    let begin = 0;
    if (since > -Infinity) {
      let end = this.length;
      while (begin < end) {
        const middle = (begin + end) >> 1;
        if (at[middle] - origin < since) begin = middle + 1;
        else end = middle;
      }
      while (begin > 0 && (begin -= 1) > 0 && Number.isNaN(first[begin]));
    }
    let known = 0;
    for (let row = begin; row < this.length; row += 1) known += Number.isNaN(first[row]) ? 0 : 1;
    const times = new Float64Array(known);
    const values = names.map(() => new Array(known)); // null for what is not known, as uPlot has it
    for (let row = begin, to = 0; row < this.length; row += 1) {
      if (Number.isNaN(first[row])) continue;
      times[to] = at[row] - origin;
      for (let n = 0; n < names.length; n += 1) {
        const value = this.columns[names[n]][row];
        values[n][to] = Number.isNaN(value) ? null : value;
      }
      to += 1;
    }
    return [times, ...values];
  }

  /** Halve the resolution of the older half; means of what is known. */
  #thin() {
    const half = this.capacity >> 1;
    const kept = half >> 1;
    for (const column of Object.values(this.columns)) {
      for (let to = 0; to < kept; to += 1) {
        const [a, b] = [column[2 * to], column[2 * to + 1]];
        column[to] = Number.isNaN(a) ? b : Number.isNaN(b) ? a : (a + b) / 2;
      }
      column.copyWithin(kept, 2 * kept, this.length);
    }
    this.length -= kept;
  }
}
