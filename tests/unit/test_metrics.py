"""Metrics as they are defined, and as each process fills them."""

from __future__ import annotations

import re
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from urllib.error import HTTPError

import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from common import metrics
from common.exposition import Exposition, registry_of
from common.gpu import Gpu
from common.protection import NotProtected
from common.session import RecoverySpec
from common.tokens import Tokens
from common.wire.messages import Ack, ArrayHeader, ConfigurationNotice, Frames, Hello, Start
from detector_sim.detector import Detector
from detector_sim.latency import LatencyHistogram
from detector_sim.ledger import Ledger, Totals
from detector_sim.metrics import Figures, families
from detector_sim.series import SeriesTotals, State
from reconstructor.metrics import Measured
from reconstructor.recovery import METHODS
from reconstructor.writer import Learned, Results
from services.control_plane.requests import RequestTimes, TimedRequests
from services.control_plane.states import State as SessionState

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(text: str) -> Samples:
    """Every sample of an exposition by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def samples(found: Any) -> Samples:
    """Every sample of some families, by way of the text that Prometheus reads."""
    found = list(found)
    return scraped(generate_latest(registry_of(lambda: found)).decode())


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


# ---- definitions


def test_names_say_kind_and_unit_and_labels_are_bounded() -> None:
    for metric in metrics.ALL.values():
        assert metric.name.startswith("cryoflux_"), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name
        assert not {"session", "frame", "series", "path", "file", "pid"} & set(metric.labels), metric.name
        given_by_the_scrape = {"job", "instance", "component", "name"}
        assert not given_by_the_scrape & set(metric.labels), metric.name
        assert (metric.kind == "histogram") or not metric.bounds, metric.name
        assert not re.search(r"_(ms|milliseconds|kb|mb|mbit|bits|percent)(_|$)", metric.name), metric.name
        assert list(metric.bounds) == sorted(set(metric.bounds)), metric.name


def test_known_label_values_are_those_of_the_code() -> None:
    assert set(metrics.ACQUISITION_STATES) == set(get_args(State))
    assert set(metrics.SESSION_STATES) == {state.value for state in SessionState}
    assert set(metrics.METHODS) == set(METHODS)
    assert set(metrics.METHODS) == set(get_args(RecoverySpec.model_fields["method"].annotation))


def test_every_kind_of_event_that_is_told_has_a_label() -> None:
    root = Path(__file__).parents[2]
    told = set[str]()
    for folder in ("detector_sim", "reconstructor", "services"):
        for path in (root / folder).rglob("*.py"):
            told |= set(
                re.findall(
                    r'(?:self\._event|control\.event|self\._note)\(\s*(?:session, )?"(\w+)"', path.read_text()
                )
            )
    assert {"started", "worker_joined", "failed", "bad_file"} <= told  # the pattern finds them
    assert told <= set(metrics.EVENT_KINDS)


def test_labels_are_initialised_and_strangers_are_other() -> None:
    counts = metrics.by_known({"b": 2, "never heard of": 3, "nor of this": 4}, ("a", "b"))
    assert counts == {("a",): 0, ("b",): 2, ("other",): 7}


def test_masks_beyond_a_bound_share_a_label() -> None:
    known: dict[metrics.Labels, int] = {}
    for k in range(1000):
        labels = metrics.setting_labels("phase-plate", 1 + k / 7, known)
        known[labels] = known.get(labels, 0) + 1
    assert len(known) == metrics.SETTINGS_TOLD_APART + 1
    assert sum(known.values()) == 1000


def test_a_value_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="cryoflux_frames_in_flight is a gauge"):
        metrics.IN_FLIGHT.family(metrics.Distribution((1,)))
    with pytest.raises(TypeError, match="cryoflux_write_seconds is a histogram"):
        metrics.WRITE_SECONDS.family(1.0)


def test_a_bucket_takes_its_upper_bound() -> None:
    distribution = metrics.Distribution((1, 2))
    for observed in (0.5, 1, 1.5, 2, 2.5):
        distribution.observe(observed)
    assert distribution.buckets() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert (distribution.count, distribution.sum) == (5, 7.5)


# ---- the detector


def figures(**changes: Any) -> Figures:
    known: dict[str, Any] = {
        "state": "acquiring", "totals": Totals(), "in_flight": 0, "queued": 0, "spooled": 0,
        "spool_bytes": 0, "spool_limit_bytes": 0, "spool_failing": False, "restarts": 0,
        "unacknowledged_bytes": 0, "window_bytes": 1, "series": SeriesTotals(), "in_force": None,
        "wire_bytes": 0, "open_credits": 0, "workers_present": 0, "workers_silent": 0, "workers_joined": 0,
        "workers_departed": Counter(), "workers_refused": 0, "malformed_messages": 0,
    }  # fmt: skip
    return Figures(**{**known, **changes})


def test_the_accounts_are_computable_from_one_scrape() -> None:
    lost = Counter(rejected=2, not_finite=1)
    found = samples(
        families(
            figures(totals=Totals(acquired=100, acknowledged=90, lost=lost), in_flight=5, queued=3, spooled=2)
        )
    )
    all_lost = sum(v for (name, _), v in found.items() if name == "cryoflux_frames_lost_total")
    assert value(found, "cryoflux_frames_lost_total", reason="rejected") == 2
    assert value(found, "cryoflux_frames_lost_total", reason="stopped") == 0
    assert value(found, "cryoflux_frames_acquired_total") == (
        value(found, "cryoflux_frames_acknowledged_total")
        + value(found, "cryoflux_frames_in_flight")
        + value(found, "cryoflux_frames_spooled")
        + all_lost
    )


def test_reasons_that_nobody_foresaw_share_a_label() -> None:
    lost = Counter({f"reason {k} from a worker": 1 for k in range(1000)}, rejected=2, worker_died=3)
    found = samples(families(figures(totals=Totals(acquired=1005, lost=lost))))
    by_reason = {dict(labels)["reason"]: v for (name, labels), v in found.items() if "frames_lost" in name}
    assert by_reason.keys() == {*metrics.LOSS_REASONS, metrics.OTHER}
    assert (by_reason["rejected"], by_reason["worker_died"], by_reason["other"]) == (2, 3, 1000)


def test_the_spool_and_restarts_are_told() -> None:
    spool = {"spool_bytes": 700, "spool_limit_bytes": 1000, "spool_failing": True, "restarts": 2}
    series = SeriesTotals(idle_seconds=5.0, spool_full_seconds=3.5)
    found = samples(families(figures(**spool, series=series)))
    assert value(found, "cryoflux_spool_bytes") == 700
    assert value(found, "cryoflux_spool_limit_bytes") == 1000
    assert value(found, "cryoflux_spool_failing") == 1
    assert value(found, "cryoflux_series_restarts") == 2
    assert value(found, "cryoflux_camera_spool_full_seconds_total") == 3.5
    assert value(found, "cryoflux_camera_idle_seconds_total") == 5


def test_one_acquisition_state_is_hot() -> None:
    found = samples(families(figures(state="paused")))
    hot = [labels for (name, labels), v in found.items() if name == "cryoflux_acquisition_state" and v == 1]
    assert hot == [(("state", "paused"),)]


def test_the_mask_in_force_is_one_series_with_its_time() -> None:
    found = samples(families(figures(in_force=("coded-aperture", 2.0, 1234.5))))
    name = "cryoflux_configuration_since_timestamp_seconds"
    assert value(found, name, mask="coded-aperture", compression_factor="2") == 1234.5
    assert not any(known == name for known, _ in samples(families(figures())))


def test_latency_buckets_count_exactly_what_is_below_their_bound() -> None:
    latencies = [*np.random.default_rng(3).lognormal(-2, 2, 5000), 1.0, 0.1, 0.001, 0.0, -3.0, 5e4]
    histogram = LatencyHistogram()
    histogram.add(latencies)
    found = samples(families(figures(totals=Totals(latency=histogram))))
    name = "cryoflux_frame_latency_seconds"
    buckets = {dict(labels)["le"]: v for (known, labels), v in found.items() if known == f"{name}_bucket"}
    assert len(buckets) > 25
    for bound, count in buckets.items():
        assert count == sum(latency <= float(bound) for latency in latencies), bound
    assert value(found, f"{name}_count") == len(latencies)
    assert value(found, f"{name}_sum") == pytest.approx(sum(max(0.0, latency) for latency in latencies))


def test_every_metric_of_the_detector_is_served(idle_detector: Detector) -> None:
    defined = {metric.name for metric in metrics.ALL.values() if "detector" in metric.parts}
    served = {family.name for family in families(idle_detector.figures())}
    names = {name if name in defined else f"{name}_total" for name in served}
    assert names == defined - {"cryoflux_build_info"}


@pytest.fixture
def idle_detector(tmp_path: Path) -> Any:
    import zmq

    from common.settings import Settings

    context: zmq.Context[Any] = zmq.Context()
    settings = Settings.load(
        control_endpoint="inproc://nobody", data_bind="tcp://127.0.0.1:0", spool=str(tmp_path / "spool")
    )
    detector = Detector(settings, context)
    detector.start()
    yield detector
    detector.close()
    context.term()


def test_counters_go_on_over_the_series_of_a_process() -> None:
    ledger = Ledger(silent_after_seconds=3.0, window_bytes=1000)
    ledger.hello(b"w", Hello(worker="w", host="h", pid=1), now=0.0)
    before = Totals()
    for series in ("a", "b", "c"):
        ledger.open(
            Start(
                series=series, session=series, frames_expected=None, shape=(2, 2), dtype="uint8",
                pixel_size_angstrom=1.0, output="o", optics={}, calibration={},
            )
        )  # fmt: skip
        ledger.configure(ConfigurationNotice(configuration={"config_id": "c"}))
        ledger.acquire(4)
        ledger.lose(1, "all of its pixels are NaN", "not_finite")
        payload = ArrayHeader(shape=[2], dtype="uint8", coding="plain")
        frames = Frames(
            series=series, block=0, config_id="c", frame_ids=[1, 2], acquired_at=[0.0, 0.0], payload=payload
        )
        ledger.add(frames, [bytes(8)])
        ledger.credit(b"w", 1)
        delivery = ledger.next_block()
        assert delivery is not None
        block = delivery.messages[-1][0]
        assert isinstance(block, Frames)
        ledger.ack(Ack(series=series, block=block.block, frame_ids=[1, 2]), wall_now=0.5)
        ledger.abandon("told to")
        now = ledger.totals()
        assert now.acquired == before.acquired + 4 == now.acknowledged + now.lost.total()
        assert now.acknowledged == before.acknowledged + 2
        assert now.lost == before.lost + Counter(not_finite=1, stopped=1)
        assert now.blocks_sent == before.blocks_sent + 1
        assert now.latency.counts.sum() == before.latency.counts.sum() + 2
        assert now.latency.sum_seconds == before.latency.sum_seconds + 1.0
        before = now
    assert ledger.accounts().acquired == 4  # of the series alone


# ---- a worker


def results(**quality: Any) -> Results:
    header = Frames(
        series="s", block=0, config_id="c", frame_ids=[0, 1], acquired_at=[0.0, 0.0],
        payload=ArrayHeader(shape=[2], dtype="uint8", coding="plain"),
    )  # fmt: skip
    return Results(
        header=header, buffers=[], rows=[0, 1], images=np.zeros((2, 1, 1), np.float32),
        compression_factor=2.0, recovery_id="r", method="dct", recovered_at=0.0,
        **{"free_residual": [0.5, None], **quality},
    )  # fmt: skip


def test_a_mask_is_there_before_its_first_frames() -> None:
    """So that the first ones are seen as an increase."""
    measured = Measured()
    measured.configuration("c", "coded-aperture", 2.0)
    found = samples(measured.families())
    labels = {"mask": "coded-aperture", "compression_factor": "2"}
    assert value(found, "cryoflux_frame_psnr_decibels_count", **labels) == 0
    frames = SeriesTotals(frames=Counter({("coded-aperture", 2.0): 0}))
    for series in (frames, SeriesTotals().with_those_of(frames)):
        found = samples(families(figures(series=series)))
        assert value(found, "cryoflux_configuration_frames_total", **labels) == 0


def test_both_of_prometheus_text_formats_can_be_read() -> None:
    measured = Measured()
    measured.configuration("c", "coded-aperture", 2.0)
    measured.batch("dct", 3, 0.125)
    found = [*measured.families(), *families(figures(totals=Totals(acquired=7)))]
    text = openmetrics_text(registry_of(lambda: found)).decode()
    told = {s.name: s.value for f in openmetrics_families(text) for s in f.samples}
    assert told["cryoflux_frames_acquired_total"] == 7
    assert told["cryoflux_batch_frames_sum"] == 3


def test_quality_is_told_by_mask_and_factor() -> None:
    measured = Measured()
    measured.configuration("c", "coded-aperture", 2.0)
    measured.judged(results(psnr={0: 21.0, 1: float("inf")}, ssim={0: -0.25}))
    measured.judged(results(psnr={0: 23.0}, free_residual=[float("nan"), 1.5]))
    measured.judged(results(learned=[Learned(0.25, None, 20), Learned(None, None, 20)]))
    found = samples(measured.families())
    labels = {"mask": "coded-aperture", "compression_factor": "2"}
    assert value(found, "cryoflux_frame_psnr_decibels_count", **labels) == 2
    assert value(found, "cryoflux_frame_psnr_decibels_sum", **labels) == 44
    assert value(found, "cryoflux_frame_ssim_sum", **labels) == 0  # a sum must not decrease
    assert value(found, "cryoflux_frame_ssim_count", **labels) == 1
    assert value(found, "cryoflux_frame_free_residual_ratio_sum", **labels) == 2.5
    assert value(found, "cryoflux_frame_prior_shift_ratio_sum", **labels) == 0.25
    assert value(found, "cryoflux_frame_prior_shift_ratio_count", **labels) == 1


def test_batches_are_told_by_method_and_all_methods_are_there() -> None:
    measured = Measured()
    measured.batch("dct", 64, 0.5)
    measured.batch("dct", 1, 0.005)
    found = samples(measured.families())
    assert value(found, "cryoflux_recovery_seconds_count", method="dct") == 2
    assert value(found, "cryoflux_recovery_seconds_count", method="tv") == 0
    assert value(found, "cryoflux_recovery_seconds_bucket", method="dct", le="0.005") == 1
    assert value(found, "cryoflux_batch_frames_sum") == 65


def test_scrapes_and_work_do_not_disturb_each_other() -> None:
    measured = Measured()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            measured.batch("dct", 8, 0.25)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(50):
            found = samples(measured.families())
            batches = value(found, "cryoflux_recovery_seconds_count", method="dct")
            assert value(found, "cryoflux_batch_frames_sum") == 8 * batches
            assert value(found, "cryoflux_recovery_seconds_sum", method="dct") == 0.25 * batches
    finally:
        stop.set()
        worker.join()


# ---- GPUs


class FakeNvml:
    """NVML with one GPU; ``silent``: what it does not tell."""

    class NVMLError(Exception):
        pass

    def __init__(self, *silent: str) -> None:
        self.silent = silent

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlInit": None,
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetName": b"NVIDIA H200",
            "nvmlDeviceGetIndex": 3,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=5, total=8),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=10),
        }

        def ask(*arguments: Any) -> Any:
            if name in self.silent:
                raise self.NVMLError("Driver Not Loaded")
            if name == "nvmlDeviceGetHandleByUUID":
                assert arguments == ("GPU-1234",)
            return answers[name]

        return ask


GPU = {"gpu": "3", "uuid": "GPU-1234", "model": "NVIDIA H200"}


def test_a_gpu_is_told() -> None:
    found = samples(Gpu("1234", FakeNvml()).collect())
    assert value(found, "cryoflux_gpu_memory_used_bytes", **GPU) == 5
    assert value(found, "cryoflux_gpu_memory_total_bytes", **GPU) == 8
    assert value(found, "cryoflux_gpu_utilisation_ratio", **GPU) == 0.75


def test_what_the_driver_does_not_tell_is_absent() -> None:
    found = samples(Gpu("1234", FakeNvml("nvmlDeviceGetUtilizationRates")).collect())
    assert value(found, "cryoflux_gpu_memory_used_bytes", **GPU) == 5
    assert not any(name == "cryoflux_gpu_utilisation_ratio" for name, _ in found)


def test_a_driver_that_is_not_there_costs_no_scrape(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml("nvmlInit")
    gpu = Gpu("1234", nvml)
    assert not any(name.startswith("cryoflux_gpu") for name, _ in samples(gpu.collect()))
    assert not any(name.startswith("cryoflux_gpu") for name, _ in samples(gpu.collect()))
    assert len(caplog.records) == 1
    assert "Driver Not Loaded" in caplog.text
    nvml.silent = ()  # it may come
    assert value(samples(gpu.collect()), "cryoflux_gpu_memory_used_bytes", **GPU) == 5


def test_a_machine_without_the_driver_is_told_as_one() -> None:
    pytest.importorskip("pynvml")
    gpu = Gpu("00000000-0000-0000-0000-000000000000")
    assert not any(name.startswith("cryoflux_gpu") for name, _ in samples(gpu.collect()))


# ---- serving


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_a_process_serves_its_metrics_and_nothing_else() -> None:
    exposition = Exposition("127.0.0.1", 0)
    exposition.serve(registry_of(lambda: [metrics.IN_FLIGHT.family(7)]))
    try:
        found = scraped(get(f"http://{exposition.address}/metrics"))
        assert value(found, "cryoflux_frames_in_flight") == 7
        assert any(name == "cryoflux_build_info" for name, _ in found)
        assert any(name == "process_resident_memory_bytes" for name, _ in found)
        with pytest.raises(HTTPError) as refused:
            get(f"http://{exposition.address}/")
        assert refused.value.code == 404
    finally:
        exposition.close()


def test_a_busy_port_is_told_with_what_to_do() -> None:
    exposition = Exposition("127.0.0.1", 0)
    try:
        with pytest.raises(OSError, match=r"cannot serve /metrics on 127.0.0.1:\d+: .*CRYOFLUX_METRICS_PORT"):
            Exposition("127.0.0.1", exposition.port)
    finally:
        exposition.close()


def test_a_host_that_is_none_is_told_with_what_to_do() -> None:
    with pytest.raises(OSError, match="CRYOFLUX_METRICS_HOST"):
        Exposition("no.such.host.invalid", 0, unprotected=True)


@pytest.mark.parametrize(
    ("host", "told"), [("0.0.0.0", "{me}"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")]
)
def test_others_are_told_an_address_that_reaches_it(host: str, told: str) -> None:
    try:
        exposition = Exposition(host, 0, unprotected=True)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    try:
        assert exposition.address == f"{told.format(me=socket.gethostname())}:{exposition.port}"
    finally:
        exposition.close()


OPERATOR, VIEWER = "the-operators-own-token", "the-viewers-own-token"


@pytest.fixture
def guarded() -> Iterator[Exposition]:
    exposition = Exposition("0.0.0.0", 0, Tokens(OPERATOR, VIEWER))
    exposition.serve(registry_of(lambda: [metrics.IN_FLIGHT.family(7)]))
    yield exposition
    exposition.close()


def answer_of(exposition: Exposition, raw: bytes) -> bytes:
    """What comes back for a request that no client library would send."""
    with socket.create_connection(("127.0.0.1", exposition.port), timeout=20) as connection:
        connection.sendall(raw)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("token", [OPERATOR, VIEWER])
def test_metrics_are_for_whoever_shows_a_token(guarded: Exposition, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{guarded.port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert "cryoflux_frames_in_flight 7.0" in answer.read().decode()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    "path",
    ["/metrics", "/", "/favicon.ico", "//metrics", "/metrics/", "/healthz/", "/healthz/../metrics",
     "/healthz%2f..%2fmetrics", "http://127.0.0.1/healthz", "*"],
)  # fmt: skip
def test_without_a_token_there_is_nothing(guarded: Exposition, method: str, path: str) -> None:
    answer = answer_of(guarded, f"{method} {path} HTTP/1.0\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 401 "), head
    assert b'WWW-Authenticate: Bearer realm="cryoflux"' in head
    assert b"cryoflux_" not in body


@pytest.mark.parametrize(
    "header",
    ["Authorization:", "Authorization: Bearer", "Authorization: Bearer ", f"Authorization: {OPERATOR}",
     f"Authorization: Basic {OPERATOR}", f"Authorization: Bearer {OPERATOR[:-1]}",
     f"Authorization: Bearer {OPERATOR}x", f"Authorization: Bearer {OPERATOR} x",
     f"Authorization: Bearer x\r\nAuthorization: Bearer {OPERATOR}", f"Cookie: cryoflux_access={OPERATOR}",
     "Authorization: Bearer \xff\xfe\u0100", "Authorization: Bearer " + "x" * 20_000],
)  # fmt: skip
def test_a_wrong_token_is_as_good_as_none(guarded: Exposition, header: str) -> None:
    answer = answer_of(guarded, f"GET /metrics HTTP/1.0\r\n{header}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 401 ")
    assert b"cryoflux_frames" not in answer


def test_whoever_asks_may_learn_that_the_process_is_well(guarded: Exposition) -> None:
    assert get(f"http://127.0.0.1:{guarded.port}/healthz") == "alive\n"


def test_metrics_are_not_served_beyond_loopback_without_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "some.host"):
        with pytest.raises(NotProtected, match=r"CRYOFLUX_OPERATOR_TOKEN.*'metrics' in CRYOFLUX_UNPROTECTED"):
            Exposition(host, 0)


def test_a_client_that_says_nothing_does_not_hold_up_the_others() -> None:
    exposition = Exposition("127.0.0.1", 0)
    exposition.serve(CollectorRegistry())
    try:
        with socket.create_connection(("127.0.0.1", exposition.port)):
            assert get(f"http://{exposition.address}/metrics") == ""
    finally:
        exposition.close()


# ---- requests


def test_requests_are_counted_by_route_and_a_stream_is_timed_to_its_beginning() -> None:
    from fastapi import APIRouter, FastAPI
    from fastapi.responses import StreamingResponse

    router = APIRouter(prefix="/things")

    @router.get("/{thing}")
    async def thing(thing: str) -> str:
        if thing == "bad":
            raise RuntimeError("bad")
        return thing

    @router.get("")
    async def things() -> StreamingResponse:
        async def endless() -> Any:
            for _ in range(3):
                yield b"."

        return StreamingResponse(endless())

    app = FastAPI()
    app.include_router(router, prefix="/api/v1")
    times = RequestTimes()
    app.add_middleware(TimedRequests, times=times)
    client = TestClient(app, raise_server_exceptions=False)
    for path in (
        "/api/v1/things/1",
        "/api/v1/things/2",
        "/api/v1/things/bad",
        "/api/v1/things",
        "/nothing/1",
    ):
        client.get(path)
    client.get("/nothing/2")
    client.request("BREW", "/api/v1/things/1")
    assert times.counts == {
        ("GET", "/api/v1/things/{thing}", "200"): 2,
        ("GET", "/api/v1/things/{thing}", "500"): 1,
        ("GET", "/api/v1/things", "200"): 1,
        ("GET", "other", "404"): 2,
        ("other", "/api/v1/things/{thing}", "405"): 1,
    }
    assert times.seconds["GET", "/api/v1/things/{thing}"].count == 3
