"""Maps from images whose orientations are known, and how well two maps agree."""

from reconstructor.volume.backprojection import Backprojection, Maps
from reconstructor.volume.correlation import fsc, soft_sphere

__all__ = ["Backprojection", "Maps", "fsc", "soft_sphere"]
