"""``cryoflux``: the command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from services.failure import CannotRun, fail
from services.listing import Command, Group
from services.options import (
    LOG_FORMATS,
    LOG_LEVELS,
    HallucinationOptions,
    MapOptions,
    MaskOptions,
    PlaceOptions,
    RecoveryOptions,
    SessionOptions,
    SpecimenOptions,
    TrainingOptions,
    microscope,
    spread,
)

if TYPE_CHECKING:
    from common.settings import Settings
    from services.client import Plan
    from services.live import Place

app = typer.Typer(
    name="cryoflux",
    cls=Group,
    help="Live compressive cryo-EM: a mask in the beam, far fewer numbers on the wire, images recovered "
    "while the session runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RUN, STEER, FILES = "Run", "Steer the session that runs", "Simulate and recover"
SETTINGS, PARTS = "Settings", "Parts, for a cluster"


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
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings, TOML or YAML.")] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="human or json.", show_default="human", autocompletion=LOG_FORMATS
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="debug, info, warning or error.",
            show_default="info",
            autocompletion=LOG_LEVELS,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if config is not None and not config.is_file():
        fail("--config", CannotRun(f"no such file: {config}"))
        raise typer.Exit(2)
    # by the environment, so that it reaches the processes that a command starts
    given = {"log_format": log_format, "log_level": log_level}
    context.obj = {name: value for name, value in given.items() if value is not None}
    os.environ.update({f"CRYOFLUX_{name.upper()}": value for name, value in context.obj.items()})
    if config is not None:
        os.environ["CRYOFLUX_CONFIG"] = str(config.absolute())


# ---- whole sessions ------------------------------------------------------------------------------------

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the session in that folder.")]


@app.command(cls=Command, rich_help_panel=RUN)
@spread
def live(
    session: SessionOptions,
    place: PlaceOptions,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of the results.", show_default="output")
    ] = None,
    overwrite: Overwrite = False,
) -> int:
    """Run a whole session on this machine.

    Starts the control plane, the detector and the workers as processes, shows how the session goes, and
    writes the recovered images and an account of them. While it runs, anything can be changed in the console
    or by REST.
    """
    from services.live import live as run

    return _steered("live", lambda: run(_plan(session, output), _place(place), overwrite=overwrite))


@app.command(cls=Command, rich_help_panel=RUN)
@spread
def serve(
    place: PlaceOptions,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of sessions that do not name their own.", show_default="output"
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="A file, or redis://host:port/0.", show_default="cryoflux.sqlite"),
    ] = None,
    logs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of the logs, one a process.", show_default="RESULTS/logs"
        ),
    ] = None,
) -> int:
    """Keep everything running, for sessions from the console.

    A control plane, a detector and workers run on this machine until Ctrl-C. Sessions are started in the
    console, with 'cryoflux start' or by REST; one that runs at the end is stopped first, and its results are
    finished.
    """

    def run() -> int:
        from services.live import serve as keep

        _check_store(state)
        folder = results or Path(_settings().results)
        return keep(_place(place), results=folder, state=state, logs=logs or folder / "logs")

    return _steered("serve", run)


Url = Annotated[
    str, typer.Option(help="The control plane.", metavar="URL", envvar="CRYOFLUX_URL", show_envvar=False)
]
LOCAL = "http://127.0.0.1:8000"


@app.command(cls=Command, rich_help_panel=RUN)
@spread
def start(
    session: SessionOptions,
    url: Url = LOCAL,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Results, as all workers see it.", show_default="the control plane decides"
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the session.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a detector and a worker.")
    ] = 60.0,
) -> int:
    """Start a session where 'serve' runs, and follow it.

    Ctrl-C stops the session: what was acquired is delivered. Ctrl-C again leaves it to itself.
    """
    from services.client import start as run

    def absolute() -> Plan:
        from dataclasses import replace

        from common.session import STRUCTURES

        here = {"input": _absolute(session.input)}
        if session.structure not in STRUCTURES:  # shapes, whatever lies here under their names
            here["structure"] = _absolute(session.structure)
        return _plan(replace(session, **here), output and output.absolute())

    return _steered("start", lambda: run(url, absolute(), wait_seconds=wait, detach=detach))


SessionId = Annotated[str, typer.Option("--session", help="Its id.", metavar="ID")]


@app.command(cls=Command, rich_help_panel=STEER)
def status(url: Url = LOCAL, session: SessionId = "current") -> int:
    """Show whether everything is there, and how the session goes."""
    from services.client import status as run

    return _steered("status", lambda: run(url, session))


@app.command(cls=Command, rich_help_panel=STEER)
def pause(url: Url = LOCAL, session: SessionId = "current") -> int:
    """Expose nothing until 'resume'."""
    return _steer("pause", url, session)


@app.command(cls=Command, rich_help_panel=STEER)
def resume(url: Url = LOCAL, session: SessionId = "current") -> int:
    """Expose again."""
    return _steer("resume", url, session)


@app.command(cls=Command, rich_help_panel=STEER)
def stop(url: Url = LOCAL, session: SessionId = "current") -> int:
    """End the session; what was acquired is delivered."""
    return _steer("stop", url, session)


@app.command(cls=Command, rich_help_panel=STEER)
def change(
    compression: Annotated[
        float, typer.Option("--compression", help="C: the nearest setting of the mask in force is taken.")
    ],
    url: Url = LOCAL,
    session: SessionId = "current",
) -> int:
    """Change the compression factor while frames flow."""
    from services.client import change as run

    return _steered("change", lambda: run(url, session, compression))


def _steer(verb: str, url: str, session: str) -> int:
    from services.client import steer

    return _steered(verb, lambda: steer(url, session, verb))


def _absolute(path: str | None) -> str | None:
    """A file here, as processes with another working folder find it."""
    return str(Path(path).absolute()) if path is not None and Path(path).exists() else path


def _plan(options: SessionOptions, output: Path | None) -> Plan:
    from services import specification as wanted
    from services.client import Plan

    if options.archive is not None:
        options = replace(options, archive=str(Path(options.archive).absolute()))
    spec = wanted.asked(options, None if output is None else str(output), _settings().session)
    return Plan(spec, [wanted.change(text) for text in options.change or []])


def _place(options: PlaceOptions) -> Place:
    from services.control_plane.server import protection_of
    from services.live import Place

    settings = _settings(http_host=options.host, http_port=options.port)
    try:
        tokens, certificate = protection_of(settings)
    except ValueError as error:
        raise CannotRun(str(error), exit_code=2) from error
    usual = settings.workers if "workers" in settings.model_fields_set else None
    workers = options.workers or usual or max(1, min(4, (os.cpu_count() or 1) - 1))
    return Place(settings.http_host, settings.http_port, workers, settings.log_format, tokens, certificate)


def _check_store(address: str | None) -> None:
    """Refuse a password where everybody on this machine can read it."""
    from common.masking import masked

    if address is not None and masked(address) != address:
        told = "a password on the command line is seen by everybody on this machine; set CRYOFLUX_STATE"
        raise CannotRun(f"--state: {masked(address)}: {told}", exit_code=2)


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


@app.command(cls=Command, rich_help_panel=FILES)
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


@app.command(cls=Command, rich_help_panel=FILES)
def archive(
    session: Annotated[Path, typer.Argument(metavar="SESSION", help="Folder of a session's results.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new HDF5 file, or one left incomplete.")],
    follow: Annotated[bool, typer.Option("--follow", hidden=True)] = False,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> int:
    """Pack a session's measurements into one file.

    HDF5 that any reader can read (docs/archive.md); also of a session whose control plane died, and to
    complete an archive that was left unfinished.
    """
    if parent is not None:
        from services.lifeline import end_with

        end_with(parent)
    from services import archiving

    return _steered("archive", lambda: (archiving.follow if follow else archiving.pack)(session, file))


@app.command(cls=Command, rich_help_panel=FILES)
@spread
def simulate(
    specimen: SpecimenOptions,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Frames.")] = 64,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Files of the same names are replaced.")
    ] = Path("simulated"),
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of the specimen.", show_default="0")] = None,
    particles_per_micrograph: Annotated[int | None, microscope("N", "How many.", "60")] = None,
    voltage_kv: Annotated[float | None, microscope("KV", "Acceleration.", "300")] = None,
    spherical_aberration_mm: Annotated[float | None, microscope("MM", "Of the objective.", "2.7")] = None,
    amplitude_contrast: Annotated[float | None, microscope("SHARE", "Of the contrast.", "0.07")] = None,
    defocus_min_um: Annotated[float | None, microscope("UM", "Underfocus, least.", "0.8")] = None,
    defocus_max_um: Annotated[float | None, microscope("UM", "Underfocus, most.", "2.2")] = None,
    envelope_b_factor: Annotated[float | None, microscope("Å²", "Of the envelope.", "60")] = None,
) -> int:
    """Write simulated frames with truth, poses and CTF.

    Particles or micrographs as MRC files, with a RELION 3.1 STAR file and the clean truth beside them.
    """
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


@app.command("map", cls=Command, rich_help_panel=FILES)
@spread
def make_map(
    particles: Annotated[Path, typer.Argument(metavar="STAR", help="Particles with poses, and CTF.")],
    options: MapOptions,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Files of the same names are replaced.")
    ] = Path("map"),
) -> int:
    """Make a map of particles whose poses are known.

    Also of a session's recovered.star, where its source knew the poses. Writes map, half maps and Fourier
    shell correlation; docs/maps.md says what they are.
    """
    from services.mapping import make_map as run

    return _steered("map", lambda: run(particles, output, options))


training = typer.Typer(cls=Group, help="Train priors for the recovery.", no_args_is_help=True)
app.add_typer(training, name="train", rich_help_panel=FILES)


@training.command("prior", cls=Command)
@spread
def train_prior(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the prior, new or of this training.")],
    options: TrainingOptions,
) -> int:
    """Train a prior for --recovery diffusion.

    On simulated particles, or on your own images. Interrupted or killed, the same command goes on where it
    was. The folder can be used as soon as the first checkpoint is there; docs/training.md says more.

    Several GPUs: accelerate launch -m services.cli train prior ...
    """
    from services.training import train_prior as run

    return _steered("train prior", lambda: run(folder, options))


benchmark = typer.Typer(
    cls=Group, help="Measure what a recovery is worth, on simulated specimens.", no_args_is_help=True
)
app.add_typer(benchmark, name="bench", rich_help_panel=FILES)


@benchmark.command("hallucination", cls=Command)
@spread
def bench_hallucination(
    options: HallucinationOptions,
    mask: MaskOptions,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...", show_default="auto")] = None,
) -> int:
    """Try a learned prior on specimens that it never saw.

    Recovers simulated particles of them beside those it was trained on, and tells against the truth how much
    of what the prior added was right, what it looks like, and whether the shift by the prior and the spread
    of its samples warn of what was not. docs/learned-prior.md says how to read it.
    """
    from services.hallucination import bench_hallucination as run
    from services.rerecovery import torch_device

    return _steered("bench hallucination", lambda: run(options, mask, torch_device(_settings(device=device))))


# ---- settings -----------------------------------------------------------------------------------------

configuration = typer.Typer(
    cls=Group, help="Show the settings in force, and what a file of them may say.", no_args_is_help=True
)
app.add_typer(configuration, name="config", rich_help_panel=SETTINGS)


@configuration.command("show", cls=Command)
def config_show(context: typer.Context) -> int:
    """Show the settings in force and where each comes from.

    As a TOML file that says the same.

    Later ones win: default, configuration file (--config or CRYOFLUX_CONFIG), environment (CRYOFLUX_...),
    option. Passwords in addresses are masked.
    """

    def run() -> int:
        settings = _settings(**context.obj)
        from services.configuration import show

        print(show(settings, context.obj))
        return 0

    return _steered("config show", run)


@configuration.command("schema", cls=Command)
def config_schema() -> int:
    """Print the JSON schema of a configuration file, for editors that check while one types."""
    import json

    from services.configuration import schema

    print(json.dumps(schema(), indent=2))
    return 0


keyring = typer.Typer(
    cls=Group,
    help="Make keys for the planes between processes, and tokens for REST.",
    no_args_is_help=True,
)
app.add_typer(keyring, name="keys", rich_help_panel=SETTINGS)

KeysFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the keys.")]


@keyring.command("new", cls=Command)
def keys_new(
    folder: KeysFolder,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of a key; as often as there are keys. One that begins with 'control' or 'detector' is for "
            "that, any other is a worker's.",
            show_default="control, detector, worker",
        ),
    ] = None,
) -> int:
    """Make CURVE keys that control plane, detector and workers know each other by.

    Each is two files: NAME.key is public, NAME.key_secret stays on the machine that uses it. None that is
    there is replaced. What belongs where is told, and in docs/security.md.
    """
    from services.keyring import new

    return _steered("keys new", lambda: new(folder, name or ()))


@keyring.command("show", cls=Command)
def keys_show(folder: KeysFolder) -> int:
    """List the keys in a folder, and what is wrong with them; 1 if something is."""
    from services.keyring import show

    return _steered("keys show", lambda: show(folder))


@keyring.command("token", cls=Command)
def keys_token() -> int:
    """Print a random token, for the settings operator_token and viewer_token."""
    from services.keyring import token

    return token()


# ---- the parts ------------------------------------------------------------------------------------------

ControlEndpoint = Annotated[
    str | None, typer.Option(help="Control bus.", show_default="tcp://127.0.0.1:5550")
]
Parent = Annotated[int | None, typer.Option(hidden=True)]


@app.command(cls=Command, rich_help_panel=PARTS)
def control(
    control_endpoint: ControlEndpoint = None,
    host: Annotated[str | None, typer.Option(help="REST interface.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="REST interface; 0: any free one.", show_default="8000")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="A file, or redis://host:port/0.", show_default="cryoflux.sqlite"),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Folder of sessions that do not name their own.", show_default="output"
        ),
    ] = None,
    parent: Parent = None,
) -> int:
    """Run a control plane alone."""
    from services.control_plane.server import run_control

    try:
        _check_store(state)
    except CannotRun as error:
        return fail("control", error)
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


@app.command(cls=Command, rich_help_panel=PARTS)
def detector(
    control_endpoint: ControlEndpoint = None,
    data_bind: Annotated[
        str | None,
        typer.Option(help="Where workers connect; port 0: any.", show_default="tcp://127.0.0.1:5551"),
    ] = None,
    data_endpoint: Annotated[str | None, typer.Option(help="What workers are told, if not that.")] = None,
    spool: Annotated[
        str | None,
        typer.Option(help="Folder of what is not acknowledged; survives the process.", show_default="spool"),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            metavar="ARCHIVE", help="Replayed by sessions with the source 'archive' that name no file."
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="Of the replay: times its own; 0: as fast as it goes.", show_default="1"),
    ] = None,
    parent: Parent = None,
) -> int:
    """Run a simulated detector alone."""
    from detector_sim.detector import run_detector
    from services import specification as wanted

    try:
        replay = wanted.replay(input, speed)
    except CannotRun as error:
        return fail("detector", error)
    return _part(
        "detector",
        lambda settings: run_detector(settings, replay),
        parent,
        control_endpoint=control_endpoint,
        data_bind=data_bind,
        data_endpoint=data_endpoint,
        spool=spool,
    )


@app.command(cls=Command, rich_help_panel=PARTS)
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
        name,
        control_endpoint=control_endpoint,
        data_endpoint=data_endpoint,
        device=device,
        threads=threads,
    )


def _part(
    command: str, run: Callable[[Any], int], parent: int | None, name: str | None = None, **options: Any
) -> int:
    """Run one process of the system with the settings in force."""
    from common.logs import configure
    from common.settings import Settings
    from services.lifeline import end_with

    if parent is not None:
        end_with(parent)
    try:
        settings = Settings.load(**options)
    except ValueError as error:
        return fail(command, CannotRun(str(error), exit_code=2))
    configure(settings.log_format, settings.log_level, component=command, name=name or command)
    return run(settings)


if __name__ == "__main__":
    main()
