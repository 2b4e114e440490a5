"""Measurement operators: what a mask does to an image, and everything recoveries need to undo it."""

from common.operators.base import LinearOperator
from common.operators.coded_aperture import CodedAperture
from common.operators.open_aperture import OpenAperture
from common.operators.phase_plate import PhasePlate
from common.operators.spec import MaskSpec

__all__ = ["CodedAperture", "LinearOperator", "MaskSpec", "OpenAperture", "PhasePlate"]
