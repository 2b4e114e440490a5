"""Kinds of values that models of requests share: what their JSON schema says, not what only looks like it.

Without ``Strict`` "4" would be taken for 4, and true for 1.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

Whole = Annotated[int, Strict()]
"""A whole number."""

Number = Annotated[float, Strict()]
"""A number, whole or not."""

Flag = Annotated[bool, Strict()]
"""True or false."""

Place = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
"""A path; what the file system makes of it is found out by whoever opens it."""
