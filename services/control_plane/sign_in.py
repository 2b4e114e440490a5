"""The cookie of a browser that signed in: its role and since when, signed with the role's own token.

Nothing is stored: a cookie ends with its time, and with the token that signed it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import NamedTuple

from itsdangerous import BadSignature, TimestampSigner

from common.tokens import Role, Tokens

COOKIE = "cryoflux_access"
LASTS_SECONDS = 12 * 3600
MOST_COOKIES = 8  # of that name in one request; others may be put beside ours by other servers of the host


class SignedIn(NamedTuple):
    """Who a cookie says its bearer is, and when that ends, in Unix seconds."""

    role: Role
    until: float


def cookie_of(tokens: Tokens, role: Role) -> str:
    """The value of the cookie of who signs in now."""
    return _signer(tokens, role).sign(role.value).decode()


def signed_in(tokens: Tokens, cookies: Iterable[str]) -> SignedIn | None:
    """Who the cookies of that name say their bearer is; None if none of them is valid."""
    for cookie in list(cookies)[:MOST_COOKIES]:
        for role in Role:
            if tokens.secret(role) is None:
                continue
            try:
                value, since = _signer(tokens, role).unsign(
                    cookie.encode("utf-8", "surrogatepass"), max_age=LASTS_SECONDS, return_timestamp=True
                )
            except BadSignature:  # forged, of another token, or expired
                continue
            if value == role.value.encode():
                return SignedIn(role, since.timestamp() + LASTS_SECONDS)
    return None


def cookies_in(headers: Iterable[bytes]) -> list[str]:
    """The cookies of our name in the ``Cookie`` headers of a request."""
    found: list[str] = []
    for header in headers:
        for part in header.decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE:
                found.append(value)
    return found


def left(until: float) -> float:
    """Seconds until then, not less than none."""
    return max(0.0, until - time.time())


def _signer(tokens: Tokens, role: Role) -> TimestampSigner:
    secret = tokens.secret(role) or ""
    return TimestampSigner(
        secret, salt=f"cryoflux sign-in {role}", key_derivation="hmac", digest_method=hashlib.sha256
    )
