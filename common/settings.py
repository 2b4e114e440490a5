"""Every setting, in one place: default < configuration file < files in /run/secrets < environment
``CRYOFLUX_*`` < command line.

The file is named by ``CRYOFLUX_CONFIG`` (TOML, or YAML by its suffix) and may hold any of the fields below.
A session's own choices (source, mask, rate, recovery) are not settings: see ``common.session``. What the
table ``session`` says of them holds for commands that start sessions, where an option says nothing else.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

CONFIG_VARIABLE = "CRYOFLUX_CONFIG"
SECRETS_FOLDER = "/run/secrets"  # where container engines put them: cryoflux_operator_token, ...
TOKEN_LENGTH = 16
SECRETS = ("operator_token", "viewer_token")


def _listed(value: Any) -> Any:
    """A list written as one text, as in the environment: separated by commas, or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _given(value: Any) -> Any:
    """None for a text without anything in it: a variable that is set to nothing says nothing."""
    return None if value == "" else value


Token = Annotated[Annotated[SecretStr, Field(min_length=TOKEN_LENGTH)] | None, BeforeValidator(_given)]
Folders = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Unprotected = Annotated[tuple[Literal["metrics", "planes"], ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """How the processes of one installation find each other, and how much they may take."""

    model_config = SettingsConfigDict(env_prefix="CRYOFLUX_", extra="forbid", validate_default=True)

    # ---- where the parts meet
    control_endpoint: str = Field(
        "tcp://127.0.0.1:5550", description="control bus: the control plane binds it"
    )
    data_bind: str = Field(
        "tcp://127.0.0.1:5551", description="data plane: the detector binds it; port 0: any free one"
    )
    data_endpoint: str = Field(
        "", description="what workers are told to connect to; empty: derived from data_bind"
    )
    http_host: str = Field("127.0.0.1", description="REST interface")
    http_port: int = Field(8000, ge=0, le=65535, description="REST interface; 0: any free port")
    state: str = Field(
        "cryoflux.sqlite",
        description="state store: a file for the embedded one, or redis://host:port/number (rediss://, unix://)",
    )
    results: str = Field("output", description="folder of sessions that do not name their own")

    # ---- who may do what (docs/security.md)
    operator_token: Token = Field(None, description="who shows it may do everything by REST")
    viewer_token: Token = Field(None, description="who shows it may look, by REST and at /metrics")
    http_published: str = Field(
        "",
        description="address under which the REST port is really reached, where something else publishes it "
        "(a container's port mapping, a proxy); empty: http_host",
    )
    http_certificate: str = Field("", description="PEM file: REST is served by HTTPS")
    http_key: str = Field("", description="PEM file with the key of http_certificate")
    keys: str = Field(
        "", description="folder of CURVE keys for control bus and data plane; empty: neither is encrypted"
    )
    key: str = Field(
        "", description="the process's own one of them; empty: control, detector or worker, as it is one"
    )
    unprotected: Unprotected = Field(
        (),
        description="served beyond loopback without token (metrics) or keys (planes) all the same",
    )
    inputs: Folders = Field(
        (),
        description="folders and files that sessions may read, beside outputs and results; none named: all, "
        "if REST is on loopback only",
    )
    outputs: Folders = Field(
        (),
        description="folders that sessions may write to, beside results; none named: all, if REST is on "
        "loopback only",
    )

    # ---- what can be watched
    metrics_host: str = Field(
        "127.0.0.1", description="where detector and workers serve /metrics; 0.0.0.0: on every interface"
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="of /metrics; 0: any free port")
    log_format: Literal["human", "json"] = Field("human", description="json: one object a line")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least that is told")
    otlp_endpoint: str = Field(
        "", description="traces go there (OpenTelemetry over HTTP); empty: none are made"
    )

    # ---- the link
    heartbeat_seconds: float = Field(
        1.0, gt=0, le=60, description="between heartbeats, and between telemetry messages"
    )
    silent_after_seconds: float = Field(
        3.0, gt=0, le=600, description="no sign of a worker for so long: it is gone"
    )
    window_bytes: int = Field(256_000_000, ge=1, description="payload that may wait for its acknowledgement")
    spool: str = Field(
        "spool",
        min_length=1,
        description="folder where the detector keeps what is not acknowledged: it survives the process",
    )
    spool_bytes: int = Field(
        4_000_000_000, ge=0, description="the spool may take; 0: none, and a killed detector loses frames"
    )
    spool_policy: Literal["pause", "drop"] = Field(
        "pause", description="when the spool is full: the camera waits, or frames are dropped and counted"
    )
    block_bytes: int = Field(1_000_000, ge=1, le=1_000_000_000, description="payload of one message, about")
    block_linger_ms: float = Field(
        50.0, ge=0, le=10_000, description="longest a frame waits for its block to fill"
    )
    credits: int = Field(4, ge=1, le=1000, description="blocks a worker holds at a time")

    # ---- workers
    device: str = Field(
        "auto", description="torch device of recoveries; auto: CUDA where there is one, else the CPU"
    )
    workers: int = Field(
        1, ge=1, le=1024, description="workers on this machine; each takes its share of the cores"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="torch threads of a worker; none: cores // workers"
    )
    batch_pixels: int = Field(
        16_777_216, ge=1, description="pixels recovered at a time: 1024 particles, or one micrograph"
    )
    lpips: str = Field(
        "",
        description="folder with the published weights of AlexNet and lpips, to judge reference frames by; "
        "empty: LPIPS is not measured",
    )

    # ---- sessions started from the command line
    session: dict[str, Any] = Field(
        default_factory=dict, description="what they are unless an option says otherwise, as REST takes it"
    )

    @field_validator("session")
    @classmethod
    def _is_a_session(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value:
            from common.session import SessionSpec  # takes its time, and most processes have no use for it

            SessionSpec.model_validate(value)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """First wins: command line, environment, secrets' folder, configuration file."""
        less = (_secrets_source(settings_cls), _file_source(settings_cls))
        return (init_settings, env_settings, *(source for source in less if source is not None))

    @classmethod
    def load(cls, **command_line: Any) -> Self:
        """The settings in force; arguments that are None were not given.

        Raises
        ------
        ValueError
            One line that names the setting, or the configuration file that is not there or cannot be read.
        """
        file = os.environ.get(CONFIG_VARIABLE)
        if file and not Path(file).is_file():
            raise ValueError(f"{CONFIG_VARIABLE}: no such file: {file}")
        try:
            return cls(**{name: value for name, value in command_line.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            place = first["loc"]
            inner = first.get("ctx", {}).get("error")
            if isinstance(inner, ValidationError):  # of the session's table
                first = inner.errors()[0]
                place += first["loc"]
            name = ".".join(str(part) for part in place)
            if first["type"] == "extra_forbidden":  # its value may be a secret with a misspelt name
                raise ValueError(f"setting {name}: there is no such setting") from None
            if name in SECRETS:
                raise ValueError(f"setting {name}: at least {TOKEN_LENGTH} letters needed") from None
            raise ValueError(f"setting {name}: {first['msg']}, got {first['input']!r}") from error
        except SettingsError as error:  # a variable that should be JSON
            raise ValueError(" ".join(str(error).split())) from error
        except Exception as error:  # TOML and YAML readers have each their own kinds
            # YAML's errors show the line, which may hold a secret
            mark = getattr(error, "problem_mark", None)
            told = f"line {mark.line + 1} is no YAML" if mark is not None else " ".join(str(error).split())
            raise ValueError(f"{CONFIG_VARIABLE}: {file}: {told}") from None

    @classmethod
    def origins(cls) -> dict[str, Literal["default", "file", "secret", "environment"]]:
        """Where each setting comes from; what the command line says is not known here."""
        file = _file_source(cls)
        in_file = file() if file is not None else {}
        secrets = _secrets_source(cls)
        origins: dict[str, Literal["default", "file", "secret", "environment"]] = {}
        origins.update(dict.fromkeys(cls.model_fields, "default"))
        origins.update(dict.fromkeys(in_file, "file"))
        origins.update(dict.fromkeys(secrets() if secrets is not None else {}, "secret"))
        origins.update(dict.fromkeys(EnvSettingsSource(cls)(), "environment"))
        return origins

    @property
    def http_reached(self) -> str:
        """The host under which REST is really reached."""
        return self.http_published or self.http_host

    @property
    def worker_threads(self) -> int:
        """Torch threads of one worker process, at least 1."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.workers)

    def advertised(self, bound: str) -> str:
        """What workers are told to connect to, given the endpoint that was really bound."""
        if self.data_endpoint:
            return self.data_endpoint
        host, _, port = bound.removeprefix("tcp://").rpartition(":")
        if bound.startswith("tcp://") and host in ("0.0.0.0", "*", "[::]"):
            return f"tcp://{socket.gethostname()}:{port}"
        return bound


def _secrets_source(settings: type[BaseSettings]) -> PydanticBaseSettingsSource | None:
    """What reads files of one setting each, if there is the folder for them."""
    return SecretsSettingsSource(settings, SECRETS_FOLDER) if Path(SECRETS_FOLDER).is_dir() else None


def _file_source(settings: type[BaseSettings]) -> PydanticBaseSettingsSource | None:
    """What reads the configuration file, if one is named."""
    file = os.environ.get(CONFIG_VARIABLE)
    if not file:
        return None
    yaml = Path(file).suffix in (".yaml", ".yml")
    return (YamlConfigSettingsSource if yaml else TomlConfigSettingsSource)(settings, Path(file))
