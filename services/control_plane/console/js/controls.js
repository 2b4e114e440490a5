// Steering a session while it runs. Every control shows the REST call that it makes.

import { carryOut, Line, Outcome } from "./command.js";
import { by, element, mark, say } from "./dom.js";
import { Field, get, MASK_FIELDS, MASK_KINDS, METHOD_FIELDS, METHODS, choice, number, place, put, segments, wantedFactor } from "./fields.js";
import { count, short } from "./format.js";
import { maskText } from "./tables.js";

const CURRENT = "sessions/current";
const PATCH_ACQUISITION = (body) => ({ method: "PATCH", path: `${CURRENT}/acquisition`, body });
const PATCH_RECOVERY = (body) => ({ method: "PATCH", path: `${CURRENT}/recovery`, body });

/** Pause, resume, stop. */
export class SessionControl {
  constructor(model) {
    this.model = model;
    this.outcome = new Outcome();
    this.pause = element("button", { class: "button", type: "button", id: "pause" }, "Pause");
    this.stop = element("button", { class: "button danger", type: "button", id: "stop" }, "Stop …");
    this.lines = { pause: new Line("pause or resume"), stop: new Line("stop") };
    this.pause.addEventListener("click", () => this.#do(this.pause, this.lines.pause.request));
    this.stop.addEventListener("click", () => this.dialog.showModal());
    this.lines.stop.show({ method: "POST", path: `${CURRENT}/stop` });
    this.about = element("dl", { class: "facts compact" });
    this.results = element("dd", { class: "path" });
    this.frame = element("dd");
    this.from = element("dd");
    this.about.append(element("div", {}, element("dt", {}, "Source"), this.from),
      element("div", {}, element("dt", {}, "Frames"), this.frame),
      element("div", {}, element("dt", {}, "Results"), this.results));
    this.locked = element("fieldset", { class: "bare buttons", "aria-label": "Pause and stop" }, this.pause, this.stop);
    this.steering = element("div", { class: "steering" }, this.locked, this.lines.pause.place, this.lines.stop.place);
    by("control-session").append(this.about, this.steering, this.outcome.place);
    this.#confirmation();
  }

  #confirmation() {
    this.dialog = by("confirm-stop");
    const line = new Line("stop the session");
    line.show({ method: "POST", path: `${CURRENT}/stop` });
    const keep = element("button", { class: "button", type: "button", autofocus: true, onclick: () => this.dialog.close() }, "Keep running");
    const stop = element("button", { class: "button danger filled", type: "button", id: "stop-now" }, "Stop the session");
    stop.addEventListener("click", async () => {
      await this.#do(stop, line.request);
      this.dialog.close();
    });
    this.dialog.append(element("h2", { id: "confirm-title" }, "Stop the session?"),
      element("p", {}, "No further frame is exposed. What was acquired is still recovered and the results are finalised; "
        + "a stopped session cannot be resumed."),
      element("div", { class: "dialog-buttons" }, keep, stop), line.place);
  }

  async #do(button, request) {
    this.outcome.show("");
    await carryOut(button, request, (problem) => this.outcome.show(problem.message, "bad"));
  }

  show() {
    const { session, active } = this.model;
    if (session === null) return;
    const paused = session.state === "paused";
    say(this.pause, paused ? "Resume" : "Pause");
    this.lines.pause.show({ method: "POST", path: `${CURRENT}/${paused ? "resume" : "pause"}` });
    mark(this.pause, "disabled", !["running", "paused"].includes(session.state));
    mark(this.stop, "disabled", !["running", "paused"].includes(session.state));
    this.steering.hidden = !active;
    mark(this.locked, "disabled", !this.model.mayChange);
    if (!active && this.dialog.open) this.dialog.close();
    say(this.from, sourceText(session.specification.source));
    say(this.frame, session.shape === null ? "not opened yet"
      : `${session.shape[1]} × ${session.shape[0]}, ${session.dtype}${session.pixel_size_angstrom ? `, ${short(session.pixel_size_angstrom, 3)} Å/pixel` : ""}`);
    say(this.results, session.output ?? "not known yet");
    mark(this.results, "title", session.output);
  }
}

function sourceText(source) {
  switch (source.kind) {
    case "specimen":
      return `specimen simulator, ${source.specimen?.structure ?? "cage"}, ${source.specimen?.output ?? "particles"}`;
    case "pattern":
      return "test pattern";
    case "archive":
      return `replay of ${source.path ?? "the detector's archive"}`;
    default:
      return source.path ?? source.kind;
  }
}

/** Compression factor, or another mask. */
export class AcquisitionControl {
  constructor(model) {
    this.model = model;
    this.now = element("p", { class: "now" });
    this.outcome = new Outcome();
    this.body = { mask: { kind: "coded-aperture" } };
    this.setting = null;

    this.factor = new Field(number("compression_factor", "Compression factor C", ""), () => this.#calls());
    this.chips = element("div", { class: "chips", role: "group", "aria-label": "Compression factors of this mask" });
    this.factorLine = new Line("change the compression factor");
    const apply = element("button", { class: "button primary", type: "submit" }, "Apply");
    const factorForm = element("form", { novalidate: true, id: "factor-form" },
      locked("Compression factor", element("div", { class: "with-button" }, this.factor.place, apply), this.chips),
      this.factorLine.place);
    factorForm.addEventListener("submit", (event) => this.#apply(event, apply, this.factorLine, [this.factor]));

    this.kind = segments("Mask", "new-mask-kind", MASK_KINDS, (kind) => {
      this.body.mask = { kind };
      this.#mask();
    });
    this.groups = new Map(MASK_KINDS.map(([kind]) => {
      const fields = MASK_FIELDS[kind].map((what) => new Field(what, (field) => {
        put(this.body, field.path, field.value);
        this.#calls();
      }));
      return [kind, { fields, made: element("div", { class: "fields" }, ...fields.map((field) => field.place)) }];
    }));
    this.derived = element("p", { class: "derived" });
    this.maskLine = new Line("change the mask");
    const applyMask = element("button", { class: "button primary", type: "submit" }, "Apply mask");
    const maskForm = element("form", { novalidate: true, id: "mask-form" },
      locked("Another mask", this.kind.place, ...[...this.groups.values()].map((group) => group.made), this.derived,
        element("div", { class: "buttons" }, applyMask)), this.maskLine.place);
    maskForm.addEventListener("submit", (event) =>
      this.#apply(event, applyMask, this.maskLine, this.groups.get(this.body.mask.kind).fields));

    this.steering = element("div", { class: "steering" }, factorForm,
      element("details", {}, element("summary", {}, "Another mask"), maskForm));
    by("control-acquisition").append(this.now, this.steering, this.outcome.place);
    this.#mask();
  }

  /** The mask of the form, from its document into its fields. */
  #mask() {
    this.kind.value = this.body.mask.kind;
    for (const [kind, { fields, made }] of this.groups) {
      made.hidden = kind !== this.body.mask.kind;
      for (const field of fields) {
        field.value = get(this.body, field.path) ?? field.what.choices?.[0][0];
        field.complain("");
      }
    }
    this.#calls();
  }

  #calls() {
    const factor = this.factor.value;
    this.factorLine.show(PATCH_ACQUISITION({ compression_factor: factor ?? this.setting?.compression_factor ?? 2 }));
    this.maskLine.show(PATCH_ACQUISITION({ mask: this.body.mask }));
    const wanted = wantedFactor(this.body.mask);
    say(this.derived, wanted === null ? "" : `C = ${short(wanted, 3)}`);
  }

  async #apply(event, button, line, fields) {
    event.preventDefault();
    for (const field of fields) field.complain("");
    this.outcome.show("The detector builds the operator while frames flow …");
    const setting = await carryOut(button, line.request, (problem) =>
      this.outcome.show(place(problem, fields) || "Not changed; see the field that is marked.", "bad"));
    if (setting !== null) {
      this.outcome.show(`C = ${short(setting.compression_factor, 3)} from frame ${count(setting.effective_from_frame)} on`, "good");
    }
  }

  show() {
    const setting = this.model.acquisition;
    this.steering.hidden = !this.model.steerable;
    lock(this.steering, !this.model.mayChange);
    if (setting === null) {
      say(this.now, "not acquiring yet");
      return;
    }
    if (setting.config_id === this.setting?.config_id) return;
    this.setting = setting;
    this.now.replaceChildren(element("b", {}, `C ${short(setting.compression_factor, 3)}`), ` ${maskText(setting.mask)}`,
      element("code", { class: "quiet" }, setting.config_id));
    if (document.activeElement !== this.factor.input) this.factor.value = short(setting.compression_factor, 3);
    this.factor.complain("");
    this.chips.replaceChildren(...factors(setting.mask).map((value) => {
      const chip = element("button", { class: "chip", type: "button", "aria-pressed": String(Math.abs(value - setting.compression_factor) < 0.005) }, short(value));
      chip.addEventListener("click", () => {
        this.factor.value = short(value, 3);
        this.factor.complain("");
        this.#calls();
      });
      return chip;
    }));
    this.body.mask = Object.fromEntries(Object.entries(setting.mask).filter(([, value]) => value !== null));
    this.#mask();
  }
}

/** Fields that are locked together; what call they make can be read and copied all the same. */
function locked(name, ...children) {
  return element("fieldset", { class: "bare lockable", "aria-label": name }, ...children);
}

function lock(steering, is) {
  for (const fields of steering.querySelectorAll(".lockable")) mark(fields, "disabled", is);
}

/** Factors that the kind of mask can do, to choose from. */
function factors(mask) {
  const usual = [1, 1.6, 2, 2.5, 4, 8, 16, 32];
  if (mask.kind === "coded-aperture") {
    const pixels = mask.kernel_size ** 2;
    return usual.filter((c) => c <= pixels && Math.abs(pixels / Math.round(pixels / c) - c) < 1e-9);
  }
  return mask.kind === "phase-plate" ? usual.filter((c) => c <= 16) : [];
}

/** Method and parameters of the recovery. */
export class RecoveryControl {
  constructor(model) {
    this.model = model;
    this.setting = null;
    this.now = element("p", { class: "now" });
    this.outcome = new Outcome();
    this.method = new Field(choice("method", "Method", METHODS), () => this.#method());
    this.free = new Field(number("free_share", "Held out", "0.05", { hint: "share for the free residual" }), () => this.#call());
    this.groups = new Map(METHODS.map(([name]) => {
      const fields = METHOD_FIELDS[name].map((what) => new Field(what, () => this.#call()));
      const made = element("div", { class: "fields" }, ...fields.map((field) => field.place));
      if (fields.length === 0) made.append(element("p", { class: "hint" }, "this method has no parameters"));
      return [name, { fields, made }];
    }));
    this.line = new Line("change the recovery");
    const apply = element("button", { class: "button primary", type: "submit" }, "Apply");
    this.form = element("form", { novalidate: true, id: "recovery-form" },
      locked("Recovery", element("div", { class: "with-button" }, this.method.place, apply),
        element("details", {}, element("summary", {}, "Parameters"),
          ...[...this.groups.values()].map((group) => group.made), element("div", { class: "fields" }, this.free.place))),
      this.line.place);
    this.form.addEventListener("submit", (event) => this.#apply(event, apply));
    this.steering = element("div", { class: "steering" }, this.form);
    by("control-recovery").append(this.now, this.steering, this.outcome.place);
  }

  get #fields() {
    return [this.method, ...this.groups.get(this.method.value).fields, this.free];
  }

  /** Only what differs from the setting in force; null puts a parameter back to its default. */
  #body() {
    const now = this.setting;
    const body = {};
    const same = this.method.value === now?.method;
    if (!same) body.method = this.method.value;
    const parameters = {};
    for (const field of this.groups.get(this.method.value).fields) {
      const name = field.path.split(".")[1];
      const before = same ? now?.parameters?.[name] : undefined;
      if (field.value !== undefined && field.value !== before) parameters[name] = field.value;
      if (field.value === undefined && before !== undefined && before !== null) parameters[name] = null;
    }
    if (Object.keys(parameters).length) body.parameters = parameters;
    if (this.free.value !== undefined && this.free.value !== now?.free_share) body.free_share = this.free.value;
    return Object.keys(body).length ? body : { method: this.method.value };
  }

  #method() {
    for (const [name, { fields, made }] of this.groups) {
      made.hidden = name !== this.method.value;
      const parameters = name === this.setting?.method ? this.setting.parameters : {};
      for (const field of fields) {
        field.value = parameters[field.path.split(".")[1]] ?? field.what.choices?.[0][0];
        field.complain("");
      }
    }
    this.#call();
  }

  #call() {
    this.line.show(PATCH_RECOVERY(this.#body()));
  }

  async #apply(event, button) {
    event.preventDefault();
    for (const field of this.#fields) field.complain("");
    this.outcome.show("");
    const answer = await carryOut(button, this.line.request, (problem) => {
      this.outcome.show(place(problem, this.#fields) || "Not changed; see the field that is marked.", "bad");
    });
    if (answer === null) return;
    const refused = answer.workers.filter((worker) => !worker.taken);
    if (refused.length) this.outcome.show(refused.map((worker) => `${worker.name}: ${worker.error}`).join("; "), "bad");
    else this.outcome.show(`taken by ${answer.workers.map((worker) => worker.name).join(", ")}, from the next batch on`, "good");
  }

  show() {
    const setting = this.model.recovery;
    this.steering.hidden = !this.model.steerable;
    lock(this.steering, !this.model.mayChange);
    if (setting === null || setting.recovery_id === this.setting?.recovery_id) return;
    this.setting = setting;
    const given = Object.entries(setting.parameters).map(([name, value]) => `${name} ${value}`).join(", ");
    const name = METHODS.find(([method]) => method === setting.method)?.[1] ?? setting.method;
    this.now.replaceChildren(element("b", {}, name), ` ${given || "default parameters"}`,
      element("code", { class: "quiet" }, setting.recovery_id));
    this.method.value = setting.method;
    this.free.value = setting.free_share;
    this.#method();
  }
}
