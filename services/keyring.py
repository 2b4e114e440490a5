"""``cryoflux keys``: makes and shows the keys of control bus and data plane, and tokens for REST."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from common.protection import NotProtected
from common.wire.keys import NAME, PUBLIC, SECRET, USUAL_NAMES, Keyring, Role, make_keys, public_key, role_of
from services.failure import CannotRun

TOKEN_BYTES = 32
KNOWN_ELSEWHERE: dict[Role, tuple[str, ...]] = {
    "control": ("detector.key", "worker.key"),
    "detector": ("control.key", "worker.key"),
    "worker": ("control.key", "detector.key"),
}
RUNS: dict[Role, str] = {"control": "the control plane", "detector": "the detector", "worker": "a worker"}
NEEDED_BY: dict[Role, str] = {
    "control": "the detector and the workers",
    "detector": "the control plane and the workers",
    "worker": "the control plane and the detector",
}


def new(folder: Path, names: Sequence[str]) -> int:
    """Make keys, and say what belongs where; the exit code."""
    names = list(dict.fromkeys(names)) or USUAL_NAMES
    try:
        make_keys(folder, names)
    except ValueError as error:
        raise CannotRun(str(error), exit_code=2) from error
    except OSError as error:
        raise CannotRun(f"{error.filename or folder}: {error.strerror}", exit_code=2) from error
    print(f"made in {folder.absolute()}: {', '.join(names)}")
    for name in names:
        role = role_of(name)
        needed = " ".join((f"{name}{SECRET}", *KNOWN_ELSEWHERE[role]))
        print(f"\n{RUNS[role]} with the key {name} needs, in a folder that only its user can read:")
        print(f"    {needed}")
        usual = "" if name == role else f" CRYOFLUX_KEY={name}"
        print(f"    CRYOFLUX_KEYS=FOLDER{usual}")
        if name != role:
            print(f"and {NEEDED_BY[role]} need {name}{PUBLIC}")
    print(f"\nFiles *{SECRET} are secret: each belongs where it is used, and nowhere else.")
    return 0


def show(folder: Path) -> int:
    """List the keys of a folder: what each is good for, and whether its secret half is there too."""
    if not folder.is_dir():
        raise CannotRun(f"{folder} is not a folder", exit_code=2)
    found = sorted(path for path in folder.iterdir() if path.suffix in (PUBLIC, SECRET))
    names = sorted({path.name.removesuffix(path.suffix) for path in found})
    if not names:
        raise CannotRun(f"{folder} holds no keys: 'cryoflux keys new {folder}' makes some", exit_code=1)
    wrong = 0
    for name in names:
        has_secret = (folder / f"{name}{SECRET}").exists()
        try:
            if not NAME.fullmatch(name):
                raise CannotRun(f"{name!r} is no name for a key")
            key = public_key(folder, name).decode() if (folder / f"{name}{PUBLIC}").exists() else "-"
            if has_secret:
                Keyring(folder, name)
        except (CannotRun, NotProtected) as error:
            print(f"{name:<16} WRONG     {getattr(error, 'strerror', None) or error}")
            wrong += 1
            continue
        secret = "secret here too" if has_secret else "public only"
        print(f"{name:<16} {role_of(name):<9} {key:<40}  {secret}")
    return 1 if wrong else 0


def token() -> int:
    """Print a new token."""
    print(secrets.token_urlsafe(TOKEN_BYTES))
    return 0
