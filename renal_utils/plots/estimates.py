"""Charts of estimates: a point and its interval for each slide, donor or group."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from renal_utils.plots.style import SERIES_COLOURS


def plot_estimates(
    table: pd.DataFrame, *, xlabel: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw values with their intervals, one row each, the first on top.

    A value without an interval is an open circle.

    Args:
        table: Columns ``name``, ``value``, ``low``, ``high``; rows without a value are left out.
        xlabel: Text with the unit.
        title: What to see in it.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If no row has a value.
    """
    rows = table.dropna(subset=["value"]).reset_index(drop=True)
    if rows.empty:
        raise ValueError("no value in the table, so there are no estimates to draw")
    if ax is None:
        ax = plt.subplots(figsize=(5.2, 0.9 + 0.28 * len(rows)))[1]
    known = rows["low"].notna() & rows["high"].notna()
    ends = rows[known]
    ax.hlines(ends.index, ends["low"].astype(float), ends["high"].astype(float), color="0.55")
    for mask, face in ((known, SERIES_COLOURS[0]), (~known, "white")):
        values = rows[mask]["value"].astype(float)
        style = {"marker": "o", "linestyle": "", "markeredgecolor": SERIES_COLOURS[0]}
        ax.plot(values, values.index, markerfacecolor=face, **style)
    ax.set_yticks(range(len(rows)), rows["name"])
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    ax.set_xlim(left=min(0.0, ax.get_xlim()[0]))
    ax.set_title(title)
    return ax
