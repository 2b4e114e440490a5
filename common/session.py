"""What a session is asked to do: the models that REST, the control bus and the command line share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.operators.spec import MaskSpec


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SpecimenSpec(_Model):
    """What the specimen simulator makes; see detector_sim.specimen."""

    structure: str = Field(default="cage", description="'cage' or the path of a PDB, mmCIF or MRC file")
    output: Literal["particles", "micrographs"] = "particles"
    side_pixels: int = Field(default=128, ge=16, le=8192, description="side of the square frame")
    pixel_size_angstrom: float = Field(default=1.5, gt=0, le=50)
    voltage_kv: float = Field(default=300.0, ge=60, le=1000)
    spherical_aberration_mm: float = Field(default=2.7, ge=0, le=10)
    amplitude_contrast: float = Field(default=0.07, ge=0, le=1)
    defocus_min_um: float = Field(default=0.8, gt=0, le=10)
    defocus_max_um: float = Field(default=2.2, gt=0, le=10)
    envelope_b_factor: float = Field(default=60.0, ge=0, le=1000, description="square angstrom")
    dose_per_square_angstrom: float = Field(
        default=20.0, gt=0, le=1000, description="electrons per square angstrom"
    )
    snr: float | None = Field(
        default=None, gt=0, description="instead of counting: Gaussian noise, signal over noise variance"
    )
    particles_per_micrograph: int = Field(default=60, ge=1, le=5000)
    seed: int = Field(default=0, ge=0, lt=2**63)


class SpecimenSource(_Model):
    """Frames made by the specimen simulator as they are asked for."""

    kind: Literal["specimen"] = "specimen"
    specimen: SpecimenSpec = SpecimenSpec()


class FileSource(_Model):
    """An MRC/MRCS/TIFF file, a STAR file of particles, or a folder of micrographs."""

    kind: Literal["file"] = "file"
    path: str
    watch: bool = Field(False, description="a folder: wait for new files instead of ending with the last one")
    pixel_size_angstrom: float | None = Field(default=None, gt=0, description="overrides what the file says")


class PatternSource(_Model):
    """Numbered test frames: the frame_id can be read back from the pixels."""

    kind: Literal["pattern"] = "pattern"
    shape: tuple[Annotated[int, Field(ge=8, le=16384)], Annotated[int, Field(ge=8, le=16384)]] = (128, 128)
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"


SourceSpec = Annotated[SpecimenSource | FileSource | PatternSource, Field(discriminator="kind")]


class CameraSpec(_Model):
    """The exposure clock."""

    rate: float | None = Field(
        default=None, gt=0, le=1e6, description="frames per second; none: as fast as the chain takes them"
    )
    frames: int | None = Field(
        default=None, ge=1, description="how many; none: the source's own length, or endless"
    )
    reference_every: int = Field(
        default=100, ge=0, description="every n-th frame is also sent whole; 0: none but the first"
    )
    reference_first: int = Field(
        default=4, ge=1, le=100, description="so many frames at the start are also sent whole"
    )


class ReadoutSpec(_Model):
    """How measurements become bytes.

    ``values``: *auto* is the lossless integers for integer frames behind a coded or open aperture, else
    *quantised*. Quantised: uniform steps of ``quantisation_sigma`` noise standard deviations (estimated on
    the first frames), so the error is at most half a step; the configuration states it.
    """

    values: Literal["auto", "float32", "float16", "quantised"] = "auto"
    quantisation_sigma: float = Field(default=0.125, gt=0, le=2)
    coding: Literal["auto", "plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd"] = "auto"


class RecoverySpec(_Model):
    """How images are recovered."""

    method: Literal["minimum_norm", "wiener", "dct", "wavelet", "tv"] = "dct"
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="the method's own; defaults where not given"
    )
    free_share: float = Field(
        default=0.05, ge=0, le=0.5, description="share of the measurements kept out for the free residual"
    )


class SessionSpec(_Model):
    """Everything ``POST /sessions`` takes."""

    source: SourceSpec = SpecimenSource()
    mask: MaskSpec = MaskSpec(kind="coded-aperture")  # pyright: ignore[reportCallIssue]
    camera: CameraSpec = CameraSpec()
    readout: ReadoutSpec = ReadoutSpec()
    recovery: RecoverySpec = RecoverySpec()
    link_mbit_per_s: float | None = Field(
        default=None, gt=0, description="limit of the simulated link; none: unlimited"
    )
    output: str | None = Field(
        default=None,
        min_length=1,
        description="folder for the results, on a file system all workers see; "
        "none: one named for the session, in the control plane's folder of results",
    )
    archive: str | None = Field(
        default=None,
        min_length=1,
        description="new HDF5 file for the measurements with all that belongs to them, as the control plane "
        "sees it; none: they stay in the results' folder",
    )
