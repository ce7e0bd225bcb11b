"""The data sets by name: which records come, and what is refused."""

import numpy as np
import pytest
from patch_images import write_image
from PIL import Image

from renal_utils import catalogue
from renal_utils.archive import draw_archive, read_drawn
from renal_utils.catalogue import find_layout, read_dataset, read_drawn_glomeruli
from renal_utils.label_sources import open_labels
from renal_utils.labels import FOUR_TISSUES, IGNORE_ID, KIDNEY_TISSUES, convert_labels


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "archive"
    return draw_archive(folder, workers=1, slide_px=1200, donors=2)


def test_drawn_slides_come_with_glomeruli_and_the_archives_donors(archive, monkeypatch):
    monkeypatch.setattr(catalogue, "ensure_drawn", lambda folder: folder)
    records = read_dataset("drawn", archive)
    known = {record.image_id: record for record in read_drawn(archive)}
    assert {r.image_id for r in records} == set(known)
    for record in records:
        assert (record.label_set, record.truth_kind) == ("glomeruli", "rle_csv")
        for name in ("donor", "group", "split", "mpp", "image_path"):
            assert getattr(record, name) == getattr(known[record.image_id], name)


def test_drawn_slides_are_drawn_on_first_use(tmp_path, monkeypatch):
    asked = []

    def draw(folder):
        asked.append(folder)
        return draw_archive(folder, workers=1, slide_px=1200, donors=1)

    monkeypatch.setattr(catalogue, "ensure_drawn", draw)
    assert len(read_drawn_glomeruli(tmp_path / "new")) == 1
    assert asked == [tmp_path / "new"]


@pytest.mark.parametrize(("name", "sub"), [("kpis", "kpis"), ("hubmap", "hubmap")])
def test_a_layout_is_read_by_its_name(archive, name, sub):
    assert read_dataset(name, archive / sub)


def test_tiles_are_read_from_a_folder_relative_to_the_project(tmp_path, monkeypatch):
    for part in ("images", "masks_instance"):
        (tmp_path / "mine" / part).mkdir(parents=True)
        Image.new("L", (64, 48)).save(tmp_path / "mine" / part / "a.png")
    monkeypatch.setenv("RENAL_HOME", str(tmp_path))
    assert [record.image_id for record in read_dataset("tiles", "mine")] == ["a"]


def test_images_without_truth_are_left_out(tmp_path, monkeypatch):
    labelled = write_image(tmp_path, "labelled")
    hidden = write_image(tmp_path, "hidden", truth_kind="none", truth_path=None)
    found = {"test": lambda folder: [hidden, labelled]}
    monkeypatch.setattr(catalogue, "DATASETS", found)
    assert read_dataset("test", tmp_path) == [labelled]
    monkeypatch.setattr(catalogue, "DATASETS", {"test": lambda folder: [hidden]})
    with pytest.raises(ValueError, match="no image has a truth"):
        read_dataset("test", tmp_path)


@pytest.mark.parametrize(
    ("path", "layout"),
    [
        ("archive.json", "drawn"),
        ("imagesTr/colon_001.nii.gz", "msd_colon"),
        ("Tissue Images/TCGA-18-5592-01Z-00-DX1.tif", "monuseg"),
        ("Slide_01/01_1.png", "tnbc"),
        ("a.svs", "aidpath"),
        ("Castilla/a.svs", "aidpath"),
        ("index.csv", "nuclei"),
        ("images/a.png", "tiles"),
        ("Healthy-labels.png", "mouse_kidney"),
        ("train/DN/case/img/a_img.jpg", "kpis"),
        ("56nx/img/a_wsi.tiff", "kpis"),
    ],
)
def test_a_layout_is_told_by_the_file_that_gives_it_away(tmp_path, path, layout):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert find_layout(tmp_path) == layout


def test_the_two_sets_with_a_train_csv_are_told_by_its_columns(tmp_path):
    (tmp_path / "train").mkdir()
    for columns, layout in (("id,encoding", "hubmap"), ("id,class,segmentation", "uw_madison")):
        (tmp_path / "train.csv").write_text(columns + "\n")
        assert find_layout(tmp_path) == layout


@pytest.mark.parametrize("path", ["Train/Images/train_1.png", "abc/images/abc.png"])
def test_a_layout_that_nothing_tells_has_to_be_named(tmp_path, path):
    (tmp_path / path).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no file tells the layout.*consep.*dsb2018"):
        find_layout(tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="'hubmab'; known: drawn, hubmap, kpis, tiles, nuclei"):
        read_dataset("hubmab", tmp_path)


def test_drawn_slides_come_with_the_papers_four_tissues(archive, monkeypatch):
    monkeypatch.setattr(catalogue, "ensure_drawn", lambda folder: folder)
    window = (0, 0), (600, 600), 2.0
    for all_, four in zip(
        read_dataset("drawn_tissues", archive),
        read_dataset("drawn_four_tissues", archive),
        strict=True,
    ):
        with open_labels(all_) as source, open_labels(four) as fewer:
            ids, converted = source.read(*window), fewer.read(*window)
        np.testing.assert_array_equal(converted, convert_labels(ids, KIDNEY_TISSUES, FOUR_TISSUES))
        assert (converted == IGNORE_ID).any() and (converted != IGNORE_ID).any()
