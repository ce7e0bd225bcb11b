import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patch_images import pixels_of, write_image
from PIL import Image

from renal_utils.manifests import (
    MANIFEST_COLUMNS,
    list_patches,
    read_manifest,
    write_manifest,
)
from renal_utils.patch_reader import PatchReader, export_patches
from renal_utils.patching import cut_patches
from renal_utils.records import ImageRecord


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    return write_image(tmp_path, "tile", group="DN", x_l0=800, y_l0=1200, split="train")


def test_patches_cover_the_image_and_stay_inside_it(record: ImageRecord) -> None:
    manifest = cut_patches([record], patch_px=96, stride_px=64)
    covered = np.zeros((256, 320), int)
    for row in manifest.itertuples():
        assert 0 <= row.x_px <= 320 - 96 and 0 <= row.y_px <= 256 - 96
        covered[row.y_px : row.y_px + 96, row.x_px : row.x_px + 96] += 1
    assert covered.min() == 1
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    assert manifest["patch_id"].is_unique


def test_rows_say_where_they_come_from(record: ImageRecord) -> None:
    manifest = cut_patches([record], patch_px=64, stride_px=32, downsample=2.0)
    row = manifest[(manifest["x_px"] == 32) & (manifest["y_px"] == 64)].iloc[0]
    assert (row["x_l0"], row["y_l0"]) == (800 + 64, 1200 + 128)
    assert (row["donor"], row["group"], row["split"]) == ("tile", "DN", "train")
    assert (row["mpp"], row["downsample"], row["patch_px"]) == (0.5, 2.0, 64)
    assert row["label_set"] == "glomeruli"
    again = list_patches(manifest)[0].record
    assert again == dataclasses.replace(record, x_l0=0, y_l0=0)


def test_tissue_and_positive_fractions_are_those_of_the_pixels(record: ImageRecord) -> None:
    manifest = cut_patches([record], patch_px=64, stride_px=32)
    _, labels = pixels_of(record)
    for row in manifest.itertuples():
        patch = labels[row.y_px : row.y_px + 64, row.x_px : row.x_px + 64]
        assert row.positive_fraction == pytest.approx((patch == 1).mean(), abs=1e-9)
        tissue = np.clip((row.x_px + 64 - 160) / 64, 0, 1)
        assert row.tissue_fraction == pytest.approx(tissue, abs=0.06)


def test_sampled_truth_is_close_to_all_of_it(tmp_path: Path) -> None:
    big = write_image(tmp_path, "big", size=(1200, 900))
    _, labels = pixels_of(big)
    for downsample in (1.0, 1.5):
        side = 512
        manifest = cut_patches([big], patch_px=side, stride_px=300, downsample=downsample)
        for row in manifest.itertuples():
            x, y = round(row.x_px * downsample), round(row.y_px * downsample)
            span = round(side * downsample)
            patch = labels[y : y + span, x : x + span]
            assert row.positive_fraction == pytest.approx((patch == 1).mean(), abs=0.003)


def test_thresholds_keep_what_reaches_them(record: ImageRecord) -> None:
    everything = cut_patches([record], patch_px=64, stride_px=32)
    kept = cut_patches([record], patch_px=64, stride_px=32, min_tissue=0.5, min_positive=0.1)
    wanted = everything[
        (everything["tissue_fraction"] >= 0.5) & (everything["positive_fraction"] >= 0.1)
    ]
    assert 0 < len(kept) < len(everything)
    assert kept["patch_id"].tolist() == wanted["patch_id"].tolist()


def test_a_share_of_trivial_patches_can_stay(record: ImageRecord) -> None:
    options = {"patch_px": 32, "stride_px": 8, "min_tissue": 0.9, "min_positive": 0.05}
    without = cut_patches([record], **options)
    some = cut_patches([record], **options, keep_negatives=0.3, seed=1)
    every = cut_patches([record], **options, keep_negatives=1.0)
    assert len(every) == len(cut_patches([record], **options | {"min_positive": 0.0}))
    share = (len(some) - len(without)) / (len(every) - len(without))
    assert share == pytest.approx(0.3, abs=0.1)
    assert set(without["patch_id"]) < set(some["patch_id"]) < set(every["patch_id"])
    assert some.equals(cut_patches([record], **options, keep_negatives=0.3, seed=1))
    assert (some["tissue_fraction"] >= 0.9).all()


def test_a_scale_in_microns_gives_each_image_its_own_downsample(tmp_path: Path) -> None:
    fine = write_image(tmp_path, "fine", mpp=0.25)
    coarse = write_image(tmp_path, "coarse", mpp=0.5)
    manifest = cut_patches([fine, coarse], patch_px=64, stride_px=64, mpp=1.0)
    assert manifest.groupby("image_id")["downsample"].first().to_dict() == {
        "fine": 4.0,
        "coarse": 2.0,
    }
    assert (manifest["mpp"] * manifest["downsample"] == 1.0).all()


def test_a_scale_in_microns_needs_images_that_know_theirs(tmp_path: Path) -> None:
    unknown = write_image(tmp_path, "unknown", mpp=None)
    with pytest.raises(ValueError, match=r"unknown\.png"):
        cut_patches([unknown], patch_px=64, stride_px=64, mpp=1.0)


def test_a_patch_larger_than_the_slide_names_image_and_sizes(record: ImageRecord) -> None:
    with pytest.raises(ValueError, match=r"tile \(.*tile\.png\).*512 x 512.*320 x 256 px at"):
        cut_patches([record], patch_px=512, stride_px=512)
    with pytest.raises(ValueError, match=r"200 x 200.*160 x 128 px at downsample 2"):
        cut_patches([record], patch_px=200, stride_px=200, downsample=2)


def test_a_stride_with_gaps_is_refused(record: ImageRecord) -> None:
    with pytest.raises(ValueError, match="stride 80 is larger than the patch 64"):
        cut_patches([record], patch_px=64, stride_px=80)


def test_no_records_and_shares_out_of_range_are_refused(record: ImageRecord) -> None:
    with pytest.raises(ValueError, match="no records"):
        cut_patches([], patch_px=64, stride_px=64)
    with pytest.raises(ValueError, match=r"min_tissue is a share of pixels, 0 to 1, not 50"):
        cut_patches([record], patch_px=64, stride_px=64, min_tissue=50)


def test_images_without_truth_have_no_positive_fraction(tmp_path: Path) -> None:
    plain = write_image(tmp_path, "plain", truth_kind="none", truth_path=None)
    manifest = cut_patches([plain], patch_px=64, stride_px=64)
    assert manifest["positive_fraction"].isna().all() and len(manifest) == 20
    with pytest.raises(ValueError, match="no truth, so min_positive"):
        cut_patches([plain], patch_px=64, stride_px=64, min_positive=0.01)


def test_two_images_of_one_name_are_refused(record: ImageRecord) -> None:
    with pytest.raises(ValueError, match=r"patch ids stand twice.*image_ids"):
        cut_patches([record, record], patch_px=64, stride_px=64)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_manifest_is_read_back_as_it_was(record: ImageRecord, suffix: str) -> None:
    folder = record.image_path.parent
    plain = write_image(folder, "plain", truth_kind="none", truth_path=None, mpp=None, donor="")
    manifest = cut_patches([record, plain], patch_px=64, stride_px=64)
    write_manifest(manifest, folder / f"manifest{suffix}")
    pd.testing.assert_frame_equal(read_manifest(folder / f"manifest{suffix}"), manifest)


def test_a_manifest_moves_together_with_its_data(record: ImageRecord) -> None:
    folder = record.image_path.parent
    data = folder / "here"
    data.mkdir()
    inside = write_image(data, "inside")
    write_manifest(cut_patches([inside], patch_px=64, stride_px=64), data / "cut" / "m.csv")
    assert str(folder) not in (data / "cut" / "m.csv").read_text()
    shutil.move(data, folder / "there")
    moved = read_manifest(folder / "there" / "cut" / "m.csv")
    assert Path(moved["image_path"].iloc[0]) == folder / "there" / "inside.png"


def test_a_broken_manifest_is_refused_by_name(record: ImageRecord) -> None:
    folder = record.image_path.parent
    manifest = cut_patches([record], patch_px=64, stride_px=64)
    manifest.drop(columns=["donor", "split"]).to_csv(folder / "short.csv", index=False)
    with pytest.raises(ValueError, match=r"short\.csv: no column 'donor', 'split'"):
        read_manifest(folder / "short.csv")
    manifest.drop(columns=["donor"]).to_parquet(folder / "short.parquet")
    with pytest.raises(ValueError, match=r"short\.parquet: columns \['donor'\] are missing"):
        read_manifest(folder / "short.parquet")
    manifest.assign(label_set="livers").to_csv(folder / "livers.csv", index=False)
    with pytest.raises(ValueError, match=r"livers\.csv: label_set \['livers'\].*glomeruli"):
        read_manifest(folder / "livers.csv")
    pd.concat([manifest, manifest]).to_csv(folder / "twice.csv", index=False)
    with pytest.raises(ValueError, match=r"twice\.csv: 20 patch ids stand twice"):
        read_manifest(folder / "twice.csv")
    (folder / "cut.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"cut\.parquet is not a Parquet file"):
        read_manifest(folder / "cut.parquet")
    (folder / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv"):
        read_manifest(folder / "empty.csv")
    with pytest.raises(ValueError, match=r"\.xlsx: a manifest is"):
        write_manifest(manifest, folder / "m.xlsx")


def test_a_full_disk_leaves_the_old_manifest(record: ImageRecord, small_disk) -> None:
    folder = small_disk(1)
    manifest = cut_patches([record], patch_px=64, stride_px=64)
    write_manifest(manifest, folder / "m.csv")
    many = pd.concat([manifest.assign(patch_id=manifest["patch_id"] + f"_{i}") for i in range(500)])
    with pytest.raises(OSError, match="No space left"):
        write_manifest(many, folder / "m.csv")
    assert [path.name for path in folder.iterdir()] == ["m.csv"]
    assert read_manifest(folder / "m.csv").equals(manifest)


def test_missing_files_are_named(record: ImageRecord) -> None:
    path = record.image_path.parent / "m.csv"
    write_manifest(cut_patches([record], patch_px=64, stride_px=64), path)
    record.truth_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 files .* such as .*tile-labels\.png"):
        read_manifest(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_manifest(path.with_name("absent.csv"))


def test_a_text_where_a_number_should_be_is_refused(record: ImageRecord) -> None:
    path = record.image_path.parent / "m.csv"
    manifest = cut_patches([record], patch_px=64, stride_px=64).astype({"x_px": "object"})
    manifest.loc[2, "x_px"] = "left"
    manifest.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"m\.csv: column 'x_px' must hold int64"):
        read_manifest(path)


def test_the_reader_gives_the_pixels_of_the_row(record: ImageRecord) -> None:
    image, labels = pixels_of(record)
    reader = PatchReader()
    for row in list_patches(cut_patches([record], patch_px=64, stride_px=48)):
        rgb, ids = reader.read(row)
        box = np.s_[row.y_px : row.y_px + 64, row.x_px : row.x_px + 64]
        assert np.array_equal(rgb, image[box]) and np.array_equal(ids, labels[box])
    reader.close()


def test_the_reader_keeps_few_images_open_and_travels_without_them(tmp_path: Path) -> None:
    records = [write_image(tmp_path, f"t{i}", size=(64, 64)) for i in range(5)]
    rows = list_patches(cut_patches(records, patch_px=64, stride_px=64))
    reader = PatchReader(max_open=2)
    for row in rows:
        reader.read(row)
    assert len(reader._opened) == 2
    copy = pickle.loads(pickle.dumps(reader))
    assert len(copy._opened) == 0
    assert np.array_equal(copy.read(rows[4])[0], reader.read(rows[4])[0])
    reader.close()
    copy.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_reader_does_not_use_its_parents_files(record: ImageRecord, monkeypatch) -> None:
    row = list_patches(cut_patches([record], patch_px=64, stride_px=64))[0]
    reader = PatchReader()
    first = reader.open(row)
    assert reader.open(row) is first
    monkeypatch.setattr("renal_utils.patch_reader.os.getpid", lambda: -5)  # as if forked
    assert reader.open(row) is not first


def test_exported_patches_are_the_same_patches(record: ImageRecord) -> None:
    folder = record.image_path.parent / "export"
    manifest = cut_patches([record], patch_px=64, stride_px=64, downsample=2.0)
    exported = export_patches(manifest, folder)
    assert exported.equals(read_manifest(folder / "manifest.csv"))
    assert exported["patch_id"].tolist() == manifest["patch_id"].tolist()
    assert (exported["mpp"] == 1.0).all()
    assert exported["x_l0"].tolist() == (400 + manifest["x_px"]).tolist()
    reader = PatchReader()
    for old, new in zip(list_patches(manifest), list_patches(exported), strict=True):
        for a, b in zip(reader.read(old), reader.read(new), strict=True):
            assert np.array_equal(a, b)
        assert np.asarray(Image.open(new.image_path)).shape == (64, 64, 3)
    reader.close()


@pytest.mark.real
def test_real_tiles_give_patches_with_about_the_known_share_of_glomeruli(shared_data) -> None:
    from renal_utils.datasets.tiles import read_tiles

    records = read_tiles(shared_data / "hubmap_pas_slide")
    manifest = cut_patches(records, patch_px=256, stride_px=172, downsample=2.0)
    assert len(manifest) == 35 * 5 * 3
    assert manifest["positive_fraction"].mean() == pytest.approx(0.06, abs=0.03)
    assert manifest["tissue_fraction"].mean() > 0.8
