import csv
import subprocess
import sys

import numpy as np
import pytest
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

from renal_utils.augment import to_tensor
from renal_utils.labels import FOUR_TISSUES, GLOMERULI, KIDNEY_TISSUES
from renal_utils.polygon_files import read_polygons
from renal_utils.prediction import make_predictor
from renal_utils.result_folder import hold_folder
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.views import average_views


@pytest.mark.parametrize(
    ("size", "patch", "stride", "downsample", "window"),
    [
        ((200, 150), 64, 32, 1.0, "hann"),
        ((193, 131), 64, 40, 1.0, "gaussian"),
        ((128, 128), 64, 64, 1.0, "uniform"),
        ((129, 65), 64, 17, 1.0, "hann"),
        ((40, 30), 64, 32, 1.0, "hann"),
        ((30, 170), 64, 48, 1.0, "hann"),
        ((300, 211), 48, 31, 1.7, "hann"),
        ((300, 211), 48, 31, 3.0, "gaussian"),
    ],
)
def test_an_identity_network_gives_back_the_slide(
    tmp_path, size, patch, stride, downsample, window
):
    path = make_slide(tmp_path, size)
    plan = plan_of(patch_px=patch, stride_px=stride, downsample=downsample, window=window)
    result = stitch(path, tmp_path / "out", plan=plan)
    expected = whole(path, downsample)
    with open_slide(result.probability_path) as found, open_slide(result.labels_path) as labels:
        assert found.size_l0 == expected.shape[::-1]
        assert found.mpp == pytest.approx(0.5 * downsample)
        stored = found.at_downsample(1).read_channels((0, 0), found.size_l0)[..., 0]
        ids = labels.at_downsample(1).read_labels((0, 0), labels.size_l0)
    assert np.array_equal(stored, expected)
    assert np.array_equal(ids, expected > 127.5)


@pytest.mark.parametrize("window", ["hann", "gaussian", "uniform"])
@pytest.mark.parametrize("value", [1, 77, 254])
def test_a_constant_stays_exactly_constant(tmp_path, window, value):
    path = make_slide(tmp_path, (150, 140))

    def constant(images):
        return torch.full((len(images), 1, 64, 64), value / 255)

    plan = plan_of(stride_px=19, window=window)
    result = stitch(path, tmp_path / "out", constant, plan=plan)
    assert (whole(result.probability_path) == value).all()


def test_batch_size_and_resolution_of_reading_do_not_matter(tmp_path):
    path = make_slide(tmp_path, (210, 190))
    labels = []
    for batch_size in (1, 7, 1000):
        result = stitch(path, tmp_path / f"out_{batch_size}", plan=plan_of(batch_size=batch_size))
        labels.append(content(result.folder)[0])
    assert labels[0] == labels[1] == labels[2]


def test_the_most_probable_class_wins_and_its_probability_is_stored(tmp_path):
    path = make_slide(tmp_path, (130, 100))

    def network(images):
        red = identity(images)
        return torch.cat([red, 1 - red, red * 0, red * 0], 1)

    result = stitch(path, tmp_path / "out", network, label_set=FOUR_TISSUES)
    red = whole(path)
    with open_slide(result.labels_path) as labels:
        ids = labels.at_downsample(1).read_labels((0, 0), labels.size_l0)
    assert np.array_equal(ids == 0, red > 127.5)
    assert set(np.unique(ids)) == {0, 1}
    assert np.array_equal(whole(result.probability_path), np.maximum(red, 255 - red))


@pytest.mark.parametrize(
    ("label_set", "fill"), [(GLOMERULI, 0), (KIDNEY_TISSUES, 0), (FOUR_TISSUES, 255)]
)
def test_background_is_skipped_and_nothing_of_the_tissue_is(tmp_path, label_set, fill):
    path = make_slide(tmp_path, (640, 700), background=True)
    channels = label_set.num_outputs

    def sure(images):
        return torch.nn.functional.one_hot(
            torch.full((len(images), 64, 64), channels - 1), channels
        ).movedim(-1, 1)

    plan = plan_of(skip_background=True)
    result = stitch(path, tmp_path / "out", sure, label_set=label_set, plan=plan)
    tissue = whole(path, channel=1) != 250
    with open_slide(result.labels_path) as labels:
        ids = labels.at_downsample(1).read_labels((0, 0), labels.size_l0)
    found = label_set.num_outputs == 1 or label_set.num_outputs - 1
    assert (ids[tissue] == found).all()
    assert (ids == fill).mean() > 0.2
    assert result.summary["windows"]["skipped"] > 20
    assert (whole(result.probability_path)[ids == fill] == 0).all()


def test_a_slide_without_tissue_gives_whole_and_empty_results(tmp_path):
    path = tmp_path / "glass.ome.tiff"
    write_pyramid(path, np.full((300, 200, 3), 250, np.uint8), size_px=(200, 300), tile_px=64)
    result = stitch(path, tmp_path / "out", plan=plan_of(skip_background=True))
    assert result.summary["windows"]["seen"] == 0
    assert result.counts == {"glomerulus": 0}
    assert (whole(result.labels_path) == 0).all()


def test_objects_are_those_of_the_label_map_in_level_0_pixels(tmp_path):
    path = make_slide(tmp_path, (420, 390), seed=3)
    plan = plan_of(downsample=2.0, min_object_um2=30)
    result = stitch(path, tmp_path / "out", plan=plan, threshold=0.6)
    ids, count = ndimage.label(whole(path, 2.0) > 0.6 * 255, np.ones((3, 3)))
    areas = ndimage.sum_labels(ids > 0, ids, range(1, count + 1))
    kept = sorted(areas[areas >= 30])
    with result.csv_path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(kept) > 5
    assert sorted(int(row["area_px"]) for row in rows) == kept
    assert sorted(float(row["area_um2"]) for row in rows) == kept  # a working pixel is 1 um wide
    polygons = read_polygons(result.geojson_path)
    assert [p.polygon.area for p in polygons] == [4 * int(row["area_px"]) for row in rows]
    assert {p.label for p in polygons} == {"glomerulus"}
    assert polygons[0].properties["measurements"]["Area µm^2"] == float(rows[0]["area_um2"])
    for polygon, row in zip(polygons, rows, strict=True):
        left, top, right, bottom = polygon.polygon.bounds
        assert [left, top] == [float(row["left_l0"]), float(row["top_l0"])]
        assert [right - left, bottom - top] == [float(row["width_l0"]), float(row["height_l0"])]
        assert left < float(row["x_l0"]) < right and top < float(row["y_l0"]) < bottom
        assert 0.6 < float(row["mean_probability"]) <= 1
    assert result.counts == {"glomerulus": len(kept)}
    assert result.summary["classes"]["glomerulus"]["objects_area_px"] == sum(kept)
    assert result.summary["classes"]["glomerulus"]["pixels"] == areas.sum()


def test_only_objects_of_the_classes_asked_for_are_counted(tmp_path):
    path = make_slide(tmp_path, (150, 140))

    def network(images):
        red = identity(images)
        return torch.cat([red, 1 - red, red * 0, red * 0], 1)

    plan = plan_of(object_classes=("interstitial_fibrosis",))
    result = stitch(path, tmp_path / "out", network, label_set=FOUR_TISSUES, plan=plan)
    assert {p.label for p in read_polygons(result.geojson_path)} == {"interstitial_fibrosis"}
    assert result.counts["interstitial_fibrosis"] > 0 == result.counts["normal_tubule"]
    assert result.summary["classes"]["normal_tubule"]["pixels"] > 0
    with pytest.raises(ValueError, match="no class 'nucleus'"):
        stitch(path, tmp_path / "other", plan=plan_of(object_classes=("nucleus",)))


def test_without_a_scale_areas_are_in_pixels_only(tmp_path):
    path = make_slide(tmp_path, (150, 140), mpp=None)
    result = stitch(path, tmp_path / "out", plan=plan_of(min_object_px=10))
    assert result.summary["classes"]["glomerulus"]["pixels_area_um2"] is None
    polygon = read_polygons(result.geojson_path)[0]
    assert polygon.properties["measurements"]["Area px"] == polygon.polygon.area
    with pytest.raises(ValueError, match="min_object_px"):
        stitch(path, tmp_path / "other", plan=plan_of(min_object_um2=10))
    with pytest.raises(ValueError, match="mpp"):
        stitch(path, tmp_path / "other", plan=plan_of(downsample=None, mpp=1.0))
    assert not (tmp_path / "other").exists()


def test_a_stated_mpp_is_used_whatever_the_levels(tmp_path):
    path = make_slide(tmp_path, (300, 280), mpp=0.4)
    result = stitch(path, tmp_path / "out", plan=plan_of(downsample=None, mpp=1.0))
    assert np.array_equal(whole(result.probability_path), whole(path, 2.5))
    assert result.summary["mpp"] == pytest.approx(1.0)


def test_a_finished_folder_is_returned_without_looking_at_the_slide_again(tmp_path):
    path = make_slide(tmp_path, (150, 140))
    first = stitch(path, tmp_path / "out")
    again = stitch(path, tmp_path / "out")
    assert again.summary == first.summary
    assert not (tmp_path / "out" / "rows.bands").exists()
    fresh = stitch(path, tmp_path / "out", resume=False)
    assert content(fresh.folder)[0] == content(first.folder)[0]
    assert fresh.summary["run"]["windows"] > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"plan": plan_of(stride_px=16)}, "stride_px was 32, now 16"),
        ({"threshold": 0.4}, "threshold was 0.5, now 0.4"),
        ({"mpp": 0.25}, "slide_mpp"),
        ({"label_set": KIDNEY_TISSUES}, "label_set was 'glomeruli'"),
        ({"predict": make_predictor(nn.Conv2d(3, 1, 1), device="cpu")}, "network was"),
    ],
)
def test_going_on_with_other_settings_is_refused_naming_them(tmp_path, change, named):
    path = make_slide(tmp_path, (150, 140))
    first = content(stitch(path, tmp_path / "out").folder)
    with pytest.raises(ValueError, match=named):
        stitch(path, tmp_path / "out", **change)
    assert content(tmp_path / "out") == first


def test_another_slide_of_the_same_name_and_foreign_results_are_refused(tmp_path):
    path = make_slide(tmp_path, (150, 140))
    stitch(path, tmp_path / "out")
    (tmp_path / "other").mkdir()
    other = make_slide(tmp_path, (150, 140), seed=1).rename(tmp_path / "other" / path.name)
    with pytest.raises(ValueError, match="slide_bytes"):
        stitch(other, tmp_path / "out")
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ValueError, match="nobody knows"):
        stitch(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda images: identity(images)[..., ::2], "patch size"),
        (lambda images: torch.cat([identity(images)] * 2, 1), "1 channels"),
        (lambda images: identity(images) * float("nan"), "NaN"),
        (lambda images: identity(images) * 20 - 10, "logits"),
    ],
)
def test_what_a_broken_network_gives_stops_the_run_with_a_remedy(tmp_path, network, words):
    path = make_slide(tmp_path, (150, 140))
    with pytest.raises(ValueError, match=words) as caught:
        stitch(path, tmp_path / "out", network)
    assert path.name in str(caught.value)
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"mpp": 1.0},
        {"downsample": None},
        {"stride_px": 65},
        {"batch_size": 0},
        {"window": "triangle"},
        {"min_tissue": 1.0},
        {"min_object_px": 3, "min_object_um2": 3},
        {"downsample": None, "mpp": 5000.0},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(settings):
    with pytest.raises(ValueError):
        plan_of(**settings)


def test_an_error_half_way_is_passed_on_and_the_next_run_goes_on_from_there(tmp_path):
    path = make_slide(tmp_path, (200, 400))
    calls = []

    def failing(images):
        calls.append(len(images))
        if len(calls) == 8:
            raise RuntimeError("the network fell over")
        return identity(images)

    with pytest.raises(RuntimeError, match="fell over"):
        stitch(path, tmp_path / "out", failing)
    assert not any((tmp_path / "out" / name).exists() for name in OUTPUTS)
    resumed = stitch(path, tmp_path / "out")
    assert resumed.summary["run"]["from_row"] > 0
    assert resumed.summary["run"]["windows"] < resumed.summary["windows"]["seen"]
    assert content(resumed.folder) == content(stitch(path, tmp_path / "whole").folder)


# A process that makes all heavy imports once and then forks: each child stitches and is killed at a
# random call of any function, counted by the profiler's hook, so not only where we would look.
KILLS = """
import os, random, signal, sys
from pathlib import Path
import torch
from torch import nn
from renal_utils.labels import GLOMERULI
from renal_utils.prediction import make_predictor
from renal_utils.slides import open_slide
from renal_utils.stitching import StitchPlan, stitch_slide

torch.set_num_threads(1)
path, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def count_calls(limit):
    calls = 0

    def hook(frame, event, argument):
        nonlocal calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(hook)
    return lambda: calls


def stitch(out, limit):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU()
    model = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1))
    predict = make_predictor(model, device="cpu", precision="bf16-mixed")
    plan = StitchPlan(patch_px=64, stride_px=32, downsample=1.0, batch_size=5)
    with open_slide(path) as slide:
        calls = count_calls(limit)
        stitch_slide(slide, predict, out, plan=plan, label_set=GLOMERULI, progress=False)
        sys.setprofile(None)
    (folder / "calls").write_text(str(calls()))
    os._exit(0)


def child(out, limit=None):
    pid = os.fork()
    if pid == 0:
        try:
            stitch(folder / out, limit)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


assert child("whole") == 0
total = int((folder / "calls").read_text())
random.seed(0)
limits = [random.randint(1, total * 6 // 5 // kills) for _ in range(kills)]
killed = sum(os.WIFSIGNALED(child("killed", limit)) for limit in limits)
assert child("killed") == 0
print(killed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_points_and_resumed_gives_the_same_bytes(tmp_path, kills):
    path = make_slide(tmp_path, (640, 1900), background=True)
    command = [sys.executable, "-c", KILLS, str(path), str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills // 2
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not leftovers(tmp_path / "killed")


def test_a_full_disk_is_said_and_leaves_nothing_that_looks_whole(tmp_path, small_disk):
    path = make_slide(tmp_path, (600, 1200))
    rng = np.random.default_rng(0)

    def noise(images):
        return torch.from_numpy(rng.random((len(images), 1, 64, 64), np.float32))

    folder = small_disk(1) / "out"
    with pytest.raises(OSError, match="make room and run again"):
        stitch(path, folder, noise)
    assert not any((folder / name).exists() for name in (*OUTPUTS, "summary.json"))
    assert not leftovers(folder)
    assert (folder / "rows.bands").stat().st_size > 100_000


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
    return predict(batch)


predict(torch.zeros(4, 3, 256, 256))
peaks = [own_bytes()]
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
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured as Linux counts memory")
def test_memory_does_not_grow_with_the_height(tmp_path):
    """24,000 rows more are 24 MB for each byte a pixel of them that would be kept."""
    square = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    square = ndimage.gaussian_filter(square, (8, 8, 0)) * np.array((1, 0.5, 0.8))
    square = square.astype(np.uint8)
    above = {}
    for height in (8192, 32768):
        path = tmp_path / f"{height}.ome.tiff"
        bands = (square for _ in range(height // 1024))
        write_pyramid(path, bands, size_px=(1024, height), mpp=0.5)
        command = [sys.executable, "-c", MEMORY, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        above[height] = int(done.stdout) / 2**20
    assert above[8192] > 5
    assert above[32768] < above[8192] + 12, above


def test_a_folder_that_another_run_is_writing_to_is_refused_and_then_free_again(tmp_path):
    path = make_slide(tmp_path, (130, 100))
    with (
        hold_folder(tmp_path / "out"),
        pytest.raises(BlockingIOError, match=r"another process is writing to .*out"),
    ):
        stitch(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))
    assert stitch(path, tmp_path / "out").labels_path.exists()


def test_a_process_that_dies_lets_its_folder_go(tmp_path):
    script = (
        "import os, sys\n"
        "from renal_utils.result_folder import hold_folder\n"
        "with hold_folder(sys.argv[1]):\n"
        "    os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == 7
    with hold_folder(tmp_path):
        pass


def test_the_spread_of_views_becomes_a_map_and_a_column(tmp_path):
    """A network that leans to the left is unsure where left and right differ."""
    path = make_slide(tmp_path, (200, 150))

    def left_leaning(images):
        return (identity(images) + torch.linspace(0.1, -0.1, 64)).clamp(0, 1)

    plan = plan_of(batch_size=3)
    predict = average_views(left_leaning, flips=4, spread=True)
    result = stitch(path, tmp_path / "out", predict, plan=plan)
    assert result.uncertainty_path.exists()
    spread = whole(result.uncertainty_path)
    with open_slide(path) as slide:
        window = torch.from_numpy(slide.at_downsample(1).read((0, 0), (64, 64)))
    alone = predict(to_tensor(window.numpy())[None])[0, 1].numpy() * 255
    # no other window sees the corner of 32 pixels (the stride), so nothing is blended there
    assert np.abs(spread[:32, :32] - alone[:32, :32]).max() <= 0.51
    assert 5 < spread.mean() < 30
    with result.csv_path.open() as file:
        rows = list(csv.DictReader(file))
    ids, count = ndimage.label(whole(result.labels_path), np.ones((3, 3)))
    means = ndimage.mean(spread / 255, ids, range(1, count + 1))
    found = sorted(float(row["mean_spread"]) for row in rows)
    assert found == pytest.approx(sorted(means), abs=1e-4)
    plain = stitch(path, tmp_path / "plain", average_views(left_leaning, flips=4), plan=plan)
    assert np.array_equal(whole(plain.probability_path), whole(result.probability_path))
    assert not plain.uncertainty_path.exists()


def test_tissue_is_kept_with_its_scale_and_area(tmp_path):
    path = make_slide(tmp_path, (640, 704), background=True)
    result = stitch(path, tmp_path / "out")
    mask = whole(result.folder / "tissue.png") > 0
    tissue = result.summary["tissue"]
    assert mask.shape == (44, 40)
    assert (tissue["downsample"], tissue["pixels"]) == (16.0, mask.sum())
    assert tissue["area_um2"] == mask.sum() * 64
    true = (whole(path, channel=1) != 250).sum() * 0.25
    assert tissue["area_um2"] == pytest.approx(true, rel=0.15)
