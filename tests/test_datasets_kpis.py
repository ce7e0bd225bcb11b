"""The KPIs reader on small copies of the set's layouts, with the set's own traps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from renal_utils.datasets.kpis import SCORING_DOWNSAMPLE, clean_case, donor_of, read_kpis
from renal_utils.label_sources import open_labels

SIZE_PX = (48, 40)


def save(path: Path, *, mask: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((SIZE_PX[1], SIZE_PX[0]), np.uint8)
    pixels[10:30, 8:32] = 255
    image = Image.fromarray(pixels)
    (image if mask else image.convert("RGB")).save(path)
    return path


def add_patches(folder: Path, split: str, group: str, case: str, names=("p0", "p1")) -> None:
    for name in names:
        save(folder / split / group / case / "img" / f"{case}_{name}_img.jpg", mask=False)
        save(folder / split / group / case / "mask" / f"{case}_{name}_mask.jpg", mask=True)


def add_slide(folder: Path, case: str, *, apart: bool = False) -> None:
    save(folder / ("img" if apart else "") / f"{case}_wsi.tiff", mask=False)
    save(folder / ("mask" if apart else "") / f"{case}_mask.tiff", mask=True)


def test_patches_tell_split_group_animal_and_truth(tmp_path):
    add_patches(tmp_path, "train", "56Nx", "12_116")
    add_patches(tmp_path, "train", "NEP25", "08_368_01", ("p0",))
    add_patches(tmp_path, "validation", "56NX", "12-173", ("p0",))
    records = read_kpis(tmp_path)
    assert [(r.image_id, r.split, r.group, r.donor) for r in records] == [
        ("12_116_p0", "train", "56Nx", "12_116"),
        ("12_116_p1", "train", "56Nx", "12_116"),
        ("08_368_01_p0", "train", "NEP25", "08_368"),
        ("12_173_p0", "val", "56Nx", "12_173"),
    ]
    assert {r.truth_kind for r in records} == {"threshold_image"}
    with open_labels(records[0]) as source:
        assert source.read((0, 0), SIZE_PX).sum() == 20 * 24


def test_sections_of_one_animal_have_one_donor(tmp_path):
    for section in ("08_368_01", "08_368_02", "08_368_03", "08_471_01"):
        add_patches(tmp_path, "train", "NEP25", section, ("p0",))
    donors = [r.donor for r in read_kpis(tmp_path)]
    assert donors == ["08_368", "08_368", "08_368", "08_471"]


@pytest.mark.parametrize(
    ("case", "donor"),
    [
        ("12_116", "12_116"),
        ("12-173", "12_173"),
        ("08_368_03", "08_368"),
        ("08-368-03", "08_368"),
        ("normal_F1", "normal_F1"),
        ("F7", "F7"),
    ],
)
def test_donor_is_the_first_two_parts_of_a_case(case, donor):
    assert donor_of(case) == donor


def test_hyphens_and_underscores_are_one_spelling():
    assert clean_case("12-173") == clean_case("12_173")


@pytest.mark.parametrize("apart", [False, True])
def test_slides_are_read_in_both_layouts(tmp_path, apart):
    root = tmp_path if apart else tmp_path / "test"
    add_slide(root / "DN", "11-358", apart=apart)
    add_slide(root / "NEP25", "08_368_02", apart=apart)
    records = read_kpis(tmp_path, images="slides", mpp={"DN": 0.25, "NEP25": 0.5})
    assert [r.image_id for r in records] == ["11_358", "08_368_02"]
    assert [r.donor for r in records] == ["11_358", "08_368"]
    assert [r.mpp for r in records] == [0.25, 0.5]
    assert {r.split for r in records} == ({""} if apart else {"test"})
    with open_labels(records[0]) as source:
        assert source.read((0, 0), SIZE_PX).sum() == 20 * 24


def test_patches_and_slides_of_one_group_do_not_disturb_each_other(tmp_path):
    add_patches(tmp_path, "train", "DN", "11_356")
    add_slide(tmp_path / "train" / "DN", "11_356")
    assert len(read_kpis(tmp_path)) == len(read_kpis(tmp_path, images="patches")) == 2
    assert len(read_kpis(tmp_path, images="slides")) == 1


def test_slides_are_found_where_there_are_no_patches(tmp_path):
    add_slide(tmp_path / "train" / "DN", "11_356")
    assert [r.image_path.name for r in read_kpis(tmp_path)] == ["11_356_wsi.tiff"]


def test_only_nep25_is_scored_at_its_native_scale():
    assert {g for g, d in SCORING_DOWNSAMPLE.items() if d == 1} == {"NEP25"}
    assert set(SCORING_DOWNSAMPLE) == {"56Nx", "DN", "NEP25", "normal"}


def test_case_without_any_mask_has_hidden_truth(tmp_path):
    save(tmp_path / "test" / "DN" / "11_360" / "img" / "a_img.jpg", mask=False)
    (record,) = read_kpis(tmp_path)
    assert (record.truth_kind, record.truth_path) == ("none", None)


@pytest.mark.parametrize(("lost", "what"), [("mask", "mask"), ("img", "image")])
def test_unpaired_file_is_named(tmp_path, lost, what):
    add_patches(tmp_path, "train", "DN", "11_356")
    (tmp_path / f"train/DN/11_356/{lost}/11_356_p1_{lost}.jpg").unlink()
    with pytest.raises(ValueError, match=f"11_356: '11_356_p1' has no {what}"):
        read_kpis(tmp_path)


def test_stray_image_is_named(tmp_path):
    add_patches(tmp_path, "train", "DN", "11_356")
    save(tmp_path / "train/DN/11_356/img/overview.jpg", mask=False)
    with pytest.raises(ValueError, match=r"overview\.jpg: expected a name that ends in '_img'"):
        read_kpis(tmp_path)


def test_unknown_group_lists_groups_and_splits(tmp_path):
    add_patches(tmp_path, "train", "FSGS", "1_1")
    with pytest.raises(ValueError, match=r"'FSGS' is neither a group \(56Nx, DN, .* nor a split"):
        read_kpis(tmp_path)


def test_one_case_in_two_splits_is_refused_though_spelt_in_two_ways(tmp_path):
    add_patches(tmp_path, "train", "56Nx", "12_116", ("p0",))
    add_patches(tmp_path, "test", "56NX", "12-116", ("p0",))
    with pytest.raises(ValueError, match="both '12_116_p0'"):
        read_kpis(tmp_path)


@pytest.mark.parametrize("images", ["patches", "slides"])
def test_empty_folder_says_what_was_expected(tmp_path, images):
    (tmp_path / "train" / "DN").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"no {images} found; expected SPLIT/GROUP/CASE"):
        read_kpis(tmp_path, images=images)


def test_missing_folder_and_unknown_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_kpis(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match=r"images 'tiles' is not one of \('auto', 'patches', 'slides'\)"
    ):
        read_kpis(tmp_path, images="tiles")
