"""``cryoflux bench hallucination``: what a learned prior makes of specimens that it never saw."""

from services.hallucination.measure import bench_hallucination

__all__ = ["bench_hallucination"]
