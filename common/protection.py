"""What lies beyond this machine, and must therefore not be open to whoever comes by."""

from __future__ import annotations

import errno
import ipaddress

LOCAL_TRANSPORTS = ("ipc://", "inproc://")


class NotProtected(OSError):
    """Something would be reachable from other machines without what protects it; one line says what to do."""

    def __init__(self, line: str) -> None:
        super().__init__(errno.EACCES, line)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nothing else.

    A name other than *localhost* is not looked up: who answers for it may change.
    """
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_local(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint can only be reached from this machine."""
    if endpoint.startswith(LOCAL_TRANSPORTS):
        return True
    host, _, _ = endpoint.removeprefix("tcp://").rpartition(":")
    return is_loopback(host)
