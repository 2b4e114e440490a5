"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


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
