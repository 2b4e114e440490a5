"""Where sessions may read and write: whatever is asked for, nothing outside is opened, made or told of."""

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from common.roots import ANYWHERE, NotAllowed, Roots, inputs_of, outputs_of
from common.session import FileSource, SpecimenSource, SpecimenSpec
from common.settings import Settings
from detector_sim.sources import SourceError, open_source

SECRET = b"the secret"


def refusal(ask: Callable[[], object]) -> str:
    """The one line by which something is refused."""
    with pytest.raises((NotAllowed, OSError, SourceError, ValueError)) as caught:
        ask()
    line = str(caught.value)
    assert "\n" not in line
    return line


class Tree:
    """A root, a folder beside it that is nobody's business, and links between them."""

    def __init__(self, folder: Path) -> None:
        self.root, self.outside = folder / "root", folder / "outside"
        for place in (self.root / "a" / "b", self.outside / "d"):
            place.mkdir(parents=True)
        for place in (self.root, self.root / "a", self.root / "a" / "b"):
            (place / "f").write_bytes(b"frames")
        for place in (self.outside, self.outside / "d"):
            (place / "f").write_bytes(SECRET)
        for name, target in {
            "up": "..",
            "out": self.outside,
            "file-out": self.outside / "f",
            "sneaky": "../outside/f",
            "round": f"../outside/d/../../{self.root.name}/a",
            "round-nowhere": f"../outside/nothing/../../{self.root.name}/a",
            "in": "a/b",
            "absolute": self.root / "a",
            "back": "a/../a/b/..",
            "loop": "loop2",
            "loop2": "loop",
            "self": ".",
            "dangling": "nothing",
            "dangling-out": self.outside / "nothing",
            "proc": "/proc/self",
            "beside": f"{self.root}-not/f",
        }.items():
            (self.root / name).symlink_to(target)
        (folder / "root-not").mkdir()
        (folder / "root-not" / "f").write_bytes(SECRET)
        self.names = [*os.listdir(self.root), "b", "d", "f", "environ", "..", ".", ""]


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    folder = Path(tempfile.mkdtemp()).resolve()
    yield Tree(folder)
    shutil.rmtree(folder)


NAMES = st.sampled_from(
    ["a", "b", "f", "d", "up", "out", "file-out", "sneaky", "round", "round-nowhere", "in", "absolute",
     "back", "loop", "self", "dangling", "dangling-out", "proc", "beside", "environ", "..", ".", "", "root",
     "outside", "~", "x" * 300, "é"]
)  # fmt: skip


def inside(tree: Tree, path: str) -> bool:
    """Whether no step on the way to a path is outside, found by walking with names alone."""
    allowed = os.path.realpath(tree.root)
    pending = [part for part in path.removeprefix(allowed).split("/") if part not in ("", ".")]
    at, links = allowed, 0
    while pending:
        part = pending.pop(0)
        step = os.path.dirname(at) if part == ".." else os.path.join(at, part)
        if step != allowed and not step.startswith(allowed + "/"):
            return False
        if os.path.islink(step):
            links += 1
            target = os.readlink(step)
            if links > 40:
                return False
            if target.startswith("/"):
                if target != allowed and not target.startswith(allowed + "/"):
                    return False
                at, target = allowed, target.removeprefix(allowed)
            pending = [p for p in target.split("/") if p not in ("", ".")] + pending
            continue
        if not os.path.exists(step):
            return False
        at = step
    return True


@given(st.lists(NAMES, max_size=8), st.sampled_from(["root", "outside", "relative", "none"]))
@example(["up", "outside", "f"], "root")
@example(["round", "f"], "root")
@example(["in", "..", "f"], "root")
@example(["absolute", "b", "f"], "root")
def test_only_what_lies_inside_is_ever_opened(tree: Tree, parts: list[str], begin: str) -> None:
    roots = Roots([tree.root])
    start = {"root": f"{tree.root}/", "outside": f"{tree.outside}/", "relative": "", "none": "/"}[begin]
    path = start + "/".join(parts)
    legal = begin == "root" and inside(tree, path)
    try:
        with roots.open(path) as file:
            content = file.read()
    except (NotAllowed, OSError):
        assert not (legal and os.path.isfile(path))
    else:
        assert content == b"frames"
        assert legal
    if "x" * 300 in parts:  # no name at all: an error of the system, if it comes so far
        return
    listed = roots.is_folder(path) and set(roots.listing(path))
    assert not listed or not {"d"} & listed
    assert roots.is_file(path) == (legal and os.path.isfile(path))
    assert roots.is_folder(path) == (legal and os.path.isdir(path))


@given(st.lists(NAMES, max_size=8), st.booleans())
def test_what_is_outside_is_told_of_in_the_same_words_whether_it_is_there_or_not(
    tree: Tree, parts: list[str], to_be_made: bool
) -> None:
    """The same question is asked of a twin whose outside is empty: the answers are alike."""
    roots = Roots([tree.root], "write to" if to_be_made else "read")
    path = f"{tree.root}/{'/'.join(parts)}"

    def answer() -> str:
        try:
            if to_be_made:
                return str(roots.real(path))
            roots.open(path).close()
            return "opened"
        except (NotAllowed, OSError) as error:
            return str(error)

    there = answer()
    hidden = tree.outside.with_name("hidden")
    tree.outside.rename(hidden)
    try:
        assert answer() == there
    finally:
        hidden.rename(tree.outside)


@given(st.lists(NAMES, max_size=6))
def test_folders_are_made_inside_or_not_at_all(tree: Tree, parts: list[str]) -> None:
    roots = Roots([tree.root / "new"], "write to")
    shutil.rmtree(tree.root / "new", ignore_errors=True)
    (tree.root / "new").mkdir()
    (tree.root / "new" / "out").symlink_to(tree.outside)
    (tree.root / "new" / "a").mkdir()
    before = sorted(map(str, tree.outside.rglob("*"))), sorted(os.listdir(tree.root))
    try:
        made = roots.make_folder(f"{tree.root}/new/{'/'.join(parts)}")
    except (NotAllowed, OSError):
        pass
    else:
        assert made.is_dir()
        assert made.is_relative_to(tree.root / "new")
        assert made == made.resolve()
    assert (sorted(map(str, tree.outside.rglob("*"))), sorted(os.listdir(tree.root))) == before


@given(st.text(max_size=60) | st.lists(NAMES).map("/".join))
def test_a_name_is_taken_or_refused_without_a_look_at_the_disk(tree: Tree, path: str) -> None:
    roots = Roots([tree.root])
    try:
        named = roots.named(path)
    except NotAllowed:
        return
    assert named.is_absolute()
    assert ".." not in named.parts
    assert named.is_relative_to(tree.root)


@pytest.mark.parametrize(
    ("path", "told"),
    [("frames", "absolute"), ("~/frames", "~"), ("~root/frames", "~"), ("{root}/../f", "without .."),
     ("{root}-not/f", "not in a folder"), ("/", "not in a folder"), ("{root}/a\0b", "zero byte")],
)  # fmt: skip
def test_a_refusal_says_why(tree: Tree, path: str, told: str) -> None:
    assert told in refusal(lambda: Roots([tree.root]).named(path.format(root=tree.root)))


def test_a_root_may_be_called_by_a_link_and_be_a_single_file(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tree.root)
    roots = Roots([tmp_path / "data"])
    for path in (tmp_path / "data" / "a" / "f", tree.root / "a" / "f"):
        assert roots.named(path) == path
        with roots.open(path) as file:
            assert file.read() == b"frames"
            assert file.name == str(path)
    single = Roots([tree.root / "f"])
    single.open(tree.root / "f").close()
    for other in ("a/f", "f/..", "f/../a/f", "in"):
        assert not single.is_file(tree.root / other)


def test_a_root_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert "No such file" in refusal(lambda: Roots([tmp_path / "later"]).open(tmp_path / "later" / "f"))


def test_no_root_at_all_lets_nothing_through(tree: Tree) -> None:
    told = refusal(lambda: Roots([]).named(tree.root / "f"))
    assert "not in a folder that sessions may read" in told


def test_a_file_that_is_swapped_for_a_link_while_it_is_opened_is_never_read(tmp_path: Path) -> None:
    """Somebody who may write in the root changes a name to and fro as fast as he can."""
    tree, ended = Tree(tmp_path.resolve()), threading.Event()
    wavering, other = tree.root / "a", tree.root / "other"
    other.symlink_to(tree.outside)

    def swap() -> None:
        while not ended.is_set():
            for first, second in ((wavering, "keep"), (other, "a"), (tree.root / "a", "other")):
                first.rename(tree.root / second)
            (tree.root / "keep").rename(wavering)

    swapping = threading.Thread(target=swap)
    swapping.start()
    roots, opened, refused = Roots([tree.root]), 0, 0
    try:
        while (opened < 300 or refused < 300) and opened + refused < 200_000:
            try:
                with roots.open(wavering / "f") as file:
                    assert file.read() == b"frames"
                opened += 1
            except (NotAllowed, OSError):
                refused += 1
    finally:
        ended.set()
        swapping.join()
    assert opened
    assert refused


# ---- what is no plain file


@pytest.fixture
def oddities(tmp_path: Path) -> Path:
    """A folder of things that look like micrographs by their names."""
    os.mkfifo(tmp_path / "pipe.mrc")
    (tmp_path / "zero.mrc").symlink_to("/dev/zero")
    (tmp_path / "environ.mrc").symlink_to("/proc/self/environ")
    (tmp_path / "folder.mrc").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket.mrc"))
    return tmp_path


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["pipe", "zero", "environ", "socket", "folder"])
@pytest.mark.parametrize("limited", [True, False])
def test_pipes_devices_and_answers_of_the_kernel_are_no_frames(
    oddities: Path, name: str, limited: bool
) -> None:
    roots = Roots([oddities]) if limited else ANYWHERE
    told = refusal(lambda: open_source(FileSource(path=f"{oddities}/{name}.mrc"), roots))
    assert any(word in told for word in ("plain files", "not in a folder", "is empty", "no micrographs"))
    told = refusal(
        lambda: open_source(SpecimenSource(specimen=SpecimenSpec(structure=f"{oddities}/{name}.mrc")), roots)
    )
    assert "structure" in told


@pytest.mark.timeout(60)
def test_a_folder_with_such_things_in_it_is_read_without_them(oddities: Path) -> None:
    import mrcfile
    import numpy as np

    mrcfile.write(oddities / "frame.mrc", np.zeros((2, 16, 16), np.float32))
    with open_source(FileSource(path=str(oddities), pixel_size_angstrom=1.0), Roots([oddities])) as source:
        assert source.frame_count == 2
        reasons = {Path(bad.path).stem: bad.reason for bad in source.bad_files}
    assert set(reasons) == {"pipe", "zero", "environ", "socket", "folder"}
    assert "a pipe" in reasons["pipe"]
    assert "not in a folder" in reasons["zero"]


def test_a_star_file_names_stacks_that_may_be_read_and_no_others(tmp_path: Path) -> None:
    import mrcfile
    import numpy as np

    inside_, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside_, outside):
        folder.mkdir()
        mrcfile.write(folder / "s.mrcs", np.zeros((2, 16, 16), np.float32), voxel_size=1.0)
    (inside_ / "link.mrcs").symlink_to(outside / "s.mrcs")

    def star(stack: str) -> FileSource:
        (inside_ / "p.star").write_text(f"data_\nloop_\n_rlnImageName\n1@{stack}\n2@{stack}\n")
        return FileSource(path=str(inside_ / "p.star"))

    roots = Roots([inside_])
    with open_source(star("s.mrcs"), roots) as source:
        assert source.frame_count == 2
    for path in ("{0}", "../out/{0}", f"{outside}/{{0}}", "out/{0}"):
        with open_source(star(path.format("s.mrcs"))) as source:  # anything may be read
            assert source.frame_count == 2
        told: set[str] = set()
        for stack in ("link.mrcs", "nothing.mrcs"):
            spec = star(path.format(stack))
            told.add(refusal(lambda spec=spec: open_source(spec, roots)).replace(stack, "…"))
        assert len(told) == 1
        assert "as far as sessions may read" in told.pop()
    # a stack of the same name beside the STAR file is found instead of the one outside
    with open_source(star(f"{outside}/s.mrcs"), roots) as source:
        assert source.frame_count == 2


# ---- which roots there are


def test_without_settings_all_is_allowed_on_loopback_and_only_results_beyond(tmp_path: Path) -> None:
    usual = Settings(results=str(tmp_path))
    assert not inputs_of(usual).limited
    assert not outputs_of(usual).limited
    for beyond in (
        Settings(results=str(tmp_path), http_host="0.0.0.0", operator_token=SecretStr("x" * 20)),
        Settings(results=str(tmp_path), http_published="192.0.2.1"),
    ):
        for roots in (inputs_of(beyond), outputs_of(beyond)):
            assert roots.named(tmp_path / "a") == tmp_path / "a"
            refusal(lambda roots=roots: roots.named("/etc/passwd"))


def test_folders_for_results_may_be_read_too_but_not_the_other_way_round(tmp_path: Path) -> None:
    settings = Settings(results="/r", inputs=("/i",), outputs=("/o",))
    assert [str(inputs_of(settings).named(f"/{name}/x")) for name in "rio"] == ["/r/x", "/i/x", "/o/x"]
    assert [str(outputs_of(settings).named(f"/{name}/x")) for name in "ro"] == ["/r/x", "/o/x"]
    refusal(lambda: outputs_of(settings).named("/i/x"))


def test_folders_are_listed_by_commas_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOFLUX_INPUTS", "/a, /b")
    monkeypatch.setenv("CRYOFLUX_OUTPUTS", '["/c, d"]')
    settings = Settings.load()
    assert (settings.inputs, settings.outputs) == (("/a", "/b"), ("/c, d",))
