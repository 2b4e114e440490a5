"""What protects control bus and data plane, as the settings of a process say."""

from __future__ import annotations

import logging
from pathlib import Path

from common.protection import NotProtected, is_local
from common.settings import Settings
from common.wire.keys import CONTROL_BUS, DATA_PLANE, Keyring, Plane, Role, Security, role_of

log = logging.getLogger(__name__)


class Planes:
    """The keys of one process, and where it may go without any.

    Parameters
    ----------
    role : str
        What the process is: its key has to be meant for that, and is called so if the settings name none.

    Raises
    ------
    NotProtected
        In one line that says what to do, if the keys cannot be used.

    Attributes
    ----------
    control_bus, data_plane : Security or None
        What their sockets are made with; None: they are not encrypted.
    """

    def __init__(self, settings: Settings, role: Role) -> None:
        self._unprotected = "planes" in settings.unprotected
        self._told: set[str] = set()
        self.control_bus: Security | None = None
        self.data_plane: Security | None = None
        if settings.keys:
            own = settings.key or role
            if role_of(own) != role:
                raise NotProtected(f"key: {own} is the key of a {role_of(own)}, and this is a {role}")
            keyring = Keyring(Path(settings.keys), own)
            self.control_bus = Security(keyring, CONTROL_BUS)
            self.data_plane = Security(keyring, DATA_PLANE)
            for plane in (CONTROL_BUS, DATA_PLANE):
                if role in plane.lets_in:
                    keyring.public(plane.server)

    def check_control_bus(self, endpoint: str) -> None:
        """See that the control bus may be there.

        Raises
        ------
        NotProtected
            If other machines reach it, and it is not encrypted.
        """
        self._check(CONTROL_BUS, endpoint)

    def check_data_plane(self, endpoint: str) -> None:
        """See that the data plane may be there.

        Raises
        ------
        NotProtected
            If other machines reach it, and it is not encrypted.
        """
        self._check(DATA_PLANE, endpoint)

    def _check(self, plane: Plane, endpoint: str) -> None:
        if self.control_bus is not None or is_local(endpoint):
            return
        line = f"{plane.name} on {endpoint}: beyond this machine it needs keys"
        if not self._unprotected:
            raise NotProtected(
                f"{line}: make them with 'cryoflux keys new' and name their folder in the setting keys "
                "(docs/security.md), or set unprotected to planes"
            )
        if endpoint not in self._told:
            self._told.add(endpoint)
            log.warning(
                "%s on %s is neither encrypted nor protected: who reaches it may join (setting unprotected)",
                plane.name,
                endpoint,
            )
