"""Aliases of YAML, which can make gigabytes of a few lines."""

import yaml

from core.errors import UserError

MAX_FIELDS = 100_000  # of a document with all aliases written out


def check_aliases(document: yaml.Node, where: str) -> None:
    """UserError for a document that contains itself or is too large with its aliases written out.

    `where` names its file in the message.
    """
    _measure(document, where, {})


def _measure(node: yaml.Node, where: str, sizes: dict[int, int]) -> int:
    """How many fields a node has; `sizes` has 0 for those that are being measured."""
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
        size += sum(_measure(child, where, sizes) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_measure(child, where, sizes) for pair in node.value for child in pair)
    if size > MAX_FIELDS:
        raise UserError(
            f"{where} has more than {MAX_FIELDS} fields once its aliases (*) are written out; use "
            "fewer of them"
        )
    sizes[id(node)] = size
    return size
