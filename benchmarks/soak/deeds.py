"""Does what was planned to a running installation, at its time, and notes what came of it."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import psutil

from benchmarks.soak.installation import PASSING, Installation
from benchmarks.soak.plan import Deed, Phase
from benchmarks.soak.watch import Watch

AGAIN_SECONDS = 0.5
PATIENCE_SECONDS = 300.0  # a killed detector is back in seconds, unless the machine is very busy
FAULTS = ("kill", "hang", "terminate")


class Deeds:
    """Changes on one thread and faults on another, so that they meet.

    Attributes
    ----------
    done : list of dict
        ``at`` (seconds since the soak began), ``verb``, ``target`` and ``body``, ``outcome``: what was
        answered or done; ``is_wrong``: an answer that no fault explains.
    """

    def __init__(self, installation: Installation, watch: Watch, session: str) -> None:
        self._installation, self._watch, self._session = installation, watch, session
        self.done: list[dict[str, Any]] = []

    def do(self, phase: Phase) -> None:
        """Do all of a phase's, and return at its end."""
        began = time.monotonic()
        changes = [deed for deed in phase.deeds if deed.verb not in FAULTS]
        faults = [deed for deed in phase.deeds if deed.verb in FAULTS]
        threads = [
            threading.Thread(target=self._in_turn, args=(deeds, began), daemon=True)
            for deeds in (changes, faults)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(max(0.0, began + phase.seconds - time.monotonic()))

    def _in_turn(self, deeds: list[Deed], began: float) -> None:
        for deed in deeds:
            time.sleep(max(0.0, began + deed.at - time.monotonic()))
            at = self._watch.now()
            if deed.verb in FAULTS:
                outcome, is_wrong = self._befall(deed), False
            elif deed.verb == "pause":
                outcome, is_wrong = self._pause(deed)
            else:
                status, said = self._call("PATCH", deed.verb, deed.body)
                outcome, is_wrong = _told(status, said)
            self.done.append(
                {
                    "at": round(at, 3),
                    "verb": deed.verb,
                    "target": deed.target,
                    "body": deed.body,
                    "seconds": round(deed.seconds, 2),
                    "outcome": outcome,
                    "is_wrong": is_wrong,
                }
            )

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        return self._installation.call(method, f"sessions/{self._session}/{path}", body)

    def _befall(self, deed: Deed) -> str:
        process = self._installation.processes().get(deed.target)
        if process is None:
            return "was not running"
        try:
            match deed.verb:
                case "kill":
                    process.send_signal(signal.SIGKILL)
                case "terminate":
                    process.send_signal(signal.SIGTERM)
                case _:
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(deed.seconds)
                    process.send_signal(signal.SIGCONT)
        except psutil.Error:
            return "was not running"
        return "done"

    def _pause(self, deed: Deed) -> tuple[str, bool]:
        """Pause, wait, and resume until it is certain that frames flow again."""
        status, said = self._call("POST", "pause")
        outcome = _told(status, said)
        time.sleep(deed.seconds)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            status, said = self._call("POST", "resume")
            found = self._installation.ask(f"sessions/{self._session}")
            if found is not None and found["state"] != "paused":
                return outcome
            time.sleep(AGAIN_SECONDS)
        return f"could not be resumed: {status} {said}", True


def _told(status: int, said: str) -> tuple[str, bool]:
    """What a call came to, and whether it should not have."""
    if 200 <= status < 300:
        return "done", False
    return f"{status} {said}".strip(), not (status == 0 or status in PASSING)
