"""Pictures: images, overlays, probability maps, each with a scale bar.

The axes keep the image's own pixel coordinates, whatever size it is drawn at. Large images are
shrunk before drawing (colours by area mean, labels by the nearest pixel), so that a slide's
thumbnail costs no more than it shows and outlines are equally thick in all pictures.
"""

from collections.abc import Sequence

import cv2
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from renal_utils.geometry import check_mpp
from renal_utils.labels import IGNORE_ID, LabelSet

RgbImage = UInt8[np.ndarray, "H W 3"]

_DRAWN_PX = 640  # longest side of what is drawn
_FILL = 0.45  # opacity of filled classes
_VEIL = 0.6  # opacity of the white over what nobody labelled
_OUTLINE_SHARE = 0.006  # thickness of outlines as a share of the longest side


def show_image(
    rgb: RgbImage, *, mpp: float | int | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw an image with a scale bar.

    Args:
        rgb: Image, 0 to 255.
        mpp: Microns per pixel of this image; None draws the bar in pixels and says so.
        title: What to see in it.
        ax: Where to draw; None opens a new figure.
    """
    return _draw(_shrink(rgb), size=rgb.shape[:2], mpp=mpp, title=title, ax=ax)


def plot_overlay(
    rgb: RgbImage,
    labels: UInt8[np.ndarray, "h w"],
    label_set: LabelSet,
    *,
    mpp: float | int | None = None,
    title: str = "",
    outline: bool = False,
    legend: bool = True,
    scale_bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw an image with its classes over it, and a legend of those that occur.

    Background stays as it is; pixels that nobody labelled (255) are whitened.

    Args:
        rgb: Image, 0 to 255.
        labels: Class ids of its pixels.
        label_set: What the ids mean, and their colours.
        mpp: Microns per pixel of this image, or None.
        title: What to see in it.
        outline: Draw the borders of the classes instead of filling them.
        legend: Whether to draw one; leave it out where a neighbour in the figure has the same.
        scale_bar: Whether to draw one, likewise.
        ax: Where to draw; None opens a new figure.

    Raises:
        ValueError: If image and labels differ in size, or an id is not of the label set.
    """
    if rgb.shape[:2] != labels.shape:
        raise ValueError(f"image is {rgb.shape[:2]} (H, W), but its labels are {labels.shape}")
    small, ids = _shrink(rgb), _shrink_labels(labels)
    painted = _outline(small, ids, label_set) if outline else _fill(small, ids, label_set)
    occurring = _occurring(labels, label_set)
    entries = _legend_entries(occurring, label_set) if legend else []
    if ax is None:  # room for the legend, so that it does not squeeze the picture
        width, height = _figure_size(labels.shape[1], labels.shape[0])
        legend_rows = -(-len(entries) // 2)
        ax = plt.subplots(figsize=(max(width, 3.6), height + 0.22 * legend_rows))[1]
    draw = _draw if scale_bar else _draw_plain
    draw(painted, size=labels.shape, mpp=mpp, title=title, ax=ax)
    if entries:
        columns = min(2, len(entries))
        corner = (0, -0.01)
        ax.legend(
            handles=entries,
            ncols=columns,
            loc="upper left",
            bbox_to_anchor=corner,
            borderaxespad=0.2,
        )
    return ax


def plot_probability(
    probability: Float[np.ndarray, "H W"],
    *,
    mpp: float | int | None = None,
    title: str = "",
    label: str = "Probability",
    top: float | int = 1,
    ax: Axes | None = None,
) -> Axes:
    """Draw a probability map, 0 to 1, or another map of numbers from 0, with a colour bar.

    Args:
        probability: Of one class.
        mpp: Microns per pixel, or None.
        label: What the numbers are, for the colour bar.
        top: Number that gets the last colour.
        title: What to see in it.
        ax: Where to draw; None opens a new figure.
    """
    shrunk = _shrink(probability.astype(np.float32))
    ax = _draw(shrunk, size=probability.shape, mpp=mpp, title=title, ax=ax)
    ax.images[0].set(cmap="viridis", clim=(0, top))
    ax.figure.colorbar(ax.images[0], cax=ax.inset_axes((1.02, 0, 0.04, 1)), label=label)
    return ax


def plot_grid(
    images: Sequence[RgbImage],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 4,
    mpp: float | int | None = None,
    cell_inches: float | int = 1.6,
    heading: str = "",
) -> np.ndarray:
    """Draw images side by side, row by row; the first one gets the scale bar.

    Args:
        images: All of the same scale.
        titles: One each, or None.
        columns: Images in a row.
        mpp: Microns per pixel of all of them, or None.
        cell_inches: Width of one image.
        heading: Over all of them: what to see.

    Returns:
        The axes of the images, in order.

    Raises:
        ValueError: If there is no image, or titles and images differ in number.
    """
    if not len(images):
        raise ValueError("no image to draw")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images; give one each or none")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = columns * cell_inches, rows * (cell_inches + (0.25 if titles else 0))
    figure, grid = plt.subplots(
        rows, columns, figsize=(size[0], size[1] + (0.3 if heading else 0)), squeeze=False
    )
    if heading:
        figure.suptitle(heading, x=0.01, ha="left")
    for ax in grid.flat[len(images) :]:
        ax.remove()
    for index, image in enumerate(images):
        title = titles[index] if titles else ""
        show = show_image if index == 0 else _draw_plain
        show(image, mpp=mpp, title=title, ax=grid.flat[index])
    return grid.ravel()[: len(images)]


def open_axes(size_px: tuple[int, int], *, inches: float | int = 4.6) -> Axes:
    """Open a figure for one picture.

    Args:
        size_px: Width and height of the picture.
        inches: On its longest side; a page has 100 pixels an inch.
    """
    return plt.subplots(figsize=_figure_size(*size_px, inches=inches))[1]


def add_scale_bar(ax: Axes, mpp: float | int | None) -> Axes:
    """Draw a bar of a round length, about a quarter of the picture's width, at its bottom right.

    Args:
        ax: Axes whose coordinates are the image's pixels.
        mpp: Microns per pixel; None measures in pixels and says so.
    """
    scale = 1.0 if mpp is None else check_mpp(float(mpp))
    left, right = sorted(ax.get_xlim())
    top, bottom = sorted(ax.get_ylim())
    width, height = right - left, bottom - top
    length = _round_length(width * scale / 4)
    end, line = right - 0.04 * width, bottom - 0.05 * height
    dark = [patheffects.withStroke(linewidth=4.5, foreground="black")]
    start = end - length / scale
    (bar,) = ax.plot([start, end], [line, line], color="white", linewidth=2.5, linestyle="-")
    bar.set(solid_capstyle="butt", path_effects=dark)
    text = ax.annotate(
        _length_text(length, known=mpp is not None),
        (end, line),
        (0, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color="white",
        fontsize=8.5,
    )
    text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return ax


def _draw(
    image: np.ndarray,
    *,
    mpp: float | int | None,
    title: str,
    ax: Axes | None,
    size: tuple[int, int],
) -> Axes:
    """Draw an already shrunk image in the coordinates of its full (height, width)."""
    ax = _draw_plain(image, mpp=mpp, title=title, ax=ax, size=size)
    return add_scale_bar(ax, mpp)


def _draw_plain(
    image: np.ndarray,
    *,
    mpp: float | int | None = None,
    title: str = "",
    ax: Axes | None = None,
    size: tuple[int, int] | None = None,
) -> Axes:
    """Draw an image without a scale bar; ``mpp`` is taken and not used."""
    height, width = size or image.shape[:2]
    if ax is None:
        _, ax = plt.subplots(figsize=_figure_size(width, height))
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(_shrink(image), extent=extent, interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.6, color="0.6")
    if title:
        ax.set_title(title)
    return ax


def _figure_size(width: int, height: int, *, inches: float | int = 4.6) -> tuple[float, float]:
    """Return inches that fit the picture: so many on the longest side, 1.5 or more on the other."""
    scale = inches / max(width, height)
    return max(1.5, scale * width), max(1.5, scale * height + 0.3)


def _shrink(image: np.ndarray) -> np.ndarray:
    factor = max(image.shape[:2]) / _DRAWN_PX
    if factor <= 1:
        return image
    size = max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _shrink_labels(labels: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
    factor = max(labels.shape) / _DRAWN_PX
    if factor <= 1:
        return labels
    size = max(1, round(labels.shape[1] / factor)), max(1, round(labels.shape[0] / factor))
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _occurring(labels: UInt8[np.ndarray, "H W"], label_set: LabelSet) -> list[int]:
    found = [int(i) for i in np.flatnonzero(np.bincount(labels.ravel(), minlength=256))]
    unknown = [i for i in found if i >= len(label_set.classes) and i != IGNORE_ID]
    if unknown:
        raise ValueError(f"labels hold ids {unknown}, unknown to label set {label_set.name!r}")
    return found


def _is_drawn(ids: UInt8[np.ndarray, "H W"], label_set: LabelSet) -> Bool[np.ndarray, "H W"]:
    drawn = ids != IGNORE_ID
    return drawn & (ids != 0) if label_set.has_background else drawn


def _fill(image: RgbImage, ids: UInt8[np.ndarray, "H W"], label_set: LabelSet) -> RgbImage:
    opacity = np.where(_is_drawn(ids, label_set), _FILL, 0.0)
    opacity = np.where(ids == IGNORE_ID, _VEIL, opacity)[..., None]
    return np.rint(image * (1 - opacity) + label_set.colours[ids] * opacity).astype(np.uint8)


def _outline(image: RgbImage, ids: UInt8[np.ndarray, "H W"], label_set: LabelSet) -> RgbImage:
    """Paint the inner rim of every class in its colour."""
    painted = _fill(image, np.where(ids == IGNORE_ID, ids, 0).astype(np.uint8), label_set)
    thickness = max(1, round(max(ids.shape) * _OUTLINE_SHARE))
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    for label_class in label_set.foreground:
        inside = (ids == label_class.id).astype(np.uint8)
        core = cv2.erode(inside, kernel, borderType=cv2.BORDER_REPLICATE)
        painted[(inside - core).astype(bool)] = label_class.colour
    return painted


def _legend_entries(occurring: Sequence[int], label_set: LabelSet) -> list[Patch]:
    entries = [(c.title, _unit_rgb(c.colour)) for c in label_set.foreground if c.id in occurring]
    if IGNORE_ID in occurring:
        entries.append(("Unlabelled", (1.0, 1.0, 1.0)))
    return [
        Patch(facecolor=colour, edgecolor="0.3", linewidth=0.5, label=title)
        for title, colour in entries
    ]


def _unit_rgb(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _round_length(length: float) -> float:
    """Return the round number (1, 2 or 5 times a power of ten) that is nearest in ratio."""
    power = 10 ** np.floor(np.log10(length))
    candidates = np.array([1, 2, 5, 10]) * power
    return float(candidates[np.argmin(np.abs(np.log(candidates / length)))])


def _length_text(length: float, *, known: bool) -> str:
    if not known:
        return f"{length:g} px"
    return f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
