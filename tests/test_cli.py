import argparse
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_output
from skimage.io import imsave

from renal_utils.checkpoints import CheckpointInfo, save_checkpoint
from renal_utils.cli import main
from renal_utils.cli.run import gather_parameters
from renal_utils.course import write_html
from renal_utils.datasets.hubmap import INFORMATION_COLUMNS, INFORMATION_FILE
from renal_utils.notebooks import read_notebook, write_notebook
from renal_utils.runtime import read_json
from renal_utils.segment_settings import choose_scale
from renal_utils.slides import open_slide, write_pyramid

PARAMETERS = 'epochs = 3\nrate = 0.1\nname = "unet"\nfast = False'


def _stderr(capsys) -> str:
    return capsys.readouterr().err


# run


def _options(notebook, *pairs, file=None):
    return argparse.Namespace(notebook=notebook, parameter=list(pairs), parameters_file=file)


def test_typed_parameters_stand_over_those_of_the_file(small_notebook, tmp_path):
    file = tmp_path / "full.yaml"
    file.write_text("epochs: 9\nname: fcn\n")
    pairs = (("epochs", "20"), ("rate", "1e-4"), ("fast", "true"))
    given = gather_parameters(_options(small_notebook(PARAMETERS), *pairs, file=file))
    assert given == {"epochs": 20, "name": "fcn", "rate": 1e-4, "fast": True}


@pytest.mark.slow
def test_a_run_writes_the_notebook_a_page_and_the_checked_numbers(small_notebook, tmp_path, capsys):
    (tmp_path / "03.json").write_text('{"dice": [0.5, 1]}')
    check = "from renal_utils.bands import check_bands\n_ = check_bands('03.json', dice=2 / 3)"
    check += "\n_ = check_bands('03_full.json', iou=0.5)"
    path = small_notebook(PARAMETERS, "print(epochs, rate)", check)
    output = tmp_path / "out" / "made.ipynb"
    command = ["run", str(path), "--output", str(output), "-p", "rate", "1e-4", "--html"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "dice = 0.6667, band [0.5, 1]" in told and "iou = 0.5, no band" in told
    assert "3 0.0001\n" in [o.text for c in read_notebook(output).cells for o in c.outputs]
    assert "3 0.0001" in output.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("epoch", "5"), "did you mean 'epochs'"),
        (("epochs", "1e1"), "takes a whole number like 3"),
        (("epochs", "true"), "takes a whole number like 3"),
        (("fast", "maybe"), "takes True or False"),
        (("rate", "quick"), "takes a number like 0.1, not 'quick'"),
    ],
)
def test_a_wrong_parameter_ends_with_one_line_and_code_2(small_notebook, capsys, pair, message):
    path = small_notebook(PARAMETERS)
    assert main(["run", str(path), "-p", *pair]) == 2
    error = _stderr(capsys)
    assert message in error
    assert error.startswith("renal: ")
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file", "a.yaml"), "a.yaml: there is no such file"),
        (FileExistsError(17, "File exists", "out"), "out: this is a file, where a folder"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b: part of this path is a file"),
        (PermissionError(13, "Permission denied", "/out"), "/out: you may not read or write"),
        (OSError(28, "No space left on device", "out"), "out: No space left on device"),
        (FileNotFoundError("slide.tiff is not there"), "slide.tiff is not there"),
        (ImportError("only OpenSlide reads it; install it"), "only OpenSlide reads it"),
    ],
)
def test_what_the_system_refuses_is_said_in_words(monkeypatch, capsys, error, message):
    def refuse(*_):
        raise error

    monkeypatch.setattr("renal_utils.studies.read_study", refuse)
    assert main(["study", "a.yaml"]) == 2
    told = _stderr(capsys)
    assert message in told
    assert "Errno" not in told


@pytest.mark.parametrize(
    "typed",
    [
        ["segment", "a.tiff", "--checkpoint", "b", "--out", "c", "--mp", "1"],
        ["data", "draw", "--donor", "1"],
    ],
)
def test_part_of_an_options_name_is_none(typed, capsys):
    with pytest.raises(SystemExit):
        main(typed)
    assert f"unrecognized arguments: {typed[-2]}" in _stderr(capsys)


def test_a_folder_in_place_of_a_slide_is_named_as_one(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give the slides in it"):
        open_slide(tmp_path)


def test_a_failing_notebook_ends_with_code_1(small_notebook, tmp_path, capsys):
    path = small_notebook(PARAMETERS, "1 / 0")
    assert main(["run", str(path), "--output", str(tmp_path / "out.ipynb")]) == 1
    assert "failed in code cell 2" in _stderr(capsys)


def test_in_place_takes_no_parameters(small_notebook, capsys):
    path = small_notebook(PARAMETERS)
    assert main(["run", str(path), "--in-place", "-p", "epochs", "2"]) == 2
    assert "takes no parameters" in _stderr(capsys)


@pytest.mark.slow
def test_a_folder_runs_whole_and_a_failure_does_not_stop_it(small_notebook, tmp_path, capsys):
    (tmp_path / "01.json").write_text('{"dice": [0.5, 1]}')
    check = "from renal_utils.bands import check_bands\n_ = check_bands('01.json', dice=0.75)"
    small_notebook(PARAMETERS, "raise ValueError('no slide')", name="00_fail_early.ipynb")
    small_notebook(PARAMETERS, check, name="01_check_band.ipynb")
    small_notebook(PARAMETERS, "print('fine')", name="02_print_word.ipynb")
    small_notebook(PARAMETERS, name="draft.ipynb")
    folder = tmp_path / "course"
    assert main(["run", str(tmp_path), "--output", str(folder), "--jobs", "2"]) == 1
    assert "no slide" in _stderr(capsys)
    table = pd.read_csv(folder / "results.csv")
    assert list(table["notebook"]) == ["00_fail_early", "01_check_band", "02_print_word"]
    assert list(table["status"]) == ["failed", "ok", "ok"]
    checked = table.set_index("notebook").loc["01_check_band"]
    assert (checked["number"], checked["value"], checked["inside"]) == ("dice", 0.75, True)
    names = {path.name for path in folder.iterdir()}
    assert {"00_fail_early.failed.ipynb", "01_check_band.html", "02_print_word.ipynb"} <= names
    assert "00_fail_early.ipynb" not in names


@pytest.mark.slow
def test_a_number_outside_its_band_fails_the_folder(small_notebook, tmp_path):
    (tmp_path / "01.json").write_text('{"dice": [0.8, 1]}')
    check = "from renal_utils.bands import check_bands\n_ = check_bands('01.json', dice=0.75)"
    small_notebook(PARAMETERS, check, name="01_check_band.ipynb")
    assert main(["run", str(tmp_path), "--output", str(tmp_path / "course")]) == 1


def test_a_page_can_be_read_without_a_network(small_notebook, tmp_path):
    path, page = small_notebook(PARAMETERS, "plt.show()"), tmp_path / "page.html"
    content = read_notebook(path)
    figure = {"data": {"image/png": "QUJD"}, "metadata": {"image/png": {"alt": "A <slide>"}}}
    content.cells[1].outputs = [new_output("display_data", **figure)]
    write_notebook(path, content)
    write_html(path, page)
    text = page.read_text()
    assert 'alt="A &lt;slide&gt;"' in text
    assert "data:image/png;base64,QUJD" in text
    scripts = re.findall(r"<script[^>]*>", text)
    assert not [tag for tag in scripts if "http" in tag and "async" not in tag]
    assert "import mermaid" not in text


# data


def test_an_archive_is_drawn_once_and_checked(tmp_path, capsys):
    folder = tmp_path / "drawn"
    command = ["data", "draw", "--out", str(folder), "--donors", "1", "--slide-px", "1024"]
    assert main(command) == 0
    before = (folder / "archive.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / "archive.json").stat().st_mtime_ns == before
    assert main(["data", "check", str(folder)]) == 0
    assert "files as they were written" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert "seed" in _stderr(capsys)
    next(folder.rglob("*.tiff")).write_bytes(b"cut off")
    assert main(["data", "check", str(folder)]) == 2
    assert "not as it was drawn" in _stderr(capsys)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_an_empty_folder_is_refused(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / name)]) == 2
    assert f"{name} is no folder, or an empty one" in _stderr(capsys)


@pytest.fixture
def tile_folder(tmp_path):
    folder = tmp_path / "tiles"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["tile,x_l0,y_l0"]
    for column in range(2):
        imsave(folder / "images" / f"t{column}.png", rng.integers(0, 255, (64, 64, 3), np.uint8))
        lines.append(f"t{column},{100 + 64 * column},50")
    (folder / "tiles.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_data_set_is_described_in_one_line(tile_folder, capsys):
    assert main(["data", "check", str(tile_folder)]) == 0
    assert "tiles layout, 2 images (0 with truth) of 1 donors" in capsys.readouterr().out


def test_every_reader_is_there_by_its_name(tile_folder, capsys):
    (tile_folder / "masks_instance").mkdir()
    for column in range(2):
        mask = np.zeros((64, 64), np.uint8)
        imsave(tile_folder / "masks_instance" / f"t{column}.png", mask, check_contrast=False)
    assert main(["data", "check", str(tile_folder), "--layout", "nuclei"]) == 0
    assert "nuclei layout, 2 images (2 with truth) of 2 donors" in capsys.readouterr().out
    assert main(["data", "check", str(tile_folder), "--layout", "uw_madison"]) == 2
    assert "train.csv" in _stderr(capsys)
    assert main(["data", "check", str(tile_folder), "--layout", "nuclej"]) == 2
    assert "no data set 'nuclej'; known: drawn, hubmap" in _stderr(capsys)


def test_masks_of_another_size_are_found(tile_folder, capsys):
    (tile_folder / "masks_instance").mkdir()
    for name, side in (("t0", 64), ("t1", 32)):
        mask = np.zeros((side, side), np.uint8)
        imsave(tile_folder / "masks_instance" / f"{name}.png", mask, check_contrast=False)
    assert main(["data", "check", str(tile_folder)]) == 2
    error = _stderr(capsys)
    assert "1 of 2 images or truths do not fit" in error
    assert "t1.png is 32 x 32" in error and "t0.png" not in error


def test_run_lengths_that_are_odd_in_number_are_found(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    _slide(tmp_path).rename(tmp_path / "train" / "aaa.tiff")
    table, columns = tmp_path / "train.csv", ",".join(INFORMATION_COLUMNS)
    (tmp_path / INFORMATION_FILE).write_text(f"{columns}\naaa.tiff,128,96,-,-,1\n")
    table.write_text("id,encoding\naaa,5 3 20 4\n")
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "hubmap layout, 1 images (1 with truth)" in capsys.readouterr().out
    table.write_text("id,encoding\naaa,5 3 20\n")
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "image 'aaa'" in _stderr(capsys)


def test_truths_that_do_not_fit_their_images_are_all_listed(tmp_path, capsys):
    train = tmp_path / "set" / "train"
    train.mkdir(parents=True)
    rows = {"good": "1 3", "odd": "1 3 9", "beyond": "4000 500", "crossing": "1 9 5 2"}
    grey = np.full((64, 64, 3), 200, np.uint8)
    for name in rows:
        write_pyramid(train / f"{name}.tiff", grey, size_px=(64, 64), tile_px=64)
    columns = "image_file,width_pixels,height_pixels,patient_number,"
    columns += "anatomical_structures_segmention_file,glomerulus_segmentation_file"
    information = [columns, *(f"{name}.tiff,64,64,{name},," for name in rows)]
    table = ["id,encoding", *(f"{name},{runs}" for name, runs in rows.items())]
    for name, lines in (("train", table), ("HuBMAP-20-dataset_information", information)):
        (train.parent / f"{name}.csv").write_text("\n".join(lines) + "\n")
    assert main(["data", "check", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert "3 of 4 images or truths do not fit" in error
    assert all(f"'{name}'" in error for name in ("odd", "beyond", "crossing"))
    assert "'good'" not in error


def test_a_mask_of_another_size_is_found_by_the_check(tmp_path, capsys):
    from skimage.io import imsave

    folder = tmp_path / "kpis" / "train" / "normal" / "02_11"
    for kind, side in (("img", 64), ("mask", 48)):
        (folder / kind).mkdir(parents=True)
        shape = (side, side, 3) if kind == "img" else (side, side)
        path = folder / kind / f"02_11_0_0_{kind}.jpg"
        imsave(path, np.full(shape, 200, np.uint8), check_contrast=False)
    assert main(["data", "check", str(tmp_path / "kpis")]) == 2
    assert "a mask must have the size of its image" in capsys.readouterr().err


def test_tiles_are_put_together_again(tile_folder, tmp_path, capsys):
    out = tmp_path / "slide.ome.tiff"
    assert main(["data", "assemble", str(tile_folder), str(out), "--mpp", "0.5"]) == 0
    assert "x=100, y=50" in capsys.readouterr().out
    with open_slide(out) as slide:
        assert slide.size_l0 == (128, 64)
        assert slide.mpp == pytest.approx(0.5)


# segment


def _checkpoint(folder, **info):
    from renal_utils.models.build import build_model

    torch.manual_seed(0)
    options = {"base_width": 4, "depth": 2}
    model = build_model("unet", num_classes=1, **options)
    path = folder / "tiny.safetensors"
    save_checkpoint(path, model, CheckpointInfo(model="unet", options=options, **info))
    return path


def _slide(folder, mpp=None):
    rng = np.random.default_rng(0)
    path = folder / "slide.ome.tiff"
    pixels = rng.integers(60, 200, (96, 128, 3), np.uint8)
    write_pyramid(path, pixels, size_px=(128, 96), mpp=mpp, tile_px=64)
    return path


def test_a_slide_is_segmented_from_the_command_line(tmp_path, capsys):
    checkpoint, slide = _checkpoint(tmp_path, patch_px=32, downsample=2.0), _slide(tmp_path)
    command = ["segment", str(slide), "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out"), "--mpp", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("glomerulus: ")
    assert "counted: objects of at least 0 pixels of the network's scale" in printed
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["downsample"] == 2.0
    assert summary["mpp"] == pytest.approx(0.5)
    with open_slide(tmp_path / "out" / "labels.ome.tiff") as labels:
        assert labels.size_l0 == (64, 48)


def test_the_least_object_is_printed_in_the_unit_it_was_given_in(tmp_path, capsys):
    checkpoint, slide = _checkpoint(tmp_path, patch_px=32, downsample=2.0), _slide(tmp_path)
    command = ["segment", str(slide), "--checkpoint", str(checkpoint), "--mpp", "0.25"]
    for option, unit in (("--min-object", "pixels of the"), ("--min-object-um2", "square microns")):
        assert main([*command, "--out", str(tmp_path / unit), option, "20.5"]) == 0
        assert f"objects of at least 20.5 {unit}" in capsys.readouterr().out
        made_from = read_json(tmp_path / unit / "summary.json")["made_from"]
        assert made_from["min_object_um2" if "um2" in option else "min_object_px"] == 20.5


def test_a_network_of_a_physical_scale_wants_the_slides_own(tmp_path, capsys):
    checkpoint, slide = _checkpoint(tmp_path, patch_px=32, mpp=1.0), _slide(tmp_path)
    command = ["segment", str(slide), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o")]
    assert main(command) == 2
    error = _stderr(capsys)
    assert "slide.ome.tiff does not state its scale" in error
    assert "--mpp 0.5 states it" in error
    assert not (tmp_path / "o").exists()
    assert main([*command, "--mpp", "0.5"]) == 0
    assert read_json(tmp_path / "o" / "summary.json")["downsample"] == pytest.approx(2.0)


def test_the_scale_asked_for_goes_before_the_checkpoints(tmp_path):
    with open_slide(_slide(tmp_path, mpp=0.25)) as slide:
        assert choose_scale(CheckpointInfo("unet", mpp=1.0), slide, 3.0) == {"downsample": 3.0}
        assert choose_scale(CheckpointInfo("unet", mpp=1.0), slide, None) == {"mpp": 1.0}
        assert choose_scale(CheckpointInfo("unet", downsample=4), slide, None) == {
            "downsample": 4.0
        }


@pytest.mark.parametrize("missing", ["slide", "checkpoint"])
def test_a_missing_file_is_named(tmp_path, capsys, missing):
    files = {"slide": _slide(tmp_path), "checkpoint": _checkpoint(tmp_path)}
    files[missing] = files[missing].with_name("absent" + files[missing].suffix)
    command = ["segment", str(files["slide"]), "--checkpoint", str(files["checkpoint"])]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "absent" in _stderr(capsys)
    assert not (tmp_path / "out").exists()


# all verbs


def test_a_stopped_run_says_so(monkeypatch, tmp_path, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("renal_utils.cli.data._check", stop)
    assert main(["data", "check", str(tmp_path)]) == 130
    assert _stderr(capsys) == "renal: stopped\n"


@pytest.mark.parametrize("verb", ["study x.yaml", "segment x.tiff --checkpoint y --out z"])
def test_processes_here_and_a_cluster_are_not_both_taken(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--workers", "1", "--dask", "tcp://127.0.0.1:1"])
    assert stop.value.code == 2
    assert "--dask: not allowed with argument --workers" in _stderr(capsys)


def test_no_worker_is_refused_for_one_slide_too(tmp_path, capsys):
    command = ["segment", str(_slide(tmp_path)), "--checkpoint", str(_checkpoint(tmp_path))]
    assert main([*command, "--out", str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "workers must be 1 or more, given 0" in _stderr(capsys)
    assert not (tmp_path / "out").exists()


def test_the_package_can_be_run_as_a_module(tmp_path):
    command = [sys.executable, "-m", "renal_utils.cli", "data", "check", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("renal: ") and "absent is no folder" in done.stderr


def test_debug_gives_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        main(["--debug", "data", "check", str(tmp_path / "absent")])


@pytest.mark.parametrize(
    "verb",
    [[], ["data"], ["data", "draw"], ["run"], ["study"], ["segment"], ["report"], ["models"]],
)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    assert "usage: renal" in capsys.readouterr().out
