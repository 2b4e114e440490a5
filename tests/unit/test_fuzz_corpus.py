"""Every seed of the fuzzers and everything they ever found: nothing crashes, hangs or allocates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
CASES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_input_does_more_than_be_refused(path: Path) -> None:
    taken = TARGETS[path.parent.name](path.read_bytes())
    assert taken == (not path.name.startswith("bad-"))


def test_every_target_has_seeds() -> None:
    assert {path.parent.name for path in CASES} == set(TARGETS)
