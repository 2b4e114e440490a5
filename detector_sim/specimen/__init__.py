"""The specimen simulator: atoms or a map -> potential -> projections -> CTF -> dose -> counts."""

from detector_sim.specimen.specimen import SimulatedBatch, Specimen

__all__ = ["SimulatedBatch", "Specimen"]
