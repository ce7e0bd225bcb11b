"""Layer 1: what can be seen of a committed notebook without running it (CONTRIBUTING.md)."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import LESSONS, PROJECT, SOLUTIONS
from nbformat import NotebookNode, v4

from renal_utils.bands import read_bands
from renal_utils.notebooks import cell_tags, read_defaults, read_notebook

MAX_BYTES = 400_000
MAX_LINES = 30
MAX_LISTED = 60  # lines of the cells of imports and parameters, which are lists rather than code
UNTITLED = "Figure without a title"
TAGS = {"parameters", "nbval-ignore-output"}
FIRST = ["Learning goals", "Cost", "Set up"]
LAST = ["Check the numbers", "Pitfalls", "Summary", "Exercises", "Next"]
ABSOLUTE = re.compile(
    r"(?<![\w.:/<])/(?:home|root|Users|tmp|mnt|opt|usr|var|srv|scratch)/|\b[A-Z]:\\|(?<!\w)~/"
)
BAND = re.compile(r"^(\w+) within its band \[.+\]: (True|False)$", re.MULTILINE)

Check = Callable[[Path, NotebookNode], Iterator[str]]


def _code(content: NotebookNode) -> list[NotebookNode]:
    return [c for c in content.cells if c.cell_type == "code"]


def _sections(content: NotebookNode) -> list[tuple[str, str]]:
    """Second-level headings in order, each with the text under it; fenced code left out."""
    text = "\n\n".join(c.source for c in content.cells if c.cell_type == "markdown")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _trees(content: NotebookNode) -> Iterator[tuple[NotebookNode, ast.Module]]:
    for cell in _code(content):
        try:
            yield cell, ast.parse(cell.source)
        except SyntaxError:
            continue


def check_format(path: Path, content: NotebookNode) -> Iterator[str]:
    try:
        nbformat.validate(content)
    except nbformat.ValidationError as error:
        yield f"not valid: {error.message}"
    if path.stat().st_size > MAX_BYTES:
        yield f"{path.stat().st_size:,} bytes, at most {MAX_BYTES:,}"
    if extra := set(content.metadata) - {"kernelspec", "language_info"}:
        yield f"metadata {sorted(extra)} do not belong in a committed notebook"


def check_cells(path: Path, content: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(_code(content), 1):
        if not cell.source.strip():
            yield f"code cell {number} is empty"
        listed = number == 1 or "parameters" in cell_tags(cell)
        limit = MAX_LISTED if listed else MAX_LINES
        if len(cell.source.splitlines()) > limit:
            yield f"code cell {number} has over {limit} lines"
        try:
            ast.parse(cell.source)
        except SyntaxError:
            yield f"code cell {number} is not plain Python"
    for cell in content.cells:
        if extra := set(cell_tags(cell)) - TAGS:
            yield f"tags {sorted(extra)} are not in use"
        if extra := set(cell.metadata) - {"tags"}:
            yield f"cell metadata {sorted(extra)} do not belong in a committed notebook"


def check_outputs(path: Path, content: NotebookNode) -> Iterator[str]:
    cells = _code(content)
    if [c.execution_count for c in cells] != list(range(1, len(cells) + 1)):
        yield "execution counts are not 1, 2, 3, ...: refresh it in one go"
    if any(o.output_type == "error" for c in cells for o in c.outputs):
        yield "an error output is committed"
    if any("widget" in kind for c in cells for o in c.outputs for kind in o.get("data", {})):
        yield "a widget is committed"
    if any("image/svg+xml" in o.get("data", {}) for c in cells for o in c.outputs):
        yield "a figure is SVG, which differs from run to run; use PNG"
    for output in (o for c in cells for o in c.outputs if "image/png" in o.get("data", {})):
        if output.metadata.get("image/png", {}).get("alt", UNTITLED) == UNTITLED:
            yield "a figure has no alternative text: give it a title, and call use_course_style()"
    for cell, tree in _trees(content):
        if any(_shows(statement) for statement in tree.body) and not cell.outputs:
            yield f"`{cell.source.splitlines()[0]}` shows something, but has no output"


def _shows(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id="print" | "display"))):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="show"))):
            return True
    return False


def check_paths(path: Path, content: NotebookNode) -> Iterator[str]:
    texts = [cell.source for cell in content.cells]
    for output in (o for c in _code(content) for o in c.outputs):
        texts += [output.get("text", ""), *output.get("data", {}).values()]
    for text in texts:
        if not isinstance(text, str) or re.fullmatch(r"[A-Za-z0-9+/=\s]{200,}", text):
            continue  # an encoded picture
        if found := ABSOLUTE.search(text):
            yield f"a path of one machine: {text[found.start() : found.start() + 40]!r}"
        if str(PROJECT) in text or str(Path.home()) + "/" in text:
            yield "the path of this very machine"


def check_start(path: Path, content: NotebookNode) -> Iterator[str]:
    first = content.cells[0]
    title = rf"# {path.name[:2]} \S.*"
    if first.cell_type != "markdown" or not re.match(title, first.source):
        yield f"the first cell must begin with the title `# {path.name[:2]} ...`"
    if not re.search(r"^\*\*Question\.\*\* .*?\?$", first.source, re.MULTILINE | re.DOTALL):
        yield "the first cell must hold a line `**Question.** ...?`"
    cells = _code(content)
    if len(cells) < 2 or "parameters" not in cell_tags(cells[1]):
        yield "the second code cell must be tagged parameters, after the one import cell"
    if not any("image/png" in o.get("data", {}) for c in cells[2:5] for o in c.outputs):
        yield "no figure within three code cells after the parameters"
    try:
        read_defaults(path)
    except ValueError as error:
        yield str(error)


def check_imports(path: Path, content: NotebookNode) -> Iterator[str]:
    for number, (_, tree) in enumerate(_trees(content), 1):
        kinds = [isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)]
        if any(kinds) and number > 1:
            yield f"code cell {number} imports; all imports stand in the first code cell"
        if number == 1 and not any(kinds):
            yield "the first code cell must be the import cell"


def check_sections(path: Path, content: NotebookNode) -> Iterator[str]:
    sections = _sections(content)
    names = [name for name, _ in sections]
    own = names[len(FIRST) : -len(LAST)]
    if names[: len(FIRST)] != FIRST or names[-len(LAST) :] != LAST or len(own) < 2:
        yield f"headings must be {FIRST}, two or more of its own, {LAST}; they are {names}"
        return
    texts = dict(sections)
    for name, pattern, least in (
        ("Learning goals", r"^[-*] ", 2),
        ("Cost", r"^\|", 3),
        ("Exercises", r"^\d+\. ", 3),
    ):
        if len(re.findall(pattern, texts[name], re.MULTILINE)) < least:
            yield f"section {name!r} needs {least} lines that match {pattern!r}"


def check_bands_printed(path: Path, content: NotebookNode) -> Iterator[str]:
    name = f"notebooks/bands/{path.name[:2]}.json"
    file = path.parent / "bands" / Path(name).name
    called = f'check_bands("{name}"', "check_bands(bands_file,"
    by_parameter = f'bands_file = "{name}"' in "\n".join(c.source for c in _code(content)[1:2])
    sources = [re.sub(r"\(\s+", "(", c.source) for c in _code(content)]  # ruff may break the line
    if not any(call in source for source in sources for call in called[: 1 + by_parameter]):
        yield f'no cell calls check_bands("{name}", ...), by a parameter bands_file or at once'
    if not file.is_file():
        yield f"{name} is missing"
        return
    texts = [o.get("text", "") for cell in _code(content) for o in cell.outputs]
    printed, bands = dict(BAND.findall("\n".join(texts))), read_bands(file)
    if set(printed) != set(bands):
        yield f"{name} has {sorted(bands)}, but {sorted(printed)} were printed"
    if outside := [name for name, inside in printed.items() if inside != "True"]:
        yield f"{outside} lie outside their bands"


def check_ruff(path: Path, content: NotebookNode) -> Iterator[str]:
    config = ("--config", str(PROJECT / "pyproject.toml"), "--no-cache", str(path))
    for command in (("check", "-q"), ("format", "-q", "--diff")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config], capture_output=True, text=True
        )
        if done.returncode:
            yield f"ruff {command[0]}: {done.stdout}{done.stderr}"


LIGHT: tuple[Check, ...] = (check_format, check_cells, check_outputs, check_paths, check_ruff)
FULL: tuple[Check, ...] = (
    *LIGHT,
    check_start,
    check_imports,
    check_sections,
    check_bands_printed,
)


def complaints(path: Path, checks: tuple[Check, ...]) -> list[str]:
    content = read_notebook(path)
    return [f"{check.__name__}: {text}" for check in checks for text in check(path, content)]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_built_as_contributing_says(path):
    assert re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)+\.ipynb", path.name)
    assert complaints(path, FULL) == []


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_is_clean_and_belongs_to_a_lesson(path):
    assert complaints(path, LIGHT) == []
    assert path.name in {lesson.name for lesson in LESSONS}


# The checks themselves: a good notebook passes, and each way to break it is noticed.

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
MARKDOWN = {
    0: "# 03 Count things\n\n**Question.** How many things are there?",
    1: "## Learning goals\n\n- count\n- check",
    2: "## Cost\n\n| | small |\n|---|---|\n| time | a second |",
    3: "## Set up",
    6: "## Draw\n\ntext",
    8: "## Count\n\ntext",
    10: "## Check the numbers",
    12: "## Pitfalls\n\ntext\n\n## Summary\n\ntext",
    13: "## Exercises\n\n1. one\n2. two\n3. three",
    14: "## Next\n\ntext",
}
CODE = {
    4: "import matplotlib.pyplot as plt\n\nfrom renal_utils.bands import check_bands",
    5: "things = 3",
    7: "plt.plot([0, things])\nplt.show()",
    9: "print(things)",
    11: 'check_bands("notebooks/bands/03.json", things=things)',
}


def good_notebook(folder: Path) -> Path:
    figure = {"data": {"image/png": PNG}, "metadata": {"image/png": {"alt": "Three things"}}}
    outputs = {
        7: v4.new_output("display_data", **figure),
        9: v4.new_output("stream", name="stdout", text="3\n"),
        11: v4.new_output("stream", name="stdout", text="things within its band [1, 5]: True\n"),
    }
    cells = []
    for place in sorted(MARKDOWN | CODE):
        if place in MARKDOWN:
            cells.append(v4.new_markdown_cell(MARKDOWN[place]))
        else:
            cell = v4.new_code_cell(CODE[place], outputs=[o for o in (outputs.get(place),) if o])
            cell.execution_count = sum(p <= place for p in CODE)
            cells.append(cell)
    cells[5].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "03_count_things.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    (folder / "bands").mkdir()
    (folder / "bands" / "03.json").write_text('{"things": [1, 5]}')
    return path


def test_a_good_notebook_passes_every_check(tmp_path):
    assert complaints(good_notebook(tmp_path), FULL) == []


def _set(cell: int, key: str, value) -> Callable[[NotebookNode], None]:
    return lambda content: content.cells[cell].update({key: value})


def _strip_outputs(content: NotebookNode) -> None:
    for cell in _code(content):
        cell.outputs = []


def _print(text: str) -> Callable[[NotebookNode], None]:
    return _set(9, "outputs", [v4.new_output("stream", name="stdout", text=text)])


def _show(kind: str) -> Callable[[NotebookNode], None]:
    return _set(9, "outputs", [v4.new_output("display_data", data={kind: "x"})])


BROKEN = {
    "stripped": (_strip_outputs, "check_outputs: .*has no output"),
    "out of order": (_set(9, "execution_count", 17), "execution counts"),
    "error": (
        _set(9, "outputs", [v4.new_output("error", ename="E", evalue="e", traceback=[])]),
        "an error output",
    ),
    "figure without alternative text": (_show("image/png"), "no alternative text"),
    "widget": (_show("application/vnd.jupyter.widget-view+json"), "a widget"),
    "svg": (_show("image/svg+xml"), "SVG"),
    "widget state": (lambda c: c.metadata.update(widgets={}), "metadata .*widgets"),
    "timings": (lambda c: c.cells[9].metadata.update(execution={}), "cell metadata"),
    "injected": (
        lambda c: c.cells[9].metadata.update(tags=["injected-parameters"]),
        "tags .*injected-parameters",
    ),
    "skipped": (lambda c: c.cells[9].metadata.update(tags=["nbval-skip"]), "tags .*nbval-skip"),
    "home path": (_print("read /home/anna/slides/a.tiff\n"), "a path of one machine"),
    "tilde": (_set(9, "source", 'print("~/slides")'), "a path of one machine"),
    "windows path": (_print("C:\\slides\\a.tiff\n"), "a path of one machine"),
    "project path": (_print(f"{PROJECT}/data\n"), "this very machine"),
    "too large": (_print("x\n" * 201_000), "bytes, at most"),
    "long cell": (_set(9, "source", "print(things)\n" * 31), "over 30 lines"),
    "magic": (_set(9, "source", "%time things"), "not plain Python"),
    "empty cell": (_set(9, "source", ""), "is empty"),
    "unsorted imports": (_set(4, "source", "import os, sys"), "ruff check"),
    "unformatted": (_set(9, "source", "print( things )"), "ruff format"),
    "no title": (_set(0, "source", "Count things"), "title"),
    "no question": (_set(0, "source", "# 03 Count things"), "Question"),
    "late import": (_set(9, "source", "import os\n\nprint(os.sep)"), "code cell 4 imports"),
    "no parameters": (lambda c: c.cells[5].metadata.update(tags=[]), "tagged parameters"),
    "derived parameter": (_set(5, "source", "things = 1 + len('ab')"), "derive values"),
    "no figure": (_set(7, "outputs", [v4.new_output("stream", text="x")]), "no figure"),
    "missing heading": (_set(12, "source", "## Pitfalls"), "headings must be"),
    "two exercises": (_set(13, "source", "## Exercises\n\n1. one\n2. two"), "Exercises"),
    "no goals": (_set(1, "source", "## Learning goals\n\ntext"), "Learning goals"),
    "no cost": (_set(2, "source", "## Cost\n\ntext"), "Cost"),
    "no band check": (_set(11, "source", "print(things)"), "no cell calls check_bands"),
    "outside its band": (
        _set(
            11,
            "outputs",
            [v4.new_output("stream", name="stdout", text="things within its band [1, 5]: False\n")],
        ),
        "outside their bands",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_break_a_notebook_is_noticed(tmp_path, name):
    spoil, message = BROKEN[name]
    path = good_notebook(tmp_path)
    content = read_notebook(path)
    spoil(content)
    nbformat.write(content, path)
    assert re.search(message, "\n".join(complaints(path, FULL)))


def test_a_band_that_is_not_printed_is_noticed(tmp_path):
    path = good_notebook(tmp_path)
    (tmp_path / "bands" / "03.json").write_text('{"things": [1, 5], "dice": [0.5, 1]}')
    assert "were printed" in "\n".join(complaints(path, FULL))


def test_bands_may_be_named_by_a_parameter_whose_default_is_the_lessons_own(tmp_path):
    path = good_notebook(tmp_path)
    content = read_notebook(path)
    content.cells[11].source = "check_bands(bands_file, things=things)"
    for name, passes in (("03", True), ("04", False)):
        content.cells[5].source = f'things = 3\nbands_file = "notebooks/bands/{name}.json"'
        nbformat.write(content, path)
        assert ("no cell calls check_bands" not in "\n".join(complaints(path, FULL))) == passes
