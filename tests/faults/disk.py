"""A small disk that a test fills: a tmpfs in a mount namespace of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import program
from tests.faults.holding import Holder
from tests.integration.bus import Place


class SmallDisk:
    """Mounted at ``path`` for the processes that are placed there; the test itself sees it at ``seen``."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        program("mount", "mount")
        path.mkdir()
        mount = f'mount -t tmpfs -o size={size_bytes} cryoflux-test "{path}"'
        self._holder = Holder("--mount", mount)
        self.path, self.seen = path, Path(f"/proc/{self._holder.pid}/root{path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.close()

    @property
    def place(self) -> Place:
        """What lets a process of the test have this disk."""
        return Place(before=self._holder.enter("--mount"))

    def fill_but(self, size_bytes: int) -> None:
        """Take all the room but so much."""
        ballast = self.seen / "ballast"
        with ballast.open("wb") as file:
            free = int(subprocess.check_output(["stat", "-f", "-c", "%a", str(self.seen)])) * 4096
            file.write(bytes(max(0, free - size_bytes)))

    def make_room(self) -> None:
        """Give it back."""
        (self.seen / "ballast").unlink()
