import pandas as pd
import pytest
import torch
from patch_images import write_image

from renal_utils.checkpoints import load_checkpoint
from renal_utils.losses import build_loss
from renal_utils.models.build import build_model
from renal_utils.models.freezing import copy_encoder
from renal_utils.patching import cut_patches
from renal_utils.trials import Budget, Splits, make_splits, run_trial, table_of

BUDGET = Budget(steps=80, validations=2, batch_size=4, learning_rate=1e-2, jitter_px=0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("images")
    records = [write_image(folder, name) for name in ("a", "b", "c", "d")]
    splits = {"a": "train", "b": "train", "c": "val", "d": "test"}
    cut = cut_patches(records, patch_px=64, stride_px=32)
    return cut.assign(split=cut["image_id"].map(splits))


@pytest.fixture(scope="module")
def splits(manifest) -> Splits:
    return make_splits(manifest, eval_patch_px=128)


@pytest.fixture(scope="module")
def trials(splits, tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("trials")
    options = {"base_width": 4, "depth": 2}
    return [
        run_trial(
            "unet",
            splits,
            loss=build_loss("bce_dice", weight=0.5, positive_weight=1.0),
            budget=BUDGET,
            folder=folder,
            options=options,
            name=name,
        )
        for name in ("once", "again")
    ]


def test_validation_and_test_squares_cover_their_images_once(splits):
    assert set(splits.val["image_id"]) == {"c"} and set(splits.test["image_id"]) == {"d"}
    assert len(splits.val) == 6  # 320 x 256 in squares of 128
    assert splits.mpp == 0.5 and splits.label_set.name == "glomeruli"


def test_a_split_without_patches_is_refused(manifest):
    with pytest.raises(ValueError, match="no patches of split test"):
        make_splits(manifest[manifest["split"] != "test"])


def test_the_same_budget_gives_the_same_trial_twice(trials):
    once, again = trials
    assert once.history["train_loss"].tolist() == again.history["train_loss"].tolist()
    pd.testing.assert_frame_equal(once.scores, again.scores)
    assert once.path != again.path


def test_a_trial_learns_and_its_table_shows_what_it_reached(trials):
    table = table_of(trials)
    assert table.index.tolist() == ["once", "again"]
    assert table.loc["once", "val_dice"] == trials[0].history["val_best_dice"].max()
    assert table.loc["once", "test_dice"] == trials[0].scores.loc["mean", "dice"]
    assert table.loc["once", "val_dice"] > 0.6  # dark discs on pink; all foreground gives less
    assert len(trials[0].history) == BUDGET.validations


def test_its_predictor_gives_probabilities(trials, splits):
    batch = next(iter(splits.loader("test")))
    probabilities = trials[0].predictor()(batch["image"])
    assert probabilities.shape == (1, 1, 128, 128)
    assert probabilities.min() >= 0 and probabilities.max() <= 1


@pytest.mark.parametrize(("steps", "validations"), [(1, 2), (4, 0)])
def test_a_budget_without_a_step_for_each_validation_is_refused(steps, validations):
    with pytest.raises(ValueError, match="validations"):
        Budget(steps=steps, validations=validations)


@pytest.mark.parametrize("frozen", [0, 4])
def test_a_trial_begins_with_another_ones_encoder_and_may_keep_it_frozen(
    trials, splits, tmp_path, frozen
):
    budget = Budget(
        steps=frozen + 1,
        validations=1,
        batch_size=4,
        learning_rate=1e-12,
        encoder_from=trials[0].path,
        frozen_steps=frozen,
    )
    trial = run_trial(
        "unet",
        splits,
        loss=build_loss("bce_dice", weight=0.5, positive_weight=1.0),
        budget=budget,
        folder=tmp_path,
        options={"base_width": 4, "depth": 2},
    )
    begun, other = load_checkpoint(trial.path)[0], load_checkpoint(trials[0].path)[0]
    for mine, theirs in zip(begun.encoder.parameters(), other.encoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not torch.allclose(begun.head.weight, other.head.weight)
    assert (trial.path.parent / "frozen").exists() == bool(frozen)


def test_a_budget_of_frozen_steps_alone_is_refused():
    with pytest.raises(ValueError, match="steps 10, without the 10 frozen ones"):
        Budget(steps=10, frozen_steps=10)


def test_an_encoder_of_another_width_is_refused():
    narrow, wide = (build_model("unet", base_width=w, depth=2) for w in (4, 8))
    with pytest.raises(ValueError, match="encoder of this UNet does not fit"):
        copy_encoder(narrow, wide)


def test_a_budget_hands_its_precision_to_the_plan():
    assert Budget().plan(binary=True).precision == "auto"
    assert Budget(precision="32-true").plan(binary=True).precision == "32-true"
