"""What several browser tests look for in a page."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page

from tests.browser.installation import Installation, eventually

REFUSED = r"status of 4\d\d"  # what the browser says of a call that the control plane refuses, rightly
UNREACHABLE = (
    r"ERR_(CONNECTION_REFUSED|CONNECTION_RESET|SOCKET_NOT_CONNECTED|"
    r"INCOMPLETE_CHUNKED_ENCODING|EMPTY_RESPONSE)"
)
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "device_scale_factor": 2,
    "has_touch": True,
}
WIDEST = """() => {
  const wide = [...document.querySelectorAll("body *")].filter((element) => {
    const box = element.getBoundingClientRect();
    const mayScroll = element.closest(".scroll, .log, .out-of-sight, canvas");
    return box.right > innerWidth + 0.5 && box.width > 0 && !mayScroll;
  });
  const names = wide.slice(0, 5).map((e) => `${e.tagName}.${e.className}#${e.id}`);
  return [document.documentElement.scrollWidth, names];
}"""


def until(page: Page, function: str, argument: Any = None) -> None:
    """Wait for a condition in the page; asked from outside, for the page itself may not evaluate text."""
    eventually(lambda: page.evaluate(function, argument), function)


def violations(page: Page, axe: str) -> list[str]:
    page.evaluate(axe)
    return page.evaluate(
        """async () => {
        const rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];
        const { violations } = await axe.run(document, { runOnly: rules });
        return violations.flatMap((rule) =>
          rule.nodes.map((node) => `${rule.id}: ${node.target} ${node.failureSummary}`)); }"""
    )


HEARD = """() => {
  const { points, numbers, series, events } = cryoflux.model;
  return { last: points.last, missing: points.missing + numbers.missing,
           at: Array.from(series.columns.at.subarray(0, series.length)),
           events: events.map((event) => event.number) };
}"""


def no_gap_no_duplicate(page: Page, installation: Installation) -> dict[str, Any]:
    """What the page has is what the control plane has, one by one, up to the newest that the page has."""
    seen = page.evaluate(HEARD)
    kept = installation.client.get("sessions/current/metrics/history").json()
    last = seen["last"]
    assert seen["missing"] == 0
    assert len(seen["at"]) == last  # from the first on, each once
    known = [point for point in kept if point["number"] <= last]
    assert [point["number"] for point in known] == list(range(1, last + 1))
    told = page.evaluate("moments => moments.map(at => Date.parse(at) / 1000)", [p["at"] for p in known])
    assert seen["at"] == told
    assert seen["events"] == list(range(1, len(seen["events"]) + 1))
    return seen
