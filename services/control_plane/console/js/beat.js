// All drawing happens here, in animation frames. What is asked for several times before it is drawn is drawn
// once; when a frame has taken its share, the rest waits for the next; a hidden page gets no frames, so it
// draws nothing.

const SHARE_MILLISECONDS = 5;

const waiting = new Map();
let asked = false;

/** Have `work` done in a frame soon; a later `work` of the same name takes its place. */
export function draw(name, work) {
  waiting.set(name, work);
  if (!asked) {
    asked = true;
    requestAnimationFrame(frame);
  }
}

function frame(now) {
  asked = false;
  const until = performance.now() + SHARE_MILLISECONDS;
  for (const [name, work] of waiting) {
    waiting.delete(name);
    work(now);
    if (performance.now() >= until) break;
  }
  if (waiting.size > 0 && !asked) {
    asked = true;
    requestAnimationFrame(frame);
  }
}
