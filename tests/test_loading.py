import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from patch_images import pixels_of, write_image

from renal_utils.augment import to_tensor
from renal_utils.loading import Draw, PatchDataset, PatchSampler, make_loader
from renal_utils.patching import cut_patches


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list:
    folder: Path = tmp_path_factory.mktemp("tiles")
    return [write_image(folder, name) for name in ("a", "b")]


@pytest.fixture(scope="module")
def manifest(records) -> pd.DataFrame:
    return cut_patches(records, patch_px=64, stride_px=64)  # 2 images of 5 x 4 patches


def tensors_of(loader) -> list[torch.Tensor]:
    return [torch.cat([b["image"].flatten(), b["target"].flatten()]) for b in loader]


def test_items_are_the_rows_pixels(manifest, records) -> None:
    dataset = PatchDataset(manifest)
    image, labels = pixels_of(records[1])
    item = dataset[27]
    row = manifest.iloc[27]
    box = np.s_[row["y_px"] : row["y_px"] + 64, row["x_px"] : row["x_px"] + 64]
    assert row["image_id"] == "b" and item["index"] == 27
    assert torch.equal(item["image"], to_tensor(image[box]))
    assert item["target"].dtype == torch.int64
    assert np.array_equal(item["target"].numpy(), labels[box])


def test_the_memory_cache_changes_no_sample(manifest) -> None:
    options = {"augmentation": "stain", "seed": 3, "jitter_px": 20}
    plain = PatchDataset(manifest, **options)
    cached = PatchDataset(manifest, **options, cache="memory")
    for index in (0, 13, 39):
        a, b = plain[index], cached[index]
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["target"], b["target"])


def test_the_memory_cache_equals_the_files_at_a_downsample_that_is_no_integer(records) -> None:
    manifest = cut_patches(records, patch_px=64, stride_px=64, downsample=1.7)
    plain, cached = PatchDataset(manifest), PatchDataset(manifest, cache="memory")
    for index in range(len(manifest)):
        assert torch.equal(plain[index]["image"], cached[index]["image"])
        assert torch.equal(plain[index]["target"], cached[index]["target"])


def test_the_memory_cache_needs_no_files_afterwards(tmp_path: Path) -> None:
    record = write_image(tmp_path, "gone")
    dataset = PatchDataset(cut_patches([record], patch_px=64, stride_px=64), cache="memory")
    record.image_path.unlink()
    assert dataset[0]["image"].shape == (3, 64, 64)


def test_a_cache_that_does_not_fit_says_what_it_needs(manifest) -> None:
    with pytest.raises(ValueError, match=r"0\.00 GB for 2 images.*cache_limit_gb is 0\.0001"):
        PatchDataset(manifest, cache="memory", cache_limit_gb=0.0001)


def test_samples_depend_on_seed_epoch_index_and_draw_alone(manifest) -> None:
    options = {"augmentation": "stain", "jitter_px": 10}
    dataset = PatchDataset(manifest, seed=1, **options)
    dataset.set_epoch(4)
    expected = dataset[7]["image"]
    again = PatchDataset(manifest, seed=1, **options)
    again.set_epoch(4)
    [again[i] for i in (3, 7, 12)]
    assert torch.equal(again[7]["image"], expected)
    assert torch.equal(again[Draw(7, 0)]["image"], expected)
    assert not torch.equal(again[Draw(7, 1)]["image"], expected)
    again.set_epoch(5)
    assert not torch.equal(again[7]["image"], expected)
    other = PatchDataset(manifest, seed=2, **options)
    other.set_epoch(4)
    assert not torch.equal(other[7]["image"], expected)


def test_jitter_reaches_every_place_in_the_image_and_none_outside(manifest, records) -> None:
    centre = manifest[(manifest["x_px"] == 0) & (manifest["image_id"] == "a")].iloc[[0]]
    dataset = PatchDataset(centre, jitter_px=16)
    row = dataset._patches[0]
    rng = np.random.default_rng(0)
    places = np.array([dataset._place(row, rng) for _ in range(600)])
    assert places.min() == 0 and set(places[:, 0]) == set(range(17)) == set(places[:, 1])
    far = manifest[(manifest["image_id"] == "a")].iloc[[-1]]
    dataset = PatchDataset(far, jitter_px=16)
    places = np.array([dataset._place(dataset._patches[0], rng) for _ in range(600)])
    assert places.max(axis=0).tolist() == [320 - 64, 256 - 64]


def test_iterating_over_a_data_set_ends(manifest) -> None:
    assert sum(1 for _ in PatchDataset(manifest)) == len(manifest) == 40
    with pytest.raises(IndexError):
        PatchDataset(manifest)[40]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on
def test_batches_are_the_same_on_any_number_of_workers(manifest) -> None:
    dataset = PatchDataset(manifest, augmentation="stain", seed=5, jitter_px=8)
    batches = {}
    for workers in (0, 2):
        loader = make_loader(dataset, batch_size=8, shuffle=True, num_workers=workers, seed=9)
        for epoch in (0, 1):
            dataset.set_epoch(epoch)
            batches[workers, epoch] = tensors_of(loader)
    for epoch in (0, 1):
        assert len(batches[0, epoch]) == 5
        for a, b in zip(batches[0, epoch], batches[2, epoch], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(batches[2, 0][0], batches[2, 1][0])


def test_an_epoch_can_be_entered_anywhere(manifest) -> None:
    first, second = (PatchDataset(manifest, augmentation="flips", seed=1) for _ in range(2))
    one = make_loader(first, batch_size=8, shuffle=True, seed=2)
    for epoch in range(4):
        first.set_epoch(epoch)
        expected = tensors_of(one)
    second.set_epoch(3)
    found = tensors_of(make_loader(second, batch_size=8, shuffle=True, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_shuffled_epoch_shows_each_patch_once_and_another_order_each_time(manifest) -> None:
    dataset = PatchDataset(manifest)
    sampler = PatchSampler(dataset, seed=0)
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        orders.append([draw.row for draw in sampler])
        assert sorted(orders[-1]) == list(range(40))
    assert orders[0] != orders[1] != orders[2]


def test_without_shuffling_the_order_is_the_manifests_and_nothing_is_left_out(manifest) -> None:
    loader = make_loader(PatchDataset(manifest), batch_size=16, shuffle=False)
    indices = torch.cat([batch["index"] for batch in loader])
    assert indices.tolist() == list(range(40)) and len(loader) == 3


def test_steps_per_epoch_draws_all_patches_about_equally_often_and_never_the_same_twice(
    manifest,
) -> None:
    dataset = PatchDataset(manifest)
    loader = make_loader(dataset, batch_size=8, shuffle=True, steps_per_epoch=17)
    draws = list(loader.sampler)
    assert len(loader) == 17 and len(draws) == 136 == len(set(draws))
    counts = np.bincount([draw.row for draw in draws], minlength=40)
    assert counts.min() == 3 and counts.max() == 4


def test_a_small_data_set_can_still_fill_large_batches_by_steps(manifest) -> None:
    few = PatchDataset(manifest.iloc[:3], augmentation="stain", seed=0)
    with pytest.raises(ValueError, match=r"3 patches do not fill a batch of 8.*steps_per_epoch"):
        make_loader(few, batch_size=8, shuffle=True)
    batch = next(iter(make_loader(few, batch_size=8, shuffle=True, steps_per_epoch=2)))
    assert len({image.numpy().tobytes() for image in batch["image"]}) == 8


def test_positive_share_balances_the_draws(manifest) -> None:
    dataset = PatchDataset(manifest)
    options = {"batch_size": 10, "shuffle": True, "steps_per_epoch": 20}
    loader = make_loader(dataset, **options, positive_share=0.75)
    positive = manifest["positive_fraction"].to_numpy() > 0
    drawn = np.array([positive[draw.row] for draw in loader.sampler])
    assert drawn.sum() == 150 and 0 < positive.mean() < 0.75
    assert not drawn[:150].all()  # mixed, not one kind after the other


def test_positive_share_needs_both_kinds(manifest) -> None:
    negatives = PatchDataset(manifest[manifest["positive_fraction"] == 0])
    with pytest.raises(ValueError, match="patches with foreground, but the manifest has none"):
        make_loader(negatives, batch_size=2, shuffle=True, positive_share=0.5)
    loader = make_loader(negatives, batch_size=2, shuffle=True, positive_share=0)
    assert len(list(loader.sampler)) == len(negatives)


def test_options_that_contradict_each_other_are_refused(manifest) -> None:
    dataset = PatchDataset(manifest)
    with pytest.raises(ValueError, match="set shuffle=True"):
        make_loader(dataset, batch_size=4, shuffle=False, steps_per_epoch=3)
    with pytest.raises(ValueError, match="must be at least 1"):
        make_loader(dataset, batch_size=0, shuffle=True)
    with pytest.raises(ValueError, match="cache 'disk' must be one of"):
        PatchDataset(manifest, cache="disk")
    with pytest.raises(ValueError, match=r"one patch_px, but this manifest has \[64, 32\]"):
        PatchDataset(manifest.assign(patch_px=[64] * 39 + [32]))
    with pytest.raises(ValueError, match="one patch_px, but this manifest has"):
        PatchDataset(manifest.iloc[:0])
    with pytest.raises(ValueError, match="no augmentation 'flop'"):
        PatchDataset(manifest, augmentation="flop")


def test_a_data_set_can_be_sent_to_a_spawned_worker(manifest) -> None:
    for cache in ("none", "memory"):
        dataset = PatchDataset(manifest, augmentation="thesis", seed=4, cache=cache)
        expected = dataset[5]["image"]
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[5]["image"], expected)


def test_fabric_does_not_reset_the_epoch(manifest) -> None:
    dataset = PatchDataset(manifest, augmentation="flips")
    plain = make_loader(dataset, batch_size=8, shuffle=True, seed=3)
    wrapped = Fabric(accelerator="cpu", devices=1).setup_dataloaders(plain)
    wrapped.dataset.set_epoch(6)  # the first iteration of a resumed training
    expected = tensors_of(plain)
    found = tensors_of(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    wrapped.dataset.set_epoch(0)
    assert not torch.equal(tensors_of(wrapped)[0], expected[0])


def test_two_ddp_processes_share_the_draws_of_an_epoch(manifest) -> None:
    dataset = PatchDataset(manifest)
    sampler = PatchSampler(dataset, seed=0)
    ranks = [
        DistributedSamplerWrapper(sampler, num_replicas=2, rank=r, shuffle=False) for r in (0, 1)
    ]
    shares = {}
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for rank in ranks:
            rank.set_epoch(17)  # Fabric's own count, which must not matter
        parts = [list(rank) for rank in ranks]
        assert sorted(d.row for d in parts[0] + parts[1]) == list(range(40))
        shares[epoch] = parts[0]
    assert shares[0] != shares[1]


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_real_tiles_load_in_workers(shared_data) -> None:
    from renal_utils.datasets.tiles import read_tiles

    records = read_tiles(shared_data / "hubmap_pas_slide")[:3]
    manifest = cut_patches(records, patch_px=256, stride_px=256, downsample=2.0)
    dataset = PatchDataset(manifest, augmentation="stain", jitter_px=128)
    loader = make_loader(dataset, batch_size=4, shuffle=True, num_workers=2, steps_per_epoch=4)
    batches = list(loader)
    assert len(batches) == 4 and batches[0]["image"].shape == (4, 3, 256, 256)
    assert {0, 1} <= set(torch.cat([b["target"].flatten() for b in batches]).tolist())
