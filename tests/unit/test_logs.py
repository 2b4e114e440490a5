"""Logs: what a line says, in both forms, whoever writes it."""

import json
import subprocess
import sys
from datetime import datetime

CODE = """
import logging, sys, threading, warnings
from common import logs
logs.configure(sys.argv[1], sys.argv[2], component="reconstructor", name="worker-1")
log = logging.getLogger("reconstructor.worker")
log.debug("hidden unless asked for")
log.info("before any session")
logs.about(session="s-1")
logs.about(config="c-1")
log.warning("%d frames of %s", 3, "Ångström", extra={"block": 7})
logging.getLogger("uvicorn.error").error("of a library\\nin two lines")
logging.getLogger("httpx").info("chatter")
warnings.warn("old habits", DeprecationWarning, stacklevel=1)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("caught")
def fails():
    raise KeyError("in a thread")
thread = threading.Thread(target=fails)
thread.start()
thread.join()
logs.last_word("cryoflux reconstructor: no device")
raise RuntimeError("uncaught")
"""


def written(form: str, level: str = "info") -> list[str]:
    """What a process writes to its standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", CODE, form, level],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_every_json_line_is_an_object_with_all_fields() -> None:
    lines = [json.loads(line) for line in written("json")]
    for line in lines:
        assert list(line)[:6] == ["time", "level", "logger", "message", "component", "name"]
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
        assert (line["component"], line["name"]) == ("reconstructor", "worker-1")
    said = {line["message"].splitlines()[0]: line for line in lines}
    assert "session" not in said["before any session"]
    frames = said["3 frames of Ångström"]
    assert (frames["session"], frames["config"], frames["block"]) == ("s-1", "c-1", 7)
    assert (frames["level"], frames["logger"]) == ("warning", "reconstructor.worker")
    assert said["of a library"]["logger"] == "uvicorn.error"
    assert "ZeroDivisionError" in said["caught"]["exception"]
    assert "in a thread" in said["KeyError: 'in a thread'"]["exception"]
    assert said["cryoflux reconstructor: no device"]["level"] == "critical"
    assert "Traceback" in said["RuntimeError: uncaught"]["exception"]
    assert any("old habits" in message for line in lines for message in [line["message"]])
    assert "chatter" not in said
    assert "hidden unless asked for" not in said


def test_lines_for_people_are_lines() -> None:
    lines = written("human")
    assert lines[0].endswith("INFO reconstructor.worker: before any session")
    assert "cryoflux reconstructor: no device" in lines
    assert lines[-1] == "RuntimeError: uncaught"


def test_the_level_is_the_least_that_is_told() -> None:
    assert any("hidden unless asked for" in line for line in written("json", "debug"))
    levels = {json.loads(line)["level"] for line in written("json", "error")}
    assert levels == {"error", "critical"}
