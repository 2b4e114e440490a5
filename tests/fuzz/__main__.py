"""``python -m tests.fuzz TARGET --runs N``: inputs made by atheris, guided by what they reach in our code.

Everything after ``--`` goes to libFuzzer. A finding is written to ``output/fuzz/TARGET``; put it into
``tests/fuzz/corpus/TARGET`` under a name that says what it is, and it is run by the tests from then on.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
from pathlib import Path

import atheris

PACKAGES = (
    "common.wire",
    "common.archive",
    "detector_sim.sources",
    "detector_sim.replay",
    "reconstructor.archive",
    "reconstructor.journal",
    "reconstructor.recorded",
)

# Address space that the process may take beyond what it has once all is imported, touched or not: what asks
# for more because of an input of a few kilobytes is a finding.
LARGEST_GROWTH_MB = 512
LARGEST_PROCESS_MB = 1024
LONGEST_INPUT_SECONDS = 20


def main() -> None:
    """Run one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--longest", type=int, default=4096, help="bytes of an input")
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"))
    given = [*sys.argv[1:], "--"]
    own, libfuzzer = given[: given.index("--")], given[given.index("--") + 1 : -1]
    arguments = parser.parse_args(own)

    with atheris.instrument_imports(include=list(PACKAGES), exclude=["common.wire.codec"]):
        from tests.fuzz.shapes import mutated
        from tests.fuzz.targets import TARGETS
    from common.wire import codec

    for name in ("decode_array", "_check", "_unpacked"):  # not those that are compiled
        atheris.instrument_func(getattr(codec, name))

    target = TARGETS[arguments.target]
    seeds = Path(__file__).parent / "corpus" / arguments.target
    found = arguments.output / arguments.target
    grown = found / "corpus"
    grown.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tally = {"inputs": 0, "taken": 0}
    logging.disable()
    for path in seeds.iterdir():
        target(path.read_bytes())  # threads and tables that are made once
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (LARGEST_GROWTH_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def once(data: bytes) -> None:
        tally["taken"] += target(data)
        tally["inputs"] += 1
        if tally["inputs"] % 100_000 == 0 or tally["inputs"] == arguments.runs:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{arguments.target}: {tally['inputs']} inputs, {tally['taken']} taken, "
                f"{time.monotonic() - began:.0f} s, peak {peak} MB",
                flush=True,
            )

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return atheris.Mutate(data, max_size)
        return mutated(arguments.target, data, chance)[:max_size]

    options = [
        f"-runs={arguments.runs}",
        f"-max_len={arguments.longest}",
        f"-timeout={LONGEST_INPUT_SECONDS}",
        f"-rss_limit_mb={LARGEST_PROCESS_MB}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
        "-verbosity=0",
        *libfuzzer,
    ]
    atheris.Setup([sys.argv[0], *options, str(grown), str(seeds)], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
