"""A session in the console, from the form to the last frame: every control does what the REST call does."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error, Page, expect

from tests.browser.conftest import Watched
from tests.browser.installation import Installation, eventually
from tests.browser.looking import REFUSED, UNREACHABLE, no_gap_no_duplicate, until
from tests.conftest import program
from tests.tiny_prior import tiny_prior

pytestmark = pytest.mark.timeout(300)


def term(page: Page, name: str) -> Any:
    return page.locator(f'[data-term="{name}"] b')


def has_frames(page: Page, number: Callable[[str], float], at_least: int) -> None:
    until(page, "least => cryoflux.model.metrics?.frames.acknowledged >= least", at_least)
    expect(term(page, "acknowledged")).not_to_have_text("–")
    assert number(term(page, "acknowledged").inner_text()) >= at_least


def test_session_is_started_from_the_form_with_the_keyboard_alone(
    pages: Watched, installation: Installation, number: Callable[[str], float]
) -> None:
    installation.stop_session()
    page = pages.open()

    def reach(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached by Tab")

    reach("#start-open, #welcome-start")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Start a session")).to_be_visible()
    assert page.evaluate("document.activeElement.value") == "specimen"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # radio buttons: the test pattern
    reach('[data-path="camera.rate"]')
    page.keyboard.press("Control+A")
    page.keyboard.type("50")
    reach('[data-path="camera.frames"]')
    page.keyboard.type("120")
    line = page.locator("#start .dialog-foot code")
    expect(line).to_contain_text('"source":{"kind":"pattern"}')
    expect(line).to_contain_text('"frames":120')
    page.keyboard.press("Enter")

    expect(page.locator("#start")).to_be_hidden()
    expect(page.locator("#state")).to_have_text("completed", timeout=60_000)
    expect(page.locator("#progress-frames")).to_have_text("120 of 120 frames")
    assert number(term(page, "acknowledged").inner_text()) == 120
    expect(page.locator("#account-check")).to_have_text("adds up")
    asked = installation.session()["specification"]
    assert asked["source"]["kind"] == "pattern"
    assert asked["camera"]["rate"] == 50


def test_wrong_value_is_told_at_its_field(pages: Watched, installation: Installation) -> None:
    installation.stop_session()
    pages.expected.append(REFUSED)
    page = pages.open()
    page.locator("#start-open, #welcome-start").filter(visible=True).first.click()
    dialog = page.get_by_role("dialog", name="Start a session")
    side = dialog.locator('[data-path="mask.kernel_size"]')

    side.fill("65")
    dialog.get_by_role("button", name="Start", exact=True).click()
    error = page.locator(f"#{side.get_attribute('id')}-error")
    expect(error).to_have_text("must be a whole number from 1 to 64, got 65")
    expect(side).to_have_attribute("aria-invalid", "true")
    expect(side).to_be_focused()
    side.fill("4")
    expect(error).to_be_hidden()

    side.fill("four")  # what is no number goes out as it is, and is told as such
    dialog.get_by_role("button", name="Start", exact=True).click()
    expect(error).to_contain_text("four")
    side.fill("4")

    # hidden in a closed part of the form, found by the control plane, under a name of its own
    parts = dialog.locator('[data-path="recovery.parameters.iterations"]').filter(visible=True)
    expect(parts).to_have_count(0)
    dialog.get_by_text("Parameters of the method").click()
    parts.fill("0")
    dialog.get_by_text("Parameters of the method").click()
    dialog.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator(f"#{parts.get_attribute('id')}-error")).to_contain_text("1")
    expect(parts).to_be_focused()
    parts.fill("")

    # a replay brings its own masks and times
    line = page.locator("#start .dialog-foot code")
    dialog.get_by_role("radio", name="Archive").check()
    expect(side).to_be_hidden()
    expect(line).not_to_contain_text("mask")
    expect(line).not_to_contain_text("rate")

    # what only the detector can find out
    dialog.get_by_role("radio", name="File or folder").check()
    expect(side).to_have_value("4")
    path = dialog.locator('[data-path="source.path"]').filter(visible=True)
    path.fill("/nowhere/particles.star")
    dialog.get_by_role("button", name="Start", exact=True).click()
    expect(dialog).to_contain_text("/nowhere/particles.star")
    told = dialog.locator(".error:visible, .outcome[data-tone=bad]").filter(has_text="no such file")
    expect(told).to_have_count(1)
    assert page.locator("#state").inner_text() not in ("running", "paused")


def test_specification_is_edited_as_json(pages: Watched, installation: Installation) -> None:
    installation.stop_session()
    page = pages.open()
    page.locator("#start-open, #welcome-start").filter(visible=True).first.click()
    dialog = page.get_by_role("dialog", name="Start a session")
    dialog.get_by_text("Advanced: JSON").click()
    area = dialog.locator("#start-json")
    assert '"kernel_size": 4' in area.input_value()
    area.fill('{"mask": {"kind": "phase-plate", "pattern": "radial", "compression_factor": 5}')
    expect(dialog.get_by_text("not JSON yet")).to_be_visible()
    expect(dialog.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    area.fill('{"mask": {"kind": "phase-plate", "pattern": "radial", "compression_factor": 5}, '
              '"camera": {"frames": 20, "reference_first": 2}}')  # fmt: skip
    expect(dialog.locator('[data-path="mask.pattern"]')).to_have_value("radial")
    expect(dialog.locator('[data-path="camera.frames"]')).to_have_value("20")
    dialog.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#state")).to_have_text("completed", timeout=60_000)
    expect(page.locator("#configurations tbody tr:not(.empty)")).to_contain_text("phase plate, radial")
    assert installation.session()["specification"]["camera"]["reference_first"] == 2


@pytest.mark.usefixtures("fresh")
def test_compression_factor_is_changed_in_mid_run(
    page: Page, pages: Watched, installation: Installation, number: Callable[[str], float]
) -> None:
    has_frames(page, number, 40)
    rows = page.locator("#configurations tbody tr:not(.empty)")
    expect(rows).to_have_count(1)
    chart = page.locator('[data-chart="frames"]')
    expect(chart).to_have_attribute("data-marks", "0")

    page.get_by_label("Compression factor C").fill("8")
    expect(page.locator("#factor-form code")).to_contain_text('{"compression_factor":8}')
    page.locator("#factor-form").get_by_role("button", name="Apply").click()

    expect(page.locator("#control-acquisition .outcome")).to_have_text(re.compile(r"C = 8 from frame \d+ on"))
    setting = installation.session()["acquisition"][-1]
    expect(chart).to_have_attribute("data-marks", "1")
    for name in ("bandwidth", "psnr", "latency"):
        expect(page.locator(f'[data-chart="{name}"]')).to_have_attribute("data-marks", "1")
    expect(rows).to_have_count(2)
    new = rows.nth(1)
    expect(new).to_contain_text(setting["config_id"])
    expect(new).to_contain_text("K = 4, b = 2")
    expect(new.locator("td").nth(1)).to_have_text("8.000")
    expect(new.locator("td").nth(3)).to_have_text(str(setting["effective_from_frame"]))
    expect(new).to_have_attribute("data-standing", "now")
    # frames come, are recovered, and are judged under the new configuration
    until(page, "() => cryoflux.model.metrics.configurations[1]?.quality.psnr > 0")
    expect(new.locator("td").nth(6)).to_have_text(re.compile(r"\d+\.\d\d"))
    marks = page.evaluate("cryoflux.model.changes().map(change => change.label)")
    assert marks == ["C 2", "C 8"]
    event = page.locator("#log li").filter(has_text="C = 8 from frame")
    expect(event).to_have_count(1)

    pages.expected.append(REFUSED)
    page.get_by_label("Compression factor C").fill("99")
    page.locator("#factor-form").get_by_role("button", name="Apply").click()
    expect(page.locator("#factor-form .error")).to_contain_text("allowed range 1 to 16")


def test_mask_is_changed_to_another_kind(page: Page, installation: Installation) -> None:
    page.get_by_text("Another mask").click()
    form = page.locator("#mask-form")
    form.get_by_role("radio", name="Phase plate").check()
    form.get_by_label("Pattern").select_option("annular")
    form.locator('[data-path="mask.compression_factor"]').fill("4")
    form.get_by_role("button", name="Apply mask").click()
    expect(page.locator("#control-acquisition .now")).to_contain_text("phase plate, annular")
    setting = installation.session()["acquisition"][-1]
    assert setting["mask"]["kind"] == "phase-plate"
    row = page.locator("#configurations tbody tr").filter(has_text=setting["config_id"])
    expect(row.locator("td").nth(1)).to_have_text(f"{setting['compression_factor']:.3f}")


@pytest.mark.usefixtures("fresh")
def test_recovery_is_changed(page: Page, pages: Watched, installation: Installation) -> None:
    form = page.locator("#recovery-form")
    form.get_by_label("Method").select_option("wavelet")
    form.get_by_text("Parameters", exact=True).click()
    form.locator('[data-path="parameters.levels"]').fill("3")
    expect(form.locator(".call code")).to_contain_text('{"method":"wavelet","parameters":{"levels":3}}')
    form.get_by_role("button", name="Apply").click()
    outcome = page.locator("#control-recovery .outcome")
    expect(outcome).to_have_text("taken by worker-1, worker-2, from the next batch on")
    now = page.locator("#control-recovery .now")
    expect(now).to_contain_text("sparse in wavelets")
    expect(now).to_contain_text("levels 3")
    in_force = installation.session()["recovery"][-1]
    assert (in_force["method"], in_force["parameters"]) == ("wavelet", {"levels": 3})
    # frames shown later were recovered so
    expect(page.locator('[data-fact="method"] dd')).to_have_text("wavelet", timeout=60_000)

    pages.expected.append(REFUSED)
    form.locator('[data-path="parameters.wavelet"]').fill("none-such")
    form.get_by_role("button", name="Apply").click()
    expect(form.locator(".error:visible")).to_contain_text("none-such")
    form.locator('[data-path="parameters.wavelet"]').fill("")
    form.locator('[data-path="parameters.levels"]').fill("")  # back to the default
    expect(form.locator(".call code")).to_contain_text('{"parameters":{"levels":null}}')
    form.get_by_role("button", name="Apply").click()
    expect(now).to_contain_text("default parameters")
    assert installation.session()["recovery"][-1]["parameters"] == {}


def test_what_a_learned_prior_did_is_shown_where_one_is_used(
    pages: Watched, installation: Installation, tmp_path: Path
) -> None:
    prior = tiny_prior(tmp_path / "tiny")
    installation.stop_session()
    installation.start(
        source={"kind": "specimen", "specimen": {"side_pixels": 32, "pixel_size_angstrom": 4.5}},
        camera={"rate": 5, "reference_every": 5},
        recovery={"method": "diffusion", "parameters": {"prior": str(prior), "evaluations": 3}},
    )
    page = pages.open()
    shift = page.locator('[data-fact="shift"]')
    expect(shift.locator("dd")).to_have_text(re.compile(r"^\d+\.\d{3}$"), timeout=90_000)
    expect(shift).to_have_attribute("title", re.compile("from the linear"))
    expect(page.locator('[data-fact="evaluations"] dd')).to_have_text("3")
    expect(page.locator('[data-fact="spread"]')).to_be_hidden()  # there is one sample
    expect(page.locator("#configurations th.learned")).to_be_visible()
    expect(page.locator("#log li").filter(has_text="learned prior tiny: trained on")).to_have_count(1)
    expect(page.locator("#log li").filter(has_text="was not trained on frames at 4.5 Å")).to_have_count(1)
    form = page.locator("#recovery-form")
    expect(form.locator('[data-path="parameters.prior"]')).to_have_value(str(prior))
    form.get_by_label("Method").select_option("dct")
    form.get_by_role("button", name="Apply").click()
    expect(page.locator('[data-fact="method"] dd')).to_have_text("dct", timeout=60_000)
    expect(shift).to_be_hidden()

    pages.expected.append(REFUSED)
    form.get_by_label("Method").select_option("diffusion")
    form.get_by_text("Parameters", exact=True).click()
    form.locator('[data-path="parameters.prior"]').fill("never-heard-of")
    form.get_by_role("button", name="Apply").click()
    expect(form.locator(".error:visible")).to_contain_text("'never-heard-of' is not known")
    installation.stop_session()


PIXELS = """view => {
  const canvas = document.querySelector(`[data-view="${view}"] canvas`);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, hash = 0, extremes = 0;
  for (let at = 0; at < data.length; at += 4) {
    sum += data[at];
    hash = (31 * hash + data[at]) | 0;
    extremes += data[at] === 0 || data[at] === 255;
  }
  return { width: canvas.width, height: canvas.height, mean: sum / (data.length / 4), hash,
           clipped: extremes / (data.length / 4), frame: Number(canvas.dataset.frame) };
}"""


def test_pictures_follow_and_contrast_changes_them(page: Page, pages: Watched) -> None:
    pages.expected.append("willReadFrequently")  # it is the test that reads
    for view in ("measurement", "recovered", "reference", "residual"):
        expect(page.locator(f'[data-view="{view}"] canvas')).to_be_visible()
    first = page.evaluate(PIXELS, "recovered")
    assert (first["width"], first["height"]) == (128, 128)
    assert page.evaluate(PIXELS, "reference")["hash"] != first["hash"]
    assert first["frame"] % 10 == 0 or first["frame"] < 4  # a frame that was also sent whole
    expect(page.locator('[data-fact="psnr"] dd')).to_have_text(re.compile(r"\d+\.\d\d dB"))
    until(page, f"first => ({PIXELS})('recovered').frame > first", first["frame"])  # it follows the newest

    page.locator("#pause-pictures").click()
    expect(page.locator("#pause-pictures")).to_have_attribute("aria-pressed", "true")
    until(page, f"() => cryoflux.model.metrics.newest_reference > ({PIXELS})('recovered').frame + 20")
    held = page.evaluate(PIXELS, "recovered")
    page.locator("#contrast-low").fill("30")
    page.locator("#contrast-high").fill("70")
    until(page, f"before => ({PIXELS})('recovered').hash !== before", held["hash"])
    until(page, f"() => ({PIXELS})('recovered').clipped > 0.55")  # 30 % black, 30 % white
    changed = page.evaluate(PIXELS, "recovered")
    assert changed["frame"] == held["frame"]  # held, though newer ones are there
    page.get_by_label("all on the reference's grey scale").check()
    until(page, f"before => ({PIXELS})('recovered').hash !== before", changed["hash"])
    page.get_by_role("button", name="reset").click()
    until(page, f"before => ({PIXELS})('recovered').hash === before", held["hash"])

    page.locator("#frame-number").fill("1")
    page.locator("#frame-number").press("Enter")
    expect(page.locator("#frame-title")).to_have_text("frame 1")
    expect(page.locator('[data-view="reference"] canvas')).to_be_visible()
    page.locator("#frame-number").fill("7")
    page.locator("#frame-number").press("Enter")
    expect(page.locator('[data-view="reference"]')).to_contain_text("frame 7 was not sent whole")
    expect(page.locator('[data-fact="psnr"] dd')).to_have_text("–")


def test_killed_worker_is_shown_as_gone_and_its_successor_comes(
    page: Page, installation: Installation, number: Callable[[str], float]
) -> None:
    rows = page.locator("#workers tbody tr:not(.empty)")
    expect(rows).to_have_count(2)
    before = installation.child("reconstructor", "worker-1").pid
    old = rows.filter(has_text=str(before))
    expect(old).to_have_attribute("data-standing", "heard")
    installation.child("reconstructor", "worker-1").send_signal(signal.SIGKILL)
    expect(old).to_have_attribute("data-standing", "gone", timeout=60_000)
    new = rows.filter(has_text="worker-1").and_(page.locator('[data-standing="heard"]'))
    expect(new).to_have_count(1, timeout=60_000)
    expect(new).not_to_contain_text(str(before))
    after = installation.child("reconstructor", "worker-1").pid
    expect(new).to_contain_text(str(after))
    # what it held was given to others: nothing is lost
    has_frames(page, number, int(number(term(page, "acquired").inner_text())))
    expect(term(page, "lost")).to_have_text("0")
    expect(page.locator("#account-check")).to_have_text("adds up")


def test_page_reconnects_when_the_control_plane_is_restarted(
    page: Page, pages: Watched, installation: Installation
) -> None:
    pages.expected.append(UNREACHABLE)
    until(page, "() => cryoflux.model.series.length >= 4")
    before = no_gap_no_duplicate(page, installation)
    connection = page.locator('[data-notice="connection"]')
    page.evaluate(
        """() => { const place = document.querySelector("#link"); globalThis.standings = [];
        new MutationObserver(() => standings.push(place.dataset.link)).observe(place, { attributes: true });
        }"""
    )
    first = installation.child("control").pid
    installation.child("control").send_signal(signal.SIGKILL)
    expect(connection).to_contain_text("reconnecting")
    expect(page.locator("#link")).to_have_text("live", timeout=60_000)
    expect(connection).to_have_count(0)
    assert page.evaluate("standings.includes('lost') && standings.at(-1) === 'live'")
    assert installation.child("control").pid != first
    until(page, "last => cryoflux.model.points.last >= last + 4", before["last"])
    expect(page.locator("#state")).to_have_text("running")
    after = no_gap_no_duplicate(page, installation)
    assert after["at"][: len(before["at"])] == before["at"]
    expect(page.locator('[data-notice="gap"]')).to_have_count(0)

    late = pages.open()  # a late page gets all of it
    until(late, "last => cryoflux.model.points.last >= last", after["last"])
    assert no_gap_no_duplicate(late, installation)["at"][: len(after["at"])] == after["at"]


def test_frames_flow_without_the_control_plane_and_a_reopened_console_continues(
    page: Page, pages: Watched, installation: Installation
) -> None:
    pages.expected += [UNREACHABLE, REFUSED]  # a metric or picture may be asked for before it is known again
    until(page, "() => cryoflux.model.series.length >= 4")
    before = no_gap_no_duplicate(page, installation)
    session, detector = installation.session()["id"], installation.detector()
    late = pages.blank()
    with installation.without_control_plane():
        expect(page.locator('[data-notice="connection"]')).to_contain_text("frames keep flowing")
        then = installation.acknowledged(detector)
        eventually(lambda: installation.acknowledged(detector) >= then + 60, "frames keep flowing")
        counted = installation.acknowledged(detector)
        page.close()
        with pytest.raises(Error, match="ERR_CONNECTION_REFUSED"):
            late.goto(installation.url)  # who opens it now sees nothing, and tries again

    def is_reached() -> bool:
        try:
            return late.goto(installation.url).ok
        except Error:
            return False

    eventually(is_reached, "the console is served again")
    expect(late.locator("#link")).to_have_text("live")
    expect(late.locator("#session-id")).to_have_text(session)
    expect(late.locator("#state")).to_have_text("running")
    until(late, "last => cryoflux.model.points.last >= last + 4", before["last"])
    after = no_gap_no_duplicate(late, installation)
    assert after["at"][: len(before["at"])] == before["at"]
    until(late, "least => cryoflux.model.metrics?.frames.acknowledged >= least", counted)
    expect(late.locator("#account-check")).to_have_text("adds up")
    expect(term(late, "lost")).to_have_text("0")
    # an image that was recovered while nobody led the session
    late.locator("#frame-number").fill(str(then + 30))
    late.locator("#frame-number").press("Enter")
    expect(late.locator('[data-view="recovered"] canvas')).to_have_attribute("data-frame", str(then + 30))


UNHEARD = {
    "running": "frames keep flowing",
    "paused": "the session was paused then",
    "completed": "The session is completed; no frame depends on the connection.",
}


def test_lost_connection_is_told_as_it_is(page: Page, pages: Watched, installation: Installation) -> None:
    pages.expected += [UNREACHABLE, "ERR_INTERNET_DISCONNECTED"]
    notice = page.locator('[data-notice="connection"]')

    def lost(state: str) -> None:
        expect(page.locator("#state")).to_have_text(state, timeout=60_000)
        page.context.set_offline(True)
        page.evaluate("() => dispatchEvent(new Event('online'))")  # a stream that is open stays open offline
        expect(notice).to_contain_text(UNHEARD[state])
        assert ("keep flowing" in notice.inner_text()) == (state == "running")
        page.context.set_offline(False)
        expect(page.locator("#link")).to_have_text("live")
        expect(notice).to_have_count(0)

    lost("running")
    installation.client.post("sessions/current/pause").raise_for_status()
    lost("paused")
    installation.stop_session()
    lost("completed")


def test_line_of_a_control_is_the_call_it_makes(page: Page, installation: Installation) -> None:
    curl = program("curl", "curl")
    line = page.locator("#control-session .call code").first
    expect(line).to_contain_text("/pause")
    text = line.inner_text()
    assert text.startswith("curl -X POST http://")
    command = ["bash", "-c", text.replace("curl", curl, 1)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"paused"' in done.stdout
    expect(page.locator("#state")).to_have_text("paused")
    expect(page.locator("#announce")).to_have_text("The session is paused.")

    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.locator("#state")).to_have_text("running")
    assert installation.session()["state"] == "running"

    line = page.locator("#factor-form .call code")
    page.get_by_label("Compression factor C").fill("4")
    expect(line).to_contain_text('{"compression_factor":4}')
    subprocess.run(["bash", "-c", line.inner_text()], capture_output=True, check=True)
    expect(page.locator("#control-acquisition .now")).to_contain_text("C 4")


def test_stop_asks_first(page: Page, pages: Watched, installation: Installation) -> None:
    page.locator("#stop").click()
    dialog = page.get_by_role("dialog", name="Stop the session?")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Keep running").click()
    expect(dialog).to_be_hidden()
    assert installation.session()["state"] == "running"
    page.locator("#stop").click()
    dialog.get_by_role("button", name="Stop the session", exact=True).click()
    expect(page.locator("#state")).to_have_text("completed", timeout=60_000)
    expect(page.locator("#account-check")).to_have_text("adds up")
    expect(term(page, "in_flight")).to_have_text("0")
    expect(page.locator("#factor-form")).to_be_hidden()
    expect(page.locator("#start-open")).to_be_visible()
    expect(page.locator("#log li").first).to_contain_text("completed")

    # another session takes its place on the same stream, and nothing of this one stays
    over = installation.session()["id"]
    another = installation.start(source={"kind": "pattern"}, mask={"kind": "none"})
    expect(page.locator("#session-id")).to_have_text(another["id"])
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#configurations tbody tr:not(.empty)")).to_have_count(1)
    expect(page.locator("#configurations")).to_contain_text("no mask")
    expect(page.locator("#log")).not_to_contain_text(over)
    until(page, "() => cryoflux.model.series.length >= 2")
    no_gap_no_duplicate(page, installation)
