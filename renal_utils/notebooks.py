"""Notebook files: their parameters, and how they are committed.

Papermill only warns of a parameter that the notebook does not know and hands on whatever type it
is given, so a mistyped name runs the defaults and exits 0. Here names and types are held to the
notebook's own cell tagged ``parameters``. Nothing is executed; ``studies`` does that.
"""

import ast
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

from renal_utils.runtime import atomic_path, display_path

_PLAIN = (str, bool, int, float, type(None))
_NAMES = {
    str: "text",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    type(None): "a plain value or a list",
}
_KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
_LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}
_NOT_A_NOTEBOOK = (
    nbformat.reader.NotJSONError,
    nbformat.ValidationError,
    UnicodeDecodeError,
    AttributeError,
)
_WIDGET = "application/vnd.jupyter.widget-view+json"


def read_notebook(path: str | Path) -> NotebookNode:
    """Read a notebook in version 4 of the format.

    Raises:
        ValueError: If the file is not a notebook; it is named.
        FileNotFoundError: If there is no such file.
    """
    try:
        content = nbformat.reads(Path(path).read_text(encoding="utf-8"), as_version=4)
    except _NOT_A_NOTEBOOK as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{display_path(path)} is not a Jupyter notebook: {reason}") from error
    if not isinstance(content.get("cells"), list):
        raise ValueError(f"{display_path(path)} is not a Jupyter notebook: it has no cells")
    return content


def write_notebook(path: str | Path, content: NotebookNode) -> None:
    """Write a notebook atomically."""
    with atomic_path(path) as temporary:
        nbformat.write(content, temporary)


def cell_tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def read_defaults(notebook: str | Path) -> dict[str, Any]:
    """Return names and default values of a notebook's one cell tagged ``parameters``.

    Raises:
        ValueError: If there is not exactly one such cell, or it holds anything but
            ``name = literal`` lines of plain values and lists of them.
    """
    where = display_path(notebook)
    cells = [c for c in read_notebook(notebook).cells if "parameters" in cell_tags(c)]
    if len(cells) != 1:
        raise ValueError(f"{where} has {len(cells)} cells tagged 'parameters', expected one")
    defaults: dict[str, Any] = {}
    for statement in ast.parse(cells[0].source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                defaults[name] = _literal(value, f"{where}: parameter {name!r}")
            case _:
                raise ValueError(
                    f"{where}: its parameters cell may hold only `name = literal` lines, not "
                    f"`{ast.unparse(statement)}`; derive values in the next cell"
                )
    return defaults


def read_imports(notebook: str | Path) -> list[str]:
    """Return the modules that a notebook's code cells import on their first level, in order.

    Cells that are no plain Python, such as those with magics, are passed over.
    """
    found: dict[str, None] = {}
    for cell in read_notebook(notebook).cells:
        try:
            body = ast.parse(cell.source).body if cell.cell_type == "code" else []
        except SyntaxError:
            continue
        for statement in body:
            match statement:
                case ast.Import(names=names):
                    found |= dict.fromkeys(alias.name for alias in names)
                case ast.ImportFrom(module=str(module), level=0):
                    found[module] = None
    return list(found)


def _literal(node: ast.expr, where: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = ...
    elements = value if isinstance(value, list) else [value]
    if not all(isinstance(element, _PLAIN) for element in elements):
        raise ValueError(
            f"{where} must be text, a number, True/False, None or a list of these, "
            f"not `{ast.unparse(node)}`; derive values in the next cell"
        )
    return value


def check_parameters(notebook: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters as the notebook wants them, or refuse what it does not know.

    The notebook's defaults rule: a whole number (never True or False) for a whole number, any
    number for a decimal one, text for text, and for a list a list whose elements each fit one of
    the default's elements. Only a parameter whose default is None takes None; it takes any other
    plain value too, and so do the elements of an empty list.

    Raises:
        ValueError: If a name is unknown (the known ones are listed) or a type differs.
    """
    if not parameters:
        return {}
    defaults, where = read_defaults(notebook), display_path(notebook)
    for name in parameters:
        if name not in defaults:
            near = difflib.get_close_matches(str(name), defaults, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            known = ", ".join(defaults) or "no parameters"
            raise ValueError(f"{where} has no parameter {name!r}; {hint}It has: {known}")
    return {
        name: _fit(value, defaults[name], f"{where}: parameter {name!r}")
        for name, value in parameters.items()
    }


def _fit(value: Any, default: Any, where: str) -> Any:
    """Return ``value`` as a value of the default's kind, or raise."""
    if isinstance(default, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} takes a list like {default!r}, not {_say(value)}")
        examples = default or [None]
        return [_fit_any(v, examples, f"{where}, element {i}") for i, v in enumerate(value)]
    return _fit_any(value, [default], where)


def _fit_any(value: Any, examples: Sequence[Any], where: str) -> Any:
    kinds = {type(example) for example in examples}
    if type(None) in kinds and isinstance(value, (*_PLAIN, list)):
        return value
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    wanted = " or ".join(_NAMES[kind] for kind in sorted(kinds, key=str))
    raise ValueError(
        f"{where} takes {wanted} like {examples[0]!r}, not {_say(value)}{_remedy(value, kinds)}"
    )


def _say(value: Any) -> str:
    kind = {str: "text", bool: "a truth value", int: "whole number", float: "decimal number"}
    return f"{value!r} ({kind.get(type(value), type(value).__name__)})"


def _remedy(value: Any, kinds: set[type]) -> str:
    """Return how to write the value that was meant, where that is clear."""
    if isinstance(value, str) and kinds & {int, float}:
        return _number_remedy(value, kinds)
    if isinstance(value, float) and int in kinds and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, (int, float)) and str in kinds:
        return f'; put it in quotes: "{value}"'
    return ""


def _number_remedy(text: str, kinds: set[type]) -> str:
    try:
        number = float(text)
    except ValueError:
        return ""
    if float not in kinds:
        return f"; write {int(number)} without quotes" if number.is_integer() else ""
    if isinstance(yaml.safe_load(text), (int, float)):
        return f"; write {text} without quotes"
    return f"; YAML reads {text} as text: write a point and a sign, like 1.0e-4 or 1.0e+4"


def read_parameters(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that maps parameter names to values.

    Raises:
        ValueError: If the file is not such a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} must map parameter names to values, like `epochs: 10`")
    return content


def parse_value(text: str, default: Any) -> Any:
    """Read a value typed on the command line as the kind of its parameter's default.

    Text that does not fit comes back as YAML reads it, for ``check_parameters`` to refuse.
    """
    if isinstance(default, str):
        return text
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def clean_notebook(content: NotebookNode) -> NotebookNode:
    """Return an executed notebook without what differs from run to run or machine to machine.

    Dropped: timings, widgets and their state, injected parameters, the interpreter's version.
    Kept: text, code, tags, cell ids, outputs, execution counts (numbered anew from 1).
    """
    content = nbformat.from_dict(content)
    content.metadata = nbformat.from_dict({"kernelspec": _KERNELSPEC, "language_info": _LANGUAGE})
    content.cells = [c for c in content.cells if "injected-parameters" not in cell_tags(c)]
    count = 0
    for cell in content.cells:
        tags = cell_tags(cell)
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _clean_outputs(cell.outputs, count)
    return content


def _clean_outputs(outputs: Sequence[NotebookNode], count: int) -> list[NotebookNode]:
    cleaned: list[NotebookNode] = []
    for output in outputs:
        if _WIDGET in output.get("data", {}):
            continue
        if output.output_type == "execute_result":
            output.execution_count = count
        last = cleaned[-1] if cleaned else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
        else:
            cleaned.append(output)
    return cleaned
