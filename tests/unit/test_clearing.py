"""Making room for results removes what sessions left, and nothing of anybody else's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.operators.spec import MaskSpec
from common.state.embedded import EmbeddedStore
from services.clearing import clear
from services.failure import WrongOption
from tests.unit.served import write_results


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def finished(output: Path) -> None:
    """A folder as a whole session leaves it, with a note that its owner has put there."""
    write_results(output, MaskSpec(kind="coded-aperture", kernel_size=2, mask_count=2))
    for name in ("recovered.star", "frames.csv"):
        (output / name).write_text("data_\n")
    (output / "session.json").write_text(json.dumps({"session": "s", "accounts": {}}))
    for name in ("control", "detector", "worker-1", "worker-12"):
        (output / "logs").mkdir(exist_ok=True)
        (output / "logs" / f"{name}.log").write_text("a line\n")
    series = output / "spool" / "series"
    series.mkdir(parents=True)
    for name in ("account", "blocks-00000001"):
        (series / name).write_bytes(b"CFsp")
    EmbeddedStore(output / "state.sqlite").close()
    (output / "notes.txt").write_text("mine")


def test_a_session_is_replaced_and_what_is_beside_it_stays(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(WrongOption, match="already holds a session"):
        clear(tmp_path, overwrite=False)
    clear(tmp_path, overwrite=True)
    assert snapshot(tmp_path) == {"notes.txt": b"mine"}


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    clear(tmp_path / "a" / "b", overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()


def test_what_a_session_left_that_never_began_is_removed(tmp_path: Path) -> None:
    finished(tmp_path)
    for name in ("recovered.mrcs", "recovered.star", "frames.csv", "session.json", "references.mrcs"):
        (tmp_path / name).unlink(missing_ok=True)
    for folder in ("journal", "measurements"):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
        (tmp_path / folder).rmdir()
    clear(tmp_path, overwrite=False)
    assert snapshot(tmp_path) == {"notes.txt": b"mine"}


def text(name: str, content: str = "mine") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return write


FOREIGN = {
    "a log of another program": text("logs/training.log"),
    "a note among the logs": text("logs/notes.txt"),
    "a folder among the logs": text("logs/old/control.log"),
    "a spool of another program": text("spool/mail/inbox"),
    "a database of another program": text("state.sqlite"),
    "a link to a folder": lambda folder: (folder / "logs").symlink_to("/var/log"),
    "a link to a file": lambda folder: (folder / "state.sqlite").symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_only_is_called_like_a_leftover_stays(tmp_path: Path, foreign: str, overwrite: bool) -> None:
    FOREIGN[foreign](tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(WrongOption, match="name another folder"):
        clear(tmp_path, overwrite=overwrite)
    assert snapshot(tmp_path) == before


RESULTS_OF_OTHERS = {
    "a journal": text("journal/2026.csv", "day,text\n"),
    "a diary": text("journal/monday.txt"),
    "measurements": text("measurements/rack.cfx"),
    "a STAR file": text("recovered.star"),
    "a table": text("frames.csv"),
    "an account": text("session.json", '{"cookies": []}'),
    "a stack": text("recovered.mrcs", "MAP "),
    "a link": lambda folder: (folder / "recovered.mrcs").symlink_to("/nowhere"),
}


@pytest.mark.parametrize("foreign", RESULTS_OF_OTHERS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_only_is_called_like_a_result_stays(tmp_path: Path, foreign: str, overwrite: bool) -> None:
    RESULTS_OF_OTHERS[foreign](tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(WrongOption, match="name another folder"):
        clear(tmp_path, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_one_foreign_file_among_results_keeps_all_of_them(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "measurements" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(WrongOption, match=r"mine\.txt is not of a session"):
        clear(tmp_path, overwrite=True)
    assert snapshot(tmp_path) == before
