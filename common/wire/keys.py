"""Keys of control bus and data plane: a folder of them says who a process is, and who may speak with it.

The files are ZeroMQ's own CURVE certificates: ``NAME.key`` holds a public key and may be given to everybody,
``NAME.key_secret`` holds the secret one too and stays where it is used. The name says what a key is good for:
*control* and *detector* (also *detector-…*) are those of who binds a plane, all others are workers'.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from common.protection import NotProtected

log = logging.getLogger(__name__)

PUBLIC, SECRET = ".key", ".key_secret"
KEY_BYTES = 32
MARK_BYTES = 17
MOST_BYTES_OF_A_FILE = 65_536
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
USUAL_NAMES = ("control", "detector", "worker")

Role = Literal["control", "detector", "worker"]


class Plane(NamedTuple):
    """One of the two planes: whose key the other ends have to know, and whose keys are let in."""

    name: str
    server: Role
    lets_in: frozenset[Role]


CONTROL_BUS = Plane("control bus", "control", frozenset[Role](("detector", "worker")))
DATA_PLANE = Plane("data plane", "detector", frozenset[Role](("worker",)))


def role_of(name: str) -> Role:
    """What a key of this name is good for."""
    first = re.split(r"[_.-]", name, maxsplit=1)[0]
    return "control" if first == "control" else "detector" if first == "detector" else "worker"


@dataclass(frozen=True)
class Member:
    """Who holds a key.

    Attributes
    ----------
    name : str
        Of the file.
    key : str
        The public key, 40 letters.
    mark : bytes
        Ends the identity of each of its sockets, so that nobody else can take such an identity.
    """

    name: str
    key: str
    mark: bytes

    @property
    def role(self) -> Role:
        """What the key is good for."""
        return role_of(self.name)


def mark_of(key: bytes) -> bytes:
    """What the identities end with of who holds this public key."""
    return b"~" + hashlib.sha256(key).hexdigest()[: MARK_BYTES - 1].encode()


@dataclass(frozen=True)
class Pair:
    """A key of one's own."""

    public: bytes
    secret: bytes = field(repr=False)


class Members:
    """Everybody whose public key lies in a folder at one moment."""

    def __init__(self, by_key: Mapping[str, Member]) -> None:
        self._by_key = by_key
        self._marks = frozenset(member.mark for member in by_key.values())

    def get(self, key: str) -> Member | None:
        """Who holds the key, if it is there."""
        return self._by_key.get(key)

    def includes(self, identity: bytes) -> bool:
        """Whether an identity is that of somebody whose key is there."""
        return identity[-MARK_BYTES:] in self._marks

    def all(self) -> list[Member]:
        """Everybody, by name."""
        return sorted(self._by_key.values(), key=lambda member: member.name)


class Keyring:
    """A folder of keys, as one process uses it.

    Parameters
    ----------
    folder : Path
        Of public keys, and of the process's own secret one.
    own : str
        Name of that.

    Raises
    ------
    NotProtected
        In one line that says what to do: a file is missing or is no key, or others can read the secret one.
    """

    def __init__(self, folder: Path, own: str) -> None:
        self.folder, self.own = folder, own
        if not zmq.has("curve"):
            raise NotProtected("keys: this build of ZeroMQ has no CURVE; install pyzmq from its wheels")
        self._seen: tuple[object, ...] | None = None
        self._members = Members({})
        self._complained: set[str] = set()
        self.pair()
        self.members()

    def pair(self) -> Pair:
        """The process's own key.

        Raises
        ------
        NotProtected
            As above.
        """
        path = self.folder / f"{self.own}{SECRET}"
        _check_nobody_else(path)
        public, secret = _read(path)
        if secret is None:
            raise NotProtected(f"keys: {path} holds no secret key")
        if zmq.curve_public(secret) != public:
            raise NotProtected(f"keys: {path}: its public and its secret key do not belong together")
        return Pair(public, secret)

    def public(self, name: str) -> bytes:
        """A public key by its name.

        Raises
        ------
        NotProtected
            If it is not there, or is no key.
        """
        return public_key(self.folder, name)

    def members(self) -> Members:
        """Whose public keys lie in the folder now; read again only where something there has changed.

        A file that is no key is skipped and told once. So is a folder that cannot be read: nobody is let in.
        """
        seen = self._look()
        if seen != self._seen:
            by_key: dict[str, Member] = {}
            for name in sorted(entry[0] for entry in seen):
                try:
                    key = self.public(name)
                except NotProtected as error:
                    self._complain(f"{error.strerror}; it is not let in")
                    continue
                member = Member(name, key.decode(), mark_of(key))
                other = by_key.setdefault(member.key, member)
                if other is not member:
                    self._complain(f"keys: {other.name} and {name} in {self.folder} are the same key")
            self._seen, self._members = seen, Members(by_key)
        return self._members

    def _look(self) -> tuple[tuple[str, int, int, int], ...]:
        found: list[tuple[str, int, int, int]] = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(PUBLIC) and NAME.fullmatch(name := entry.name[: -len(PUBLIC)]):
                        with contextlib.suppress(OSError):  # deleted since
                            status = entry.stat()
                            found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError as error:
            self._complain(f"keys: {self.folder}: {error.strerror}; nobody is let in")
        return tuple(sorted(found))

    def _complain(self, line: str) -> None:
        if line not in self._complained:
            self._complained.add(line)
            log.warning("%s", line)


class Security(NamedTuple):
    """What protects one plane: the keys, and which plane it is."""

    keys: Keyring
    plane: Plane


def _check_nobody_else(path: Path) -> None:
    """As ssh does: a secret that others can read is none, nor is a folder that anybody can put keys into."""
    try:
        folder, file = path.parent.stat(), path.stat()
    except OSError as error:
        advice = "make it with 'cryoflux keys new', or copy it here (docs/security.md)"
        raise NotProtected(f"keys: {path}: {error.strerror}; {advice}") from error
    mode = stat.S_IMODE(file.st_mode)
    if mode & 0o007 or (mode & 0o070 and file.st_uid == os.geteuid()):
        raise NotProtected(f"keys: {path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    if folder.st_mode & 0o002 and not folder.st_mode & stat.S_ISVTX:
        raise NotProtected(f"keys: anybody can put keys into {path.parent}: chmod 700 {path.parent}")


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """The public key in a file, and the secret one if it is there."""
    try:
        if path.stat().st_size > MOST_BYTES_OF_A_FILE:
            raise ValueError("too long for a key")
        public, secret = load_certificate(path)
        for key in (public, secret):
            if key is not None and len(z85.decode(key)) != KEY_BYTES:
                raise ValueError("not a key")
    except OSError as error:
        reason = error.strerror or "no such file"
        advice = "copy it from where 'cryoflux keys new' made it (docs/security.md)"
        raise NotProtected(f"keys: {path}: {reason}; {advice}") from error
    except Exception as error:  # whatever the file is, it is no certificate
        raise NotProtected(f"keys: {path} holds no CURVE key") from error
    return public, secret


def public_key(folder: Path, name: str) -> bytes:
    """A public key of a folder.

    Raises
    ------
    NotProtected
        In one line, if it is not there, or is no key.
    """
    return _read(folder / f"{name}{PUBLIC}")[0]


def make_keys(folder: Path, names: Sequence[str] = USUAL_NAMES) -> list[Path]:
    """Make pairs of keys in a folder, which is made too if it is not there; the new files.

    Raises
    ------
    ValueError
        In one line: a name that cannot be a file's, or one that is there already; then none is made.
    OSError
        If the folder cannot be written.
    """
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a key: letters, digits, '-', '_' and '.'")
    files = [folder / f"{name}{suffix}" for name in dict.fromkeys(names) for suffix in (PUBLIC, SECRET)]
    for file in files:
        if file.exists():
            raise ValueError(f"{file} is there already: delete it first, or choose another name")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as making:  # nobody else can look into it
        for name in dict.fromkeys(names):
            create_certificates(making, name)
        for file in files:
            mode = 0o600 if file.suffix == SECRET else 0o644
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as new:
                new.write((Path(making) / file.name).read_bytes())
            file.chmod(mode)
    return files
