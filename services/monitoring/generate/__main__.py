"""Writes the dashboards and the table of metrics."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from services.monitoring.generate.session import session
from services.monitoring.generate.table import with_table
from services.monitoring.generate.workers import workers

ROOT = Path(__file__).parents[3]
DASHBOARDS = ROOT / "services/monitoring/grafana/dashboards"
GUIDE = ROOT / "docs/monitoring.md"


def made() -> dict[Path, str]:
    """What the files should hold."""
    boards = {"session.json": session(), "workers.json": workers()}
    files = {DASHBOARDS / name: text(board) for name, board in boards.items()}
    return {**files, GUIDE: with_table(GUIDE.read_text())}


def text(board: object) -> str:
    """A dashboard as it is committed."""
    document = json.loads(JSONEncoder(sort_keys=True).encode(board))
    for variable in document["templating"]["list"]:
        for name in ("auto", "auto_count", "auto_min"):  # of intervals, which none of ours is
            variable.pop(name, None)
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them all."""
    for path, content in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
