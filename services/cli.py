"""``cryoflux``: the command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="cryoflux",
    help="Live compressive cryo-EM: a mask in the beam, far fewer numbers on the wire, images recovered "
    "while the session runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEFAULT_PORT = 8000


def main() -> NoReturn:
    """Run the command line; whatever is wrong with it is told in one line."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:  # what the command line's own parser finds
        print(f"cryoflux: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"cryoflux {version('cryoflux')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# ---- a whole session -----------------------------------------------------------------------------------

Structure = Annotated[
    str | None, typer.Option(help="'cage' (built in), or a PDB, mmCIF or MRC file.", show_default="cage")
]
Side = Annotated[int | None, typer.Option(help="Side of a simulated frame, pixels.", show_default="128")]
PixelSize = Annotated[float | None, typer.Option(help="Å; of a file: instead of what it says.")]
Dose = Annotated[float | None, typer.Option(help="Electrons per Å².", show_default="20")]
Snr = Annotated[
    float | None,
    typer.Option(help="Gaussian noise at this signal-to-noise variance ratio, instead of counts."),
]
Micrographs = Annotated[bool, typer.Option(help="Whole micrographs with many particles.")]


@app.command()
def live(
    input: Annotated[
        str,
        typer.Option(
            "--input",
            help="'specimen' (simulated), 'pattern' (numbered frames), an MRC, TIFF or STAR file, a folder.",
        ),
    ] = "specimen",
    watch: Annotated[bool, typer.Option("--watch", help="A folder: wait for new files.")] = False,
    mask: Annotated[str, typer.Option(help="coded-aperture, phase-plate or none.")] = "coded-aperture",
    kernel: Annotated[int | None, typer.Option(help="Coded aperture: K.", show_default="4")] = None,
    masks: Annotated[
        int | None, typer.Option(help="Coded aperture: b, so C = K²/b.", show_default="8")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Phase plate: uniform, annular or radial.", show_default="uniform")
    ] = None,
    symmetry: Annotated[
        str | None, typer.Option(help="Phase plate: hermitian or paper.", show_default="hermitian")
    ] = None,
    compression: Annotated[
        float | None, typer.Option(help="C: the nearest setting of the mask is taken.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the mask.", show_default="0")] = None,
    recovery: Annotated[
        str | None, typer.Option(help="minimum_norm, wiener, dct, wavelet or tv.", show_default="dct")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the recovery; repeatable.")
    ] = None,
    free_share: Annotated[
        float | None,
        typer.Option(help="Share of the measurements kept out for the free residual.", show_default="0.05"),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="How many; else until the input ends or Ctrl-C.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Frames per second; else as fast as they are taken.")
    ] = None,
    reference_every: Annotated[
        int | None, typer.Option(help="Every n-th frame is also sent whole; 0: none.", show_default="100")
    ] = None,
    link_mbit_per_s: Annotated[float | None, typer.Option(help="Limit of the simulated link.")] = None,
    values: Annotated[
        str | None, typer.Option(help="auto, float32, float16 or quantised.", show_default="auto")
    ] = None,
    coding: Annotated[
        str | None,
        typer.Option(help="auto, plain, packed, bitshuffle-lz4 or bitshuffle-zstd.", show_default="auto"),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(metavar="FRAME=C", help="Change C by REST when that frame is reached; repeatable."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Recovery processes.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("output"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the session in that folder.")
    ] = False,
    host: Annotated[str, typer.Option(help="Of the REST interface.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the REST interface; 0: any.")
    ] = DEFAULT_PORT,
    pixel_size: PixelSize = None,
    dose: Dose = None,
    snr: Snr = None,
    structure: Structure = None,
    side: Side = None,
    dtype: Annotated[str | None, typer.Option(help="Of a pattern: uint8, uint16 or float32.")] = None,
    micrographs: Micrographs = False,
    specimen_seed: Annotated[int | None, typer.Option(help="Of the simulated specimen.")] = None,
) -> int:
    """Run a whole session on this machine.

    Starts the control plane, the detector and the workers as processes, shows how the session goes, and
    writes the recovered images and an account of them. While it runs, anything can be changed by REST.
    """
    from services import specification as wanted
    from services.live import CannotRun, Request, fail
    from services.live import live as run

    try:
        spec = wanted.session(
            source=wanted.source(
                input,
                watch=watch,
                pixel_size=pixel_size,
                dose_per_square_angstrom=dose,
                snr=snr,
                structure=structure,
                side_pixels=side,
                dtype=dtype,
                output="micrographs" if micrographs else None,
                seed=specimen_seed,
            ),
            mask=wanted.mask(
                mask,
                compression,
                kernel_size=kernel,
                mask_count=masks,
                pattern=pattern,
                symmetry=symmetry,
                seed=seed,
            ),
            camera=wanted.given(rate=rate, frames=frames, reference_every=reference_every),
            readout=wanted.given(values=values, coding=coding),
            recovery=wanted.recovery(recovery, parameter or [], free_share),
            link_mbit_per_s=link_mbit_per_s,
            output=str(output),
        )
        changes = [wanted.change(text) for text in change or []]
        return run(Request(spec, host, port, workers or _workers(), changes, overwrite))
    except wanted.WrongOption as error:
        return fail("live", CannotRun(str(error), exit_code=2))
    except CannotRun as error:
        return fail("live", error)


def _workers() -> int:
    """As many workers as there are cores beside the detector's, up to four."""
    import os

    return max(1, min(4, (os.cpu_count() or 1) - 1))


@app.command()
def recover(
    session: Annotated[Path, typer.Argument(help="Folder of a finished session.")],
    output: Annotated[
        Path | None, typer.Option(help="New folder; else beside it, with the method's name.")
    ] = None,
    recovery: Annotated[
        str | None, typer.Option(help="minimum_norm, wiener, dct, wavelet or tv.", show_default="dct")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the recovery; repeatable.")
    ] = None,
    free_share: Annotated[
        float | None,
        typer.Option(help="Share of the measurements kept out for the free residual.", show_default="0.05"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results in that folder.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...", show_default="auto")] = None,
) -> int:
    """Recover the measurements of a finished session again, with another method or other parameters."""
    from common.settings import Settings
    from services import specification as wanted
    from services.display import counting, summary
    from services.live import CannotRun, fail, prepare_output
    from services.rerecovery import NothingToRecover, read_account, recover_again

    try:
        spec = wanted.recovery(recovery, parameter or [], free_share)
        settings = Settings.load(device=device)
        acquired = read_account(session)["frames"]["acquired"]
        output = output or session.absolute().with_name(f"{session.absolute().name}-{spec.method}")
        if output.absolute() == session.absolute():
            raise CannotRun("--output: is the session's own folder; name another one", exit_code=2)
        prepare_output(output, overwrite=overwrite)
        with counting("recovering", acquired) as progress:
            account = recover_again(session, output, spec, settings=settings, progress=progress)
    except CannotRun as error:
        return fail("recover", error)
    except (wanted.WrongOption, NothingToRecover, ValueError) as error:
        return fail("recover", CannotRun(str(error), exit_code=2))
    summary(account, output)
    return 0


@app.command()
def simulate(
    count: Annotated[int, typer.Option(min=1, help="Frames.")] = 64,
    output: Annotated[Path, typer.Option(help="Folder; files of the same names are replaced.")] = Path(
        "simulated"
    ),
    structure: Structure = None,
    micrographs: Micrographs = False,
    particles_per_micrograph: Annotated[int | None, typer.Option(show_default="60")] = None,
    side: Side = None,
    pixel_size: Annotated[float | None, typer.Option(help="Å.", show_default="1.5")] = None,
    voltage_kv: Annotated[float | None, typer.Option(show_default="300")] = None,
    spherical_aberration_mm: Annotated[float | None, typer.Option(show_default="2.7")] = None,
    amplitude_contrast: Annotated[float | None, typer.Option(show_default="0.07")] = None,
    defocus_min_um: Annotated[float | None, typer.Option(show_default="0.8")] = None,
    defocus_max_um: Annotated[float | None, typer.Option(show_default="2.2")] = None,
    envelope_b_factor: Annotated[float | None, typer.Option(help="Å².", show_default="60")] = None,
    dose: Dose = None,
    snr: Snr = None,
    seed: Annotated[int | None, typer.Option(show_default="0")] = None,
) -> int:
    """Write simulated particles or micrographs, with clean truth, poses and CTF as RELION 3.1 STAR."""
    from common.session import SpecimenSpec
    from detector_sim.simulate import simulate as write
    from services import specification as wanted
    from services.display import counting

    try:
        spec = wanted.validated(
            SpecimenSpec,
            wanted.given(
                structure=structure,
                output="micrographs" if micrographs else None,
                particles_per_micrograph=particles_per_micrograph,
                side_pixels=side,
                pixel_size_angstrom=pixel_size,
                voltage_kv=voltage_kv,
                spherical_aberration_mm=spherical_aberration_mm,
                amplitude_contrast=amplitude_contrast,
                defocus_min_um=defocus_min_um,
                defocus_max_um=defocus_max_um,
                envelope_b_factor=envelope_b_factor,
                dose_per_square_angstrom=dose,
                snr=snr,
                seed=seed,
            ),
            "source.specimen",
        )
        with counting("simulated", count) as progress:
            written = write(spec, count, output, progress)
    except ValueError as error:
        print(f"cryoflux simulate: {error}", file=sys.stderr)
        return 2
    print(
        f"{written.count} frames in {written.frames}, truth in {written.clean}, "
        f"poses and CTF in {written.star}"
    )
    return 0


# ---- the parts ------------------------------------------------------------------------------------------

ControlEndpoint = Annotated[
    str | None, typer.Option(help="Control bus.", show_default="tcp://127.0.0.1:5550")
]
Parent = Annotated[int | None, typer.Option(hidden=True)]


@app.command()
def control(
    control_endpoint: ControlEndpoint = None,
    host: Annotated[str | None, typer.Option(help="REST interface.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="REST interface; 0: any free one.", show_default="8000")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="File of the state store.", show_default="cryoflux.sqlite")
    ] = None,
    parent: Parent = None,
) -> int:
    """Run a control plane alone."""
    from services.control_plane.server import run_control

    return _part(
        "control",
        run_control,
        parent,
        control_endpoint=control_endpoint,
        http_host=host,
        http_port=port,
        state=state,
    )


@app.command()
def detector(
    control_endpoint: ControlEndpoint = None,
    data_bind: Annotated[
        str | None,
        typer.Option(help="Where workers connect; port 0: any.", show_default="tcp://127.0.0.1:5551"),
    ] = None,
    data_endpoint: Annotated[str | None, typer.Option(help="What workers are told, if not that.")] = None,
    parent: Parent = None,
) -> int:
    """Run a simulated detector alone."""
    from detector_sim.detector import run_detector

    return _part(
        "detector",
        run_detector,
        parent,
        control_endpoint=control_endpoint,
        data_bind=data_bind,
        data_endpoint=data_endpoint,
    )


@app.command()
def reconstructor(
    name: Annotated[str, typer.Option(help="As it is called in tables and logs.")] = "worker",
    control_endpoint: ControlEndpoint = None,
    data_endpoint: Annotated[
        str | None, typer.Option(help="The detector, if not as the control bus says.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...", show_default="auto")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; else all cores.")] = None,
    parent: Parent = None,
) -> int:
    """Run a recovery worker alone."""
    from reconstructor.worker import run_worker

    return _part(
        "reconstructor",
        lambda settings: run_worker(settings, name),
        parent,
        control_endpoint=control_endpoint,
        data_endpoint=data_endpoint,
        device=device,
        threads=threads,
    )


def _part(command: str, run: Callable[[Any], int], parent: int | None, **options: Any) -> int:
    """Run one process of the system with the settings in force."""
    from common.settings import Settings
    from services.lifeline import end_with

    if parent is not None:
        end_with(parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = Settings.load(**options)
    except ValueError as error:
        print(f"cryoflux {command}: {error}", file=sys.stderr)
        return 2
    return run(settings)


if __name__ == "__main__":
    main()
