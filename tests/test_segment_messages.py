"""What ``renal segment`` says of slides, disks, settings and networks that do not fit.

One test for each, from the command line to the message and to what is left in the folder.
"""

import dataclasses
import errno
import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from segmenting_cases import make_checkpoint, make_slide, purple

from renal_utils.bandstore import BandStore
from renal_utils.checkpoints import CheckpointInfo, load_checkpoint, save_checkpoint
from renal_utils.cli import main
from renal_utils.models.build import build_model
from renal_utils.result_folder import is_finished
from renal_utils.runtime import read_json
from renal_utils.slides import open_slide, write_pyramid


@pytest.fixture
def segment(tmp_path, capsys):
    """A function that segments and returns the exit code, what was printed, and what was said."""
    usual = make_checkpoint(tmp_path, downsample=1.0)

    def run(*slides, out="out", checkpoint=usual, options=""):
        command = ["segment", *map(str, slides), "--checkpoint", str(checkpoint)]
        command += ["--out", str(tmp_path / out), "--device", "cpu", *options.split()]
        code = main(command)
        told = capsys.readouterr()
        return code, told.out, "".join(x for x in told.err.splitlines() if x.startswith("renal:"))

    return run


def write_tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", **options)
    return path


def spoil(path, tile):
    with tifffile.TiffFile(path) as tif:
        offset, count = (x[tile] for x in (tif.pages[0].dataoffsets, tif.pages[0].databytecounts))
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(bytes(count))
    return path


def test_a_striped_slide_is_segmented_or_refused_with_the_way_out(tmp_path, segment, monkeypatch):
    path = write_tiff(tmp_path / "strips.tif", purple((130, 97)), rowsperstrip=8)
    tiled = write_tiff(tmp_path / "tiles.tif", purple((130, 97)), tile=(64, 64))
    assert segment(path, out="a")[0] == segment(tiled, out="b")[0] == 0
    labels = [(tmp_path / name / "labels.ome.tiff").read_bytes() for name in "ab"]
    assert labels[0] == labels[1]
    monkeypatch.setattr("renal_utils.tiff_files._LARGEST_STRIP", 1000)
    code, _, said = segment(path, out="c")
    assert code == 2 and "strips.tif has no tiles" in said and "vips tiffsave" in said
    assert not (tmp_path / "c").exists()


def test_a_damaged_tile_is_named_and_the_rest_is_done_if_asked(tmp_path, segment):
    path = write_tiff(tmp_path / "a.tif", purple((192, 192)), tile=(64, 64))
    spoil(path, tile=4)
    code, _, said = segment(path)
    assert code == 2 and "a.tif: tile 4 of level 0 cannot be decoded" in said
    assert "--skip-damaged" in said
    assert not is_finished(tmp_path / "out")
    code, printed, _ = segment(path, options="--skip-damaged")
    assert code == 0 and "damaged: 1 tiles of the slide, left white" in printed
    assert is_finished(tmp_path / "out")


def test_a_damaged_slide_among_many_is_named_and_the_others_are_done(tmp_path, segment):
    bad = spoil(write_tiff(tmp_path / "a.tif", purple((192, 192)), tile=(64, 64)), tile=4)
    code, printed, _ = segment(bad, make_slide(tmp_path / "b.ome.tiff"))
    assert code == 1 and "1 of 2 slides are done" in printed
    assert "a.tif: failed: ValueError" in printed and "tile 4 of level 0" in printed
    assert is_finished(tmp_path / "out" / "b")


def test_a_slide_without_tissue_is_finished_and_said_to_have_none(tmp_path, segment):
    glass = np.full((97, 130, 3), 250, np.uint8)
    code, printed, _ = segment(write_tiff(tmp_path / "glass.tif", glass, tile=(64, 64)))
    assert code == 0 and "glomerulus: 0" in printed
    assert "no tissue was found on the slide; --all-windows looks at all of it" in printed
    with open_slide(tmp_path / "out" / "labels.ome.tiff") as labels:
        assert not labels.at_downsample(1).read_labels((0, 0), labels.size_l0).any()


def test_a_scale_that_is_missing_or_absurd_is_said_and_can_be_stated(tmp_path, segment):
    checkpoint = make_checkpoint(tmp_path, "scaled", mpp=1.0, downsample=1.0)
    absurd, words = tmp_path / "absurd.tif", "Aperio Image Library v12\r\n130x97|MPP = 4990"
    write_tiff(absurd, purple((130, 97)), tile=(64, 64), metadata=None, description=words)
    missing = write_tiff(tmp_path / "missing.tif", purple((130, 97)), tile=(64, 64))
    for path, words in ((absurd, "4990.0 microns per pixel"), (missing, "not state its scale")):
        out = path.stem
        code, _, said = segment(path, out=out, checkpoint=checkpoint)
        assert code == 2 and path.name in said and words in said
        assert not (tmp_path / out).exists()
        assert segment(path, out=out, checkpoint=checkpoint, options="--mpp 0.5")[0] == 0
        assert read_json(tmp_path / out / "summary.json")["downsample"] == pytest.approx(2)


def test_a_disk_that_is_full_half_way_is_said_and_gone_on_from(tmp_path, segment, monkeypatch):
    path, append = make_slide(tmp_path / "a.ome.tiff", size=(130, 300)), BandStore.append

    def full(store, band):
        if store.rows_done > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(store, band)

    with monkeypatch.context() as patched:
        patched.setattr(BandStore, "append", full)
        code, _, said = segment(path)
        assert code == 2 and "No space left on device" in said and "make room and run again" in said
        assert not is_finished(tmp_path / "out")
        code, printed, _ = segment(path, make_slide(tmp_path / "b.ome.tiff"), out="many")
        assert code == 1 and "a.ome.tiff: failed: OSError" in printed and "make room" in printed
    assert segment(path)[0] == segment(path, out="whole")[0] == 0
    assert read_json(tmp_path / "out" / "summary.json")["run"]["from_row"] > 100
    maps = [(tmp_path / name / "probability.ome.tiff").read_bytes() for name in ("out", "whole")]
    assert maps[0] == maps[1]


def test_results_of_other_settings_are_kept_until_told_to_discard_them(tmp_path, segment):
    path = make_slide(tmp_path / "a.ome.tiff")
    segment(path)
    before = (tmp_path / "out" / "summary.json").read_bytes()
    code, _, said = segment(path, options="--stride 8")
    assert code == 2 and "stride_px was 16, now 8" in said and "--restart" in said
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    assert segment(path, options="--stride 8 --restart")[0] == 0
    assert read_json(tmp_path / "out" / "summary.json")["made_from"]["stride_px"] == 8


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "the network gave NaN; try precision='32-true'"),
        ("classes", "expected (8, 1, 32, 32); the label set needs 1 channels"),
        ("size", "expected (8, 1, 32, 32); choose a patch size"),
    ],
)
def test_a_network_that_gives_what_cannot_be_used_is_told(
    tmp_path, segment, monkeypatch, kind, words
):
    small, info = load_checkpoint(make_checkpoint(tmp_path, "good", downsample=1.0))
    if kind == "nan":
        with torch.no_grad():
            next(small.parameters()).fill_(float("nan"))
    if kind == "classes":
        info = dataclasses.replace(info, num_classes=4)
        small = build_model("unet", num_classes=4, **info.options)
    if kind == "size":
        halved = torch.full((8, 1, 16, 16), 0.5)
        monkeypatch.setattr(
            "renal_utils.segment_settings.make_replicas", lambda *_, **__: lambda _: halved
        )
    checkpoint = tmp_path / f"{kind}.safetensors"
    save_checkpoint(checkpoint, small, CheckpointInfo(**dataclasses.asdict(info)))
    code, _, said = segment(make_slide(tmp_path / "a.ome.tiff"), checkpoint=checkpoint)
    assert code == 2 and "a.ome.tiff, windows from x 0, y 0 on" in said and words in said
    assert not is_finished(tmp_path / "out")


def test_a_window_that_the_network_cannot_take_is_refused_with_the_next_size(tmp_path, segment):
    code, _, said = segment(make_slide(tmp_path / "a.ome.tiff"), options="--patch 33")
    assert code == 2 and "multiples of 4; the next valid size is 36 x 36" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--patch 0", "must be positive, not 0, 1, 8"),
        ("--stride 0", "must be positive, not 32, 0, 8"),
        ("--batch 0", "must be positive, not 32, 16, 0"),
        ("--downsample 0", "downsample must be a positive number, not 0.0"),
        ("--downsample nan", "downsample must be a positive number, not nan"),
        ("--min-object -5", "min_object must be 0 or more, not -5.0"),
        ("--min-object-um2 nan", "min_object_um2 must be 0 or more, not nan"),
        ("--mpp 0", "0.0 microns per pixel cannot be right"),
        ("--window box", "no window 'box'; known: hann"),
        ("--precision 16", "precision '16' is not one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_leave_nothing(
    tmp_path, segment, options, words
):
    code, _, said = segment(make_slide(tmp_path / "a.ome.tiff"), options=options)
    assert code == 2 and words in said
    assert not (tmp_path / "out").exists()


DARK_FINDER = """
import sys
from renal_utils.cli import main
from renal_utils.models.unet import UNet

UNet.forward = lambda model, images: -5 * images[:, :1]
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_slide_of_ten_thousand_objects_is_outlined_and_counted(tmp_path):
    """A network that sees each dark pixel as an object, on a grid of them.

    In a process of its own: checking every type in it takes longer than all else.
    """
    pixels = np.full((300, 300, 3), 230, np.uint8)
    pixels[1::3, 1::3] = 40
    path, out = tmp_path / "dots.ome.tiff", tmp_path / "out"
    write_pyramid(path, pixels, size_px=(300, 300), mpp=0.5, compression="none")
    command = [sys.executable, "-c", DARK_FINDER, "segment", path, "--out", out, "--device", "cpu"]
    command += ["--checkpoint", make_checkpoint(tmp_path, downsample=1.0), "--all-windows"]
    command += ["--patch", "256", "--stride", "256", "--window", "uniform"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "glomerulus: 10000" in done.stdout, done.stderr
    features = json.loads((out / "objects.geojson").read_text())["features"]
    corners = np.array([one["geometry"]["coordinates"][0] for one in features])
    left_tops = corners.min(axis=1)
    assert np.array_equal(corners.max(axis=1), left_tops + 1)
    expected = np.stack(np.meshgrid(*[np.arange(100) * 3 + 1] * 2), axis=-1).reshape(-1, 2)
    assert np.array_equal(left_tops[np.lexsort(left_tops.T)], expected)
    assert len((out / "objects.csv").read_text().splitlines()) == 10_001
