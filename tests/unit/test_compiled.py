"""Compiled functions work whether or not what was compiled can be kept."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.compiled import compiled

ROUND_TRIP = """
import numpy as np
from common.configuration import CodecSpec
from common.wire.codec import decode_array, encode_array
values = np.arange(1000, dtype=np.int32) % 37
assert (decode_array(*encode_array(values, CodecSpec(values="integer", coding="packed"))) == values).all()
"""


def _round_trip(cache: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", ROUND_TRIP], env=environment, capture_output=True, text=True, **options
    )


def test_a_function_that_has_no_folder_to_be_kept_in_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x", names)  # of no file, as in an installation that is read-only
    twice = compiled(names["twice"])
    assert twice(21) == 42


def test_a_disk_that_is_full_is_not_noticed(tmp_path: Path) -> None:
    """Unlimited, the same functions are kept there."""
    full = tmp_path / "full"
    done = _round_trip(
        full, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not [path for path in full.rglob("*.nbc") if path.stat().st_size]
    kept = tmp_path / "kept"
    assert _round_trip(kept).returncode == 0
    assert [path for path in kept.rglob("*.nbc") if path.stat().st_size]


def test_a_cache_that_is_damaged_is_compiled_anew(tmp_path: Path) -> None:
    assert _round_trip(tmp_path).returncode == 0
    files = list(tmp_path.rglob("*.nb[ci]"))
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-20])
    done = _round_trip(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_function_itself_raises_is_not_hidden() -> None:
    def halve(x: int) -> float:
        return 1 / x

    with pytest.raises(ZeroDivisionError):
        compiled(halve)(0)
