"""Stitching that stops, is killed or meets results that are there, and goes on."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from stitching_cases import (
    OUTPUTS,
    content,
    identity,
    leftovers,
    make_slide,
    plan_of,
    stitch,
)
from torch import nn

from renal_utils.labels import KIDNEY_TISSUES
from renal_utils.prediction import make_predictor
from renal_utils.result_folder import hold_folder, is_finished
from renal_utils.segmented import read_segmented
from renal_utils.views import average_views


def test_a_finished_folder_is_returned_without_looking_at_the_slide_again(tmp_path):
    path = make_slide(tmp_path, (150, 140))
    first = stitch(path, tmp_path / "out")
    again = stitch(path, tmp_path / "out")
    assert again.summary == first.summary
    assert not (tmp_path / "out" / "rows.bands").exists()
    fresh = stitch(path, tmp_path / "out", resume=False)
    assert content(fresh.folder)[0] == content(first.folder)[0]
    assert fresh.summary["run"]["windows"] > 0


def test_a_map_of_uncertainty_that_was_lost_is_missed_and_written_again(tmp_path):
    path, predict = make_slide(tmp_path, (150, 140)), average_views(identity, flips=2, spread=True)
    lost = stitch(path, tmp_path / "out", predict).uncertainty_path
    before, written = content(tmp_path / "out"), lost.read_bytes()
    lost.unlink()
    assert not is_finished(tmp_path / "out")
    with pytest.raises(ValueError, match="out holds no finished results"):
        read_segmented(tmp_path / "out")
    stitch(path, tmp_path / "out", predict)
    assert is_finished(tmp_path / "out")
    assert lost.read_bytes() == written
    assert content(tmp_path / "out") == before
    stitch(path, tmp_path / "plain")
    assert is_finished(tmp_path / "plain")  # which was never asked for one


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"plan": plan_of(stride_px=16)}, "stride_px was 32, now 16"),
        ({"threshold": 0.4}, "threshold was 0.5, now 0.4"),
        ({"mpp": 0.25}, "slide_mpp"),
        ({"label_set": KIDNEY_TISSUES}, "label_set was 'glomeruli'"),
        ({"predict": make_predictor(nn.Conv2d(3, 1, 1), device="cpu")}, "network was"),
    ],
)
def test_going_on_with_other_settings_is_refused_naming_them(tmp_path, change, named):
    path = make_slide(tmp_path, (150, 140))
    first = content(stitch(path, tmp_path / "out").folder)
    with pytest.raises(ValueError, match=named):
        stitch(path, tmp_path / "out", **change)
    assert content(tmp_path / "out") == first


def test_another_slide_of_the_same_name_and_foreign_results_are_refused(tmp_path):
    path = make_slide(tmp_path, (150, 140))
    stitch(path, tmp_path / "out")
    (tmp_path / "other").mkdir()
    other = make_slide(tmp_path, (150, 140), seed=1).rename(tmp_path / "other" / path.name)
    with pytest.raises(ValueError, match="slide_bytes"):
        stitch(other, tmp_path / "out")
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ValueError, match="nobody knows"):
        stitch(path, tmp_path / "out")


def test_an_error_half_way_is_passed_on_and_the_next_run_goes_on_from_there(tmp_path):
    path = make_slide(tmp_path, (200, 400))
    calls = []

    def failing(images):
        calls.append(len(images))
        if len(calls) == 8:
            raise RuntimeError("the network fell over")
        return identity(images)

    with pytest.raises(RuntimeError, match="fell over"):
        stitch(path, tmp_path / "out", failing)
    assert not any((tmp_path / "out" / name).exists() for name in OUTPUTS)
    resumed = stitch(path, tmp_path / "out")
    assert resumed.summary["run"]["from_row"] > 0
    assert resumed.summary["run"]["windows"] < resumed.summary["windows"]["seen"]
    assert content(resumed.folder) == content(stitch(path, tmp_path / "whole").folder)


# A process that makes all heavy imports once and then forks: each child stitches and is killed at a
# random call of any function, counted by the profiler's hook, so not only where we would look.
KILLS = """
import os, random, signal, sys
from pathlib import Path
import torch
from torch import nn
from renal_utils.labels import GLOMERULI
from renal_utils.prediction import make_predictor
from renal_utils.slides import open_slide
from renal_utils.stitching import StitchPlan, stitch_slide

torch.set_num_threads(1)
path, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def count_calls(limit):
    calls = 0

    def hook(frame, event, argument):
        nonlocal calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(hook)
    return lambda: calls


def stitch(out, limit):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU()
    model = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1))
    predict = make_predictor(model, device="cpu", precision="bf16-mixed")
    plan = StitchPlan(patch_px=64, stride_px=32, downsample=1.0, batch_size=5)
    with open_slide(path) as slide:
        calls = count_calls(limit)
        stitch_slide(slide, predict, out, plan=plan, label_set=GLOMERULI, progress=False)
        sys.setprofile(None)
    (folder / "calls").write_text(str(calls()))
    os._exit(0)


def child(out, limit=None):
    pid = os.fork()
    if pid == 0:
        try:
            stitch(folder / out, limit)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


assert child("whole") == 0
total = int((folder / "calls").read_text())
random.seed(0)
limits = [random.randint(1, total * 6 // 5 // kills) for _ in range(kills)]
killed = sum(os.WIFSIGNALED(child("killed", limit)) for limit in limits)
assert child("killed") == 0
print(killed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_points_and_resumed_gives_the_same_bytes(tmp_path, kills):
    path = make_slide(tmp_path, (640, 1900), background=True)
    command = [sys.executable, "-c", KILLS, str(path), str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills // 2
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not leftovers(tmp_path / "killed")


def test_a_full_disk_is_said_and_leaves_nothing_that_looks_whole(tmp_path, small_disk):
    path = make_slide(tmp_path, (600, 1200))
    rng = np.random.default_rng(0)

    def noise(images):
        return torch.from_numpy(rng.random((len(images), 1, 64, 64), np.float32))

    folder = small_disk(1) / "out"
    with pytest.raises(OSError, match="make room and run again"):
        stitch(path, folder, noise)
    assert not any((folder / name).exists() for name in (*OUTPUTS, "summary.json"))
    assert not leftovers(folder)
    assert (folder / "rows.bands").stat().st_size > 100_000


def test_a_folder_that_another_run_is_writing_to_is_refused_and_then_free_again(tmp_path):
    path = make_slide(tmp_path, (130, 100))
    with (
        hold_folder(tmp_path / "out"),
        pytest.raises(BlockingIOError, match=r"another process is writing to .*out"),
    ):
        stitch(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))
    assert stitch(path, tmp_path / "out").labels_path.exists()


def test_a_process_that_dies_lets_its_folder_go(tmp_path):
    script = (
        "import os, sys\n"
        "from renal_utils.result_folder import hold_folder\n"
        "with hold_folder(sys.argv[1]):\n"
        "    os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == 7
    with hold_folder(tmp_path):
        pass
