// Who looks at the page, and what they may do. Where the control plane asks for no token, nothing of this is
// to be seen; where it does, its own sign-in page stands before the console and comes back when a sign-in ends.

import { api, request, Problem, whenRefused } from "./api.js";

const SIGN_IN = "sign-in";
const SIGNED_OUT = "cryoflux-signed-out"; // what the sign-in page tells: expired
const LEFT = "cryoflux-left"; // when the page was left for it last
const SOON_MILLISECONDS = 10_000;
const PATIENCE_MILLISECONDS = 20_000;

/** Storage of this tab; without it there is nothing kept, and nothing fails. */
export const tab = {
  get(name) {
    try {
      return sessionStorage.getItem(name);
    } catch {
      return null;
    }
  },
  take(name) {
    const value = tab.get(name);
    tab.put(name, null);
    return value;
  },
  put(name, value) {
    try {
      if (value === null) sessionStorage.removeItem(name);
      else sessionStorage.setItem(name, value);
      return true;
    } catch {
      return false;
    }
  },
};

export class Access {
  /**
   * @param {() => void} changed  called when it is known anew who looks
   * @param {() => void} leaving  called before the page is left for the sign-in page
   */
  constructor(changed, leaving) {
    this.changed = changed;
    this.leaving = leaving;
    this.role = null; // not known yet: nothing can be changed
    this.needed = false;
    this.over = false; // signed out, and no request helps
    this.stuck = false; // and the sign-in page did not come
    this.wrongToken = ""; // what was said of that in the address
    whenRefused((status) => (status === 401 ? this.#leave("expired") : this.ask()));
  }

  get mayChange() {
    return this.role === "operator";
  }

  /** At the start: with the token of the address, if there is one. */
  async begin() {
    addEventListener("hashchange", () => this.#fromAddress());
    if (!(await this.#fromAddress())) await this.ask();
  }

  /** Ask who we are; false: nobody, and the sign-in page takes over. */
  async ask() {
    if (this.over) return false;
    try {
      const answer = await request(api(SIGN_IN), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) });
      this.#take(await answer.json());
    } catch (error) {
      if (!(error instanceof Problem)) throw error; // otherwise: asked again when the connection is back
    }
    return !this.over;
  }

  #take({ role, needed }) {
    if (role === this.role && needed === this.needed) return;
    Object.assign(this, { role, needed });
    this.changed();
  }

  async #fromAddress() {
    const found = /^#token=([^&]*)/.exec(location.hash);
    if (found === null) return false;
    const bare = new URL(location.href);
    bare.hash = "";
    history.replaceState(null, "", bare.href);
    let token = found[1];
    try {
      token = decodeURIComponent(token);
    } catch {
      // a per cent sign that is one
    }
    const answer = await fetch(api(SIGN_IN), {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token }),
      cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MILLISECONDS),
    }).catch(() => null);
    this.wrongToken = answer === null ? "could not be tried" : answer.ok ? ""
      : answer.status === 401 ? "is not known here" : `was refused (${answer.status})`;
    this.changed();
    return this.ask();
  }

  async signOut() {
    await request(api(SIGN_IN), { method: "DELETE", cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) });
    this.#leave(null);
  }

  /** To the sign-in page, which is what this address answers now. */
  #leave(why) {
    if (this.over) return;
    this.over = true;
    this.leaving();
    tab.put(SIGNED_OUT, why);
    const soon = Date.now() - Number(tab.get(LEFT) ?? 0) < SOON_MILLISECONDS;
    this.stuck = why !== null && soon; // it was left just now, and the same page came again
    if (this.stuck) {
      this.changed();
      return;
    }
    if (why !== null) tab.put(LEFT, String(Date.now()));
    location.reload();
  }
}
