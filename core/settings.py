"""Strict YAML settings: every problem listed at once, by the path of its field.

A file with `extends: other.yaml` (beside it) says only what differs from that file. Sections are
merged key by key; lists are replaced, and so is a section of another `source`, `sampler` or
`name`.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from core.errors import UserError
from core.secrets import masked


class Section(BaseModel):
    """Base of every settings section: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)
FieldPath = tuple[str | int, ...]
Lines = dict[FieldPath, str]
"""Where each field stands: `line 3`, or `base.yaml, line 3`."""
EXTENDS = "extends"
MAX_BYTES = 1 << 20  # of a config file
MAX_FIELDS = 100_000  # of a document with all aliases written out
VARIANTS = ("source", "sampler", "name")  # keys that choose between sections with other fields


def load_settings(
    path: str | Path, model: type[SectionT], overrides: Mapping[str, object]
) -> SectionT:
    """Read the YAML file at `path` into `model`; `overrides` maps dotted paths to values.

    Raises UserError that lists every problem with its field, value, line and way out.
    """
    values, lines, problems = _read_chain(Path(path))
    for dotted, value in overrides.items():
        problems += _override(values, dotted, value)
        lines.pop(tuple(dotted.split(".")), None)
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        problems += [_explain(detail, model, lines) for detail in error.errors(include_url=False)]
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{path} has {len(problems)} {noun}:\n{listing}")
    return settings


def _read_chain(
    path: Path, below: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], Lines, list[str]]:
    """As `_read_yaml`, with the files that this one extends."""
    here = path.resolve()
    if here in below:
        raise UserError(f"config file {path} extends itself; remove one `{EXTENDS}`")
    values, lines, problems = _read_yaml(path)
    name = values.pop(EXTENDS, None)
    if name is None:
        return values, lines, problems
    if not isinstance(name, str):
        raise UserError(f"config file {path}: {EXTENDS} = {_show(name)}; give the path of a file")
    try:
        base, base_lines, base_problems = _read_chain(path.parent / name, (*below, here))
    except UserError as error:
        raise UserError(f"config file {path} extends {_show(name)}: {error}") from None
    # A problem of the base is one of its own lines, so it is said with its name.
    marked = {
        field: place if "," in place else f"{name}, {place}" for field, place in base_lines.items()
    }
    problems = [*(f"{name}: {problem}" for problem in base_problems), *problems]
    return _merged(base, values), marked | lines, problems


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`base` with the changes in `values`."""
    if any(key in values and values[key] != base.get(key, values[key]) for key in VARIANTS):
        return values
    merged = base | values
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value)
    return merged


def _read_yaml(path: Path) -> tuple[dict[str, Any], Lines, list[str]]:
    """The mapping in a file, the line of every field, and its duplicate keys as problems."""
    try:
        if not path.is_file() and path.exists():
            raise UserError(
                f"config file {path} cannot be read: it is no file; give a YAML text file"
            )
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"config file {path} has {path.stat().st_size} bytes; give one below {MAX_BYTES}"
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"config file {path} does not exist; give the path of a YAML file"
        ) from None
    except (OSError, ValueError) as error:  # text that is not UTF-8, or a name with null bytes
        raise UserError(
            f"config file {path} cannot be read: {error}; give a YAML text file"
        ) from None
    lines: Lines = {}
    problems: list[str] = []
    try:
        loader = yaml.SafeLoader(text)  # refuses some characters at once
        node = loader.get_single_node()
        if node is not None:
            _check_aliases(node, f"config file {path}", {})
            problems = list(_walk(node, (), lines, set()))
        values = {} if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # no such day, too many digits
        raise UserError(f"config file {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"config file {path} holds {_show(values)}; it must hold `key: value` lines"
        )
    return values, lines, problems


def _check_aliases(node: yaml.Node, where: str, sizes: dict[int, int]) -> int:
    """How many fields a node has with its aliases, which can make gigabytes of a few lines.

    UserError for one that contains itself or is too large; `sizes` has 0 for those that are being
    measured.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise UserError(
                f"{where}: the section in line {node.start_mark.line + 1} contains itself; "
                "write it out"
            )
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_check_aliases(child, where, sizes) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_check_aliases(child, where, sizes) for pair in node.value for child in pair)
    if size > MAX_FIELDS:
        raise UserError(
            f"{where} has more than {MAX_FIELDS} fields once its aliases (*) are written out; use "
            "fewer of them"
        )
    sizes[id(node)] = size
    return size


def _walk(node: yaml.Node, path: FieldPath, lines: Lines, seen: set[int]) -> Iterator[str]:
    """Note the line of every field below `node`, and yield a problem for each repeated key."""
    if id(node) in seen:  # an alias, possibly of its own parent
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path, index), lines, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        field = (*path, str(key_node.value))
        line = f"line {key_node.start_mark.line + 1}"
        if field in lines:
            first = lines[field]
            yield f"{dotted(field)} ({line}): given twice, first in {first}; keep one"
        lines[field] = line
        yield from _walk(value_node, field, lines, seen)


def _override(values: dict[str, Any], path: str, value: object) -> list[str]:
    """Set one dotted path in place; returns the problem if it runs through a plain value."""
    *parents, last = path.split(".")
    for depth, parent in enumerate(parents):
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            return [f"{path} = {_show(value)}: {'.'.join(parents[: depth + 1])} is no section"]
        values = child
    values[last] = value
    return []


def _explain(detail: ErrorDetails, model: type[BaseModel], lines: Mapping[FieldPath, str]) -> str:
    """One validation error as: field (line) = value: what is wrong; way out."""
    kind, value = detail["type"], detail["input"]
    path, section, description = _resolve(model, detail["loc"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        # The fault lies in the field that chooses between sections.
        name = detail["ctx"]["discriminator"].strip("'")
        path, value = (*path, name), detail["ctx"].get("tag", value)
        description = ""
    # A missing key has no line of its own: show the section that lacks it.
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    where = (dotted(path) or "the file") + (f" ({line})" if line else "")
    if kind in ("missing", "union_tag_not_found"):
        return f"{where}: missing; add it{description}"
    shown = "" if isinstance(value, dict | BaseModel) else f" = {_show(value)}"
    if kind == "extra_forbidden":
        known = sorted(section.model_fields) if section else []
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known) or 'none'}"
        return f"{where}{shown}: unknown key; {meant}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind in ("literal_error", "union_tag_invalid"):
        expected = detail["ctx"].get("expected") or detail["ctx"]["expected_tags"]
        choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(value), choices, n=1)
        message = f"should be one of {', '.join(choices)}"
        message += f"; did you mean {near[0]}?" if near else ""
    return f"{where}{shown}: {message}{description}"


def _resolve(
    model: type[BaseModel], location: FieldPath
) -> tuple[FieldPath, type[BaseModel] | None, str]:
    """The path in the file, the section that holds its last part, and '; <description>'.

    Pydantic puts the tag of a chosen section into the location; the file has no such level.
    """
    section: type[BaseModel] | None = model
    child: type[BaseModel] | None = model
    path: list[str | int] = []
    description = ""
    parts = list(location)
    while parts:
        part = parts.pop(0)
        path.append(part)
        if isinstance(part, int):
            continue  # an item is described by its list
        section, child = child, None
        field = section.model_fields.get(str(part)) if section else None
        description = f"; {field.description}" if field and field.description else ""
        if field is None:
            continue
        sections = _sections_of(field.annotation)
        if get_origin(field.annotation) is dict and parts:
            path.append(parts.pop(0))
        if isinstance(chosen_by := field.discriminator, str) and parts:
            tag = parts.pop(0)
            tags = [get_args(one.model_fields[chosen_by].annotation) for one in sections]
            sections = [one for one, known in zip(sections, tags, strict=True) if tag in known]
        child = sections[0] if sections else None
    return tuple(path), section, description


def _sections_of(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, dict):
        return [section for part in get_args(annotation) for section in _sections_of(part)]
    return []


def dotted(path: FieldPath) -> str:
    """`("train", "steps", 0)` as `train.steps[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def leaves(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted path; lists are values."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= leaves(value, f"{path}{name}.") if inner else {path + name: value}
    return found


def _show(value: object) -> str:
    text = masked(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
