"""What a library stumbled on, as part of a line that people read."""

from __future__ import annotations

LONGEST = 300


def one_line(error: BaseException) -> str:
    """The error in one line, printable, of a bounded length; its kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
