"""The interface against its own document: what it says of requests and answers is tried on a running app."""

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from common.operators.spec import MaskSpec
from common.tokens import Tokens
from services.control_plane.app import routed
from services.control_plane.body import LARGEST_BYTES
from tests.unit.served import BASE, Served, eventually, write_results

OPERATOR, VIEWER = "the-operators-own-token", "the-viewers-own-token"
JSON = {"content-type": "application/json"}
CURRENT = f"{BASE}/current"

# What no schema can say: values that are fine one by one, and not together.
TOGETHER = (
    r"masks over \d+x\d+ blocks would measure more numbers than pixels",
    r"must be a multiple of kernel_size",
    r"must be below high",
    r"nothing to change",
    r"contradicts mask",
    r"allowed range [\d.]+ to [\d.]+",
    r"there is no such field",  # of a recovery's parameters, which depend on the method
    r"^must be (a |at |from |above |one of |'|null|[^ ]+ or |Input)",  # the same
    r"given beside",
    r"defocus_m",
    r"already holds .*; name another folder",
    r"File name too long|0…$",
    r"is a folder; name a file|exists already; name another|no file can be there",
    r"is not known; there (is|are) |not a folder of a prior",
)


class NoArchiver:
    """In place of the process that packs an archive, which takes longer to start than all the rest."""

    def __init__(self, *_: object) -> None:
        pass

    async def start(self) -> None:
        """Nothing is packed."""

    async def finish(self, account: object) -> dict[str, Any]:
        """Nothing was packed."""
        return {"error": "nothing is packed here"}

    async def close(self) -> None:
        """There is nothing to close."""


class House(Served):
    """A control plane with a detector and a worker that do as they are told, and frames to look at."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, tokens=Tokens(OPERATOR, VIEWER))
        self.fake = self.detector()
        self.worker()

    def finish(self, state: str | None) -> None:
        """Have the session over."""
        if state in ("running", "paused", "stopping"):
            self.fake.finish()
            over = ("completed", "failed")
            eventually(lambda: self.client.get(CURRENT).json()["state"] in over, "the session is over")

    def prepare(self, operation: str) -> None:
        """Have the session in the state that the operation is for."""
        state = self.client.get(CURRENT).json().get("state")
        if operation == "start":
            self.finish(state)
            return
        if state not in ("running", "paused"):
            self.finish(state)
            view = self.start()
            write_results(Path(view["output"]), MaskSpec.model_validate(view["specification"]["mask"]))
            state = "running"
        if operation == "resume" and state == "running":
            self.client.post(f"{CURRENT}/pause")
        elif operation != "resume" and state == "paused":
            self.client.post(f"{CURRENT}/resume")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("interface")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:  # paths made up are relative to it
        patch.setattr("services.control_plane.sessions.Archiver", NoArchiver)
        patch.setattr("services.control_plane.guard.FAILED_SECONDS", 0)
        opened = House(folder)
        yield opened
        opened.close()


# ---- what a generator of requests finds


CONFIG = {
    "seed": 1,
    "parameters": {"path.session_id": "current"},
    "generation": {"deterministic": True, "max-examples": 25, "database": "none"},
    "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 404, 409, 422]}},
}
schema = schemathesis.openapi.from_dict(
    json.loads(json.dumps(routed().openapi())), config=SchemathesisConfig.from_dict(CONFIG)
)
answered: dict[str, set[int]] = {}


@schema.exclude(operation_id="stream").parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_request_is_answered_as_documented(case: schemathesis.Case, house: House) -> None:
    operation = case.operation.definition.raw["operationId"]
    house.prepare(operation)
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if operation == "sign_in" and positive:
        case.body = {"token": OPERATOR}
    answer = case.call_and_validate(base_url=house.url, headers=house.shown)
    answered.setdefault(operation, set()).add(answer.status_code)
    if answer.status_code >= 400 and operation != "readyz":
        assert answer.headers["content-type"] == ["application/problem+json"]
    if answer.status_code == 422 and positive:
        messages = [error["message"] for error in answer.json()["errors"]]
        assert all(any(re.search(known, message) for known in TOGETHER) for message in messages), messages


@schema.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_without_a_token_every_request_is_refused(case: schemathesis.Case, house: House) -> None:
    answer = case.call(base_url=house.url)
    case.validate_response(answer, excluded_checks=[positive_data_acceptance, unsupported_method])
    if case.operation.definition.raw["operationId"] == "healthz" and case.method in ("GET", "HEAD"):
        return
    assert answer.status_code == 401
    assert answer.headers["content-type"] == ["application/problem+json"]
    assert answer.headers["www-authenticate"] == ['Bearer realm="cryoflux"']


def test_that_was_not_only_refusals(house: House) -> None:
    if not answered:
        pytest.skip("looks at what the test before it was answered")
    missing = {name for name, statuses in answered.items() if not any(200 <= s < 300 for s in statuses)}
    assert missing == set()
    assert len(answered) >= 18


# ---- the same of the stream, which has no end of its own


@pytest.mark.parametrize("name", ["current", "nobody"])
@pytest.mark.parametrize(
    "cursor", ["", "x", "a/1", "\x00", "9" * 5000, "a/1/1", "a/9999999999999999/0", "a/1 /1"]
)
@pytest.mark.parametrize("where", ["query", "header"])
def test_a_stream_begins_or_is_refused(house: House, name: str, cursor: str, where: str) -> None:
    house.prepare("stream")
    documented = routed().openapi()["paths"]["/api/v1/sessions/{session_id}/stream"]["get"]["responses"]
    if where == "header" and "\x00" in cursor:
        cursor = "a\tb"
    given = {"params": {"after": cursor}} if where == "query" else {"headers": {"last-event-id": cursor}}
    with house.client.stream("GET", f"{BASE}/{name}/stream", **given) as answer:
        assert str(answer.status_code) in documented
        is_cursor = re.fullmatch(r"[A-Za-z0-9-]+/\d{1,16}/\d{1,16}", cursor)
        if name == "nobody":
            assert answer.status_code in (404, 422)
        elif cursor and not is_cursor:
            assert answer.status_code == 422
        elif cursor:
            assert answer.status_code == 200
        if answer.status_code == 200:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert next(answer.iter_lines()) == "event: session"


# ---- what generators do not think of


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{'a': 1}", "property name"),
        (b"", "is missing"),
        (b'{"camera": {"rate": NaN}}', "NaN"),
        (b'{"camera": {"rate": Infinity}}', "infinities"),
        (b'{"camera": {"rate": 1e999}}', "infinities"),
        (b'{"camera": {"frames": ' + b"9" * 5000 + b"}}", "too many digits"),
        (b'{"camera": {"frames": 1000000000000000000000000000000}}', "camera.frames"),
        (b'{"output": "\\ud800"}', "surrogate"),
        (b'{"output": "\\u0000"}', "output"),
        (b'{"source": {"kind": "file", "path": "a\\u0000b"}}', "source.path"),
        (b'{"\\n": 1}', "no such field"),
        (b'{"' + b"x" * 100_000 + b'": 1}', "no such field"),
        (b'{"output": 1' + b"0" * 4000 + b"}", "output"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"recovery": {"parameters": {"iterations": 1000000000000000000000000000000}}}', "iterations"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b"\xff\xfe", "UTF-8"),
        (b"null", ""),
        (b"[]", ""),
        (b'"text"', ""),
    ],
)
def test_a_body_that_cannot_be_used_is_said_to_be_so(house: House, body: bytes, word: str) -> None:
    house.prepare("start")
    answer = house.client.post(BASE, content=body, headers=JSON)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert word in problem["detail"]
    assert "\n" not in problem["detail"]
    assert house.client.get("/healthz").status_code == 200


def test_a_long_value_is_not_thrown_back(house: House) -> None:
    answer = house.client.post(BASE, json={"camera": {"frames": "x" * 100_000}})
    assert answer.status_code == 422
    assert len(answer.text) < 2000


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "text/json", "x", ""])
@pytest.mark.parametrize("path", ["", "/current/acquisition", "/current/recovery"])
def test_a_body_of_another_kind_is_refused(house: House, kind: str, path: str) -> None:
    house.prepare("look")
    method = "PATCH" if path else "POST"
    headers = {"content-type": kind} if kind else {}
    answer = house.client.request(method, f"{BASE}{path}", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.headers["accept"] == "application/json"
    assert answer.json()["detail"].startswith("the body must be application/json")


def test_json_with_a_parameter_is_json(house: House) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    answer = house.client.patch(f"{CURRENT}/recovery", content=b'{"method": "x"}', headers=headers)
    assert answer.status_code in (404, 422)
    assert "application/json" not in answer.json()["detail"]


def test_a_body_without_end_is_cut_off(house: House) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * (LARGEST_BYTES // 50)

    try:
        answer = house.client.post(BASE, content=endless(), headers=JSON)
    except httpx.TransportError:
        pass  # the answer came, and the connection was closed, while the rest was being sent
    else:
        assert answer.status_code == 413
    answer = house.client.post(BASE, content=b" " * (LARGEST_BYTES + 1), headers=JSON)
    assert answer.status_code == 413
    assert house.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (BASE, "GET, POST"),
        (CURRENT, "GET"),
        (f"{CURRENT}/acquisition", "GET, PATCH"),
        (f"{CURRENT}/pause", "POST"),
        (f"{CURRENT}/frames/1/preview.png", "GET"),
        ("/healthz", "GET"),
    ],
)
@pytest.mark.parametrize("method", ["DELETE", "PUT", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_told_which_are_allowed(house: House, path: str, allowed: str, method: str) -> None:
    answer = house.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["%00", "..", "%2e%2e%2f%2e%2e", "%ff", "a%0d%0ab", "'; DROP TABLE sessions; --", "x" * 5000, "🜁"]
)
def test_an_odd_id_is_an_unknown_one(house: House, path: str) -> None:
    for what in ("", "/metrics", "/frames/0/preview.png"):
        answer = house.client.get(f"{BASE}/{path}{what}")
        assert answer.status_code in (200, 404), answer.text  # .. leads to the list
        if answer.status_code == 404:
            assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    "query",
    [
        "after=1e3", "after=-1", "after=%00", f"after={'9' * 30}", f"after={'9' * 5000}", "limit=0",
        "limit=10001", "after=1&after=x",
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_refused(house: House, query: str) -> None:
    house.prepare("events")
    answer = house.client.get(f"{CURRENT}/events?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in ("after", "limit")


def test_what_is_no_http_harms_nobody(house: House) -> None:
    address = httpx.URL(house.url)
    cut_off = f"POST {BASE} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n{{".encode()
    for raw in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", cut_off, b"GET /" + b"x" * 100_000):
        with socket.create_connection((address.host, address.port or 80)) as connection:
            connection.sendall(raw)
    assert house.client.get("/healthz").status_code == 200


# ---- the document


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in routed().openapi()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def content_of(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if "requestBody" in operation:
        for media_type, content in operation["requestBody"]["content"].items():
            yield "body", media_type, content
    for status, answer in operation["responses"].items():
        for media_type, content in answer.get("content", {}).items():
            yield status, media_type, content


def test_every_body_and_answer_has_an_example_that_its_schema_allows() -> None:
    document = routed().openapi()
    for name, operation in operations():
        for where, media_type, content in content_of(operation):
            if media_type == "image/png":
                continue
            examples = [example["value"] for example in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            assert examples, (name, where)
            if "json" in media_type:
                whole = {**content["schema"], "components": document["components"]}
                for example in examples:
                    jsonschema_rs.validator_for(whole).validate(json.loads(json.dumps(example)))


def test_every_example_of_a_body_is_accepted(house: House, tmp_path: Path) -> None:
    for _, operation in operations():
        for where, _, content in content_of(operation):
            if where != "body":
                continue
            for name, example in content["examples"].items():
                house.prepare(operation["operationId"])
                if operation["operationId"] == "start":
                    body = dict(example["value"])
                    if "output" in body:  # not really there, on the machine that tests
                        body["output"] = f"{tmp_path}{body['output']}"
                    answer = house.client.post(BASE, json=body)
                elif operation["operationId"] == "sign_in":
                    answer = house.client.post("/api/v1/sign-in", json={"token": VIEWER})
                else:
                    what = operation["operationId"].removeprefix("change_")
                    if name == "parameters":  # those of the method before
                        house.client.patch(f"{CURRENT}/recovery", json={"method": "dct"})
                    if name == "factor":
                        mask = {"kind": "coded-aperture"}
                        house.client.patch(f"{CURRENT}/acquisition", json={"mask": mask})
                    answer = house.client.patch(f"{CURRENT}/{what}", json=example["value"])
                assert answer.status_code in (200, 201), (name, answer.text)


def test_everything_is_described() -> None:
    document = routed().openapi()
    for name, operation in operations():
        assert operation.get("description"), name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (name, parameter["name"])
        for status, answer in operation["responses"].items():
            assert answer["description"] not in ("", "Successful Response"), (name, status)
    for name, model in document["components"]["schemas"].items():
        assert model.get("description") or model.get("enum"), name


def test_errors_that_are_documented_say_so_alike() -> None:
    for name, operation in operations():
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and "readyz" not in name:
                example = answer["content"]["application/problem+json"]["example"]
                assert example["status"] == int(status)
                assert (example["errors"] != []) == (int(status) == 422)


def test_the_house_is_still_well(house: House) -> None:
    assert house.client.get("/readyz").json()["status"] == "ready"
    eventually(lambda: house.recorder.waiting == 0, "all is written")
