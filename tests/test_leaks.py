from pathlib import Path

import numpy as np
import pandas as pd
from patch_images import fill_columns, lay_grid
from PIL import Image

from renal_utils.leaks import LEAK_COLUMNS, find_leaks


def test_a_random_split_of_patches_leaks_by_donor_and_by_overlap() -> None:
    grid = lay_grid(stride=32)
    chance = np.random.default_rng(0).random(len(grid)) < 0.5
    leaks = find_leaks(grid.assign(split=np.where(chance, "train", "val")))
    assert list(leaks.columns) == list(LEAK_COLUMNS)
    assert {"same donor", "overlapping patches"} == set(leaks["kind"])


def test_overlaps_are_those_of_a_brute_force_search() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 300, (2, 40))
    rows = fill_columns(pd.DataFrame({"x_px": x, "y_px": y, "x_l0": x, "y_l0": y}))
    rows = rows.assign(split=rng.choice(["train", "val", "test", ""], 40))
    expected = {
        (rows["patch_id"][a], rows["patch_id"][b])
        for a in range(40)
        for b in range(a + 1, 40)
        if rows["split"][a] != rows["split"][b]
        and "" not in (rows["split"][a], rows["split"][b])
        and max(abs(x[a] - x[b]), abs(y[a] - y[b])) < 64
    }
    leaks = find_leaks(rows)
    found = leaks[leaks["kind"] == "overlapping patches"]
    assert set(zip(found["patch_a"], found["patch_b"], strict=True)) == expected
    assert expected


def test_patches_that_only_touch_do_not_overlap() -> None:
    rows = fill_columns(pd.DataFrame({"x_px": [0, 64], "x_l0": [0, 64], "split": ["train", "val"]}))
    assert set(find_leaks(rows)["kind"]) == {"same donor"}


def test_tiles_that_overlap_on_their_slide_are_found() -> None:
    places = pd.DataFrame(
        {"x_l0": [0, 40], "image_path": ["a.png", "b.png"], "split": ["train", "val"]}
    )
    leaks = find_leaks(fill_columns(places))
    assert leaks.loc[leaks["kind"] == "overlapping patches", "detail"].tolist() == [
        "24 x 64 level-0 pixels"
    ]


def test_slides_of_one_donor_are_frames_of_their_own() -> None:
    rows = pd.DataFrame({"image_path": ["a.tiff", "b.tiff"], "split": ["train", "val"]})
    assert set(find_leaks(fill_columns(rows))["kind"]) == {"same donor"}


def test_a_copied_image_under_another_donor_is_found_by_its_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
    other = rng.integers(0, 256, (64, 64, 3), np.uint8)
    glass = np.full((64, 64, 3), 255, np.uint8)
    rows = []
    for i, pixels in enumerate([picture, other, glass, picture, glass]):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image_path": str(tmp_path / f"{i}.png"), "image_id": f"i{i}"})
    table = pd.DataFrame(rows).assign(
        donor=["a", "a", "a", "b", "b"], split=["train"] * 3 + ["val"] * 2
    )
    manifest = fill_columns(table)
    assert find_leaks(manifest).empty
    leaks = find_leaks(manifest, read_pixels=True)
    assert leaks[["kind", "patch_a", "patch_b"]].to_numpy().tolist() == [
        ["identical pixels", "p0", "p3"]
    ]
