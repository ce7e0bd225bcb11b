import sys
import threading
import zlib

import cv2
import numpy as np
import pytest
from result_folders import discs
from viewer_cases import make_image, spoil_tile, write_results_of, write_slide

from renal_utils import viewer
from renal_utils.label_sources import open_labels
from renal_utils.labels import GLOMERULI, IGNORE_ID, KIDNEY_TISSUES
from renal_utils.records import ImageRecord
from renal_utils.segmented import read_segmented
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.tile_cache import TileCache
from renal_utils.viewer import view_slide
from renal_utils.viewer.tiles import TILE_PX, TileKey, TileQueue, TileReader

widget = pytest.importorskip("renal_utils.viewer.widget", reason="needs the extra [viewer]")
SIZE = (1100, 700)  # width, height; no multiple of a tile
PLACES = [(120, 100, 50, 1), (400, 200, 60, 1), (500, 60, 30, 1)]


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "slide.tiff", SIZE, tile_px=128)


@pytest.fixture
def results(slide, tmp_path):
    return write_results_of(slide, tmp_path / "results", SIZE, PLACES)


def write_labels(path, labels, **options):
    height, width = labels.shape
    write_pyramid(path, labels, size_px=(width, height), kind="labels", **options)
    return path


def put_together(reader, layer, z):
    """Return all tiles of a level side by side, in the places where their keys say they lie."""
    width, height = reader.slide.at_downsample(2**z).size_px
    columns, rows = -(-width // TILE_PX), -(-height // TILE_PX)
    return np.concatenate([
        np.concatenate([reader.read(TileKey(layer, z, c, r)) for c in range(columns)], axis=1)
        for r in range(rows)
    ])  # fmt: skip


@pytest.mark.parametrize("size", [SIZE, (1, 1), (256, 256), (257, 513), (90, 2100)])
def test_the_tiles_of_each_level_are_the_slide_at_that_scale(tmp_path, size):
    path = write_slide(tmp_path / "slide.tiff", size, tile_px=128)
    with open_slide(path) as slide:
        reader = TileReader(slide)
        for z in range(reader.num_levels):
            view = slide.at_downsample(2**z)
            together = put_together(reader, "slide", z)
            np.testing.assert_array_equal(together, view.read((0, 0), view.size_px))
            assert together.shape[1::-1] == view.size_px
        assert max(together.shape) <= TILE_PX
        assert reader.num_levels == 1 or max(view.size_px) * 2 >= TILE_PX


def test_there_are_no_tiles_beyond_the_slide(slide):
    with open_slide(slide) as opened:
        reader = TileReader(opened)
        last = reader.num_levels - 1
        for key in [("slide", 0, 5, 0), ("slide", 0, 0, 3), ("slide", 0, -1, 0), ("no", 0, 0, 0)]:
            with pytest.raises(ValueError, match="no tile"):
                reader.read(TileKey(*key))
        with pytest.raises(ValueError, match=f"levels 0 to {last}"):
            reader.read(TileKey("slide", last + 1, 0, 0))


def test_what_is_sent_decodes_to_what_was_read(slide, results):
    view = view_slide(slide, labels=results)
    for layer in ("slide", "labels", "probability"):
        for key in [TileKey(layer, 0, 4, 2), TileKey(layer, 1, 0, 0), TileKey(layer, 3, 0, 0)]:
            pixels, sent = view.reader.read(key), view.reader.encode(key)
            if layer == "slide":
                found = cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
                assert np.abs(found.astype(int) - pixels).mean() < 3
            else:
                found = np.frombuffer(zlib.decompress(sent), np.uint8)
                np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)
    view.close()


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_labels_lie_where_their_pixels_are_on_the_slide(slide, tmp_path, ratio):
    size = round(SIZE[1] / ratio), round(SIZE[0] / ratio)
    labels = np.random.default_rng(0).integers(0, 6, size, dtype=np.uint8)
    path = write_labels(tmp_path / "labels.tiff", labels)
    view = view_slide(slide, labels=path, label_set="kidney_tissues")
    repeated = labels.repeat(ratio, 0).repeat(ratio, 1)[: SIZE[1], : SIZE[0]]
    np.testing.assert_array_equal(put_together(view.reader, "labels", 0), repeated)
    if ratio > 1:
        z = ratio.bit_length() - 1
        np.testing.assert_array_equal(put_together(view.reader, "labels", z), labels)
    view.close()


def test_labels_are_never_blurred_at_any_level(slide, results):
    view = view_slide(slide, labels=results)
    with open_slide(results / "labels.ome.tiff") as file:
        labels = file.at_downsample(1).read_labels((0, 0), file.size_l0)
    for z in range(1, view.reader.num_levels):
        found = put_together(view.reader, "labels", z)
        step = 2 ** (z - 1)
        rows, columns = (np.arange(n) * step + step // 2 for n in found.shape)
        rows, columns = rows.clip(max=labels.shape[0] - 1), columns.clip(max=labels.shape[1] - 1)
        blocks = labels[rows][:, columns]
        assert set(np.unique(found)) == {0, 1}
        assert (found != blocks).mean() < 0.03  # borders only: another pixel of the same square
    view.close()


def test_a_truth_of_any_kind_is_laid_over(slide, tmp_path):
    truth = write_labels(tmp_path / "truth.tiff", discs(SIZE[::-1], PLACES))
    options = {"truth_kind": "label_image", "truth_path": truth, "label_set": "glomeruli"}
    with open_labels(ImageRecord("a", slide, **options)) as labels:
        view = view_slide(slide, labels=labels)
        found = put_together(view.reader, "labels", 1)
        np.testing.assert_array_equal(found, labels.read((0, 0), (550, 350), 2.0))
        view.close()


def test_probabilities_are_those_of_the_map(slide, results):
    view = view_slide(slide, labels=results)
    with open_slide(results / "probability.ome.tiff") as file:
        expected = file.at_downsample(2).read_channels((0, 0), (275, 175))[..., 0]
    np.testing.assert_array_equal(put_together(view.reader, "probability", 2), expected)
    assert view.reader.overlays["probability"].table[0, 3] == 0  # nothing there is clear
    view.close()


def test_a_tile_reads_only_what_it_needs(slide, monkeypatch):
    with open_slide(slide) as opened:
        seen = []
        decode = opened._source.tile
        monkeypatch.setattr(opened._source, "tile", lambda *at: seen.append(at) or decode(*at))
        reader = TileReader(opened)
        assert len(seen) == 1  # to find out whether it can be shown at all
        seen.clear()
        reader.read(TileKey("slide", 0, 2, 1))
        assert sorted(seen) == [(0, c, r) for c in (4, 5) for r in (2, 3)]
        seen.clear()
        reader.read(TileKey("slide", 2, 0, 0))
        assert {level for level, _, _ in seen} == {2}


def test_what_is_kept_is_bounded_and_is_not_read_again(slide):
    with open_slide(slide) as opened:
        reader = TileReader(opened)
        keys = [TileKey("slide", 0, c, r) for c in range(5) for r in range(3)]
        sizes = {key: len(reader.encode(key)) for key in keys}
        reader.cache = TileCache(max(sizes.values()) * 3)
        for key in keys:
            reader.encode(key)
            assert reader.cache.bytes_held <= reader.cache.max_bytes
    assert len(reader.encode(keys[-1])) == sizes[keys[-1]]  # the slide is closed by now
    with pytest.raises(ValueError, match="was closed"):
        reader.encode(keys[0])


@pytest.mark.parametrize("level", [0, 1])
def test_a_damaged_tile_is_grey_and_noted_and_the_rest_goes_on(slide, level):
    spoil_tile(slide, 4, level)  # of 9 (5) in a row; 128 pixels a side
    view = view_slide(slide)
    key, other = TileKey("slide", level, 2, 0), TileKey("slide", level, 0, 0)
    message, buffers = widget.answer(view.reader, key)
    assert (message["damaged"], message["error"], len(buffers)) == (1, "", 1)
    pixels = view.reader.read(key)
    assert (pixels[:128, :38] == pixels[0, 0]).all() and len(set(pixels[0, 0].tolist())) == 1
    image = make_image(SIZE)[:: 2**level, :: 2**level]
    assert (
        np.abs(pixels[128:256].astype(int) - image[128:256, 512 : 512 + pixels.shape[1]]).mean()
        < 12
    )
    assert widget.answer(view.reader, other)[0]["error"] == ""
    elsewhere = view.reader.read(TileKey("slide", 1 - level, 0, 0))
    assert np.abs(elsewhere[:128, :128].astype(int) - 170).max() > 20  # a level has its own damage
    view.close()


def test_damaged_overlays_are_empty_there(slide, results):
    spoil_tile(results / "labels.ome.tiff", 0)
    spoil_tile(results / "probability.ome.tiff", 0)
    view = view_slide(slide, labels=results)
    assert (view.reader.read(TileKey("labels", 1, 0, 0)) == IGNORE_ID).all()
    assert (view.reader.read(TileKey("probability", 1, 0, 0)) == 0).all()
    assert widget.answer(view.reader, TileKey("labels", 1, 1, 0))[0]["damaged"] == 2
    assert 1 in view.reader.read(TileKey("labels", 2, 0, 0))  # from a level that is whole
    view.close()


def test_ids_that_the_label_set_lacks_are_told_and_the_slide_still_comes(slide, tmp_path):
    labels = np.full(SIZE[::-1], 5, np.uint8)
    path = write_labels(tmp_path / "labels.tiff", labels)
    view = view_slide(slide, labels=path, label_set=GLOMERULI)
    message, buffers = widget.answer(view.reader, TileKey("labels", 0, 0, 0))
    assert "ids [5] are not of the label set 'glomeruli'" in message["error"] and not buffers
    assert widget.answer(view.reader, TileKey("slide", 0, 0, 0))[0]["error"] == ""
    view.close()


def test_the_page_is_told_sizes_scale_classes_and_colours(slide, results):
    view = view_slide(slide, labels=results, height_px=300)
    setup = view.setup
    assert (setup["size_l0"], setup["mpp"], setup["num_levels"]) == (list(SIZE), 0.5, 4)
    assert (setup["height_px"], setup["title"], view.shown) == (300, "slide.tiff", ["labels"])
    classes, probability = setup["layers"]
    titles = {one["id"]: one["title"] for one in classes["classes"]}
    assert titles == {1: "Glomerulus", IGNORE_ID: "Not labelled"}
    table = np.array(classes["table"]).reshape(256, 4)
    assert tuple(table[1, :3]) == GLOMERULI.classes[1].colour and table[0, 3] == 0
    assert probability["classes"] == []
    view.close()
    view = view_slide(slide, mpp=0.25)
    assert (view.setup["mpp"], view.setup["layers"], view.shown) == (0.25, [], [])
    view.close()


def send_wish(view, *keys, name="a"):
    content = {"kind": "want", "view": name, "tiles": [list(key) for key in keys]}
    view._handle_custom_msg(content, [])


def test_the_widget_sends_the_tiles_that_the_page_wants(slide, monkeypatch):
    sent, done = [], threading.Event()

    def send(self, content, buffers=None):
        sent.append((content, buffers))
        if len(sent) == 3:
            done.set()

    monkeypatch.setattr(widget.SlideWidget, "send", send)
    view = view_slide(slide)
    keys = [TileKey("slide", 0, 1, 1), TileKey("slide", 9, 0, 0), TileKey("slide", 3, 0, 0)]
    view._handle_custom_msg({"kind": "something else"}, [])
    send_wish(view, *keys)
    assert done.wait(20)
    assert [tuple(content["tile"]) for content, _ in sent] == keys
    assert [content["size"] for content, _ in sent] == [[256, 256], [0, 0], [138, 88]]
    assert "no tile" in sent[1][0]["error"]
    assert sent[0][1] == [view.reader.encode(keys[0])] and view.tiles_sent == 3
    view.close()


def test_going_somewhere_and_leaving(slide):
    view = view_slide(slide)
    assert (view.centre_l0, view.downsample) == ([], 0)
    view.go_to((300, 200.5), downsample=2)
    assert (view.centre_l0, view.downsample) == ([300.0, 200.5], 2.0)
    assert repr(view) == "SlideWidget('slide.tiff')"
    view.close()
    with pytest.raises(ValueError, match="was closed"):
        view.reader.read(TileKey("slide", 0, 0, 0))


class Gate:
    """Answers wishes one by one, each only when it is let through."""

    def __init__(self):
        self.answered, self.open = [], threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def __call__(self, key):
        self.begun.release()
        assert self.open.acquire(timeout=20)
        self.answered.append(key)

    def finish(self, count):
        for _ in range(count):
            self.open.release()
        worker = [one for one in threading.enumerate() if one.name == "slide view"]
        for one in worker:
            one.join(20)
            assert not one.is_alive()


def keys_of(*columns):
    return [TileKey("slide", 0, column, 0) for column in columns]


def test_only_the_last_wishes_are_answered_and_nobody_waits_for_them():
    gate = Gate()
    queue = TileQueue(gate)
    queue.want("a", keys_of(0, 1, 2))
    assert gate.begun.acquire(timeout=20)  # the first is being read, and yet this goes on
    queue.want("a", keys_of(7, 8))
    gate.finish(3)
    assert gate.answered == keys_of(0, 7, 8)
    queue.want("a", keys_of(3))  # and after it had nothing to do
    gate.finish(1)
    assert gate.answered[3:] == keys_of(3)


def test_two_views_of_one_slide_both_get_theirs():
    gate = Gate()
    queue = TileQueue(gate)
    queue.want("a", keys_of(0, 1))
    assert gate.begun.acquire(timeout=20)
    queue.want("b", keys_of(5, 6))
    gate.finish(4)
    assert gate.answered == keys_of(0, 5, 6, 1)


def test_a_failure_does_not_stop_later_wishes(monkeypatch):
    answered, failed = [], []
    monkeypatch.setattr(threading, "excepthook", lambda args: failed.append(args.exc_type))

    def fail_once(key):
        answered.append(key)
        if len(answered) == 1:
            raise MemoryError

    queue = TileQueue(fail_once)
    for wish in (keys_of(0), keys_of(1)):
        queue.want("a", wish)
        for one in threading.enumerate():
            if one.name == "slide view":
                one.join(20)
    assert (answered, failed) == (keys_of(0, 1), [MemoryError])


def test_what_does_not_fit_the_slide_is_refused(slide, results, tmp_path):
    small = write_labels(tmp_path / "small.tiff", np.zeros((300, 300), np.uint8))
    other = write_slide(tmp_path / "other.tiff", SIZE, mpp=0.25)
    with pytest.raises(ValueError, match=r"small\.tiff is \(300, 300\).*\(1100, 700\)"):
        view_slide(slide, labels=small, label_set="glomeruli")
    with pytest.raises(ValueError, match=r"small\.tiff is \(300, 300\)"):
        view_slide(slide, probability=small)
    with pytest.raises(ValueError, match=r"results was made from another file than .*other\.tiff"):
        view_slide(other, labels=results)
    with pytest.raises(ValueError, match=r"which classes .*labels.*label_set="):
        view_slide(slide, labels=results / "labels.ome.tiff")
    with pytest.raises(ValueError, match="no label set 'kidneys'; known:"):
        view_slide(slide, labels=results / "labels.ome.tiff", label_set="kidneys")
    with pytest.raises(ValueError, match="3 channels of uint8; a probability map has one"):
        view_slide(slide, probability=slide)
    with pytest.raises(ValueError, match="3 channels; a label image has one"):
        view_slide(slide, labels=slide, label_set=KIDNEY_TISSUES)


def test_missing_and_unsuitable_files_are_named(slide, results, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.tiff"):
        view_slide(tmp_path / "nothing.tiff")
    with pytest.raises(FileNotFoundError, match=r"nothing\.tiff"):
        view_slide(slide, labels=tmp_path / "nothing.tiff", label_set="glomeruli")
    with pytest.raises(ValueError, match="holds no finished results"):
        view_slide(slide, labels=tmp_path)
    with pytest.raises(ValueError, match=r"do not say where their slide lies.*labels=FOLDER"):
        view_slide(read_segmented(results))
    with pytest.raises(ValueError, match="height_px is 20; a view needs at least 200"):
        view_slide(slide, height_px=20)
    deep = tmp_path / "deep.tiff"
    write_pyramid(deep, np.zeros((64, 64), np.uint16), size_px=(64, 64), kind="labels")
    with pytest.raises(ValueError, match=r"1 channels of uint16.*8 bits"):
        view_slide(deep)


def test_a_segmented_slide_brings_all_it_needs(slide, results):
    view = view_slide(read_segmented(results, image=slide))
    assert list(view.reader.overlays) == ["labels", "probability"]
    assert 1 in view.reader.read(TileKey("labels", 0, 0, 0))
    view.close()


def test_without_the_extra_the_message_says_what_to_install(slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "renal_utils.viewer.widget")
    monkeypatch.delattr(viewer, "widget")
    with pytest.raises(ImportError, match=r"pip install renal-utils\[viewer\]"):
        view_slide(slide)
