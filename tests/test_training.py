import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from renal_utils import training
from renal_utils.checkpoints import CheckpointInfo, load_checkpoint
from renal_utils.labels import FOUR_TISSUES, GLOMERULI
from renal_utils.losses import build_loss
from renal_utils.models.build import build_model
from renal_utils.result_folder import hold_folder
from renal_utils.run_state import save_run
from renal_utils.training import (
    NonFiniteLossError,
    TrainingPlan,
    evaluate,
    fit,
    read_history,
)
from renal_utils.training_step import prepare
from tests.training_cases import Bce, Squares, TinyNet, bce, tiny_info, train, train_for_comparison

PROJECT = Path(__file__).resolve().parents[1]
CLOCKS = ["seconds", "val_seconds"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Four epochs without a break."""
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("straight"))


def assert_same_training(first, second):
    """History, both checkpoints and the optimiser's state are the same, bit for bit."""
    pd.testing.assert_frame_equal(
        first.frame().drop(columns=CLOCKS), second.frame().drop(columns=CLOCKS), check_exact=True
    )
    for name in ("best.safetensors", "last.safetensors", "resume.safetensors"):
        one, other = load_file(first.folder / name), load_file(second.folder / name)
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), f"{name}: {key}"


# --- what a training does -----------------------------------------------------------------------


def test_a_network_learns_squares(tmp_path):
    history = train(tmp_path, epochs=12)
    rows = history.frame()
    assert rows["train_loss"].iloc[-1] < rows["train_loss"].iloc[0] / 2
    assert rows["val_dice"].iloc[-1] > 0.85
    assert list(rows.index) == list(range(1, 13))


def test_a_folder_holds_best_last_state_and_history_and_no_pickle(straight):
    expected = ["best.json", "best.safetensors", "history.csv", "last.json", "last.safetensors"]
    found = sorted(p.name for p in straight.folder.iterdir() if p.name != ".lock")
    assert found == [*expected, "resume.safetensors"]


def test_the_history_file_says_what_the_history_says(straight):
    pd.testing.assert_frame_equal(read_history(straight.folder), straight.frame())


def test_a_history_that_is_another_table_or_has_no_row_is_refused_by_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training finished an epoch"):
        read_history(tmp_path)
    for text, words in (("name,f1\na,1\n", "no column 'epoch'"), ("epoch,f1\n", "but no row")):
        (tmp_path / "history.csv").write_text(text)
        with pytest.raises(ValueError, match=f"history.csv: .*{words}"):
            read_history(tmp_path)


def test_the_best_checkpoint_is_of_the_best_epoch_and_keeps_its_score_when_evaluated(straight):
    best = straight.frame()["val_dice"].idxmax()
    assert straight.best_epoch == best
    model, info = load_checkpoint(straight.best_path)
    row = straight.frame().loc[best]
    assert info.metrics["val_dice"] == row["val_dice"]
    assert info.threshold == row["val_threshold"]
    assert info.provenance["epoch"] == best
    loader = DataLoader(Squares(6, seed=1), batch_size=3)
    table = evaluate(
        model, loader, label_set=GLOMERULI, threshold=info.threshold, precision="32-true"
    )
    assert table.loc["glomerulus", "dice"] == pytest.approx(row["val_best_dice"], abs=1e-12)


def test_a_network_with_batch_norm_and_the_courses_loss_trains_in_bfloat16(tmp_path):
    options = {"base_width": 4, "depth": 2}
    history = train(
        tmp_path,
        model=build_model("unet", **options),
        loss=build_loss("bce_dice"),
        info=CheckpointInfo("unet", options, patch_px=16),
        precision="bf16-mixed",
        epochs=2,
    )
    model, info = load_checkpoint(history.last_path)
    assert info.provenance["precision"] == "bf16-mixed"
    assert all(v.dtype != torch.bfloat16 for v in model.state_dict().values())
    assert np.isfinite(history.frame()["val_loss"]).all()


class FourTissues(Squares):
    """Squares whose class is their place; class 3 does not occur."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        half = sample["target"][:, 8:]
        sample["target"][:, 8:] = torch.where(half == 1, 2, half)
        return sample


def test_several_classes_are_scored_each_and_an_absent_one_is_left_out(tmp_path):
    model = TinyNet(num_classes=4)
    info = CheckpointInfo("tiny", {}, num_classes=4, label_set="four_tissues", patch_px=16)
    tiny_info()
    history = train(
        tmp_path,
        data=FourTissues(),
        validation=FourTissues(6, seed=1),
        model=model,
        loss=build_loss("ce_dice"),
        info=info,
        label_set=FOUR_TISSUES,
        learning_rate=0.05,
        epochs=10,
    )
    row = history.frame().iloc[-1]
    names = [f"val_dice_{name}" for name in FOUR_TISSUES.names]
    assert np.isnan(row[names[3]])
    assert row["val_dice"] == pytest.approx(row[names[:3]].mean())
    assert load_checkpoint(history.best_path)[1].threshold is None


def test_the_learning_rate_of_a_frozen_part_changes_nothing_there(tmp_path):
    model = TinyNet()
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    before = model.layers[0].weight.clone()
    train(tmp_path, model=model, epochs=1)
    assert torch.equal(model.layers[0].weight, before)


class WeighedBce(nn.Module):
    """A loss that learns how much it counts, as multi-task losses do."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, output, target):
        return bce(output, target) * (-self.log_variance).exp() + self.log_variance


def test_parameters_of_the_loss_are_learned_and_resumed(tmp_path):
    loss = WeighedBce()
    long = train(tmp_path / "long", loss=loss, schedule="constant")
    assert loss.log_variance.item() != 0
    train(tmp_path / "short", loss=WeighedBce(), schedule="constant", epochs=2)
    resumed = train(tmp_path / "short", loss=WeighedBce(), schedule="constant", resume=True)
    assert_same_training(long, resumed)


class SidedNet(TinyNet):
    """A TinyNet that gives a side output of half the size while it trains."""

    def forward(self, images):
        logits = super().forward(images)
        return (logits, nn.functional.avg_pool2d(logits, 2)) if self.training else logits


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_network_with_side_outputs_is_trained_by_all_and_scored_by_the_main_one(
    tmp_path, precision
):
    seen = []

    class Watched(nn.Module):
        def forward(self, outputs, target):
            seen.append(outputs)
            return build_loss("deep_supervision")(outputs, target)

    history = train(tmp_path, model=SidedNet(), loss=Watched(), precision=precision, epochs=1)
    trained, scored = seen[:4], seen[4:]  # 16 patches, then 6, in batches of 4
    assert [tuple(len(o) for o in outputs) for outputs in trained] == [(4, 4)] * 4
    assert {o.dtype for outputs in trained for o in outputs} == {torch.float32}
    assert [outputs.shape for outputs in scored] == [(4, 1, 16, 16), (2, 1, 16, 16)]
    assert np.isfinite(history.frame()["val_dice"]).all()


def train_with_levels(folder, **settings):
    torch.manual_seed(4)
    loss = build_loss("multi_scale", levels=2, parts="bce_dice")
    return loss, train(folder, model=SidedNet(), loss=loss, schedule="constant", **settings)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_learned_weights_of_levels_are_resumed_to_the_same_numbers(tmp_path, precision):
    loss, long = train_with_levels(tmp_path / "long", precision=precision)
    learned = long.frame()[["loss_sigmas_0", "loss_sigmas_1"]]
    assert learned.iloc[-1].tolist() == loss.sigmas.tolist()
    assert (learned.diff().iloc[1:] != 0).all(axis=None)
    train_with_levels(tmp_path / "short", precision=precision, epochs=2)
    again, resumed = train_with_levels(tmp_path / "short", precision=precision, resume=True)
    assert_same_training(long, resumed)
    assert torch.equal(again.sigmas, loss.sigmas)
    assert not any("sigma" in name for name in load_file(long.best_path))


def test_what_the_loss_learns_is_clipped_with_the_network_but_does_not_decay():
    plan = TrainingPlan(weight_decay=0.5, device="cpu", precision="32-true")
    trainee = prepare(SidedNet(), build_loss("multi_scale", levels=2), plan)
    of_model, of_loss = trainee.optimizer.param_groups
    assert (of_model["weight_decay"], of_loss["weight_decay"]) == (0.5, 0.0)
    assert [tuple(p.shape) for p in of_loss["params"]] == [(2,)]
    assert of_loss["params"][0] is trainee.parameters[-1]


class Outlined(Squares):
    """Squares whose target has a second layer: the outline."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        mask = sample["target"]
        inner = -nn.functional.max_pool2d(-(mask[None] == 1).float(), 3, stride=1, padding=1)
        outline = torch.where(mask == 1, 1 - inner[0].long(), mask)
        return sample | {"target": torch.stack([mask, outline])}


class TwoHeads(TinyNet):
    def forward(self, images):
        logits = super().forward(images)
        return ((logits,), (-logits,)) if self.training else logits


def test_a_target_of_mask_and_contour_is_scored_by_its_mask(tmp_path):
    settings = {"epochs": 2, "info": tiny_info(dropout=0.0)}
    loss = build_loss("two_branch", part="bce", contour_weight=1e-9)
    outlined = {"data": Outlined(), "validation": Outlined(6, seed=1)}
    torch.manual_seed(6)
    both = train(tmp_path, model=TwoHeads(dropout=0.0), loss=loss, **outlined, **settings).frame()
    torch.manual_seed(6)
    mask = train(tmp_path, model=TinyNet(dropout=0.0), loss=build_loss("bce"), **settings).frame()
    assert both["val_dice"].tolist() == pytest.approx(mask["val_dice"].tolist(), abs=1e-3)


def test_data_and_sampler_are_told_the_epoch(tmp_path):
    data = Squares()
    train(tmp_path, data=data, epochs=3)
    assert data.epochs_seen == [1, 2, 3]


def test_validation_every_other_epoch_leaves_gaps_but_scores_the_last(tmp_path):
    rows = train(tmp_path, validate_every=2, epochs=5).frame()
    assert rows["val_dice"].notna().tolist() == [False, True, False, True, True]


def test_training_stops_when_patience_is_out(tmp_path):
    # At this rate nothing is learned: the scores of the first validation stay the best.
    history = train(tmp_path, learning_rate=1e-12, patience=2, epochs=9)
    assert history.stopped_early
    assert len(history.rows) == history.best_epoch + 2 == 3


def test_a_monitor_of_which_less_is_better_finds_the_least(tmp_path):
    history = train(tmp_path, monitor="val_loss", epochs=6, learning_rate=0.2)
    assert history.best_epoch == history.frame()["val_loss"].idxmin()


def test_clipping_bounds_the_step_that_sgd_takes(tmp_path):
    model = TinyNet()
    start = [p.detach().clone() for p in model.parameters()]
    settings = {"optimizer": "sgd", "schedule": "constant", "weight_decay": 0}
    train(tmp_path, model=model, clip_norm=1e-3, learning_rate=1.0, epochs=1, **settings)
    pairs = zip(model.parameters(), start, strict=True)
    moved = torch.cat([(p.detach() - q).flatten() for p, q in pairs]).norm().item()
    assert 0 < moved < 4 * 1e-3 * 10  # four steps; momentum 0.9 multiplies by less than 10


def test_one_bar_an_epoch_and_none_when_quiet(tmp_path, capfd):
    train(tmp_path, epochs=2, progress=True)
    text = capfd.readouterr().err
    assert "epoch 1/2" in text and "epoch 2/2: 100%" in text and "val_dice=" in text
    train(tmp_path, epochs=2)
    assert capfd.readouterr() == ("", "")


# --- going on after a kill ----------------------------------------------------------------------


def run_killed(folder):
    command = [sys.executable, "-m", "tests.training_cases", "kill", str(folder)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)


def test_a_training_killed_in_epoch_3_resumes_to_the_same_numbers(tmp_path, straight):
    done = run_killed(tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_history(tmp_path)) == 2
    load_checkpoint(tmp_path / "best.safetensors")
    resumed = train(tmp_path, resume=True)
    assert_same_training(straight, resumed)


def test_a_training_stopped_while_it_writes_an_epoch_resumes_to_the_same_numbers(
    tmp_path, straight, monkeypatch
):
    def stop_in_epoch_3(folder, state, modules, optimizer):
        if state.epochs_done == 3:
            raise KeyboardInterrupt
        save_run(folder, state, modules, optimizer)

    monkeypatch.setattr(training, "save_run", stop_in_epoch_3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.undo()
    assert_same_training(straight, train(tmp_path, resume=True))


def test_a_finished_training_is_not_trained_again(tmp_path):
    first = train(tmp_path, epochs=2)
    model, data = TinyNet(), Squares()
    again = train(tmp_path, epochs=2, resume=True, model=model, data=data)
    assert data.epochs_seen == []
    assert list(again.rows) == list(first.rows)
    for name, tensor in load_file(first.last_path).items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_constant_rate_may_be_given_more_epochs(tmp_path, optimizer):
    long = train(tmp_path / "long", schedule="constant", optimizer=optimizer)
    train(tmp_path / "short", schedule="constant", optimizer=optimizer, epochs=2)
    longer = train(tmp_path / "short", schedule="constant", optimizer=optimizer, resume=True)
    assert_same_training(long, longer)


def test_patience_is_remembered_over_a_resume(tmp_path):
    settings = {"learning_rate": 1e-12, "patience": 2, "schedule": "constant"}
    train(tmp_path, epochs=2, **settings)
    history = train(tmp_path, epochs=9, resume=True, **settings)
    assert (history.stopped_early, len(history.rows)) == (True, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, "plan.epochs: 4 there, 5 now"),
        ({"learning_rate": 0.5}, "plan.learning_rate: 0.02 there, 0.5 now"),
        ({"optimizer": "sgd"}, "plan.optimizer: 'adamw' there, 'sgd' now"),
        ({"batch_size": 2}, "train_data.batch_size: 4 there, 2 now"),
        ({"data": Squares(seed=5)}, "train_data.dataset.seed: 0 there, 5 now"),
        ({"precision": "bf16-mixed"}, "precision: '32-true' there, 'bf16-mixed' now"),
        ({"loss": WeighedBce()}, "loss.name: 'Bce' there, 'WeighedBce' now"),
        (
            {"loss": build_loss("sum", parts=("bce", "dice"), weights=(1, 2))},
            "loss.parts.0.positive_weight: None there, 1.0 now",
        ),
        ({"loss": build_loss("sum", weights=(1, 2))}, "loss.weights: None there, [1.0, 2.0] now"),
        ({"info": tiny_info(dropout=0.5)}, "network.options.dropout: None there, 0.5 now"),
    ],
)
def test_another_training_is_not_continued(straight, change, message):
    with pytest.raises(ValueError, match=r"resume\.safetensors is of another training") as error:
        train(straight.folder, resume=True, **change)
    assert message in str(error.value)


class ListedSquares(Squares):
    def __init__(self, manifest):
        super().__init__(len(manifest))
        self.manifest = manifest


def test_another_manifest_is_not_continued_but_the_same_in_another_folder_is(tmp_path):
    manifest = pd.DataFrame({"patch_id": [f"p{i}" for i in range(8)], "x_px": range(8)})
    there, here = manifest.assign(image_path="there/a.tif"), manifest.assign(image_path="a.tif")
    train(tmp_path, data=ListedSquares(there), epochs=1)
    train(tmp_path, data=ListedSquares(here), epochs=1, resume=True)
    with pytest.raises(ValueError, match=r"train_data\.manifest: '\w+' there, '\w+' now"):
        train(tmp_path, data=ListedSquares(manifest.assign(x_px=1)), epochs=1, resume=True)


def test_a_broken_state_is_named(tmp_path):
    history = train(tmp_path, epochs=1)
    path = history.folder / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"resume\.safetensors is not a whole.*start afresh"):
        train(tmp_path, epochs=1, resume=True)


def test_a_folder_that_another_training_writes_to_is_refused_and_then_free_again(tmp_path):
    history = train(tmp_path, epochs=1)
    before = history.last_path.read_bytes()
    for resume in (False, True):
        with (
            hold_folder(tmp_path),
            pytest.raises(BlockingIOError, match=r"another process is writing .* another"),
        ):
            train(tmp_path, epochs=1, resume=resume)
    assert history.last_path.read_bytes() == before
    train(tmp_path, epochs=1)


def test_starting_afresh_forgets_the_training_before(tmp_path):
    first = train(tmp_path / "a", epochs=3)
    train(tmp_path / "b", epochs=2, learning_rate=0.5)
    again = train(tmp_path / "b", epochs=3)
    assert_same_training(first, again)


# --- what goes wrong ----------------------------------------------------------------------------


class BrokenSquares(ListedSquares):
    """Patch 5 is not a number from epoch 2 on."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index == 5 and self.epoch >= 2:
            sample["image"][:] = float("nan")
        return sample


def test_a_nan_names_the_batch_and_leaves_the_last_good_weights(tmp_path):
    manifest = pd.DataFrame({"patch_id": [f"donor7_{i}" for i in range(16)]})
    with pytest.raises(NonFiniteLossError) as error:
        train(tmp_path, data=BrokenSquares(manifest))
    message = str(error.value)
    assert "epoch 2, step" in message and "'donor7_5'" in message
    assert "images hold NaN" in message
    assert len(read_history(tmp_path)) == 1
    for name, tensor in load_checkpoint(tmp_path / "last.safetensors")[0].state_dict().items():
        assert torch.isfinite(tensor).all(), name


class OverflowingBce(nn.Module):
    def forward(self, output, target):
        return bce(output, target) * torch.inf


def test_an_infinite_loss_stops_before_the_weights_are_touched(tmp_path):
    model = TinyNet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1: the loss is inf.*clip_norm"):
        train(tmp_path, model=model, loss=OverflowingBce())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


class Empty(Squares):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "target": torch.full_like(sample["target"], 255)}


def test_a_validation_set_without_truth_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"val_dice is not defined.*'glomeruli'.*val_loss"):
        train(tmp_path, validation=Empty(4), learning_rate=1e-12)


def test_an_info_of_another_label_set_is_refused_with_both(tmp_path):
    with pytest.raises(ValueError, match=r"'glomeruli' with 1 outputs.*'four_tissues' with 4"):
        train(tmp_path, label_set=FOUR_TISSUES)


def test_a_loader_without_batches_is_refused(tmp_path):
    empty = DataLoader(Squares(3), batch_size=4, drop_last=True)
    full = DataLoader(Squares(3), batch_size=3)
    settings = {"label_set": GLOMERULI, "folder": tmp_path, "info": tiny_info()}
    with pytest.raises(ValueError, match="train_loader gives no batches"):
        fit(TinyNet(), Bce(), empty, full, plan=TrainingPlan(device="cpu"), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, "'adamm' is not known; choose adamw, adam, sgd"),
        ({"schedule": "linear"}, "'linear'.*one_cycle, cosine, constant"),
        ({"monitor": "dice"}, "'dice'.*val_loss, val_dice"),
        ({"precision": "16"}, "precision '16'"),
        ({"epochs": 0}, "epochs must be positive, given 0"),
        ({"learning_rate": -0.1}, "learning_rate must be positive, given -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, given nan"),
        ({"patience": 0}, "patience must be positive"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"weight_decay": -1e-4}, "weight_decay must not be negative"),
    ],
)
def test_a_plan_refuses_what_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingPlan(**settings)


def test_a_disk_that_fills_up_leaves_the_epoch_before_it_whole(small_disk):
    folder = small_disk(1)
    settings = {
        "model": build_model("unet", base_width=8, depth=1),
        "info": CheckpointInfo("unet", {"base_width": 8, "depth": 1}, patch_px=16),
        "schedule": "constant",
    }
    train(folder, epochs=1, **settings)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "filler").write_bytes(bytes(os.statvfs(folder).f_bavail * 4096 - 8192))
    with pytest.raises(OSError, match=r"could not write .*safetensors.*intact"):
        train(folder, epochs=2, resume=True, **settings)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "filler"} == before
    (folder / "filler").unlink()
    assert len(train(folder, epochs=2, resume=True, **settings).rows) == 2


# --- several processes --------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_whole_batch(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", "-m", "tests.training_cases", "ddp", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one = train_for_comparison(tmp_path / "one")
    two = read_history(tmp_path / "two").drop(columns=CLOCKS)
    pd.testing.assert_frame_equal(one.frame().drop(columns=CLOCKS), two, rtol=1e-4)
    for name, tensor in load_file(one.last_path).items():
        torch.testing.assert_close(
            load_file(tmp_path / "two" / "last.safetensors")[name], tensor, rtol=1e-3, atol=1e-5
        )
    assert json.loads((tmp_path / "two" / "best.json").read_text())["model"] == "tiny"
