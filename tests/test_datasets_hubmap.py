"""The HuBMAP reader on a small copy of the set's layout."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from renal_utils.datasets.hubmap import (
    INFORMATION_FILE,
    read_anatomy,
    read_hubmap,
    read_hubmap_information,
    write_submission,
)
from renal_utils.label_sources import open_labels
from renal_utils.rle import encode_rle, read_rle_table

SIZE_PX = (64, 48)


def glomerulus(n: int) -> np.ndarray:
    mask = np.zeros((SIZE_PX[1], SIZE_PX[0]), bool)
    mask[5 + n : 20 + n, 10:30] = True
    return mask


def outlines(name: str) -> str:
    ring = [[1, 1], [9, 1], [9, 9], [1, 9], [1, 1]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    properties = {"classification": {"name": name}}
    return json.dumps([{"type": "Feature", "geometry": geometry, "properties": properties}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three training slides of two people, one test slide."""
    for split, ids in (("train", ("aaa", "bbb", "ccc")), ("test", ("ddd",))):
        (tmp_path / split).mkdir()
        for name in ids:
            image = Image.new("RGB", SIZE_PX, (220, 180, 220))
            image.save(tmp_path / split / f"{name}.tiff")
    (tmp_path / "train" / "aaa.json").write_text(outlines("glomerulus"))
    (tmp_path / "train" / "aaa-anatomical-structure.json").write_text(outlines("Cortex"))
    rows = [f"{name},{encode_rle(glomerulus(n))}" for n, name in enumerate(("aaa", "bbb", "ccc"))]
    (tmp_path / "train.csv").write_text("\n".join(["id,encoding", *rows, ""]))
    (tmp_path / "sample_submission.csv").write_text("id,predicted\nddd,\n")
    write_information(tmp_path, ["67347", "67347", "65631", "65631"])
    return tmp_path


def write_information(folder: Path, patients: list[str]) -> None:
    table = pd.DataFrame({"image_file": [f"{name}.tiff" for name in ("aaa", "bbb", "ccc", "ddd")]})
    table["width_pixels"], table["height_pixels"] = SIZE_PX
    table["anatomical_structures_segmention_file"] = "x-anatomical-structure.json"
    table["glomerulus_segmentation_file"] = "x.json"
    table["patient_number"] = patients
    table["age"] = [58, 58, 31, 31]
    table["sex"] = ["Male", "Male", "Female", "Female"]
    table.to_csv(folder / INFORMATION_FILE, index=False)


def test_records_tell_slide_truth_person_and_split(folder):
    records = read_hubmap(folder, mpp=0.5)
    assert [r.image_id for r in records] == ["aaa", "bbb", "ccc", "ddd"]
    assert [r.donor for r in records] == ["67347", "67347", "65631", "65631"]
    assert [r.split for r in records] == ["train"] * 3 + ["test"]
    assert [r.truth_kind for r in records] == ["rle_csv"] * 3 + ["none"]
    assert {r.mpp for r in records} == {0.5}
    for n, record in enumerate(records[:3]):
        with open_labels(record) as source:
            np.testing.assert_array_equal(source.read((0, 0), SIZE_PX), glomerulus(n))


def test_outlines_can_be_the_truth_instead(folder):
    (folder / "train.csv").write_text("id,encoding\naaa,1 1\n")
    for name in ("bbb", "ccc"):
        (folder / "train" / f"{name}.tiff").unlink()
    (record, _) = read_hubmap(folder, truth="polygons")
    assert open_labels(record).read((0, 0), SIZE_PX).sum() == 64


def test_outlines_asked_for_but_absent_are_named(folder):
    with pytest.raises(ValueError, match=r"there is no .*bbb\.json; get it, or pass truth='rle'"):
        read_hubmap(folder, truth="polygons")


def test_anatomy_is_read_where_it_is_there(folder):
    first, second, *_ = read_hubmap(folder)
    assert [o.label for o in read_anatomy(first)] == ["Cortex"]
    assert read_anatomy(second) == []


def test_information_has_numbers_as_numbers_and_people_as_texts(folder):
    table = read_hubmap_information(folder)
    assert table["image_id"].tolist() == ["aaa", "bbb", "ccc", "ddd"]
    assert table["age"].sum() == 178
    assert table["patient_number"].iloc[0] == "67347"
    assert table["sex"].iloc[2] == "Female"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train.csv", "encoding", "rle", r"train\.csv: no column 'encoding'"),
        ("train.csv", "aaa", "bbb", r"id 'bbb' stands twice"),
        ("sample_submission.csv", "predicted", "p", r"submission\.csv: no column 'predicted'"),
        (INFORMATION_FILE, "patient_number", "patient", "no column 'patient_number'"),
        (
            INFORMATION_FILE,
            "segmention",
            "segmentation",
            "no column 'anatomical_structures_segmention_file'",
        ),
        (INFORMATION_FILE, "bbb.tiff", "zzz.tiff", r"no patient_number for \['bbb'\]"),
    ],
)
def test_tables_that_lack_something_are_refused(folder, file, old, new, message):
    path = folder / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_hubmap(folder)


def test_slide_without_a_person_is_refused(folder):
    write_information(folder, ["67347", "", "65631", "65631"])
    with pytest.raises(ValueError, match=r"no patient_number for \['bbb'\]"):
        read_hubmap(folder)


def test_listed_slide_that_is_missing_is_named_or_left_out_when_asked(folder):
    (folder / "train" / "bbb.tiff").unlink()
    with pytest.raises(ValueError, match=r"train\.csv lists 'bbb', but there is no .*bbb\.tiff"):
        read_hubmap(folder)
    assert [r.image_id for r in read_hubmap(folder, skip_missing=True)] == ["aaa", "ccc", "ddd"]


def test_slide_that_no_table_lists_is_named(folder):
    (folder / "train" / "eee.tiff").write_bytes((folder / "train" / "aaa.tiff").read_bytes())
    with pytest.raises(ValueError, match=r"eee\.tiff is not listed in .*train\.csv"):
        read_hubmap(folder)


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.csv: no such file"):
        read_hubmap(tmp_path)


def test_folder_without_any_slide_is_refused(folder):
    for path in (folder / "train").glob("*.tiff"):
        path.unlink()
    with pytest.raises(ValueError, match="no training slide"):
        read_hubmap(folder, skip_missing=True)


def test_unknown_truth_lists_the_known_ones(folder):
    with pytest.raises(ValueError, match=r"truth 'mask' is not one of \('rle', 'polygons'\)"):
        read_hubmap(folder, truth="mask")


def test_submission_keeps_the_order_asked_for_and_reads_back(tmp_path):
    path = tmp_path / "submission.csv"
    masks = {"b": encode_rle(glomerulus(0)), "a": ""}
    write_submission(path, masks.items(), expected_ids=["a", "b"])
    assert path.read_text().splitlines()[:2] == ["id,predicted", "a,"]
    assert read_rle_table(path, column="predicted") == masks


def test_submission_that_lacks_an_image_is_refused_and_not_written(tmp_path):
    path = tmp_path / "submission.csv"
    with pytest.raises(ValueError, match=r"lack \['b'\] and have unexpected \['c'\]"):
        write_submission(path, [("a", ""), ("c", "")], expected_ids=["a", "b"])
    with pytest.raises(ValueError, match="stands twice"):
        write_submission(path, [("a", ""), ("a", "1 1")])
    assert not path.exists()
