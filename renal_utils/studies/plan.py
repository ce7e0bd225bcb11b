"""The plan of a study: which notebook, with which parameters, read from YAML and checked.

Everything is checked before anything runs: names and types against the notebook's own parameters
(``notebooks.check_parameters``), axes that are empty, runs that occur twice.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from renal_utils.notebooks import cell_tags, check_parameters, read_defaults, read_notebook
from renal_utils.result_folder import content_key, file_identity
from renal_utils.run_names import format_run_name
from renal_utils.runtime import display_path, project_root, resolve_path
from renal_utils.studies.search import SearchPlan, read_search


@dataclass(frozen=True)
class StudyPlan:
    """A study of one notebook: a grid of parameters, or a search through a space of them.

    Relative paths start at the project.

    Attributes:
        notebook: What is run.
        folder: Gets the ledger, the tables and, under ``runs``, the executed notebooks. None is
            ``build/studies/<the notebook's name>``.
        parameters: What all runs have in common.
        grid: Values of each parameter that varies; all combinations are run, the last varies first.
        search: What Optuna searches instead of a grid.
        data: Files and folders that the runs read: if they change, so do the results.
        time_limit: Seconds that one run may take; None for no limit.

    Raises:
        ValueError: If there is neither grid nor search, or both, an axis is empty, a parameter is
            given twice, is unknown, or of the wrong type, or two runs would be the same.
        FileNotFoundError: If there is no such notebook.
    """

    notebook: str | Path
    folder: str | Path | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    search: SearchPlan | None = None
    data: Sequence[str | Path] = ()
    time_limit: float | int | None = None

    def __post_init__(self) -> None:
        notebook = resolve_path(self.notebook).resolve()
        folder = self.folder or Path("build", "studies", notebook.stem)
        object.__setattr__(self, "notebook", notebook)
        object.__setattr__(self, "folder", resolve_path(folder))
        object.__setattr__(self, "data", tuple(resolve_path(path) for path in self.data))
        self._check()

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of the parameters that differ from run to run."""
        return tuple(self.search.space if self.search else self.grid)

    def runs(self) -> "list[PlannedRun]":
        """Return the runs of the grid in order; of a search, which decides as it goes, none."""
        values = itertools.product(*self.grid.values()) if self.grid else ()
        return [self.plan_run(dict(zip(self.grid, chosen, strict=True))) for chosen in values]

    def plan_run(self, chosen: Mapping[str, Any]) -> "PlannedRun":
        """Return the run of these values of the varied parameters.

        Raises:
            ValueError: If one is unknown or of the wrong type.
        """
        parameters = check_parameters(self.notebook, {**self.parameters, **chosen})
        typed = {name: parameters[name] for name in chosen}
        return PlannedRun(format_run_name(typed), parameters)

    def _check(self) -> None:
        where = display_path(self.notebook)
        if bool(self.grid) == bool(self.search):
            raise ValueError(f"a study of {where} needs a grid or a search, and not both")
        if empty := [name for name, values in self.grid.items() if not values]:
            raise ValueError(f"the grid is empty: no values for {', '.join(empty)}")
        if twice := sorted(set(self.parameters) & set(self.varied)):
            raise ValueError(f"{', '.join(twice)}: given for all runs and varied; say it once")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit must be seconds above 0, given {self.time_limit}")
        if missing := [display_path(path) for path in self.data if not path.exists()]:
            raise ValueError(
                f"no such data: {', '.join(missing)}; data/README.md says where data come from, "
                "and `renal data draw` draws the course's slides"
            )
        for example in self.search.corners() if self.search else ():
            self.plan_run(example)
        names = [run.name for run in self.runs()]
        if same := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the grid has runs that are the same: {', '.join(same[:5])}")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: its name, and all its parameters, typed as the notebook has them."""

    name: str
    parameters: Mapping[str, Any]


def read_study(path: str | Path) -> StudyPlan:
    """Read a study's plan from a YAML file, of which ``studies/`` has an example.

    Raises:
        ValueError: If it is no such file; see ``StudyPlan``.
        FileNotFoundError: If there is no such file, or no such notebook.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    known = [f.name for f in fields(StudyPlan)]
    if not isinstance(content, dict) or "notebook" not in content:
        raise ValueError(f"{path} must map names to values and have 'notebook' among them")
    if unknown := [str(name) for name in content if name not in known]:
        raise ValueError(f"{path}: {', '.join(unknown)} not known; it may have {', '.join(known)}")
    try:
        return _make_plan(content, path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def source_of(plan: StudyPlan) -> dict[str, str]:
    """Return what all results of a study depend on besides its parameters, as hashes.

    ``notebook`` is its code without the parameters' cell, whose values count as parameters; text
    and outputs do not matter. ``data`` is sizes and samples of the files, ``library`` a version.
    """
    cells = [c for c in read_notebook(plan.notebook).cells if c.cell_type == "code"]
    code = [c.source for c in cells if "parameters" not in cell_tags(c)]
    files = [
        [path.relative_to(top.parent).as_posix(), file_identity(path)]
        for top in plan.data
        for path in ([top] if top.is_file() else sorted(top.rglob("*")))
        if path.is_file() and not path.name.startswith(".")
    ]
    return {
        "notebook": content_key({"code": code}),
        "data": content_key({"files": files}),
        "library": version("renal-utils"),
    }


def run_key(plan: StudyPlan, run: PlannedRun, source: Mapping[str, str]) -> str:
    """Return what tells a run from every other: a hash of its parameters and its source."""
    parameters = {**read_defaults(plan.notebook), **run.parameters}
    return content_key({"source": dict(source), "parameters": parameters})


def _make_plan(content: Mapping[str, Any], path: Path) -> StudyPlan:
    given = dict(content)
    for name in ("parameters", "grid"):
        given[name] = given.get(name) or {}
        if not isinstance(given[name], dict):
            raise ValueError(f"{name} must map parameter names to values")
    for name, values in given["grid"].items():
        if not isinstance(values, list):
            raise ValueError(f"grid: {name} must be a list like [1, 2], not {values!r}")
    if given.get("search") is not None:
        given["search"] = read_search(given["search"])
    data = given.get("data") or []
    given["data"] = data if isinstance(data, list) else [data]
    if given.get("folder") is None:
        given["folder"] = project_root() / "build" / "studies" / path.stem
    return StudyPlan(**given)
