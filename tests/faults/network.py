"""Machines that a test cuts off from each other: network namespaces, joined by one that drops packets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.conftest import program
from tests.faults.holding import Holder
from tests.integration.bus import Place

HERE = "here"
NETWORKS = 512  # of 256 addresses each, in the range that is kept for tests of networks (RFC 2544)


class Network:
    """Machines by name, and this one as ``here``, each joined to a router of which the test is master.

    A machine is a network namespace that lives as long as one process in it, which dies with the test. All
    packets between two of them pass the router, where ``cut`` and ``lose`` drop them. Several networks stand
    beside each other.
    """

    def __init__(self, *names: str) -> None:
        program("ip", "iproute2")
        program("iptables", "iptables")
        self._machines: dict[str, Holder] = {}
        self._numbers = {name: number for number, name in enumerate((HERE, *names))}
        try:
            self._machines[""] = Holder("--net")
            self._inside("", "sh", "-c", "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")
            self._network = self._join_here()
            for name in names:
                self._join(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the network down; its interfaces go with the processes that held it."""
        for machine in self._machines.values():
            machine.close()

    def address(self, name: str = HERE) -> str:
        """The IP address of a machine."""
        return self._address(self._numbers[name], 2)

    def place(self, name: str) -> Place:
        """What lets a process of the test run on a machine."""
        return Place(before=self._enter(name))

    def cut(self, source: str, target: str, *, both_ways: bool = True) -> None:
        """Drop what goes from ``source`` to ``target``, and back."""
        ways = [(source, target), (target, source)][: 1 + both_ways]
        for one, other in ways:
            self._rule("-s", self.address(one), "-d", self.address(other), "-j", "DROP")

    def lose(self, share: float) -> None:
        """Drop this share of all packets, in every direction, by chance."""
        self._rule("-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP")

    def heal(self) -> None:
        """Drop nothing any more."""
        self._inside("", "iptables", "-w", "-F", "FORWARD")

    # ---- inside

    def _rule(self, *rule: str) -> None:
        self._inside("", "iptables", "-w", "-A", "FORWARD", *rule)

    def _address(self, number: int, side: int) -> str:
        return f"198.{18 + self._network // 256}.{self._network % 256}.{4 * number + side}"

    def _join_here(self) -> int:
        """Join this machine to the router, in the first network that nobody has."""
        router = str(self._machines[""].pid)
        start = os.getpid() % NETWORKS
        for number in (*range(start, NETWORKS), *range(start)):
            end = f"cryoflux{number}"
            made = subprocess.run(
                ["ip", "link", "add", end, "type", "veth", "peer", "name", "to0", "netns", router],
                capture_output=True, text=True,
            )  # fmt: skip
            if made.returncode == 0:
                break
            if "File exists" not in made.stderr:
                raise OSError(f"a network cannot be made: {made.stderr.strip()}")
        else:
            raise OSError("all networks for tests are taken")
        self._network = number
        _run("ip", "address", "add", f"{self._address(0, 2)}/30", "dev", end)
        _run("ip", "link", "set", end, "up")
        self._router_end(0)
        network = self._address(0, 0).rsplit(".", 1)[0]
        _run("ip", "route", "add", f"{network}.0/24", "via", self._address(0, 1))
        return number

    def _join(self, name: str) -> None:
        number = self._numbers[name]
        machine = self._machines[name] = Holder("--net")
        self._inside("", "ip", "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0",
                     "netns", str(machine.pid))  # fmt: skip
        self._router_end(number)
        self._inside(name, "ip", "link", "set", "lo", "up")
        self._inside(name, "ip", "address", "add", f"{self._address(number, 2)}/30", "dev", "eth0")
        self._inside(name, "ip", "link", "set", "eth0", "up")
        self._inside(name, "ip", "route", "add", "default", "via", self._address(number, 1))

    def _router_end(self, number: int) -> None:
        self._inside("", "ip", "address", "add", f"{self._address(number, 1)}/30", "dev", f"to{number}")
        self._inside("", "ip", "link", "set", f"to{number}", "up")

    def _enter(self, name: str) -> Sequence[str]:
        return self._machines[name].enter("--net")

    def _inside(self, name: str, *command: str) -> None:
        _run(*self._enter(name), *command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
