"""The command line: what its options mean, and one line for each that is wrong."""

import dataclasses
import inspect
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import specification
from services.cli import live, main, start
from services.explain import FieldProblem
from services.failure import WrongOption
from services.options import SessionOptions
from tests.conftest import program


@pytest.fixture(autouse=True)
def _own_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that runs within a test sets up the logs of its process; the tests' own are put back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cryoflux", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kernel", "65"], ["--kernel", "from 1 to 64"]),
        (["--masks", "17"], ["--masks", "1 to 16"]),
        (["--compression", "0.5"], ["--compression", "1 to 16"]),
        (["--mask", "phase-plate", "--compression", "0.5"], ["--compression", "1 to 100"]),
        (["--mask", "phase-plate", "--kernel", "4"], ["--kernel", "belongs to --mask coded-aperture"]),
        (["--masks", "8", "--compression", "4"], ["--compression", "contradicts --masks"]),
        (["--mask", "mirror"], ["--mask", "coded-aperture"]),
        (["--recovery", "magic"], ["--recovery", "'dct'"]),
        (["--parameter", "magic=1"], ["--parameter", "magic"]),
        (["--parameter", "magic"], ["--parameter", "NAME=VALUE"]),
        (["--free-share", "0.9"], ["--free-share", "0 to 0.5"]),
        (["--rate", "0"], ["--rate", "from 0.001"]),
        (["--change", "10"], ["--change", "FRAME=C"]),
        (["--input", "pattern", "--snr", "1"], ["--snr", "belongs to"]),
        (["--frames", "many"], ["--frames"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["--output", "/proc/here"], ["--output", "/proc/here"]),
    ],
)
def test_wrong_options_are_named_in_one_line(
    options: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "live", "--output", str(tmp_path / "s"), *options) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert len(line.splitlines()) == 1
    for word in words:
        assert word in line
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "--count", "0"], ["--count"]),
        (["simulate", "--voltage-kv", "10"], ["--voltage-kv", "from 60 to 1000"]),
        (["simulate", "--structure", "/nowhere.pdb"], ["/nowhere.pdb"]),
        (["recover", "/nowhere"], ["/nowhere", "no such folder or file"]),
        (["detector", "--data-bind", "nonsense"], ["nonsense"]),
        (["fly"], ["fly"]),
    ],
)
def test_every_command_tells_what_is_wrong_in_one_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) in (1, 2)
    _, line = capsys.readouterr()
    assert len(line.splitlines()) == 1
    for word in words:
        assert word in line


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRYOFLUX_CREDITS", "none")
    assert run(monkeypatch, "control") == 2
    assert "credits" in capsys.readouterr().err


def test_version_and_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("cryoflux 0.")
    assert run(monkeypatch, "live", "--help") == 0
    help_text = capsys.readouterr().out
    for option in ("--input", "--mask", "--kernel", "--masks", "--pattern", "--compression", "--recovery",
                   "--frames", "--rate", "--link-mbit-per-s", "--workers", "--output", "--port"):  # fmt: skip
        assert option in help_text


@pytest.mark.parametrize("columns", [80, 120])
def test_each_command_has_one_line_in_the_list_of_all(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    for command in ("live", "serve", "start", "status", "pause", "resume", "stop", "change", "recover",
                    "simulate", "control", "detector", "reconstructor", "config"):  # fmt: skip
        line = re.search(rf"^│ {command} +(\S.*?) +│$", text, re.MULTILINE)
        assert line is not None, command
        assert line[1].endswith("."), f"{command}: goes on in the next line"


@pytest.mark.parametrize("command", ["live", "serve", "start", "simulate", "recover", "control", "config"])
def test_help_cuts_no_option_off_and_shows_flags_without_a_value(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, command, "--help") == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert "<bool>" not in text


def test_live_and_start_take_the_same_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {field.name for field in dataclasses.fields(SessionOptions)}
    for command in (live, start):
        assert options <= set(inspect.signature(command).parameters)


COMPLETION = """
source <(cryoflux --show-completion)
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_cryoflux_completion cryoflux; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cryoflux re", {"recover", "resume", "reconstructor"}),
        ("cryoflux live --mask co", {"coded-aperture"}),
        ("cryoflux start --recovery w", {"wiener", "wavelet"}),
        ("cryoflux config sc", {"schema"}),
        ("cryoflux serve --wo", {"--workers"}),
    ],
)
def test_bash_completes(words: str, expected: set[str]) -> None:
    here = Path(sys.executable).parent  # where the package's own command is
    done = subprocess.run(
        [program("bash", "bash"), "-c", COMPLETION.format(words=words)],
        env={**os.environ, "PATH": f"{here}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == expected, done.stderr


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, services.cli; sys.exit(bool({'torch', 'numpy', 'pydantic', 'zmq'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("kind", "compression", "fields", "expected"),
    [
        ("coded-aperture", None, {}, {"kernel_size": 4, "mask_count": 8}),
        ("coded-aperture", 4.0, {}, {"kernel_size": 4, "mask_count": 4}),
        ("coded-aperture", 4.0, {"kernel_size": 8}, {"kernel_size": 8, "mask_count": 16}),
        ("coded-aperture", 2.0, {"mask_count": 8}, {"mask_count": 8}),
        ("phase-plate", 3.0, {"pattern": "radial"}, {"pattern": "radial", "compression_factor": 3.0}),
        ("none", None, {"seed": 3}, {"kind": "none"}),
    ],
)
def test_mask_options_mean_the_nearest_setting(
    kind: str, compression: float | None, fields: dict[str, object], expected: dict[str, object]
) -> None:
    spec = specification.mask(kind, compression, **fields).model_dump()
    assert {name: spec[name] for name in expected} == expected


def test_parameters_are_numbers_where_they_look_like_it() -> None:
    spec = specification.recovery("dct", ["iterations=7", "data_weight=0.5"], 0.0)
    assert spec.parameters == {"iterations": 7, "data_weight": 0.5}
    assert spec.free_share == 0


@pytest.mark.parametrize(("text", "planned"), [("300=4", (300, 4.0)), ("0=2.5", (0, 2.5))])
def test_planned_changes(text: str, planned: tuple[int, float]) -> None:
    assert specification.change(text) == planned


@pytest.mark.parametrize("text", ["", "300", "=4", "300=", "x=4", "-1=4", "3=0.5", "3=inf", "3=nan", "1=2=3"])
def test_planned_changes_that_make_no_sense(text: str) -> None:
    with pytest.raises(WrongOption, match="--change"):
        specification.change(text)


def test_a_line_that_begins_with_a_field_is_told_from_one_that_does_not() -> None:
    assert FieldProblem.parse("mask.kernel_size: too large") == ("mask.kernel_size", "too large")
    assert FieldProblem.parse("/data/x.mrc: no such file") == ("", "/data/x.mrc: no such file")
    assert FieldProblem.parse("no colon here") == ("", "no colon here")
