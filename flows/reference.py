"""Pages of reference, made of the code: config fields, commands, stages, tables (docs/hooks.py)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from core.benchmarks import BENCHMARKS
from core.config import Config
from data.metrics import METRICS
from data.schemas import TABLES
from flows.cli.__main__ import sort_commands
from flows.cli.app import app
from tasks.catalog import DEPLOYED, load_stage

LOCAL_STAGES = (
    "tasks.pool:POOL",
    "tasks.pool:TEST",
    "tasks.questions:QUESTIONS",
    "tasks.base:BASE",
)


def config_page() -> str:
    """Every field of a config, section by section."""
    schema = Config.model_json_schema()
    known = schema["$defs"]
    top = [
        f"| `{name}` | {_kind(field, known)} | {_said(field)} |" for name, field in _fields(schema)
    ]
    lines = [
        "# Config fields",
        "",
        "The fields of a config file. Numbers have their range; what depends on several fields is "
        "said by `hermesflow check`. Editors show the same ([Config files](../how-to/configs.md)).",
        "",
        *_table(("field", "type", "what it is"), top),
    ]
    for name in sorted(known):
        section = known[name]
        if "properties" not in section:
            continue
        rows = [f"| `{n}` | {_kind(f, known)} | {_said(f)} |" for n, f in _fields(section)]
        about = " ".join(section.get("description", "").split())
        lines += ["", f"## {name}", "", about, "", *_table(("field", "type", "what it is"), rows)]
    return "\n".join(lines) + "\n"


def _fields(section: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from section.get("properties", {}).items()


def _said(field: Mapping[str, Any]) -> str:
    return _cell(field.get("description", ""))


def _kind(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The type of a field in words, with a link to the section that it holds."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if "properties" in known[name] else name
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(_kind(one, known) for one in field[key])
    if "const" in field or "enum" in field:
        values = field.get("enum", [field.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values).replace('"', "")
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(field.get('items', {}), known)}"
    if kind == "object":
        return "mapping"
    return " ".join([kind, *_limits(field)])


def _limits(field: Mapping[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in field:
            limit = field[name]
            yield f"{sign} {limit:,}" if isinstance(limit, int) else f"{sign} {limit:g}"


def commands_page() -> str:
    """Every command with its options and examples."""
    sort_commands()
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    lines = ["# Commands", "", f"{root.help} `hermesflow --install-completion` completes them.", ""]
    for words, command in _commands(root, ("hermesflow",)):
        arguments = " ".join(_metavar(one) for one in command.params if _is_argument(one))
        help_text = inspect.cleandoc(command.help or "")
        lines += [f"## {' '.join(words)}", "", help_text, "", "```text"]
        lines += [" ".join([*words, arguments, "[OPTIONS]"]).replace("  ", " "), "```", ""]
        options = [_option(parameter) for parameter in command.params]
        if options:
            lines += [*_table(("option", "what it is"), options), ""]
        examples = [line for line in (command.epilog or "").splitlines() if line.startswith("herm")]
        if examples:
            lines += ["```bash", *examples, "```", ""]
    return "\n".join(lines)


def _commands(
    group: TyperGroup, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    """Of a group and the groups in it, whose commands may be made when they are asked for."""
    context = group.context_class(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, TyperGroup):
            yield from _commands(command, (*words, name))
        elif isinstance(command, TyperCommand):
            yield (*words, name), command


def _is_argument(parameter: Any) -> bool:
    return not parameter.opts[0].startswith("-")


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    name = ", ".join(f"`{one}`" for one in parameter.opts)
    if _is_argument(parameter):
        name = f"`{_metavar(parameter)}`"
    text = " ".join((getattr(parameter, "help", "") or "").split())
    default = parameter.default
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        text += f" Default: {shown}."
    elif default not in (None, False) and not callable(default) and not parameter.required:
        text += f" Default: `{default}`."
    return f"| {name}{' (needed)' if parameter.required else ''} | {_cell(text)} |"


def stages_page() -> str:
    """Every stage: what it reads, what decides about it, what `gc` makes of it."""
    lines = [
        "# Stages, metrics and benchmarks",
        "",
        "A stage is a function of the config values and the artifacts that it declares; its result "
        "is found again as long as they stay the same. Each is a command, too: "
        "`python -m MODULE STAGE`.",
    ]
    local = [_at(place) for place in LOCAL_STAGES]
    for stage in [*local, *(load_stage(name) for name in DEPLOYED)]:
        module = stage.body.__module__
        about = inspect.getdoc(import_module(module)) or ""
        facts = [
            f"| module | `{module}` |",
            f"| version | {stage.version} |",
            f"| inputs | {_names(stage.inputs)} |",
            f"| config values in its key | {_names(stage.config_keys)} |",
            f"| config values besides | {_names(stage.unkeyed)} |",
            f"| runs | {_how(stage)} |",
            f"| what `gc` may free | {stage.retention} |",
        ]
        lines += ["", f"## {stage.name}", "", about.partition("\n\n")[0], ""]
        lines += _table(("", ""), facts)
    metrics = [f"| `{one.name}` | {one.title} |" for one in METRICS]
    lines += ["", "## Metrics of an evaluation", "", *_table(("name", "title"), metrics)]
    rows = [
        f"| `{name}` | {_cell(one.about)} | {one.headline} | {_names(one.judges)} |"
        for name, one in BENCHMARKS.items()
    ]
    head = ("name", "what", "headline figure", "judges")
    lines += ["", "## Benchmarks", "", *_table(head, rows)]
    return "\n".join(lines) + "\n"


def _at(place: str) -> Any:
    module, _, constant = place.partition(":")
    return getattr(import_module(module), constant)


def _how(stage: Any) -> str:
    if stage.sharded:
        return "in shards, side by side"
    return "in processes that share each batch" if stage.distributed else "in one process"


def tables_page() -> str:
    """Every Parquet table with its columns."""
    lines = [
        "# Tables",
        "",
        "Parquet files, checked on write and on read. Rows of different tables are joined by "
        "`record_id`, never by position; images open as pictures with the `datasets` library.",
    ]
    for table in TABLES.values():
        rows = []
        for column in table.columns:
            low = "" if column.low == float("-inf") else f"≥ {column.low:g}"
            high = "" if column.high == float("inf") else f"≤ {column.high:g}"
            limits = " ".join(filter(None, [low, high, "not empty" if column.filled else ""]))
            rows.append(f"| `{column.name}` | `{_cell(str(column.type))}` | {limits} |")
        key = ", ".join(f"`{name}`" for name in table.key)
        lines += ["", f"## {table.name}", "", f"A row for each {key}.", ""]
        lines += _table(("column", "type", "values"), rows)
    return "\n".join(lines) + "\n"


def _names(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _table(head: tuple[str, ...], rows: list[str]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *rows]


def _cell(text: str) -> str:
    """Text that stays within a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


PAGES: Mapping[str, Callable[[], str]] = {
    "config": config_page,
    "commands": commands_page,
    "stages": stages_page,
    "tables": tables_page,
}
