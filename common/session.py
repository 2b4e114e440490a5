"""What a session is asked to do: the models that REST, the control bus and the command line share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.fields import Flag, Number, Place, Whole
from common.operators.spec import MaskSpec, tagged

RESULTS = ("recovered.mrcs", "references.mrcs", "recovered.star", "frames.csv", "session.json", "journal",
           "measurements")  # fmt: skip
"""What a session's folder of results holds in the end."""

STRUCTURES = ("cage", "barrel", "ring", "bundle")
"""Shapes that the specimen simulator builds itself; any other structure is the path of a file."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SpecimenSpec(_Model):
    """What the specimen simulator makes; see detector_sim.specimen."""

    structure: Place = Field(
        default="cage",
        description="a built-in shape ('cage', 'barrel', 'ring' or 'bundle'), or the path of a PDB, mmCIF or "
        "MRC file",
    )
    output: Literal["particles", "micrographs"] = "particles"
    side_pixels: Whole = Field(default=128, ge=16, le=8192, description="side of the square frame")
    pixel_size_angstrom: Number = Field(default=1.5, gt=0, le=50)
    voltage_kv: Number = Field(default=300.0, ge=60, le=1000)
    spherical_aberration_mm: Number = Field(default=2.7, ge=0, le=10)
    amplitude_contrast: Number = Field(default=0.07, ge=0, le=1)
    defocus_min_um: Number = Field(default=0.8, gt=0, le=10)
    defocus_max_um: Number = Field(default=2.2, gt=0, le=10)
    envelope_b_factor: Number = Field(default=60.0, ge=0, le=1000, description="square angstrom")
    dose_per_square_angstrom: Number = Field(
        default=20.0, gt=0, le=1000, description="electrons per square angstrom"
    )
    snr: Number | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="instead of counting: Gaussian noise, signal over noise variance",
    )
    particles_per_micrograph: Whole = Field(default=60, ge=1, le=5000)
    seed: Whole = Field(default=0, ge=0, le=2**53 - 1)


Side = Annotated[Whole, Field(ge=8, le=16384)]


class _Source(_Model):
    model_config = ConfigDict(json_schema_extra=tagged)


class SpecimenSource(_Source):
    """Frames made by the specimen simulator as they are asked for."""

    kind: Literal["specimen"] = "specimen"
    specimen: SpecimenSpec = SpecimenSpec()


class FileSource(_Source):
    """An MRC/MRCS/TIFF file, a STAR file of particles, or a folder of micrographs."""

    kind: Literal["file"] = "file"
    path: Place
    watch: Flag = Field(False, description="a folder: wait for new files instead of ending with the last one")
    pixel_size_angstrom: Number | None = Field(
        default=None, gt=0, le=1000, description="overrides what the file says"
    )


class PatternSource(_Source):
    """Numbered test frames: the frame_id can be read back from the pixels."""

    kind: Literal["pattern"] = "pattern"
    shape: tuple[Side, Side] = (128, 128)
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"


class ArchiveSource(_Source):
    """A recorded session, replayed: its measurements, masks, frame numbers and metadata as they were.

    ``mask`` and ``readout`` of the session have no meaning then. A ``camera.rate`` replaces the recorded
    times of exposure.
    """

    kind: Literal["archive"]
    path: Place | None = Field(
        default=None, min_length=1, description="HDF5 file; none: the one the detector was started with"
    )
    speed: Number | None = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="times the recorded speed; none: as fast as the chain takes frames",
    )


SourceSpec = Annotated[
    SpecimenSource | FileSource | PatternSource | ArchiveSource, Field(discriminator="kind")
]


class CameraSpec(_Model):
    """The exposure clock."""

    rate: Number | None = Field(
        default=None, ge=0.001, le=1e6, description="frames per second; none: as fast as the chain takes them"
    )
    frames: Whole | None = Field(
        default=None, ge=1, le=10**12, description="how many; none: the source's own length, or endless"
    )
    reference_every: Whole = Field(
        default=100, ge=0, le=10**12, description="every n-th frame is also sent whole; 0: none but the first"
    )
    reference_first: Whole = Field(
        default=4, ge=1, le=100, description="so many frames at the start are also sent whole"
    )


class ReadoutSpec(_Model):
    """How measurements become bytes.

    ``values``: *auto* is the lossless integers for integer frames behind a coded or open aperture, else
    *quantised*. Quantised: uniform steps of ``quantisation_sigma`` noise standard deviations (estimated on
    the first frames), so the error is at most half a step; the configuration states it.
    """

    values: Literal["auto", "float32", "float16", "quantised"] = "auto"
    quantisation_sigma: Number = Field(default=0.125, gt=0, le=2)
    coding: Literal["auto", "plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd"] = "auto"


MethodName = Literal["minimum_norm", "wiener", "dct", "wavelet", "tv", "diffusion"]
LEARNED: MethodName = "diffusion"  # the method with a learned prior


class RecoverySpec(_Model):
    """How images are recovered."""

    method: MethodName = "dct"
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="the method's own; defaults where not given"
    )
    free_share: Number = Field(
        default=0.05, ge=0, le=0.5, description="share of the measurements kept out for the free residual"
    )


class SessionSpec(_Model):
    """Everything ``POST /sessions`` takes."""

    source: SourceSpec = SpecimenSource()
    mask: MaskSpec = MaskSpec(kind="coded-aperture")  # pyright: ignore[reportCallIssue]
    camera: CameraSpec = CameraSpec()
    readout: ReadoutSpec = ReadoutSpec()
    recovery: RecoverySpec = RecoverySpec()
    link_mbit_per_s: Number | None = Field(
        default=None, ge=0.001, le=1e6, description="limit of the simulated link; none: unlimited"
    )
    output: Place | None = Field(
        default=None,
        description="folder for the results, on a file system all workers see; "
        "none: one named for the session, in the control plane's folder of results",
    )
    archive: Place | None = Field(
        default=None,
        min_length=1,
        description="new HDF5 file for the measurements with all that belongs to them, as the control plane "
        "sees it; none: they stay in the results' folder",
    )
