"""The control plane against a detector and workers that do as the test says: every route, every error."""

import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from common.operators.spec import MaskSpec
from common.state.embedded import EmbeddedStore
from common.state.store import SessionRecord, StoreError
from common.wire.control import Conflict
from reconstructor.finalise import Summary
from services.control_plane import sessions as sessions_module
from services.control_plane.app import API_VERSION, create_app, routed
from services.control_plane.bus import Bus
from services.control_plane.preview import png
from services.control_plane.recorder import Recorder
from services.control_plane.states import OVER, TRANSITIONS, State, Trigger, WrongState, after
from services.control_plane.tally import Tally
from tests import waiting
from tests.tiny_prior import card
from tests.unit.fakes import SHAPE, FakeDetector, FakeWorker, configuration

SNAPSHOT = Path(__file__).parents[2] / "docs" / "openapi.json"
BASE = "/api/v1/sessions"
CURRENT = f"{BASE}/current"
PATIENCE_SECONDS = 20.0
eventually = partial(waiting.eventually, seconds=PATIENCE_SECONDS, pause=0.01)


class FailingStore(EmbeddedStore):
    """A store whose disk is full while ``full`` is set."""

    full = False

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        if self.full:
            raise StoreError("state store: the disk is full")
        super()._write(*statements)


class House:
    """A control plane with the components that a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.context: zmq.Context[Any] = zmq.Context()
        self.finalised: list[dict[str, Any]] = []
        self.finalise_error: Exception | None = None
        self.fakes: list[FakeDetector | FakeWorker] = []
        self.endpoint = "tcp://127.0.0.1:0"
        self.open()

    def open(self) -> None:
        bus = Bus(self.endpoint, silent_after_seconds=1.0)
        self.endpoint = bus.endpoint
        self.store = FailingStore(self.folder / "state.sqlite")
        app = create_app(bus, Recorder(self.store), self.finalise)
        self.client = TestClient(app, raise_server_exceptions=False)
        self.client.__enter__()

    def shut(self) -> None:
        self.client.__exit__(None, None, None)

    def close(self) -> None:
        for fake in self.fakes:
            fake.close()
        self.shut()
        self.context.term()

    def finalise(self, output: Path, start: Any, accounts: Any) -> Summary:
        if self.finalise_error is not None:
            raise self.finalise_error
        output.mkdir(parents=True, exist_ok=True)
        self.finalised.append(dict(accounts))
        lost = dict(accounts["frames_lost"])
        acquired = accounts["frames_acquired"]
        quality = {"references": 4, "psnr": 20.0, "ssim": 0.5, "free_residual": 0.9, "frames": 20}
        ids = [known["config_id"] for known in accounts.get("configurations", [])]
        return Summary(acquired, acquired - sum(lost.values()), lost, 0, 4, dict.fromkeys(ids, quality))

    def detector(self, session: str = "") -> FakeDetector:
        fake = FakeDetector(self.context, self.endpoint, session)
        self.fakes.append(fake)
        eventually(lambda: fake.welcome, "the detector is registered")
        return fake

    def worker(self, name: str = "worker-1") -> FakeWorker:
        fake = FakeWorker(self.context, self.endpoint, name)
        self.fakes.append(fake)
        eventually(lambda: fake.welcome, "the worker is registered")
        return fake

    def remove(self, fake: FakeDetector | FakeWorker) -> None:
        self.fakes.remove(fake)
        fake.close()

    def start(self, **specification: Any) -> Response:
        return self.client.post(BASE, json={"output": str(self.output), **specification})

    def patch(self, what: str, body: Any) -> Response:
        return self.client.patch(f"{CURRENT}/{what}", json=body)

    def state(self) -> str:
        return self.client.get(CURRENT).json()["state"]

    def becomes(self, state: str) -> dict[str, Any]:
        eventually(lambda: self.state() == state, f"the session is {state}")
        return self.client.get(CURRENT).json()

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.client.get(f"{CURRENT}/events").json()]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    opened = House(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def running(house: House) -> tuple[House, FakeDetector, FakeWorker]:
    detector, worker = house.detector(), house.worker()
    answer = house.start()
    assert answer.status_code == 201, answer.text
    return house, detector, worker


def assert_problem(answer: Response, status: int, *words: str) -> None:
    """A problem of RFC 9457 with one clear line that has these words in it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert "\n" not in body["detail"]
    for word in words:
        assert word in body["detail"]


# ---- starting


def test_a_session_starts_and_says_where_it_is(house: House) -> None:
    detector, worker = house.detector(), house.worker()
    answer = house.start(camera={"frames": 50}, recovery={"method": "wiener"})
    assert answer.status_code == 201
    session = answer.json()
    assert answer.headers["location"] == f"{BASE}/{session['id']}"
    assert house.client.get(answer.headers["location"]).json() == session
    assert session["state"] == "running"
    assert session["shape"] == list(SHAPE)
    assert session["frames_expected"] == 50
    assert session["output"] == str(house.output)
    assert detector.commands[0][0] == "open"
    assert detector.commands[0][1]["session"] == session["id"]
    recovery = dict(worker.commands)["recovery"]
    assert recovery["recovery"]["method"] == "wiener"
    assert recovery["recovery_id"] == session["recovery"][0]["recovery_id"]


def test_workers_learn_where_the_data_come_from_whoever_was_first(house: House) -> None:
    early = house.worker("early")
    detector = house.detector()
    late = house.worker("late")
    attached = eventually(lambda: [a for v, a in early.commands if v == "attach"], "the early worker is told")
    endpoint = "tcp://127.0.0.1:1"
    assert attached == [{"data_endpoint": endpoint}]
    assert [answer.data_endpoint for answer in late.welcome] == [endpoint]
    assert detector.welcome


@pytest.mark.parametrize("missing", ["detector", "worker"])
def test_without_a_part_no_session_starts(house: House, missing: str) -> None:
    house.worker() if missing == "detector" else house.detector()
    assert_problem(house.start(), 503, f"no {missing} is registered")
    assert_problem(house.client.get(CURRENT), 404)


def test_one_session_at_a_time(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    assert_problem(house.start(), 409, "running", "stop it first")
    detector.finish()
    house.becomes("completed")
    assert house.start(output=str(house.folder / "second")).status_code == 201


def test_what_the_detector_finds_wrong_is_the_askers_mistake(house: House) -> None:
    detector, _ = house.detector(), house.worker()
    detector.refuse(ValueError("source.path: no such file: /nowhere.mrc"))
    answer = house.start()
    assert_problem(answer, 422, "source.path", "/nowhere.mrc")
    assert answer.json()["errors"] == [{"field": "source.path", "message": "no such file: /nowhere.mrc"}]
    assert_problem(house.client.get(CURRENT), 404)
    detector.answer = None
    assert house.start().status_code == 201


def test_a_detector_that_does_not_answer_is_told_to_stop(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "OPEN_SECONDS", 0.2)
    detector, _ = house.detector(), house.worker()
    answered = threading.Event()

    def slow(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert answered.wait(PATIENCE_SECONDS)
        return detector.obey(verb, arguments)

    detector.answer = slow
    assert_problem(house.start(), 504, "did not answer")
    assert house.state() == "failed"
    answered.set()
    eventually(lambda: [verb for verb, _ in detector.commands] == ["open", "stop"], "the detector is stopped")


def test_a_detector_that_fails_is_a_bad_gateway(house: House) -> None:
    detector, _ = house.detector(), house.worker()
    detector.refuse(RuntimeError("the sensor melted"))
    assert_problem(house.start(), 502, "the sensor melted")
    assert house.client.get(CURRENT).json()["error"] == "the sensor melted"


WRONG_SPECIFICATIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"mask": {"kind": "coded-aperture", "kernel_size": 65}}, ["mask.kernel_size", "from 1 to 64", "65"]),
    ({"mask": {"kind": "coded-aperture", "mask_count": 17}}, ["mask.mask_count", "allowed range 1 to 16"]),
    (
        {"mask": {"kind": "phase-plate", "compression_factor": 0.5}},
        ["mask.compression_factor", "from 1 to 100"],
    ),
    ({"mask": {"kind": "mirror"}}, ["mask.kind", "'mirror'", "coded-aperture", "phase-plate", "none"]),
    ({"mask": {}}, ["mask.kind", "is missing"]),
    ({"mask": {"kind": "none", "seed": 1}}, ["mask.seed", "there is no such field"]),
    ({"camera": {"rate": 0}}, ["camera.rate", "from 0.001 to 1e+06"]),
    ({"camera": {"frames": "many"}}, ["camera.frames", "a whole number from 1", "'many'"]),
    ({"source": {"kind": "pattern", "shape": [4, 128]}}, ["source.shape.0", "from 8 to 16384", "4"]),
    ({"source": {"kind": "file"}}, ["source.path", "is missing"]),
    ({"recovery": {"method": "magic"}}, ["recovery.method", "'dct'", "'magic'"]),
    ({"recovery": {"free_share": 0.6}}, ["recovery.free_share", "from 0 to 0.5"]),
    ({"link_mbit_per_s": -1}, ["link_mbit_per_s", "from 0.001 to 1e+06"]),
    ({"speed": 1}, ["speed", "there is no such field", "camera"]),
    (
        {"recovery": {"method": "dct", "parameters": {"magic": 1}}},
        ["parameters.magic", "there is no such field"],
    ),
    (
        {"recovery": {"method": "dct", "parameters": {"iterations": 0}}},
        ["parameters.iterations", "from 1 to"],
    ),
]


@pytest.mark.parametrize(("specification", "words"), WRONG_SPECIFICATIONS)
def test_wrong_values_are_named_with_what_is_allowed(
    house: House, specification: dict[str, Any], words: list[str]
) -> None:
    house.detector(), house.worker()
    answer = house.start(**specification)
    assert_problem(answer, 422, *words)
    assert answer.json()["errors"][0]["field"] in answer.json()["detail"]


def test_a_body_that_is_no_json_is_said_to_be_none(house: House) -> None:
    headers = {"content-type": "application/json"}
    assert_problem(house.client.post(BASE, content=b"{'a': 1}", headers=headers), 422, "not JSON")


# ---- pause, resume, stop


def test_pause_resume_stop(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    for command, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopping")):
        answer = house.client.post(f"{CURRENT}/{command}")
        assert answer.status_code == 200
        assert answer.json()["state"] == state
    assert [verb for verb, _ in detector.commands] == ["open", "pause", "resume", "stop"]
    detector.finish()
    assert house.becomes("completed")["finished_at"] is not None


@pytest.mark.parametrize(
    ("before", "command", "allowed"),
    [
        ([], "resume", "paused"),
        (["pause"], "pause", "running"),
        (["stop"], "pause", "running"),
        (["stop"], "resume", "paused"),
        (["stop"], "stop", "running or paused"),
    ],
)
def test_a_command_in_the_wrong_state_says_which_state_it_needs(
    running: tuple[House, FakeDetector, FakeWorker], before: list[str], command: str, allowed: str
) -> None:
    house, _, _ = running
    for earlier in before:
        assert house.client.post(f"{CURRENT}/{earlier}").status_code == 200
    assert_problem(house.client.post(f"{CURRENT}/{command}"), 409, f"only while it is {allowed}")


def test_no_change_after_the_end(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    detector.finish()
    house.becomes("completed")
    for command in ("pause", "resume", "stop"):
        assert_problem(house.client.post(f"{CURRENT}/{command}"), 409, "completed")
    assert_problem(house.patch("acquisition", {"compression_factor": 4}), 409, "completed")
    assert_problem(house.patch("recovery", {"method": "tv"}), 409, "completed")


def test_every_state_can_come_to_an_end_and_no_end_can_be_left() -> None:
    reachable = {State.CREATED}
    for _ in State:
        reachable |= {to for (before, _), to in TRANSITIONS.items() if before in reachable}
    assert reachable == set(State)
    for state in State:
        if state in OVER:
            assert not [trigger for before, trigger in TRANSITIONS if before is state]
            with pytest.raises(WrongState):
                after(state, Trigger.PAUSE)
        else:
            assert TRANSITIONS[state, Trigger.FAIL] is State.FAILED


# ---- acquisition


def test_a_bare_compression_factor_is_the_nearest_setting(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, _ = running
    before = house.client.get(f"{CURRENT}/acquisition").json()
    assert before["effective_from_frame"] == 0
    assert before["mask"] == {
        "kind": "coded-aperture",
        "kernel_size": 4,
        "mask_count": 8,
        "seed": 0,
        "tile": None,
    }
    answer = house.patch("acquisition", {"compression_factor": 3})
    assert answer.status_code == 200
    changed = answer.json()
    assert changed["mask"]["mask_count"] == 5
    assert changed["compression_factor"] == pytest.approx(3.2)
    assert changed["printed_compression_factor"] == pytest.approx(3.2)
    assert changed["effective_from_frame"] == 1
    assert changed["config_id"] == configuration(MaskSpec.model_validate(changed["mask"])).config_id
    assert house.client.get(f"{CURRENT}/acquisition").json() == changed
    assert house.client.get(CURRENT).json()["acquisition"] == [before, changed]


def test_another_kind_of_mask(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, _, _ = running
    mask = {"kind": "phase-plate", "pattern": "annular", "compression_factor": 2.5}
    changed = house.patch("acquisition", {"mask": mask}).json()
    assert changed["mask"]["pattern"] == "annular"
    assert house.patch("acquisition", {"compression_factor": 4}).json()["mask"]["compression_factor"] == 4
    assert house.patch("acquisition", {"mask": {"kind": "none"}}).json()["compression_factor"] == 1


@pytest.mark.parametrize(
    ("body", "mask_count"),
    [
        ({"compression_factor": 4, "mask": {"kind": "coded-aperture", "kernel_size": 8}}, 16),
        ({"compression_factor": 4, "mask": {"kind": "coded-aperture", "mask_count": 4}}, 4),
    ],
)
def test_mask_and_factor_together_if_they_agree(
    running: tuple[House, FakeDetector, FakeWorker], body: dict[str, Any], mask_count: int
) -> None:
    house, _, _ = running
    assert house.patch("acquisition", body).json()["mask"]["mask_count"] == mask_count


WRONG_ACQUISITIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["nothing to change", "compression_factor", "mask"]),
    ({"compression_factor": None}, ["nothing to change"]),
    ({"compression_factor": 0.9}, ["compression_factor", "from 1 to"]),
    ({"compression_factor": 17}, ["compression_factor", "allowed range 1 to 16"]),
    ({"compression_factor": "big"}, ["compression_factor", "'big'"]),
    ({"compression": 4}, ["compression", "there is no such field"]),
    ({"mask": {"kind": "coded-aperture", "mask_count": 0}}, ["mask.mask_count", "from 1 to 4096"]),
    ({"mask": {"kind": "none"}, "compression_factor": 2}, ["compression_factor", "allowed range 1 to 1"]),
    (
        {"mask": {"kind": "coded-aperture", "mask_count": 8}, "compression_factor": 4},
        ["compression_factor", "4 contradicts mask.mask_count 8"],
    ),
    (
        {"mask": {"kind": "phase-plate", "compression_factor": 3}, "compression_factor": 4},
        ["4 contradicts mask.compression_factor 3"],
    ),
]


@pytest.mark.parametrize(("body", "words"), WRONG_ACQUISITIONS)
def test_a_wrong_acquisition_changes_nothing(
    running: tuple[House, FakeDetector, FakeWorker], body: dict[str, Any], words: list[str]
) -> None:
    house, detector, _ = running
    assert_problem(house.patch("acquisition", body), 422, *words)
    assert [verb for verb, _ in detector.commands] == ["open"]
    assert len(house.client.get(CURRENT).json()["acquisition"]) == 1


def test_a_mask_that_does_not_fit_the_frames_is_refused_by_the_detector(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, _ = running
    answer = house.patch("acquisition", {"mask": {"kind": "coded-aperture", "kernel_size": 64}})
    assert_problem(answer, 422, "64", "16")


def test_changes_in_quick_succession_each_have_their_own_first_frame(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, _ = running
    factors = [1, 2, 4, 8, 16, 1, 2, 4, 8, 16]
    answers: dict[int, Any] = {}
    together = threading.Barrier(len(factors))

    def change(k: int) -> None:
        together.wait()
        answers[k] = house.patch("acquisition", {"compression_factor": factors[k]}).json()

    threads = [threading.Thread(target=change, args=(k,)) for k in range(len(factors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[k]["compression_factor"] == factors[k] for k in range(len(factors)))
    firsts = [answer["effective_from_frame"] for answer in answers.values()]
    assert sorted(firsts) == list(range(1, len(factors) + 1))
    history = house.client.get(CURRENT).json()["acquisition"]
    assert [setting["effective_from_frame"] for setting in history] == list(range(len(factors) + 1))
    assert [setting["config_id"] for setting in history[1:]] == [
        answer["config_id"] for answer in sorted(answers.values(), key=lambda a: a["effective_from_frame"])
    ]


# ---- recovery


def test_recovery_is_changed_at_every_worker(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, _, first = running
    second = house.worker("worker-2")
    before = house.client.get(f"{CURRENT}/recovery").json()
    assert before["method"] == "dct"
    answer = house.patch("recovery", {"method": "wavelet", "parameters": {"iterations": 7}})
    assert answer.status_code == 200
    changed = answer.json()
    assert changed["recovery_id"] != before["recovery_id"]
    assert changed["free_share"] == before["free_share"]
    assert [(worker["name"], worker["taken"]) for worker in changed["workers"]] == [
        ("worker-1", True),
        ("worker-2", True),
    ]
    for worker in (first, second):
        verb, arguments = worker.commands[-1]
        assert verb == "recovery"
        assert arguments["recovery_id"] == changed["recovery_id"]
        assert arguments["recovery"] == {
            "method": "wavelet",
            "parameters": {"iterations": 7},
            "free_share": before["free_share"],
        }


def test_parameters_are_merged_and_null_puts_one_back(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, _ = running
    house.patch("recovery", {"parameters": {"iterations": 7, "data_weight": 1.0}})
    assert house.patch("recovery", {"free_share": 0}).json()["parameters"] == {
        "iterations": 7,
        "data_weight": 1.0,
    }
    merged = house.patch("recovery", {"parameters": {"iterations": None, "data_weight": 0.5}}).json()
    assert (merged["method"], merged["parameters"], merged["free_share"]) == ("dct", {"data_weight": 0.5}, 0)
    assert house.patch("recovery", {"method": "tv"}).json()["parameters"] == {}


def test_the_same_recovery_has_the_same_id(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, _, _ = running
    first = house.client.get(f"{CURRENT}/recovery").json()["recovery_id"]
    assert house.patch("recovery", {"method": "tv"}).json()["recovery_id"] != first
    assert house.patch("recovery", {"method": "dct"}).json()["recovery_id"] == first


def test_a_worker_that_refuses_is_named(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, _, worker = running
    worker.refuse(ValueError("no memory for that"))
    (answer,) = house.patch("recovery", {"method": "tv"}).json()["workers"]
    assert answer == {"name": "worker-1", "taken": False, "error": "no memory for that"}


def test_a_late_worker_is_told_how_to_recover(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, _, _ = running
    changed = house.patch("recovery", {"method": "tv"}).json()
    late = house.worker("late")
    assert late.welcome[0].recovery["method"] == "tv"
    assert late.welcome[0].recovery["recovery_id"] == changed["recovery_id"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["nothing to change"]),
        ({"method": "magic"}, ["method", "'dct'"]),
        ({"free_share": 0.7}, ["free_share", "from 0 to 0.5"]),
        ({"parameters": {"magic": 1}}, ["parameters.magic", "there is no such field"]),
        ({"parameters": {"data_weight": 2}}, ["parameters.data_weight", "from 0 to 1"]),
        ({"parameters": [1]}, ["parameters"]),
    ],
)
def test_a_wrong_recovery_changes_nothing(
    running: tuple[House, FakeDetector, FakeWorker], body: dict[str, Any], words: list[str]
) -> None:
    house, _, worker = running
    assert_problem(house.patch("recovery", body), 422, *words)
    assert len([verb for verb, _ in worker.commands if verb == "recovery"]) == 1


# ---- metrics


def _events(house: House) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for event in house.client.get(f"{CURRENT}/events").json():
        told.setdefault(event["kind"], []).append(event["message"])
    return told


def test_a_learned_prior_is_told_with_what_it_was_trained_on_and_where_frames_are_otherwise(
    running: tuple[House, FakeDetector, FakeWorker], tmp_path: Path
) -> None:
    house, _, worker = running
    for name, sizes in (("fits", (1.0, 2.0)), ("coarse", (3.0, 4.0))):
        (tmp_path / name).mkdir()
        known = card(name=name, side_pixels=SHAPE[0], pixel_size_angstrom=sizes)
        (tmp_path / name / "card.json").write_text(known.model_dump_json())
    fits = {"prior": str(tmp_path / "fits")}
    answer = house.patch("recovery", {"method": "diffusion", "parameters": fits})
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"] == fits
    assert dict(worker.commands)["recovery"]["recovery"]["parameters"] == fits
    assert _events(house)["prior"] == ["learned prior fits: trained on nothing: random weights"]
    assert "prior_doubtful" not in _events(house)
    house.patch("recovery", {"parameters": {"samples": 2}})
    assert len(_events(house)["prior"]) == 1  # it is the same one
    house.patch("recovery", {"parameters": {"prior": str(tmp_path / "coarse")}})
    assert _events(house)["prior"][1:] == ["learned prior coarse: trained on nothing: random weights"]
    (doubt,) = _events(house)["prior_doubtful"]
    assert "at 1.5 Å a pixel (it knows 3 to 4)" in doubt


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"prior": "never-heard-of"}, ["parameters.prior", "'never-heard-of' is not known"]),
        ({"prior": "/nowhere/at/all"}, ["parameters.prior", "there is no prior"]),
        ({"prior": ""}, ["parameters.prior"]),
        ({"prior": 7}, ["parameters.prior"]),
        ({"evaluations": 0}, ["parameters.evaluations"]),
        ({"magic": 1}, ["parameters.magic"]),
    ],
)
def test_a_learned_prior_that_is_not_there_is_refused_and_no_worker_is_told(
    running: tuple[House, FakeDetector, FakeWorker], parameters: dict[str, Any], words: list[str]
) -> None:
    house, _, worker = running
    body = {"method": "diffusion", "parameters": parameters}
    assert_problem(house.patch("recovery", body), 422, *words)
    assert len([verb for verb, _ in worker.commands if verb == "recovery"]) == 1


def test_metrics_are_what_the_detector_and_the_workers_counted(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, worker = running
    config_id = house.client.get(f"{CURRENT}/acquisition").json()["config_id"]
    detector.tell(
        frames_acquired=100,
        frames_acknowledged=60,
        frames_in_flight=37,
        frames_lost={"not finite": 2, "torn": 1},
        bytes_raw=25600,
        bytes_wire=12800,
        bytes_raw_lossless_estimate=19200,
        latency_p50_seconds=0.1,
        latency_p99_seconds=0.4,
        idle_seconds=1.5,
        blocks_redelivered=3,
        bad_files=1,
    )
    worker.counters = {
        "frames_recovered": 60,
        "recovery_seconds": 2.0,
        "busy_share": 0.5,
        "evaluations": 14,
        "frames_per_s_possible": 2.5,
        "frames_per_s_asked": 3.5,
        "quality": {
            config_id: {
                "frames": 4.0,
                "psnr_sum": 80.0,
                "ssim_sum": 2.0,
                "frc_resolution_angstrom_sum": 40.0,
                "lpips_frames": 2.0,
                "lpips_sum": 0.5,
                "free_frames": 60.0,
                "free_residual_sum": 54.0,
                "learned_frames": 20.0,
                "prior_shift_sum": 5.0,
            }
        },
    }
    figures = eventually(
        lambda: (m := house.client.get(f"{CURRENT}/metrics").json())["quality"]["references"] and m, "counted"
    )
    assert figures["frames"] == {
        "acquired": 100,
        "acknowledged": 60,
        "in_flight": 37,
        "queued": 0,
        "spooled": 0,
        "lost": 3,
        "lost_by_reason": {"not finite": 2, "torn": 1},
    }
    assert figures["bytes"] == {"raw": 25600, "wire": 12800, "raw_lossless": 19200}
    assert (figures["throughput_gain"], figures["gain_over_lossless"]) == (2.0, 1.5)
    assert figures["latency"] == {"p50_seconds": 0.1, "p99_seconds": 0.4}
    assert (figures["idle_seconds"], figures["blocks_redelivered"], figures["bad_files"]) == (1.5, 3, 1)
    quality = {
        "references": 4,
        "psnr": 20.0,
        "ssim": 0.5,
        "lpips": 0.25,
        "frc_resolution_angstrom": 10.0,
        "free_residual": pytest.approx(0.9),
        "learned_frames": 20,
        "prior_shift": 0.25,
    }
    assert figures["quality"] == quality
    (known,) = figures["configurations"]
    assert (known["config_id"], known["compression_factor"], known["quality"]) == (config_id, 2.0, quality)
    assert figures["recovery_seconds"] == 2.0
    (seen,) = figures["workers"]
    pace = (seen["evaluations"], seen["frames_per_s_possible"], seen["frames_per_s_asked"])
    assert pace == (14, 2.5, 3.5)
    assert (seen["name"], seen["present"], seen["device"], seen["busy_share"]) == (
        "worker-1",
        True,
        "cpu",
        0.5,
    )


def test_metrics_of_the_first_moment_are_zeros_not_errors(house: House) -> None:
    detector, _ = house.detector(), house.worker()
    detector.tell = lambda **counters: None  # type: ignore[method-assign]
    house.start()
    figures = house.client.get(f"{CURRENT}/metrics").json()
    assert figures["frames"]["acquired"] == 0
    assert figures["throughput_gain"] is None


def test_counts_of_a_worker_that_died_stay_in_the_sum(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, worker = running
    worker.counters = {"recovery_seconds": 3.0}

    def total() -> float:
        return house.client.get(f"{CURRENT}/metrics").json()["recovery_seconds"]

    eventually(lambda: total() == 3.0, "counted")
    house.remove(worker)
    again = house.worker()
    again.counters = {"recovery_seconds": 0.5}
    eventually(lambda: total() == 3.5, "the sum goes on")
    (seen,) = house.client.get(f"{CURRENT}/metrics").json()["workers"]
    assert seen["present"]


def test_counts_of_a_session_before_are_not_in_the_sum(house: House) -> None:
    house.detector()
    worker = house.worker()
    worker.counters = {"recovery_seconds": 3.0}
    eventually(
        lambda: house.client.app.state.bus.workers[0].telemetry.get("recovery_seconds") == 3.0,  # type: ignore[attr-defined]
        "the worker counted before the session",
    )
    house.start()
    worker.counters = {"recovery_seconds": 3.25}
    eventually(
        lambda: house.client.get(f"{CURRENT}/metrics").json()["recovery_seconds"] == 0.25,
        "only the session's",
    )


def test_a_tally_adds_processes_and_takes_off_what_was_before() -> None:
    tally = Tally()
    tally.begin("a", {"n": 5, "by": {"x": 1}})
    tally.update("a", {"n": 7, "by": {"x": 1, "y": 2}})
    tally.update("b", {"n": 1, "by": {"y": 3}})
    tally.update("b", {"n": 4, "by": {"y": 3}})
    assert tally.total() == {"n": 6, "by": {"x": 0, "y": 5}}
    assert Tally.model_validate_json(tally.model_dump_json()).total() == tally.total()


def test_history_has_a_point_per_telemetry(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    detector.tell(frames_acquired=10, bytes_raw=100, bytes_wire=50)
    points = eventually(
        lambda: [
            p for p in house.client.get(f"{CURRENT}/metrics/history").json() if p["frames"]["acquired"] == 10
        ],
        "the history has it",
    )
    assert points[0]["bytes"]["wire"] == 50
    assert len(house.client.get(f"{CURRENT}/metrics/history", params={"limit": 1}).json()) == 1
    assert_problem(
        house.client.get(f"{CURRENT}/metrics/history", params={"limit": 0}), 422, "limit", "from 1 to 3600"
    )


# ---- the end


def test_a_finished_series_becomes_results_and_an_account(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    house.patch("acquisition", {"compression_factor": 4})
    house.patch("recovery", {"method": "wiener"})
    detector.finish(20, {"not finite": 2})
    session = house.becomes("completed")
    assert house.finalised[0]["frames_acquired"] == 20
    account = json.loads((house.output / "session.json").read_text())
    assert account["session"] == session["id"]
    assert account["state"] == "completed"
    assert account["error"] is None
    frames = account["frames"]
    assert (frames["acquired"], frames["recovered"], frames["lost"]) == (20, 18, 2)
    assert frames["lost_by_reason"] == {"not finite": 2}
    assert account["bytes"] == {"raw": 5120, "wire": 2560, "raw_lossless": 3840}
    assert (account["throughput_gain"], account["gain_over_lossless"]) == (2.0, 1.5)
    assert account["elapsed_seconds"] > 0
    assert [known["compression_factor"] for known in account["configurations"]] == [2.0, 4.0]
    assert [known["first_frame"] for known in account["configurations"]] == [0, 1]
    assert account["configurations"][0]["quality"]["psnr"] == 20.0
    assert account["quality"]["psnr"] == 20.0
    assert [setting["mask"]["mask_count"] for setting in account["acquisition"]] == [8, 4]
    assert [setting["method"] for setting in account["recovery"]] == ["dct", "wiener"]
    figures = house.client.get(f"{CURRENT}/metrics").json()
    assert figures["frames"]["lost"] == 2
    assert figures["quality"]["psnr"] == 20.0
    assert not list(house.output.glob(".*"))


def test_a_series_shorter_than_the_answer_to_open_still_ends(house: House) -> None:
    detector, _ = house.detector(), house.worker()

    def at_once(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        opened = detector.obey(verb, arguments)
        detector.finish()
        return opened

    detector.answer = at_once
    assert house.start().status_code == 201
    detector.answer = None
    house.becomes("completed")
    assert len(house.finalised) == 1


def test_results_that_cannot_be_written_fail_the_session_in_one_line(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    house.finalise_error = OSError(28, "No space left on device")
    detector.finish()
    session = house.becomes("failed")
    assert "No space left on device" in session["error"]
    assert house.client.get("/healthz").status_code == 200


def test_a_series_that_fails_still_has_its_results(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    detector.tell(
        state="failed", error="acquisition failed: the file was truncated", frames_acquired=5,
        frames_acknowledged=5, frames_lost={},
    )  # fmt: skip
    session = house.becomes("failed")
    assert "truncated" in session["error"]
    account = json.loads((house.output / "session.json").read_text())
    assert (account["state"], account["frames"]["recovered"]) == ("failed", 5)


def test_a_detector_started_anew_ends_the_session_and_counts_what_is_lost(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    detector.tell(frames_acquired=30, frames_acknowledged=12, frames_in_flight=18, frames_lost={})
    eventually(lambda: house.client.get(f"{CURRENT}/metrics").json()["frames"]["acquired"] == 30, "counted")
    house.remove(detector)
    house.detector()
    session = house.becomes("failed")
    assert "started anew" in session["error"]
    frames = json.loads((house.output / "session.json").read_text())["frames"]
    assert (frames["acquired"], frames["lost"]) == (30, 30)  # no journal: nothing is on disk
    assert house.start(output=str(house.folder / "next")).status_code == 201


def test_a_detector_started_anew_that_knows_the_session_is_taken_up_again(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    detector.tell(frames_acquired=30, frames_acknowledged=12, frames_in_flight=18, frames_lost={})
    eventually(lambda: house.client.get(f"{CURRENT}/metrics").json()["frames"]["acquired"] == 30, "counted")
    house.remove(detector)
    session = house.client.get(CURRENT).json()["id"]
    successor = house.detector(session)
    successor.tell(session=session, state="paused", frames_acquired=30, frames_acknowledged=12,
                   frames_in_flight=0, frames_spooled=18, frames_lost={})  # fmt: skip
    assert house.becomes("paused")["error"] is None
    assert house.client.get(f"{CURRENT}/metrics").json()["frames"]["spooled"] == 18
    assert "resumed" in [event["kind"] for event in house.client.get(f"{CURRENT}/events").json()]
    assert house.client.post(f"{CURRENT}/resume").status_code == 200  # by its new identity
    successor.tell(frames_spooled=0)
    successor.finish(40)
    house.becomes("completed")
    accounts = json.loads((house.output / "session.json").read_text())["accounts"]
    assert accounts == {
        "acquired": 40, "acknowledged": 40, "in_flight": 0, "spooled": 0, "lost": {}, "unaccounted": 0,
    }  # fmt: skip


def test_a_detector_and_the_control_plane_started_anew_find_each_other(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    session = house.client.get(CURRENT).json()["id"]
    house.shut()
    house.remove(detector)
    house.open()
    successor = house.detector(session)
    successor.tell(session=session, state="acquiring", frames_acquired=5, frames_acknowledged=5)
    house.becomes("running")
    successor.finish(7)
    house.becomes("completed")


def test_a_detector_that_comes_back_after_the_session_has_ended_gives_it_up(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    session = house.client.get(CURRENT).json()["id"]
    house.remove(detector)
    eventually(lambda: not house.client.get("/readyz").json()["detector"], "the detector is missed")
    assert house.client.post(f"{CURRENT}/stop").status_code == 200
    house.becomes("failed")
    successor = house.detector(session)
    eventually(lambda: successor.commands, "it is told")
    ((verb, arguments),) = successor.commands
    assert (verb, arguments["session"]) == ("abandon", session)
    unknown = house.detector("20200101-000000-ffffff")
    unknown.tell(state="acquiring")
    eventually(lambda: house.client.get("/readyz").json()["detector"], "it is there")
    assert unknown.commands == []


def test_accounts_that_do_not_add_up_fail_the_session(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    detector.tell(state="finished", frames_acquired=20, frames_acknowledged=19, frames_lost={})
    assert "1 frames are unaccounted for" in house.becomes("failed")["error"]


def test_a_spool_that_fails_is_told_by_readiness(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    detector.tell(spool_error="No space left on device")
    ready = eventually(
        lambda: (answer := house.client.get("/readyz").json())["status"] == "degraded" and answer, "told"
    )
    assert "No space left on device" in ready["detail"]


def test_stopping_without_the_detector_ends_the_session(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    house.remove(detector)
    eventually(lambda: not house.client.get("/readyz").json()["detector"], "the detector is missed")
    assert_problem(house.client.post(f"{CURRENT}/pause"), 503, "not heard")
    assert_problem(house.patch("acquisition", {"compression_factor": 4}), 503)
    assert house.client.post(f"{CURRENT}/stop").status_code == 200
    assert "gone" in house.becomes("failed")["error"]


# ---- history and liveness


def test_events_can_be_followed(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    detector.client.event("bad_file", "torn.mrc: truncated", path="torn.mrc")
    bad = eventually(
        lambda: [e for e in house.client.get(f"{CURRENT}/events").json() if e["kind"] == "bad_file"], "told"
    )[0]
    assert (bad["component"], bad["message"], bad["details"]) == (
        "detector",
        "torn.mrc: truncated",
        {"path": "torn.mrc"},
    )
    later = house.client.get(f"{CURRENT}/events", params={"after": bad["number"]}).json()
    assert all(event["number"] > bad["number"] for event in later)
    assert len(house.client.get(f"{CURRENT}/events", params={"limit": 1}).json()) == 1


def test_a_silent_worker_is_noticed_and_welcomed_back(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, worker = running
    house.remove(worker)
    eventually(lambda: "silent" in house.kinds(), "the worker is missed")
    assert house.client.get("/readyz").json()["workers"] == 0
    assert_problem(house.patch("recovery", {"method": "tv"}), 503, "no worker")
    house.worker()
    assert house.kinds()[-1] == "registered"


def test_a_worker_that_says_goodbye_is_not_missed(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, worker = running
    house.worker("worker-2")
    worker.client.leave()
    house.remove(worker)
    eventually(lambda: house.client.get("/readyz").json()["workers"] == 1, "the worker has left")
    workers = house.client.get(f"{CURRENT}/metrics").json()["workers"]
    assert [known["name"] for known in workers] == ["worker-2"]
    targets = house.client.get("/metrics/targets").json()
    assert "worker-1" not in {target["labels"]["name"] for target in targets}
    assert "silent" not in house.kinds()


def test_readiness_says_what_is_missing(house: House) -> None:
    assert house.client.get("/healthz").json()["status"] == "alive"
    answer = house.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "not ready"
    assert answer.json()["detail"] == "no detector is registered; no worker is registered"
    house.detector(), house.worker()
    answer = house.client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "detector": True, "workers": 1, "store": "ok", "detail": ""}


def test_a_failing_store_costs_readiness_never_the_session(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    house.store.full = True
    detector.tell(frames_acquired=5)
    eventually(lambda: house.client.get("/readyz").json()["status"] == "degraded", "the failure is noticed")
    ready = house.client.get("/readyz")
    assert ready.status_code == 200
    assert "disk is full" in ready.json()["detail"]
    assert house.patch("acquisition", {"compression_factor": 4}).status_code == 200
    house.store.full = False
    eventually(lambda: house.client.get("/readyz").json()["status"] == "ready", "writes are tried again")
    session = house.client.get(CURRENT).json()
    eventually(
        lambda: len(house.store.configurations(session["id"])) == 2, "what waited is written, in order"
    )
    detector.finish()
    house.becomes("completed")


# ---- after a restart of the control plane


def restart(house: House) -> None:
    house.shut()
    house.open()


def test_a_running_session_is_taken_up_again(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    house.patch("acquisition", {"compression_factor": 4})
    before = house.client.get(CURRENT).json()
    house.shut()
    detector.counters["state"] = "paused"  # what happened while nobody listened
    house.open()
    session = house.becomes("paused")
    assert {**session, "state": "running"} == before
    eventually(lambda: house.client.get("/readyz").json()["status"] == "ready", "everyone registers again")
    assert house.client.post(f"{CURRENT}/resume").status_code == 200
    assert house.patch("acquisition", {"compression_factor": 8}).json()["mask"]["mask_count"] == 2
    detector.finish()
    house.becomes("completed")
    kinds = house.kinds()
    assert kinds.index("started") < kinds.index("completed")


def test_a_running_session_that_the_store_has_lost_is_taken_up_from_the_detector(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    house.patch("acquisition", {"compression_factor": 4})
    before = house.client.get(CURRENT).json()
    house.shut()
    for path in house.folder.glob("state.sqlite*"):
        path.unlink()
    house.open()
    eventually(lambda: house.client.get(CURRENT).status_code == 200, "the session is found again")
    session = house.client.get(CURRENT).json()
    for same in ("id", "state", "output", "shape", "frames_expected", "acquisition"):
        assert session[same] == before[same], same
    assert session["recovery"][0]["recovery_id"] == before["recovery"][0]["recovery_id"]
    assert house.kinds()[0] == "adopted"
    eventually(lambda: house.client.get("/readyz").json()["status"] == "ready", "everyone registers again")
    assert house.patch("acquisition", {"compression_factor": 8}).json()["mask"]["mask_count"] == 2
    assert house.client.post(f"{CURRENT}/stop").status_code == 200
    detector.finish()
    house.becomes("completed")
    account = json.loads((house.output / "session.json").read_text())
    assert (account["session"], account["frames"]["recovered"]) == (before["id"], 20)
    assert [known["id"] for known in house.client.get(BASE).json()] == [before["id"]]


def test_a_session_that_finished_meanwhile_is_finalised(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    house.shut()
    detector.finish()
    house.open()
    house.becomes("completed")
    assert len(house.finalised) == 1


def test_a_session_whose_detector_was_replaced_meanwhile_fails(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, detector, _ = running
    detector.tell(frames_acquired=3, frames_lost={})
    eventually(lambda: house.client.get(f"{CURRENT}/metrics").json()["frames"]["acquired"] == 3, "counted")
    house.shut()
    house.remove(detector)
    house.open()
    house.detector()
    assert "started anew" in house.becomes("failed")["error"]


def test_a_session_that_was_being_opened_fails(house: House) -> None:
    house.detector(), house.worker()
    house.start()
    session = house.client.app.state.sessions.active  # type: ignore[attr-defined]
    opening = session.model_copy(update={"state": State.CREATED}).record()
    house.shut()
    EmbeddedStore(house.folder / "state.sqlite").save_session(opening)
    house.open()
    assert "while the session was being opened" in house.becomes("failed")["error"]


def test_sessions_before_are_still_known(running: tuple[House, FakeDetector, FakeWorker]) -> None:
    house, detector, _ = running
    detector.finish()
    first = house.becomes("completed")
    house.start(output=str(house.folder / "second"))
    restart(house)
    detector.finish()
    second = house.becomes("completed")
    assert [session["id"] for session in house.client.get(BASE).json()] == [first["id"], second["id"]]
    assert house.client.get(f"{BASE}/{first['id']}").json() == first
    assert house.client.get(f"{BASE}/{first['id']}/metrics").json()["frames"]["acquired"] == 20
    kinds = [event["kind"] for event in house.client.get(f"{BASE}/{first['id']}/events").json()]
    assert "completed" in kinds
    assert_problem(house.client.post(f"{BASE}/{first['id']}/pause"), 409, "completed")


def test_a_broken_store_is_told_not_raised(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: str) -> SessionRecord | None:
        raise StoreError("state store: gone")

    monkeypatch.setattr(house.store, "session", broken)
    assert_problem(house.client.get(f"{BASE}/other"), 503, "gone")


# ---- what is not there


@pytest.mark.parametrize("name", ["current", "20260101-000000-abcdef"])
@pytest.mark.parametrize(
    "path",
    [
        "",
        "/acquisition",
        "/recovery",
        "/metrics",
        "/metrics/history",
        "/events",
        "/frames/0",
        "/frames/0/preview.png",
    ],
)
def test_an_unknown_session_is_not_found(house: House, name: str, path: str) -> None:
    assert_problem(house.client.get(f"{BASE}/{name}{path}"), 404, "there is no session")


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_an_unknown_session_cannot_be_steered(house: House, command: str) -> None:
    assert_problem(house.client.post(f"{CURRENT}/{command}"), 404)
    assert_problem(house.patch("acquisition", {"compression_factor": 2}), 404)
    assert_problem(house.patch("recovery", {"method": "tv"}), 404)


def test_unknown_paths_and_methods_are_problems_too(house: House) -> None:
    assert_problem(house.client.get("/api/v1/nothing"), 404)
    answer = house.client.delete(BASE)
    assert_problem(answer, 405)
    assert "allow" in answer.headers


def test_a_bug_is_a_problem_without_a_traceback(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Any]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(house.client.app.state.sessions, "all", broken)  # type: ignore[attr-defined]
    answer = house.client.get(BASE)
    assert_problem(answer, 500)
    assert "secret" not in answer.text


def test_commands_that_time_out_or_fail_say_so(
    running: tuple[House, FakeDetector, FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, detector, _ = running
    detector.refuse(Conflict("the series took its last frame meanwhile"))
    assert_problem(house.patch("acquisition", {"compression_factor": 4}), 409, "last frame")
    detector.refuse(RuntimeError("out of memory"))
    assert_problem(house.patch("acquisition", {"compression_factor": 4}), 502, "out of memory")
    detector.refuse(ValueError("kernel_size: larger than the frame"))
    assert_problem(house.patch("acquisition", {"compression_factor": 4}), 422, "kernel_size")
    monkeypatch.setattr(sessions_module, "COMMAND_SECONDS", 0.1)
    answered = threading.Event()
    detector.answer = lambda verb, arguments: {"waited": answered.wait(PATIENCE_SECONDS)}
    assert_problem(house.client.post(f"{CURRENT}/pause"), 504, "'pause'", "0.1 s")
    answered.set()


# ---- pictures


def test_a_frame_that_is_not_recovered_has_no_picture(
    running: tuple[House, FakeDetector, FakeWorker],
) -> None:
    house, _, _ = running
    path = f"{CURRENT}/frames/7/preview.png"
    for view in ("reference", "measurement", "recovered", "residual"):
        assert_problem(house.client.get(path, params={"view": view}), 404, "frame 7 is not recovered")
    assert_problem(house.client.get(path, params={"view": "xray"}), 422, "view", "'reference'")
    assert_problem(house.client.get(path, params={"size": 1}), 422, "size", "from 16 to 4096")
    assert_problem(house.client.get(path, params={"low": -1}), 422, "low", "from 0 to 100")
    assert_problem(house.client.get(path, params={"low": 60, "high": 60}), 422, "low", "below high")
    assert_problem(house.client.get(path, params={"scale": "best"}), 422, "scale", "'reference'")
    assert_problem(house.client.get(f"{CURRENT}/frames/-1/preview.png"), 422, "frame_id", "from 0 to")
    assert_problem(house.client.get(f"{CURRENT}/frames/first/preview.png"), 422, "frame_id", "'first'")


def test_what_is_beyond_the_range_is_black_or_white() -> None:
    values = np.linspace(0, 100, 10_000, dtype=np.float32).reshape(100, 100)
    values[0, 0], values[-1, -1] = -1e9, 1e9  # a dead and a hot pixel
    grey = np.asarray(Image.open(io.BytesIO(png(values, None, (0.0, 100.0)))))
    assert grey.dtype == np.uint8
    assert grey.shape == (100, 100)
    assert (grey.min(), grey.max()) == (0, 255)
    assert abs(int(grey[50, 0]) - 127) <= 2


def test_a_constant_picture_is_grey() -> None:
    assert set(Image.open(io.BytesIO(png(np.full((8, 8), 3.0), None, (3.0, 3.0)))).tobytes()) == {127}


@pytest.mark.parametrize(("size", "sides"), [(None, (40, 20)), (20, (20, 10)), (80, (80, 40))])
def test_the_longer_side_is_as_asked(size: int | None, sides: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=(20, 40))
    picture = Image.open(io.BytesIO(png(values, size, (-2.0, 2.0))))
    assert (picture.width, picture.height) == sides


# ---- the document


def test_the_interface_changes_only_with_its_version() -> None:
    snapshot = json.loads(SNAPSHOT.read_text())
    document = routed().openapi()
    if document != snapshot:
        assert snapshot["info"]["version"] != API_VERSION, (
            "the interface is not that of docs/openapi.json: raise API_VERSION, "
            "then run  python -m services.control_plane.document"
        )
        pytest.fail("docs/openapi.json is of another version: run  python -m services.control_plane.document")


def test_every_route_documents_its_errors() -> None:
    document = routed().openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answers = operation["responses"]
            if "{session_id}" in path:
                assert "404" in answers, (method, path)
            if path != "/healthz":
                assert {"401", "403"} <= set(answers), (method, path)
            if "requestBody" in operation and "sign-in" not in path:
                assert {"409", "422", "503"} <= set(answers), (method, path)
            for status, answer in answers.items():
                if status.startswith(("4", "5")) and path.startswith("/api"):
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]
