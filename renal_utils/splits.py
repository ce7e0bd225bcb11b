"""Splits: whom a network learns from, by whom it is chosen, and by whom it is judged.

Patches of one donor look alike, overlapping ones are alike. A split that cuts through either
measures memory. So splits go by donor, or, where there is one slide only, by its columns.
``leaks.find_leaks`` checks what came out.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

THREE_WAYS: Mapping[str, float] = {"train": 0.6, "val": 0.2, "test": 0.2}


def split_by_donor(
    manifest: pd.DataFrame,
    *,
    fractions: Mapping[str, float] = THREE_WAYS,
    keep: Collection[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Put every donor, with all patches, into exactly one split.

    Donors of one disease group are spread over the splits as evenly as their numbers allow.
    Fractions count donors, not patches; each split gets at least one.

    Args:
        manifest: Patches with their donors.
        fractions: Share of the donors for each split; must sum to 1.
        keep: Splits that the data set made itself and that stay as they are, such as ``("test",)``;
            only the donors outside them are divided.
        seed: Draws the donors.

    Returns:
        The manifest with a new ``split`` column.

    Raises:
        ValueError: If a donor is unnamed, there are too few donors, the fractions do not sum to 1,
            or a kept split shares a donor with the rest.
    """
    shares = np.array(list(fractions.values()), float)
    if not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
    free = ~manifest["split"].isin(list(keep))
    _refuse_shared_donors(manifest, free)
    donors = _donor_groups(manifest[free])
    wanted = _whole_numbers(shares, len(donors), list(fractions))
    chosen = _spread(donors, dict(zip(fractions, wanted, strict=True)), seed)
    split = manifest["donor"].map(chosen)
    return manifest.assign(split=manifest["split"].where(~free, split))


def fold_by_donor(
    manifest: pd.DataFrame,
    fold: int,
    *,
    folds: int = 4,
    keep: Collection[str] = ("test",),
    seed: int = 0,
) -> pd.DataFrame:
    """Make fold ``fold`` of a cross-validation the "val" split and the others "train".

    Args:
        manifest: Patches with their donors.
        fold: Which fold to hold out, 0 to ``folds - 1``.
        folds: How many folds; equal ``seed`` gives equal folds whichever is held out.
        keep: Splits of the data set that stay as they are.
        seed: Draws the donors.

    Raises:
        ValueError: If there is no such fold, or fewer donors than folds.
    """
    if not (folds >= 2 and 0 <= fold < folds):
        raise ValueError(f"fold {fold} of {folds} does not exist; fold counts from 0, folds >= 2")
    names = [f"fold_{i}" for i in range(folds)]
    fractions = dict.fromkeys(names, 1 / folds)
    divided = split_by_donor(manifest, fractions=fractions, keep=keep, seed=seed)
    final = {name: "val" if i == fold else "train" for i, name in enumerate(names)}
    return divided.assign(split=divided["split"].replace(final))


def split_by_column(
    manifest: pd.DataFrame,
    *,
    column_l0: int,
    val_columns: Sequence[int],
    test_columns: Sequence[int] = (),
    margin_l0: int = 0,
) -> pd.DataFrame:
    """Split the patches of a single slide by vertical columns of equal width.

    Column 0 starts at the smallest ``x_l0`` of the manifest. A patch that touches columns of two
    splits belongs to none (``split`` is ""): count those before going on. The result tells how a
    network does on unseen places of this slide, and nothing about other patients.

    Args:
        manifest: Patches of one slide, or of the tiles it was cut into.
        column_l0: Width of a column, level-0 pixels.
        val_columns: Columns for "val".
        test_columns: Columns for "test"; all others are "train".
        margin_l0: Level-0 pixels around each patch that must lie in the same split as well: as far
            as a loader may shift its crops.

    Raises:
        ValueError: If the patches come from several donors, a column is not on the slide, or one is
            asked for twice.
    """
    donors = sorted(set(manifest["donor"]))
    if len(donors) > 1:
        raise ValueError(f"{len(donors)} donors ({', '.join(donors[:5])}): use split_by_donor")
    if column_l0 <= 0:
        raise ValueError(f"column_l0 is the width of a column in pixels, not {column_l0}")
    start = manifest["x_l0"] - manifest["x_l0"].min()
    stop = start + np.rint(manifest["patch_px"] * manifest["downsample"]).astype("int64") - 1
    number = int(stop.max()) // column_l0 + 1
    names = _column_names(number, val_columns, test_columns)
    last = (number * column_l0) - 1
    first_column = (start - margin_l0).clip(lower=0) // column_l0
    last_column = (stop + margin_l0).clip(upper=last) // column_l0
    split = [
        names[a] if len(set(names[a : b + 1])) == 1 else ""
        for a, b in zip(first_column, last_column, strict=True)
    ]
    return manifest.assign(split=split)


def _donor_groups(manifest: pd.DataFrame) -> dict[str, str]:
    """Return each donor's disease group."""
    unnamed = manifest.loc[manifest["donor"] == "", "image_id"].unique()
    if len(unnamed):
        raise ValueError(
            f"{len(unnamed)} images have no donor, such as {unnamed[0]!r}, so nobody can say "
            "whether a split is safe; set `donor` in the records, or use split_by_column"
        )
    first = manifest.groupby("donor", sort=True)["group"].first()
    return dict(zip(first.index.tolist(), first.tolist(), strict=True))


def _refuse_shared_donors(manifest: pd.DataFrame, free: pd.Series) -> None:
    shared = sorted(set(manifest.loc[free, "donor"]) & set(manifest.loc[~free, "donor"]))
    if shared:
        raise ValueError(
            f"donors {shared[:5]} stand both in a split to keep and outside it; "
            "leave `keep` empty to divide all donors anew"
        )


def _whole_numbers(shares: np.ndarray, total: int, names: list[str]) -> list[int]:
    """Divide ``total`` donors by shares, each at least 1, by the largest remainders."""
    if total < len(shares):
        raise ValueError(
            f"{total} donors cannot fill the {len(shares)} splits {names}; "
            "give more donors, fewer splits, or split a single slide with split_by_column"
        )
    numbers = np.maximum(1, np.floor(shares * total + 1e-9)).astype(int)
    while numbers.sum() != total:
        step = int(np.sign(total - numbers.sum()))
        lack = shares * total - numbers
        lack[(numbers <= 1) & (step < 0)] = np.inf
        numbers[np.argmax(lack) if step > 0 else np.argmin(lack)] += step
    return numbers.tolist()


def _spread(donors: Mapping[str, str], wanted: Mapping[str, int], seed: int) -> dict[str, str]:
    """Give each donor a split, so that each split has the wanted number and a mix of groups."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[str]] = {}
    for donor in sorted(donors):
        groups.setdefault(donors[donor], []).append(donor)
    share = {split: number / len(donors) for split, number in wanted.items()}
    room, chosen = dict(wanted), {}
    for members in sorted(groups.values(), key=lambda names: (-len(names), names)):
        lack = {split: share[split] * len(members) for split in wanted}
        for donor in rng.permutation(members).tolist():
            # the split this group lacks most, then the one with most room, then chance
            ranked = {s: (round(lack[s], 9), room[s] / wanted[s], rng.random()) for s in wanted}
            best = max((s for s in wanted if room[s] > 0), key=ranked.__getitem__)
            chosen[donor] = best
            room[best] -= 1
            lack[best] -= 1
    return chosen


def _column_names(number: int, val: Sequence[int], test: Sequence[int]) -> list[str]:
    asked = [*val, *test]
    outside = [c for c in asked if not 0 <= c < number]
    if outside:
        raise ValueError(f"columns {outside} are not on the slide; it has 0 to {number - 1}")
    if len(set(asked)) != len(asked):
        raise ValueError(f"a column stands twice among val {list(val)} and test {list(test)}")
    return ["val" if c in val else "test" if c in test else "train" for c in range(number)]
