"""What a soak does and when, drawn beforehand from a seed: the same seed and length give the same plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

CHANGE_EVERY_SECONDS, STEADY_CHANGE_EVERY_SECONDS = 6.0, 12.0  # on average
FAULT_EVERY_SECONDS = 9.0
SAME_PROCESS_SECONDS = 14.0  # a supervisor gives a process up that ends more than five times in a minute
TOUR_STEP_SECONDS, OVERFLOW_SECONDS = 2.5, 15.0
WARM_UP_SHARE = 0.3  # of the steady phase
QUIET_END_SECONDS = 10.0  # the last fault is over before the session is stopped
WORKERS = ("worker-1", "worker-2")
SHARES = {"storm": 0.3, "steady": 0.5, "small": 0.1, "large": 0.1}
LIMITED = ("storm", "steady")  # in one installation; the others, with the usual settings, in another

# A link of 6 Mbit/s carries 60 frames/s of these at C = 2 or more, and three quarters of them without a mask:
# then frames pile up in the window and in the spool, and are worked off behind the next mask.
RATE, SHAPE, LINK_MBIT_PER_S = 60.0, (128, 128), 6.0
WINDOW_BYTES = 2_000_000  # small, so that they do
SMALL_SHAPE, SMALL_FRAMES = (128, 128), 15_000  # of one session: about 1.1 GB of results
LARGE_SHAPE, LARGE_FRAMES = (4096, 4096), 4

MASKS: tuple[dict[str, Any], ...] = (
    {"mask": {"kind": "none"}},
    {"mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8}},
    {"mask": {"kind": "coded-aperture", "kernel_size": 8, "mask_count": 16}},
    {"mask": {"kind": "phase-plate", "compression_factor": 4}},
    {"mask": {"kind": "coded-aperture", "kernel_size": 4}, "compression_factor": 4},
    {"mask": {"kind": "coded-aperture", "kernel_size": 4}, "compression_factor": 8},
)
METHODS = ("minimum_norm", "wiener", "dct", "wavelet")

Verb = Literal["acquisition", "recovery", "pause", "kill", "hang", "terminate"]


@dataclass(frozen=True)
class Deed:
    """One thing done to the installation.

    Attributes
    ----------
    at : float
        Seconds after the phase began.
    verb : str
        A change by REST (acquisition, recovery, pause), or what befalls a process: kill (SIGKILL), hang
        (SIGSTOP, and SIGCONT after ``seconds``), terminate (SIGTERM).
    target : str
        The process; empty for a change.
    body : dict
        Of the REST call.
    seconds : float
        How long the pause or the hang lasts.
    """

    at: float
    verb: Verb
    target: str = ""
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A part of the soak.

    ``storm``: changes and faults; ``steady``: changes only, and here growth is measured, because only
    processes that live on can grow; ``small`` and ``large``: sessions one after another, as fast as they go.
    """

    name: str
    seconds: float
    deeds: tuple[Deed, ...] = ()


def plan(minutes: float, seed: int, phases: tuple[str, ...] = tuple(SHARES)) -> list[Phase]:
    """The phases of a soak of so many minutes; leaving some out does not change the others."""
    planned: list[Phase] = []
    for number, (name, share) in enumerate(SHARES.items()):
        generator = np.random.default_rng([seed, number])
        seconds = 60 * minutes * share
        deeds: list[Deed] = []
        if name == "storm":
            deeds = changes(generator, seconds, CHANGE_EVERY_SECONDS) + faults(generator, seconds)
        elif name == "steady":
            deeds = tour(WARM_UP_SHARE * seconds)
            after = deeds[-1].at + TOUR_STEP_SECONDS if deeds else 0.0
            later = changes(generator, seconds - after, STEADY_CHANGE_EVERY_SECONDS)
            deeds += [replace(deed, at=deed.at + after) for deed in later]
        if name in phases:
            planned.append(Phase(name, seconds, tuple(sorted(deeds, key=lambda deed: deed.at))))
    return planned


def tour(seconds: float) -> list[Deed]:
    """Every method behind every mask, and the window full twice, if there is time.

    After it all caches are as full as they get, and memory kept for reuse is as much as is ever needed.
    """
    deeds: list[Deed] = []
    at = 0.0
    for mask in (*MASKS, MASKS[0], MASKS[1]):
        for verb, body in (("acquisition", mask), *(("recovery", {"method": method}) for method in METHODS)):
            at += TOUR_STEP_SECONDS
            deeds.append(Deed(at, verb, body=body))
        if mask is MASKS[0]:
            at += OVERFLOW_SECONDS
    return deeds if deeds[-1].at < seconds else []


def changes(generator: np.random.Generator, seconds: float, every: float) -> list[Deed]:
    """Changes of mask, compression factor and recovery, and pauses, at random times."""
    deeds: list[Deed] = []
    at = float(generator.exponential(every))
    while at < seconds - QUIET_END_SECONDS:
        match str(generator.choice(["acquisition", "recovery", "pause"], p=[0.6, 0.25, 0.15])):
            case "acquisition":
                deeds.append(Deed(at, "acquisition", body=MASKS[generator.integers(len(MASKS))]))
            case "recovery":
                method = METHODS[generator.integers(len(METHODS))]
                deeds.append(Deed(at, "recovery", body={"method": method}))
            case _:
                deeds.append(Deed(at, "pause", seconds=float(generator.uniform(0.5, 3.0))))
        at += float(generator.exponential(every))
    return deeds


def faults(generator: np.random.Generator, seconds: float) -> list[Deed]:
    """Kills, hangs and terminations of random processes at random times; never one of them too often."""
    kinds: tuple[tuple[Verb, str, float], ...] = (
        ("kill", "worker", 0.3),
        ("hang", "worker", 0.15),
        ("terminate", "worker", 0.1),
        ("kill", "detector", 0.15),
        ("hang", "detector", 0.1),
        ("kill", "control", 0.1),
        ("hang", "control", 0.1),
    )
    deeds: list[Deed] = []
    free_at: dict[str, float] = {}
    at = 5.0 + float(generator.exponential(FAULT_EVERY_SECONDS))
    while at < seconds - QUIET_END_SECONDS:
        verb, target, _ = kinds[generator.choice(len(kinds), p=[share for *_, share in kinds])]
        if target == "worker":
            target = WORKERS[generator.integers(len(WORKERS))]
        lasts = float(generator.uniform(1.0, 8.0)) if verb == "hang" else 0.0
        if at >= free_at.get(target, 0.0) and at + lasts < seconds - QUIET_END_SECONDS:
            deeds.append(Deed(at, verb, target, seconds=lasts))
            free_at[target] = at + lasts + SAME_PROCESS_SECONDS
        at += float(generator.exponential(FAULT_EVERY_SECONDS))
    return deeds
