"""What is known to be wrong with the versions that constraints.txt pins, and under which licences they come.

``make audit`` asks the advisory database of the Python Package Index, by pip-audit. Where that cannot be
reached, what stands in ``advisories.toml`` is all that is known: it is checked wherever the tests run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints.txt"
ADVISORIES = Path(__file__).parent / "advisories.toml"
PATIENCE_SECONDS = 300.0


class Unreachable(RuntimeError):
    """The advisory database does not answer, or answers for somebody else; one line."""


class Advisory(NamedTuple):
    """From which version on something is mended."""

    package: str
    fixed: Version
    ids: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        return f"{', '.join(self.ids)}: {self.package} before {self.fixed}: {self.what}"


def pins(path: Path = PINS) -> dict[str, Version]:
    """The pinned version of every package."""
    found: dict[str, Version] = {}
    for line in path.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            name, _, version = text.partition("==")
            found[canonicalize_name(name)] = Version(version)
    return found


def advisories(path: Path = ADVISORIES) -> list[Advisory]:
    """What is known here."""
    known = tomllib.loads(path.read_text())["advisory"]
    return [
        Advisory(canonicalize_name(one["package"]), Version(one["fixed"]), tuple(one["ids"]), one["what"])
        for one in known
    ]


def concerned(pinned: Mapping[str, Version], known: Iterable[Advisory]) -> list[Advisory]:
    """Those that a pinned version is too old for."""
    return [one for one in known if one.package in pinned and pinned[one.package] < one.fixed]


def ask(pins_file: Path = PINS) -> list[str]:
    """What pip-audit finds, a line each.

    Raises
    ------
    Unreachable
        If the database is not there, or does not know the packages: silence is no good news.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--requirement", str(pins_file), "--no-deps", "--disable-pip",
         "--progress-spinner", "off", "--format", "json", "--timeout", "20"],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["no answer"]
        raise Unreachable(f"pip-audit: {lines[-1][:300]}") from None
    return verdict(answer)


def verdict(answer: Mapping[str, Any]) -> list[str]:
    """The findings in an answer of pip-audit; raises as ``ask`` does."""
    packages = answer["dependencies"]
    unknown = [one["name"] for one in packages if "skip_reason" in one]
    if unknown and len(unknown) == len(packages):
        raise Unreachable(f"the database knows none of the {len(packages)} packages: it is another one")
    findings = [f"{name}: not in the database" for name in unknown]
    for one in packages:
        for found in one.get("vulns", []):
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            ids = ", ".join([found["id"], *found.get("aliases", [])])
            findings.append(f"{one['name']} {one['version']}: {ids}; fixed in {fixed}")
    return findings


# ---- licences


class Licensed(NamedTuple):
    """A package with its licence, as its metadata says."""

    name: str
    licence: str


def needed(package: str = "cryoflux", extras: Iterable[str] = ()) -> list[Licensed]:
    """Every package that is installed because ``package`` needs it at run time."""
    seen: dict[str, Licensed] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(package, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform
        if canonicalize_name(name) in seen and not wanted:
            continue
        seen[canonicalize_name(name)] = Licensed(found.name, _licence(found.metadata))
        for line in found.requires or []:
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return sorted(seen.values())


def _licence(metadata: Any) -> str:
    """What the metadata says of the licence: an expression, classifiers, or the first line of the text."""
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = metadata.get_all("Classifier") or []
    named = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License")]
    text = (metadata.get("License") or "").strip().splitlines()
    return "; ".join([*named, *text[:1]])


def is_copyleft(licence: str) -> bool:
    """Whether a licence asks that programs which use the package come under it too."""
    return re.search(r"\bA?GPL|General Public", licence) is not None and "LGPL" not in licence
