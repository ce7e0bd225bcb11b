"""The widget: what JupyterLab shows, and how it asks the kernel for tiles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from renal_utils.runtime import display_path
from renal_utils.viewer.tiles import TILE_PX, TileKey, TileQueue, TileReader

_HERE = Path(__file__).parent


class SlideWidget(anywidget.AnyWidget):
    """A slide on the page. Its traits follow what is done there, and may be set from Python.

    Attributes:
        centre_l0: Level-0 pixel in the middle; empty shows the whole slide.
        downsample: Level-0 pixels a pixel of the page; 0 fits the slide into the view.
        shown: Names of the overlays that are switched on.
        hidden: Ids of the classes that are switched off.
        opacity: Of the overlays, 0 to 1.
        outline: Draw the borders of the classes instead of filling them.
        tiles_sent: How many the kernel has read and sent.
    """

    _esm = _HERE / "slide_view.js"
    _css = _HERE / "slide_view.css"
    setup = traitlets.Dict().tag(sync=True)
    centre_l0 = traitlets.List(traitlets.Float(), maxlen=2).tag(sync=True)
    downsample = traitlets.Float(0.0, min=0.0).tag(sync=True)
    shown = traitlets.List(traitlets.Unicode()).tag(sync=True)
    hidden = traitlets.List(traitlets.Int()).tag(sync=True)
    opacity = traitlets.Float(0.5, min=0.0, max=1.0).tag(sync=True)
    outline = traitlets.Bool(False).tag(sync=True)

    def __init__(self, reader: TileReader, *, height_px: int = 560) -> None:
        self.reader, self.tiles_sent = reader, 0
        self._queue = TileQueue(self._send_tile)
        first = list(reader.overlays)[:1]
        super().__init__(setup=describe(reader, height_px), shown=first)
        self.on_msg(self._receive)

    def go_to(self, xy_l0: tuple[float | int, float | int], *, downsample: float | int = 1) -> None:
        """Move the view to a level-0 pixel, such as an object's centre in ``objects.csv``."""
        with self.hold_sync():
            self.centre_l0, self.downsample = [float(xy_l0[0]), float(xy_l0[1])], float(downsample)

    def __repr__(self) -> str:
        return f"SlideWidget({self.setup['title']!r})"

    def close(self) -> None:
        """Take the view off the page and close its files."""
        super().close()
        if hasattr(self, "reader"):
            self.reader.close()

    def _receive(self, _: Any, message: Any, __: Any) -> None:
        """Note what a view wants; what is no wish of a view is left alone."""
        if isinstance(message, Mapping) and message.get("kind") == "want":
            keys = [TileKey(str(k[0]), int(k[1]), int(k[2]), int(k[3])) for k in message["tiles"]]
            self._queue.want(str(message["view"]), keys)

    def _send_tile(self, key: TileKey) -> None:
        message, buffers = answer(self.reader, key)
        if self.comm is not None:
            self.tiles_sent += 1
            self.send(message, buffers)


def describe(reader: TileReader, height_px: int) -> dict[str, Any]:
    """Return what the page has to know before the first tile: sizes, scale, layers, colours."""
    layers = [
        {"name": one.name, "table": one.table.ravel().tolist(), "classes": list(one.classes)}
        for one in reader.overlays.values()
    ]
    return {
        "title": display_path(reader.slide.path),
        "size_l0": list(reader.slide.size_l0),
        "mpp": reader.slide.mpp,
        "tile_px": TILE_PX,
        "num_levels": reader.num_levels,
        "layers": layers,
        "height_px": height_px,
    }


def answer(reader: TileReader, key: TileKey) -> tuple[dict[str, Any], list[bytes]]:
    """Return the message that brings a tile, or says why it cannot be shown."""
    message: dict[str, Any] = {"kind": "tile", "tile": list(key), "size": [0, 0], "error": ""}
    try:
        box = reader.box(key)
        message["size"] = [box.width, box.height]
        buffers = [reader.encode(key)]
    except (ValueError, OSError) as error:
        message["error"], buffers = str(error), []
    message["damaged"] = reader.count_damaged()
    return message, buffers
