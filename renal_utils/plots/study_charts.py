"""Charts of studies: heat maps over two parameters, and the flip-flop graph of a training."""

from collections.abc import Hashable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from renal_utils.plots.style import SERIES_COLOURS

_MAP = "cividis"  # made to look the same to the colour-blind, and dark to bright in grey
_FLIPS = "0.75"
_WRITTEN = {"bce": "BCE", "dice": "Dice", "f1": "F1", "iou": "IoU", "px": "(pixels)"}


def plot_heat_map(
    mean: pd.DataFrame,
    *,
    spread: pd.DataFrame | None = None,
    label: str = "",
    title: str = "",
    best: str = "high",
    ax: Axes | None = None,
) -> Axes:
    """Draw a result over two parameters, each cell with its number, the best one framed.

    Args:
        mean: Rows and columns are values of the two parameters; NaN where nothing was run.
        spread: Of the same shape: written under the mean as ±; None, or NaN, writes none.
        label: What the colours show.
        title: What to see in it.
        best: ``high`` or ``low``: which cell is framed.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If there is no number, ``spread`` has other cells, or ``best`` is unknown.
    """
    if mean.empty or mean.isna().to_numpy().all():
        raise ValueError("no number in the table, so there is no heat map to draw")
    if spread is not None and spread.shape != mean.shape:
        raise ValueError(f"spread has cells {spread.shape}, but the means have {mean.shape}")
    if best not in ("high", "low"):
        raise ValueError(f"best is {best!r}, expected 'high' or 'low'")
    rows, columns = mean.shape
    ax = ax or plt.subplots(figsize=(1.9 + 0.72 * columns, 1.3 + 0.5 * rows))[1]
    sns.heatmap(
        mean, ax=ax, annot=_texts(mean, spread), fmt="", cmap=_MAP, linewidths=0.5,
        annot_kws={"fontsize": 8}, cbar_kws={"label": label},
        xticklabels=_ticks(mean.columns), yticklabels=_ticks(mean.index),
    )  # fmt: skip
    row, column = best_cell(mean, best=best)
    ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=SERIES_COLOURS[1], lw=3))
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel=_words(mean.columns.name), ylabel=_words(mean.index.name))
    ax.set_title(title)
    return ax


def best_cell(mean: pd.DataFrame, *, best: str = "high") -> tuple[int, int]:
    """Return row and column, from 0, of the highest or the lowest number; NaN does not count."""
    values = mean.to_numpy(dtype=float)
    place = np.nanargmax(values) if best == "high" else np.nanargmin(values)
    row, column = np.unravel_index(place, values.shape)
    return int(row), int(column)


def plot_flip_flop(
    history: pd.DataFrame,
    *,
    score: str = "val_dice",
    flips: str = "val_flips",
    title: str = "",
    most_flips: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a score over the epochs, and behind it how many labels flipped since the epoch before.

    Args:
        history: One row an epoch, indexed by epoch.
        score: Column of the score, 0 to 1: the line, on the left axis.
        flips: Column of the share of pixels whose label flipped, 0 to 1: bars, on the right axis.
            NaN in the first epoch.
        title: What to see in it.
        most_flips: Upper end of the right axis: give the same to graphs that stand side by side.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If a column is not in the history.
    """
    if missing := [name for name in (score, flips) if name not in history.columns]:
        raise ValueError(f"no column {missing}; the history has {list(history.columns)}")
    ax = ax or plt.subplots()[1]
    bars = ax.twinx()
    bars.bar(history.index, history[flips], color=_FLIPS, width=0.8, label="labels that flipped")
    bars.set(ylabel="Pixels that flipped", ylim=(0, most_flips))
    bars.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    bars.spines["right"].set_visible(True)
    shown = history[score].dropna()
    ax.plot(shown.index, shown, marker="o", markersize=3.5, label=_words(score))
    ax.set_zorder(bars.get_zorder() + 1)  # the line before the bars
    ax.patch.set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="Epoch", ylabel=_words(score), ylim=(0, 1))
    ax.set_title(title)
    handles = [*ax.get_legend_handles_labels()[0], *bars.get_legend_handles_labels()[0]]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return ax


def _texts(mean: pd.DataFrame, spread: pd.DataFrame | None) -> np.ndarray:
    values = mean.to_numpy(dtype=float)
    around = np.full(values.shape, np.nan) if spread is None else spread.to_numpy(dtype=float)
    texts = np.full(values.shape, "", dtype=object)
    for place in np.ndindex(values.shape):
        if np.isfinite(values[place]):
            texts[place] = f"{values[place]:.3f}"
        if np.isfinite(around[place]):
            texts[place] += f"\n±{around[place]:.3f}"
    return texts


def _ticks(values: pd.Index) -> list[str]:
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in values]


def _words(name: Hashable) -> str:
    words = str(name or "").replace("val_", "validation_").split("_")
    text = " ".join(_WRITTEN.get(word, word) for word in words)
    return text[:1].upper() + text[1:]
