"""Transfer: how a network does on a disease group that it was never shown.

Tissue of one disease differs from that of another, and a network trained on some of them is asked
about all. So each group is left out of training once, and every network is scored on every group.
In a column of the matrix all networks answer for the same slides; what the one that never saw the
group lacks there, against the others, is what the group's absence costs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from renal_utils.checkpoints import load_checkpoint
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.trials import Budget, Splits, Trial, make_splits, run_trial
from renal_utils.validation import evaluate


def leave_one_group_out(
    model_name: str,
    manifest: pd.DataFrame,
    *,
    loss: Callable[[], nn.Module],
    budget: Budget,
    folder: str | Path,
    options: Mapping[str, Any] | None = None,
    eval_patch_px: int = 512,
) -> pd.DataFrame:
    """Train once without each disease group, and score each network on all of them.

    The patches of a group that is left out are in neither training nor validation, so they choose
    no threshold either. Without any patches of split "val" the squares of the training donors take
    their place: with few donors there is none to spare. Scored are the donors of split "test".

    Args:
        model_name: A key of ``MODELS``.
        manifest: Patches with groups and the splits "train", "test" and, if there are any, "val".
        loss: Makes the loss, a new one for each network.
        budget: What every network gets alike.
        folder: Parent of the networks' folders, ``without_<group>``.
        options: Of ``build_model``.
        eval_patch_px: Side of the squares that are scored, see ``trials.make_splits``.

    Returns:
        One row for each network and group: ``left_out``, ``group``, ``dice`` (mean of the
        foreground classes, over all pixels of the group's test slides), ``donors`` (scored).

    Raises:
        ValueError: If there are fewer than two groups, a group has no patches to train on or to be
            scored on, or a donor stands in two splits.
    """
    groups, rows = _find_groups(manifest), list[dict[str, Any]]()
    for left_out in groups:
        splits = _without(manifest, left_out, eval_patch_px)
        trial = run_trial(
            model_name,
            splits,
            loss=loss(),
            budget=budget,
            folder=folder,
            options=options,
            name=f"without_{left_out}",
        )
        rows += _score(trial, splits, left_out, groups)
    return pd.DataFrame(rows)


def transfer_matrix(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores as a matrix: a row for each group left out, a column for each scored on.

    Args:
        scores: Of ``leave_one_group_out``; of several seeds, one below the other, the mean is
            taken.
    """
    groups = list(dict.fromkeys(scores["left_out"]))
    matrix = scores.pivot_table(index="left_out", columns="group", values="dice", aggfunc="mean")
    return matrix.loc[groups, groups]


def transfer_costs(scores: pd.DataFrame) -> pd.Series:
    """Return what each group's absence costs: Dice of those that saw it less that of the one not.

    The networks compared are scored on the same slides, and each was trained on as many groups.
    """
    seen = scores[scores["left_out"] != scores["group"]].groupby("group")["dice"].mean()
    unseen = scores[scores["left_out"] == scores["group"]].groupby("group")["dice"].mean()
    return (seen - unseen).reindex(dict.fromkeys(scores["left_out"])).rename("cost")


def _find_groups(manifest: pd.DataFrame) -> list[str]:
    groups = list(dict.fromkeys(manifest["group"]))
    if len(groups) < 2:
        raise ValueError(f"groups {groups}: leaving one out needs at least two")
    for split in ("train", "test"):
        known = set(manifest.loc[manifest["split"] == split, "group"])
        if missing := [group for group in groups if group not in known]:
            raise ValueError(f"groups {missing} have no patches of split {split!r}")
    splits = manifest.groupby("donor")["split"].nunique()
    if shared := sorted(splits.index[splits > 1]):
        raise ValueError(f"donors {shared[:5]} stand in several splits; see splits.split_by_donor")
    return groups


def _without(manifest: pd.DataFrame, left_out: str, eval_patch_px: int) -> Splits:
    is_test = manifest["split"] == "test"
    kept = manifest[is_test | (manifest["group"] != left_out)]
    if not (kept["split"] == "val").any():
        again = kept[kept["split"] == "train"].assign(split="val")
        kept = pd.concat([kept, again], ignore_index=True)
    return make_splits(kept, eval_patch_px=eval_patch_px)


def _score(
    trial: Trial, splits: Splits, left_out: str, groups: Sequence[str]
) -> list[dict[str, Any]]:
    model, info = load_checkpoint(trial.path)
    rows = []
    for group in groups:
        squares = splits.test[splits.test["group"] == group]
        table = evaluate(
            model,
            make_loader(PatchDataset(squares), batch_size=1, shuffle=False),
            label_set=splits.label_set,
            threshold=info.threshold,
        )
        donors, dice = squares["donor"].nunique(), float(table.loc["mean", "dice"])
        rows.append({"left_out": left_out, "group": group, "dice": dice, "donors": donors})
    return rows
