"""Slides on several devices: the files of one, and each worker on its own. On the CPU only."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from segmenting_cases import make_checkpoint, make_slide
from stitching_cases import content, identity, stitch
from stitching_cases import make_slide as stitching_slide

from renal_utils.cli import main
from renal_utils.dask_clusters import place_workers
from renal_utils.replicas import Replicas
from renal_utils.segment_settings import SegmentSettings
from renal_utils.segmenting import segment_slide, segment_slides

FILES = ("labels.ome.tiff", "probability.ome.tiff", "objects.csv", "objects.geojson")


@pytest.fixture
def settings(tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    return SegmentSettings((checkpoint,), device="cpu", precision="32-true", batch=5)


def _bytes(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_two_devices_write_the_files_of_one_and_keep_what_one_has_done(tmp_path, settings):
    path, both = make_slide(tmp_path / "a.ome.tiff"), replace(settings, device="cpu,cpu")
    one = segment_slide(path, tmp_path / "one", settings, progress=False)
    two = segment_slide(path, tmp_path / "two", both, progress=False)
    assert _bytes(two.folder) == _bytes(one.folder)
    assert two.summary["made_from"] == one.summary["made_from"]
    kept = segment_slide(path, tmp_path / "one", both, progress=False)
    assert kept.summary == one.summary
    assert [o.status for o in segment_slides([path], tmp_path / "many", settings)] == ["done"]
    assert [o.status for o in segment_slides([path], tmp_path / "many", both)] == ["kept"]


def test_two_devices_write_the_uncertainty_of_one(tmp_path, settings):
    second = make_checkpoint(tmp_path, "second", seed=1)
    path = make_slide(tmp_path / "a.ome.tiff", size=(130, 300))
    mean = replace(settings, checkpoints=(*settings.checkpoints, second), flips=2, uncertainty=True)
    one = segment_slide(path, tmp_path / "one", mean, progress=False)
    both = replace(mean, device="cpu,cpu")
    two = segment_slide(path, tmp_path / "two", both, progress=False)
    assert two.uncertainty_path.read_bytes() == one.uncertainty_path.read_bytes()
    assert _bytes(two.folder) == _bytes(one.folder)


def test_a_batch_is_never_cut_whatever_the_number_of_copies(tmp_path):
    """A network that answers by the whole batch gives the files of one copy."""

    def by_the_batch(images):
        sizes.append(len(images))
        return (identity(images) + identity(images).mean()) / 2

    path, found = stitching_slide(tmp_path, (200, 400)), []
    for count in (1, 2, 3):
        sizes = []
        predict = Replicas((by_the_batch,) * count)
        found.append(content(stitch(path, tmp_path / str(count), predict).folder))
        assert len(sizes) > 8 and sizes.count(5) >= len(sizes) - 1
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_one_copy_stops_the_slide_and_what_is_done_is_kept(tmp_path, broken):
    calls = []

    def failing(images):
        calls.append(len(images))
        if len(calls) > 4:
            raise RuntimeError("cuda:1 fell off the bus")
        return identity(images)

    path, copies = stitching_slide(tmp_path, (200, 400)), [identity, identity]
    copies[broken] = failing
    with pytest.raises(RuntimeError, match="fell off the bus"):
        stitch(path, tmp_path / "out", Replicas(tuple(copies)))
    assert not (tmp_path / "out" / "summary.json").exists()
    resumed = stitch(path, tmp_path / "out")
    assert resumed.summary["run"]["from_row"] > 0
    assert content(resumed.folder) == content(stitch(path, tmp_path / "whole").folder)


def test_a_run_that_stopped_on_two_devices_goes_on_with_one(tmp_path, settings, monkeypatch):
    path = make_slide(tmp_path / "a.ome.tiff", size=(130, 300))
    whole = segment_slide(path, tmp_path / "whole", settings, progress=False)
    batches = iter(range(6))

    def fall_over(*_):
        if next(batches, None) is None:
            raise RuntimeError("cuda:1 fell off the bus")

    with monkeypatch.context() as patched:
        patched.setattr("renal_utils.stitching.to_batch", _after(fall_over))
        with pytest.raises(RuntimeError, match="fell off"):
            both = replace(settings, device="cpu,cpu")
            segment_slide(path, tmp_path / "out", both, progress=False)
    resumed = segment_slide(path, tmp_path / "out", settings, progress=False)
    assert resumed.summary["run"]["from_row"] > 0
    assert _bytes(resumed.folder) == _bytes(whole.folder)


def _after(check):
    from renal_utils.augment import to_batch

    def checked(images):
        check()
        return to_batch(images)

    return checked


def test_workers_at_work_together_are_never_two_of_one_number(tmp_path, settings, monkeypatch):
    """The processes are threads here; the two of a pair wait for each other."""
    paths = [make_slide(tmp_path / f"{name}.ome.tiff") for name in "abcd"]
    both, taken = threading.Barrier(2), []

    def note(path, folder, settings, place):
        taken.append(place)
        both.wait(timeout=20)
        return {}

    monkeypatch.setattr("renal_utils.segmenting._run", note)
    monkeypatch.setattr(
        "renal_utils.segmenting.ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1)
    )
    outcomes = segment_slides(paths, tmp_path / "out", settings, workers=2)
    assert [outcome.error for outcome in outcomes] == [""] * 4
    assert sorted(taken) == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_a_worker_looks_with_the_devices_of_its_place(tmp_path, settings, monkeypatch):
    from renal_utils import segmenting

    used = []

    def look(path, folder, settings, *, progress):
        used.append(settings.device)
        raise ValueError("no matter")

    monkeypatch.setattr(segmenting, "segment_slide", look)
    three = replace(settings, device="cpu,cpu:0,cpu")
    for place in ((0, 1), (0, 2), (1, 2), (4, 6)):
        with pytest.raises(ValueError, match="no matter"):
            segmenting._run(tmp_path, tmp_path, three, place)
    assert used == ["cpu,cpu:0,cpu", "cpu,cpu", "cpu:0", "cpu:0"]


def test_workers_of_a_cluster_are_counted_on_each_machine():
    class Client:
        def scheduler_info(self, n_workers):
            assert n_workers == -1
            hosts = {"tcp://b:2": "b", "tcp://a:7": "a", "tcp://a:5": "a"}
            return {"workers": {address: {"host": host} for address, host in hosts.items()}}

    assert place_workers(Client()) == {
        "tcp://a:5": (0, 2),
        "tcp://a:7": (1, 2),
        "tcp://b:2": (0, 1),
    }


def test_a_device_that_is_not_here_is_said_before_any_slide(tmp_path, settings, capsys):
    paths = [make_slide(tmp_path / f"{name}.ome.tiff") for name in "ab"]
    command = ["segment", *map(str, paths), "--checkpoint", str(settings.checkpoints[0])]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu,gpu"]
    assert main(command) == 2
    assert "no device is called 'gpu'; expected auto, cpu, cuda" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
