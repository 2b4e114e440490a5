"""Which learned prior a recovery asks for, and what is said of it, without its network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.roots import Roots
from common.session import RecoverySpec, SessionSpec
from services.control_plane.places import Places, named_by
from services.priors import FIELD, Prior, find, prior_of, settled
from tests.tiny_prior import card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "priors" / "mine"
    place.mkdir(parents=True)
    (place / "card.json").write_text(card().model_dump_json())
    return place


def diffusion(**parameters: object) -> RecoverySpec:
    return RecoverySpec(method="diffusion", parameters=parameters)


def test_a_folder_is_found_with_its_card(folder: Path) -> None:
    assert find(str(folder)) == Prior(str(folder), card())
    assert find(str(folder)).told() == "learned prior tiny: trained on nothing: random weights"


def test_a_folder_without_a_card_is_one_of_which_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    prior = find(str(tmp_path))
    assert prior.card is None
    assert "nothing is known of what it was trained on" in prior.told()
    assert prior.doubt((5, 7), 9.0) == ""


@pytest.mark.parametrize("name", ["never-heard-of", "/nowhere/at/all", "./nothing", "~/prior", "", "a\0b"])
def test_what_is_not_there_is_told_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for inputs in (Roots(None), Roots([tmp_path])):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            find(name, inputs)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', "null"])
def test_a_card_that_cannot_be_used_is_told_by_its_path(folder: Path, text: str) -> None:
    (folder / "card.json").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*card\.json: cannot be used[^\n]*$"):
        find(str(folder))


def test_a_folder_that_sessions_may_not_read_is_not_looked_at(folder: Path, tmp_path: Path) -> None:
    elsewhere = Roots([tmp_path / "data"])
    with pytest.raises(ValueError, match="not in a folder that sessions may read"):
        find(str(folder), elsewhere)
    assert find(str(folder), Roots([tmp_path / "priors"])).card == card()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(folder)
    with pytest.raises(ValueError, match="there is no prior"):
        find(str(tmp_path / "data" / "link"), elsewhere)


def test_only_the_method_with_a_prior_has_one() -> None:
    assert prior_of(RecoverySpec(method="dct")) is None
    spec = RecoverySpec(method="tv", parameters={"iterations": 3})
    assert settled(spec) == (spec, [])


def test_a_session_names_the_folder_by_its_absolute_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    spec, problems = Places().settled(SessionSpec(recovery=diffusion(prior="./mine", samples=2)))
    assert problems == []
    assert spec.recovery.parameters == {"prior": str(folder), "samples": 2}
    assert str(folder) in named_by(spec)[0]


def test_a_prior_that_is_not_there_is_told_at_its_field(tmp_path: Path) -> None:
    spec = SessionSpec(recovery=diffusion(prior=str(tmp_path)))
    _, problems = Places().settled(spec)
    assert [problem.field for problem in problems] == [FIELD]
    assert str(tmp_path) in problems[0].message


def test_frames_like_those_it_was_trained_on_raise_no_doubt(folder: Path) -> None:
    prior = find(str(folder))
    assert prior.doubt((32, 32), 1.5) == ""
    assert prior.doubt((32, 32), 1.0) == prior.doubt((32, 32), 2.0) == ""


@pytest.mark.parametrize(
    ("shape", "pixel_size", "told"),
    [
        ((64, 64), 1.5, "of 64x64 pixels (it knows 32x32)"),
        ((32, 48), 1.5, "of 32x48 pixels (it knows 32x32)"),
        ((32, 32), 3.0, "at 3 Å a pixel (it knows 1 to 2)"),
        ((64, 64), 0.5, "of 64x64 pixels (it knows 32x32) or at 0.5 Å a pixel (it knows 1 to 2)"),
    ],
)
def test_frames_that_are_otherwise_are_told_in_one_line(
    folder: Path, shape: tuple[int, int], pixel_size: float, told: str
) -> None:
    line = find(str(folder)).doubt(shape, pixel_size)
    assert told in line
    assert "\n" not in line


def test_a_prior_is_looked_at_without_importing_what_networks_need(folder: Path) -> None:
    script = (
        "import sys\n"
        "from common.session import RecoverySpec\n"
        "import services.control_plane.app\n"
        "from services.priors import prior_of\n"
        f"spec = RecoverySpec(method='diffusion', parameters={{'prior': {json.dumps(str(folder))}}})\n"
        "assert prior_of(spec).card.name == 'tiny'\n"
        "assert 'diffusers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
