"""Writes ``docs/openapi.json``: ``python -m services.control_plane.document``.

An interface that changed needs another version; without one the file is left as it is. A version that is not
released yet may change all the same: ``--unreleased``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from services.control_plane.app import routed

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"


def main() -> int:
    """Write the document unless it says something else under the same version; the exit code."""
    document = routed().openapi()
    if FILE.exists():
        before = json.loads(FILE.read_text())
        same_version = before["info"]["version"] == document["info"]["version"]
        if before != document and same_version and "--unreleased" not in sys.argv[1:]:
            print(
                "the interface changed: raise API_VERSION in services/control_plane/app.py, "
                "or say --unreleased if nobody has this version yet",
                file=sys.stderr,
            )
            return 1
    FILE.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
