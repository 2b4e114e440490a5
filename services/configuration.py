"""``cryoflux config``: the settings in force and where each comes from, and the schema of a file of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import create_model

from common.masking import masked
from common.session import SessionSpec
from common.settings import CONFIG_VARIABLE, Settings


def show(settings: Settings, options: Mapping[str, Any]) -> str:
    """The settings in force as a TOML file that would say the same, with the origin of each.

    Passwords in addresses are masked. ``options``: what the command line said.
    """
    origins = {**Settings.origins(), **dict.fromkeys(options, "option")}
    file = os.environ.get(CONFIG_VARIABLE)
    lines = [f"# configuration file: {file or 'none'}"]
    values = settings.model_dump(mode="json")
    session = values.pop("session")
    entries = {name: _entry(name, value) for name, value in values.items()}
    width = max(map(len, entries.values()))
    lines += [f"{entry:<{width}}  # {origins[name]}" for name, entry in entries.items()]
    if session:
        lines += ["", f"# {origins['session']}", *_table("session", session)]
    return "\n".join(lines)


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, the table of a session's defaults and all."""
    whole = create_model("CryoFlux configuration", __base__=Settings, session=(SessionSpec, SessionSpec()))
    return whole.model_json_schema()


def _entry(name: str, value: Any) -> str:
    return f"# {name} = none" if value is None else f"{name} = {_toml(value)}"


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """A TOML table; its own values first, then the tables in it. TOML has no null: it is left out."""
    yield f"[{name}]"
    for key, value in values.items():
        if not isinstance(value, Mapping) and value is not None:
            yield f"{key} = {_toml(value)}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ("", *_table(f"{name}.{key}", value))


def _toml(value: Any) -> str:
    """JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(masked(value) if isinstance(value, str) else value, ensure_ascii=False)
