"""What a benchmark reports: one measured number beside what it should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of ``python -m benchmarks``.

    Attributes
    ----------
    name : str
        What was measured.
    value : float
        The measured ratio, or rate in ``unit``.
    unit : str
        "x" for a ratio of two times of the same run, else a rate such as "img/s".
    target : float or None
        The value to reach (at least); None where the figure only informs.
    note : str
        Sizes, threads, and what the ratio is against.
    """

    name: str
    value: float
    unit: str = "x"
    target: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool:
        """True where there is no target or it is reached."""
        return self.target is None or self.value >= self.target

    def __str__(self) -> str:
        """One line for the terminal."""
        verdict = "met" if self.is_met else "MISSED"
        target = "" if self.target is None else f"  (target {self.target:g}, {verdict})"
        note = f"  {self.note}" if self.note else ""
        return f"{self.name:48s} {self.value:10.4g} {self.unit}{target}{note}"
