"""``make compose-test``: a whole session in containers, steered and scaled in mid-run; nothing may be lost.


Builds the image, starts everything, waits until all is healthy, changes the compression factor by REST,
scales the reconstructors 1 → 3 → 1, stops the session and looks at every account of it: REST, session.json,
the table of frames, Prometheus, Redis, the logs. Then it removes what it started; the image stays.

Only Python's standard library is needed:  python3 -m tests.compose --help
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import signal
import socket
import sys
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.compose.engine import BUILD_SECONDS, Failed, NoEngine, Project, compose_command, versions

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("keys", "redis", "control", "reconstructor", "detector", "prometheus", "grafana", "session")
ONCE = ("keys", "session")  # they do something and end
OURS = ("keys", "control", "reconstructor", "detector", "session")
WAIT_SECONDS = 300.0
POLL_SECONDS = 0.5
RATE = 20  # frames per second; two slow cores recover as many
NO_ENGINE = 3
BALANCE = (
    "cryoflux_frames_acquired_total - cryoflux_frames_acknowledged_total - cryoflux_frames_in_flight"
    " - cryoflux_frames_spooled - sum without (reason) (cryoflux_frames_lost_total)"
)
COMPLAINT = re.compile(
    r"Traceback|\b(ERROR|CRITICAL|FATAL|panic)\b|\"level\": *\"(error|critical)\"", re.ASCII
)
OTHERS_COMPLAINT = re.compile(r"level=(error|fatal)|panic:|# (Fatal|Can't|Failed)", re.ASCII)


def main() -> int:
    """Run it; 0 if everything is as it must be, 3 if there is no engine to run it with."""
    parser = argparse.ArgumentParser(prog="compose-test", description="A whole session in containers.")
    parser.add_argument(
        "--without", action="append", default=[], choices=("grafana", "prometheus"), metavar="SERVICE",
        help="leave it out (grafana or prometheus), where its image cannot be had",
    )  # fmt: skip
    parser.add_argument("--tokens", action="store_true", help="with an operator's and a viewer's token")
    parser.add_argument("--no-build", action="store_true", help="use the image that is there")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    asked = parser.parse_args()
    try:
        compose = compose_command()
    except NoEngine as error:
        print(f"compose-test: {error}", file=sys.stderr)
        return NO_ENGINE
    signal.signal(signal.SIGTERM, _interrupt)
    test = ComposeTest(compose, [name for name in SERVICES if name not in asked.without], asked.tokens)
    print(f"compose-test: {versions(compose)}", flush=True)
    passed = True
    for work in (lambda: test.run(build=not asked.no_build), lambda: asked.keep or test.remove()):
        try:
            work()
        except (Failed, KeyboardInterrupt) as error:
            passed = False
            print(f"compose-test: FAILED: {str(error) or 'interrupted'}", file=sys.stderr, flush=True)
            test.tell_logs()
        except Exception:  # of the test itself; what it started is taken down all the same
            passed = False
            traceback.print_exc()
            test.tell_logs()
    print(f"compose-test: {'passed' if passed else 'FAILED'} in {test.seconds:.0f} s", flush=True)
    return 0 if passed else 1


class ComposeTest:
    """The steps, in order; each says in a line what it found."""

    def __init__(self, compose: Sequence[str], services: Sequence[str], with_tokens: bool) -> None:
        self._services = services
        self._tokens = {role: uuid.uuid4().hex if with_tokens else "" for role in ("operator", "viewer")}
        self._began = time.monotonic()
        ports = free_ports(3)
        self._control, self._prometheus, self._grafana = (f"http://127.0.0.1:{port}" for port in ports)
        self._project = Project(
            compose,
            ROOT,
            f"cryoflux-test-{uuid.uuid4().hex[:6]}",
            {
                "BIND_ADDRESS": "127.0.0.1",
                "OPERATOR_TOKEN": self._tokens["operator"],
                "VIEWER_TOKEN": self._tokens["viewer"],
                "KEYS_FOLDER": "keys",
                **dict(
                    zip(("CONTROL_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"), map(str, ports), strict=True)
                ),
                "SESSION_START": "yes",
                "SESSION_INPUT": "specimen",
                "SESSION_FRAMES": "",  # without end: it is stopped when all has been seen
                "SESSION_RATE": str(RATE),
                "SESSION_MASK": "coded-aperture",
                "SESSION_COMPRESSION": "2",
                "SESSION_RECOVERY": "dct",
                "SESSION_LINK_MBIT_PER_S": "",
                "SESSION_OPTIONS": "--reference-every 20",
                "RESULTS_FOLDER": "results",
                "INPUT_FOLDER": "input",
                "STATE": "redis://redis:6379/0",
            },
        )

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def run(self, *, build: bool) -> None:
        """All steps.

        Raises
        ------
        Failed
            In one line, at the first thing that is not as it must be.
        """
        with self._step("files"):
            self._project.run("config", "--quiet")
            self._project.run("--profile", "gpu", "config", "--quiet")
        if build:
            with self._step("build the image (minutes, the first time)"):
                self._project.run("build", "control", seconds=BUILD_SECONDS)
        with self._step("start, until all is healthy"):
            self._project.run("up", "--detach", *self._services, seconds=BUILD_SECONDS)
            self._until_healthy()
        with self._step("a session, until 100 frames are recovered"):
            session = self._session()
            self._until_acknowledged(100)
        with self._step("access"):
            self._check_access()
        with self._step("C = 4 by REST"):
            switches = [self._change(4)]
            self._until_acknowledged(switches[-1]["effective_from_frame"] + 100)
        with self._step("reconstructors 1 → 3"):
            self._scale(3)
        with self._step("C = 2 by REST"):
            switches.append(self._change(2))
            self._until_acknowledged(switches[-1]["effective_from_frame"] + 100)
        with self._step("reconstructors 3 → 1"):
            self._scale(1)
            self._until_acknowledged(self._metrics()["frames"]["acquired"] + 100)
        if "prometheus" in self._services:
            with self._step("Prometheus"):
                self._check_prometheus()
        if "grafana" in self._services:
            with self._step("Grafana"):
                self._check_grafana()
        with self._step("stop by REST"):
            self._stop_session()
        with self._step("accounts"):
            self._check_accounts(session, switches)
        with self._step("logs"):  # before the control plane is away, which Prometheus complains about
            self._check_logs()
        with self._step("Redis"):
            self._check_redis(session)

    def tell_logs(self) -> None:
        """The last that every container said, and how it is."""
        for container in self._project.containers():
            state = container["State"]
            health = state.get("Health", {}).get("Status", "no health check")
            print(
                f"  {container['Name']}: {state['Status']}, {health}, exit {state['ExitCode']}",
                file=sys.stderr,
            )
        try:
            print(self._project.run("logs", "--no-color", "--tail", "30"), file=sys.stderr)
        except Failed as error:
            print(error, file=sys.stderr)

    def remove(self) -> None:
        """Take everything down.

        Raises
        ------
        Failed
            If something of it is still there.
        """
        with self._step("down"):
            self._project.remove()
            left = self._project.leftovers()
            if left:
                raise Failed(f"still there: {', '.join(left)}")

    # ---- steps

    def _until_healthy(self) -> None:
        wanted = set(self._services) - {*ONCE}

        def healthy() -> bool:
            states = {
                c["Config"]["Labels"]["com.docker.compose.service"]: c["State"]
                for c in self._project.containers()
            }
            for service, state in states.items():
                ended = state["Status"] in ("exited", "dead")
                if ended and (service not in ONCE or state["ExitCode"]):
                    raise Failed(f"{service} ended with {state['ExitCode']}")
            return wanted <= {
                service
                for service, state in states.items()
                if state.get("Health", {}).get("Status") == "healthy"
            }

        until(healthy, f"{', '.join(sorted(wanted))} to be healthy")
        for service in ("control", "detector", "reconstructor"):
            uid = self._project.python(service, "import os; print(os.getuid())").strip()
            if uid == "0":
                raise Failed(f"{service} runs as root")
        self._tell(f"{len(wanted)} services, ours not as root")

    def _check_access(self) -> None:
        """Where there are tokens: who shows none is let nowhere, who shows the viewer's may look."""
        if not self._tokens["operator"]:
            return
        address = f"{self._control}/api/v1/sessions/current"
        for method, path, token, expected in (
            ("GET", "", "", 401),
            ("GET", "", "not the operator's token", 401),
            ("POST", "/pause", self._tokens["viewer"], 403),
        ):
            try:
                self._get(address + path, method, token=token)
            except Failed as error:
                if f": {expected} " not in str(error):
                    raise
            else:
                raise Failed(f"{method} {path} was answered to whoever asked")
        self._get(address, token=self._tokens["viewer"])
        self._tell("nothing without a token, looking with the viewer's")

    def _session(self) -> str:
        """The id of the session that was started with everything else."""

        def running() -> bool:
            try:
                return self._rest("GET", "sessions/current")["state"] == "running"
            except Failed:
                return False

        until(running, "the session of the service `session` to run")
        return self._rest("GET", "sessions/current")["id"]

    def _change(self, factor: float) -> dict[str, Any]:
        answer = self._rest("PATCH", "sessions/current/acquisition", {"compression_factor": factor})
        if answer["compression_factor"] != factor:
            raise Failed(f"asked for C = {factor}, got {answer['compression_factor']}")
        self._tell(f"configuration {answer['config_id']} from frame {answer['effective_from_frame']} on")
        return answer

    def _scale(self, count: int) -> None:
        """Scale, until so many workers are there and each has recovered frames."""
        self._project.run(
            *("up", "--detach", "--no-recreate", "--no-build"),
            *("--scale", f"reconstructor={count}", "reconstructor"),
            seconds=WAIT_SECONDS,
        )

        def scaled() -> bool:
            workers = [worker for worker in self._metrics()["workers"] if worker["present"]]
            return len(workers) == count and all(worker["frames_recovered"] for worker in workers)

        until(scaled, f"{count} reconstructors to be there and to recover frames")
        workers = [worker for worker in self._metrics()["workers"] if worker["present"]]
        figures = ", ".join(f"{worker['name']} {worker['frames_recovered']}" for worker in workers)
        self._tell(f"frames recovered: {figures}")

    def _check_prometheus(self) -> None:
        targets: list[dict[str, Any]] = []

        def scraped() -> bool:
            # workers that were stopped stay targets until the control plane forgets them, a minute later
            found = self._get(f"{self._prometheus}/api/v1/targets?state=active")["data"]["activeTargets"]
            targets[:] = found
            parts = Counter(target["labels"].get("component") for target in found)
            return parts == {"control": 1, "detector": 1, "reconstructor": 1} and all(
                target["health"] == "up" for target in found
            )

        try:
            until(scraped, "Prometheus to scrape one control plane, one detector and one reconstructor")
        except Failed as error:
            found = "; ".join(f"{t['scrapeUrl']} {t['health']} {t['lastError']}" for t in targets)
            raise Failed(f"{error}; it has {found or 'no targets'}") from error
        names = self._get(f"{self._prometheus}/api/v1/label/__name__/values")["data"]
        ours = [name for name in names if name.startswith("cryoflux_")]
        if not ours:
            raise Failed("Prometheus has no series of CryoFlux")
        if not self._query("cryoflux_frames_acquired_total > 0"):
            raise Failed("Prometheus has seen no frame acquired")
        now = time.time()
        asked = urllib.parse.urlencode({"query": BALANCE, "start": now - self.seconds, "end": now, "step": 1})
        (series,) = self._get(f"{self._prometheus}/api/v1/query_range?{asked}")["data"]["result"] or [None]
        balances = {value for _, value in series["values"]} if series else set()
        if balances != {"0"}:
            raise Failed(
                f"acquired less acknowledged, in flight, spooled and lost is {balances or 'not there'}"
            )
        rules = self._get(f"{self._prometheus}/api/v1/rules")["data"]["groups"]
        broken = [
            f"{rule['name']}: {rule['lastError']}"
            for group in rules
            for rule in group["rules"]
            if rule.get("lastError")
        ]
        if broken or not rules:
            raise Failed(f"rules of Prometheus: {'; '.join(broken) or 'there are none'}")
        count = len(series["values"])
        self._tell(f"{len(targets)} targets, {len(ours)} metrics, the balance is 0 in {count} samples")

    def _check_grafana(self) -> None:
        found = self._get(f"{self._grafana}/api/search?type=dash-db")
        if len(found) < 2:
            raise Failed(f"Grafana shows {len(found)} dashboards, not 2")
        self._tell(", ".join(sorted(dashboard["title"] for dashboard in found)))

    def _stop_session(self) -> None:
        self._rest("POST", "sessions/current/stop")

        def over() -> bool:
            return self._rest("GET", "sessions/current")["state"] in ("completed", "failed")

        until(over, "the session to end")
        until(lambda: self._project.state("session")["Status"] == "exited", "the service `session` to end")
        code = self._project.state("session")["ExitCode"]
        if code:
            raise Failed(f"the service `session` ended with {code}")

    def _check_accounts(self, session: str, switches: Sequence[dict[str, Any]]) -> None:
        """Every frame acquired was recovered once, with the mask that it was taken with, by every account."""
        view, frames = self._rest("GET", f"sessions/{session}"), self._metrics()["frames"]
        acquired = frames["acquired"]
        if view["state"] != "completed" or view["error"]:
            raise Failed(f"the session is {view['state']}: {view['error']}")
        expected = {"acknowledged": acquired, "in_flight": 0, "lost": 0, "spooled": 0}
        if any(frames.get(name, 0) != count for name, count in expected.items()):
            raise Failed(f"REST: {frames}")
        output = view["output"]
        files = json.loads(self._project.python("control", READ_RESULTS.format(output=output)))
        account = json.loads(files["session.json"])
        said = {name: account["frames"][name] for name in ("acquired", "recovered", "lost")}
        if said != {"acquired": acquired, "recovered": acquired, "lost": 0}:
            raise Failed(f"session.json: {said}; REST: {acquired} acquired")
        rows = list(csv.DictReader(io.StringIO(files["frames.csv"])))
        if sorted(int(row["frame_id"]) for row in rows) != list(range(acquired)):
            raise Failed(f"frames.csv: {len(rows)} rows, not each of {acquired} frames once")
        configured = [(0, view["acquisition"][0]["config_id"])]
        configured += [(switch["effective_from_frame"], switch["config_id"]) for switch in switches]
        for row in rows:
            config_id = [config for first, config in configured if first <= int(row["frame_id"])][-1]
            if row["config_id"] != config_id:
                raise Failed(
                    f"frame {row['frame_id']} was recovered with {row['config_id']}, not {config_id}"
                )
        height, width = view["shape"]
        if files["recovered.mrcs"] != 1024 + 4 * height * width * acquired:
            raise Failed(f"recovered.mrcs has {files['recovered.mrcs']} bytes, not {acquired} images")
        workers = Counter(row["worker"] for row in rows)
        if len(workers) < 3:
            raise Failed(f"frames were recovered by {len(workers)} workers, not 3")
        self._tell(
            f"{acquired} frames acquired, each recovered once, by {len(workers)} workers "
            f"({', '.join(str(count) for count in sorted(workers.values()))}), "
            f"{account['frames']['delivered_twice']} of them delivered twice; "
            f"PSNR {account['quality']['psnr']:.1f} dB, gain {account['throughput_gain']:.2f}, "
            f"p99 latency {account['latency']['p99_seconds']:.2f} s"
        )

    def _check_redis(self, session: str) -> None:
        """Redis holds the session: by its keys, and for a control plane that is started anew."""
        keys = [
            key
            for key in self._project.run("exec", "-T", "redis", "redis-cli", "--scan").split()
            if session in key
        ]
        if not keys:
            raise Failed(f"Redis has no key with {session}")
        before = self._rest("GET", f"sessions/{session}")
        self._project.run("restart", "control", seconds=WAIT_SECONDS)

        def there() -> bool:
            try:
                return self._rest("GET", f"sessions/{session}") == before
            except Failed:
                return False

        until(there, "the control plane to know the session again after a restart")
        self._tell(f"{len(keys)} keys of the session; known again after a restart of the control plane")

    def _check_logs(self) -> None:
        complaints: list[str] = []
        for service in self._services:
            lines = self._project.run("logs", "--no-color", service).splitlines()
            pattern = COMPLAINT if service in OURS else OTHERS_COMPLAINT
            complaints += [line for line in lines if pattern.search(line)]
        if complaints:
            raise Failed(f"{len(complaints)} complaints in the logs, the first: {complaints[0]}")
        restarts = {c["Name"]: c["RestartCount"] for c in self._project.containers() if c["RestartCount"]}
        if restarts:
            raise Failed(f"containers were started again: {restarts}")

    # ---- asking

    def _rest(self, method: str, path: str, body: Any = None) -> Any:
        return self._get(f"{self._control}/api/v1/{path}", method, body, self._tokens["operator"])

    def _metrics(self) -> dict[str, Any]:
        return self._rest("GET", "sessions/current/metrics")

    def _until_acknowledged(self, count: int) -> None:
        def enough() -> bool:
            frames = self._metrics()["frames"]
            if frames["lost"]:
                raise Failed(f"frames were lost: {frames}")
            return frames["acknowledged"] >= count

        until(enough, f"{count} frames to be recovered")

    def _query(self, expression: str) -> list[dict[str, Any]]:
        asked = urllib.parse.urlencode({"query": expression})
        return self._get(f"{self._prometheus}/api/v1/query?{asked}")["data"]["result"]

    @staticmethod
    def _get(address: str, method: str = "GET", body: Any = None, token: str = "") -> Any:
        """What an HTTP interface of this machine answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {
            **({"Content-Type": "application/json"} if data else {}),
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        request = urllib.request.Request(address, data, headers, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=60.0) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Failed(
                f"{method} {address}: {error.code} {error.read().decode(errors='replace')[:300]}"
            ) from error
        except (OSError, ValueError) as error:
            raise Failed(f"{method} {address}: {error}") from error

    # ---- telling

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        print(f"[{self.seconds:6.1f} s] {name}", flush=True)
        yield
        print(f"[{self.seconds:6.1f} s]   done in {time.monotonic() - began:.1f} s", flush=True)

    def _tell(self, finding: str) -> None:
        print(f"[{self.seconds:6.1f} s]   {finding}", flush=True)


READ_RESULTS = """
import json, pathlib
folder = pathlib.Path({output!r})
print(json.dumps({{
    "session.json": (folder / "session.json").read_text(),
    "frames.csv": (folder / "frames.csv").read_text(),
    "recovered.mrcs": (folder / "recovered.mrcs").stat().st_size,
}}))
"""


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until a condition holds.

    Raises
    ------
    Failed
        If it does not within ``WAIT_SECONDS``.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {WAIT_SECONDS:g} s for {what}")
        time.sleep(POLL_SECONDS)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
