"""How ``--help`` reads: paragraphs fill the terminal's width, and a flag shows no value beside it."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Readable:
    def __init__(self, *arguments: Any, help: str | None = None, **more: Any) -> None:
        paragraph_lines = re.compile(r"(?<!\n)\n(?!\n) *")
        super().__init__(*arguments, help=help and paragraph_lines.sub(" ", help), **more)

    def get_params(self, ctx: Any) -> Any:
        """The parameters, flags marked so that no ``<bool>`` stands beside them."""
        parameters = super().get_params(ctx)  # pyright: ignore[reportAttributeAccessIssue]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters


class Command(_Readable, TyperCommand):
    """One command."""


class Group(_Readable, TyperGroup):
    """Commands that have a name in common."""
