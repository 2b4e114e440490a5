"""The documentation: the site builds strictly and fetches nothing from elsewhere; pages agree with code."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from common.settings import Settings
from common.wire import messages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """What a browser fetches when it opens a page, links that one has to click not included."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADED.get(tag, ""))
        if address and given.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(address)
        if style := given.get("style"):
            self.addresses += re.findall(r"url\(['\"]?([^'\")]+)", style)


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = {page.stem for page in DOCS.glob("*.md")} | {"rest-reference", "settings"}
    assert pages <= {page.stem for page in site.glob("*.html")}
    menu = (site / "index.html").read_text()
    for page in pages:
        assert f'href="{page}.html"' in menu or page == "index", f"{page} is not in the menu"


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        addresses = Loads(page.read_text()).addresses
        assert addresses
        assert [address for address in addresses if urlsplit(address).netloc] == [], page.name
    for sheet in site.rglob("*.css"):
        fetched = re.findall(r"(?:@import\s+|url\()['\"]?([^'\")\s]+)", sheet.read_text())
        assert [address for address in fetched if urlsplit(address).netloc] == [], sheet.name


def test_the_reference_has_every_route_and_every_setting(site: Path) -> None:
    import html
    import json

    document = json.loads((DOCS / "openapi.json").read_text())
    text = html.unescape((site / "rest-reference.html").read_text())
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in text
    for model in document["components"]["schemas"]:
        assert model in text
    told = (site / "settings.html").read_text()
    for name in Settings.model_fields.keys() - {"session"}:
        assert f"CRYOFLUX_{name.upper()}" in told


# ---- pages and code


def tables(page: str) -> dict[str, list[str]]:
    """The first column of the table below each third-order heading of a page."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"(?m)^### ", (DOCS / page).read_text())[1:]:
        name, _, body = section.partition("\n")
        body = re.split(r"(?m)^## ", body)[0]
        found[name] = re.findall(r"(?m)^\| `(\w+)` \|", body)
    return found


def test_the_wire_protocol_is_told_field_by_field() -> None:
    told = tables("wire-protocol.md")
    array = [field.name for field in msgspec.structs.fields(messages.ArrayHeader)]
    assert told.pop("array header") == array
    structures = {kind.__struct_config__.tag: kind for kind in messages.Header.__subclasses__()}
    assert set(told) == set(structures)
    for tag, kind in structures.items():
        fields = [field.name for field in msgspec.structs.fields(kind) if field.name != "version"]
        assert told[tag] == fields, tag
    assert f"version {messages.PROTOCOL_VERSION}" in (DOCS / "wire-protocol.md").read_text()


def test_the_columns_of_the_table_of_frames_are_told(tmp_path: Path) -> None:
    from reconstructor.finalise import finalise

    start = {"shape": (8, 8), "pixel_size_angstrom": 1.0, "optics": {}}
    (tmp_path / "journal").mkdir()
    finalise(tmp_path, start, {"frames_acquired": 0, "frames_lost": {}})
    columns = next(csv.reader(io.StringIO((tmp_path / "frames.csv").read_text())))
    page = (DOCS / "file-formats.md").read_text()
    section = page[page.index("<!-- columns: frames.csv -->") : page.index("<!-- end -->")]
    assert re.findall(r"(?m)^\| `(\w+)` \|", section) == columns


def test_the_python_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (DOCS / "python.md").read_text())
    assert len(blocks) > 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "honest C = 2.5" in done.stdout


@pytest.mark.parametrize("page", sorted(page.name for page in DOCS.glob("*.md")))
def test_commands_that_are_told_exist(page: str) -> None:
    """Options in the blocks of shell commands are those of the command that they are given to."""
    from typer.main import get_command

    from services.cli import app

    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for block in re.findall(r"(?ms)^```(?:bash|sh)\n(.*?)^```", (DOCS / page).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            told = re.match(r"(?:\w+=\S+ )*cryoflux ((?:--(?:config|log-\w+) \S+ )*)(\w[\w-]*)(.*)", line)
            if told is None or line.startswith("#"):
                continue
            name, rest = told[2], told[3].partition("#")[0]
            assert name in commands, line
            command = commands[name]
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            if not hasattr(command, "commands"):
                assert set(re.findall(r"(?<= )--[\w-]+", rest)) <= known, line
