"""Training on nuclei: two planes through loading and fit, strips for validation, held-out tiles."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from nuclei_scenes import draw_nuclei
from PIL import Image

from renal_utils.augment import make_augmentation, to_tensor
from renal_utils.instance_maps import contour_map, pack_planes, unpack_planes
from renal_utils.instance_sources import read_instances
from renal_utils.labels import IGNORE_ID
from renal_utils.loading import PatchDataset
from renal_utils.losses import build_loss
from renal_utils.models.haru_net import HARUNet
from renal_utils.nuclei_maps import (
    NucleiMaps,
    Separation,
    choose_separation,
    list_separations,
    predict_nuclei,
    score_nuclei,
)
from renal_utils.nuclei_trials import (
    NucleiSplits,
    choose_on_validation,
    make_nuclei_loss,
    predict_strips,
    read_tile,
    score_test,
    split_tiles,
    train_nuclei,
)
from renal_utils.patching import cut_patches
from renal_utils.records import ImageRecord
from renal_utils.trials import Budget

BUDGET = Budget(steps=24, validations=2, batch_size=4, learning_rate=1e-2, augmentation="flips")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[ImageRecord]:
    """Four tiles of 160 x 160 with violet discs on pink; some touch."""
    folder, found = tmp_path_factory.mktemp("nuclei"), []
    for seed, name in enumerate("abcd"):
        ids = draw_nuclei(160, 60, seed=seed, radii=(5, 10))
        rgb = np.where(ids[..., None] > 0, [110, 60, 150], [230, 170, 200]).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{name}.png")
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{name}_ids.png")
        known = {"truth_kind": "instance_image", "truth_path": folder / f"{name}_ids.png"}
        found.append(
            ImageRecord(name, folder / f"{name}.png", label_set="nuclei", donor=name, **known)
        )
    return found


@pytest.fixture(scope="module")
def splits(records) -> NucleiSplits:
    return split_tiles(records, test_ids=["d"], patch_px=64, val_px=64, jitter_px=8)


@pytest.fixture(scope="module")
def haru(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("haru")
    budget = replace(BUDGET, steps=60)
    return train_nuclei("haru_net", splits, budget=budget, folder=folder, options={"width": 8})


@pytest.fixture(scope="module")
def unet(splits, tmp_path_factory):
    folder, options = tmp_path_factory.mktemp("unet"), {"base_width": 8, "depth": 2}
    return train_nuclei("unet", splits, budget=BUDGET, folder=folder, options=options)


def test_packed_planes_come_apart_again():
    ids = draw_nuclei(60, 14, radii=(3, 9))
    mask, contour = unpack_planes(pack_planes(ids, thickness_px=3))
    np.testing.assert_array_equal(mask, ids > 0)
    np.testing.assert_array_equal(contour, contour_map(ids, thickness_px=3))
    assert (contour & ~mask & 1).any() and (contour & mask).any()


def test_what_is_unknown_is_so_in_both_planes():
    packed = np.array([[0, 1, 2, 3, IGNORE_ID]], np.uint8)
    expected = [[[0, 1, 0, 1, 255]], [[0, 0, 1, 1, 255]]]
    np.testing.assert_array_equal(unpack_planes(packed), expected)


def test_items_hold_mask_and_contour_of_their_place(records):
    manifest = cut_patches(records[:2], patch_px=64, stride_px=48)
    dataset = PatchDataset(manifest, contour_px=2, cache="memory")
    row, item = manifest.iloc[13], dataset[13]
    window = np.s_[row["y_px"] : row["y_px"] + 64, row["x_px"] : row["x_px"] + 64]
    rgb, ids = read_tile(records["ab".index(row["image_id"])])
    assert item["target"].dtype == torch.int64
    np.testing.assert_array_equal(item["target"][0], ids[window] > 0)
    np.testing.assert_array_equal(item["target"][1], contour_map(ids, thickness_px=2)[window])
    assert torch.equal(item["image"], to_tensor(rgb[window]))


@pytest.mark.parametrize("augmentation", ["none", "haru", "stain_he", "thesis"])
def test_the_mask_plane_is_the_single_plane_whatever_the_augmentation(records, augmentation):
    manifest = cut_patches(records[:1], patch_px=64, stride_px=64)
    options = {"augmentation": augmentation, "seed": 5, "jitter_px": 20, "cache": "memory"}
    one, two = (PatchDataset(manifest, contour_px=c, **options) for c in (None, 3))
    for index in range(3):
        assert torch.equal(one[index]["image"], two[index]["image"])
        assert torch.equal(one[index]["target"], two[index]["target"][0])
        unknown = two[index]["target"] == IGNORE_ID
        assert torch.equal(unknown[0], unknown[1])


@pytest.mark.parametrize(("downsample", "cache"), [(2.0, "memory"), (1.0, "none")])
def test_contours_of_parts_or_of_other_scales_are_refused(records, downsample, cache):
    manifest = cut_patches(records[:1], patch_px=64, stride_px=64, downsample=downsample)
    with pytest.raises(ValueError, match="contour_px=3 draws contours on whole images"):
        PatchDataset(manifest, contour_px=3, cache=cache)


def test_contours_need_a_truth_that_tells_objects_apart(records, tmp_path):
    ids = np.asarray(Image.open(records[0].truth_path))
    Image.fromarray(((ids > 0) * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    record = replace(records[0], truth_kind="threshold_image", truth_path=tmp_path / "mask.png")
    manifest = cut_patches([record], patch_px=64, stride_px=64)
    with pytest.raises(ValueError, match=r"a: a truth of kind 'threshold_image' does not tell"):
        PatchDataset(manifest, contour_px=3, cache="memory")


def test_the_papers_augmentation_turns_little_and_flips_both_ways():
    image = np.zeros((33, 33, 3), np.uint8)
    labels = np.zeros((33, 33), np.uint8)
    labels[4:8, 4:8], corners = 1, set()
    augmentation = make_augmentation("haru")
    for seed in range(60):
        found = (augmentation(image, labels, seed)[1] == 1).nonzero()
        y, x = (axis.mean() - 16 for axis in found)
        assert abs(np.hypot(y, x) - np.hypot(10.5, 10.5)) < 0.7
        assert abs(abs(np.degrees(np.arctan2(abs(y), abs(x)))) - 45) < 16.5
        corners.add((y > 0, x > 0))
    assert len(corners) == 4


def test_training_patches_never_reach_into_the_strips(splits):
    assert (splits.val["x_px"] == 96).all()
    assert (splits.train["x_px"] + 64 + splits.jitter_px <= 96).all()
    assert sorted(splits.val["y_px"]) == [0] * 3 + [64] * 3  # the flush row at 96 shows them again
    assert {r.image_id for r in splits.train_records} == {"a", "b", "c"}
    assert "d" not in set(splits.train["image_id"]) | set(splits.val["image_id"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_ids": ["z"]}, "no tile 'z'; known"),
        ({"test_ids": []}, "4 tiles to train on, 0 to test on"),
        ({"test_ids": ["a", "b", "c", "d"]}, "0 tiles to train on, 4"),
        ({"test_ids": ["d"], "patch_px": 128}, "a: no patch of 128 px, moved by 8, fits"),
    ],
)
def test_splits_that_cannot_be_are_refused(records, options, message):
    with pytest.raises(ValueError, match=message):
        split_tiles(records, **({"patch_px": 64, "val_px": 64, "jitter_px": 8} | options))


def test_a_donor_on_both_sides_is_refused(records):
    both = [records[0], replace(records[3], donor="a")]
    with pytest.raises(ValueError, match="donor a has tiles in training and test"):
        split_tiles(both, test_ids=["d"], patch_px=64, val_px=64)


def test_haru_net_learns_mask_and_contour_and_separates_nuclei(haru, splits):
    assert haru.contours and haru.steps == 60
    assert haru.history["val_best_dice"].max() > 0.85
    separation, mark = choose_on_validation(haru, splits, "algorithm_1")
    assert separation.contour_threshold is not None
    assert mark > 0.3
    maps, truths = predict_strips(haru, splits)
    assert all(m.contour.shape == m.mask.shape == t.shape == (160, 64) for m, t in
               zip(maps, truths, strict=True))  # fmt: skip
    line = np.concatenate([contour_map(t).ravel() for t in truths])
    contour = np.concatenate([m.contour.ravel() for m in maps])
    assert contour[line].mean() > contour[~line].mean() + 0.1


def test_unet_is_scored_through_the_watershed(unet, splits):
    separation, _ = choose_on_validation(unet, splits, "watershed")
    assert separation.contour_threshold is None
    table = score_test(unet, splits, separation)
    assert list(table.index) == ["d", "mean of images", "pooled"]
    assert table.loc["d", "dice"] > 0.9 and table.loc["d", "aji"] > 0.3
    with pytest.raises(ValueError, match="no contour branch"):
        choose_on_validation(unet, splits, "subtract", contours=True)


def test_the_same_budget_gives_the_same_nuclei_network(unet, splits, tmp_path):
    again = train_nuclei(
        "unet", splits, budget=BUDGET, folder=tmp_path, options={"base_width": 8, "depth": 2}
    )
    assert again.history["train_loss"].tolist() == unet.history["train_loss"].tolist()


def test_training_stops_in_time_and_goes_on_with_more(splits, tmp_path):
    budget = replace(BUDGET, steps=3, validations=3)
    common = {"budget": budget, "folder": tmp_path, "options": {"base_width": 4, "depth": 1}}
    stopped = train_nuclei("unet", splits, max_minutes=1e-6, **common)
    assert len(stopped.history) == 1 and stopped.steps == 1
    finished = train_nuclei("unet", splits, resume=True, **common)
    assert len(finished.history) == 3
    straight = train_nuclei("unet", splits, name="straight", **common)
    assert finished.history["train_loss"].tolist() == straight.history["train_loss"].tolist()


@pytest.mark.parametrize("name", ["haru_net", "u2netp", "unet"])
def test_each_network_gets_a_loss_that_takes_what_it_gives(name):
    loss, sides = make_nuclei_loss(name), (torch.zeros(1, 1, 8, 8),) * 7
    target = torch.ones(1, 8, 8, dtype=torch.int64)
    given = {
        "haru_net": ((sides, sides), torch.stack([target, target], 1)),
        "u2netp": (sides, target),
        "unet": (sides[0], target),
    }[name]
    one = float(make_nuclei_loss("unet")(sides[0], target))
    outputs = {"haru_net": 14, "u2netp": 7, "unet": 1}[name]
    assert float(loss(*given)) == pytest.approx(outputs * one)


def test_two_channels_are_mask_and_contour_without_sides():
    loss, part = build_loss("two_branch", contour_weight=3, side_weights=(1, 1)), build_loss("bce")
    loss.part = part
    logits, target = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 2, 8, 8))
    expected = part(logits[:, :1], target[:, 0]) + 3 * part(logits[:, 1:], target[:, 1])
    assert torch.allclose(loss(logits, target), expected)


@pytest.mark.parametrize("width", [3, 32, 64])
def test_a_reduced_haru_net_has_the_width_it_was_given(width):
    with torch.device("meta"):
        model, small = HARUNet(width=width), HARUNet(small=True)
    shapes, others = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, small))
    assert {s[0] for name, s in shapes.items() if name.endswith("entry.0.weight")} == {width}
    assert (shapes == others) == (width == 64)
    with pytest.raises(ValueError, match="channels must be at least 1"):
        HARUNet(width=0)


class Echo(torch.nn.Module):
    """Gives channels of the image as logits, so that the answer does not depend on windows."""

    def __init__(self, channels: int = 2, value: float | None = None) -> None:
        super().__init__()
        self.channels, self.value = channels, torch.nn.Parameter(torch.zeros(1))
        self.fixed = value

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = image[:, : self.channels] + self.value
        return found if self.fixed is None else torch.full_like(found, self.fixed)


@pytest.mark.parametrize("size", [(70, 101), (20, 40)])
@pytest.mark.parametrize("turns", [False, True])
def test_windows_and_turns_do_not_show_in_the_maps(size, turns):
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    maps = predict_nuclei(Echo(), rgb, patch_px=32, turns=turns, precision="32-true")
    expected = to_tensor(rgb).sigmoid().numpy()
    np.testing.assert_allclose(maps.mask, expected[0], atol=1e-5)
    np.testing.assert_allclose(maps.contour, expected[1], atol=1e-5)
    assert predict_nuclei(Echo(1), rgb, patch_px=32).contour is None


@pytest.mark.parametrize("model", [Echo(3), Echo(2, float("nan"))])
def test_what_is_no_nuclei_network_is_refused(model):
    with pytest.raises(ValueError, match=r"channels \(NaN"):
        predict_nuclei(model, np.zeros((32, 32, 3), np.uint8), patch_px=32)


def perfect_maps(ids: np.ndarray, *, level: float = 0.9) -> NucleiMaps:
    mask, contour = unpack_planes(pack_planes(ids)).astype(np.float32) * np.float32(level)
    return NucleiMaps(mask, contour)


def test_the_thresholds_that_fit_validation_are_found():
    ids = draw_nuclei(120, 20, radii=(8, 12))
    maps = perfect_maps(ids, level=0.45)  # nothing is above 0.5
    candidates = list_separations("algorithm_1", contours=True)
    chosen, mark = choose_separation(candidates, [maps], [ids])
    assert chosen.mask_threshold < 0.45 and chosen.contour_threshold < 0.45
    assert mark > 0.75
    table = score_nuclei(chosen, {"one": maps}, {"one": ids})
    assert table.loc["one", "dice"] > 0.95
    assert (table.loc["pooled", "aji"] + table.loc["pooled", "pq"]) / 2 == pytest.approx(mark)


def test_a_choice_without_nuclei_or_candidates_is_refused():
    empty = np.zeros((16, 16), np.int32)
    for candidates in ([], [Separation()]):
        with pytest.raises(ValueError, match="no candidates, or no nuclei"):
            choose_separation(candidates, [perfect_maps(empty)], [empty])


def test_separations_drop_small_nuclei_and_know_their_methods():
    ids = np.zeros((30, 30), np.int32)
    ids[5:20, 5:20], ids[25:28, 25:28] = 1, 2
    maps = perfect_maps(ids)
    assert Separation()(maps).max() == 2
    assert Separation(min_area_px=10)(maps).max() == 1
    assert Separation("watershed", contour_threshold=None)(NucleiMaps(maps.mask)).max() == 2
    with pytest.raises(ValueError, match="no method 'magic'; known: algorithm_1"):
        Separation("magic")
    with pytest.raises(ValueError, match="no contour branch; set contour_threshold=None"):
        Separation()(NucleiMaps(maps.mask))


def test_maps_of_a_crop_are_the_crop_of_the_maps():
    maps = perfect_maps(draw_nuclei(40, 6))
    part = maps.crop(np.s_[:, -10:])
    np.testing.assert_array_equal(part.mask, maps.mask[:, -10:])
    assert NucleiMaps(maps.mask).crop(np.s_[:3, :]).contour is None


@pytest.mark.real
def test_real_tiles_divide_into_patches_strips_and_test_tiles(shared_data):
    from renal_utils.datasets.nuclei import read_nuclei

    records = read_nuclei(shared_data / "monuseg")
    splits = split_tiles(records, test_ids=[records[0].image_id])
    assert len(splits.train_records) == 6
    assert len(splits.val) == 6 * 5  # squares of 192 in 1000 rows
    assert isinstance(splits.val, pd.DataFrame) and (splits.train["positive_fraction"] > 0).any()
    assert read_instances(splits.test_records[0]).shape == (1000, 1000)
