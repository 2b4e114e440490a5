"""Making room for results: what a session has left in a folder is removed, and nothing else, ever.

A folder is somebody's own until its contents say otherwise. Each file that would be removed must look as
CryoFlux writes it, by its name and its beginning; one that does not is named, and then nothing is removed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from common.session import RESULTS
from detector_sim.spool import ACCOUNT, LOCK
from reconstructor.archive import MAGIC
from reconstructor.journal import COLUMNS
from services.failure import WrongOption

LEFTOVERS = ("logs", "spool", "state.sqlite-wal", "state.sqlite-shm", "state.sqlite")
TABLE = ("frames.csv", "recovered.star", "references.mrcs")  # could be anybody's, but for what is beside them
LABEL = b"Recovered by CryoFlux"
HEADER_BYTES = 1024


def clear(output: Path, *, overwrite: bool) -> None:
    """Make a results folder, empty of results and of what processes of a session left there.

    Raises
    ------
    WrongOption
        If it holds a session and ``overwrite`` is not set, or a file of somebody else where one of a session
        has to be, or cannot be written. Nothing was removed then.
    """
    if output.exists() and not output.is_dir():
        raise WrongOption(f"--output: {output} is a file; name a folder")
    there = [name for name in RESULTS if os.path.lexists(output / name)]
    if there and not overwrite:
        told = "already holds a session" if _is_session(output) else f"already holds {there[0]}"
        advice = " or give --overwrite" if _is_session(output) else ""
        raise WrongOption(f"--output: {output} {told}; name another folder{advice}")
    if any(not _is_empty(output / name) for name in there) and not _is_session(output):
        raise WrongOption(f"--output: {output} holds {there[0]}, but no session; name another folder")
    try:
        doomed = [path for name in (*RESULTS, *LEFTOVERS) for path in _of_session(output, name)]
        output.mkdir(parents=True, exist_ok=True)
        for path in doomed:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
    except OSError as error:
        raise WrongOption(f"--output: {error.filename or output}: {error.strerror}") from error


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _is_session(output: Path) -> bool:
    """Whether something in a folder can only have been written by a session."""
    try:
        account = json.loads((output / "session.json").read_bytes())
        if isinstance(account, dict) and {"session", "accounts"} & account.keys():
            return True
    except (OSError, ValueError):
        pass
    kept = [*output.glob("journal/*.csv"), *output.glob("measurements/*.cfx"), output / "recovered.mrcs"]
    return any(path.is_file() and _looks_right(path) for path in kept)


def _of_session(output: Path, name: str) -> Iterator[Path]:
    """All that is called so, what is in a folder before the folder itself.

    Raises
    ------
    WrongOption
        If some of it is not a session's.
    """
    path = output / name
    if path.is_symlink():
        raise WrongOption(f"--output: {path} is a link; name another folder")
    if path.is_dir() and name in ("journal", "measurements", "logs", "spool"):
        yield from _contents(path, 2 if name == "spool" else 1)
        yield path
    elif path.exists():
        yield _checked(path)


def _contents(folder: Path, levels: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if levels > 1 and path.is_dir() and not path.is_symlink():
            yield from _contents(path, levels - 1)
            yield path
        else:
            yield _checked(path)


def _checked(path: Path) -> Path:
    if path.is_symlink() or not path.is_file() or not _looks_right(path):
        raise WrongOption(f"--output: {path} is not of a session, and stays; name another folder")
    return path


def _looks_right(path: Path) -> bool:
    """Whether a file is as CryoFlux writes it, as far as its name and its beginning tell; it may be torn."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    place, name = path.parent.name, path.name
    match place, path.suffix:
        case "journal", ".csv":
            wanted = ",".join(COLUMNS).encode()
            return head[: len(wanted)] == wanted[: len(head)]
        case "measurements", ".cfx":
            return head[: len(MAGIC)] == MAGIC[: len(head)]
        case "logs", ".log":
            return re.fullmatch(r"control|detector|worker-\d+", path.stem) is not None
        case _:
            pass
    if path.parent.parent.name == "spool":
        return name.startswith((ACCOUNT, LOCK, "blocks-"))
    match name:
        case "recovered.mrcs":
            return not head or LABEL in head
        case "session.json":
            return head[:1] in (b"", b"{")
        case "state.sqlite":
            return not head or (head.startswith(b"SQLite format 3\0") and _has_sessions(path))
        case "state.sqlite-wal" | "state.sqlite-shm":
            return path.with_name("state.sqlite").exists()
        case _:
            return name in TABLE


def _has_sessions(database: Path) -> bool:
    with database.open("rb") as file:
        first_pages = file.read(1 << 16)
    return b"TABLE sessions" in first_pages or b"TABLE" not in first_pages  # all may still be in the log
