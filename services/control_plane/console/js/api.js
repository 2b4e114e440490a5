// The REST interface: what the console calls is what anyone can call, so every call can say itself as a
// command line.

export const root = new URL(".", document.baseURI); // a path prefix before the console is kept
export const api = (path) => new URL(`api/v1/${path}`, root).href;

const QUICK_MILLISECONDS = 20_000; // looking
const SLOW_MILLISECONDS = 180_000; // steering: a detector may take its time to open a source

let refused = () => {};
let tokenNeeded = false;

/** Have `told` called with the status of every answer that is 401 (not signed in) or 403 (may not do this). */
export function whenRefused(told) {
  refused = told;
}

/** Whether a command line has to show a token. */
export function needToken(needed) {
  tokenNeeded = needed;
}

/** A call that was refused: one clear line, and the fields that are wrong (RFC 9457). */
export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail || document?.title || `the control plane answered ${status}`);
    this.status = status;
    this.errors = Array.isArray(document?.errors) ? document.errors : [];
  }
}

/**
 * Make a call; what it answers.
 * @param {{method: string, path: string, body?: object}} what
 */
export async function call({ method, path, body }) {
  const answer = await request(api(path), {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(method === "GET" ? QUICK_MILLISECONDS : SLOW_MILLISECONDS),
  });
  return answer.json();
}

/** A fetch that fails with a Problem. */
export async function request(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const why = error.name === "TimeoutError" ? "it did not answer in time" : "it cannot be reached";
    throw new Problem(0, { detail: `The control plane: ${why}. Try again when the connection is back.` });
  }
  if (answer.status === 401 || answer.status === 403) refused(answer.status);
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => null));
  return answer;
}

/** The call as a command line, to be pasted into a shell; `file`: where the answer goes. */
export function curl({ method, path, body, file }) {
  const url = api(path);
  const words = ["curl", ...(method === "GET" ? [] : ["-X", method]), url.includes("?") ? quoted(url) : url];
  if (tokenNeeded) words.push("-H", '"Authorization: Bearer $CRYOFLUX_TOKEN"');
  if (body !== undefined) {
    words.push("-H", "'content-type: application/json'", "-d", quoted(JSON.stringify(body)));
  }
  if (file !== undefined) words.push(">", file);
  return words.join(" ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
