// The form that starts a session. It edits one document, the specification that POST /sessions takes; the
// form and the JSON beside it are two views of it.

import { tab } from "./access.js";
import { api } from "./api.js";
import { carryOut, Line, Outcome } from "./command.js";
import { by, element } from "./dom.js";
import {
  choice, Field, get, MASK_FIELDS, MASK_KINDS, METHOD_FIELDS, METHODS, number, place, put, segments, text, wantedFactor,
} from "./fields.js";
import { short } from "./format.js";

const SOURCES = [["specimen", "Simulator"], ["file", "File or folder"], ["pattern", "Pattern"], ["archive", "Archive"]];

const SOURCE_FIELDS = {
  specimen: [
    choice("source.specimen.output", "Frames", [["particles", "single particles"], ["micrographs", "micrographs"]]),
    text("source.specimen.structure", "Structure", "cage", { hint: "or barrel, ring, bundle, or a PDB, mmCIF or MRC file" }),
    number("source.specimen.side_pixels", "Side", "128", { unit: "pixels" }),
    number("source.specimen.pixel_size_angstrom", "Pixel size", "1.5", { unit: "Å" }),
    number("source.specimen.dose_per_square_angstrom", "Dose", "20", { unit: "e/Å²" }),
    number("source.specimen.snr", "SNR", "counted electrons", { hint: "instead of the dose" }),
  ],
  file: [
    text("source.path", "Path", "/data/particles.star", {
      wide: true, hint: "as the detector sees it: MRC, MRCS, TIFF, STAR, or a folder of micrographs",
    }),
    { path: "source.watch", label: "wait for new files in the folder", kind: "flag" },
    number("source.pixel_size_angstrom", "Pixel size", "as the file says", { unit: "Å" }),
  ],
  pattern: [
    number("source.shape.0", "Height", "128", { unit: "pixels" }),
    number("source.shape.1", "Width", "128", { unit: "pixels" }),
    choice("source.dtype", "Values", ["uint8", "uint16", "float32"]),
  ],
  archive: [
    text("source.path", "Archive", "the one the detector was started with", {
      wide: true, hint: "HDF5 file of a recorded session; its masks are replayed with its measurements",
    }),
    number("source.speed", "Speed", "1", { unit: "× recorded" }),
  ],
};

const CAMERA_FIELDS = [
  number("camera.rate", "Rate", "as fast as taken", { unit: "frames/s" }),
  number("camera.frames", "Frames", "until stopped"),
  number("link_mbit_per_s", "Link limit", "none", { unit: "Mbit/s" }),
  number("camera.reference_every", "Reference every", "100", { hint: "n-th frame; sent whole, to judge quality" }),
];

const MORE_FIELDS = [
  choice("readout.values", "Values on the wire", [["", "default (auto)"], "auto", "float32", "float16", "quantised"]),
  choice("readout.coding", "Coding",
    [["", "default (auto)"], "auto", "plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd"]),
  number("readout.quantisation_sigma", "Quantisation step", "0.125", { unit: "noise σ" }),
  number("camera.reference_first", "First references", "4", { unit: "frames" }),
  text("output", "Results folder", "chosen by the control plane", { wide: true }),
  text("archive", "Archive of the measurements", "none", { wide: true, hint: "a new HDF5 file, as the control plane sees it" }),
];

const KEPT = "cryoflux-form"; // what was in the form when signing in came between

const initial = () => ({
  source: { kind: "specimen" },
  mask: { kind: "coded-aperture", kernel_size: 4, mask_count: 8 },
  camera: { rate: 30 },
  recovery: { method: "dct" },
});

export class StartForm {
  constructor() {
    this.dialog = by("start");
    this.spec = initial();
    this.other = {}; // what was said of kinds that are not chosen now
    this.fields = [];
    this.line = new Line("start a session");
    this.outcome = new Outcome();
    this.factor = element("p", { class: "derived" });
    this.json = element("textarea", { id: "start-json", rows: "16", spellcheck: "false", "aria-describedby": "start-json-error" });
    this.jsonError = element("p", { class: "error", id: "start-json-error", role: "alert", hidden: true });
    this.json.addEventListener("input", () => this.#fromJson());
    this.source = segments("Frames come from", "source-kind", SOURCES, (kind) => this.#choose("source", kind));
    this.mask = segments("Mask", "mask-kind", MASK_KINDS, (kind) => this.#choose("mask", kind));
    this.groups = [];
    this.submit = element("button", { class: "button primary", type: "submit" }, "Start");
    this.form = element("form", { novalidate: true }, ...this.#sections());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    const close = element("button", { class: "button", type: "button", onclick: () => this.dialog.close() }, "Cancel");
    this.form.append(element("div", { class: "dialog-foot" }, this.outcome.place,
      element("div", { class: "dialog-buttons" }, close, this.submit), this.line.place));
    this.dialog.append(element("h2", { id: "start-title" }, "Start a session"), this.form);
    this.#fill();
  }

  open() {
    this.outcome.show("");
    this.dialog.showModal();
    this.form.querySelector("input:checked")?.focus();
  }

  /** Before the page is left in order to sign in. */
  keep() {
    if (this.dialog.open) tab.put(KEPT, JSON.stringify(this.spec));
  }

  /** After it: the form is as it was left. */
  resume(mayStart) {
    const kept = tab.take(KEPT);
    if (kept === null || !mayStart) return;
    this.spec = JSON.parse(kept);
    this.#fill();
    this.open();
  }

  #sections() {
    const section = (title, ...children) =>
      element("section", { class: "part" }, title ? element("h3", {}, title) : null, ...children);
    const method = choice("recovery.method", "Method", METHODS);
    return [
      section(null, this.source.place, ...SOURCES.map(([kind]) =>
        this.#group("source.kind", kind, SOURCE_FIELDS[kind]))),
      this.maskPart = section(null, this.mask.place, ...MASK_KINDS.map(([kind]) =>
        this.#group("mask.kind", kind, MASK_FIELDS[kind])), this.factor),
      section("Camera and link", this.#group(null, null, CAMERA_FIELDS)),
      section("Recovery", this.#group(null, null, [
        method, number("recovery.free_share", "Held out", "0.05", { hint: "share for the free residual" }),
      ]), element("details", {}, element("summary", {}, "Parameters of the method"),
        ...METHODS.map(([name]) => this.#group("recovery.method", name, METHOD_FIELDS[name].map((what) =>
          ({ ...what, path: `recovery.${what.path}` }))))),
      ),
      element("details", { class: "part" }, element("summary", {}, "Readout and results"),
        this.#group(null, null, MORE_FIELDS)),
      element("details", { class: "part", id: "start-advanced" }, element("summary", {}, "Advanced: JSON"),
        element("p", { class: "hint" }, "The whole specification, also what has no field above; every field of it is in the ",
          element("a", { href: api("docs"), target: "_blank", rel: "noopener" }, "REST interface"), "."),
        element("label", { for: "start-json", class: "out-of-sight" }, "Specification as JSON"), this.json, this.jsonError),
    ];
  }

  /** Fields that are shown while the document has `value` at `path`. */
  #group(path, value, whats) {
    const fields = whats.map((what) => new Field(what, (field) => {
      put(this.spec, field.path, field.value === false ? undefined : field.value);
      this.#show(field);
    }));
    this.fields.push(...fields);
    const made = element("div", { class: "fields" }, ...fields.map((field) => field.place));
    if (whats.length === 0) made.append(element("p", { class: "hint" }, "nothing to set"));
    this.groups.push({ path, value, made });
    return made;
  }

  #choose(part, kind) {
    this.other[`${part} ${this.spec[part]?.kind}`] = this.spec[part];
    this.spec[part] = this.other[`${part} ${kind}`] ?? { kind };
    if (part === "source") this.#replay(kind === "archive");
    this.#fill();
  }

  /** A replay brings masks and times of its own. */
  #replay(is) {
    if (is) {
      this.other.taken = { mask: this.spec.mask, rate: this.spec.camera?.rate };
      delete this.spec.mask;
      if (this.spec.camera) delete this.spec.camera.rate;
    } else if (this.other.taken !== undefined) {
      this.spec.mask = this.other.taken.mask;
      if (this.spec.camera) put(this.spec, "camera.rate", this.other.taken.rate);
      delete this.other.taken;
    }
  }

  /** From the document into every field. */
  #fill() {
    this.source.value = this.spec.source?.kind ?? "specimen";
    this.mask.value = this.spec.mask?.kind ?? "coded-aperture";
    for (const field of this.fields) {
      const fallback = field.what.kind === "choice" ? field.what.choices[0][0] : undefined;
      const standard = field.path === "recovery.method" ? "dct" : fallback;
      field.value = get(this.spec, field.path) ?? standard;
      field.complain("");
    }
    this.#show();
  }

  /** What follows from the document: groups, factor, JSON, and the call. */
  #show(changed) {
    if (changed?.path.startsWith("source.shape.")) this.#shape();
    if (changed?.path === "recovery.method") delete this.spec.recovery.parameters;
    for (const { path, value, made } of this.groups) {
      const standard = { "source.kind": "specimen", "mask.kind": "coded-aperture", "recovery.method": "dct" };
      made.hidden = path !== null && (get(this.spec, path) ?? standard[path]) !== value;
    }
    this.maskPart.hidden = this.spec.source?.kind === "archive";
    const factor = wantedFactor(this.spec.mask ?? { kind: "coded-aperture" });
    this.factor.textContent = factor === null ? "" : `Compression factor C = ${short(factor, 3)}`;
    if (document.activeElement !== this.json) this.json.value = JSON.stringify(this.spec, null, 2);
    this.line.show({ method: "POST", path: "sessions", body: this.spec });
  }

  /** Both sides, or neither. */
  #shape() {
    const given = this.spec.source.shape ?? {};
    const sides = [given[0], given[1]];
    if (sides.every((side) => side === undefined)) delete this.spec.source.shape;
    else this.spec.source.shape = sides.map((side) => side ?? 128);
  }

  #fromJson() {
    try {
      const read = JSON.parse(this.json.value);
      if (typeof read !== "object" || read === null || Array.isArray(read)) throw new Error("an object { … } is needed");
      this.spec = read;
      this.jsonError.hidden = true;
      this.submit.disabled = false;
      this.#fill();
    } catch (error) {
      this.jsonError.textContent = `not JSON yet: ${error.message}`;
      this.jsonError.hidden = false;
      this.submit.disabled = true;
    }
  }

  async #start() {
    for (const field of this.fields) field.complain("");
    this.outcome.show("The detector opens the source …");
    const wrong = (problem) => this.outcome.show(place(problem, this.fields) || "See the field that is marked.", "bad");
    const session = await carryOut(this.submit, this.line.request, wrong);
    if (session !== null) {
      this.outcome.show("");
      this.dialog.close();
      by("page").focus({ preventScroll: true });
    }
  }
}
