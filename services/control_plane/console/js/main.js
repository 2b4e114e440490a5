// The console: hears the stream, keeps the model, and has the parts drawn that changed.

import { Access } from "./access.js";
import { needToken, Problem, root } from "./api.js";
import { draw } from "./beat.js";
import { charts } from "./charts.js";
import { sayLinesAgain } from "./command.js";
import { AcquisitionControl, RecoveryControl, SessionControl } from "./controls.js";
import { by, mark, say } from "./dom.js";
import { Figures, showStanding } from "./figures.js";
import { Model } from "./model.js";
import { Notices } from "./notices.js";
import { Pictures } from "./pictures.js";
import { StartForm } from "./start.js";
import { Stream } from "./stream.js";
import { Configurations, Log, showVersion, Workers } from "./tables.js";

const model = new Model();
const parts = {
  figures: new Figures(),
  charts: charts(model),
  configurations: new Configurations(),
  workers: new Workers(),
  log: new Log(),
  notices: new Notices(),
  pictures: new Pictures(model),
  session: new SessionControl(model),
  acquisition: new AcquisitionControl(model),
  recovery: new RecoveryControl(model),
};
const form = new StartForm();

const DRAWN = {
  session: ["standing", "controls", "configurations", "figures", "notices", "log", "workers", "pictures", "charts"],
  point: ["charts", "notices"],
  event: ["log", "charts", "notices"],
  metrics: ["standing", "figures", "configurations", "workers", "pictures"],
  health: ["notices", "standing"],
  access: ["access", "controls", "notices", "standing"],
};

const DRAW = {
  standing: () => {
    showStanding(model);
    mark(document.body, "data-session", model.session === null ? "none" : model.active ? "active" : "over");
    by("welcome").hidden = model.session !== null || model.connected === null;
    say(by("welcome-parts"), model.health === null ? "" : partsText(model.health));
    by("start-open").hidden = model.active || model.session === null;
    for (const id of ["start-open", "welcome-start"]) mark(by(id), "disabled", !model.mayChange);
  },
  access: showAccess,
  controls: () => {
    parts.session.show();
    parts.acquisition.show();
    parts.recovery.show();
  },
  figures: () => parts.figures.show(model),
  configurations: () => parts.configurations.show(model),
  workers: () => parts.workers.show(model),
  log: () => parts.log.show(model),
  notices: () => parts.notices.show(model),
  pictures: () => parts.pictures.follow(),
  charts: () => parts.charts.refresh(),
};

function partsText({ detector, workers }) {
  const there = detector ? "The detector is there" : "No detector is there";
  return `${there}, ${workers === 0 ? "no worker" : workers === 1 ? "one worker" : `${workers} workers`}.`;
}

function showAccess() {
  const { needed, role } = access;
  const viewer = needed && role === "viewer";
  by("who").hidden = by("sign-out").hidden = !needed;
  say(by("who"), role ?? "");
  mark(by("who"), "title", needed ? `signed in with the ${role}'s token` : null);
  for (const id of ["looking", "welcome-looking"]) by(id).hidden = !viewer;
  for (const id of ["start-open", "welcome-start"]) {
    mark(by(id), "title", viewer ? "a viewer cannot start a session" : null);
    mark(by(id), "aria-describedby", viewer ? "who" : null);
  }
  if (access.stuck) {
    mark(by("link"), "data-link", "lost");
    say(by("link").lastElementChild, "signed out");
  }
  needToken(needed);
  sayLinesAgain();
}

function redraw(names) {
  for (const name of names) draw(name, DRAW[name]);
}

// ---- the stream

let toldState = null;

function hear(kind, data) {
  model.hear(kind, data);
  if (kind === "session") {
    stream.expectsMore = model.active;
    const state = `${data.id} ${data.state}`;
    if (state !== toldState) {
      if (toldState !== null || data.state !== "completed") say(by("announce"), `The session is ${data.state}.`);
      toldState = state;
    }
  }
  redraw(DRAWN[kind]);
}

function standing(connected) {
  if (model.connected !== null && model.connected !== connected) {
    say(by("announce"), connected ? "Connected again." : "Connection lost; reconnecting.");
  }
  model.connected = connected;
  mark(by("link"), "data-link", connected ? "live" : "lost");
  say(by("link").lastElementChild, connected ? "live" : "reconnecting");
  redraw(["notices", "standing"]);
  if (connected) access.ask(); // another control plane may ask for another token, or for none
}

const access = new Access(() => redraw(DRAWN.access), () => {
  stream.close();
  form.keep();
});
model.access = access;
const stream = new Stream(hear, standing, () => access.ask());
access.begin().then(() => form.resume(access.mayChange));

// ---- the page's own controls

for (const id of ["start-open", "welcome-start"]) by(id).addEventListener("click", () => form.open());

for (const id of ["sign-out", "sign-in-other", "welcome-sign-in-other"]) {
  by(id).addEventListener("click", () => access.signOut().catch((error) => {
    if (!(error instanceof Problem)) throw error;
    say(by("announce"), error.message);
  }));
}

function showTheme() {
  mark(by("theme"), "aria-pressed", String(document.documentElement.dataset.theme === "dark"));
}

by("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("cryoflux-theme", theme);
  } catch {
    // storage is off: it holds until the page is left
  }
  showTheme();
  parts.charts.recolour();
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ({ matches }) => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("cryoflux-theme");
  } catch {
    // storage is off
  }
  if (chosen !== null) return;
  document.documentElement.dataset.theme = matches ? "dark" : "light";
  showTheme();
  parts.charts.recolour();
});
showTheme();

// canvases do not wait for a font
document.fonts.ready.then(() => parts.charts.recolour());

fetch(new URL("healthz", root), { cache: "no-store" })
  .then((answer) => answer.json())
  .then(({ version }) => showVersion(version))
  .catch(() => {}); // the notice says that the connection is lost

// for tests and the benchmark: what the page believes
globalThis.cryoflux = { model, hear };
