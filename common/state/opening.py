"""Which store an address means."""

from __future__ import annotations

import re

from common.masking import masked
from common.state.embedded import EmbeddedStore
from common.state.store import Store, StoreError

OF_REDIS = ("redis", "rediss", "unix")


def open_store(address: str) -> Store:
    """The state store that the setting ``state`` names.

    Parameters
    ----------
    address : str
        A file for the embedded store, or ``redis://``, ``rediss://`` or ``unix://`` for a Redis server.

    Raises
    ------
    StoreError
        In one line, if it is neither, or the file cannot be used. A server need not be there yet.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", address)
    if scheme is None:
        return EmbeddedStore(address)
    if scheme[1].lower() not in OF_REDIS or not address.startswith(f"{scheme[0]}//"):
        shown = masked(address) if "://" in address else f"{scheme[0]}…"
        raise StoreError(
            f"state: {shown!r} is no state store; name a file, or redis://host:port/number, "
            "rediss://… (TLS) or unix://path"
        )
    from common.state.redis import RedisStore  # who keeps a file need not wait for it

    return RedisStore(address)
