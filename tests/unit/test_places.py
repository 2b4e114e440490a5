"""The paths of a session as the control plane takes them, and the limits that processes are given."""

import json
from pathlib import Path

import pytest

from common.roots import Roots
from common.session import STRUCTURES, ArchiveSource, FileSource, SessionSpec, SpecimenSource, SpecimenSpec
from services.control_plane.places import Places, named_by
from services.live import limits


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "INPUTS", "OUTPUTS", "HTTP_HOST", "HTTP_PUBLISHED", "RESULTS"):
        monkeypatch.delenv(f"CRYOFLUX_{name}", raising=False)


def fields(places: Places, **parts: object) -> list[str]:
    return [problem.field for problem in places.settled(SessionSpec.model_validate(parts))[1]]


def test_relative_paths_are_those_of_this_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = SessionSpec(source=FileSource(path="a/../frames"), output="out", archive="a.h5")
    settled, problems = Places().settled(spec)
    assert not problems
    assert isinstance(settled.source, FileSource)
    assert Path(settled.source.path) == tmp_path / "a/../frames"
    assert (settled.output, settled.archive) == (str(tmp_path / "out"), str(tmp_path / "a.h5"))


def test_what_is_no_path_stays_as_it_is() -> None:
    shapes = [SpecimenSource(specimen=SpecimenSpec(structure=name)) for name in STRUCTURES]
    for source in (*shapes, ArchiveSource(kind="archive")):
        spec = SessionSpec(source=source)
        assert Places(Roots([]), Roots([])).settled(spec) == (spec, [])


def test_every_path_is_told_of_by_its_field(tmp_path: Path) -> None:
    places = Places(Roots([tmp_path / "in"]), Roots([tmp_path / "out"], "write to"))
    wrong = {"source": {"kind": "file", "path": "/etc"}, "output": "/etc/x", "archive": "/etc/a.h5"}
    assert fields(places, **wrong) == ["source.path", "output", "archive"]
    assert fields(places, source={"kind": "archive", "path": "x"}) == ["source.path"]
    structure = {"kind": "specimen", "specimen": {"structure": "/etc/a.pdb"}}
    assert fields(places, source=structure) == ["source.specimen.structure"]


@pytest.mark.parametrize("name", ["recovered.mrcs", "references.mrcs", "recovered.star", "frames.csv",
                                  "session.json", "journal", "measurements"])  # fmt: skip
def test_no_result_takes_the_place_of_anything(tmp_path: Path, name: str) -> None:
    assert fields(Places(), output=str(tmp_path)) == []
    (tmp_path / name).symlink_to("/nowhere")  # not even of a link that leads nowhere
    assert fields(Places(), output=str(tmp_path)) == ["output"]


def test_results_of_a_session_are_read_only_where_sessions_may_write(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    places = Places(outputs=Roots([tmp_path / "out"], "write to"))
    assert places.results({"output": str(tmp_path / "out" / "s")}) == (tmp_path / "out" / "s").resolve()
    for output in (tmp_path, tmp_path / "out" / "link" / "s", "/etc"):
        with pytest.raises(ValueError, match="is not in a folder"):
            places.results({"output": str(output)})


def test_processes_on_loopback_have_no_limits_unless_some_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits("127.0.0.1", tmp_path) == {}
    monkeypatch.setenv("CRYOFLUX_INPUTS", "/data")
    assert {name: json.loads(value) for name, value in limits("127.0.0.1", tmp_path).items()} == {
        "CRYOFLUX_INPUTS": ["/data", str(tmp_path)]
    }


def test_a_live_session_beyond_loopback_has_the_limits_of_its_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOFLUX_OPERATOR_TOKEN", "x" * 20)
    star, archive = tmp_path / "job" / "p.star", tmp_path / "a, b.h5"
    spec = SessionSpec(source=FileSource(path=str(star)), output="/results", archive=str(archive))
    given = limits("0.0.0.0", Path("/results"), spec)
    assert json.loads(given["CRYOFLUX_INPUTS"]) == ["/results", str(star.parent)]
    assert json.loads(given["CRYOFLUX_OUTPUTS"]) == ["/results", "/results", str(archive)]


def test_what_a_session_names() -> None:
    structure = SpecimenSource(specimen=SpecimenSpec(structure="/a.pdb"))
    assert named_by(SessionSpec(source=structure)) == (["/a.pdb"], [])
    assert named_by(SessionSpec()) == ([], [])
    assert named_by(SessionSpec(source=ArchiveSource(kind="archive", path="/a.h5"))) == (["/a.h5"], [])
