// A command: the REST call it makes, shown as a line for the shell, and what came of it.

import { call, curl, Problem } from "./api.js";
import { element, mark, say } from "./dom.js";

const lines = new Set();

/** Have every line say its call anew: what all of them need has changed. */
export function sayLinesAgain() {
  for (const line of lines) {
    if (line.request !== undefined) line.show(line.request);
  }
}

/** The call as a line that can be copied. */
export class Line {
  constructor(what) {
    this.code = element("code", {});
    const button = element("button", { class: "copy", type: "button" }, "copy");
    button.setAttribute("aria-label", `Copy the REST call: ${what}`);
    button.addEventListener("click", async () => {
      say(button, (await copy(this.code)) ? "copied" : "select it");
      clearTimeout(this.timer);
      this.timer = setTimeout(() => say(button, "copy"), 1500);
    });
    this.place = element("div", { class: "call" }, this.code, button);
    lines.add(this);
  }

  show(request) {
    this.request = request;
    const { method, path } = request;
    const text = curl(request);
    if (this.code.textContent !== text) {
      this.code.replaceChildren(...text.split(" ").flatMap((word, at) => [at ? " " : "", ...breakable(word)]));
    }
    mark(this.code, "title", `${method} /api/v1/${path}`);
  }
}

/** Lines may break behind a slash, not within an option; what is copied has not a character more. */
function breakable(word) {
  if (word.length < 20) return [element("span", { class: "word" }, word)];
  return word.split(/(?<=[^/]\/)(?=[^/])/).flatMap((part) => [part, element("wbr")]);
}

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    // no clipboard without https: the older way
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }
}

/** What became of the last call. */
export class Outcome {
  constructor() {
    this.place = element("p", { class: "outcome", role: "status", "aria-live": "polite" });
  }

  show(text, tone) {
    say(this.place, text);
    mark(this.place, "data-tone", tone ?? null);
  }
}

/**
 * Carry out a request while its button is busy.
 * @returns what was answered, or null; `wrong` is told of a problem
 */
export async function carryOut(button, request, wrong) {
  if (button.getAttribute("aria-busy") === "true") return null;
  mark(button, "aria-busy", "true");
  try {
    return await call(request);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    wrong(error);
    return null;
  } finally {
    mark(button, "aria-busy", null);
  }
}
