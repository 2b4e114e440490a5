"""A Docker engine as its command lines give it: one compose project, and what is in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 120.0
BUILD_SECONDS = 3600.0  # the first build loads a gigabyte of libraries


class NoEngine(RuntimeError):
    """There is nothing to run containers with; the message says what is missing."""


class Failed(AssertionError):
    """Something is not as it must be; the message says what, in a line or a few."""


def compose_command() -> list[str]:
    """``docker compose``, or ``docker-compose`` where there is only that.

    Raises
    ------
    NoEngine
        If neither is installed, or no engine answers.
    """
    if shutil.which("docker") is None:
        raise NoEngine("docker is not installed")
    info = _run(["docker", "info", "--format", "{{.ServerVersion}}"])
    if info.returncode or not info.stdout.strip():
        said = (info.stderr.strip() or info.stdout.strip() or "no answer").splitlines()[-1]
        raise NoEngine(f"no Docker engine answers: {said}; start one, or say with DOCKER_HOST where it is")
    if _run(["docker", "compose", "version"]).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise NoEngine("neither `docker compose` nor `docker-compose` is installed")


def versions(compose: Sequence[str]) -> str:
    """What the test runs on, in one line."""
    server = _run(["docker", "version", "--format", "{{.Server.Version}}"]).stdout.strip()
    return f"engine {server}, {' '.join(compose)} {_run([*compose, 'version', '--short']).stdout.strip()}"


class Project:
    """A compose project of its own name: its containers, networks and volumes belong to nobody else.

    Parameters
    ----------
    folder : Path
        Where docker-compose.yml and .env are.
    environment : mapping
        Goes before what .env says.
    """

    def __init__(
        self, compose: Sequence[str], folder: Path, name: str, environment: Mapping[str, str]
    ) -> None:
        self._compose, self._folder, self.name = [*compose, "--project-name", name], folder, name
        self._environment = {**os.environ, **environment, "COMPOSE_PROJECT_NAME": name}

    def run(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> str:
        """What a compose command prints on standard output.

        Raises
        ------
        Failed
            If it does not end with 0 within ``seconds``; with the last that it said.
        """
        command = [*self._compose, *arguments]
        told = f"{command[0]} {' '.join(arguments)}"
        try:
            done = _run(command, cwd=self._folder, env=self._environment, seconds=seconds)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{told}: did not end within {seconds:g} s") from error
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
            raise Failed(f"{told}: ended with {done.returncode}:\n{said}")
        return done.stdout

    def python(self, service: str, program: str) -> str:
        """What a Python program prints that runs in a service's (first) container."""
        return self.run("exec", "-T", service, "python", "-c", program)

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        """What the engine knows of the project's containers, or of one service's."""
        asked = ["--filter", f"label=com.docker.compose.project={self.name}"]
        if service:
            asked += ["--filter", f"label=com.docker.compose.service={service}"]
        names = _run(["docker", "ps", "--all", "--quiet", *asked]).stdout.split()
        if not names:
            return []
        # one that was removed in between makes inspect fail, but the others are told all the same
        return json.loads(_run(["docker", "inspect", *names]).stdout or "[]")

    def state(self, service: str) -> dict[str, Any]:
        """Of a service's only container."""
        found = self.containers(service)
        if len(found) != 1:
            raise Failed(f"{service}: {len(found)} containers, not 1")
        return found[0]["State"]

    def remove(self) -> None:
        """Stop everything and remove containers, networks and volumes."""
        self.run("--profile", "gpu", "down", "--volumes", "--remove-orphans", seconds=300.0)

    def leftovers(self) -> list[str]:
        """Names of what is still there of the project."""
        label = f"label=com.docker.compose.project={self.name}"
        found: list[str] = []
        for kind in ("container", "network", "volume"):
            listed = ["docker", kind, "ls", *(["--all"] if kind == "container" else []), "--filter", label]
            found += [f"{kind} {name}" for name in _run([*listed, "--quiet"]).stdout.split()]
        return found


def _run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = ANSWER_SECONDS,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=env, timeout=seconds, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
