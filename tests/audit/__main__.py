"""``make audit``: 0 if nothing is known against the pins, 1 if something is, 3 if nobody answers."""

from __future__ import annotations

import sys

from tests.audit import Unreachable, advisories, ask, concerned, is_copyleft, needed, pins


def main() -> int:
    """Print what is found, a line each."""
    pinned = pins()
    findings = [str(one) for one in concerned(pinned, advisories())]
    findings += [f"{one.name}: {one.licence}" for one in needed() if is_copyleft(one.licence)]
    try:
        findings += ask()
    except Unreachable as error:
        print("\n".join(findings))
        print(f"advisories of today are not known ({error}); of those kept here {len(findings)} apply")
        return 1 if findings else 3
    print("\n".join([*findings, f"{len(pinned)} pinned packages, {len(findings)} findings"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
