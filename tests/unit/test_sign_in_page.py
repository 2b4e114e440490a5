"""The page on which a browser signs in: whole by itself, and let in by its policy as it stands."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from services.control_plane.routes.console import FOLDER
from services.control_plane.sign_in_page import sign_in_page, sign_in_policy

COLOURS = r"--([a-z-]+): ([^;]+);"


class Parts(HTMLParser):
    """What a browser makes of it: texts of scripts and styles, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = ""
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style"):
            self.texts.append((self.inside, data))


@pytest.fixture
def parts() -> Parts:
    parts = Parts()
    parts.feed(sign_in_page("/").decode())
    return parts


def test_policy_lets_in_what_the_page_holds_and_nothing_else(parts: Parts) -> None:
    directives = dict(directive.split(" ", 1) for directive in sign_in_policy().split("; "))
    assert directives["default-src"] == "'none'"
    assert [kind for kind, _ in parts.texts] == ["style", "script"]
    for kind, text in parts.texts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in sign_in_policy()


def test_page_needs_nothing_else(parts: Parts) -> None:
    fetched = [value for _, name, value in parts.attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith("data:") for value in fetched)
    assert not [name for _, name, _ in parts.attributes if name == "style" or name.startswith("on")]
    assert "url(" not in sign_in_page("/").decode()


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/console/js/main.js", "/api/v1/docs", "/a/b/c/", "//elsewhere.example/", "/a%2Fb/c"],
)
@pytest.mark.parametrize("prefix", ["", "/microscopes/two"])
def test_console_is_found_from_every_path_and_behind_a_prefix(path: str, prefix: str) -> None:
    found = re.search(r'data-root="([./]+)"', sign_in_page(path).decode())
    assert found
    folders = f"{prefix}{path}".split("/")[:-1]  # as a browser resolves it, which urljoin does not for //
    for step in found[1].removesuffix("/").split("/"):
        folders = folders[:-1] if step == ".." else folders
    assert folders == prefix.split("/")


@pytest.mark.parametrize("path", ["", "*", "/" * 100_000])
def test_odd_paths_are_answered(path: str) -> None:
    assert len(sign_in_page(path)) < 20_000


def test_colours_are_those_of_the_console() -> None:
    theme = (FOLDER / "css" / "theme.css").read_text()
    page = sign_in_page("/").decode()
    for block in (r":root \{\s+color-scheme: light;(.*?)\}", r'\[data-theme="dark"\] \{(.*?)\}'):
        wanted, here = (
            dict(re.findall(COLOURS, found[1])) if (found := re.search(block, text, re.DOTALL)) else {}
            for text in (theme, page)
        )
        assert here
        assert here.items() <= wanted.items()
