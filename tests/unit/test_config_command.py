"""``cryoflux config`` and ``--config``: what is in force, where it comes from, and what a file may say."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from common.settings import Settings
from services import specification
from services.configuration import schema
from services.options import SessionOptions

SESSION = """
credits = 7
state = "redis://flux:se%2Fcret@db:6379/0"

[session]
link_mbit_per_s = 20

[session.source]
kind = "specimen"
specimen = { dose_per_square_angstrom = 40.0, side_pixels = 64 }

[session.mask]
kind = "coded-aperture"
kernel_size = 8
mask_count = 16

[session.camera]
rate = 50

[session.recovery]
method = "tv"
parameters = { iterations = 5 }
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CRYOFLUX_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cryoflux.toml"
    path.write_text(SESSION)
    return path


def cryoflux(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRYOFLUX_")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        capture_output=True, text=True, env={**environment, **variables}, check=False,
    )  # fmt: skip


def origins(text: str) -> dict[str, str]:
    """The comment at the end of each setting's line."""
    lines = (line.removeprefix("# ") for line in text.splitlines() if " = " in line and "  # " in line)
    return {line.split(" = ")[0]: line.rsplit("# ", 1)[1] for line in lines}


def test_every_setting_is_shown_with_its_origin(file: Path) -> None:
    done = cryoflux("--config", str(file), "--log-format", "json", "config", "show",
                    CRYOFLUX_HTTP_PORT="81")  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = origins(done.stdout)
    assert shown.keys() == Settings.model_fields.keys() - {"session"}
    told = {name: origin for name, origin in shown.items() if origin != "default"}
    assert told == {"credits": "file", "state": "file", "http_port": "environment", "log_format": "option"}
    assert str(file) in done.stdout.splitlines()[0]


def test_what_is_shown_is_a_file_that_says_the_same(file: Path, tmp_path: Path) -> None:
    file.write_text(SESSION.replace("flux:se%2Fcret@", ""))
    shown = cryoflux("--config", str(file), "config", "show").stdout
    again = tmp_path / "again.toml"
    again.write_text(shown)
    assert tomllib.loads(shown)["session"]["recovery"]["parameters"] == {"iterations": 5}
    values = [
        tomllib.loads(cryoflux("--config", str(path), "config", "show").stdout) for path in (file, again)
    ]
    assert values[0] == values[1]


def test_passwords_are_not_shown(file: Path) -> None:
    shown = cryoflux(
        "--config", str(file), "config", "show",
        CRYOFLUX_OTLP_ENDPOINT="https://me:hunter2@collector/?password=hunter3&x=1",
    ).stdout  # fmt: skip
    assert 'state = "redis://flux:***@db:6379/0"' in shown
    assert 'otlp_endpoint = "https://me:***@collector/?password=***&x=1"' in shown
    assert "hunter" not in shown


def test_the_schema_takes_what_the_settings_take() -> None:
    validator = jsonschema_rs.validator_for(schema())
    assert validator.is_valid(tomllib.loads(SESSION))
    assert not validator.is_valid({"credits": 0})
    assert not validator.is_valid({"creditz": 1})
    assert not validator.is_valid({"session": {"camera": {"rate": -1}}})
    assert json.loads(cryoflux("config", "schema").stdout) == schema()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[session.camera]\nrate = -1", ["session.camera.rate", "greater than", "-1"]),
        ("[session]\ncamra = {}", ["session.camra"]),
        ("[session.mask]\nkind = 'coded-aperture'\nkernel_size = 65", ["session.mask", "kernel_size"]),
        ("credits = 0", ["credits"]),
    ],
)
@pytest.mark.parametrize("command", [["live", "--output", "s"], ["config", "show"]])
def test_what_is_wrong_in_a_file_is_named_in_one_line(
    tmp_path: Path, text: str, words: list[str], command: list[str]
) -> None:
    (tmp_path / "c.toml").write_text(text)
    done = cryoflux("--config", str(tmp_path / "c.toml"), *command)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_named() -> None:
    done = cryoflux("--config", "/nowhere/c.toml", "config", "show")
    assert done.returncode == 2
    assert done.stderr == "cryoflux --config: no such file: /nowhere/c.toml\n"


def test_a_session_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOFLUX_SESSION", "{nonsense")
    with pytest.raises(ValueError, match="session") as error:
        Settings.load()
    assert "\n" not in str(error.value)


# ---- a session's defaults


def asked(file: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> dict[str, object]:
    """The specification that these options and this file mean."""
    monkeypatch.setenv("CRYOFLUX_CONFIG", str(file))
    return specification.asked(SessionOptions(**options), None, Settings.load().session).model_dump()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_a_session_is_as_the_file_says(file: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".yaml":
        file = file.with_suffix(suffix)
        file.write_text(yaml.safe_dump(tomllib.loads(SESSION)))
    spec = asked(file, monkeypatch)
    assert spec["source"]["specimen"]["dose_per_square_angstrom"] == 40
    assert spec["mask"]["kernel_size"] == 8
    assert spec["camera"]["rate"] == 50
    assert spec["recovery"]["method"] == "tv"
    assert spec["recovery"]["parameters"] == {"iterations": 5}
    assert spec["link_mbit_per_s"] == 20


def test_options_win_and_leave_the_rest(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = asked(file, monkeypatch, dose=10.0, compression=2.0, rate=5.0, link_mbit_per_s=1.0,
                 parameter=["strength=0.1"])  # fmt: skip
    assert spec["source"]["specimen"]["dose_per_square_angstrom"] == 10
    assert spec["source"]["specimen"]["side_pixels"] == 64
    assert (spec["mask"]["kernel_size"], spec["mask"]["mask_count"]) == (8, 32)
    assert (spec["camera"]["rate"], spec["link_mbit_per_s"]) == (5, 1)
    assert spec["recovery"]["parameters"] == {"iterations": 5, "strength": 0.1}


def test_another_kind_begins_with_its_own_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = asked(file, monkeypatch, input="pattern", mask="phase-plate", recovery="wiener")
    assert spec["source"]["kind"] == "pattern"
    assert spec["mask"]["kind"] == "phase-plate"
    assert "kernel_size" not in spec["mask"]
    assert (spec["recovery"]["method"], spec["recovery"]["parameters"]) == ("wiener", {})


def test_a_file_source_is_kept_with_its_pixel_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[session.source]\nkind = "file"\npath = "/data/x"\nwatch = true\n')
    source = asked(file, monkeypatch, pixel_size=1.2)["source"]
    assert (source["path"], source["watch"], source["pixel_size_angstrom"]) == ("/data/x", True, 1.2)
