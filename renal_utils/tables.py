"""Reading csv tables and checking that every needed column is there.

``read_table`` gives texts, for what people wrote (data sets, lists of slides); ``read_results``
gives numbers, for what programs wrote (scores, costs).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd


def read_table(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a csv as texts and check that it has the columns needed; an empty cell is "".

    Raises:
        ValueError: If there is no such file, it is empty, broken or lacks a column; the message
            names the file and what it has instead.
    """
    return _read(Path(path), columns, dtype=str, keep_default_na=False)


def read_results(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a csv of results, numbers as numbers, an empty cell as NaN.

    Raises:
        ValueError: As ``read_table``, or if the table has no row.
    """
    table = _read(Path(path), columns)
    if table.empty:
        raise ValueError(f"{path}: has columns but no row; run what makes it once more")
    return table


def _read(path: Path, columns: Sequence[str], **options: Any) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a csv with columns {list(columns)}")
    try:
        table = pd.read_csv(path, **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a readable csv ({str(error).strip()}); expected columns {list(columns)}"
        ) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; it has {list(table.columns)}. "
            "Rename the column, or get the original file"
        )
    return table
