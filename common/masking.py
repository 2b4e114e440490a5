"""Addresses as they may be shown: whatever could be a password in them is made unreadable."""

from __future__ import annotations

import re

MASK = "***"

_USER = re.compile(r"(?<=://)(\S*)@")  # to the last @: a password that nobody has encoded may hold anything
_NO_PORT = re.compile(r"(?<=://)([^/@\s:\[\]]*):(?!\*|\d*(?:[/?\s]|$))[^/@?\s]*(?=[/?\s]|$)")
_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]*(?:password|token|secret|key)=)[^&\s]*", re.IGNORECASE)


def masked(text: str) -> str:
    """A text with the passwords of addresses in it made unreadable.

    What stands before the last ``@`` is a user and a password, and where there is no colon a token; what
    stands where a port should be and is no number is taken for a password too.
    """
    if "://" not in text:
        return text
    text = _USER.sub(_without_password, text)
    return _PARAMETER.sub(rf"\1{MASK}", _NO_PORT.sub(rf"\1:{MASK}", text))


def _without_password(found: re.Match[str]) -> str:
    user, colon, _ = found[1].partition(":")
    plain = colon and re.fullmatch(r"[\w.+-]*", user)
    return f"{user}:{MASK}@" if plain else f"{MASK}@"
