"""MaskSpec: a mask as a few numbers, and the operator it builds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from common.fields import Number, Whole
from common.operators.base import LinearOperator
from common.operators.coded_aperture import CodedAperture
from common.operators.open_aperture import OpenAperture
from common.operators.phase_plate import PhasePlate


def tagged(schema: dict[str, Any]) -> None:
    """Say in a model's JSON schema that its ``kind`` must be given: it tells which model it is."""
    required = schema.setdefault("required", [])
    if "kind" not in required:
        required.insert(0, "kind")


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=tagged)


class CodedApertureSpec(_Spec):
    """b binary masks over KxK blocks (pixel space)."""

    kind: Literal["coded-aperture"] = "coded-aperture"
    kernel_size: Whole = Field(4, ge=1, le=64, description="K: side of the pooled blocks, pixels")
    mask_count: Whole = Field(8, ge=1, le=4096, description="b: masks, so measurements per block")
    seed: Whole = Field(0, ge=0, le=2**53 - 1)
    tile: Whole | None = Field(
        None,
        ge=1,
        le=1024,
        description="side of the repeated mask, pixels; none: the largest multiple of K up to 128",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CodedApertureSpec:
        if self.mask_count > self.kernel_size**2:
            raise ValueError(
                f"mask_count: {self.mask_count} masks over {self.kernel_size}x{self.kernel_size} blocks "
                f"would measure more numbers than pixels; allowed range 1 to {self.kernel_size**2}"
            )
        if self.tile is not None and self.tile % self.kernel_size:
            raise ValueError(f"tile: must be a multiple of kernel_size {self.kernel_size}, got {self.tile}")
        return self


class PhasePlateSpec(_Spec):
    """A binary mask on the Fourier plane."""

    kind: Literal["phase-plate"] = "phase-plate"
    pattern: Literal["uniform", "annular", "radial"] = "uniform"
    compression_factor: Number = Field(2.5, ge=1, le=100, description="requested n/m")
    seed: Whole = Field(0, ge=0, le=2**53 - 1)
    symmetry: Literal["hermitian", "paper"] = "hermitian"
    ring_width: Number = Field(
        0.25, gt=0, le=10, description="annular: width of the low-frequency bias over the side"
    )


class OpenApertureSpec(_Spec):
    """No mask: conventional acquisition, the baseline that the gain is felt against."""

    kind: Literal["none"] = "none"


class MaskSpec(
    RootModel[Annotated[CodedApertureSpec | PhasePlateSpec | OpenApertureSpec, Field(discriminator="kind")]]
):
    """Any mask: ``MaskSpec(kind="coded-aperture", kernel_size=4, mask_count=8).build((128, 128))``."""

    model_config = ConfigDict(frozen=True)

    @property
    def kind(self) -> str:
        """coded-aperture, phase-plate or none."""
        return self.root.kind

    def build(self, shape: tuple[int, int]) -> LinearOperator:
        """The operator of this mask for images of ``shape`` (height, width), on the CPU.

        Raises
        ------
        ValueError
            If the mask does not fit the shape (say, K larger than the frame).
        """
        match self.root:
            case CodedApertureSpec() as spec:
                return CodedAperture(shape, spec.kernel_size, spec.mask_count, spec.seed, spec.tile)
            case PhasePlateSpec() as spec:
                return PhasePlate(
                    shape, spec.pattern, spec.compression_factor, spec.seed, spec.symmetry, spec.ring_width
                )
            case OpenApertureSpec():
                return OpenAperture(shape)

    def with_compression_factor(self, compression_factor: float) -> MaskSpec:
        """The setting of the same kind whose compression factor is nearest to the one wanted.

        Coded aperture: K stays and b = 1..K^2 changes. Phase plate: the pattern stays. An open aperture
        has only 1.

        Raises
        ------
        ValueError
            If it is below 1 or above what the kind can do (K^2; 100), naming the allowed range.
        """
        match self.root:
            case CodedApertureSpec() as spec:
                pixels = spec.kernel_size**2
                self._check_range(compression_factor, pixels)
                count = min(range(1, pixels + 1), key=lambda b: abs(pixels / b - compression_factor))
                return MaskSpec(spec.model_copy(update={"mask_count": count}))
            case PhasePlateSpec() as spec:
                self._check_range(compression_factor, 100)
                return MaskSpec(spec.model_copy(update={"compression_factor": float(compression_factor)}))
            case OpenApertureSpec():
                self._check_range(compression_factor, 1)
                return self

    def _check_range(self, compression_factor: float, highest: int) -> None:
        if not 1 <= compression_factor <= highest:
            raise ValueError(
                f"compression_factor: {compression_factor:g} is outside what this {self.kind} mask can do; "
                f"allowed range 1 to {highest}"
            )
