"""What benchmarks/bench_peers.py works out itself; no peer is needed."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROJECT

from renal_utils.augment import to_tensor
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.windows import plan_windows


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path():
    """Benchmarks are scripts, which import each other as neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield


@pytest.fixture
def peers():
    import bench_peers

    return bench_peers


@pytest.fixture
def cost_of(peers):
    def make(engine, *, windows=10, wall=2.0, forward=1.0, inside=1.0, processor=3.0, peak=100):
        return peers.Cost(engine, windows, wall, forward, inside, processor, peak)

    return make


@pytest.fixture
def small_job(peers, tmp_path):
    slide = peers.draw_slide(tmp_path / "s.ome.tiff", (1400, 400), tissue=0.7)
    return peers.Job(
        slide=str(slide),
        folder=str(tmp_path),
        network="darkness",
        patch_px=64,
        stride_px=32,
        batch=3,
        threads=1,
        timed_batches=1,
    )


@pytest.mark.parametrize("size", [(100, 64), (129, 300), (1, 1), (64, 65)])
def test_flush_windows_are_as_many_as_ours_plans(peers, size):
    assert peers.count_windows(size, 64, 32)["flush"] == len(plan_windows(size, 64, 32))


def test_windows_are_counted_as_by_hand(peers):
    assert peers.count_windows((7200, 6000), 512, 256) == {"flush": 28 * 23, "beyond": 29 * 24}


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_drawn_slide_has_its_share_of_tissue(peers, tmp_path, share):
    path = peers.draw_slide(tmp_path / "s.ome.tiff", (1500, 900), tissue=share)
    with open_slide(path) as slide:
        pixels = slide.at_downsample(1.0).read((0, 0), (1500, 900))
    x, y = np.meshgrid((np.arange(1500) + 0.5) / 750 - 1, (np.arange(900) + 0.5) / 450 - 1)
    distance = np.hypot(x, y)
    radius = np.sqrt(4 * share / np.pi)
    assert np.abs(pixels[distance > radius + 0.05].astype(int) - peers.GLASS).max() < 8
    inside = distance < radius
    assert inside.mean() == pytest.approx(share, abs=0.005)
    assert pixels[inside].mean() < peers.GLASS - 10


def test_a_part_of_a_slide_is_that_part(peers, tmp_path):
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[..., 0] = np.arange(160)
    pixels[..., 1] = np.arange(120)[:, None]
    write_pyramid(tmp_path / "a.tiff", pixels, size_px=(160, 120), mpp=0.25, compression="none")
    out = peers.cut_slide(
        tmp_path / "a.tiff", tmp_path / "b.tiff", region=(10, 5, 40, 30), downsample=2.0
    )
    with open_slide(out) as part, open_slide(tmp_path / "a.tiff") as whole:
        assert part.size_l0 == (40, 30)
        assert part.mpp == pytest.approx(0.5)
        expected = whole.at_downsample(2.0).read((10, 5), (40, 30)).astype(int)
        found = part.at_downsample(1.0).read((0, 0), (40, 30)).astype(int)
    assert np.abs(found - expected).mean() < 3


def test_the_table_holds_ratios_over_ours(peers, cost_of):
    costs = [
        cost_of("monai", wall=6.0, forward=4.0, peak=4_000_000),
        cost_of("ours", wall=2.0, forward=1.6, peak=1_000_000),
    ]
    table = peers.tabulate(costs).set_index("engine")
    assert table.loc["ours", ["time / ours", "peak / ours"]].tolist() == [1, 1]
    assert table.loc["monai", ["time / ours", "peak / ours"]].tolist() == [3, 4]
    assert table.loc["monai", "wall / forward"] == 1.5
    assert table.loc["ours", "peak MB"] == 1


def test_a_table_without_ours_has_no_ratios_over_it(peers, cost_of):
    assert "time / ours" not in peers.tabulate([cost_of("monai")])


def test_targets_are_met_on_the_right_side(peers, cost_of):
    ours = cost_of("ours", wall=10.0, forward=9.8, peak=100)
    peer = cost_of("tiatoolbox_mask", wall=15.0, peak=400)
    assert [met for *_, met in peers.judge([ours, peer])] == [True, True, True]
    worse = [cost_of("ours", wall=10.1, forward=9.0, peak=101), peer]
    assert [met for *_, met in peers.judge(worse)] == [False, False, False]
    assert len(peers.judge([ours, peer], is_cheap=True)) == 2


def test_maps_are_compared_within_tissue_and_where_both_looked(peers):
    ours = np.full((40, 60), 100, np.uint8)
    other = np.full((44, 64), 151, np.uint8)
    other[:, 15:30] = 0
    tissue = np.zeros((4, 6), bool)
    tissue[:, :3] = True
    difference, share = peers.compare_maps(ours, other, tissue)
    assert difference == pytest.approx(51 / 255)
    assert share == pytest.approx(0.5)
    assert peers.compare_maps(ours, other, tissue, margin_px=45) == (difference, 1)


def test_a_probability_of_nothing_is_no_place_left_out(peers):
    nothing, tissue = np.zeros((20, 20), np.uint8), np.ones((2, 2), bool)
    assert peers.compare_maps(nothing, nothing, tissue) == (0, 1)


def test_growth_is_the_power_of_area(peers):
    area = np.array([1.0, 4.0, 9.0])
    table = pd.DataFrame({"tissue Mpx": area, "processor s": 3 * area**1.25})
    assert peers.growth(table) == pytest.approx(1.25)


def test_a_row_of_growth_is_per_tissue_and_width(peers, cost_of):
    row = peers.linear_row(2000, 5.0, cost_of("ours", processor=10.0, peak=3_000_000))
    assert (row["processor s / tissue Mpx"], row["peak MB / 1000 px"]) == (2.0, 1.5)


def test_normalising_a_batch_is_what_the_library_does_to_an_image(peers):
    from peer_engines import normalise

    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert torch.allclose(normalise(batch)[0], to_tensor(image), atol=1e-6)


def test_ours_is_measured_and_its_map_is_darkness(peers, small_job, tmp_path):
    from peer_engines import MAP_NAME, MIDDLE, measure, normalise

    cost = measure("ours", small_job)
    assert 0 < cost.windows <= peers.count_windows((1400, 400), 64, 32)["flush"]
    assert 0 < cost.inside < cost.wall and cost.forward > 0 and cost.peak >= 0
    found = np.load(tmp_path / MAP_NAME)
    with open_slide(small_job.slide) as slide:
        pixels = torch.from_numpy(slide.at_downsample(1.0).read((0, 0), (1400, 400)))
    red = normalise(pixels.permute(2, 0, 1)[None])[0, 0]
    dark = (MIDDLE - red).sigmoid().numpy() * 255
    middle = np.s_[180:220, 680:720]
    assert np.abs(found[middle] - dark[middle]).max() <= 1


def test_a_slide_without_tissue_is_refused(peers, tmp_path):
    from peer_engines import first_batches

    slide = peers.draw_slide(tmp_path / "s.ome.tiff", (400, 400), tissue=0.4)  # glass only
    with pytest.raises(ValueError, match="no tissue"):
        first_batches(peers.Job(slide=str(slide), folder=str(tmp_path)))


def test_an_engine_runs_in_a_process_of_its_own_and_its_failure_is_told(peers, small_job):
    with pytest.raises(RuntimeError, match="ours failed"):
        peers.run_engine("ours", replace(small_job, slide="absent.tiff"), python=sys.executable)
