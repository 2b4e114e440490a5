"""``cryoflux``: the command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from services.failure import CannotRun, WrongOption, fail
from services.options import PlaceOptions, RecoveryOptions, SessionOptions, SpecimenOptions, spread

if TYPE_CHECKING:
    from common.settings import Settings
    from services.client import Plan
    from services.live import Place

app = typer.Typer(
    name="cryoflux",
    help="Live compressive cryo-EM: a mask in the beam, far fewer numbers on the wire, images recovered "
    "while the session runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RUN, STEER, FILES, PARTS = "Run", "Steer what runs", "Simulate and recover", "Parts, for a cluster"


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


# ---- whole sessions ------------------------------------------------------------------------------------

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the session in that folder.")]


@app.command(rich_help_panel=RUN)
@spread
def live(
    session: SessionOptions,
    place: PlaceOptions,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("output"),
    overwrite: Overwrite = False,
) -> int:
    """Run a whole session on this machine.

    Starts the control plane, the detector and the workers as processes, shows how the session goes, and
    writes the recovered images and an account of them. While it runs, anything can be changed in the console
    or by REST.
    """
    from services.live import live as run

    return _steered("live", lambda: run(_plan(session, output), _place(place), overwrite=overwrite))


@app.command(rich_help_panel=RUN)
@spread
def serve(
    place: PlaceOptions,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of sessions that do not name their own.", show_default="output"),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(help="State store: a file, or redis://host:port/0.", show_default="cryoflux.sqlite"),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the logs, one a process.", show_default="RESULTS/logs")
    ] = None,
) -> int:
    """Keep a control plane, a detector and workers running; sessions come from the console or by REST.

    Everything runs on this machine until Ctrl-C. A session that runs then is stopped first, and its results
    are finished.
    """

    def run() -> int:
        from services.live import serve as keep

        folder = results or Path(_settings().results)
        return keep(_place(place), results=folder, state=state, logs=logs or folder / "logs")

    return _steered("serve", run)


Url = Annotated[str, typer.Option(help="The control plane.", envvar="CRYOFLUX_URL")]
LOCAL = "http://127.0.0.1:8000"


@app.command(rich_help_panel=RUN)
@spread
def start(
    session: SessionOptions,
    url: Url = LOCAL,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results, as all workers see it.", show_default="the control plane decides"
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the session.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a detector and a worker.")] = 60.0,
) -> int:
    """Start a session where a control plane runs already, and follow it.

    Ctrl-C stops the session: what was acquired is delivered. Ctrl-C again leaves it to itself.
    """
    from services.client import start as run

    def absolute() -> Plan:
        from dataclasses import replace

        here = {name: _absolute(getattr(session, name)) for name in ("input", "structure")}
        return _plan(replace(session, **here), output and output.absolute())

    return _steered("start", lambda: run(url, absolute(), wait_seconds=wait, detach=detach))


def _absolute(path: str | None) -> str | None:
    """A file here, as processes with another working folder find it."""
    return str(Path(path).absolute()) if path is not None and Path(path).exists() else path


def _plan(options: SessionOptions, output: Path | None) -> Plan:
    from services import specification as wanted
    from services.client import Plan

    spec = wanted.asked(options, None if output is None else str(output))
    return Plan(spec, [wanted.change(text) for text in options.change or []])


def _place(options: PlaceOptions) -> Place:
    import os

    from services.live import Place

    settings = _settings(http_host=options.host, http_port=options.port)
    usual = settings.workers if "workers" in settings.model_fields_set else None
    workers = options.workers or usual or max(1, min(4, (os.cpu_count() or 1) - 1))
    return Place(settings.http_host, settings.http_port, workers)


def _settings(**options: Any) -> Settings:
    from common.settings import Settings

    try:
        return Settings.load(**options)
    except ValueError as error:
        raise CannotRun(str(error), exit_code=2) from error


def _steered(command: str, run: Callable[[], int]) -> int:
    """Run a command that steers a session; whatever is wrong is told in one line."""
    try:
        return run()
    except CannotRun as error:
        return fail(command, error)


@app.command(rich_help_panel=FILES)
@spread
def recover(
    session: Annotated[
        Path, typer.Argument(metavar="SESSION|ARCHIVE", help="Folder of a finished session, or an archive.")
    ],
    recovery: RecoveryOptions,
    output: Annotated[
        Path | None, typer.Option(help="New folder; else beside it, with the method's name.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Recovery processes.", show_default="one a core; one on a GPU"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results in that folder.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...", show_default="auto")] = None,
) -> int:
    """Recover a session again, with another method.

    From the measurements that a finished session kept, or from its archive; the method or its parameters may
    be others. Interrupted or killed half-way, the same command goes on with the frames that are missing. Of
    an archive that was cut, everything up to its last whole chunk is recovered.
    """
    from services import specification as wanted
    from services.rerecovery import recover_shown as run

    return _steered(
        "recover",
        lambda: run(
            session,
            output,
            wanted.asked_recovery(recovery),
            settings=_settings(device=device),
            workers=workers,
            overwrite=overwrite,
        ),
    )


@app.command(rich_help_panel=FILES)
def archive(
    session: Annotated[Path, typer.Argument(metavar="SESSION", help="Folder of a session's results.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new HDF5 file, or one left incomplete.")],
) -> int:
    """Pack a session's measurements into one file.

    HDF5 that any reader can read (docs/archive.md); also of a session whose control plane died, and to
    complete an archive that was left unfinished.
    """
    from services.archiving import pack

    return _steered("archive", lambda: pack(session, file))


@app.command(rich_help_panel=FILES)
@spread
def simulate(
    specimen: SpecimenOptions,
    count: Annotated[int, typer.Option(min=1, help="Frames.")] = 64,
    output: Annotated[Path, typer.Option(help="Folder; files of the same names are replaced.")] = Path(
        "simulated"
    ),
    particles_per_micrograph: Annotated[int | None, typer.Option(show_default="60")] = None,
    voltage_kv: Annotated[float | None, typer.Option(show_default="300")] = None,
    spherical_aberration_mm: Annotated[float | None, typer.Option(show_default="2.7")] = None,
    amplitude_contrast: Annotated[float | None, typer.Option(show_default="0.07")] = None,
    defocus_min_um: Annotated[float | None, typer.Option(show_default="0.8")] = None,
    defocus_max_um: Annotated[float | None, typer.Option(show_default="2.2")] = None,
    envelope_b_factor: Annotated[float | None, typer.Option(help="Å².", show_default="60")] = None,
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
                structure=specimen.structure,
                output="micrographs" if specimen.micrographs else None,
                particles_per_micrograph=particles_per_micrograph,
                side_pixels=specimen.side,
                pixel_size_angstrom=specimen.pixel_size,
                voltage_kv=voltage_kv,
                spherical_aberration_mm=spherical_aberration_mm,
                amplitude_contrast=amplitude_contrast,
                defocus_min_um=defocus_min_um,
                defocus_max_um=defocus_max_um,
                envelope_b_factor=envelope_b_factor,
                dose_per_square_angstrom=specimen.dose,
                snr=specimen.snr,
                seed=seed,
            ),
            "source.specimen",
        )
        with counting("simulated", count) as progress:
            written = write(spec, count, output, progress)
    except CannotRun as error:
        return fail("simulate", error)
    except ValueError as error:
        return fail("simulate", CannotRun(str(error), exit_code=2))
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


@app.command(rich_help_panel=PARTS)
def control(
    control_endpoint: ControlEndpoint = None,
    host: Annotated[str | None, typer.Option(help="REST interface.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="REST interface; 0: any free one.", show_default="8000")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(help="State store: a file, or redis://host:port/0.", show_default="cryoflux.sqlite"),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(help="Folder of sessions that do not name their own.", show_default="output"),
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
        results=results,
    )


@app.command(rich_help_panel=PARTS)
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


@app.command(rich_help_panel=PARTS)
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
