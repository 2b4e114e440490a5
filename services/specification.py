"""From the options of ``cryoflux live`` to a session's specification, and from wrong values to options."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from common.operators.spec import MaskSpec
from common.session import ArchiveSource, RecoverySpec, SessionSpec
from reconstructor.recovery import check_recovery
from services.explain import FieldProblem, explain
from services.failure import WrongOption
from services.options import MaskOptions, RecoveryOptions, SessionOptions

EMPTY: Mapping[str, Any] = MappingProxyType({})
PARTS = ("source", "mask", "camera", "readout", "recovery")  # of a session's specification, put together here

OPTION_OF = {
    "source.path": "--input",
    "source.watch": "--watch",
    "source.speed": "--speed",
    "source.pixel_size_angstrom": "--pixel-size",
    "source.shape.0": "--side",
    "source.shape.1": "--side",
    "source.dtype": "--dtype",
    "source.specimen.structure": "--structure",
    "source.specimen.output": "--micrographs",
    "source.specimen.side_pixels": "--side",
    "source.specimen.pixel_size_angstrom": "--pixel-size",
    "source.specimen.dose_per_square_angstrom": "--dose",
    "source.specimen.snr": "--snr",
    "source.specimen.seed": "--specimen-seed",
    "mask.kind": "--mask",
    "mask.kernel_size": "--kernel",
    "mask.mask_count": "--masks",
    "mask.seed": "--seed",
    "mask.pattern": "--pattern",
    "mask.compression_factor": "--compression",
    "mask.symmetry": "--symmetry",
    "camera.rate": "--rate",
    "camera.frames": "--frames",
    "camera.reference_every": "--reference-every",
    "readout.values": "--values",
    "readout.coding": "--coding",
    "recovery.method": "--recovery",
    "recovery.free_share": "--free-share",
    "link_mbit_per_s": "--link-mbit-per-s",
    "output": "--output",
    "archive": "--archive",
}
ARCHIVES = (".h5", ".hdf5", ".nxs")
ONLY_FOR = {"kernel_size": "coded-aperture", "mask_count": "coded-aperture", "pattern": "phase-plate",
            "symmetry": "phase-plate"}  # fmt: skip


def given(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def source(
    name: str, *, watch: bool, pixel_size: float | None, speed: float | None = None, **specimen: Any
) -> dict[str, Any]:
    """What ``--input`` means: *specimen*, *pattern*, *archive*, or a path.

    ``specimen`` are fields of ``SpecimenSpec``, given or None; ``side_pixels`` and ``dtype`` serve the
    pattern too.
    """
    if name == "archive" or Path(name).suffix.lower() in ARCHIVES:
        others = {"--watch": watch or None, "--pixel-size": pixel_size, **_named(specimen)}
        _refuse(others, "another input than an archive")
        path = None if name == "archive" else str(Path(name).absolute())
        return {"kind": "archive", **given(path=path), **_speed(speed)}
    _refuse({"--speed": speed}, "--input ARCHIVE")
    dtype = specimen.pop("dtype", None)
    match name:
        case "specimen":
            fields = given(pixel_size_angstrom=pixel_size, **specimen)
            _refuse({"--watch": watch or None, "--dtype": dtype}, "a folder or a pattern")
            return {"kind": "specimen", "specimen": fields}
        case "pattern":
            side = specimen.pop("side_pixels", None)
            _refuse(
                {"--watch": watch or None, "--pixel-size": pixel_size, **_named(specimen)}, "another input"
            )
            return {"kind": "pattern", **given(shape=side and (side, side), dtype=dtype)}
        case path:
            _refuse({"--dtype": dtype, **_named(specimen)}, "--input specimen or pattern")
            return {"kind": "file", **given(path=path, watch=watch or None, pixel_size_angstrom=pixel_size)}


def _speed(speed: float | None) -> dict[str, float | None]:
    return {} if speed is None else {"speed": speed or None}


def replay(name: str | None, speed: float | None) -> ArchiveSource | None:
    """What ``cryoflux detector --input`` means.

    Raises
    ------
    WrongOption
        If the speed is out of range, or there is nothing to be replayed.
    """
    if name is None:
        _refuse({"--speed": speed}, "--input ARCHIVE")
        return None
    path = str(Path(name).absolute())
    return validated(ArchiveSource, {"kind": "archive", "path": path, **_speed(speed)}, "source")


def asked(options: SessionOptions, output: str | None, defaults: Mapping[str, Any] = EMPTY) -> SessionSpec:
    """The session that the options mean; what they leave open is as ``defaults`` say, in REST's words.

    Defaults of another kind of source or mask, or of another recovery method, than the options name do not
    count.

    Raises
    ------
    WrongOption
        If a value is out of range, or does not go with another.
    """
    wanted = _asked_source(options, defaults.get("source", {}))
    if wanted["kind"] == "archive":
        _refuse_as_recorded(options)
        return session(
            **given(link_mbit_per_s=options.link_mbit_per_s, output=output, archive=options.archive),
            source=wanted,
            recovery=asked_recovery(options, defaults.get("recovery", {})),
            camera=given(rate=options.rate, frames=options.frames),
        )
    return session(
        **{
            **{name: value for name, value in defaults.items() if name not in PARTS},
            **given(link_mbit_per_s=options.link_mbit_per_s, output=output, archive=options.archive),
        },
        source=wanted,
        mask=_asked_mask(options, defaults.get("mask", {})),
        recovery=asked_recovery(options, defaults.get("recovery", {})),
        camera={
            **defaults.get("camera", {}),
            **given(rate=options.rate, frames=options.frames, reference_every=options.reference_every),
        },
        readout={**defaults.get("readout", {}), **given(values=options.values, coding=options.coding)},
    )


def _refuse_as_recorded(options: SessionOptions) -> None:
    """Nothing may be asked of a replayed session that was settled when it was recorded."""
    names = ("mask", "compression", "kernel", "masks", "pattern", "symmetry", "seed", "values", "coding",
             "reference_every", "change")  # fmt: skip
    for name in names:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise WrongOption(f"{option}: a replayed session's masks and readout are as recorded")


def _asked_source(options: SessionOptions, default: Mapping[str, Any]) -> dict[str, Any]:
    kind = default.get("kind", "specimen")
    wanted = source(
        options.input or (kind if kind in ("specimen", "pattern") else default.get("path", kind)),
        watch=options.watch,
        pixel_size=options.pixel_size,
        speed=options.speed,
        dose_per_square_angstrom=options.dose,
        snr=options.snr,
        structure=options.structure,
        side_pixels=options.side,
        dtype=options.dtype,
        output="micrographs" if options.micrographs else None,
        seed=options.specimen_seed,
    )
    if wanted["kind"] != kind:
        return wanted
    specimen = (
        {"specimen": {**default.get("specimen", {}), **wanted["specimen"]}} if kind == "specimen" else {}
    )
    return {**default, **wanted, **specimen}


def _asked_mask(options: MaskOptions, default: Mapping[str, Any]) -> MaskSpec:
    usual = default.get("kind", "coded-aperture")
    kind = options.mask or usual
    fields = given(
        kernel_size=options.kernel,
        mask_count=options.masks,
        pattern=options.pattern,
        symmetry=options.symmetry,
        seed=options.seed,
    )
    if kind != usual:
        return mask(kind, options.compression, **fields)
    replaced = {"kind"} if options.compression is None else {"kind", "mask_count", "compression_factor"}
    known = {name: value for name, value in default.items() if name not in replaced}
    return mask(kind, options.compression, **{**known, **fields})


def asked_recovery(options: RecoveryOptions, default: Mapping[str, Any] = EMPTY) -> RecoverySpec:
    """The recovery that the options mean; what they leave open is as ``default`` says."""
    usual = default.get("method", RecoverySpec().method)
    method = options.recovery or usual
    parameters = default.get("parameters", {}) if method == usual else {}
    share = default.get("free_share") if options.free_share is None else options.free_share
    return recovery(method, options.parameter or [], share, parameters)


def _named(specimen: Mapping[str, Any]) -> dict[str, Any]:
    return {_option(f"source.specimen.{name}"): value for name, value in specimen.items()}


def _refuse(options: Mapping[str, Any], where: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise WrongOption(f"{option}: belongs to {where}")


def mask(kind: str, compression: float | None, **fields: Any) -> MaskSpec:
    """The mask that the options mean; ``--compression`` picks the nearest setting of its kind.

    Raises
    ------
    WrongOption
        If a value is out of range, belongs to another kind of mask, or two contradict each other.
    """
    known = given(**fields)
    for name in known:
        if ONLY_FOR.get(name, kind) != kind:
            raise WrongOption(
                f"{OPTION_OF[f'mask.{name}']}: belongs to --mask {ONLY_FOR[name]}, not to {kind}"
            )
    if kind == "none":
        known.pop("seed", None)
    spec = validated(MaskSpec, {"kind": kind, **known}, "mask")
    if compression is None:
        return spec
    if not math.isfinite(compression):
        raise WrongOption(f"--compression: must be a number, got {compression}")
    try:
        nearest = spec.with_compression_factor(compression)
    except ValueError as error:
        raise WrongOption(f"--compression: {FieldProblem.parse(str(error)).message}") from error
    if "mask_count" in known and nearest != spec:
        raise WrongOption(
            f"--compression: {compression:g} contradicts --masks {known['mask_count']}; give one of them"
        )
    return nearest


def recovery(
    method: str | None,
    parameters: Sequence[str],
    free_share: float | None,
    usual: Mapping[str, Any] = EMPTY,
) -> RecoverySpec:
    """The recovery that the options mean; ``parameters`` are ``NAME=VALUE``, over the ``usual`` ones.

    Raises
    ------
    WrongOption
        If the method or a parameter is unknown, or a value is out of range.
    """
    values = dict(usual)
    for text in parameters:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WrongOption(f"--parameter: NAME=VALUE expected, got {text!r}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    spec = validated(RecoverySpec, given(method=method, free_share=free_share, parameters=values), "recovery")
    try:
        check_recovery(spec)
    except ValueError as error:
        raise WrongOption(f"--parameter: {' '.join(str(error).split())}") from error
    return spec


def change(text: str) -> tuple[int, float]:
    """A planned change of the compression factor, ``FRAME=C``.

    Raises
    ------
    WrongOption
        If it is not of that form.
    """
    frame, _, factor = text.partition("=")
    try:
        wanted = (int(frame), float(factor))
    except ValueError:
        raise WrongOption(f"--change: FRAME=C expected, such as 300=4; got {text!r}") from None
    if wanted[0] < 0 or not 1 <= wanted[1] < math.inf:
        raise WrongOption(f"--change: a frame from 0 on and a factor of at least 1 expected, got {text!r}")
    return wanted


def session(**parts: Any) -> SessionSpec:
    """A whole specification.

    Raises
    ------
    WrongOption
        If a value is out of range.
    """
    return validated(SessionSpec, given(**parts), "")


def validated(model: type[BaseModel], values: Mapping[str, Any], place: str) -> Any:
    """A model of these values; ``place`` is where it stands in the session's specification.

    Raises
    ------
    WrongOption
        In one line, with the option's name where the field has one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        schema = model.model_json_schema()
        problem = explain(error.errors(), schema, schema)[0]
        field = ".".join(filter(None, (place, problem.field)))
        raise WrongOption(f"{_option(field)}: {problem.message}") from error


def _option(field: str) -> str:
    """The option that sets a field; most specimen options are called as their fields are."""
    if field in OPTION_OF:
        return OPTION_OF[field]
    name = field.removeprefix("source.specimen.")
    return field if name == field else f"--{name.replace('_', '-')}"
