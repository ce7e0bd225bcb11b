import threading

import numpy as np
import pytest

from renal_utils import slides
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.window_reader import find_tissue, grow_by_one, read_ahead, read_windows
from renal_utils.windows import plan_windows


def _slide(folder, size_px, *, seed=0, mpp=0.5):
    width, height = size_px
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path = folder / f"slide_{seed}.ome.tiff"
    write_pyramid(path, pixels, size_px=size_px, mpp=mpp, tile_px=64, compression="none")
    return path


@pytest.mark.parametrize("downsample", [1.0, 2.0, 1.3])
@pytest.mark.parametrize("patch", [48, 700])
def test_windows_are_the_pixels_of_the_view(tmp_path, downsample, patch):
    with open_slide(_slide(tmp_path, (300, 1500))) as slide:
        view = slide.at_downsample(downsample)
        positions = plan_windows(view.size_px, patch, patch * 2 // 3)[::3]
        seen = 0
        for batch in read_windows(view, positions, patch, batch_size=4):
            for (x, y), image in zip(batch.positions.tolist(), batch.images, strict=True):
                assert np.array_equal(image, view.read((x, y), (patch, patch)))
                seen += 1
    assert seen == len(positions)


def test_batches_are_the_same_wherever_reading_starts(tmp_path):
    with open_slide(_slide(tmp_path, (200, 1300))) as slide:
        view = slide.at_downsample(1)
        positions = plan_windows(view.size_px, 48, 32)
        batches = list(read_windows(view, positions, 48, batch_size=7))
        rest = list(read_windows(view, positions, 48, batch_size=7, first_batch=12))
    assert {len(b.positions) for b in batches[:-1]} == {7}
    assert len(rest) == len(batches) - 12
    for late, early in zip(rest, batches[12:], strict=True):
        assert np.array_equal(late.positions, early.positions)
        assert np.array_equal(late.images, early.images)


def test_each_tile_is_decoded_once_and_then_forgotten(tmp_path):
    with open_slide(_slide(tmp_path, (256, 2048))) as slide:
        decoded = []
        tile = slide._source.tile
        slide._source.tile = lambda *key: decoded.append(key) or tile(*key)
        view = slide.at_downsample(1)
        positions = plan_windows(view.size_px, 128, 32)
        held = []
        for _ in read_windows(view, positions, 128, batch_size=8):
            held.append(slides._CACHE.bytes_held)
        assert len(decoded) == len(set(decoded)) == 4 * 32
        assert max(held) - min(held) <= 256 * 64 * 3


def test_only_columns_with_windows_are_read(tmp_path):
    with open_slide(_slide(tmp_path, (1024, 600))) as slide:
        decoded = set()
        tile = slide._source.tile
        slide._source.tile = lambda *key: decoded.add(key[1]) or tile(*key)
        positions = np.array([[0, 0], [30, 0], [700, 0], [10, 64], [701, 300]])
        for _ in read_windows(slide.at_downsample(1), positions, 64, batch_size=2):
            pass
    assert decoded == {0, 1, 10, 11}


def test_tissue_is_found_at_eight_microns_or_a_sixteenth(tmp_path):
    pixels = np.full((1200, 900, 3), 250, np.uint8)
    pixels[300:700, 200:600] = (180, 60, 140)
    path = tmp_path / "island.ome.tiff"
    for mpp, downsample in ((0.4, 20), (None, 16), (20.0, 1)):
        write_pyramid(path, pixels, size_px=(900, 1200), mpp=mpp, tile_px=64)
        with open_slide(path) as slide:
            tissue, scale = find_tissue(slide)
        assert scale == pytest.approx(downsample)
        assert tissue.shape == (round(1200 / scale), round(900 / scale))
        inside = np.zeros((1200, 900), bool)
        inside[300:700, 200:600] = True
        rows = np.minimum((np.arange(1200) / scale).astype(int), len(tissue) - 1)
        columns = np.minimum((np.arange(900) / scale).astype(int), tissue.shape[1] - 1)
        found = grow_by_one(tissue)[np.ix_(rows, columns)]
        assert found[inside].all()
        assert found[~inside].mean() < 0.2


def test_reading_ahead_keeps_order_and_is_bounded():
    made, taken = [], []
    gate = threading.Event()

    def items():
        for n in range(20):
            made.append(n)
            yield n

    for n in read_ahead(items()):
        gate.wait(0.002)
        taken.append(n)
        assert len(made) <= len(taken) + 1
    assert taken == list(range(20))


def test_an_error_in_the_reader_is_raised_by_the_consumer():
    def items():
        yield 1
        raise OSError("the disk went away")

    found = []
    with pytest.raises(OSError, match="went away"):
        found.extend(read_ahead(items()))
    before = threading.active_count()
    stopped = read_ahead(iter(range(1000)))
    next(stopped)
    stopped.close()
    assert threading.active_count() == before
