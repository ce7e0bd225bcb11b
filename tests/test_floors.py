"""The arrows between modules: each imports only what stands before it in this table.

Within a package (models, metrics, datasets, plots, synthetic) the files may import each other, but
nowhere in a circle.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import PROJECT

FLOORS = {
    1: """labels geometry records runtime progress tables resampling showing stain instance_maps
        growth instances seams piecewise augment
        losses metrics models polygons polygon_files objects rle windows bands bandstore
        row_writer tile_cache optimisation prediction views intervals distributed result_folder
        devices replicas notebooks run_names recording process_ties dask_clusters""",
    2: """slide_levels tiff_files slide_files slide_writing slides label_samplers instance_sources
        label_sources
        annotations synthetic checkpoints validation training_plan training_step run_state
        training plots classic""",
    3: """manifests patch_reader patching covering splits leaks datasets overview drawn_donors
        nuclei_maps archive catalogue window_reader stitch_plan slide_results stitching
        segmented findings review viewer""",
    4: """loading trials transfer nuclei_trials studies course segment_settings segmenting
        submissions reports""",
    5: "cli",
}
ORDER = [name for modules in FLOORS.values() for name in modules.split()]

# Libraries that only these modules may import.
KEPT_IN = {
    "tifffile": {"slides", "slide_files", "slide_writing", "tiff_files", "bandstore"},
    "zarr": {"slides", "slide_files", "slide_writing", "tiff_files", "bandstore"},
    "openslide": {"slides", "slide_files"},
    "matplotlib": {"plots"},
    "seaborn": {"plots"},
    "sklearn": {"classic"},
    "anywidget": {"viewer"},
    "traitlets": {"viewer"},
    "papermill": {"studies"},
    "distributed": {"studies", "dask_clusters"},
    "optuna": {"studies"},
    "nbclient": {"studies"},
    "nbformat": {"notebooks", "studies"},
    "nbconvert": {"course"},
}
BASES = {"Conv2d", "Module", "Sequential", "Dataset", "Metric", "Protocol", "NamedTuple", "StrEnum"}
BASES |= {"LocalProvisioner"}  # Jupyter's way to say how a kernel is started
BASES |= {"AnyWidget"}  # anywidget's way to say which traits the page and the kernel share
BASES |= {"PiecewiseAffine"}  # albumentations' own way to change how a transform moves pixels


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT / "renal_utils").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((PROJECT / "renal_utils").rglob("*.py"))
    if path != PROJECT / "renal_utils" / "__init__.py"
}


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, in functions too, but not those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _runtime_nodes(node)


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "write imports with their full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """The project's modules that a file imports; of ``a.b.name`` the longest that is a module."""
    found = set()
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "renal_utils":
            steps = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
            found.add(next((step for step in steps if step in modules), parts[-1]))
    return found


def family(module: str) -> str:
    return module.split(".")[0]


def wrong_arrows(sources: dict[str, ast.Module], order: list[str]) -> list[str]:
    wrong = []
    for module, tree in sources.items():
        for other in sorted(own_imports(tree, set(sources))):
            near, far = family(module), family(other)
            if near != far and order.index(far) > order.index(near):
                wrong.append(f"{module} imports {other}")
    return wrong


def test_every_module_stands_once_in_the_table():
    assert sorted(ORDER) == sorted({family(module) for module in SOURCES})


def test_arrows_point_only_to_modules_before():
    assert wrong_arrows(SOURCES, ORDER) == []


def test_no_imports_go_in_a_circle():
    graph = {module: own_imports(tree, set(SOURCES)) for module, tree in SOURCES.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", KEPT_IN)
def test_a_library_is_imported_only_where_it_belongs(library):
    users = {
        module
        for module, tree in SOURCES.items()
        if any(name.split(".")[0] == library for name in imports(tree))
    }
    assert {family(user) for user in users} <= KEPT_IN[library]


def test_only_modules_datasets_and_metrics_are_subclassed():
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                name = ast.unparse(base).split("[")[0].split(".")[-1]
                assert name in BASES or name.endswith("Error"), f"{module}.{node.name}({name})"


def test_nothing_heavy_is_imported_to_show_the_help():
    code = "import sys, renal_utils.cli; renal_utils.cli.make_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pandas", "matplotlib", "nbformat"} & set(done.stdout.split())


def test_the_checks_notice_a_wrong_arrow_and_a_circle():
    low, high = "import renal_utils.slides\n", "from renal_utils import labels, slides\n"
    sources = {"labels": ast.parse(low), "slides": ast.parse(high)}
    assert wrong_arrows(sources, ORDER) == ["labels imports slides"]
    inside = ast.parse("def f():\n    from renal_utils.cli import main\n")
    assert wrong_arrows({"training": inside, "cli": ast.parse("")}, ORDER)
    with pytest.raises(CycleError):
        graph = {name: own_imports(tree, set(sources)) for name, tree in sources.items()}
        TopologicalSorter(graph).prepare()
