import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_images import fill_columns, lay_grid

from renal_utils.leaks import find_leaks
from renal_utils.splits import fold_by_donor, split_by_column, split_by_donor


def manifest_of(donors: dict[str, str], *, images: int = 2, patches: int = 3) -> pd.DataFrame:
    """A manifest of donors {name: group}, with images and patches that do not overlap."""
    rows = [
        {
            "patch_id": f"{donor}_{image}_{patch}",
            "image_id": f"{donor}_{image}",
            "image_path": f"{donor}_{image}.png",
            "donor": donor,
            "group": group,
            "x_px": 64 * patch,
            "x_l0": 64 * patch,
        }
        for donor, group in donors.items()
        for image in range(images)
        for patch in range(patches)
    ]
    return fill_columns(pd.DataFrame(rows))


def eight_donors() -> dict[str, str]:
    return {f"d{i}": f"group{i % 4}" for i in range(8)}


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5).filter(lambda s: sum(s) >= 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_every_donor_stands_in_exactly_one_split(sizes: list[int], seed: int) -> None:
    donors = {f"g{g}d{d}": f"g{g}" for g, size in enumerate(sizes) for d in range(size)}
    divided = split_by_donor(manifest_of(donors, patches=1), seed=seed)
    assert (divided.groupby("donor")["split"].nunique() == 1).all()
    assert set(divided["split"]) == {"train", "val", "test"}
    assert find_leaks(divided).empty


def test_numbers_of_donors_follow_the_fractions() -> None:
    donors = {f"d{i}": "" for i in range(20)}
    divided = split_by_donor(manifest_of(donors, images=1, patches=1))
    assert divided["split"].value_counts().to_dict() == {"train": 12, "val": 4, "test": 4}


def test_groups_are_spread_over_the_splits() -> None:
    donors = {f"{group}{i}": group for group in ("A", "B", "C") for i in range(5)}
    for seed in range(10):
        divided = split_by_donor(manifest_of(donors, images=1, patches=1), seed=seed)
        table = pd.crosstab(divided["group"], divided["split"])
        assert (table["train"] == 3).all() and (table["val"] == 1).all()


def test_splits_depend_on_the_seed_and_on_nothing_else() -> None:
    manifest = manifest_of(eight_donors())
    first = split_by_donor(manifest, seed=3)
    assert split_by_donor(manifest, seed=3).equals(first)
    shuffled = split_by_donor(manifest.sample(frac=1, random_state=1), seed=3)
    assert shuffled.sort_index()["split"].equals(first["split"])
    assert any(not split_by_donor(manifest, seed=s)["split"].equals(first["split"]) for s in (4, 5))


def test_a_kept_split_stays_as_the_data_set_made_it() -> None:
    manifest = manifest_of(eight_donors())
    official = manifest.assign(split=np.where(manifest["donor"].isin(["d1", "d6"]), "test", ""))
    fractions = {"train": 0.5, "val": 0.5}
    divided = split_by_donor(official, fractions=fractions, keep=("test",))
    assert set(divided.loc[divided["split"] == "test", "donor"]) == {"d1", "d6"}
    assert divided.drop_duplicates("donor")["split"].value_counts()["train"] == 3


def test_a_kept_split_that_shares_a_donor_is_refused() -> None:
    manifest = manifest_of(eight_donors())
    manifest.loc[0, "split"] = "test"
    with pytest.raises(ValueError, match=r"\['d0'\] stand both in a split to keep"):
        split_by_donor(manifest, fractions={"train": 0.5, "val": 0.5}, keep=("test",))


def test_too_few_donors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 donors cannot fill the 3 splits.*split_by_column"):
        split_by_donor(manifest_of({"a": "", "b": ""}))
    with pytest.raises(ValueError, match="3 donors cannot fill the 4 splits"):
        fold_by_donor(manifest_of({"a": "", "b": "", "c": ""}), 0, folds=4)


def test_unnamed_donors_are_refused() -> None:
    manifest = manifest_of(eight_donors())
    manifest.loc[3, "donor"] = ""
    with pytest.raises(ValueError, match="1 images have no donor, such as 'd0_1'"):
        split_by_donor(manifest)


def test_fractions_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_donor(manifest_of(eight_donors()), fractions={"train": 0.8, "val": 0.3})


def test_folds_hold_out_every_donor_once() -> None:
    manifest = manifest_of(eight_donors())
    held_out = []
    for fold in range(4):
        divided = fold_by_donor(manifest, fold, folds=4, seed=2)
        assert set(divided["split"]) == {"train", "val"}
        held_out += divided.loc[divided["split"] == "val", "donor"].unique().tolist()
    assert sorted(held_out) == sorted(eight_donors())
    with pytest.raises(ValueError, match="fold 4 of 4"):
        fold_by_donor(manifest, 4, folds=4)


def test_columns_split_a_slide_without_leaks() -> None:
    grid = lay_grid(stride=32)
    divided = split_by_column(grid, column_l0=160, val_columns=[1], test_columns=[3])
    leaks = find_leaks(divided)
    assert set(leaks["kind"]) == {"same donor"}  # there is one slide only, and it says so
    column = (divided["x_l0"] - 100) // 160
    assert (column[divided["split"] == "val"] == 1).all()
    assert (column[divided["split"] == "test"] == 3).all()


def test_a_patch_across_a_border_belongs_to_no_split() -> None:
    divided = split_by_column(lay_grid(stride=32), column_l0=160, val_columns=[1])
    start, stop = divided["x_l0"] - 100, divided["x_l0"] - 100 + 64
    crossing = ((start < 160) & (stop > 160)) | ((start < 320) & (stop > 320))
    assert crossing.any()
    assert ((divided["split"] == "") == crossing).all()


def test_a_patch_across_two_columns_of_one_split_stays() -> None:
    divided = split_by_column(lay_grid(stride=32), column_l0=160, val_columns=[0])
    inside = (divided["x_l0"] - 100 < 480) & (divided["x_l0"] - 100 + 64 > 480)
    assert inside.any() and (divided.loc[inside, "split"] == "train").all()


def test_a_margin_keeps_shifted_crops_apart() -> None:
    grid = lay_grid(stride=32)
    tight = split_by_column(grid, column_l0=160, val_columns=[1])
    wide = split_by_column(grid, column_l0=160, val_columns=[1], margin_l0=20)
    assert "overlapping patches" not in set(find_leaks(wide, margin_l0=20)["kind"])
    assert "overlapping patches" in set(find_leaks(tight, margin_l0=20)["kind"])
    kept = wide["split"] != ""
    assert (wide.loc[kept, "split"] == tight.loc[kept, "split"]).all()


def test_columns_refuse_several_donors_and_columns_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"8 donors .*split_by_donor"):
        split_by_column(manifest_of(eight_donors()), column_l0=64, val_columns=[0])
    with pytest.raises(ValueError, match=r"columns \[7\] are not on the slide; it has 0 to 3"):
        split_by_column(lay_grid(), column_l0=160, val_columns=[7])
    with pytest.raises(ValueError, match="stands twice"):
        split_by_column(lay_grid(), column_l0=160, val_columns=[1], test_columns=[1])
