"""Fixtures that every test may use."""

import os
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
import torch
from _pytest.nodeid import coerce_node_id


def program(name: str, package: str) -> str:
    """Path of a program that a test runs for real, of a Debian package; without it the test is skipped.

    In continuous integration, where everything has to be installed, it fails instead.
    """
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def pytest_configure() -> None:
    """No detector of a test takes up what another one left in the folder that is the default."""
    os.environ["CRYOFLUX_SPOOL"] = tempfile.mkdtemp(prefix="cryoflux-spool-")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes: each module is compiled once
    if "PYTEST_XDIST_WORKER" in os.environ:  # threads waiting for each other take most time
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Schemathesis gives all operations of a test one id, of which pytest-xdist would run the first alone."""
    for item in items:
        if item.parent is not None and item.nodeid == f"{item.parent.nodeid}::{item.name.partition('[')[0]}":
            item._id = coerce_node_id(f"{item.parent.nodeid}::{item.name}")


@pytest.fixture(autouse=True)
def _own_spool(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOFLUX_SPOOL", str(tmp_path_factory.getbasetemp() / f"spool-{uuid.uuid4().hex}"))


def pytest_unconfigure() -> None:
    """Nothing is left behind."""
    shutil.rmtree(os.environ["CRYOFLUX_SPOOL"], ignore_errors=True)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real micrographs, particles and models; the test is skipped where it is not at hand."""
    folder = os.environ.get("CRYOFLUX_DATA")
    if not folder:
        pytest.skip("CRYOFLUX_DATA is not set: this test needs real images")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"CRYOFLUX_DATA={folder} is not a folder")
    return path
