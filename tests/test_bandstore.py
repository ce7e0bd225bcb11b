import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from renal_utils.bandstore import BandStore
from renal_utils.geometry import Box

WIDTH = 1500  # two blocks, the second one narrow


def make_image(rows, channels, seed=0):
    rng = np.random.default_rng(seed)
    shape = (rows, WIDTH) if channels == 1 else (rows, WIDTH, channels)
    return rng.integers(0, 256, shape, dtype=np.uint8) // 64


def fill(path, image, heights, **options):
    channels = 1 if image.ndim == 2 else image.shape[2]
    ends = []
    with BandStore(path, width_px=WIDTH, channels=channels, **options) as store:
        y = 0
        for height in heights:
            store.append(image[y : y + height])
            y += height
            ends.append((path.stat().st_size, y))
    return ends


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_box_reads_as_the_rows_that_were_appended(tmp_path, channels):
    image = make_image(60, channels)
    fill(tmp_path / "rows.bands", image, [7, 1, 30, 22])
    with BandStore(tmp_path / "rows.bands", width_px=WIDTH, channels=channels) as store:
        assert store.rows_done == 60
        rng = np.random.default_rng(1)
        for _ in range(30):
            x, y = int(rng.integers(0, WIDTH - 1)), int(rng.integers(0, 59))
            box = Box(x, y, int(rng.integers(1, WIDTH - x + 1)), int(rng.integers(1, 61 - y)))
            np.testing.assert_array_equal(store.read(box), image[box.slices])


def test_bands_yields_all_rows_in_any_height(tmp_path):
    image = make_image(50, 1)
    fill(tmp_path / "rows.bands", image, [20, 30])
    with BandStore(tmp_path / "rows.bands", width_px=WIDTH) as store:
        bands = list(store.bands(16))
    assert [len(band) for band in bands] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate(bands), image)


@settings(max_examples=40, deadline=None)
@example(cut=1.0, noise=True, seed=0)
@given(cut=st.floats(0, 1), noise=st.booleans(), seed=st.integers(0, 2**31))
def test_a_file_cut_or_overwritten_anywhere_keeps_the_bands_before(
    tmp_path_factory, cut, noise, seed
):
    path = tmp_path_factory.mktemp("torn") / "rows.bands"
    image = make_image(64, 1)
    ends = fill(path, image, [16] * 4, key="a run")
    header = 24 + len("a run")
    at = header + int(cut * (ends[-1][0] - header)) if noise else int(cut * ends[-1][0])
    content = path.read_bytes()[:at]
    if noise:  # what a machine that lost power may leave behind the last whole write
        content += np.random.default_rng(seed).bytes(500)
    path.write_bytes(content)
    whole = max((rows for end, rows in ends if end <= at), default=0)
    with BandStore(path, width_px=WIDTH, key="a run") as store:
        assert store.rows_done == whole
        if whole < 64:
            store.append(image[whole:])
    with BandStore(path, width_px=WIDTH, key="a run") as store:
        np.testing.assert_array_equal(store.read(Box(0, 0, WIDTH, 64)), image)


def test_a_flipped_byte_drops_the_band_it_is_in(tmp_path):
    path = tmp_path / "rows.bands"
    ends = fill(path, make_image(40, 1), [20, 20])
    content = bytearray(path.read_bytes())
    content[(ends[0][0] + ends[1][0]) // 2] ^= 1
    path.write_bytes(content)
    with BandStore(path, width_px=WIDTH) as store:
        assert store.rows_done == 20


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_bands_appended_before_a_kill_are_there_afterwards(tmp_path):
    path = tmp_path / "rows.bands"
    script = (
        "import os, signal, numpy as np; from renal_utils.bandstore import BandStore\n"
        f"store = BandStore({str(path)!r}, width_px={WIDTH})\n"
        f"for i in range(5): store.append(np.full((8, {WIDTH}), i, np.uint8))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    with BandStore(path, width_px=WIDTH) as store:
        assert [int(band[0, 0]) for band in store.bands(8)] == [0, 1, 2, 3, 4]


def test_a_full_disk_leaves_the_bands_before(small_disk):
    path = small_disk(2) / "rows.bands"
    noise = np.random.default_rng(0).integers(0, 256, (300, WIDTH), dtype=np.uint8)
    with BandStore(path, width_px=WIDTH) as store:
        with pytest.raises(OSError, match="space"):
            for _ in range(100):
                store.append(noise)
        rows = store.rows_done
        np.testing.assert_array_equal(store.read(Box(0, rows - 300, WIDTH, 300)), noise)
    with BandStore(path, width_px=WIDTH) as store:
        assert store.rows_done == rows > 0


def test_rewind_drops_bands_and_appending_goes_on(tmp_path):
    image = make_image(60, 3)
    path = tmp_path / "rows.bands"
    fill(path, image, [20, 20, 20])
    with BandStore(path, width_px=WIDTH, channels=3) as store:
        with pytest.raises(ValueError, match="no band ends at row 30"):
            store.rewind(30)
        store.rewind(20)
        store.append(image[40:])
    with BandStore(path, width_px=WIDTH, channels=3) as store:
        np.testing.assert_array_equal(
            np.concatenate(list(store.bands())), np.concatenate([image[:20], image[40:]])
        )


def test_another_run_width_or_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "rows.bands"
    fill(path, make_image(20, 1), [20], key="run one")
    before = path.read_bytes()
    for options in (
        {"width_px": WIDTH, "key": "run two"},
        {"width_px": WIDTH + 1, "key": "run one"},
        {"width_px": WIDTH, "channels": 2, "key": "run one"},
    ):
        with pytest.raises(ValueError, match=r"rows\.bands.*delete it"):
            BandStore(path, **options)
    other = tmp_path / "notes.txt"
    other.write_text("not a store, but somebody's notes")
    with pytest.raises(ValueError, match="not a band store"):
        BandStore(other, width_px=WIDTH)
    assert path.read_bytes() == before


@pytest.mark.parametrize("shape", [(5, WIDTH + 1), (5, WIDTH, 2), (0, WIDTH)])
def test_a_band_of_another_shape_is_refused(tmp_path, shape):
    with (
        BandStore(tmp_path / "rows.bands", width_px=WIDTH) as store,
        pytest.raises(ValueError, match=f"rows of {WIDTH} pixels with 1 channels"),
    ):
        store.append(np.zeros(shape, np.uint8))


def test_a_box_outside_the_finished_rows_is_refused(tmp_path):
    fill(tmp_path / "rows.bands", make_image(20, 1), [20])
    with BandStore(tmp_path / "rows.bands", width_px=WIDTH) as store:
        for box in (Box(0, 0, WIDTH, 21), Box(-1, 0, 5, 5), Box(WIDTH - 1, 0, 2, 1)):
            with pytest.raises(ValueError, match="outside the finished"):
                store.read(box)
