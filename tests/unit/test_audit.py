"""The pinned versions: nothing is known against them, and nothing that is needed at run time is GPL."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
import zmq
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.audit import (
    PINS,
    Unreachable,
    advisories,
    ask,
    concerned,
    is_copyleft,
    needed,
    pins,
    verdict,
)

OLDEST_LIBZMQ = (4, 3, 3)  # CVE-2020-15166: before it, strangers without a key could keep others out


def test_no_pin_is_older_than_what_mended_a_known_fault() -> None:
    assert not [str(one) for one in concerned(pins(), advisories())]


def test_the_list_of_advisories_is_of_packages_that_are_pinned() -> None:
    known, pinned = advisories(), pins()
    assert len(known) > 30
    for one in known:
        assert one.package in pinned, f"{one.package} is not pinned any more: take it off the list"
        assert all(re.fullmatch(r"CVE-\d{4}-\d{4,}|GHSA(-\w{4}){3}|PYSEC-\d{4}-\d+", i) for i in one.ids)


def test_an_old_pin_is_found(tmp_path: Path) -> None:
    old = tmp_path / "constraints.txt"
    old.write_text("# pins\nPillow==10.2.0  # old\nstarlette==1.0.0\ngrafana==17696!11.6.0\n")
    found = concerned(pins(old), advisories())
    assert {one.package for one in found} == {"pillow"}
    assert len(found) == 2


def test_everything_that_is_needed_is_pinned_and_installed_as_pinned() -> None:
    pinned = pins()
    for name, _ in needed(extras=["tracing"]):
        if name != "cryoflux":
            version = Version(distribution(name).version)
            assert canonicalize_name(name) in pinned, f"{name} is not in {PINS.name}"
            assert version.public == pinned[canonicalize_name(name)].public, name


def test_the_zeromq_library_is_not_an_old_one() -> None:
    assert zmq.zmq_version_info() >= OLDEST_LIBZMQ


def test_nothing_that_is_needed_at_run_time_is_under_the_gpl() -> None:
    packages = needed(extras=["tracing"])
    assert len(packages) > 40
    every = distribution("cryoflux").requires or []
    direct = {canonicalize_name(Requirement(line).name) for line in every if "extra" not in line}
    assert direct <= {canonicalize_name(one.name) for one in packages}
    assert not [one for one in packages if is_copyleft(one.licence)]
    assert not [one.name for one in packages if not one.licence], "their metadata names no licence"


@pytest.mark.parametrize(
    ("licence", "expected"),
    [("GPL-3.0", True), ("GNU General Public License v3 (GPLv3)", True), ("AGPL-3.0-only", True),
     ("MIT", False), ("MPL-2.0", False), ("BSD-3-Clause", False), ("LGPL-2.1", False)],
)  # fmt: skip
def test_copyleft_is_recognised(licence: str, expected: bool) -> None:
    assert is_copyleft(licence) == expected


def test_silence_is_not_taken_for_good_news() -> None:
    skipped = {"name": "pillow", "skip_reason": "Dependency not found on PyPI"}
    clean = {"name": "redis", "version": "8.1.0", "vulns": []}
    found = {"id": "PYSEC-1", "fix_versions": ["2.6"], "aliases": []}
    bad = {"name": "torch", "version": "2.5", "vulns": [found]}
    with pytest.raises(Unreachable):
        verdict({"dependencies": [skipped]})
    assert verdict({"dependencies": [clean]}) == []
    assert verdict({"dependencies": [clean, skipped]}) == ["pillow: not in the database"]
    assert verdict({"dependencies": [bad, clean]}) == ["torch 2.5: PYSEC-1; fixed in 2.6"]


def test_todays_database_knows_nothing_against_the_pins() -> None:
    pytest.importorskip("pip_audit", reason="pip-audit is not installed: make audit")
    try:
        assert ask() == []
    except Unreachable as error:
        pytest.skip(f"advisories of today cannot be asked for: {error}")
