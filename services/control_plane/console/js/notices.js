// What the user should know before anything else: connection, health, gaps, failures.

import { by, element, mark, say } from "./dom.js";
import { plural } from "./format.js";

const LAST_HEARD = "What is shown is the last that was heard";

/** What is true of a session that is not heard any more. */
const UNHEARD = {
  created: `${LAST_HEARD}; the session was being opened then.`,
  running: `${LAST_HEARD}; frames keep flowing.`,
  paused: `${LAST_HEARD}; the session was paused then.`,
  stopping: `${LAST_HEARD}; the session was being stopped then, and what was acquired is still recovered.`,
  completed: "The session is completed; no frame depends on the connection.",
  failed: "The session had failed before.",
};

export class Notices {
  constructor() {
    this.shown = new Map();
  }

  show(model) {
    const { access, connected, health, session, points, numbers } = model;
    const said = [];
    if (access?.stuck) {
      said.push(["signed-out", "bad", "You are signed out, and the sign-in page does not come. Reload the page to try again."]);
    } else if (connected === false) {
      said.push(["connection", "bad", `Connection lost; reconnecting. ${UNHEARD[session?.state] ?? "No session was known."}`]);
    }
    if (access?.wrongToken) {
      said.push(["token", "warn", `The token in the address ${access.wrongToken}; you go on as ${access.role ?? "before"}.`]);
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
