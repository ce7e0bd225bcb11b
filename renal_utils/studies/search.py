"""A search by Optuna in place of a grid: the space, and how trials are asked for and told of."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_FIELDS = {"trials", "result", "direction", "seed", "space"}
_AXIS = {"low", "high", "log", "step", "choices"}
_DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class SearchPlan:
    """What Optuna is to search.

    Attributes:
        trials: Different runs in all, with those of an earlier start.
        result: Name of the recorded result that is searched for its best.
        space: By parameter ``{"low": ..., "high": ..., "log": True, "step": ...}`` or
            ``{"choices": [...]}``; whole limits give whole numbers.
        direction: ``maximize`` or ``minimize``.
        seed: Of the sampler (TPE). With several workers the order in which runs end counts too.

    Raises:
        ValueError: If the space is empty, or an axis cannot be understood.
    """

    trials: int
    result: str
    space: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    direction: str = "maximize"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.trials, int) or self.trials < 1:
            raise ValueError(f"search: trials must be a whole number above 0, not {self.trials!r}")
        if self.direction not in _DIRECTIONS:
            raise ValueError(f"search: direction {self.direction!r} is none of {_DIRECTIONS}")
        if not self.space:
            raise ValueError("search: the space is empty; name at least one parameter")
        for name, axis in self.space.items():
            _check_axis(name, axis)

    def corners(self) -> list[dict[str, Any]]:
        """Return runs that between them have every limit and every choice, to check their types."""
        ends = {n: list(a.get("choices") or (a["low"], a["high"])) for n, a in self.space.items()}
        longest = max(len(values) for values in ends.values())
        return [{n: v[min(i, len(v) - 1)] for n, v in ends.items()} for i in range(longest)]


def read_search(content: Any) -> SearchPlan:
    """Return the plan that a mapping from YAML describes.

    Raises:
        ValueError: If a name is missing or unknown; see ``SearchPlan``.
    """
    if not isinstance(content, dict) or not {"trials", "result", "space"} <= set(content):
        raise ValueError("search must have 'trials', 'result' and 'space'")
    if unknown := sorted(set(content) - _FIELDS):
        raise ValueError(f"search: {', '.join(unknown)} not known; it may have {sorted(_FIELDS)}")
    return SearchPlan(**content)


class Search:
    """An Optuna study that goes on from runs that have ended before.

    Args:
        plan: What to search.

    Raises:
        RuntimeError: If Optuna is not installed.
    """

    def __init__(self, plan: SearchPlan) -> None:
        try:
            import optuna
        except ImportError as error:
            raise RuntimeError(
                "this study searches by Optuna, which is not installed: "
                "pip install renal-utils[optuna]"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self._optuna = plan, optuna
        sampler = optuna.samplers.TPESampler(seed=plan.seed)
        self.study = optuna.create_study(direction=plan.direction, sampler=sampler)
        self._axes = {name: self._distribution(axis) for name, axis in plan.space.items()}

    def remember(self, runs: Iterable[tuple[Mapping[str, Any], float | None]]) -> int:
        """Take in earlier runs: parameters, and the result; None for a run that failed.

        Those that lie outside the space, of an earlier one or of a grid, are left out. Returns how
        many were taken in.
        """
        states = self._optuna.trial.TrialState
        for parameters, value in runs:
            with suppress(ValueError):
                trial = self._optuna.trial.create_trial(
                    state=states.FAIL if value is None else states.COMPLETE,
                    params={name: parameters[name] for name in self._axes},
                    distributions=self._axes,
                    value=value,
                )
                self.study.add_trial(trial)
        return len(self.study.trials)

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return the number and the parameters of the next trial."""
        trial = self.study.ask(self._axes)
        return trial.number, dict(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """Say how a trial ended; None for a run that failed or recorded no such result."""
        if value is None:
            self.study.tell(number, state=self._optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def _distribution(self, axis: Mapping[str, Any]) -> Any:
        kinds = self._optuna.distributions
        if "choices" in axis:
            return kinds.CategoricalDistribution(axis["choices"])
        low, high, log, step = (axis.get(n) for n in ("low", "high", "log", "step"))
        if isinstance(low, int) and isinstance(high, int):
            return kinds.IntDistribution(low, high, log=bool(log), step=step or 1)
        return kinds.FloatDistribution(low, high, log=bool(log), step=step)


def _check_axis(name: str, axis: Any) -> None:
    if not isinstance(axis, dict) or set(axis) - _AXIS:
        raise ValueError(f"search: {name} must be limits or choices ({sorted(_AXIS)}), not {axis}")
    if "choices" in axis:
        if not isinstance(axis["choices"], list) or not axis["choices"]:
            raise ValueError(f"search: {name} has no choices; list them like [8, 16]")
        return
    low, high = axis.get("low"), axis.get("high")
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        raise ValueError(f"search: {name} must have numbers low < high, given {low!r} and {high!r}")
    if axis.get("log") and low <= 0:
        raise ValueError(f"search: {name} is logarithmic, so low must be above 0, given {low}")
