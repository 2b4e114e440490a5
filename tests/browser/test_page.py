"""The page itself: readable by everyone, on a phone and a laptop, in the light and in the dark."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watched
from tests.browser.installation import Installation, eventually
from tests.browser.looking import PHONE, WIDEST, until, violations

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everyone_can_read_and_reach_it(
    pages: Watched, session: dict[str, Any], axe: str, theme: str
) -> None:
    page = pages.open(color_scheme=theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    expect(page.locator('[data-view="recovered"] canvas')).to_be_visible()
    for details in page.locator("aside details").all():
        details.evaluate("element => element.open = true")
    assert violations(page, axe) == []
    page.locator("#stop").click()
    expect(page.get_by_role("dialog", name="Stop the session?")).to_be_visible()
    assert violations(page, axe) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_form_and_empty_page_can_be_read_by_everyone(
    pages: Watched, installation: Installation, axe: str, theme: str
) -> None:
    installation.stop_session()
    page = pages.open(color_scheme=theme)
    page.locator("#start-open, #welcome-start").filter(visible=True).first.click()
    for details in page.locator("#start details").all():
        details.evaluate("element => element.open = true")
    page.locator('[data-path="camera.rate"]').fill("-1")
    pages.expected.append(r"status of 422")
    page.get_by_role("dialog").get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#start .error:visible")).to_have_count(1)
    assert violations(page, axe) == []


def test_theme_is_chosen_and_remembered(pages: Watched, session: dict[str, Any]) -> None:
    page = pages.open(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Dark theme").click()
    expect(page.get_by_role("button", name="Dark theme")).to_have_attribute("aria-pressed", "true")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    expect(page.locator("#link")).to_have_text("live")
    assert page.evaluate(ground) == dark


def test_phone_needs_no_sideways_scrolling(pages: Watched, session: dict[str, Any]) -> None:
    page = pages.open(**PHONE)
    expect(page.locator('[data-view="recovered"] canvas')).to_be_visible()
    expect(page.locator('[data-chart="frames"] canvas')).to_be_visible()
    for details in page.locator("aside details").all():
        details.evaluate("element => element.open = true")
    assert page.evaluate(WIDEST) == [360, []]
    page.locator("#stop").click()
    assert page.evaluate(WIDEST) == [360, []]


def test_form_fits_a_phone(pages: Watched, installation: Installation) -> None:
    installation.stop_session()
    page = pages.open(**PHONE)
    page.locator("#start-open, #welcome-start").filter(visible=True).first.click()
    for kind in ("specimen", "file", "pattern", "archive"):
        page.locator(f'input[name="source-kind"][value="{kind}"]').check()
        assert page.evaluate(WIDEST) == [360, []]


def test_hidden_page_draws_nothing(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("running")
    page.evaluate(
        """() => { globalThis.changes = 0;
        new MutationObserver((list) => (globalThis.changes += list.length)).observe(document.body,
          { subtree: true, childList: true, characterData: true, attributes: true });
        globalThis.requestAnimationFrame = () => 0; }"""  # what a hidden page gets: no frame
    )
    heard = page.evaluate("cryoflux.model.points.last")
    eventually(lambda: page.evaluate("cryoflux.model.points.last") >= heard + 3, "points are heard")
    # at most what was asked for before
    changes = page.evaluate("changes")
    heard = page.evaluate("cryoflux.model.points.last")
    eventually(lambda: page.evaluate("cryoflux.model.points.last") >= heard + 2, "points are heard")
    assert page.evaluate("changes") == changes


def test_memory_of_points_is_bounded_and_what_is_old_is_thinned(page: Page) -> None:
    length, first, last, mean, newest = page.evaluate(
        """async () => { const { Series } = await import("/console/js/series.js");
        const series = new Series(64);
        for (let n = 0; n < 1000; n += 1) series.push({ at: n, wire: n, psnr: n % 10 ? null : n });
        const at = series.columns.at.subarray(0, series.length);
        for (let n = 1; n < at.length; n += 1) if (at[n] <= at[n - 1]) throw new Error("not in order");
        const psnr = series.view(["psnr"], 0)[1];
        if (psnr.some((value) => value === null)) throw new Error("unknown values in a view");
        return [series.length, at[0], at.at(-1), psnr.length, series.newest("psnr")]; }"""
    )
    assert 32 <= length <= 64
    assert first > 0
    assert last == 999
    assert mean > 3
    assert newest == 990


def test_numbers_that_do_not_follow_are_told(page: Page) -> None:
    result = page.evaluate(
        """async () => { const { Sequence } = await import("/console/js/stream.js");
        const sequence = new Sequence();
        const taken = [5, 6, 6, 7, 10, 9, 11].map((number) => sequence.take(number));
        return [taken, sequence.missing, sequence.repeated]; }"""
    )
    assert result == [[True, True, False, True, True, False, True], 2, 2]
    expect(page.locator('[data-notice="gap"]')).to_have_count(0)
    page.evaluate("() => { cryoflux.model.points.last -= 7; }")  # as if seven had been lost on the way
    expect(page.locator('[data-notice="gap"]')).to_contain_text("7 points and 0 events did not arrive")


def test_without_tokens_there_is_no_sign_in_to_be_seen(
    pages: Watched, installation: Installation, session: dict[str, Any]
) -> None:
    page = pages.open()
    expect(page.locator("#pause")).to_be_enabled()
    for hidden in ("#who", "#sign-out", "#looking", "#welcome-looking"):
        expect(page.locator(hidden)).to_be_hidden()
    assert "Authorization" not in page.content()
    expect(page.locator("#control-session .call code").first).to_be_visible()
    assert page.context.cookies() == []
    page.evaluate("() => { location.hash = 'token=of-another-installation'; }")
    until(page, "() => location.hash === ''")
    expect(page.locator('[data-notice="token"]')).to_have_count(0)
    assert page.context.cookies() == []
