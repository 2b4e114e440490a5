"""Who may do what: two roles, each with its token, and what a request shows of them."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from common.protection import NotProtected, is_loopback

if TYPE_CHECKING:
    from common.settings import Settings

FAILED_SECONDS = 0.5  # a wrong token is answered so much later
SHAPE = re.compile(r"[A-Za-z0-9._~+/=-]+")  # what RFC 6750 can carry in a header
CHALLENGE = 'Bearer realm="cryoflux"'  # what an answer without a token asks for
HINT = "cryoflux keys token prints one"


class Role(StrEnum):
    """What somebody may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"


class Tokens:
    """The tokens of an installation. Without any, everybody is the operator.

    Parameters
    ----------
    operator, viewer : str
        Empty: there is none.

    Raises
    ------
    ValueError
        In one line, if a token could not be sent in a header, or both are the same.
    """

    def __init__(self, operator: str = "", viewer: str = "") -> None:
        given = {Role.OPERATOR: operator, Role.VIEWER: viewer}
        self._tokens = {role: token for role, token in given.items() if token}
        for role, token in self._tokens.items():
            if not SHAPE.fullmatch(token):
                raise ValueError(
                    f"setting {role}_token: only letters, digits and -._~+/= can be in a token; {HINT}"
                )
        if operator and hmac.compare_digest(operator, viewer):
            raise ValueError(f"setting viewer_token: it is the operator_token too; {HINT}")
        self._digests = {role: _digest(token.encode()) for role, token in self._tokens.items()}

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of the settings; raises as the class does."""
        operator, viewer = (
            token.get_secret_value() if token is not None else ""
            for token in (settings.operator_token, settings.viewer_token)
        )
        return cls(operator, viewer)

    def __bool__(self) -> bool:
        """Whether a token is needed at all."""
        return bool(self._tokens)

    def __repr__(self) -> str:
        """Which there are; never what they are."""
        return f"Tokens({', '.join(self._tokens)})"

    def secret(self, role: Role) -> str | None:
        """The token of a role."""
        return self._tokens.get(role)

    def role_of(self, token: bytes) -> Role | None:
        """Whose token this is. All are compared, in a time that does not depend on how much is right."""
        shown, found = _digest(token), None
        for role, digest in self._digests.items():
            if hmac.compare_digest(shown, digest):
                found = role
        return found


def bearer(values: Iterable[bytes]) -> bytes | None:
    """The token that the values of a request's ``Authorization`` headers show.

    None: none is shown. Empty: something is shown that cannot be a token (another scheme, several headers, a
    word too many), which is as wrong as a wrong token.
    """
    headers = list(values)
    if not headers:
        return None
    scheme, _, token = headers[0].strip(b" \t").partition(b" ")
    if len(headers) > 1 or scheme.lower() != b"bearer":
        return b""
    return token.strip(b" ")


def tokens_for_http(settings: Settings) -> Tokens:
    """The tokens that REST asks for.

    Raises
    ------
    NotProtected
        If REST could be reached from other machines without any.
    ValueError
        If a token cannot be used, or only the viewer's is there: then nobody could do anything.
    """
    tokens = Tokens.of(settings)
    if tokens and tokens.secret(Role.OPERATOR) is None:
        raise ValueError(f"setting viewer_token: an operator_token is needed beside it; {HINT}")
    if not tokens and not is_loopback(settings.http_reached):
        raise NotProtected(
            f"REST on {settings.http_reached} can be reached from other machines: "
            f"set CRYOFLUX_OPERATOR_TOKEN ({HINT}), or serve it on 127.0.0.1"
        )
    return tokens


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
