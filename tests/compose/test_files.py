"""What can be known of the containers' files without an engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
KNOB = re.compile(r"\$\{(?P<name>[A-Z0-9_]+)(?::?-(?P<default>[^}]*))?\}")
OURS = ("control", "detector", "reconstructor", "reconstructor-gpu", "session")
READ_BY_COMPOSE = {"COMPOSE_PROJECT_NAME"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def knobs() -> dict[str, str]:
    """What .env sets."""
    lines = [line for line in (ROOT / ".env").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def substituted(text: str) -> str:
    """A value of docker-compose.yml with what .env sets."""
    return KNOB.sub(lambda match: knobs()[match["name"]], text)


def test_every_knob_is_explained_in_the_env_file():
    used = {match["name"] for match in KNOB.finditer(COMPOSE.read_text())}
    assert used == knobs().keys() - READ_BY_COMPOSE
    explained = False  # variables that follow each other share what is said above them
    for line in (ROOT / ".env").read_text().splitlines():
        if line.startswith("#"):
            explained = not line.startswith("# ----")
        elif not line:
            explained = False
        else:
            name = line.partition("=")[0]
            assert explained, name


def test_defaults_hold_without_the_env_file():
    """Where a default must be there for the services to start at all, it is the one that .env has."""
    for match in KNOB.finditer(COMPOSE.read_text()):
        if match["default"]:
            assert match["default"] == knobs()[match["name"]], match["name"]


def test_images_have_versions(services):
    for name, service in services.items():
        version = substituted(service["image"]).rpartition(":")[2]
        assert re.search(r"\d+\.\d+\.\d+", version), f"{name}: {service['image']}"
    assert re.search(r":\d+\.\d+\.\d+-", knobs()["PYTHON_IMAGE"])


def test_files_that_are_mounted_are_there(services):
    sources = [
        volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])
    ]
    files = [ROOT / source for source in sources if source.startswith("./")]
    assert files
    assert [str(file) for file in files if not file.exists()] == []


def test_settings_given_to_the_processes_exist(services):
    """A variable that no process reads would be a promise that nobody keeps."""
    for name in OURS:
        given = [key for key in services[name]["environment"] if key.startswith("CRYOFLUX_")]
        known = {f"CRYOFLUX_{field.upper()}" for field in Settings.model_fields}
        assert set(given) <= known, name


def test_only_console_grafana_and_prometheus_are_published_and_on_loopback(services):
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert published.keys() == {"control", "grafana", "prometheus"}
    for ports in published.values():
        assert [substituted(port).partition(":")[0] for port in ports] == ["127.0.0.1"]


def test_no_service_has_rights_it_does_not_need(services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name


def test_reconstructors_can_be_scaled(services):
    for name in ("reconstructor", "reconstructor-gpu"):
        assert not {"container_name", "ports", "hostname"} & services[name].keys()


def test_every_service_says_whether_it_is_well(services):
    """Ones that only start something and end are not asked."""
    not_asked = {name for name, service in services.items() if not service.get("healthcheck")}
    assert not_asked == {"keys", "session"}


def test_dockerfile_is_clean():
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_image_is_made_of_what_the_build_gets():
    """Every path that the Dockerfile copies is let through by .dockerignore, and is there."""
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied.update(line.split()[1:-1])
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert copied == let_through
    assert [path for path in copied if not (ROOT / path).exists()] == []
