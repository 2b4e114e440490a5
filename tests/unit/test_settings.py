"""Settings: default < file < environment < command line, and errors in one line."""

from pathlib import Path

import pytest

from common.settings import Settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRYOFLUX_CONFIG", raising=False)
    monkeypatch.delenv("CRYOFLUX_CREDITS", raising=False)
    monkeypatch.delenv("CRYOFLUX_HTTP_PORT", raising=False)


@pytest.mark.parametrize(
    ("name", "text"), [("c.toml", "credits = 5\nhttp_port = 81\n"), ("c.yaml", "credits: 5\nhttp_port: 81\n")]
)
def test_each_layer_overrides_the_one_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    assert Settings.load().credits == 4
    (tmp_path / name).write_text(text)
    monkeypatch.setenv("CRYOFLUX_CONFIG", str(tmp_path / name))
    assert Settings.load().credits == 5
    monkeypatch.setenv("CRYOFLUX_CREDITS", "6")
    assert Settings.load().credits == 6
    assert Settings.load(credits=7, http_port=None).credits == 7
    assert Settings.load(credits=7, http_port=None).http_port == 81


@pytest.mark.parametrize(
    ("text", "named"),
    [("credits = 0\n", "credits"), ("creditz = 3\n", "creditz"), ("credits = = 3\n", "c.toml")],
)
def test_a_wrong_file_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str
) -> None:
    (tmp_path / "c.toml").write_text(text)
    monkeypatch.setenv("CRYOFLUX_CONFIG", str(tmp_path / "c.toml"))
    with pytest.raises(ValueError, match=named) as error:
        Settings.load()
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOFLUX_CONFIG", "/nowhere/c.toml")
    with pytest.raises(ValueError, match=r"no such file: /nowhere/c\.toml"):
        Settings.load()


def test_workers_are_told_an_address_they_can_reach() -> None:
    assert Settings.load(data_endpoint="tcp://detector:9").advertised("tcp://0.0.0.0:9") == "tcp://detector:9"
    assert Settings.load().advertised("tcp://127.0.0.1:9") == "tcp://127.0.0.1:9"
    wildcard = Settings.load().advertised("tcp://0.0.0.0:9")
    assert wildcard.endswith(":9")
    assert "0.0.0.0" not in wildcard


def test_workers_share_the_cores() -> None:
    assert Settings.load(workers=1024).worker_threads == 1
    assert Settings.load(threads=3).worker_threads == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'operater_token = "s3cr3t-s3cr3t-s3cr3t"\n'),
        ("c.yaml", "operater_token: s3cr3t-s3cr3t-s3cr3t\n"),
        ("c.yaml", "operator_token: s3cr3t-s3cr3t: s3cr3t\n"),
        ("c.yaml", 'operator_token: "s3cr3t-s3cr3t-s3cr3t\n'),
        ("c.toml", 'operator_token = "s3cr3t-s3cr3t-s3cr3t\n'),
        ("c.toml", 'operator_token = "s3cr3t"\n'),
    ],
)
def test_a_file_with_a_secret_that_cannot_be_read_is_told_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setenv("CRYOFLUX_CONFIG", str(tmp_path / name))
    with pytest.raises(ValueError, match=r"operat|line|CRYOFLUX_CONFIG") as caught:
        Settings.load()
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)
