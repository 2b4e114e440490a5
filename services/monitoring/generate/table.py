"""The table of metrics in docs/monitoring.md."""

from __future__ import annotations

from common import metrics

BEGIN, END = "<!-- table: metrics -->", "<!-- end: metrics -->"
PARTS = {"control": "control plane", "detector": "detector", "reconstructor": "worker"}


def table() -> str:
    """Every metric: name, kind, labels, who serves it, meaning."""
    lines = ["| metric | kind | labels | served by | what |", "|---|---|---|---|---|"]
    for metric in metrics.ALL.values():
        parts = "all" if len(metric.parts) == len(PARTS) else ", ".join(PARTS[part] for part in metric.parts)
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {parts} | {metric.help} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """A page with the table of now between its two marks.

    Raises
    ------
    ValueError
        If the page does not have each mark once, in that order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"the page must have {BEGIN} and {END} once each")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"
