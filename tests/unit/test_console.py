"""The console's files: what the page needs is there, comes with the right headers, and from nowhere else."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from services.control_plane.app import routed
from services.control_plane.routes.console import CONTENT_TYPES, FOLDER

OURS = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*")
    if path.suffix in (".html", ".css", ".js", ".svg") and path.parent.name != "vendor"
)


class Client:
    """Asks the routes, without a server."""

    def __init__(self) -> None:
        self._transport = httpx.ASGITransport(routed())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://console") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


def test_page_is_served_at_the_root(client: Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text.startswith("<!doctype html>")


def test_policy_lets_nothing_in_from_elsewhere_and_nothing_inline(client: Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("path", [*OURS, "vendor/uPlot-1.6.32.esm.js", "vendor/inter-5.3.0-latin.woff2"])
def test_file_comes_with_its_type_and_is_not_sent_twice(client: Client, path: str) -> None:
    answer = client.get(f"/console/{path}")
    assert answer.status_code == 200
    assert answer.content == (FOLDER / path).read_bytes()
    assert answer.headers["content-type"] == CONTENT_TYPES[f".{path.rsplit('.', 1)[1]}"]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    etag = answer.headers["etag"]
    for known in (etag, f'"other", W/{etag}'):
        again = client.get(f"/console/{path}", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    assert client.get(f"/console/{path}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "none.js",
        "",
        "../app.py",
        "%2e%2e/app.py",
        "js/%2e%2e/%2e%2e/app.py",
        "/etc/passwd",
        "vendor/VENDORED.md",
    ],
)
def test_nothing_else_is_served(client: Client, path: str) -> None:
    answer = client.get(f"/console/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_other_paths_are_still_told_as_problems(client: Client) -> None:
    assert client.get("/none").status_code == 404
    assert client.request("POST", "/").status_code == 405


@pytest.mark.parametrize("path", OURS)
def test_what_a_file_names_is_there(path: str) -> None:
    place = FOLDER / path
    text = place.read_text()
    if place.suffix == ".html":
        named = [FOLDER.parent / name for name in re.findall(r'(?:src|href)="(console/[^"]+)"', text)]
    elif place.suffix == ".js":
        named = [place.parent / name for name in re.findall(r'from "(\.[^"]+)"', text)]
    else:
        named = [place.parent / name for name in re.findall(r'url\("([^"]+)"\)', text)]
    assert [str(name) for name in named if not name.is_file()] == []


@pytest.mark.parametrize("path", OURS)
def test_no_file_names_another_place(path: str) -> None:
    text = (FOLDER / path).read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text) == []
    assert "style=" not in text  # the policy forbids it


def test_every_module_is_used() -> None:
    text = "".join((FOLDER / path).read_text() for path in OURS)
    for path in OURS:
        if path != "index.html":
            assert path.rsplit("/", 1)[-1] in text, path


def test_what_is_vendored_has_its_licence() -> None:
    folder = FOLDER / "vendor"
    told = (folder / "VENDORED.md").read_text()
    for path in folder.iterdir():
        if path.name == "VENDORED.md":
            continue
        assert path.name in told
        found = re.match(r"([A-Za-z]+-[\d.]+\d)", path.name)
        assert found, path.name
        assert (folder / f"{found[1]}.LICENSE").is_file(), path.name


def test_page_to_try_calls_out_needs_nothing_from_elsewhere(client: Client) -> None:
    page = client.get("/api/v1/docs")
    assert page.status_code == 200
    addresses = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/")
        assert client.get(address).status_code == 200
