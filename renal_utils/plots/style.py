"""The look of every figure: fonts, colours, and figures small enough for a committed notebook.

A figure of tissue as full-colour PNG takes 300 KB and more. In notebooks it is therefore stored
with a palette of 256 colours chosen for it, which looks the same at a third of the size, and with
an alternative text made of its titles, for readers who cannot see it.
"""

import base64
import functools
import io
import sys
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from jaxtyping import Integer, UInt8
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

from renal_utils.labels import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW

# Colours that a palette holds where they occur, however small the legend that shows them.
_CLASS_COLOURS = (BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW)
_GREYS = tuple((grey, grey, grey) for grey in range(0, 256, 17))

# Okabe and Ito's colours, those first that stand out on white; yellow is too pale for lines.
SERIES_COLOURS = tuple(
    "#{:02x}{:02x}{:02x}".format(*rgb) for rgb in (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
)
_STYLES = ("-", "--", "-.", ":", "-", "--")

_SETTINGS: Any = {
    "figure.figsize": (5.2, 3.6),
    "figure.dpi": 88,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 88,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=SERIES_COLOURS) + cycler(linestyle=_STYLES),
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "image.cmap": "viridis",
}


def use_course_style(*, palette: int = 256) -> None:
    """Set the course's fonts, sizes and colours; in a notebook also store figures small.

    Args:
        palette: Colours of a stored figure, 32 to 256. Tissue of one stain needs few, which
            make a figure smaller, for lessons of many pictures.

    Raises:
        ValueError: If ``palette`` is out of range.
    """
    _check_palette(palette)
    mpl.rcParams.update(_SETTINGS)
    if shell := _notebook_shell():
        plt.switch_backend(mpl.get_backend())  # the backend, loaded later, would overrule us
        formatter = shell.display_formatter.formatters["image/png"]
        formatter.for_type(Figure, functools.partial(_encode_figure, palette=palette))


def course_style() -> AbstractContextManager[None]:
    """Return a context in which figures look as in the course; settings are as before after it."""
    return mpl.rc_context(_SETTINGS)


def alternative_text(figure: Figure) -> str:
    """Return what a figure says of itself: its titles, and the labels of its axes."""
    parts = [figure.get_suptitle()]
    for ax in figure.axes:
        parts.append(ax.get_title() or ax.get_title("left"))
        labels = [f"{name}: {text}" for name, text in _labels(ax) if text]
        parts.append(f"({', '.join(labels)})" if labels else "")
    return " ".join(part for part in parts if part) or "Figure without a title"


def figure_png(figure: Figure, *, palette: int = 256) -> bytes:
    """Return a figure as PNG with a palette of so many colours, chosen for it.

    Raises:
        ValueError: If ``palette`` is not within 32 to 256.
    """
    _check_palette(palette)
    drawn, stored = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", facecolor="white")
    drawn.seek(0)
    with Image.open(drawn) as image:
        _quantise(image.convert("RGB"), palette).save(stored, format="png", optimize=True)
    return stored.getvalue()


def take_picture(ax: mpl.axes.Axes, *, palette: int = 256) -> tuple[bytes, str]:
    """Return the figure of ``ax`` as PNG with its alternative text, and close it."""
    figure = ax.get_figure(root=True)
    try:
        return figure_png(figure, palette=palette), alternative_text(figure)
    finally:
        plt.close(figure)


def _check_palette(palette: int) -> None:
    if not 32 <= palette <= 256:
        raise ValueError(f"a palette has 32 to 256 colours, not {palette}")


def _quantise(image: Image.Image, count: int) -> Image.Image:
    """Reduce an image to few colours: greys, the classes' that occur, and those chosen for it."""
    # PIL's own search for the nearest colour is coarse: white would come out as some pale grey
    pixels = np.asarray(image).reshape(-1, 3)
    colours, where, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    present = set(map(tuple, colours.tolist()))
    fixed = np.array([*_GREYS, *(rgb for rgb in _CLASS_COLOURS if rgb in present)], np.uint8)
    palette = _add_colours(fixed, colours, counts, count - len(fixed))
    nearest = cKDTree(palette).query(colours)[1].astype(np.uint8)
    quantised = Image.fromarray(nearest[where].reshape(image.height, image.width))
    quantised.putpalette(palette.ravel().tolist())
    return quantised


def _add_colours(
    fixed: UInt8[np.ndarray, "F 3"],
    colours: UInt8[np.ndarray, "N 3"],
    counts: Integer[np.ndarray, "N"],
    number: int,
) -> UInt8[np.ndarray, "M 3"]:
    """Return the fixed colours and ``number`` more, near those of the image.

    Each colour weighs by the root of its pixels. By all of its pixels a slide's background, ten
    shades of nearly white, would take most of the palette, and a stroke of green ink turn black.
    """
    coarse, group = np.unique(colours // 4, axis=0, return_inverse=True)
    weights = np.sqrt(np.bincount(group.ravel(), counts))
    places = coarse * 4.0 + 1.5  # the middles of cubes of 4 x 4 x 4 colours
    chosen = fixed.astype(float)
    apart = cKDTree(chosen).query(places)[0] ** 2
    for _ in range(number):  # what is worst off gets the next
        worst = places[(weights * apart).argmax()]
        chosen = np.vstack([chosen, worst])
        apart = np.minimum(apart, ((places - worst) ** 2).sum(axis=1))
    for _ in range(8):  # k-means, in which the fixed ones stay
        nearest = cKDTree(chosen).query(places)[1]
        total = np.bincount(nearest, weights, len(chosen))
        sums = [np.bincount(nearest, weights * axis, len(chosen)) for axis in places.T]
        moved = total > 0
        moved[: len(fixed)] = False
        chosen[moved] = np.stack(sums, axis=1)[moved] / total[moved, None]
    return chosen.round().astype(np.uint8)


def _encode_figure(figure: Figure, *, palette: int) -> tuple[str, dict[str, str]] | None:
    """Return what Jupyter stores: the PNG as text, and its metadata."""
    if not figure.axes:
        return None
    png = figure_png(figure, palette=palette)
    return base64.b64encode(png).decode(), {"alt": alternative_text(figure)}


def _labels(ax: mpl.axes.Axes) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("x", ax.get_xlabel()), ("y", ax.get_ylabel())


def _notebook_shell() -> Any:
    """Return the running Jupyter shell, or None; outside of one IPython is not even imported."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if shell is not None and hasattr(shell, "kernel") else None
