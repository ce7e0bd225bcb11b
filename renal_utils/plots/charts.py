"""Charts: training curves, other lines, class shares, confusion, sizes, places of patches."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Integer
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from renal_utils.labels import LabelSet
from renal_utils.plots.style import SERIES_COLOURS

_LEGIBLE_SHARE = 0.06  # segments of a bar that are narrower carry no number
_NO_SPLIT = "#999999"


def plot_training(
    history: pd.DataFrame,
    columns: Sequence[str] = ("train_loss", "val_loss"),
    *,
    title: str = "",
    best_epoch: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw columns of a training's history over its epochs.

    Epochs that did not compute a column (NaN) are bridged.

    Args:
        history: One row an epoch, indexed by epoch.
        columns: What to draw; of one kind, since they share an axis.
        title: What to see in it.
        best_epoch: Marked by a line, if given.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If a column is not in the history.
    """
    _check_columns(history, columns)
    ax = ax or plt.subplots()[1]
    for column in columns:
        values = history[column].dropna()
        marker = "o" if len(values) < 30 else None
        ax.plot(values.index, values, label=_words(column), marker=marker, markersize=3.5)
    if best_epoch is not None:
        ax.axvline(best_epoch, color="0.6", linewidth=1, linestyle=":")
        ax.annotate("best", (best_epoch, 1), (3, -3), xycoords=("data", "axes fraction"),
                    textcoords="offset points", va="top", color="0.4", fontsize=9)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="Epoch", ylabel=_words(columns[0]) if len(columns) == 1 else "")
    ax.set_title(title)
    if len(columns) > 1:
        ax.legend()
    return ax


def plot_lines(
    table: pd.DataFrame,
    *,
    xlabel: str,
    ylabel: str = "",
    title: str = "",
    percent: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw the columns of a table as lines over its index.

    Args:
        table: Numbers; its index is the horizontal axis, its columns' names are the legend.
        xlabel: Text with the unit.
        ylabel: Text with the unit.
        title: What to see in it.
        percent: Whether the values are shares, 0 to 1, to be written as percentages.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If the table is empty.
    """
    if table.empty:
        raise ValueError("no numbers in the table, so there are no lines to draw")
    ax = ax or plt.subplots()[1]
    marker = "o" if len(table) < 30 else None
    for column in table.columns:
        ax.plot(table.index, table[column], label=str(column), marker=marker, markersize=3.5)
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title)
    if len(table.columns) > 1:
        ax.legend()
    return ax


def plot_patch_places(
    manifest: pd.DataFrame, *, by: str = "split", title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw where the patches of one slide lie on it, in a colour for each split.

    Args:
        manifest: Patches of one slide, or of its tiles.
        by: Column that gives the colour; an empty text is drawn grey, as "none".
        title: What to see in it.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If a column is not in the manifest, it is empty, or has too many values of
            ``by`` to be told apart.
    """
    _check_columns(manifest, ["x_l0", "y_l0", "patch_px", "downsample", by])
    if manifest.empty:
        raise ValueError("no patch in the manifest, so there are no places to draw")
    ax = ax or plt.subplots(figsize=(3.6, 3.8))[1]
    side = (manifest["patch_px"] * manifest["downsample"]).to_numpy()
    colours = _value_colours(manifest[by])
    for value, colour in colours.items():
        chosen = (manifest[by] == value).to_numpy()
        places = manifest.loc[chosen, ["x_l0", "y_l0"]].to_numpy()
        squares = [Rectangle(xy, s, s) for xy, s in zip(places, side[chosen], strict=True)]
        centres = places + side[chosen, None] / 2
        ax.add_collection(PatchCollection(squares, facecolor=colour, alpha=0.15, edgecolor="none"))
        ax.scatter(centres[:, 0], centres[:, 1], s=6, color=colour, linewidths=0)
    x, y = manifest["x_l0"].to_numpy(), manifest["y_l0"].to_numpy()
    ax.set(xlim=(x.min(), (x + side).max()), ylim=((y + side).max(), y.min()), aspect="equal")
    ax.set(xlabel="x, level-0 pixels", ylabel="y, level-0 pixels")
    ax.set_title(title)
    handles = [Patch(color=c, label=str(v) or "none") for v, c in colours.items()]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def plot_class_shares(
    shares: pd.DataFrame, label_set: LabelSet, *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw how the pixels of each row divide into classes, as stacked bars.

    Args:
        shares: One row a donor, group or slide; columns are names of classes, values 0 to 1.
        label_set: Titles and colours of the classes.
        title: What to see in it.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If a column is not a class of the set, or a share is outside 0 to 1.
    """
    if shares.min(axis=None) < 0 or shares.max(axis=None) > 1:
        raise ValueError("shares must lie within 0 to 1; divide the counts by their sum first")
    ax = ax or plt.subplots(figsize=(5.6, 1.2 + 0.32 * len(shares)))[1]
    rows, left = np.arange(len(shares)), np.zeros(len(shares))
    for name in shares.columns:
        label_class = label_set.classes[label_set.id_of(name)]
        values = shares[name].to_numpy()
        colour = np.array(label_class.colour) / 255
        bars = ax.barh(rows, values, left=left, color=colour, edgecolor="white", linewidth=0.8)
        texts = [f"{v:.0%}" if v >= _LEGIBLE_SHARE else "" for v in values]
        ax.bar_label(bars, texts, label_type="center", fontsize=8)
        bars.set_label(label_class.title)
        left += values
    ax.set_yticks(rows, [str(row) for row in shares.index])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlim=(0, 1.001), xlabel="Share of pixels", ylabel=str(shares.index.name or ""))
    ax.set_title(title)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def plot_confusion(
    matrix: Integer[np.ndarray, "C C"],
    label_set: LabelSet,
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a confusion matrix: what became of the pixels of each true class, in percent.

    Args:
        matrix: Pixels by true class (rows) and predicted class (columns).
        label_set: Titles of the classes.
        title: What to see in it.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If the matrix is not of as many classes as the label set.
    """
    titles = [c.title for c in label_set.classes]
    if len(matrix) != len(titles):
        raise ValueError(f"matrix of {len(matrix)} classes, but the label set has {len(titles)}")
    side = 2.2 + 0.5 * len(titles)
    ax = ax or plt.subplots(figsize=(side + 0.6, side))[1]
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    sns.heatmap(
        percent, ax=ax, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, square=True,
        xticklabels=titles, yticklabels=titles, cbar=False, linewidths=0.5,
    )  # fmt: skip
    ax.set_xticks(ax.get_xticks(), titles, rotation=35, ha="right", rotation_mode="anchor")
    ax.tick_params(length=0)
    ax.set(xlabel="Predicted", ylabel="True (each row sums to 100 %)")
    ax.set_title(title)
    return ax


def plot_size_distribution(
    table: pd.DataFrame,
    value: str,
    *,
    group: str | None = None,
    xlabel: str = "",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw how often which size occurs, as a histogram of each group.

    Args:
        table: One row an object.
        value: Column of sizes, say diameters in micrometres.
        group: Column of groups, each drawn in a colour of its own; None for one histogram.
        xlabel: Text with the unit; the column's name if empty.
        title: What to see in it.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If a column is not in the table, or the table is empty.
    """
    _check_columns(table, [value] if group is None else [value, group])
    if table.empty:
        raise ValueError("no object in the table, so there are no sizes to draw")
    ax = ax or plt.subplots()[1]
    colours = {} if group is None else {"palette": _group_colours(table[group].nunique())}
    lines = {} if group is None else {"fill": False, "linestyle": "-"}
    sns.histplot(table, x=value, hue=group, ax=ax, element="step", **colours, **lines)
    if group is not None and (legend := ax.get_legend()):
        legend.set(title=_words(group), frame_on=False)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=xlabel or _words(value), ylabel="Objects")
    ax.set_title(title)
    return ax


def _group_colours(count: int) -> list[str]:
    if count > len(SERIES_COLOURS):
        raise ValueError(f"{count} groups, but only {len(SERIES_COLOURS)} can be told apart")
    return list(SERIES_COLOURS[:count])


def _value_colours(values: pd.Series) -> dict[str, str]:
    """Give each value a colour, in the order of splits and then of appearance."""
    known = [name for name in ("train", "val", "test") if (values == name).any()]
    others = [v for v in values.unique() if v not in ("train", "val", "test", "")]
    named = [*known, *others]
    colours = dict(zip(named, _group_colours(len(named)), strict=True))
    return colours | ({"": _NO_SPLIT} if (values == "").any() else {})


def _check_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise ValueError(f"no column {missing}; the table has {list(table.columns)}")


def _words(name: str) -> str:
    """Return a column's name as a label: ``val_dice`` becomes "Validation Dice"."""
    spelled = {
        "val": "validation",
        "dice": "Dice",
        "iou": "IoU",
        "um": "(µm)",
        "lr": "learning rate",
    }
    text = " ".join(spelled.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]
