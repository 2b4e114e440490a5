"""Made parts of a page of the documentation, each between its marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def put(document: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- table: NAME -->`` and ``<!-- end: NAME -->``.

    Raises
    ------
    SystemExit
        If the page has no such marks.
    """
    text = document.read_text()
    begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{document}: no marks for table {name!r}")
    table = "\n".join([begin, *lines, end])
    document.write_text(pattern.sub(lambda _: table, text))
