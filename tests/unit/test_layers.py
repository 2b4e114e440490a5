"""The rooms of the house: services > {detector_sim, reconstructor} > common, and the two ends stay apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "common": {"common"},
    "detector_sim": {"common", "detector_sim"},
    "reconstructor": {"common", "reconstructor"},
    "services": {"common", "detector_sim", "reconstructor", "services"},
}
OURS = {*MAY_IMPORT, "benchmarks", "tests"}


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a module of ``package`` imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, level=0):
                yield node.lineno, module or ""
            case ast.ImportFrom(module=module, level=level):
                parents = package.split(".")[: len(package.split(".")) - level + 1]
                yield node.lineno, ".".join([*parents, module or ""]).strip(".")
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")
            ):
                argument = node.args[0] if node.args else None
                yield node.lineno, argument.value if isinstance(argument, ast.Constant) else "?"
            case _:
                pass


def trespasses(room: str, source: str, package: str, where: str) -> list[str]:
    """What a module imports that its room may not."""
    names = [(line, name.split(".")[0], name) for line, name in imported(source, package)]
    return [
        f"{where}:{line} imports {name}"
        for line, top, name in names
        if top in OURS and top not in MAY_IMPORT[room]
    ]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ is empty"
    found = [
        trespass
        for path in files
        for trespass in trespasses(
            room,
            path.read_text(),
            ".".join(path.relative_to(ROOT).parent.parts),
            str(path.relative_to(ROOT)),
        )
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("common", "import detector_sim"),
        ("common", "from services.cli import main"),
        ("detector_sim", "import numpy, reconstructor.worker"),
        ("detector_sim", "def f():\n    from reconstructor import writer"),
        ("detector_sim", "from ..reconstructor import writer"),
        ("reconstructor", "if True:\n    import detector_sim as d"),
        ("reconstructor", "import importlib\nimportlib.import_module('services.supervisor')"),
        ("services", "from tests import conftest"),
    ],
)
def test_a_trespass_would_be_seen(room: str, source: str) -> None:
    assert trespasses(room, source, f"{room}", "x.py")


def test_what_is_allowed_is_not_reported() -> None:
    source = "import common.settings\nfrom .publisher import Publisher\nimport commonplace, torch"
    assert trespasses("detector_sim", source, "detector_sim", "x.py") == []


def test_nothing_is_called_utils_helpers_or_manager() -> None:
    names = [path for room in MAY_IMPORT for path in (ROOT / room).rglob("*") if path.suffix in ("", ".py")]
    vague = [
        str(path) for path in names if {"utils", "util", "helpers", "helper", "manager"} & {path.stem.lower()}
    ]
    assert vague == []
