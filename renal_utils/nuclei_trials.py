"""Nuclei trials: train a network on tiles whose nuclei are known one by one, score held-out tiles.

As ``trials``, but truth and result are instances. A few tiles are all there is, so validation is a
strip of each training tile that training never sees: it chooses the best epoch, the thresholds and
the least area. Test tiles are whole tiles and choose nothing. All is done at the tiles' own scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int32, UInt8
from torch import nn
from torch.utils.data import DataLoader

from renal_utils.checkpoints import CheckpointInfo, load_checkpoint
from renal_utils.instance_maps import number_anew
from renal_utils.instance_sources import read_instances
from renal_utils.labels import NUCLEI
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.losses import build_loss
from renal_utils.models.blocks import count_parameters
from renal_utils.models.build import build_model, model_options
from renal_utils.nuclei_maps import (
    NucleiMaps,
    Separation,
    choose_separation,
    list_separations,
    predict_nuclei,
    score_nuclei,
)
from renal_utils.patching import cut_patches
from renal_utils.records import ImageRecord
from renal_utils.runtime import resolve_path, seed_everything
from renal_utils.slides import open_slide
from renal_utils.training import fit
from renal_utils.trials import Budget

Instances = Int32[np.ndarray, "H W"]


@dataclass(frozen=True)
class NucleiSplits:
    """Tiles to learn from, with a strip for validation, and tiles to test on.

    Attributes:
        train: Manifest of the training patches; none reaches into a strip, moved by ``jitter_px``.
        val: Manifest of the squares of the strips, side by side.
        train_records: The tiles that both are of.
        test_records: The others.
        val_px: Width of the strips, which lie at the tiles' right edges.
        jitter_px: By how much training patches may move.
    """

    train: pd.DataFrame
    val: pd.DataFrame
    train_records: tuple[ImageRecord, ...]
    test_records: tuple[ImageRecord, ...]
    val_px: int
    jitter_px: int


def split_tiles(
    records: Sequence[ImageRecord],
    *,
    test_ids: Sequence[str],
    patch_px: int = 256,
    val_px: int = 192,
    jitter_px: int = 32,
) -> NucleiSplits:
    """Divide tiles into test tiles and training tiles, and those into patches and a strip.

    Args:
        records: Tiles whose truth tells nuclei apart.
        test_ids: ``image_id`` of those to test on. Donors of theirs may not be among the others.
        patch_px: Side of the training patches, a multiple of 32.
        val_px: Width of the validation strip, a multiple of 32.
        jitter_px: By how much training patches may move; they stand twice that apart.

    Raises:
        ValueError: If an id is unknown, no tile is left to train on, a donor stands on both sides,
            or a tile is too narrow for a patch beside its strip.
    """
    test = tuple(record for record in records if record.image_id in test_ids)
    train = tuple(record for record in records if record.image_id not in test_ids)
    _check_sides(train, test, test_ids)
    stride_px = min(patch_px, 2 * jitter_px or patch_px)
    patches = cut_patches(train, patch_px=patch_px, stride_px=stride_px)
    squares = cut_patches(train, patch_px=val_px, stride_px=val_px)
    edge = squares.groupby("image_id")["x_px"].max()
    in_strip = squares["x_px"] == squares["image_id"].map(edge)
    once = squares["y_px"] % val_px == 0  # not the last, flush one, which shows pixels again
    fits = patches["x_px"] + patch_px + jitter_px <= patches["image_id"].map(edge)
    if missing := sorted({r.image_id for r in train} - set(patches.loc[fits, "image_id"])):
        raise ValueError(
            f"{missing[0]}: no patch of {patch_px} px, moved by {jitter_px}, fits beside a strip "
            f"of {val_px} px; make one of them smaller"
        )
    train_rows, val_rows = patches[fits].assign(split="train"), squares[in_strip & once]
    return NucleiSplits(
        train_rows.reset_index(drop=True),
        val_rows.assign(split="val").reset_index(drop=True),
        train,
        test,
        val_px,
        jitter_px,
    )


@dataclass(frozen=True)
class NucleiTrial:
    """A network trained on nuclei.

    Attributes:
        name: As it was called.
        path: Checkpoint of its best epoch.
        parameters: How many it trains.
        contours: Whether it has a contour branch.
        history: One row an epoch, see ``training_plan.History``.
        patch_px: Side of the patches it saw, and of the windows it predicts by.
        steps: Batches it was trained on.
    """

    name: str
    path: Path
    parameters: int
    contours: bool
    history: pd.DataFrame
    patch_px: int
    steps: int

    @property
    def minutes(self) -> float:
        """Of training alone, without validation."""
        return float(self.history["seconds"].sum()) / 60

    def network(self) -> nn.Module:
        """Return the trained network; one with contours gives logits of mask and contour."""
        return load_checkpoint(self.path)[0]

    def predict(self, rgb: UInt8[np.ndarray, "H W 3"], **options: Any) -> NucleiMaps:
        """Return the maps of a tile; options as for ``predict_nuclei``."""
        return predict_nuclei(self.network(), rgb, patch_px=self.patch_px, **options)


def has_contours(model_name: str) -> bool:
    """Say whether a network of ``MODELS`` has a branch for contours.

    Raises:
        ValueError: If the name is unknown.
    """
    return "contours" in model_options(model_name)


def make_nuclei_loss(model_name: str) -> nn.Module:
    """Return the loss that suits a network: of two branches, of several outputs, or of one.

    HARU-Net's is the paper's, with ours of the others as alike as can be: cross-entropy plus Dice
    of squares (eq. 4 to 6).
    """
    if has_contours(model_name):
        return build_loss("two_branch")
    parts = {"parts": ("bce", "dice"), "part_options": ({}, {"squared": True})}
    if "deep_supervision" in model_options(model_name):
        return build_loss("deep_supervision", part="sum", part_options=parts)
    return build_loss("sum", **parts)


def train_nuclei(
    model_name: str,
    splits: NucleiSplits,
    *,
    budget: Budget,
    folder: str | Path,
    options: Mapping[str, Any] | None = None,
    loss: nn.Module | None = None,
    contour_px: int = 3,
    name: str | None = None,
    resume: bool = False,
    max_minutes: float | int | None = None,
    progress: bool = False,
) -> NucleiTrial:
    """Train one network within a budget; the best epoch is that of the best validation Dice.

    Args:
        model_name: A key of ``MODELS``. ``haru_net`` learns contours too.
        splits: The data; its ``jitter_px`` holds, not the budget's.
        budget: Steps, learning rate, augmentation, seed.
        folder: Parent of the trial's own folder, which is named like the trial.
        options: Of ``build_model``. Side outputs are supervised unless ``deep_supervision`` is
            False here, contours are learned unless ``contours`` is.
        loss: What is minimised; None is ``make_nuclei_loss``.
        contour_px: Thickness of the contours to learn.
        name: Of the trial; None is ``model_name``.
        resume: Go on where a training with the same settings in the folder stopped.
        max_minutes: Stop after the epoch in which this time is used up.
        progress: Show one bar an epoch.

    Raises:
        ValueError: If a name or an option is unknown, or as ``training.fit`` does.
    """
    options = dict(options or {})
    for switch in ("deep_supervision", "contours"):
        if switch in model_options(model_name):
            options.setdefault(switch, True)
    contours = bool(options.get("contours", False))
    seed_everything(budget.seed)
    model = build_model(model_name, num_classes=NUCLEI.num_outputs, **options)
    info = _describe(model_name, options, splits)
    planes = contour_px if contours else None
    history = fit(
        model,
        make_nuclei_loss(model_name) if loss is None else loss,
        _train_loader(splits, budget, planes),
        make_loader(_dataset(splits.val, planes), batch_size=4, shuffle=False),
        plan=replace(budget.plan(binary=True), max_minutes=max_minutes),
        label_set=NUCLEI,
        folder=resolve_path(folder) / (name or model_name),
        info=info,
        resume=resume,
        progress=progress,
    )
    rows = history.frame()
    steps = len(rows) * (budget.steps // budget.validations)
    facts = (count_parameters(model), contours, rows, info.patch_px, steps)
    return NucleiTrial(name or model_name, history.best_path, *facts)


def choose_on_validation(
    trial: NucleiTrial,
    splits: NucleiSplits,
    method: str,
    *,
    contours: bool | None = None,
    turns: bool = False,
    **options: int | float | str,
) -> tuple[Separation, float]:
    """Return a method with the thresholds that are best on the strips, and its mark there.

    Args:
        trial: The trained network.
        splits: The data it was trained on.
        method: A key of ``instances.METHODS``.
        contours: Whether the method uses contours; None: where the network has them, except for
            ``watershed``.
        turns: As in ``predict_nuclei``.
        **options: Of the method.

    Raises:
        ValueError: If the method is unknown, or wants contours that the network does not give.
    """
    if contours is None:
        contours = trial.contours and method != "watershed"
    maps, truths = predict_strips(trial, splits, turns=turns)
    return choose_separation(list_separations(method, contours=contours, **options), maps, truths)


def predict_strips(
    trial: NucleiTrial, splits: NucleiSplits, *, turns: bool = False
) -> tuple[list[NucleiMaps], list[Instances]]:
    """Return the maps of the validation strips, and their truth.

    The network also sees what lies left of a strip, as far as a window reaches.
    """
    maps, truths = [], []
    for record in splits.train_records:
        rgb, ids = read_tile(record)
        wide = rgb[:, -max(trial.patch_px, splits.val_px) :]
        maps.append(trial.predict(wide, turns=turns).crop(np.s_[:, -splits.val_px :]))
        truths.append(number_anew(ids[:, -splits.val_px :])[0])
    return maps, truths


def predict_tests(
    trial: NucleiTrial, splits: NucleiSplits, *, turns: bool = False
) -> tuple[dict[str, NucleiMaps], dict[str, Instances]]:
    """Return the maps of the test tiles by their ids, and their truth."""
    tiles = {record.image_id: read_tile(record) for record in splits.test_records}
    maps = {name: trial.predict(rgb, turns=turns) for name, (rgb, _) in tiles.items()}
    return maps, {name: ids for name, (_, ids) in tiles.items()}


def score_test(
    trial: NucleiTrial, splits: NucleiSplits, separation: Separation, *, turns: bool = False
) -> pd.DataFrame:
    """Return the scores of the test tiles; see ``nuclei_maps.score_nuclei``."""
    return score_nuclei(separation, *predict_tests(trial, splits, turns=turns))


def read_tile(record: ImageRecord) -> tuple[UInt8[np.ndarray, "H W 3"], Instances]:
    """Return a tile whole, and its instance map."""
    with open_slide(record.image_path) as slide:
        rgb = slide.at_downsample(1.0).read((0, 0), slide.size_l0)
    return rgb, read_instances(record)


def _describe(model_name: str, options: Mapping[str, Any], splits: NucleiSplits) -> CheckpointInfo:
    mpp = float(splits.train["mpp"].iloc[0])
    return CheckpointInfo(
        model_name,
        options,
        num_classes=NUCLEI.num_outputs,
        label_set=NUCLEI.name,
        downsample=1.0,
        mpp=None if np.isnan(mpp) else mpp,
        patch_px=int(splits.train["patch_px"].iloc[0]),
    )


def _dataset(manifest: pd.DataFrame, contour_px: int | None, **options: Any) -> PatchDataset:
    return PatchDataset(manifest, contour_px=contour_px, cache="memory", **options)


def _train_loader(splits: NucleiSplits, budget: Budget, contour_px: int | None) -> DataLoader:
    chance = {"augmentation": budget.augmentation, "seed": budget.seed}
    return make_loader(
        _dataset(splits.train, contour_px, jitter_px=splits.jitter_px, **chance),
        batch_size=budget.batch_size,
        shuffle=True,
        seed=budget.seed,
        steps_per_epoch=budget.steps // budget.validations,
    )


def _check_sides(
    train: Sequence[ImageRecord], test: Sequence[ImageRecord], test_ids: Sequence[str]
) -> None:
    if unknown := sorted(set(test_ids) - {record.image_id for record in test}):
        raise ValueError(f"no tile {unknown[0]!r}; known: {[r.image_id for r in (*train, *test)]}")
    if not train or not test:
        raise ValueError(f"{len(train)} tiles to train on, {len(test)} to test on; give both some")
    known = {r.donor for r in train if r.donor} & {r.donor for r in test if r.donor}
    if known:
        raise ValueError(f"donor {sorted(known)[0]} has tiles in training and test; move them")
