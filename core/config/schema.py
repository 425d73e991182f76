"""The JSON schema of configs, by which editors complete, explain and check them.

`python -m core.config.schema` writes `configs/schema.json` anew. Rules that concern several fields,
and keys that are missing below the first level, are found by `hermesflow check` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.config import Config
from core.settings import EXTENDS

FILE = Path(__file__).resolve().parents[2] / "configs/schema.json"
MODELINE = "# yaml-language-server: $schema="  # the line of a config by which editors find the file


def editor_schema() -> dict[str, Any]:
    """The schema of a file: a whole config, or what differs from the one that it extends."""
    schema = Config.model_json_schema()
    # Lists are replaced as a whole, so only what stands in a list has to be complete.
    listed = {ref for items in _values(schema, "items") for ref in _values(items, "$ref")}
    for name, section in schema["$defs"].items():
        if f"#/$defs/{name}" not in listed:
            section.pop("required", None)
    schema["properties"][EXTENDS] = {
        "type": "string",
        "description": "another config, by its path from this one; this file says what differs",
    }
    first_level = schema.pop("required")
    schema |= {"if": {"not": {"required": [EXTENDS]}}, "then": {"required": first_level}}
    described: dict[str, Any] = _for_editors(schema)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **described}


def text() -> str:
    """The file's content."""
    return json.dumps(editor_schema(), indent=1, ensure_ascii=False) + "\n"


def _for_editors(node: Any) -> Any:
    """Without titles made of names; a partial section may fit several of a choice (`anyOf`)."""
    if isinstance(node, list):
        return [_for_editors(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key == "properties":
            kept[key] = {name: _for_editors(field) for name, field in value.items()}
        elif key not in ("title", "discriminator"):
            kept["anyOf" if key == "oneOf" else key] = _for_editors(value)
    return kept


def _values(node: Any, key: str) -> Iterator[Any]:
    """All that stands under a key, at any depth."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and key in node:
        yield node[key]
    for child in children:
        yield from _values(child, key)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"wrote {FILE}")
