"""Runs the cells of a notebook without Jupyter: `python notebook_runner.py NOTEBOOK SETTINGS`.

SETTINGS is a JSON object of names and values, which replace those of the cell tagged `parameters`.
Cells tagged `install` are left out. Prints the ids of the cells that ran and what each would show,
as the last line.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any

SHOWN = ("_repr_html_", "_repr_png_")


def run_cell(source: str, name: str, names: dict[str, Any]) -> Any:
    """The value of its last expression, if it ends with one."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), names)


def run_notebook(path: Path, settings: dict[str, Any]) -> dict[str, str]:
    """How each cell that ran shows its value: a method of `SHOWN`, or nothing."""
    shown: dict[str, str] = {}
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or "install" in tags:
            continue
        value = run_cell("".join(cell["source"]), cell["id"], names)
        methods = [name for name in SHOWN if hasattr(value, name) and getattr(value, name)()]
        shown[cell["id"]] = methods[0] if methods else ""
        if "parameters" in tags:
            names |= settings
    return shown


if __name__ == "__main__":
    sys.modules["IPython"] = None  # type: ignore[assignment]  # it is no dependency
    done = run_notebook(Path(sys.argv[1]).absolute(), json.loads(sys.argv[2]))
    print(json.dumps(done))
