"""What a learned prior is worth and what it costs: the figures of docs/learned-prior.md.

``python -m benchmarks.learned quality | speed | pictures | page``.
"""

from benchmarks.learned.speed import run

__all__ = ["run"]
