"""What a notebook hands to the one who runs it: numbers, and curves over epochs.

A study collects them into its table. In JupyterLab nobody listens, and nothing happens.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

RESULTS_VARIABLE = "RENAL_RESULTS_LEDGER"


@dataclass(frozen=True)
class Recorded:
    """What a notebook recorded.

    Attributes:
        results: Numbers and texts by name; the last value where a name came twice.
        curve: One mapping an epoch.
    """

    results: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, Any], ...] = ()


def record_results(**values: float | int | str | bool | None) -> None:
    """Hand named results of this run to the study that runs the notebook.

    Args:
        **values: Numbers, texts or None; each becomes a column of the study's table.

    Raises:
        ValueError: If a value is something else.
    """
    for name, value in values.items():
        if not isinstance(value, float | int | str | None):
            raise ValueError(
                f"result {name!r} is a {type(value).__name__}; record plain numbers and texts, "
                "such as float(value)"
            )
    _write("results", {name: _plain(value) for name, value in values.items()})


def record_curve(history: pd.DataFrame) -> None:
    """Hand what changed over the epochs to the study, say ``History.frame()``.

    Args:
        history: One row an epoch, indexed by epoch; columns of numbers or texts.
    """
    rows = history.rename_axis("epoch").reset_index().to_dict("records")
    _write("curve", [{str(k): _plain(v) for k, v in row.items()} for row in rows])


def read_recorded(path: str | Path) -> Recorded:
    """Read what a finished notebook recorded; nothing if there is no such file."""
    path, results, curve = Path(path), {}, []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        kind, content = json.loads(line)
        if kind == "results":
            results |= content
        else:
            curve = content
    return Recorded(results, tuple(curve))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: numpy's numbers as Python's, NaN and infinity as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(kind: str, content: Any) -> None:
    if path := os.environ.get(RESULTS_VARIABLE):
        with Path(path).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([kind, content], allow_nan=False) + "\n")
