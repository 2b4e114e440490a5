"""A command that cannot do its work: one line that says why, and an exit code."""

from __future__ import annotations

import sys


class CannotRun(RuntimeError):
    """A command cannot do its work, or not go on; the message is one line."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class WrongOption(CannotRun):
    """An option with a value that cannot be used; the message is one line that names it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)


def fail(command: str, error: CannotRun) -> int:
    """Say in one line why a command cannot do its work; its exit code."""
    print(f"cryoflux {command}: {error}", file=sys.stderr)
    return error.exit_code
