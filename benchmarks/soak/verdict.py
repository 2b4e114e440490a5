"""What a soak comes to: each promise with what was found, from the document alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.soak.growth import LIMIT_PERCENT_PER_HOUR, Growth, growth
from benchmarks.soak.plan import WARM_UP_SHARE

CURVES = ("rss", "descriptors")
Document = Mapping[str, Any]


class Finding(NamedTuple):
    """One promise."""

    promise: str
    is_kept: bool
    found: str

    def __str__(self) -> str:
        """A line for the terminal."""
        return f"{'kept  ' if self.is_kept else 'BROKEN'}  {self.promise}: {self.found}"


def findings(document: Document) -> Iterator[Finding]:
    """Every promise of the soak."""
    accounts = document["accounts"]
    broken = [sample for sample in accounts if sample["unaccounted"]]
    yield Finding(
        "acquired = acknowledged + in flight + spooled + lost",
        bool(accounts) and not broken,
        f"{len(accounts)} samples, {len(broken)} violations",
    )
    sessions = [session for phase in document["phases"] for session in phase["sessions"]]
    wrong = [line for session in sessions for line in session["wrong"]]
    frames = sum(session["recovered"] for session in sessions)
    yield Finding(
        "every frame acquired is recovered exactly once",
        bool(sessions) and not wrong,
        f"{frames} frames of {len(sessions)} sessions" + "".join(f"; {line}" for line in wrong),
    )
    for curve, name in zip(CURVES, ("memory", "descriptors"), strict=True):
        if measured := growths(document, curve):
            flat = all(found.is_flat for found in measured.values())
            worst = max(measured, key=lambda process: measured[process].percent_per_hour)
            least = measured[worst]
            yield Finding(
                f"{name} of every process grows by less than {LIMIT_PERCENT_PER_HOUR:g} % an hour",
                flat,
                f"most {worst}: {told(least)}",
            )
        elif any(phase["name"] == "steady" for phase in document["phases"]):
            yield Finding(f"growth of {name}", False, "the steady phase is too short; give it more minutes")
    ended, refused = document["ended_by_themselves"], [deed for deed in document["deeds"] if deed["is_wrong"]]
    yield Finding("no process ends but those that were ended", not ended, "; ".join(ended) or "none did")
    yield Finding(
        "no change is refused but where a fault explains it",
        not refused,
        "; ".join(f"{deed['verb']}: {deed['outcome']}" for deed in refused) or "none was",
    )
    errors = document["errors"]
    yield Finding("no error is logged", not errors, "; ".join(errors[:5]) or "none was")


def told(found: Growth) -> str:
    """A growth in words."""
    return (
        f"{found.percent_per_hour:+.2f} % an hour ({found.low:+.2f} to {found.high:+.2f}) "
        f"in {found.seconds / 60:.1f} min, {found.verdict}"
    )


def growths(document: Document, curve: str) -> dict[str, Growth]:
    """Growth of every process that lived through the steady phase, by its name."""
    steady = next((phase for phase in document["phases"] if phase["name"] == "steady"), None)
    if steady is None:
        return {}
    began, ended = steady["began"], steady["ended"]
    warm_up_until = began + WARM_UP_SHARE * (ended - began)
    found: dict[str, Growth] = {}
    for process in document["processes"].values():
        if process["at"][0] <= warm_up_until and process["at"][-1] >= ended - 5:
            within = [k for k, at in enumerate(process["at"]) if began <= at <= ended]
            at, values = ([process[name][k] for k in within] for name in ("at", curve))
            if (measured := growth(at, values, warm_up_until)) is not None:
                found[process["name"]] = measured
    return found


# ---- what the supervisor and the logs say ------------------------------------------------------------------


def ended_by_themselves(shown: str) -> list[str]:
    """Processes that ended with an error, as the supervisor told it; killed ones were killed by the soak."""
    return re.findall(r"\S+ ended with code [1-9]\d*.*", shown)


def errors(logs: Path) -> list[str]:
    """Lines of the logs that tell of an exception or an error."""
    found: list[str] = []
    for log in sorted(logs.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        telling = (line for line in lines if re.search(r"\bERROR\b|\bCRITICAL\b|^Traceback ", line))
        found += [f"{log.stem}: {line.strip()}" for line in telling]
    return found
