"""Reading csv tables of a data set: every cell a text, every needed column there."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def read_table(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a csv as texts and check that it has the columns needed; an empty cell is "".

    Raises:
        ValueError: If there is no such file, it is empty, broken or lacks a column; the message
            names the file and what it has instead.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a csv with columns {list(columns)}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a readable csv ({error}); expected columns {list(columns)}"
        ) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; it has {list(table.columns)}. "
            "Rename the column, or get the original file"
        )
    return table
