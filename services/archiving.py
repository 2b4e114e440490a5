"""A session's archive: packed by a process of its own while the session runs, or by ``cryoflux archive``."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from common.archive import BrokenArchive
from common.archive.writer import read_log
from common.roots import outputs_of
from common.settings import Settings
from common.wire.control import error_line
from common.wire.messages import MalformedMessage
from reconstructor.archive import read_start
from reconstructor.packing import Packer, pack_session
from services.control_plane.report import FILE
from services.failure import CannotRun, WrongOption

NICE = 10  # frames go first
LOOK_SECONDS = 0.5


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


def remove_archive(file: Path) -> None:
    """Make room for a new archive; whatever is there and is none stays, and is told of later.

    Raises
    ------
    WrongOption
        If it cannot be removed.
    """
    with suppress(FileNotFoundError, IsADirectoryError, BrokenArchive):
        try:
            with file.open("rb") as stream:
                read_log(file, stream)
            file.unlink()
        except PermissionError as error:
            raise WrongOption(f"--archive: {file}: {error.strerror}") from error


def follow(session: Path, file: Path) -> int:
    """Pack a session while it runs, as standard input says, and answer on standard output.

    A line with the specification comes first, one with the session's account at its end; without that one
    the archive is left incomplete, to be gone on with.
    """
    os.nice(NICE)
    messages: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    opening = messages.get()
    if opening is None:
        return 1
    try:
        outputs = outputs_of(Settings.load())
        answer = _follow(outputs.real(session), outputs.real(file), opening["specification"], messages)
    except (BrokenArchive, MalformedMessage) as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"error": error.strerror or error_line(error)}
    except Exception as error:  # whatever it is, the session is told
        answer = {"error": error_line(error)}
    if answer is not None:
        print(json.dumps(answer), flush=True)
    return 0 if answer is not None and "error" not in answer else 1


def _follow(
    session: Path, file: Path, specification: dict[str, Any], messages: SimpleQueue[dict[str, Any] | None]
) -> dict[str, Any] | None:
    packer: Packer | None = None
    try:
        while True:
            if packer is None and (start := read_start(session)) is not None:
                packer = Packer(session, file, specification, start)
            if packer is not None:
                packer.pack(going_on=messages.empty)
            try:
                message = messages.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            if message is None:
                return None
            if packer is None:
                raise BrokenArchive("no worker has received a measurement")
            account = message["account"]
            packer.finish(account["frames"]["acquired"], account["frames"]["lost_by_reason"], account)
            return archived(packer)
    finally:
        if packer is not None:
            packer.writer.close()


def _listen(messages: SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    messages.put(None)


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
