// What the user should know before anything else: connection, health, gaps, failures.

import { by, element, mark, say } from "./dom.js";
import { plural } from "./format.js";

export class Notices {
  constructor() {
    this.shown = new Map();
  }

  show(model) {
    const { connected, health, session, points, numbers } = model;
    const said = [];
    if (connected === false) {
      said.push(["connection", "bad", "Connection lost; reconnecting. What is shown is the last that was heard; frames keep flowing."]);
    }
    if (health !== null && health.status !== "ready") {
      const tone = health.status === "degraded" ? "warn" : "bad";
      const title = health.status === "degraded" ? "Degraded" : "Not ready";
      said.push(["health", tone, `${title}: ${health.detail}`]);
    }
    if (session?.state === "failed") said.push(["failed", "bad", `The session failed: ${session.error}`]);
    if (points.missing + numbers.missing > 0) {
      said.push(["gap", "warn", `This record has a gap: ${plural(points.missing, "point")} and `
        + `${plural(numbers.missing, "event")} did not arrive. The session's own results are complete.`]);
    }
    const keep = new Set(said.map(([id]) => id));
    for (const [id, place] of this.shown) {
      if (!keep.has(id)) {
        place.remove();
        this.shown.delete(id);
      }
    }
    for (const [id, tone, text] of said) {
      let place = this.shown.get(id);
      if (place === undefined) {
        place = element("p", { class: "notice", "data-notice": id, role: tone === "bad" ? "alert" : "status" });
        this.shown.set(id, place);
        by("notices").append(place);
      }
      mark(place, "data-tone", tone);
      say(place, text);
    }
  }
}
