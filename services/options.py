"""The options that several commands share, each defined once, in groups; nothing heavy is imported here.

A command takes a group as one parameter: ``spread`` makes options of the group's fields for the command line,
and hands the command the group. None means that an option was not given.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

INPUT = "Input"
SPECIMEN = "Simulated specimen"
MASK = "Mask"
RECOVERY = "Recovery"
CAMERA = "Camera and link"
PLACE = "Where it runs"
IMAGES = "Training images"
TRAINING = "Training"
JUDGED = "What is judged"
MAP = "Map"


def _choices(*words: str) -> Any:
    """The words that shell completion offers for an option's value."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


LOG_FORMATS = _choices("human", "json")
LOG_LEVELS = _choices("debug", "info", "warning", "error")
MASKS = _choices("coded-aperture", "phase-plate", "none")
PATTERNS = _choices("uniform", "annular", "radial")
SYMMETRIES = _choices("hermitian", "paper")
METHODS = _choices("minimum_norm", "wiener", "dct", "wavelet", "tv", "diffusion")
VALUES = _choices("auto", "float32", "float16", "quantised")
CODINGS = _choices("auto", "plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd")
DTYPES = _choices("uint8", "uint16", "float32")
PRESET_NAMES = _choices("small", "paper-128", "paper-256")
PREDICTIONS = _choices("epsilon", "flow")
CONTENTS = _choices("clean", "frames")
PRECISIONS = _choices("auto", "fp32", "bf16")
CONTRASTS = _choices("bright", "dark")
POINT_GROUPS = _choices("C1", "C2", "C3", "C4", "C6", "D2", "D3", "D7", "T", "O", "I")


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def microscope(metavar: str, text: str, default: str) -> Any:
    """An option of the simulated microscope."""
    return _option("Simulated microscope", text, metavar=metavar, show_default=default)


@dataclass(frozen=True, kw_only=True)
class SpecimenOptions:
    """Of the built-in specimen simulator; the pixel size serves files too."""

    structure: Annotated[
        str | None,
        _option(
            SPECIMEN,
            "A built-in shape ('cage', 'barrel', 'ring', 'bundle'), or a PDB, mmCIF or MRC file.",
            show_default="cage",
            metavar="NAME",
        ),
    ] = None
    side: Annotated[
        int | None,
        _option(SPECIMEN, "Side of a simulated frame, pixels.", show_default="128", metavar="PIXELS"),
    ] = None
    pixel_size: Annotated[
        float | None, _option(SPECIMEN, "Å; of a file: instead of what it says.", metavar="Å")
    ] = None
    dose: Annotated[
        float | None, _option(SPECIMEN, "Electrons per Å².", show_default="20", metavar="E/Å²")
    ] = None
    snr: Annotated[
        float | None,
        _option(
            SPECIMEN,
            "Gaussian noise at this signal-to-noise variance ratio, instead of counts.",
            metavar="RATIO",
        ),
    ] = None
    micrographs: Annotated[
        bool, _option(SPECIMEN, "Whole micrographs with many particles.", "--micrographs")
    ] = False


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where frames come from."""

    input: Annotated[
        str | None,
        _option(
            INPUT,
            "'specimen' (simulated), 'pattern' (numbered frames), an MRC, TIFF or STAR file, a folder, "
            "or an HDF5 archive, which is replayed ('archive': the one of the detector).",
            show_default="specimen",
            metavar="SOURCE",
        ),
    ] = None
    speed: Annotated[
        float | None,
        _option(INPUT, "Of a replayed archive: times its own; 0: as fast as it goes.", show_default="1"),
    ] = None
    watch: Annotated[bool, _option(INPUT, "A folder: wait for new files.", "--watch")] = False
    dtype: Annotated[
        str | None,
        _option(INPUT, "Of a pattern: uint8, uint16 or float32.", autocompletion=DTYPES, metavar="TYPE"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """What is in the beam."""

    mask: Annotated[
        str | None,
        _option(
            MASK,
            "coded-aperture, phase-plate or none.",
            show_default="coded-aperture",
            autocompletion=MASKS,
            metavar="KIND",
        ),
    ] = None
    compression: Annotated[
        float | None, _option(MASK, "C: the nearest setting of the mask is taken.", metavar="C")
    ] = None
    kernel: Annotated[int | None, _option(MASK, "Coded aperture: K.", show_default="4", metavar="K")] = None
    masks: Annotated[
        int | None, _option(MASK, "Coded aperture: b, so C = K²/b.", show_default="8", metavar="B")
    ] = None
    pattern: Annotated[
        str | None,
        _option(
            MASK,
            "Phase plate: uniform, annular or radial.",
            show_default="uniform",
            autocompletion=PATTERNS,
            metavar="NAME",
        ),
    ] = None
    symmetry: Annotated[
        str | None,
        _option(
            MASK,
            "Phase plate: hermitian or paper.",
            show_default="hermitian",
            autocompletion=SYMMETRIES,
            metavar="NAME",
        ),
    ] = None
    seed: Annotated[int | None, _option(MASK, "Of the mask.", show_default="0", metavar="N")] = None


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions:
    """How images come back."""

    recovery: Annotated[
        str | None,
        _option(
            RECOVERY,
            "minimum_norm, wiener, dct, wavelet, tv or diffusion.",
            show_default="dct",
            autocompletion=METHODS,
            metavar="METHOD",
        ),
    ] = None
    parameter: Annotated[
        list[str] | None, _option(RECOVERY, "Of the recovery; repeatable.", metavar="NAME=VALUE")
    ] = None
    free_share: Annotated[
        float | None,
        _option(
            RECOVERY,
            "Share of the measurements kept out for the free residual.",
            show_default="0.05",
            metavar="SHARE",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """The exposure clock, the readout and the link."""

    frames: Annotated[
        int | None, _option(CAMERA, "How many; else until the input ends or Ctrl-C.", metavar="N")
    ] = None
    rate: Annotated[
        float | None, _option(CAMERA, "Frames per second; else as fast as they are taken.", metavar="HZ")
    ] = None
    reference_every: Annotated[
        int | None,
        _option(CAMERA, "Every n-th frame is also sent whole; 0: none.", show_default="100", metavar="N"),
    ] = None
    link_mbit_per_s: Annotated[
        float | None, _option(CAMERA, "Limit of the simulated link.", metavar="MBIT/S")
    ] = None
    values: Annotated[
        str | None,
        _option(
            CAMERA,
            "auto, float32, float16 or quantised.",
            show_default="auto",
            autocompletion=VALUES,
            metavar="KIND",
        ),
    ] = None
    coding: Annotated[
        str | None,
        _option(
            CAMERA,
            "auto, plain, packed, bitshuffle-lz4 or bitshuffle-zstd.",
            show_default="auto",
            autocompletion=CODINGS,
            metavar="NAME",
        ),
    ] = None
    archive: Annotated[
        str | None,
        _option(CAMERA, "New HDF5 file for the measurements and all that belongs to them.", metavar="FILE"),
    ] = None
    change: Annotated[
        list[str] | None,
        _option(CAMERA, "Change C by REST when that frame is reached; repeatable.", metavar="FRAME=C"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SessionOptions(CameraOptions, RecoveryOptions, MaskOptions, SpecimenOptions, SourceOptions):
    """A whole session, as ``live`` and ``start`` take it."""

    specimen_seed: Annotated[int | None, _option(SPECIMEN, "Of the simulated specimen.", metavar="N")] = None


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where the processes run that ``live`` and ``serve`` start."""

    workers: Annotated[
        int | None,
        _option(
            PLACE, "Recovery processes.", min=1, max=256, show_default="cores less one, up to 4", metavar="N"
        ),
    ] = None
    host: Annotated[
        str | None,
        _option(PLACE, "Of console and REST; 0.0.0.0: any.", show_default="127.0.0.1", metavar="ADDRESS"),
    ] = None
    port: Annotated[
        int | None,
        _option(
            PLACE,
            "Of console and REST; 0: any free one.",
            min=0,
            max=65535,
            show_default="8000",
            metavar="PORT",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How particles become a map, and what it is compared with."""

    symmetry: Annotated[
        str,
        _option(
            MAP, "Point group, as RELION calls it: C1, C2, ..., D2, ..., T, O, I.",
            autocompletion=POINT_GROUPS, metavar="GROUP",
        ),
    ] = "C1"  # fmt: skip
    contrast: Annotated[
        str,
        _option(
            MAP, "Of the protein: bright, as programs extract particles, or dark, as detectors count.",
            autocompletion=CONTRASTS, metavar="KIND",
        ),
    ] = "bright"  # fmt: skip
    reference: Annotated[
        Path | None,
        _option(MAP, "A map to compare with, of the particles' pixel size, centred alike.", metavar="FILE"),
    ] = None
    mask_diameter: Annotated[
        float | None,
        _option(
            MAP, "Of the sphere that maps are compared in.", show_default="three quarters of the box",
            metavar="Å",
        ),
    ] = None  # fmt: skip
    padding: Annotated[
        int, _option(MAP, "Of the map's transform: 1 takes an eighth of the memory.", min=1, max=2)
    ] = 2


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What a prior is trained on, and how."""

    input: Annotated[
        list[str] | None,
        _option(
            IMAGES,
            "'specimen' (simulated), an MRC, TIFF or STAR file, or a folder; repeatable.",
            show_default="specimen",
            metavar="SOURCE",
        ),
    ] = None
    images: Annotated[int, _option(IMAGES, "At most so many.", min=10, metavar="N")] = 40_000
    content: Annotated[
        str | None,
        _option(
            IMAGES,
            "clean (simulated, without noise) or frames (as recorded).",
            show_default="clean if simulated",
            autocompletion=CONTENTS,
            metavar="KIND",
        ),
    ] = None
    whole: Annotated[
        bool,
        _option(
            IMAGES, "Whole frames, Fourier-cropped to the preset's side; else windows of them.", "--whole"
        ),
    ] = False
    structure: Annotated[
        list[str] | None,
        _option(
            IMAGES,
            "Simulated: 'cage', 'barrel', 'ring', or a PDB, mmCIF or MRC file; repeatable.",
            show_default="cage, barrel, ring",
            metavar="NAME",
        ),
    ] = None
    pixel_size: Annotated[
        list[float] | None,
        _option(
            IMAGES,
            "Simulated: repeatable; of a file: instead of what it says.",
            show_default="whole particles, and half of that",
            metavar="Å",
        ),
    ] = None
    dose: Annotated[
        list[float] | None,
        _option(IMAGES, "Of simulated frames; repeatable.", show_default="20", metavar="E/Å²"),
    ] = None
    snr: Annotated[
        float | None,
        _option(IMAGES, "Of simulated frames: Gaussian noise instead of counts.", metavar="RATIO"),
    ] = None
    defocus_min_um: Annotated[
        float | None, _option(IMAGES, "Simulated: least underfocus.", show_default="0.8", metavar="UM")
    ] = None
    defocus_max_um: Annotated[
        float | None, _option(IMAGES, "Simulated: most underfocus.", show_default="2.2", metavar="UM")
    ] = None
    preset: Annotated[
        str,
        _option(
            TRAINING, "Network and recipe: small, paper-128 or paper-256.",
            autocompletion=PRESET_NAMES, metavar="NAME",
        ),
    ] = "small"  # fmt: skip
    prediction: Annotated[
        str,
        _option(TRAINING, "epsilon (a diffusion model) or flow.", autocompletion=PREDICTIONS, metavar="KIND"),
    ] = "epsilon"
    steps: Annotated[
        int | None,
        _option(TRAINING, "Of the optimiser.", min=1, show_default="as the preset says", metavar="N"),
    ] = None
    batch: Annotated[
        int | None,
        _option(TRAINING, "Images a device takes at a time.", min=1, show_default="preset's", metavar="N"),
    ] = None
    learning_rate: Annotated[
        float | None,
        _option(TRAINING, "The largest.", min=1e-8, max=1, show_default="preset's", metavar="RATE"),
    ] = None
    start: Annotated[
        str | None,
        _option(TRAINING, "Begin from a prior's weights: 'small', or its folder.", "--from", metavar="PRIOR"),
    ] = None
    precision: Annotated[
        str,
        _option(TRAINING, "auto (bf16 on a GPU), fp32 or bf16.", autocompletion=PRECISIONS, metavar="NAME"),
    ] = "auto"
    seed: Annotated[int, _option(TRAINING, "Of everything random.", min=0, metavar="N")] = 0


@dataclass(frozen=True, kw_only=True)
class HallucinationOptions:
    """What a prior is tried on."""

    prior: Annotated[
        str, _option(JUDGED, "A prior in the box or its folder; of images without noise.", metavar="PRIOR")
    ] = "small"
    structure: Annotated[
        list[str] | None,
        _option(
            JUDGED,
            "A specimen that it never saw: a built-in shape, or a PDB, mmCIF or MRC file; repeatable.",
            show_default="bundle",
            metavar="NAME",
        ),
    ] = None
    known: Annotated[
        list[str] | None,
        _option(
            JUDGED,
            "A specimen that it was trained on; repeatable.",
            show_default="cage, barrel, ring",
            metavar="NAME",
        ),
    ] = None
    frames: Annotated[int, _option(JUDGED, "Of each specimen.", min=2, metavar="N")] = 64
    snr: Annotated[
        float, _option(JUDGED, "Signal over noise variance, the same for all.", metavar="RATIO")
    ] = 0.1
    pixel_size: Annotated[
        float | None, _option(JUDGED, "Å.", show_default="the largest that the prior knows", metavar="Å")
    ] = None
    specimen_seed: Annotated[int, _option(JUDGED, "Of the specimens.", min=0, metavar="N")] = 1
    evaluations: Annotated[
        int, _option(JUDGED, "Of the network, per image and per sample.", min=1, max=1000, metavar="N")
    ] = 20
    samples: Annotated[
        int, _option(JUDGED, "Per frame, to see their spread.", min=2, max=1000, metavar="N")
    ] = 8
    output: Annotated[Path, _option(JUDGED, "Of the figures and the picture.", metavar="FOLDER")] = Path(
        "hallucination"
    )


def spread(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose parameters that are groups of options are spread out for the command line.

    All parameters of the result are to be given by name, which is how typer calls a command.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        fields = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=fields[field.name],
            )
            for field in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def spread_out(**values: Any) -> Any:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        return command(**values)

    spread_out.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    spread_out.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread_out
