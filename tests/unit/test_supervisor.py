"""Processes that die are started again, within reason, and none is left behind."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from services.supervisor import RESTART_WINDOW_SECONDS, RESTARTS, GaveUp, Process, Supervisor

PATIENCE_SECONDS = 20.0


def process(folder: Path, code: str) -> Process:
    """A process of the supervisor that runs this Python."""
    made = Process("child", [], folder / "child.log", threads=3)
    made._command = [sys.executable, "-c", code]
    return made


def started(folder: Path, code: str) -> Process:
    made = process(folder, code)
    made.start()
    return made


def ended(child: Process) -> None:
    """Wait until the process that runs now is dead."""
    assert child._process is not None
    child._process.wait(PATIENCE_SECONDS)


def says(child: Process, line: str) -> None:
    """Wait until the last line of the log is this one."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while child.last_words() != line:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_running_process_is_left_alone(tmp_path: Path) -> None:
    child = started(tmp_path, "import time; time.sleep(60)")
    pid = child.pid
    assert child.watch(0.0) is None
    assert child.pid == pid
    child.terminate()
    child.wait(time.monotonic() + PATIENCE_SECONDS)


def test_parts_on_one_machine_have_their_own_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOFLUX_METRICS_PORT", "9100")
    code = "from common.settings import Settings; print(Settings.load().metrics_port)"
    ended(child := started(tmp_path, code))
    says(child, "0")


def test_a_dead_process_is_started_again_after_a_pause_that_grows(tmp_path: Path) -> None:
    child = started(tmp_path, "import sys; print('no luck'); sys.exit(3)")
    pauses = []
    now = 100.0
    for _ in range(3):
        ended(child)
        assert child.watch(now) == "child ended with code 3: no luck"
        assert child.watch(now) is None  # its pause is not over
        begin = now
        while (happened := child.watch(now)) is None:
            now += 0.05
        assert happened == "child started again"
        pauses.append(now - begin)
    assert pauses[0] < pauses[1] < pauses[2]
    ended(child)


def test_a_process_that_dies_again_and_again_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    child = started(tmp_path, "import sys; print('no memory'); sys.exit(1)")
    now = 0.0
    for _ in range(RESTARTS):
        ended(child)
        child.watch(now)
        now += 6.0
        assert child.watch(now) == "child started again"
    ended(child)
    with pytest.raises(GaveUp, match="no memory"):
        child.watch(now)


@pytest.fixture
def two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Supervisor, list[str]]]:
    """A supervisor of nothing but two workers; both live."""
    told: list[str] = []
    supervisor = Supervisor("127.0.0.1", 0, 2, logs_folder=tmp_path, report=told.append)
    monkeypatch.setattr(Supervisor, "processes", property(lambda self: self.workers))
    for worker in supervisor.workers:
        worker._command = [sys.executable, "-c", "import time; time.sleep(600)"]
        worker.start()
    yield supervisor, told
    supervisor.stop(0.0)


def _crashes(worker: Process) -> None:
    """From now on, whenever it is started."""
    worker._command = [sys.executable, "-c", "import sys; print('no GPU'); sys.exit(1)"]
    assert worker._process is not None
    worker._process.kill()


def test_a_worker_that_dies_again_and_again_rests_while_another_lives(
    two_workers: tuple[Supervisor, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, told = two_workers
    bad, good = supervisor.workers
    clock = _Clock(monkeypatch)
    _crashes(bad)
    clock.watch_until(supervisor, bad, lambda: any("rests for 60 s" in line for line in told))
    assert "no GPU" in told[-1]
    assert told[-1].endswith("the other workers go on")
    assert good.is_running
    rested = len(told)
    clock.now += RESTART_WINDOW_SECONDS - 1
    supervisor.watch()
    assert len(told) == rested
    clock.now += 2
    supervisor.watch()
    assert told[-1] == "worker-1 started again"
    _crashes(good)
    with pytest.raises(GaveUp, match="no GPU"):
        clock.watch_until(supervisor, good, lambda: False)


class _Clock:
    """In place of the supervisor's: moved on to when the next thing is due."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("services.supervisor.time.monotonic", lambda: self.now)

    def watch_until(self, supervisor: Supervisor, dying: Process, ready: Callable[[], bool]) -> None:
        for _ in range(10 * RESTARTS):
            for worker in supervisor.workers:
                if worker._process is not None and "exit" in worker._command[-1]:
                    ended(worker)
            supervisor.watch()
            if ready():
                return
            self.now = max(self.now, dying._start_at)
        raise AssertionError("it goes on and on")


def test_deaths_long_ago_are_forgiven(tmp_path: Path) -> None:
    child = started(tmp_path, "import sys; sys.exit(1)")
    now = 0.0
    for _ in range(2 * RESTARTS):
        ended(child)
        child.watch(now)
        now += RESTART_WINDOW_SECONDS / RESTARTS + 1
        assert child.watch(now) == "child started again"
    ended(child)


def test_a_wrong_setting_is_not_tried_again(tmp_path: Path) -> None:
    child = started(tmp_path, "import sys; print('setting credits: wrong'); sys.exit(2)")
    ended(child)
    with pytest.raises(GaveUp, match="setting credits: wrong"):
        child.watch(0.0)


def test_a_killed_process_is_told_from_one_that_ended(tmp_path: Path) -> None:
    child = started(tmp_path, "import time; time.sleep(60)")
    psutil.Process(child.pid).kill()
    ended(child)
    assert child.watch(0.0) == "child was killed by signal 9"


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    code = f"import signal, time; {deaf}; time.sleep(60)"
    child = started(tmp_path, code)
    says(child, "deaf")
    child.terminate()
    child.wait(time.monotonic() + 0.1)
    assert not psutil.pid_exists(child.pid or 0)


def test_a_child_has_its_own_process_group_its_threads_and_its_log(tmp_path: Path) -> None:
    code = (
        "import os, time; print(os.getpgid(0) == os.getpid(), os.environ['OMP_NUM_THREADS'], flush=True);"
        "time.sleep(60)"
    )
    child = started(tmp_path, code)
    says(child, "True 3")
    child.terminate()
    child.wait(time.monotonic() + PATIENCE_SECONDS)
    assert (tmp_path / "child.log").read_text().startswith("$ cryoflux")


@pytest.mark.skipif(sys.platform != "linux", reason="parents are followed on Linux only")
def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    follower = (
        "import os, sys, time\nfrom services.lifeline import end_with\nend_with(int(sys.argv[1]))\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {follower!r}, str(os.getpid())]).wait()"
    )
    child = started(tmp_path, parent)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not child.last_words().isdigit():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    grandchild = psutil.Process(int(child.last_words()))
    psutil.Process(child.pid).send_signal(signal.SIGKILL)
    ended(child)
    assert grandchild.wait(PATIENCE_SECONDS) is None or not grandchild.is_running()
