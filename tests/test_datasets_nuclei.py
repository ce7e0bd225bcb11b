"""The nuclei readers: small files in each set's layout, what is refused, and the real tiles."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from renal_utils.catalogue import read_dataset
from renal_utils.datasets.nuclei import (
    read_consep,
    read_cpm17,
    read_dsb2018,
    read_monuseg,
    read_nuclei,
    read_tnbc,
)
from renal_utils.instance_sources import read_instances
from renal_utils.label_sources import check_truths, open_labels
from renal_utils.metrics.instance import score_instances
from renal_utils.records import ImageRecord, read_records, write_records
from renal_utils.slides import write_pyramid

SIZE = (40, 30)  # width, height


def two_nuclei() -> np.ndarray:
    """Two nuclei that touch; ids with a gap."""
    ids = np.zeros(SIZE[::-1], np.uint16)
    ids[5:15, 4:14], ids[5:15, 14:20] = 3, 900
    return ids


def save(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*SIZE[::-1], 3), 200, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path)
    return path


def save_mat(path: Path, **content: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)
    return path


def xml(*outlines: list[tuple[float, float]]) -> str:
    regions = ""
    for number, outline in enumerate(outlines, start=1):
        corners = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in outline)
        regions += f'<Region Id="{number}"><Vertices>{corners}</Vertices></Region>'
    return (
        '<Annotations MicronsPerPixel="0.2485"><Annotation><Regions>'
        f"{regions}</Regions></Annotation></Annotations>"
    )


FIRST = [(4, 5), (14, 5), (14, 15), (4, 15)]
SECOND = [(14, 5), (20, 5), (20, 15), (14, 15)]


def check_two(record: ImageRecord, ids: tuple[int, int]) -> None:
    """The truth is the two nuclei, as instances and as classes."""
    truth, expected = two_nuclei(), read_instances(record)
    assert (expected.dtype, expected.shape) == (np.int32, SIZE[::-1])
    np.testing.assert_array_equal(expected, (truth == 3) * ids[0] + (truth == 900) * ids[1])
    with open_labels(record) as source:
        np.testing.assert_array_equal(source.read((0, 0), SIZE), truth > 0)
        assert source.label_set.name == "nuclei"


def test_monuseg_training_and_test_folders_are_paired_by_name(tmp_path):
    train, test = tmp_path / "MoNuSeg Training Data", tmp_path / "MoNuSegTestData"
    name, other = "TCGA-A7-A13E-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1"
    save(train / "Tissue Images" / f"{name}.tif")
    (train / "Annotations").mkdir()
    (train / "Annotations" / f"{name}.xml").write_text(xml(FIRST, SECOND))
    save(test / f"{other}.tif")
    (test / f"{other}.xml.gz").write_bytes(gzip.compress(xml(FIRST, SECOND).encode()))
    records = {record.image_id: record for record in read_monuseg(tmp_path, mpp=0.25)}
    assert {n: (r.split, r.donor) for n, r in records.items()} == {
        name: ("train", "TCGA-A7-A13E"),
        other: ("test", "TCGA-2Z-A9J9"),
    }
    assert {r.mpp for r in records.values()} == {0.25}
    for record in records.values():
        check_two(record, (1, 2))


def test_an_outline_that_is_left_open_is_closed(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(xml([*FIRST, FIRST[0]], SECOND))
    closed = read_instances(read_monuseg(tmp_path)[0])
    (tmp_path / "a.xml").write_text(xml(FIRST, SECOND))
    np.testing.assert_array_equal(read_instances(read_monuseg(tmp_path)[0]), closed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml(), r"a\.xml: no <Region>"),
        (xml(FIRST, SECOND[:2]), r"a\.xml, object 2: .*fewer than 3"),
        (xml(FIRST)[:-30], r"a\.xml is not valid XML"),
    ],
)
def test_broken_outlines_are_refused(tmp_path, text, message):
    save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_instances(read_monuseg(tmp_path)[0])


def test_monuseg_names_what_is_missing_or_twice(tmp_path):
    with pytest.raises(ValueError, match="no XML outlines below it"):
        read_monuseg(tmp_path)
    (tmp_path / "a.xml").write_text(xml(FIRST))
    with pytest.raises(ValueError, match="a: no image of this name"):
        read_monuseg(tmp_path)
    save(tmp_path / "a.png"), save(tmp_path / "more" / "a.tif")
    with pytest.raises(ValueError, match="have one name"):
        read_monuseg(tmp_path)


@pytest.mark.parametrize(
    ("reader", "splits", "names"),
    [
        (read_consep, {"Train": "train_1", "Test": "test_1"}, ["test_1", "train_1"]),
        (
            read_cpm17,
            {"train": "im_00", "test": "im_00"},
            ["test_im_00", "train_im_00"],
        ),
    ],
)
def test_matlab_labels_are_read_as_doubles_and_as_integers(tmp_path, reader, splits, names):
    for dtype, (split, name) in zip((float, np.int32), splits.items(), strict=True):
        save(tmp_path / split / "Images" / f"{name}.png")
        save_mat(tmp_path / split / "Labels" / f"{name}.mat", inst_map=two_nuclei().astype(dtype))
    records = sorted(reader(tmp_path), key=lambda record: record.image_id)
    assert [r.image_id for r in records] == names
    assert [r.split for r in records] == ["test", "train"]
    assert {r.donor for r in records} == {""}
    for record in records:
        check_two(record, (3, 900))


def consep(folder: Path, **content: np.ndarray) -> ImageRecord:
    save(folder / "Train" / "Images" / "train_1.png")
    save_mat(folder / "Train" / "Labels" / "train_1.mat", **content)
    return read_consep(folder)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type_map": two_nuclei()}, r"no 'inst_map' in it, it holds \['type_map'\]"),
        ({"inst_map": two_nuclei() + 0.5}, "numbers that are not whole"),
        ({"inst_map": np.full(SIZE[::-1], np.nan)}, "numbers that are not whole"),
        ({"inst_map": two_nuclei().astype(float) - 1}, "negative id -1"),
        ({"inst_map": two_nuclei().T}, r"is 30 x 40, but its image .*train_1\.png is 40 x 30"),
    ],
)
def test_matlab_labels_that_do_not_fit_are_refused(tmp_path, content, message):
    record = consep(tmp_path, **content)
    for read in (read_instances, open_labels):
        with pytest.raises(ValueError, match=rf"train_1\.mat.*{message}"):
            read(record)


def test_a_file_that_is_no_matlab_file_is_refused(tmp_path):
    record = consep(tmp_path, inst_map=two_nuclei())
    record.truth_path.write_bytes(b"nothing of the sort" * 40)
    with pytest.raises(ValueError, match=r"train_1\.mat is no readable MATLAB file"):
        read_instances(record)


def test_tnbc_gives_nuclei_of_masks_of_ids_and_of_folders(tmp_path):
    apart = two_nuclei()
    apart[:, 14] = 0
    for name in ("01_1", "01_2"):
        save(tmp_path / "Slide_01" / f"{name}.png")
    save(tmp_path / "Slide_02" / "02_1.png")
    save(tmp_path / "GT_01" / "01_1.png", ((apart > 0) * 255).astype(np.uint8))
    save(tmp_path / "GT_01" / "01_2.png", two_nuclei())
    for number, value in enumerate((3, 900)):
        one = ((two_nuclei() == value) * 255).astype(np.uint8)
        save(tmp_path / "GT_02" / "02_1" / f"{number}.png", one)
    records = read_tnbc(tmp_path)
    assert [r.image_id for r in records] == ["01_1", "01_2", "02_1"]
    assert [r.donor for r in records] == ["01", "01", "02"]
    binary = read_instances(records[0])
    np.testing.assert_array_equal(binary, (apart == 3) * 1 + (apart == 900) * 2)
    for record in records[1:]:
        check_two(record, (1, 2))


def dsb(folder: Path) -> ImageRecord:
    save(folder / "abc" / "images" / "abc.png")
    for name, value in (("x", 3), ("y", 900)):
        one = ((two_nuclei() == value) * 255).astype(np.uint8)
        save(folder / "abc" / "masks" / f"{name}.png", one)
    return read_dsb2018(folder)[0]


def test_dsb2018_takes_one_mask_a_nucleus_and_the_first_keeps_a_shared_pixel(tmp_path):
    record = dsb(tmp_path)
    assert (record.image_id, record.truth_kind) == ("abc", "instance_folder")
    check_two(record, (1, 2))
    save(record.truth_path / "z.png", np.full(SIZE[::-1], 255, np.uint8))
    filled = read_instances(record)
    expected = np.select([two_nuclei() == 3, two_nuclei() == 900], [1, 2], 3)
    np.testing.assert_array_equal(filled, expected)


def test_masks_of_a_folder_must_be_there_and_of_the_images_size(tmp_path):
    record = dsb(tmp_path)
    save(record.truth_path / "z.png", np.zeros((30, 30), np.uint8))
    with pytest.raises(ValueError, match=r"z\.png is 30 x 30, but its image is 40 x 30"):
        read_instances(record)
    for mask in record.truth_path.glob("*"):
        mask.unlink()
    with pytest.raises(ValueError, match="masks: no PNG in it"):
        read_instances(record)
    record.truth_path.rmdir()
    for read in (read_instances, open_labels):
        with pytest.raises(ValueError, match=r"no truth .*masks"):
            read(record)


def plain(folder: Path) -> Path:
    for name in ("TCGA-B0-5698-01Z-00-DX1", "other"):
        save(folder / "images" / f"{name}.png")
        save(folder / "masks_instance" / f"{name}.png", two_nuclei())
    rows = ["id,organ_group,split", "TCGA-B0-5698-01Z-00-DX1,kidney,train", "other,liver,test"]
    (folder / "index.csv").write_text("\n".join(rows))
    return folder


def test_plain_layout_gives_donor_group_and_split(tmp_path):
    records = read_nuclei(plain(tmp_path), mpp=0.25)
    assert [(r.donor, r.group, r.split) for r in records] == [
        ("TCGA-B0-5698", "kidney", "train"),
        ("other", "liver", "test"),
    ]
    for record in records:
        check_two(record, (3, 900))


def test_an_index_of_other_images_is_refused(tmp_path):
    folder = plain(tmp_path)
    (folder / "images" / "other.png").unlink()
    with pytest.raises(ValueError, match="other: no image of this name"):
        read_nuclei(folder)


def image_record(folder: Path, truth: np.ndarray, name: str = "m.png") -> ImageRecord:
    image, path = save(folder / "a.png"), folder / name
    if truth.dtype in (np.float32, np.int32):
        Image.fromarray(truth).save(path)
    else:
        save(path, truth)
    return ImageRecord("a", image, "instance_image", path, label_set="nuclei")


@pytest.mark.parametrize(
    ("truth", "name", "message"),
    [
        (np.zeros((40, 30), np.uint16), "m.png", "m.png is 30 x 40, but its image .* is 40 x 30"),
        (np.zeros((30, 40, 3), np.uint8), "m.png", "m.png is a colour image"),
        (np.zeros((30, 40), np.float32), "m.tif", "m.tif"),
        (np.full((30, 40), -3, np.int32), "m.tif", "m.tif: holds the negative id -3"),
    ],
)
def test_instance_images_that_do_not_fit_are_refused(tmp_path, truth, name, message):
    with pytest.raises(ValueError, match=message):
        read_instances(image_record(tmp_path, truth, name))


def test_tiled_tiffs_of_ids_are_read(tmp_path):
    record = image_record(tmp_path, two_nuclei())
    path = tmp_path / "ids.tiff"
    write_pyramid(path, two_nuclei(), size_px=SIZE, kind="labels", tile_px=16)
    check_two(replace(record, truth_path=path), (3, 900))


def test_truths_that_do_not_tell_objects_apart_are_refused(tmp_path):
    record = replace(image_record(tmp_path, two_nuclei()), truth_kind="label_image")
    with pytest.raises(ValueError, match="'label_image' does not tell objects apart"):
        read_instances(record)


def test_every_kind_survives_a_table_of_records(tmp_path):
    records = [dsb(tmp_path / "dsb"), consep(tmp_path / "consep", inst_map=two_nuclei())]
    records += read_nuclei(plain(tmp_path / "plain"))
    write_records(records, tmp_path / "records.csv")
    assert read_records(tmp_path / "records.csv") == records
    assert check_truths(records) == 4


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (read_consep, "no images in Train/Images/"),
        (read_tnbc, "no images in Slide_NN/"),
        (read_dsb2018, "no ID/images/ID.png"),
        (read_nuclei, "no images"),
    ],
)
def test_other_layouts_are_refused(tmp_path, reader, message):
    with pytest.raises(ValueError, match=message):
        reader(tmp_path)


def test_images_without_truth_are_named(tmp_path):
    save(tmp_path / "Train" / "Images" / "train_1.png")
    save(tmp_path / "Slide_01" / "01_1.png")
    for reader in (read_consep, read_tnbc):
        with pytest.raises(ValueError, match=r"_1\.png: its truth .* is missing"):
            reader(tmp_path)


def test_sets_are_known_by_name(tmp_path):
    record = dsb(tmp_path)
    assert read_dataset("dsb2018", tmp_path) == [record]


@pytest.mark.real
def test_real_monuseg_outlines_and_masks_name_the_same_nuclei(shared_data):
    folder = shared_data / "monuseg"
    outlined = {record.image_id: record for record in read_monuseg(folder)}
    masked = {record.image_id: record for record in read_nuclei(folder)}
    assert outlined.keys() == masked.keys()
    assert sorted(r.group for r in masked.values()) == ["kidney"] * 3 + ["other"] * 4
    for name in ("TCGA-B0-5698-01Z-00-DX1", "TCGA-CU-A0YN-01A-02-BSB"):
        assert outlined[name].split == masked[name].split
        ours, theirs = (read_instances(records[name]) for records in (outlined, masked))
        assert ours.max() == theirs.max() == {"B0": 357, "CU": 677}[name[5:7]]
        found = score_instances(theirs, ours)
        assert found.dq == 1
        assert found.dice > 0.93  # theirs also fill the pixels under the outline


@pytest.mark.real
def test_real_small_images_hold_the_nuclei_that_were_counted(shared_data):
    records = read_nuclei(shared_data / "dsb2018_nuclei")
    assert len(records) == 64
    assert sum(len(np.unique(read_instances(r))) - 1 for r in records) == 2684
