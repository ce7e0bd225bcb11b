"""An interactive view of a slide inside JupyterLab: pan, zoom, classes and probabilities over it.

``view_slide`` gives a widget. The browser asks for the tiles that it shows, the kernel reads them
from the local file and sends them over the notebook's own connection (anywidget's messages). So
there is no web server and no port to open, and it works through JupyterHub and without a network.

Why not a viewer that exists: those that show tiles in a notebook serve them from a web server of
their own, which needs a proxy on a remote hub (localtileserver), or read only what OpenSlide reads,
which leaves out label maps and truths in polygons or run lengths (jupyter-islide). OpenSeadragon
would have to be copied in and still be taught to ask the kernel. What is needed here, tiles on a
canvas, is some 300 lines, and goes through ``slides`` like all other reading.

Modules: ``overlays`` (what lies over a slide), ``tiles`` (reading and queueing), ``widget`` (the
only one that needs anywidget), ``slide_view.js`` (the browser's side).
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from renal_utils.label_sources import LabelSource
from renal_utils.labels import LabelSet
from renal_utils.segmented import SegmentedSlide
from renal_utils.slides import open_slide
from renal_utils.viewer.overlays import open_overlays
from renal_utils.viewer.tiles import TileReader

if TYPE_CHECKING:
    from renal_utils.viewer.widget import SlideWidget

__all__ = ["view_slide"]


def view_slide(
    slide: str | Path | SegmentedSlide,
    *,
    labels: str | Path | LabelSource | SegmentedSlide | None = None,
    probability: str | Path | None = None,
    label_set: LabelSet | str | None = None,
    mpp: float | int | None = None,
    height_px: int = 560,
) -> "SlideWidget":
    """Show a slide to pan and zoom in; show the result as the last line of a cell.

    Args:
        slide: Any file that ``open_slide`` reads, or a segmented slide that knows its image.
        labels: Classes to lay over it: a folder that ``renal segment`` wrote, a segmented slide, a
            truth from ``open_labels``, or a label image of the slide at any whole or part scale.
        probability: Probability map, 8-bit, 255 for 1. A folder of results brings its own.
        label_set: Of a label image, or its name. All other ``labels`` know theirs.
        mpp: Microns per pixel of the slide at level 0, where the file does not say it.
        height_px: Of the view, at least 200.

    Raises:
        ImportError: If anywidget is not installed.
        FileNotFoundError: If a file is not there.
        ValueError: If a file cannot be read or shown, or what lies over the slide is of another
            size or was made from another slide.
    """
    if height_px < 200:
        raise ValueError(f"height_px is {height_px}; a view needs at least 200")
    make_widget = _widget_class()
    if isinstance(slide, SegmentedSlide):
        labels = slide if labels is None else labels
        slide = _image_of(slide)
    with ExitStack() as files:
        opened = files.enter_context(open_slide(slide, mpp=mpp, skip_damaged=True))
        overlays = open_overlays(
            opened, labels, probability=probability, label_set=label_set, files=files
        )
        reader = TileReader(opened, overlays)
        reader.files = files.pop_all()
    return make_widget(reader, height_px=height_px)


def _image_of(segmented: SegmentedSlide) -> Path:
    if segmented.image is None:
        raise ValueError(
            f"the results in {segmented.folder} do not say where their slide lies; give "
            "view_slide(SLIDE, labels=FOLDER), or read_segmented(FOLDER, image=SLIDE)"
        )
    return segmented.image


def _widget_class() -> type["SlideWidget"]:
    try:
        from renal_utils.viewer.widget import SlideWidget
    except ModuleNotFoundError as error:
        if error.name != "anywidget":
            raise
        raise ImportError(
            "the slide view needs anywidget, which is not installed: pip install "
            "renal-utils[viewer], and load the page of the notebook anew"
        ) from error
    return SlideWidget
