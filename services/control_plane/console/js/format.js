// Numbers as people read them: a unit where there is one, digits that mean something, a dash for nothing.

export const NONE = "–";
const THIN = "\u202f"; // narrow no-break space

const known = (value) => typeof value === "number" && Number.isFinite(value);

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 12 345 */
export function count(value) {
  return known(value) ? grouped.format(value).replaceAll(",", THIN) : NONE;
}

/** Three digits or so, always the same number of decimals for the same size: 0.123, 1.23, 12.3, 123 */
export function number(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1000) return count(value);
  const decimals = size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.9995 || size === 0 ? 2 : 3;
  return minus(value.toFixed(decimals));
}

/** At most `decimals`, without trailing zeros: a compression factor of 4 is 4. */
export function short(value, decimals = 2) {
  return known(value) ? minus(String(Number(value.toFixed(decimals)))) : NONE;
}

export function fixed(value, decimals) {
  return known(value) ? minus(value.toFixed(decimals)) : NONE;
}

export function signed(value) {
  if (!known(value)) return NONE;
  return value > 0 ? `+${number(value)}` : number(value);
}

export function percent(value) {
  return known(value) ? `${(100 * value).toFixed(value < 0.0995 && value > 0 ? 1 : 0)}${THIN}%` : NONE;
}

const SIZES = ["B", "kB", "MB", "GB", "TB", "PB"];

/** [number, unit] in powers of 1000 */
export function bytes(value) {
  if (!known(value)) return [NONE, ""];
  let unit = 0;
  while (value >= 999.5 && unit < SIZES.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return [unit === 0 ? count(value) : number(value), SIZES[unit]];
}

/** [number, unit]: µs, ms or s */
export function seconds(value) {
  if (!known(value)) return [NONE, ""];
  if (value < 1e-3) return [number(value * 1e6), "µs"];
  if (value < 0.9995) return [number(value * 1e3), "ms"];
  return [number(value), "s"];
}

/** 42 s, 3:07, 1:02:03 */
export function duration(value) {
  if (!known(value)) return NONE;
  const whole = Math.max(0, Math.round(value));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (part) => String(part).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

const clockFormat = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});

/** 14:03:27, local time */
export function clock(moment) {
  return clockFormat.format(moment);
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

function minus(text) {
  return text.replace("-", "\u2212");
}
