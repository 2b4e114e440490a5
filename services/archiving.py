"""A session's archive: packed by a process of its own while the session runs, or by ``cryoflux archive``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.archive import BrokenArchive
from common.wire.control import error_line
from common.wire.messages import MalformedMessage
from reconstructor.packing import Packer, pack_session
from services.control_plane.report import FILE
from services.failure import CannotRun


def pack(session: Path, file: Path) -> int:
    """Pack a session that is over, and say what is in the archive."""
    try:
        account = json.loads((session / FILE).read_text())
    except FileNotFoundError:
        account = {}
    except (OSError, ValueError) as error:
        raise CannotRun(f"{session / FILE}: {error_line(error)}", exit_code=2) from error
    try:
        packer = pack_session(session, file, account, account.get("specification", {}))
    except (BrokenArchive, MalformedMessage) as error:
        raise CannotRun(str(error), exit_code=2) from error
    except OSError as error:
        raise CannotRun(f"{file}: {error.strerror or error}") from error
    figures = archived(packer)
    lost = f", {figures['lost']} lost" if figures["lost"] else ""
    print(f"{file}: {figures['frames']} frames{lost}, {figures['bytes']} bytes")
    return 0


def archived(packer: Packer) -> dict[str, Any]:
    """What a completed archive holds."""
    ending = packer.writer.index.ending
    lost = sum(lost.last - lost.first + 1 for lost in ending.lost) if ending is not None else 0
    return {
        "path": str(packer.writer.path),
        "frames": packer.writer.frames,
        "references": len(packer.writer.index.references),
        "lost": lost,
        "bytes": packer.writer.size,
        "payload_bytes": packer.payload_bytes,
    }
