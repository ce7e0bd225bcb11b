import pandas as pd
import pytest
from patch_images import write_image

from renal_utils.checkpoints import load_checkpoint
from renal_utils.covering import cover_images
from renal_utils.labels import GLOMERULI
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.losses import build_loss
from renal_utils.patching import cut_patches
from renal_utils.transfer import leave_one_group_out, transfer_costs, transfer_matrix
from renal_utils.trials import Budget
from renal_utils.validation import evaluate


class _EnoughError(Exception):
    pass


PLACES = {"a": ("x", "train"), "b": ("y", "train"), "c": ("x", "test"), "d": ("y", "test")}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("images")
    records = [write_image(folder, name, group=group) for name, (group, _) in PLACES.items()]
    cut = cut_patches(records, patch_px=64, stride_px=64)
    return cut.assign(split=cut["image_id"].map({name: s for name, (_, s) in PLACES.items()}))


def _leave_out(manifest, folder, **changes):
    return leave_one_group_out(
        "unet",
        manifest,
        **{
            "loss": lambda: build_loss("bce_dice", weight=0.5, positive_weight=1.0),
            "budget": Budget(steps=4, validations=1, batch_size=2, jitter_px=0),
            "folder": folder,
            "options": {"base_width": 4, "depth": 2},
            "eval_patch_px": 128,
            **changes,
        },
    )


def test_each_network_is_scored_on_each_group_of_the_test_and_by_itself(manifest, tmp_path):
    scores = _leave_out(manifest, tmp_path)
    assert scores[["left_out", "group"]].to_numpy().tolist() == [
        ["x", "x"],
        ["x", "y"],
        ["y", "x"],
        ["y", "y"],
    ]
    assert (scores["donors"] == 1).all()
    model, info = load_checkpoint(tmp_path / "without_x" / "best.safetensors")
    squares = cover_images(manifest[manifest["image_id"] == "d"], patch_px=128)
    loader = make_loader(PatchDataset(squares), batch_size=1, shuffle=False)
    table = evaluate(model, loader, label_set=GLOMERULI, threshold=info.threshold)
    found = scores.query("left_out == 'x' and group == 'y'")["dice"].item()
    assert found == pytest.approx(table.loc["mean", "dice"], abs=1e-6)


@pytest.mark.parametrize("with_val", [False, True])
def test_a_group_that_is_left_out_neither_teaches_nor_chooses(
    manifest, tmp_path, monkeypatch, with_val
):
    if with_val:
        more = manifest[manifest["split"] == "train"]
        more = more.assign(split="val", donor=more["donor"] + "2")
        manifest = pd.concat([manifest, more], ignore_index=True)
    seen = []

    def watch(model_name, splits, **options):
        seen.append(splits)
        raise _EnoughError

    monkeypatch.setattr("renal_utils.transfer.run_trial", watch)
    with pytest.raises(_EnoughError):
        _leave_out(manifest, tmp_path)
    assert set(seen[0].train["group"]) == set(seen[0].val["group"]) == {"y"}
    assert set(seen[0].test["group"]) == {"x", "y"}
    assert set(seen[0].val["donor"]) == ({"b2"} if with_val else {"b"})
    assert not set(seen[0].test["donor"]) & set(seen[0].train["donor"])


def test_matrix_and_costs_are_means_over_seeds():
    rows = [
        ("x", "x", 0.5), ("x", "y", 0.9), ("y", "x", 0.8), ("y", "y", 0.7),
        ("x", "x", 0.3), ("x", "y", 0.7), ("y", "x", 0.8), ("y", "y", 0.7),
    ]  # fmt: skip
    scores = pd.DataFrame(rows, columns=["left_out", "group", "dice"])
    matrix = transfer_matrix(scores)
    assert matrix.loc["x"].tolist() == pytest.approx([0.4, 0.8])
    assert matrix.loc["y"].tolist() == pytest.approx([0.8, 0.7])
    costs = transfer_costs(scores)
    assert costs["x"] == pytest.approx(0.8 - 0.4)
    assert costs["y"] == pytest.approx(0.8 - 0.7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[m["group"] == "x"], "at least two"),
        (lambda m: m[m["image_id"] != "b"], r"\['y'\] have no patches of split 'train'"),
        (lambda m: m[m["image_id"] != "c"], r"\['x'\] have no patches of split 'test'"),
        (lambda m: m.assign(donor="one"), "stand in several splits"),
    ],
)
def test_what_cannot_be_compared_is_refused(manifest, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        _leave_out(change(manifest), tmp_path)
