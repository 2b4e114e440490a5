"""Pages of the site that are made when it is built: the REST reference, and the table of settings.

A hook of mkdocs (``mkdocs.yml`` names it). The REST reference comes from ``openapi.json``, which a test
compares with the application; the settings from ``common.settings``. So neither page can be out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
METHODS = ("get", "post", "patch", "put", "delete")

Schema = Mapping[str, Any]

SETTINGS = """# Settings

How the processes of an installation find each other, and how much they may take. What a session does (source,
mask, recovery, rate) is no setting: it is chosen when the session is started.

Each setting can be given in several places; later ones win:

1. the default,
2. a configuration file, TOML or YAML: `cryoflux --config FILE …`, or the variable `CRYOFLUX_CONFIG`,
3. the environment, `CRYOFLUX_…`,
4. an option of the command, where it has one.

```bash
cryoflux config show         # what is in force, and where each comes from; passwords are masked
cryoflux config schema       # JSON schema of a configuration file, for editors that check while one types
```

A file may hold any setting, and a table `session` with defaults for `live` and `start`, in the words of the
[REST interface](rest.md); options win over it:

```toml
http_host = "0.0.0.0"
state = "redis://redis:6379/0"
results = "/data/sessions"
workers = 4

[session]
link_mbit_per_s = 1000

[session.mask]
kind = "coded-aperture"
kernel_size = 4
mask_count = 8

[session.recovery]
method = "wavelet"
```
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    document = json.loads((HERE / "openapi.json").read_text())
    files.append(File.generated(config, "rest-reference.md", content="\n".join(rest_reference(document))))
    files.append(File.generated(config, "settings.md", content="\n".join(settings())))
    return files


# ---- REST


def rest_reference(document: Mapping[str, Any]) -> Iterator[str]:
    """Every route and every model of an OpenAPI document, as Markdown."""
    yield f"# REST reference, version {document['info']['version']}\n"
    yield (
        "Every call and every model, made from [openapi.json](openapi.json). How they work together is told "
        "in [REST interface](rest.md).\n"
    )
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                yield from _operation(f"{method.upper()} {path}", operations[method])
    yield "## Models\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f"### {name} {{ #{_anchor(name)} }}\n"
        yield f"{_text(schema.get('description', ''))}\n"
        yield from _fields(schema)


def _operation(name: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"## `{name}`\n"
    yield f"{_text(operation.get('description') or operation.get('summary', ''))}\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | what |\n|---|---|---|---|"
        for parameter in parameters:
            schema = parameter.get("schema", {})
            what = parameter.get("description") or schema.get("description", "")
            required = "" if parameter.get("required") else _default(schema)
            yield f"| `{parameter['name']}` | {parameter['in']} | {_type(schema)} | {_text(what)}{required} |"
        yield ""
    if body := operation.get("requestBody"):
        yield f"Body: {_contents(body['content'])}\n"
    yield "| answer | what | body |\n|---|---|---|"
    for status, answer in operation.get("responses", {}).items():
        what, body = _text(answer.get("description", "")), _contents(answer.get("content", {}))
        yield f"| {status} | {what} | {body} |"
    yield ""


def _contents(content: Mapping[str, Any]) -> str:
    described = []
    for media, how in content.items():
        kind = _type(how.get("schema", {})) if how.get("schema") else ""
        described.append(kind if media == "application/json" and kind else f"{kind} `{media}`".strip())
    return ", ".join(described)


def _fields(schema: Schema) -> Iterator[str]:
    if "properties" not in schema:
        yield f"{_type(schema)}\n"
        return
    required = schema.get("required", [])
    yield "| field | type | what |\n|---|---|---|"
    for name, field in schema["properties"].items():
        what = f"{_text(field.get('description', ''))}{'' if name in required else _default(field)}"
        yield f"| `{name}` | {_type(field)} | {what} |"
    yield ""


def _type(schema: Schema) -> str:
    """A JSON schema in a few words, models linked."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{_anchor(name)})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_type(one) for one in schema[several])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return "list of " + ", ".join(_type(one) for one in schema["prefixItems"])
        case "array":
            return f"list of {_type(schema.get('items', {}))}"
        case "integer" | "number" as kind:
            return f"{kind}{_range(schema)}"
        case "string" if "format" in schema:
            return f"string ({schema['format']})"
        case None:
            return "anything"
        case kind:
            return str(kind)


def _range(schema: Schema) -> str:
    bounds = [
        f"{sign} {schema[name]:g}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in schema
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def _default(schema: Schema) -> str:
    """What holds where a field is left out; a long default is that of its parts."""
    if "default" not in schema:
        return ""
    text = json.dumps(schema["default"], ensure_ascii=False)
    return f" Default: `{text}`." if len(text) <= 40 else ""


def _text(description: str) -> str:
    """A docstring as a table cell: one line, its double back-ticks single ones."""
    return re.sub(r"\s+", " ", description.replace("``", "`").replace("|", "\\|")).strip()


def _anchor(name: str) -> str:
    return "model-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# ---- settings


def settings() -> Iterator[str]:
    """Every setting, as Markdown."""
    from common.settings import Settings

    yield SETTINGS
    yield "| setting | environment | type | default | what |\n|---|---|---|---|---|"
    for name, field in Settings.model_json_schema()["properties"].items():
        if name != "session":
            default = json.dumps(field["default"], ensure_ascii=False)
            what = _text(field.get("description", ""))
            yield f"| `{name}` | `CRYOFLUX_{name.upper()}` | {_type(field)} | `{default}` | {what} |"
    yield ""
