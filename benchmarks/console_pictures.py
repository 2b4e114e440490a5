"""Pictures of the console for the documentation: ``python -m benchmarks.console_pictures``.

A real session of the specimen simulator on a narrow link, with its compression factor and its recovery
changed in mid-run, photographed in headless Chromium: a laptop in the light and in the dark, the form, and a
phone; then the sign-in page of a control plane with a token. Takes about two minutes.
``--only sign-in`` takes that one alone.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.console import FLAGS, installation, wait_until
from services.supervisor import Supervisor

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SESSION: dict[str, Any] = {
    "source": {"kind": "specimen", "specimen": {"dose_per_square_angstrom": 60}},
    "camera": {"rate": 50, "frames": 9000, "reference_every": 25},
    "recovery": {"method": "dct"},
    "link_mbit_per_s": 4.5,
}
CHANGES: list[tuple[int, str, dict[str, Any]]] = [  # from about which frame on
    (1200, "acquisition", {"compression_factor": 4}),
    (2000, "recovery", {"method": "wiener"}),
    (2800, "acquisition", {"compression_factor": 2.6666667}),
]
LAST_FRAME = 4200


def run(only: str | None = None) -> int:
    """Take the pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("benchmarks.console_pictures: apt-get install chromium", file=sys.stderr)
        return 2
    if only is None:
        take_session(chromium)
    take_sign_in(chromium)
    return 0


def take_session(chromium: str) -> None:
    """Those of the console."""
    with tempfile.TemporaryDirectory() as name, installation(Path(name), 2) as (_, url):
        here = f"{url}/api/v1/sessions/current"
        httpx.post(f"{url}/api/v1/sessions", json=SESSION, timeout=120).raise_for_status()

        def acquired() -> int:
            return httpx.get(f"{here}/metrics", timeout=30).json()["frames"]["acquired"]

        for frame, what, body in CHANGES:
            wait_until(lambda frame=frame: acquired() >= frame, f"frame {frame} is acquired")
            httpx.patch(f"{here}/{what}", json=body, timeout=120).raise_for_status()
        wait_until(lambda: acquired() >= LAST_FRAME, f"frame {LAST_FRAME} is acquired")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
            whole = {"viewport": {"width": 1440, "height": 1640}}
            take(browser, url, "console-light", color_scheme="light", **whole)
            laptop = {"viewport": {"width": 1440, "height": 900}}
            take(browser, url, "console-dark", color_scheme="dark", **laptop)
            phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
            take(browser, url, "console-phone", color_scheme="dark", **phone)
            httpx.post(f"{here}/stop", timeout=60).raise_for_status()
            wait_until(lambda: httpx.get(here).json()["state"] == "completed", "the session is over")
            form = {"viewport": {"width": 1180, "height": 900}}
            take(browser, url, "console-form", open_form, color_scheme="light", **form)
            browser.close()


def take_sign_in(chromium: str) -> None:
    """That of the sign-in page."""
    os.environ["CRYOFLUX_OPERATOR_TOKEN"] = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        supervisor = Supervisor(
            "127.0.0.1", 0, 1, logs_folder=Path(name), state=Path(name) / "state.sqlite", report=print
        )
        supervisor.control.start()
        url = f"http://127.0.0.1:{supervisor.port}"
        try:
            wait_until(lambda: is_up(url), "the control plane is up")
            browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
            page = browser.new_page(viewport={"width": 720, "height": 420}, color_scheme="light")
            page.goto(url)
            save(page, "sign-in")
            browser.close()
        finally:
            supervisor.stop(5.0)


def is_up(url: str) -> bool:
    """Whether a control plane answers."""
    try:
        return httpx.get(f"{url}/healthz", timeout=5).is_success
    except httpx.TransportError:
        return False


def open_form(page: Page) -> None:
    """The form that starts a session, with something in it."""
    page.locator("#start-open").click()
    page.locator('[data-path="camera.frames"]').fill("5000")
    page.locator('[data-path="link_mbit_per_s"]').fill("4.5")
    page.locator("#start-title").click()


def take(browser: Browser, url: str, name: str, before: Any = None, **options: Any) -> None:
    """One picture, when everything that it is to show is there."""
    page = browser.new_page(**options)
    page.goto(url)
    wait_until(lambda: page.locator("[data-view=residual] canvas").is_visible(), "pictures are shown")
    queue = page.locator("[data-chart=queue]")
    wait_until(lambda: queue.get_attribute("data-marks") == "2", "charts are drawn")
    if before is not None:
        before(page)
    save(page, name)


def save(page: Page, name: str) -> None:
    """What the page shows, as a file."""
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path)
    page.close()
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pictures of the console for the documentation.")
    parser.add_argument("--only", choices=["sign-in"], help="this one alone")
    sys.exit(run(parser.parse_args().only))
