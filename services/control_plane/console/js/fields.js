// Form fields that are bound to a place in a JSON document, and the fields of the masks and recoveries.
// Nothing is checked here: the control plane knows what is allowed, and says it for the field.

import { element, mark, say } from "./dom.js";

let made = 0;

/** The value at "a.b.c" of a document; undefined where there is none. */
export function get(document, path) {
  return path.split(".").reduce((at, name) => at?.[name], document);
}

/** Put a value at "a.b.c"; undefined removes it. */
export function put(document, path, value) {
  const names = path.split(".");
  const last = names.pop();
  let at = document;
  for (const name of names) {
    if (typeof at[name] !== "object" || at[name] === null) {
      if (value === undefined) return;
      at[name] = {};
    }
    at = at[name];
  }
  if (value === undefined) delete at[last];
  else at[last] = value;
}

/**
 * A labelled control. `what`: {path, label, unit, kind: number | text | flag | choice, choices, empty, hint}
 * A number that is none goes out as the text that it is, so that the answer can say what is wrong with it.
 */
export class Field {
  constructor(what, changed) {
    this.what = what;
    this.path = what.path;
    const id = `field-${(made += 1)}`;
    const about = [`${id}-error`];
    if (what.hint) about.push(`${id}-hint`);
    const shared = { id, "aria-describedby": about.join(" "), "data-path": what.path };
    this.input = this.#control(shared);
    this.input.addEventListener("input", () => {
      this.complain("");
      changed(this);
    });
    this.error = element("p", { class: "error", id: `${id}-error`, role: "alert", hidden: true });
    const label = element("label", { for: id }, what.label,
      what.unit ? element("span", { class: "unit" }, what.unit) : null);
    const hint = what.hint ? element("p", { class: "hint", id: `${id}-hint` }, what.hint) : null;
    this.place = element("div", { class: `field ${what.kind}${what.wide ? " wide" : ""}` },
      ...(what.kind === "flag" ? [this.input, label] : [label, this.input]), hint, this.error);
  }

  #control(shared) {
    const { what } = this;
    switch (what.kind) {
      case "choice":
        return element("select", shared, ...what.choices.map(([value, name]) =>
          element("option", { value }, name)));
      case "flag":
        return element("input", { ...shared, type: "checkbox" });
      default:
        return element("input", {
          ...shared, type: "text", inputmode: what.kind === "number" ? "decimal" : null,
          placeholder: what.empty, autocomplete: "off", spellcheck: "false", autocapitalize: "off",
        });
    }
  }

  /** What it says; undefined where it was left empty. */
  get value() {
    const { kind } = this.what;
    if (kind === "flag") return this.input.checked;
    const text = this.input.value.trim();
    if (text === "") return undefined;
    if (kind === "number" && Number.isFinite(Number(text))) return Number(text);
    return text;
  }

  set value(value) {
    if (this.what.kind === "flag") this.input.checked = Boolean(value);
    else this.input.value = value === undefined || value === null ? "" : String(value);
  }

  set empty(text) {
    mark(this.input, "placeholder", text);
  }

  complain(message) {
    for (let around = this.place.closest("details"); message && around; around = around.parentElement.closest("details")) {
      around.open = true;
    }
    say(this.error, message);
    this.error.hidden = message === "";
    mark(this.input, "aria-invalid", message ? "true" : null);
  }
}

/**
 * Put the errors of a problem beside the fields they name; what no field answers to is returned as text.
 * A name is met from its end: "parameters.iterations" is the field "recovery.parameters.iterations".
 */
export function place(problem, fields) {
  const rest = [];
  let first = null;
  for (const { field: name, message } of problem.errors) {
    const field = fields.find((known) => visible(known) && (known.path === name
      || (name !== "" && (known.path.endsWith(`.${name}`) || name.startsWith(`${known.path}.`)))));
    if (field === undefined) {
      rest.push(name ? `${name}: ${message}` : message);
    } else {
      field.complain(message);
      first ??= field;
    }
  }
  first?.input.focus();
  if (problem.errors.length === 0) rest.push(problem.message);
  return rest.join("; ");
}

function visible(field) {
  return field.place.closest("[hidden]") === null;
}

/** A group of choices of which one is pressed; arrow keys move, as in any group of radio buttons. */
export function segments(legend, name, choices, changed) {
  const inputs = choices.map(([value]) => element("input", { type: "radio", name, value, onchange: () => changed(value) }));
  const place = element("fieldset", { class: "segments" }, element("legend", {}, legend),
    ...choices.map(([, text], at) => element("label", {}, inputs[at], element("span", {}, text))));
  return {
    place,
    set value(wanted) {
      for (const input of inputs) input.checked = input.value === wanted;
    },
  };
}

export const MASK_KINDS = [["coded-aperture", "Coded aperture"], ["phase-plate", "Phase plate"], ["none", "No mask"]];

const number = (path, label, empty, rest = {}) => ({ path, label, empty, kind: "number", ...rest });
const text = (path, label, empty, rest = {}) => ({ path, label, empty, kind: "text", ...rest });
const choice = (path, label, names, rest = {}) =>
  ({ path, label, kind: "choice", choices: names.map((name) => (Array.isArray(name) ? name : [name, name])), ...rest });

export { choice, number, text };

/** Of a mask, by its kind. */
export const MASK_FIELDS = {
  "coded-aperture": [
    number("mask.kernel_size", "K", "4", { unit: "pixels", hint: "side of the pooled blocks" }),
    number("mask.mask_count", "b", "8", { unit: "masks", hint: "C = K² / b" }),
    number("mask.seed", "Seed", "0"),
    number("mask.tile", "Tile", "largest up to 128", { unit: "pixels" }),
  ],
  "phase-plate": [
    choice("mask.pattern", "Pattern", ["uniform", "annular", "radial"]),
    number("mask.compression_factor", "C", "2.5"),
    choice("mask.symmetry", "Symmetry", ["hermitian", "paper"]),
    number("mask.ring_width", "Ring width", "0.25", { hint: "annular only" }),
    number("mask.seed", "Seed", "0"),
  ],
  none: [],
};

export const METHODS = [
  ["minimum_norm", "minimum norm"], ["wiener", "Wiener"], ["dct", "sparse in DCT"],
  ["wavelet", "sparse in wavelets"], ["tv", "total variation"], ["diffusion", "learned prior"],
];

const DATA_STEP = [
  number("parameters.data_weight", "Data weight", "by the frame's signal", { hint: "1: measured values exactly" }),
  number("parameters.null_weight", "Null weight", "by the mask", { hint: "the prior's share where nothing was measured" }),
];
const SPARSE = [
  number("parameters.strength", "Strength λ", "by the mask", { unit: "noise σ" }),
  number("parameters.iterations", "Iterations", "by the mask"),
  number("parameters.penalty", "Penalty ρ", "by the mask"),
  choice("parameters.weighting", "Weighting", [["", "default (spectrum)"], "spectrum", "flat"]),
  ...DATA_STEP,
];

/** Of a recovery, by its method. */
export const METHOD_FIELDS = {
  minimum_norm: [],
  wiener: [number("parameters.iterations", "Iterations", "by the mask"), ...DATA_STEP],
  dct: SPARSE,
  wavelet: [text("parameters.wavelet", "Wavelet", "sym8"), number("parameters.levels", "Levels", "5"), ...SPARSE],
  tv: [
    number("parameters.strength", "Strength λ", "by the mask", { unit: "noise σ" }),
    number("parameters.iterations", "Iterations", "by the mask"),
    number("parameters.step", "Step", "by the mask"),
    ...DATA_STEP,
  ],
  diffusion: [
    text("parameters.prior", "Prior", "small", {
      wide: true, hint: "one that comes with CryoFlux, or a folder as the workers see it",
    }),
    number("parameters.evaluations", "Evaluations", "what keeps up, 10 to 50", { hint: "of the network, for each image" }),
    number("parameters.samples", "Samples", "1", { hint: "more than one: their mean, and how far they spread" }),
    number("parameters.seed", "Seed", "0"),
    choice("parameters.sampler", "Sampler", [["", "default (posterior)"], "posterior", "nesterov"]),
  ],
};

/** The honest compression factor that a mask asks for, as far as it can be told before it is built. */
export function wantedFactor(mask) {
  if (mask?.kind === "coded-aperture") {
    const [side, masks] = [mask.kernel_size ?? 4, mask.mask_count ?? 8];
    return typeof side === "number" && typeof masks === "number" && masks > 0 ? side ** 2 / masks : null;
  }
  if (mask?.kind === "phase-plate") {
    const factor = mask.compression_factor ?? 2.5;
    return typeof factor === "number" ? factor : null;
  }
  return mask?.kind === "none" ? 1 : null;
}
