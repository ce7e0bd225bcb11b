"""The tables of a study: one row a run, one row an epoch, and what seeds make of each cell."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_object_dtype

from renal_utils.run_names import parse_run_name
from renal_utils.runtime import atomic_path
from renal_utils.studies.ledger import FAILED, FINISHED, Ledger

TABLE_NAME, CURVES_NAME = "runs", "curves"
_LEAST = ("name", "status", "seconds", "error", "key")


def study_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a run: name, status, parameters, results, how it came to be.

    Columns: ``name``, ``status`` (``finished`` or ``failed``), the parameters, the results,
    ``seconds``, ``error``, ``time_utc``, ``device``, ``threads``, ``git_commit``, ``data``,
    ``notebook`` and ``library`` (hashes, and a version), ``versions`` and ``key``. A result called
    like another column gets ``result_`` before its name.
    """
    rows = [_row(record) for record in records]
    table = pd.DataFrame(rows, columns=None if rows else list(_LEAST))
    for name in filter(lambda n: is_object_dtype(table[n]), table):  # Parquet has no mixed types
        known = table[name].dropna()
        if not known.map(type).eq(bool).all():
            table[name] = known.map(str).reindex(table.index)
    return table


def curves_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row an epoch of each finished run that recorded a curve: name, epoch, numbers."""
    rows = [
        {"name": record["name"], "key": record["key"], **row}
        for record in records
        if record["status"] == FINISHED
        for row in record["curve"]
    ]
    return pd.DataFrame(rows, columns=None if rows else ["name", "key", "epoch"])


def write_tables(folder: str | Path, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Write ``runs.parquet``, ``runs.csv`` and ``curves.csv``; return the first."""
    folder, table = Path(folder), study_table(records)
    with atomic_path(folder / f"{TABLE_NAME}.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    for name, content in ((TABLE_NAME, table), (CURVES_NAME, curves_table(records))):
        with atomic_path(folder / f"{name}.csv") as temporary:
            content.to_csv(temporary, index=False)
    return table


def read_runs(folder: str | Path) -> pd.DataFrame:
    """Return a study's runs so far, from its ledger, also while it is going on.

    Raises:
        ValueError: If the ledger cannot be read.
    """
    return study_table(Ledger(folder).records.values())


def read_curves(folder: str | Path) -> pd.DataFrame:
    """Return the curves of a study's finished runs so far, from its ledger.

    Raises:
        ValueError: If the ledger cannot be read.
    """
    return curves_table(Ledger(folder).records.values())


def average_seeds(
    table: pd.DataFrame, value: str, *, rows: str, columns: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return mean and spread of a result over all runs that share two parameters.

    Args:
        table: Of runs, as ``read_runs`` or a study's ``runs.csv`` give it; those that failed, or
            have no such result, do not count.
        value: Column of the result.
        rows: Parameter that goes down the map.
        columns: Parameter that goes across.

    Returns:
        Two tables, rows by columns, ascending: the mean, and the sample standard deviation (NaN
        where a cell has one run).

    Raises:
        ValueError: If a column is missing, or no run finished.
    """
    needed = ("status", value, rows, columns)
    if missing := [name for name in needed if name not in table.columns]:
        raise ValueError(f"no column {missing}; the table has {list(table.columns)}")
    chosen = table[(table["status"] != FAILED) & table[value].notna()]
    if chosen.empty:
        raise ValueError(f"no run finished with a {value!r}, so there is nothing to average")
    cells = chosen.astype({value: "float64"}).groupby([rows, columns])[value]
    return cells.mean().unstack(columns), cells.std().unstack(columns)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    known = record["provenance"]
    varied = parse_run_name(record["name"])
    parameters = {**{name: record["parameters"][name] for name in varied}, **record["parameters"]}
    row = {"name": record["name"], "status": record["status"]}
    row |= {k: v if not isinstance(v, list) else str(v) for k, v in parameters.items()}
    after = {"seconds": record["seconds"], "error": record["error"], **record["source"]}
    after |= {k: known.get(k) for k in ("time_utc", "device", "threads", "git_commit")}
    versions = known.get("versions", {})
    after |= {"versions": " ".join(f"{k}={v}" for k, v in versions.items()), "key": record["key"]}
    taken = {*row, *after}
    named = {f"result_{k}" if k in taken else k: v for k, v in record["results"].items()}
    return row | named | after
