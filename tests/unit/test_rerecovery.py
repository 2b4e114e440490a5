"""What is recovered again: a folder or an archive whose account somebody else may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.archive import ArchiveWriter
from common.configuration import CodecSpec
from services.failure import WrongOption
from services.rerecovery import recorded
from tests.fuzz.forging import of_kind, put_together, taken_apart
from tests.unit.test_archive import CODED, configuration, measured, noise, opening

FRAMES = {"acquired": 4, "lost_by_reason": {}}
KNOWN = {
    "config_id": "c", "mask": CODED, "compression_factor": 2.0, "printed_compression_factor": 2.0,
    "error_bound": "0", "first_frame": 0, "frames": 4,
}  # fmt: skip
GOOD = {"frames": FRAMES, "configurations": [{**KNOWN, "quality": {"psnr": None}}], "session": "s"}
BAD: dict[str, Any] = {
    "nothing": {},
    "a list": [],
    "a number": 7,
    "frames of words": {**GOOD, "frames": {"acquired": "many", "lost_by_reason": {}}},
    "more frames than there can be": {**GOOD, "frames": {"acquired": 2**40, "lost_by_reason": {}}},
    "fewer than none lost": {**GOOD, "frames": {"acquired": 4, "lost_by_reason": {"gone": -1}}},
    "no configurations": {"frames": FRAMES},
    "a configuration of nothing": {**GOOD, "configurations": [{}]},
    "a mask that is none": {**GOOD, "configurations": [{**KNOWN, "mask": {"kind": "?"}}]},
}


def archive_with(path: Path, account: Any) -> Path:
    known = configuration(CODED, CodecSpec(values="integer", coding="plain"))
    with ArchiveWriter.create(path, opening()) as writer:
        writer.append(measured(known, noise(4), 0))
        writer.finish(4, str)
    head, records, tail = taken_apart(path.read_bytes())
    of_kind(records, "ending")[0].header["account"] = account
    path.write_bytes(put_together(head, records, tail))
    return path


def test_the_account_of_an_archive_is_taken_over(tmp_path: Path) -> None:
    recording, account = recorded(archive_with(tmp_path / "a.h5", GOOD))
    with recording:
        assert account == GOOD
        assert recording.frames_acquired == 4


@pytest.mark.parametrize("account", [document for document in BAD.values() if isinstance(document, dict)])
def test_an_archive_with_an_account_that_is_none_is_recovered_without_it(
    account: dict[str, Any], tmp_path: Path
) -> None:
    recording, known = recorded(archive_with(tmp_path / "a.h5", account))
    with recording:
        assert known == {}
        assert recording.frames_acquired == 4


@pytest.mark.parametrize("document", BAD.values(), ids=list(BAD))
def test_a_folder_whose_account_is_none_is_refused_in_one_line(document: Any, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text(json.dumps(document))
    with pytest.raises(WrongOption, match=r"session.json: is not the account of a session") as refusal:
        recorded(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_a_folder_whose_account_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WrongOption, match="no finished session"):
        recorded(tmp_path)
