import errno
import multiprocessing
import os
import re
import signal
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from renal_utils import slide_writing
from renal_utils.slides import open_slide, write_pyramid

SIZE = (301, 211)


def make_image(size=SIZE, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 256, (size[1] // 8 + 1, size[0] // 8 + 1, channels), dtype=np.uint8)
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC).reshape(*size[::-1], channels)


def read_all(path, downsample=1):
    with open_slide(path) as slide:
        view = slide.at_downsample(downsample)
        return view.read_channels((0, 0), view.size_px)


def cut(image, heights):
    stops = np.cumsum(heights)
    return [image[stop - height : stop] for stop, height in zip(stops, heights, strict=True)]


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "deflate", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_comes_back_at_every_level(tmp_path, compression, channels):
    image = make_image(channels=channels)
    path = tmp_path / "s.ome.tiff"
    write_pyramid(path, image, size_px=SIZE, tile_px=64, compression=compression, quality=92)
    with open_slide(path) as slide:
        assert [level.size_px for level in slide.levels] == [
            (301, 211), (151, 106), (76, 53), (38, 27),
        ]  # fmt: skip
        assert [level.downsample for level in slide.levels] == [1, 2, 4, 8]
    tolerance = 0 if compression in ("deflate", "none") else 4  # another level differs by 40
    assert np.abs(read_all(path).astype(int) - image).mean() <= tolerance
    means = image[:208, :296].reshape(52, 4, 74, 4, channels).mean((1, 3))
    assert np.abs(read_all(path, 4)[:52, :74] - means).mean() < 1 + tolerance


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 211), max_size=12))
def test_the_heights_of_the_bands_make_no_difference(tmp_path_factory, cuts):
    image = make_image()
    folder = tmp_path_factory.mktemp("bands")
    heights = np.diff(sorted({0, *cuts, 211})).tolist()
    for folder_name, rows in (("whole", image), ("bands", iter(cut(image, heights)))):
        (folder / folder_name).mkdir()
        write_pyramid(folder / folder_name / "s.tiff", rows, size_px=SIZE, tile_px=64, mpp=0.5)
    assert (folder / "whole" / "s.tiff").read_bytes() == (folder / "bands/s.tiff").read_bytes()


def test_a_caller_may_reuse_one_array_for_all_bands(tmp_path):
    image = make_image((100, 90))

    def bands():
        band = np.empty((10, 100, 3), np.uint8)
        for y in range(0, 90, 10):
            band[:] = image[y : y + 10]
            yield band

    write_pyramid(tmp_path / "s.tif", bands(), size_px=(100, 90), tile_px=32, compression="none")
    np.testing.assert_array_equal(read_all(tmp_path / "s.tif"), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_labels_stay_labels_at_every_level(tmp_path, dtype):
    ids = np.random.default_rng(0).choice(
        np.array([0, 3, 7, np.iinfo(dtype).max], dtype), (211, 301)
    )
    path = tmp_path / "labels.ome.tiff"
    write_pyramid(path, cut(ids, [100, 1, 110]), size_px=SIZE, tile_px=64, kind="labels")
    with open_slide(path) as slide:
        assert slide.dtype == dtype
        np.testing.assert_array_equal(slide.at_downsample(1).read_labels((0, 0), SIZE), ids)
    with tifffile.TiffFile(path) as tif:
        levels = [level.asarray() for level in tif.series[0].levels]
    assert len(levels) == 4
    np.testing.assert_array_equal(levels[1][:105, :150], ids[1::2, 1::2])
    for level in levels:
        assert set(np.unique(level)) <= {0, 3, 7, np.iinfo(dtype).max}


def test_probabilities_of_many_classes_come_back_with_their_means(tmp_path):
    maps = np.random.default_rng(0).integers(0, 256, (200, 304, 6), dtype=np.uint8)
    path = tmp_path / "p.ome.tiff"
    write_pyramid(path, maps, size_px=(304, 200), tile_px=64, kind="probability")
    np.testing.assert_array_equal(read_all(path), maps)
    means = maps.reshape(100, 2, 152, 2, 6).mean((1, 3))
    np.testing.assert_allclose(read_all(path, 2), means, atol=0.5)


def test_the_scale_is_written_for_ome_and_for_plain_readers(tmp_path):
    path = tmp_path / "s.ome.tiff"
    write_pyramid(path, make_image(), size_px=SIZE, tile_px=64, mpp=0.25)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome and 'PhysicalSizeX="0.25"' in tif.ome_metadata
        pages = [level.keyframe for level in tif.series[0].levels]
        assert [1e4 / page.resolution[0] for page in pages] == pytest.approx([0.25, 0.5, 1, 2])
        assert str(path.parent) not in tif.ome_metadata
    with open_slide(path) as slide:
        assert slide.mpp == 0.25
    write_pyramid(path, make_image(), size_px=SIZE, tile_px=64)
    with open_slide(path) as slide:
        assert slide.mpp is None


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_openslide_reads_what_is_written(tmp_path, compression):
    openslide = pytest.importorskip("openslide")
    image = make_image((640, 480))
    path = tmp_path / "s.tiff"
    write_pyramid(path, image, size_px=(640, 480), mpp=0.5, tile_px=128, compression=compression)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (640, 480)
        found = np.asarray(slide.read_region((0, 0), 0, (640, 480)))[:, :, :3]
    assert np.abs(found.astype(int) - read_all(path)).max() <= 3


def test_better_quality_is_closer_and_larger(tmp_path):
    image = make_image()
    found = []
    for quality in (40, 80, 95):
        path = tmp_path / f"{quality}.tif"
        write_pyramid(path, image, size_px=SIZE, tile_px=64, quality=quality)
        found.append((np.abs(read_all(path).astype(int) - image).mean(), -path.stat().st_size))
    assert found == sorted(found, reverse=True)


def test_a_file_that_may_pass_4_gb_is_a_bigtiff(tmp_path, monkeypatch):
    for limit, big in ((10**9, False), (10**5, True)):
        monkeypatch.setattr(slide_writing, "_BIG", limit)
        write_pyramid(tmp_path / "s.tif", make_image(), size_px=SIZE, tile_px=64)
        with tifffile.TiffFile(tmp_path / "s.tif") as tif:
            assert tif.is_bigtiff is big
        assert read_all(tmp_path / "s.tif").shape == (211, 301, 3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height(tmp_path, monkeypatch):
    monkeypatch.setattr(slide_writing, "_BUFFER_BYTES", 2**20)

    def bands(height):
        band = np.random.default_rng(0).integers(0, 256, (256, 2048), dtype=np.uint8)
        for _ in range(height // 256):
            yield band

    peaks = []
    for height in (1024, 1024, 8192):  # the first one also pays for what is loaded once
        tracemalloc.start()
        write_pyramid(tmp_path / "s.tif", bands(height), size_px=(2048, height), tile_px=256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1], peaks
    assert peaks[2] < 2048 * 8192 / 2


# Bad input leaves nothing


def files_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize(
    "rows, options, words",
    [
        ([], {}, "no rows were given, expected 211"),
        (cut(make_image(), [100]), {}, "rows end at 100, expected 211"),
        (cut(make_image((301, 300)), [200, 100]), {}, "go on behind row 211"),
        (cut(make_image(), [211]) * 2, {}, "go on behind row 211"),
        ([make_image((300, 211))], {}, "expected 301 pixels"),
        ([make_image()[:100], make_image()[100:].astype(np.uint16)], {}, "of uint16 at row 100"),
        ([make_image().astype(np.float32)], {}, "float32 were given"),
        ([make_image(channels=2)], {}, "2 channels of uint8 were given"),
        ([make_image()], {"kind": "labels"}, "3 channels of uint8 were given"),
        ([make_image()], {"kind": "mask"}, "kind 'mask' is not one of"),
        ([make_image()], {"compression": "lzma"}, "'lzma' is not one of"),
        ([make_image()[:, :, 0]], {"kind": "labels", "compression": "jpeg"}, "would change labels"),
        ([make_image()], {"tile_px": 100}, "multiple of 16"),
        ([make_image()], {"mpp": 5000.0}, "5000.0 microns"),
        ([make_image()], {"mpp": -1}, "-1.0 microns"),
        ([make_image()], {"quality": 0}, "quality 0"),
        ([make_image()], {"size_px": (0, 211)}, "must be positive"),
    ],
)
def test_bad_input_is_refused_by_name_and_leaves_nothing(tmp_path, rows, options, words):
    with pytest.raises(ValueError, match=r"s\.tif.*" + re.escape(words)):
        write_pyramid(tmp_path / "s.tif", iter(rows), **{"size_px": SIZE, "tile_px": 64} | options)
    assert files_in(tmp_path) == []


def test_an_error_of_the_source_passes_through_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "s.tif"
    write_pyramid(path, make_image(), size_px=SIZE, tile_px=64)
    before = path.read_bytes()

    def bands():
        yield make_image()[:150]
        raise RuntimeError("the network gave NaN")

    with pytest.raises(RuntimeError, match="the network gave NaN"):
        write_pyramid(path, bands(), size_px=SIZE, tile_px=64)
    assert files_in(tmp_path) == ["s.tif"] and path.read_bytes() == before


@pytest.mark.parametrize("compression", ["none", "deflate", "jpeg"])
def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(small_disk, compression):
    folder = small_disk(2)
    path = folder / "s.tif"
    write_pyramid(path, make_image(), size_px=SIZE, tile_px=64)
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    with pytest.raises(OSError, match=r"no space left while writing .*s\.tif") as caught:
        write_pyramid(path, noise, size_px=(2000, 2000), tile_px=256, compression=compression)
    assert caught.value.errno == errno.ENOSPC
    assert files_in(folder) == ["s.tif"] and path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking while threads exist
def test_a_kill_leaves_no_file_at_the_target(tmp_path):
    path = tmp_path / "s.tif"

    def bands():
        yield from cut(make_image(), [100, 100])
        assert files_in(tmp_path)  # the partial file and the folder of the next level
        os.kill(os.getpid(), signal.SIGKILL)

    worker = multiprocessing.get_context("fork").Process(
        target=lambda: write_pyramid(path, bands(), size_px=SIZE, tile_px=64)
    )
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert not path.exists()
