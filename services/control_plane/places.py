"""The paths of a session: made absolute, and held against what sessions may read and write."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.roots import ANYWHERE, NotAllowed, Roots, inputs_of, outputs_of
from common.session import RESULTS, STRUCTURES, ArchiveSource, FileSource, SessionSpec, SpecimenSource
from common.settings import Settings
from services import priors
from services.explain import FieldProblem


@dataclass(frozen=True)
class Places:
    """What sessions may read and write.

    What they read is seen by the detector, perhaps on another machine, so here it goes by its name alone;
    the detector looks where the name really leads. What they write is seen from here too.
    """

    inputs: Roots = ANYWHERE
    outputs: Roots = field(default_factory=lambda: Roots(None, "write to"))

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """As the settings of this process say."""
        return cls(inputs_of(settings), outputs_of(settings))

    def settled(self, spec: SessionSpec) -> tuple[SessionSpec, list[FieldProblem]]:
        """A session with absolute paths, and what is wrong with them, field by field."""
        problems: list[FieldProblem] = []

        def absolute(name: str, path: str, roots: Roots) -> str:
            try:
                return str(roots.named(path))
            except NotAllowed as error:
                problems.append(FieldProblem(name, str(error)))
                return path

        source = spec.source
        match source:
            case FileSource() | ArchiveSource() if source.path is not None:
                path = absolute("source.path", source.path, self.inputs)
                source = source.model_copy(update={"path": path})
            case SpecimenSource() if source.specimen.structure not in STRUCTURES:
                name = "source.specimen.structure"
                structure = absolute(name, source.specimen.structure, self.inputs)
                specimen = source.specimen.model_copy(update={"structure": structure})
                source = source.model_copy(update={"specimen": specimen})
            case _:
                pass
        written = {
            name: absolute(name, path, self.outputs)
            for name, path in (("output", spec.output), ("archive", spec.archive))
            if path is not None
        }
        if not problems:
            problems += self._in_the_way(written)
        recovery, wrong = priors.settled(spec.recovery, self.inputs)
        problems += wrong
        return spec.model_copy(update={"source": source, "recovery": recovery, **written}), problems

    def _in_the_way(self, written: Mapping[str, str]) -> list[FieldProblem]:
        """What is there already and would be replaced, or leads elsewhere."""
        problems: list[FieldProblem] = []
        for name, path in written.items():
            try:
                if name == "archive":
                    wrong = cannot_begin(self.outputs.real(path))
                else:
                    wrong = cannot_hold(self.outputs.real(path))
            except NotAllowed as error:
                wrong = str(error)
            except OSError as error:
                wrong = f"{path}: {error.strerror or error}"
            if wrong:
                problems.append(FieldProblem(name, wrong))
        return problems

    def results(self, opened: Mapping[str, Any]) -> Path:
        """The folder of results that a detector has named, by its path without links.

        Raises
        ------
        NotAllowed, OSError
            In one line, if it is none that sessions may write to, or cannot be looked for.
        """
        return self.outputs.real(opened["output"])

    def environment(self) -> dict[str, str]:
        """By which a process that this one starts has the same limits."""
        limits = {"CRYOFLUX_INPUTS": self.inputs, "CRYOFLUX_OUTPUTS": self.outputs}
        return {name: json.dumps(roots.places) for name, roots in limits.items() if roots.limited}


def named_by(spec: SessionSpec) -> tuple[list[str], list[str]]:
    """What a session with absolute paths reads, and what it writes; of a STAR file, all that is beside it."""
    reads: list[str] = []
    match spec.source:
        case FileSource(path=path) if path.lower().endswith(".star"):
            reads = [os.path.dirname(path)]
        case FileSource(path=path) | ArchiveSource(path=str(path)):
            reads = [path]
        case SpecimenSource() if spec.source.specimen.structure not in STRUCTURES:
            reads = [spec.source.specimen.structure]
        case _:
            pass
    prior = spec.recovery.parameters.get("prior")
    if isinstance(prior, str) and prior.startswith("/"):
        reads.append(prior)
    return reads, [path for path in (spec.output, spec.archive) if path is not None]


def cannot_begin(file: Path) -> str | None:
    """What keeps a new archive from being written there; None: nothing that can be seen beforehand."""
    try:
        if file.is_dir():
            return f"{file} is a folder; name a file"
        if os.path.lexists(file):
            return f"{file} exists already; name another file"
    except (OSError, ValueError) as error:  # no name at all, or a folder that may not be looked into
        return f"no file can be there: {getattr(error, 'strerror', None) or error}"
    return None


def cannot_hold(folder: Path) -> str | None:
    """What keeps results from being written there; None: nothing that can be seen beforehand.

    Nothing is ever replaced: neither results of another session, nor what only is called like them.
    """
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file; name a folder"
    there = next((name for name in RESULTS if os.path.lexists(folder / name)), None)
    return there and f"{folder} already holds {there}, which would be replaced; name another folder"
