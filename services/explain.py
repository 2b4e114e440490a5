"""What is wrong with a value, in words: the field, what it was, and what is allowed.

Serves the REST interface and the command line alike, because both check the same models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

JsonSchema = Mapping[str, Any]

LONGEST_VALUE = 100


class FieldProblem(NamedTuple):
    """One field that is wrong, and why."""

    field: str
    message: str

    @classmethod
    def parse(cls, line: str) -> FieldProblem:
        """From a line that may begin with the field it is about."""
        named = re.fullmatch(r"([a-z_][\w.]*): (.*)", line)
        return cls(named[1], named[2]) if named else cls("", line)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def explain(
    errors: Iterable[Mapping[str, Any]], schema: JsonSchema, document: JsonSchema
) -> list[FieldProblem]:
    """Pydantic's errors, put so that one knows what to change.

    Parameters
    ----------
    errors : iterable of mapping
        As ``ValidationError.errors()`` gives them, with ``loc`` relative to the model.
    schema : mapping
        JSON schema of the model, which knows both ends of an allowed range.
    document : mapping
        What ``$ref`` in the schema refers to (for a model's own schema: the schema itself).
    """
    problems: list[FieldProblem] = []
    for error in errors:
        path, node, parent = _follow(error["loc"], schema, document)
        field, message = _explain(error, path, node, parent)
        problems.append(FieldProblem(".".join(field), message))
    return problems


def _explain(
    error: Mapping[str, Any], path: list[str], node: JsonSchema, parent: JsonSchema
) -> tuple[list[str], str]:
    context, given = error.get("ctx", {}), error.get("input")
    match error["type"]:
        case "missing":
            return path, "is missing"
        case "extra_forbidden":
            known = ", ".join(parent.get("properties", {}))
            return path, f"there is no such field; known are {known}" if known else "there is no such field"
        case "union_tag_invalid" | "union_tag_not_found":
            key = context["discriminator"].strip("'")
            tags = context.get("expected_tags") or ", ".join(f"'{tag}'" for tag in _tags(node))
            tag = context.get("tag")
            unknown = f"{shortened(tag)} is not known; must be one of {tags}"
            return [*path, key], unknown if tag else f"is missing; one of {tags}"
        case "json_invalid":
            return [], f"the body is not JSON: {context.get('error', error['msg'])}"
        case "value_error":
            message = str(error["msg"]).removeprefix("Value error, ")
            field, _, rest = message.partition(": ")
            # a model's own check names the field itself
            return ([*path, field], rest) if rest and field in node.get("properties", {}) else (path, message)
        case _:
            pass
    if limits := _limits(node):
        return path, f"must be {limits}, got {shortened(given)}"
    message = str(error["msg"]).replace("Input should be", "must be")
    is_plain = isinstance(given, str | int | float | bool | None)
    return path, f"{message}, got {shortened(given)}" if is_plain else message


def shortened(value: Any) -> str:
    """A value as Python writes it, its middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 20]} … {text[-15:]}"


def _follow(
    location: Sequence[str | int], schema: JsonSchema, document: JsonSchema
) -> tuple[list[str], JsonSchema, JsonSchema]:
    """The readable path of a location, the schema found there, and that of what holds it."""
    path: list[str] = []
    node = parent = _resolve(schema, document)
    for step in location:
        if step in (tags := _tags(node)):
            node = _resolve({"$ref": tags[str(step)]}, document)
            continue  # a tag chooses among models; it is not a field
        parent = node
        if isinstance(step, int):
            items = node.get("prefixItems") or []
            node = items[step] if step < len(items) else node.get("items", {})
        else:
            node = node.get("properties", {}).get(step, {})
        node = _resolve(node, document)
        path.append(str(step))
    return path, node, parent


def _resolve(node: JsonSchema, document: JsonSchema) -> JsonSchema:
    """What a reference, or a field that may be null, really is."""
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:
        return _resolve(options[0], document)
    if "$ref" not in node:
        return node
    target: Any = document
    for step in node["$ref"].removeprefix("#/").split("/"):
        target = target[step]
    return _resolve(target, document)


def _tags(node: JsonSchema) -> Mapping[str, str]:
    return node.get("discriminator", {}).get("mapping", {})


def _limits(node: JsonSchema) -> str:
    """The range of a number in words; empty where it has none."""
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    what = "a whole number" if node.get("type") == "integer" else ""
    if low is not None and high is not None:
        return f"{what} from {_number(low)} to {_number(high)}".strip()
    words = (("at least", low), ("above", above), ("at most", high), ("below", below))
    limits = " and ".join(f"{word} {_number(value)}" for word, value in words if value is not None)
    return f"{what}, {limits}".strip(", ") if limits else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
