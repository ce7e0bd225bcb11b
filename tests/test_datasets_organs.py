"""The readers of abdominal organs on small scans in the layouts of the two sets."""

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from renal_utils.datasets.organs import read_msd_colon, read_uw_madison, stretch
from renal_utils.label_sources import open_labels
from renal_utils.slides import open_slide

WIDTH, HEIGHT = 30, 20


def add_slice(folder: Path, case: str, day: str, number: int, *, fill: int = 100) -> Path:
    name = f"slice_{number:04d}_{WIDTH}_{HEIGHT}_1.50_1.50.png"
    path = folder / "train" / case / f"{case}_{day}" / "scans" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((HEIGHT, WIDTH), fill, np.uint16)
    pixels[0, 0], pixels[-1, -1] = 0, 20_000
    Image.fromarray(pixels).save(path)
    return path


def write_table(folder: Path, **masks: str) -> Path:
    """Write three rows a slice; ``masks`` gives the runs of the stomach."""
    rows = ["id,class,segmentation"]
    for image_id, runs in masks.items():
        rows += [f"{image_id},{c}," for c in ("large_bowel", "small_bowel")]
        rows.append(f"{image_id},stomach,{runs}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder / "train.csv"


@pytest.fixture
def uw(tmp_path):
    for case, day, number in (("case1", "day0", 1), ("case1", "day20", 1), ("case2", "day0", 7)):
        add_slice(tmp_path, case, day, number)
    ids = ("case1_day0_slice_0001", "case1_day20_slice_0001", "case2_day0_slice_0007")
    write_table(tmp_path, **dict(zip(ids, ("33 4", "", "1 600"), strict=True)))
    return tmp_path


def test_slices_come_with_person_and_classes(uw):
    records = read_uw_madison(uw)
    assert [(r.image_id, r.donor) for r in records] == [
        ("case1_day0_slice_0001", "case1"),
        ("case1_day20_slice_0001", "case1"),
        ("case2_day0_slice_0007", "case2"),
    ]
    with open_labels(records[0]) as source:
        ids = source.read((0, 0), (WIDTH, HEIGHT))
    assert np.argwhere(ids).tolist() == [[1, 2], [1, 3], [1, 4], [1, 5]], "runs go along rows"
    assert set(ids.ravel()) == {0, 3}
    with open_labels(records[2]) as source:
        assert (source.read((0, 0), (WIDTH, HEIGHT)) == 3).all()


def test_sixteen_bits_become_eight_over_the_scans_own_range(uw):
    add_slice(uw, "case1", "day0", 2, fill=10_000)
    masks = {f"case1_day0_slice_000{n}": "" for n in (1, 2)}
    write_table(uw, **masks, case1_day20_slice_0001="", case2_day0_slice_0007="")
    records = {r.image_id: r for r in read_uw_madison(uw)}
    shades = []
    for name in masks:
        with open_slide(records[name].image_path) as slide:
            image = slide.at_downsample(1.0).read((0, 0), slide.size_l0)
        assert image.dtype == np.uint8 and image.shape == (HEIGHT, WIDTH, 3)
        shades.append(int(image[5, 5, 0]))
    assert shades == [0, 255], "dark and bright slices of one scan stay dark and bright"


def test_what_is_prepared_is_not_prepared_again(uw):
    first = read_uw_madison(uw)
    stamps = [r.image_path.stat().st_mtime_ns for r in first]
    first[1].truth_path.unlink()
    again = read_uw_madison(uw)
    assert again == first and first[1].truth_path.is_file()
    now = [r.image_path.stat().st_mtime_ns for r in again]
    assert [a == b for a, b in zip(stamps, now, strict=True)] == [True, False, True]


def test_later_classes_win_where_two_overlap(uw):
    table = uw / "train.csv"
    table.write_text(table.read_text().replace("0001,large_bowel,", "0001,large_bowel,33 6", 1))
    with open_labels(read_uw_madison(uw)[0]) as source:
        assert source.read((2, 1), (6, 1)).tolist() == [[3, 3, 3, 3, 1, 1]]


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def spoil_table(old: str, new: str):
    return lambda folder: replace_in(folder / "train.csv", old, new)


def spoil_slice(action):
    return lambda folder: action(next(folder.glob("train/case2/*/scans/*.png")))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def colour(path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def shrink(path: Path) -> None:
    Image.new("I;16", (WIDTH, HEIGHT - 1)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_table("33 4", "33 4 5"), r"train\.csv, image 'case1_day0.*stomach: 3 numbers"),
        (spoil_table("1 600", "1 601"), r"image 'case2_day0_slice_0007', stomach"),
        (spoil_table("stomach", "liver"), r"train\.csv: class 'liver' is not one of"),
        (spoil_table("small_bowel", "large_bowel"), "has two rows of one class"),
        (spoil_table("segmentation", "mask"), r"train\.csv: no column 'segmentation'"),
        (spoil_slice(Path.unlink), "slice 'case2_day0_slice_0007' is listed in"),
        (spoil_slice(lambda p: p.rename(p.with_name("scan.png"))), r"scan\.png: expected slice_"),
        (spoil_slice(cut), r"slice_0007_30_20_1\.50_1\.50\.png: cannot be read"),
        (spoil_slice(colour), "has 3 channels"),
        (spoil_slice(shrink), r"is \(19, 30\) \(H, W\), but its name says \(20, 30\)"),
        (lambda folder: add_slice(folder, "case9", "day0", 1), "case9_day0_slice_0001' is not li"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(uw, spoil, message):
    spoil(uw)
    with pytest.raises(ValueError, match=message):
        read_uw_madison(uw)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"train\.csv: no such file"):
        read_uw_madison(tmp_path)
    write_table(tmp_path)
    with pytest.raises(ValueError, match="no CASE/SCAN/scans"):
        read_uw_madison(tmp_path)


def test_values_beyond_the_window_are_cut():
    values = np.array([[-1000, -160, 40, 240, 3000]])
    assert stretch(values, -160, 240).tolist() == [[0, 0, 128, 255, 255]]
    with pytest.raises(ValueError, match="low < high"):
        stretch(values, 5, 5)


# MSD Colon


def add_volume(path: Path, values: np.ndarray, *, flipped: bool = False) -> None:
    nibabel = pytest.importorskip("nibabel", reason="the extra [organs] is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0 if flipped else 1.0, 1.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values[::-1] if flipped else values, affine), path)


def colon_volume() -> tuple[np.ndarray, np.ndarray]:
    """A body that is bright on its left side (low x) and has its tumour in front (high y)."""
    values = np.full((12, 10, 3), -1000, np.int16)
    values[:4] = 240
    labels = np.zeros((12, 10, 3), np.uint8)
    labels[:, 8:, 1] = 1
    return values, labels


@pytest.mark.parametrize("flipped", [False, True])
def test_volumes_are_cut_into_slices_that_lie_as_radiologists_show_them(tmp_path, flipped):
    for folder, values in zip(("imagesTr", "labelsTr"), colon_volume(), strict=True):
        add_volume(tmp_path / folder / "colon_001.nii.gz", values, flipped=flipped)
        (tmp_path / folder / "._colon_001.nii.gz").write_bytes(b"macOS")
    records = read_msd_colon(tmp_path)
    assert [(r.image_id, r.donor) for r in records] == [
        (f"colon_001_slice_{z:04d}", "colon_001") for z in range(3)
    ]
    with open_slide(records[1].image_path) as slide, open_labels(records[1]) as source:
        image, ids = slide.at_downsample(1.0).read((0, 0), (12, 10)), source.read((0, 0), (12, 10))
    assert np.flatnonzero(ids.any(axis=1)).tolist() == [0, 1], "the front is up"
    bright = np.flatnonzero((image[..., 0] == 255).all(axis=0)).tolist()
    assert bright == [8, 9, 10, 11], "low x is the body's left in these axes: shown on the right"


def test_volumes_that_do_not_fit_are_refused_by_name(tmp_path):
    values, labels = colon_volume()
    add_volume(tmp_path / "imagesTr" / "colon_001.nii.gz", values)
    with pytest.raises(ValueError, match=r"labelsTr: no NAME\.nii\.gz"):
        read_msd_colon(tmp_path)
    add_volume(tmp_path / "labelsTr" / "colon_001.nii.gz", labels[..., :2])
    with pytest.raises(ValueError, match=r"labelsTr.colon_001\.nii\.gz is \(12, 10, 2\)"):
        read_msd_colon(tmp_path)
    add_volume(tmp_path / "labelsTr" / "colon_001.nii.gz", labels * 3)
    with pytest.raises(ValueError, match=r"colon_001\.nii\.gz holds label 3"):
        read_msd_colon(tmp_path)
    (tmp_path / "labelsTr" / "colon_001.nii.gz").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"colon_001\.nii\.gz: cannot be read"):
        read_msd_colon(tmp_path)
    add_volume(tmp_path / "imagesTr" / "colon_002.nii.gz", values)
    with pytest.raises(ValueError, match="colon_002 lies in only one"):
        read_msd_colon(tmp_path)


def test_without_nibabel_the_extra_to_install_is_named(tmp_path, monkeypatch):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "colon_001.nii.gz").write_bytes(b"")
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "nibabel":
            raise ModuleNotFoundError("No module named 'nibabel'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"colon_001.*renal-utils\[organs\]"):
        read_msd_colon(tmp_path)
