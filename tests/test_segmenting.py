import errno
import json
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from segmenting_cases import make_checkpoint, make_slide, purple
from skimage.io import imread

from renal_utils.cli import main
from renal_utils.datasets.kpis import read_kpis
from renal_utils.result_folder import is_finished
from renal_utils.rle import decode_rle, encode_rle, encode_rle_strips, read_rle_table
from renal_utils.runtime import read_json
from renal_utils.segment_settings import SegmentSettings, load_predictor
from renal_utils.segmenting import segment_slide, segment_slides
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.submissions import write_kpis_masks, write_submission


@pytest.fixture
def settings(tmp_path):
    return SegmentSettings((make_checkpoint(tmp_path),), device="cpu", precision="32-true")


@pytest.fixture
def slides(tmp_path):
    """Three slides; the second is no slide."""
    paths = [make_slide(tmp_path / f"{name}.ome.tiff", seed) for seed, name in enumerate("abc")]
    paths[1].write_bytes(b"not a slide at all")
    return paths


def _statuses(outcomes):
    return [outcome.status for outcome in outcomes]


def test_a_slide_that_fails_stops_no_other_and_is_tried_again(tmp_path, settings, slides):
    out = tmp_path / "out"
    first = segment_slides(slides, out, settings)
    assert _statuses(first) == ["done", "failed", "done"]
    assert "b.ome.tiff" in first[1].error
    assert is_finished(out / "a") and is_finished(out / "c")
    before = (out / "a" / "labels.ome.tiff").stat().st_mtime_ns
    make_slide(slides[1], seed=1)
    second = segment_slides(slides, out, settings)
    assert _statuses(second) == ["kept", "done", "kept"]
    assert (out / "a" / "labels.ome.tiff").stat().st_mtime_ns == before
    assert second[0].counts == first[0].counts


def test_a_done_slide_is_not_even_opened_and_a_changed_one_is(tmp_path, settings, monkeypatch):
    path, out = make_slide(tmp_path / "a.ome.tiff"), tmp_path / "out"
    segment_slides([path], out, settings)

    def refuse(*_, **__):
        raise AssertionError("opened")

    with monkeypatch.context() as patched:
        patched.setattr("renal_utils.segmenting.open_slide", refuse)
        assert _statuses(segment_slides([path], out, settings)) == ["kept"]
        os.utime(path, ns=(1, 1))
        assert segment_slides([path], out, settings)[0].error == "AssertionError: opened"
    assert _statuses(segment_slides([path], out, settings)) == ["done"]


def test_other_settings_or_weights_are_no_longer_done_and_refused_unless_told(tmp_path, settings):
    path, out = make_slide(tmp_path / "a.ome.tiff"), tmp_path / "out"
    segment_slides([path], out, settings)
    changed = replace(settings, stride=8)
    (refused,) = segment_slides([path], out, changed)
    assert "stride_px was 16, now 8" in refused.error
    make_checkpoint(tmp_path, seed=1)
    assert "network was" in segment_slides([path], out, settings)[0].error
    assert _statuses(segment_slides([path], out, replace(changed, restart=True))) == ["done"]


def test_the_window_asked_for_is_the_one_that_blends(tmp_path, settings):
    path, maps = make_slide(tmp_path / "a.ome.tiff"), []
    for window in ("hann", "uniform"):
        chosen = replace(settings, window=window)
        result = segment_slide(path, tmp_path / window, chosen, progress=False)
        assert result.summary["made_from"]["window"] == window
        maps.append(result.probability_path.read_bytes())
    assert maps[0] != maps[1]
    with pytest.raises(ValueError, match="no window 'box'"):
        segment_slide(path, tmp_path / "box", replace(settings, window="box"), progress=False)


def test_a_torn_line_of_the_ledger_costs_one_slide_only(tmp_path, settings):
    paths = [make_slide(tmp_path / f"{name}.ome.tiff", seed) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    segment_slides(paths, out, settings)
    ledger = out / "slides.jsonl"
    ledger.write_text(ledger.read_text()[:-20])
    assert _statuses(segment_slides(paths, out, settings)) == ["kept", "done"]
    assert _statuses(segment_slides(paths, out, settings)) == ["kept", "kept"]
    assert [json.loads(line)["slide"] for line in ledger.read_text().splitlines()[-1:]]


def test_lines_of_the_ledger_that_are_none_and_a_disk_too_full_for_one_stop_nothing(
    tmp_path, settings, monkeypatch
):
    paths = [make_slide(tmp_path / f"{name}.ome.tiff", seed) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    out.mkdir()
    (out / "slides.jsonl").write_text('3\n["done"]\nnone of ours\n')

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("renal_utils.segmenting._Ledger._is_torn", full)
        assert _statuses(segment_slides(paths, out, settings)) == ["done", "done"]
    before = (out / "a" / "labels.ome.tiff").stat().st_mtime_ns
    assert _statuses(segment_slides(paths, out, settings)) == ["done", "done"]
    assert (out / "a" / "labels.ome.tiff").stat().st_mtime_ns == before
    assert _statuses(segment_slides(paths, out, settings)) == ["kept", "kept"]


def test_one_slide_at_a_time_is_done_where_ctrl_c_stops_it(tmp_path, settings, monkeypatch):
    def stop(*_, **__):
        assert threading.current_thread() is threading.main_thread()
        raise KeyboardInterrupt

    paths = [make_slide(tmp_path / f"{name}.ome.tiff") for name in "ab"]
    monkeypatch.setattr("renal_utils.segmenting.segment_slide", stop)
    with pytest.raises(KeyboardInterrupt):
        segment_slides(paths, tmp_path / "out", settings)


def test_many_slides_do_not_go_into_the_folder_of_one(tmp_path, settings):
    paths = [make_slide(tmp_path / f"{name}.ome.tiff") for name in "ab"]
    segment_slide(paths[0], tmp_path / "out", settings, progress=False)
    with pytest.raises(ValueError, match="out holds the results of one slide"):
        segment_slides(paths, tmp_path / "out", settings)


@pytest.mark.slow
def test_processes_give_the_same_bytes_and_may_die(tmp_path, settings, slides, monkeypatch):
    alone = segment_slides(slides, tmp_path / "alone", settings)
    both = replace(settings, device="cpu,cpu")
    apart = segment_slides(slides, tmp_path / "apart", both, workers=2)
    assert _statuses(alone) == _statuses(apart)
    for name in "ac":
        files = (tmp_path / f / name / "labels.ome.tiff" for f in ("alone", "apart"))
        assert len({file.read_bytes() for file in files}) == 1
    monkeypatch.setattr("renal_utils.segmenting._run", _die)
    (died,) = segment_slides(slides[:1], tmp_path / "died", settings, workers=2)
    assert "its process died" in died.error


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes_and_goes_on_past_what_fails(
    tmp_path, settings, slides
):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        there = cluster.scheduler_address
        both = replace(settings, device="cpu,cpu")
        outcomes = segment_slides(slides, tmp_path / "dask", both, dask=there)
        again = segment_slides(slides, tmp_path / "dask", settings, dask=there)
    alone = segment_slides(slides, tmp_path / "alone", settings)
    assert _statuses(outcomes) == _statuses(alone)
    assert _statuses(again) == ["kept" if s == "done" else s for s in _statuses(alone)]
    for outcome, other in zip(outcomes, alone, strict=True):
        if outcome.is_done:
            for name in ("labels.ome.tiff", "probability.ome.tiff", "objects.csv"):
                assert (outcome.folder / name).read_bytes() == (other.folder / name).read_bytes()


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_slides_of_one_name_are_refused_before_anything_is_done(tmp_path, settings):
    paths = [make_slide(tmp_path / folder / "a.ome.tiff") for folder in ("x", "y")]
    with pytest.raises(ValueError, match="would both write to the folder 'a'"):
        segment_slides(paths, tmp_path / "out", settings)
    with pytest.raises(ValueError, match=r"workers \(2\) .* dask \(tcp://x:1\) .* give one"):
        segment_slides(paths[:1], tmp_path / "out", settings, workers=2, dask="tcp://x:1")
    assert not (tmp_path / "out").exists()


def test_several_checkpoints_are_averaged_if_they_fit(tmp_path):
    paths = tuple(
        make_checkpoint(tmp_path, f"n{seed}", seed, threshold=0.2 * (seed + 1)) for seed in (0, 1)
    )
    shared = {"device": "cpu", "precision": "32-true"}
    predict, info = load_predictor(SegmentSettings(paths, flips=2, uncertainty=True, **shared))
    assert info.threshold == pytest.approx(0.3)
    images = torch.randn(1, 3, 32, 32)
    singles = [load_predictor(SegmentSettings((path,), **shared))[0] for path in paths]
    views = [s(x) for s in singles for x in (images,)]
    views += [s(images.flip(-1)).flip(-1) for s in singles]
    torch.testing.assert_close(predict(images)[:, :1], torch.stack(views).mean(0))
    other = make_checkpoint(tmp_path, "other", 2, downsample=4.0)
    with pytest.raises(ValueError, match=r"differ in downsample: \[2.0, 4.0\]"):
        load_predictor(SegmentSettings((paths[0], other), **shared))
    with pytest.raises(ValueError, match="shows no uncertainty"):
        SegmentSettings(paths[:1], uncertainty=True)


def test_a_damaged_tile_is_named_or_left_white_if_asked(tmp_path, settings):
    path = tmp_path / "a.ome.tiff"
    pixels = purple((192, 192))
    write_pyramid(path, pixels, size_px=(192, 192), mpp=0.5, tile_px=64, compression="deflate")
    from tifffile import TiffFile

    with TiffFile(path) as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[4], page.databytecounts[4]
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(bytes(count))
    one = replace(settings, downsample=1.0)
    with pytest.raises(ValueError, match="tile 4 of level 0 cannot be decoded"):
        segment_slide(path, tmp_path / "out", one, progress=False)
    result = segment_slide(path, tmp_path / "out", replace(one, skip_damaged=True), progress=False)
    assert [0, 1, 1] in result.summary["run"]["damaged_tiles"]
    with open_slide(path, skip_damaged=True) as slide:
        seen = slide.at_downsample(1).read((0, 0), (192, 192))
    expected = pixels.copy()
    expected[64:128, 64:128] = 255
    assert np.array_equal(seen, expected)


# submissions


@pytest.mark.parametrize("width", [1, 3, 40])
def test_strips_give_the_run_lengths_of_the_whole(width):
    rng = np.random.default_rng(width)
    for share in (0, 0.3, 0.9, 1):
        mask = rng.random((13, 37)) < share
        strips = (mask[:, x : x + width] for x in range(0, 37, width))
        assert encode_rle_strips(strips) == encode_rle(mask)
        assert np.array_equal(decode_rle(encode_rle(mask), (37, 13)), mask)


@pytest.fixture
def segmented(tmp_path, settings):
    path = make_slide(tmp_path / "test" / "DN" / "12_34_wsi.ome.tiff")
    with open_slide(path) as slide:
        assert slide.size_l0 == (130, 97)
    return path, segment_slide(path, tmp_path / "out", settings, progress=False)


def _expected(result):
    """The label map at level 0: each working pixel is 2 x 2, rows beyond are empty."""
    with open_slide(result.labels_path) as labels:
        ids = labels.at_downsample(1).read_labels((0, 0), labels.size_l0)
    large = np.kron(ids, np.ones((2, 2), np.uint8)) > 0
    expected = np.zeros((97, 130), bool)
    expected[: large.shape[0], : large.shape[1]] = large[:97, :130]
    return expected


def test_a_submission_is_the_mask_at_full_resolution(segmented, tmp_path):
    _, result = segmented
    file = write_submission([result.folder], tmp_path / "submission.csv")
    assert list(pd.read_csv(file).columns) == ["id", "predicted"]
    table = read_rle_table(file, column="predicted")
    expected = _expected(result)
    assert 0 < expected.mean() < 1
    assert np.array_equal(decode_rle(table["12_34_wsi"], (130, 97)), expected)
    with pytest.raises(ValueError, match="ids must differ"):
        write_submission([result.folder] * 2, tmp_path / "twice.csv")
    with pytest.raises(ValueError, match="no finished results"):
        write_submission([tmp_path], tmp_path / "none.csv")


def test_kpis_masks_are_found_by_their_own_reader(segmented, tmp_path):
    path, result = segmented
    (mask,) = write_kpis_masks({path: result.folder}, tmp_path / "masks")
    assert mask == tmp_path / "masks" / "DN" / "mask" / "12_34_mask.tiff"
    with open_slide(mask) as found:
        assert found.mpp == pytest.approx(0.5)
        pixels = found.at_downsample(1).read_labels((0, 0), found.size_l0)
    assert np.array_equal(pixels, _expected(result) * 255)
    images = tmp_path / "masks" / "DN" / "img"
    images.mkdir()
    (images / "12_34_wsi.tiff").write_bytes(path.read_bytes())
    (record,) = read_kpis(tmp_path / "masks")
    assert (record.truth_path, record.group, record.donor) == (mask, "DN", "12_34")
    patch = tmp_path / "x" / "12_34_0_0_img.jpg"
    (png,) = write_kpis_masks({patch: result.folder}, tmp_path / "patches")
    assert png.name == "12_34_0_0_mask.png"
    assert np.array_equal(imread(png), _expected(result) * 255)


# the command line


def test_many_slides_and_their_report_from_the_command_line(tmp_path, slides, capsys):
    checkpoint, out = make_checkpoint(tmp_path), tmp_path / "out"
    command = ["segment", *map(str, slides), "--checkpoint", str(checkpoint), "--out", str(out)]
    command += ["--device", "cpu", "--flips", "2", "--uncertainty"]
    command += ["--submission", str(tmp_path / "s.csv")]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "b.ome.tiff: failed: ValueError" in printed
    assert "2 of 3 slides are done" in printed
    assert set(read_rle_table(tmp_path / "s.csv", column="predicted")) == {"a", "c"}
    assert (out / "a" / "uncertainty.ome.tiff").exists()
    (tmp_path / "slides.csv").write_text(
        "slide,donor,image\na.ome.tiff,x,a.ome.tiff\nc,x,c.ome.tiff\n"
    )
    table = ["--slides", str(tmp_path / "slides.csv")]
    assert main(["report", str(out), "--out", str(tmp_path / "report"), *table]) == 0
    printed = capsys.readouterr().out
    assert "glomeruli were found on 2 slides of 1 donor." in printed
    assert "Not for diagnosis" in printed
    assert (tmp_path / "report" / "review" / "c.geojson").exists()
    assert len(read_json(tmp_path / "report" / "report.json")["slides"]) == 2
    (tmp_path / "slides.csv").write_text("slide,image\na,c.ome.tiff\nc,c.ome.tiff\n")
    assert main(["report", str(out), "--out", str(tmp_path / "other"), *table]) == 2
    assert "is not the slide that" in capsys.readouterr().err
