"""What stitching promises whatever the slide, the machine or the file at hand."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from stitching_cases import (
    OUTPUTS,
    content,
    identity,
    leftovers,
    make_slide,
    plan_of,
    stitch,
    whole,
)
from torch import nn

from renal_utils.prediction import make_predictor
from renal_utils.slides import open_slide, write_pyramid

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux has them")


def returned(result):
    with open_slide(result.probability_path) as found:
        return found.at_downsample(1).read_labels((0, 0), found.size_l0)


@pytest.mark.parametrize("stride", [5, 8, 13, 16])
def test_every_remainder_of_the_size_comes_back_bit_for_bit(tmp_path, stride):
    """Widths from 1 to over two strides more than a window; heights run the other way."""
    image = np.random.default_rng(stride).integers(0, 255, (50, 50, 3), np.uint8)
    plan = plan_of(patch_px=16, stride_px=stride, batch_size=7)
    for number, width in enumerate(range(1, 50, 2)):
        part = np.ascontiguousarray(image[: 50 - width, :width])
        path = tmp_path / f"{number}.png"
        tifffile.imwrite(path.with_suffix(".tif"), part, photometric="rgb", tile=(16, 16))
        result = stitch(path.with_suffix(".tif"), tmp_path / str(number), plan=plan)
        assert np.array_equal(returned(result), part[..., 0]), part.shape


@pytest.mark.parametrize("downsample", [3.0, 7.0])
def test_levels_that_are_no_powers_of_two_come_back_bit_for_bit(tmp_path, downsample):
    rng = np.random.default_rng(0)
    sizes = {1: (301, 427), 3: (100, 142), 7: (43, 61)}
    levels = {n: rng.integers(0, 255, (*size, 3), np.uint8) for n, size in sizes.items()}
    path = tmp_path / "odd.tif"
    options = {"photometric": "rgb", "tile": (32, 32)}
    with tifffile.TiffWriter(path) as tif:
        tif.write(levels[1], subifds=2, **options)
        tif.write(levels[3], subfiletype=1, **options)
        tif.write(levels[7], subfiletype=1, **options)
    with open_slide(path) as slide:
        true = next(level for level in slide.levels[1:] if round(level.downsample) == downsample)
    plan = plan_of(patch_px=32, stride_px=20, downsample=true.downsample)
    assert np.array_equal(
        returned(stitch(path, tmp_path / "out", plan=plan)), levels[int(downsample)][..., 0]
    )


def test_a_real_network_gives_the_same_map_in_batches_of_any_size(tmp_path):
    """To one grey level: a convolution may round differently in another batch."""
    path = make_slide(tmp_path, (210, 190))
    layers = nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
    predict = make_predictor(nn.Sequential(*layers), device="cpu", precision="32-true")
    maps = []
    for size in (1, 6, 50):
        result = stitch(path, tmp_path / str(size), predict, plan=plan_of(batch_size=size))
        maps.append(returned(result).astype(int))
    assert np.ptp(maps[0]) > 5
    assert max(np.abs(maps[0] - other).max() for other in maps[1:]) <= 1


def test_the_height_of_bands_and_chunks_changes_no_byte(tmp_path, monkeypatch):
    path = make_slide(tmp_path, (400, 500), seed=3)
    plan = plan_of(downsample=2.0, min_object_px=5)
    usual = content(stitch(path, tmp_path / "usual", plan=plan).folder)
    for rows in (64, 100):
        with monkeypatch.context() as patched:
            patched.setattr("renal_utils.slide_results.BAND_PIXELS", 200 * rows)
            patched.setattr("renal_utils.window_reader.CHUNK_PX", rows)
            found = content(stitch(path, tmp_path / str(rows), plan=plan).folder)
        assert found == usual


def test_a_slide_in_strips_gives_what_the_same_slide_in_tiles_gives(tmp_path):
    image = make_slide(tmp_path, (300, 280))
    pixels = np.stack([whole(image, channel=c) for c in range(3)], axis=-1)
    maps = []
    for name, options in (("tiles", {"tile": (64, 64)}), ("strips", {"rowsperstrip": 16})):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", **options)
        maps.append(returned(stitch(path, tmp_path / name)))
    assert np.array_equal(*maps)


def test_a_wrong_scale_that_is_put_right_gives_the_map_of_the_right_one(tmp_path):
    """The same pixels, stating 0.5, nothing and 5 microns; told 0.5, all are read alike."""
    maps = []
    for name, stated in (("right", 0.5), ("missing", None), ("wrong", 5.0)):
        (tmp_path / name).mkdir()
        path = make_slide(tmp_path / name, (300, 280), mpp=stated)
        plan = plan_of(downsample=None, mpp=1.0)
        maps.append(returned(stitch(path, tmp_path / name / "out", plan=plan, mpp=0.5)))
    assert maps[0].shape == (140, 150)
    assert np.array_equal(maps[0], maps[1])
    assert np.array_equal(maps[0], maps[2])


# Limits that the operating system enforces, each in a process of its own

COMMON = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from renal_utils.augment import PIXEL_MEAN, PIXEL_STD
from renal_utils.labels import GLOMERULI
from renal_utils.slides import open_slide
from renal_utils.stitching import StitchPlan, stitch_slide

torch.set_num_threads(1)
path, out, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def identity(images):
    return (images[:, :1] * PIXEL_STD[0] + PIXEL_MEAN[0]).clamp(0, 1)


def stitch(path, out, **settings):
    chosen = {"downsample": 1.0, "skip_background": False, "batch_size": 5, **settings}
    with open_slide(path) as slide:
        return stitch_slide(
            slide, identity, out, plan=StitchPlan(**chosen), label_set=GLOMERULI, progress=False
        )
"""

ADDRESS_SPACE = """
small = path.with_name("small.ome.tiff")
large = {"patch_px": 256, "stride_px": 256, "window": "uniform", "min_object_px": 64}
stitch(small, out.with_name("small"), **large)  # loads all that gets loaded
used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
try:
    np.ones((64 * 1024, 1024), np.float32)
    print("the limit does not hold")
except MemoryError:
    print(stitch(path, out, **large).summary["windows"]["seen"])
"""

FILE_SIZE = """
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    stitch(path, out, patch_px=64, stride_px=32)
except OSError as error:
    print(error)
"""


def run_limited(script, path, out, limit):
    command = [sys.executable, "-c", COMMON + script, str(path), str(out), str(limit)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@LINUX
@pytest.mark.slow
def test_a_tall_slide_is_stitched_in_an_address_space_that_its_map_does_not_fit_in(tmp_path):
    """One plane of its map is 268 MB; the process may take 200 MB more than for a small slide."""
    square = np.full((1024, 1024, 3), 90, np.uint8)
    square[300:600, 200:700] = 200
    for name, rows in (("small", 2048), ("tall", 64 * 1024)):
        bands = (square for _ in range(rows // 1024))
        write_pyramid(tmp_path / f"{name}.ome.tiff", bands, size_px=(1024, rows), mpp=0.5)
    path = tmp_path / "tall.ome.tiff"
    assert run_limited(ADDRESS_SPACE, path, tmp_path / "out", 200 * 10**6) == "1024\n"
    rows = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    assert len(rows) == 1 + 64


MEMORY = """
import psutil
import sys
import torch
from torch import nn
from pathlib import Path
from renal_utils.labels import GLOMERULI
from renal_utils.prediction import make_predictor
from renal_utils.slides import open_slide
from renal_utils.stitching import StitchPlan, stitch_slide

torch.set_num_threads(1)
redness = nn.Conv2d(3, 1, 1)
redness.weight.data = torch.tensor([4.0, 0.0, 0.0]).view(1, 3, 1, 1)
predict = make_predictor(redness, device="cpu", precision="32-true")


def own_bytes():
    # pages of shared libraries come and go with the cache of the disk, so they do not count
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def measured(batch):
    peaks.append(own_bytes())
    if "keep" in sys.argv:
        kept.append(batch.clone())
    return predict(batch)


predict(torch.zeros(4, 3, 256, 256))
peaks, kept = [own_bytes()], []
plan = StitchPlan(
    patch_px=256, stride_px=256, downsample=1.0, batch_size=4, window="uniform", min_object_px=64
)
with open_slide(Path(sys.argv[1])) as slide:
    stitch_slide(
        slide, measured, Path(sys.argv[1] + "_out"), plan=plan, label_set=GLOMERULI, progress=False
    )
    print(max(peaks) - peaks[0])
"""


@pytest.mark.slow
@LINUX
def test_memory_does_not_grow_with_the_height(tmp_path):
    """24,000 rows more are 24 MB for each byte a pixel of them that would be kept.

    Threads that run late add some MB now and then; what is kept adds them every time.
    """
    short, tall = (write_tall(tmp_path, height) for height in (8192, 32768))
    above = measure_memory(short)
    assert any(measure_memory(tall) < above + 12 for _ in range(3))
    all_patches = 8192 * 1024 * 3 * 4 / 2**20
    assert measure_memory(short, "keep") > above + 0.5 * all_patches, "it sees nothing"


def write_tall(folder, height):
    """Write a slide of one square again and again; return its path."""
    square = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    square = ndimage.gaussian_filter(square, (8, 8, 0)) * np.array((1, 0.5, 0.8))
    bands = (square.astype(np.uint8) for _ in range(height // 1024))
    path = folder / f"{height}.ome.tiff"
    write_pyramid(path, bands, size_px=(1024, height), mpp=0.5)
    return path


def measure_memory(path, *arguments):
    """Stitch a slide in a process of its own; return its peak above the network's, in MiB."""
    shutil.rmtree(f"{path}_out", ignore_errors=True)
    command = [sys.executable, "-c", MEMORY, str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 2**20


@LINUX
@pytest.mark.parametrize("kilobytes", [1, 40, 90])
def test_a_disk_that_is_full_half_way_keeps_what_is_done_and_is_gone_on_from(tmp_path, kilobytes):
    """A limit on the size of any file stands for the disk; it needs no rights."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (400, 300, 3), np.uint8)
    path = tmp_path / "noise.ome.tiff"
    write_pyramid(path, noise, size_px=(300, 400), mpp=0.5, tile_px=64, compression="none")
    out = tmp_path / "out"
    said = run_limited(FILE_SIZE, path, out, kilobytes * 1000)
    assert "make room and run again" in said
    assert not any((out / name).exists() for name in (*OUTPUTS, "summary.json"))
    assert not leftovers(out)
    resumed = stitch(path, out)
    assert (resumed.summary["run"]["from_row"] > 0) == (kilobytes > 1)
    assert content(out) == content(stitch(path, tmp_path / "whole").folder)


def test_one_class_too_many_or_too_few_is_said_with_both_numbers(tmp_path):
    path = make_slide(tmp_path, (150, 140))
    for channels in (2, 4):
        answers = torch.ones(1, channels, 1, 1) / channels
        with pytest.raises(ValueError, match=f"{channels}.*expected.*1.*label set needs 1"):
            stitch(path, tmp_path / "out", lambda x, a=answers: identity(x) * a)
