"""Values computed outside of this library, and libraries that have the same loss."""

import math

import numpy as np
import pytest
import torch

from renal_utils.labels import IGNORE_ID
from renal_utils.losses import (
    build_loss,
    class_weights,
    count_classes,
    count_foreground,
    dice_per_pixel,
    positive_weight,
    weigh_automatically,
)

# Toy of several published implementations.
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-2.0, 3.0, -0.5]])[None, None]
TARGET = torch.tensor([[1, 0, 1], [0, 0, 1]])[None]
TOY_VALUES = [
    ("bce", {}, 0.843976505),
    ("bce", {"positive_weight": 25}, 7.144304423),
    ("bce", {"total": True}, 5.063859030),
    ("dice", {}, 0.395389351),
    ("dice", {"squared": True}, 0.290229412),
    ("bce_dice", {}, 5.794521408),
    ("tversky", {}, 0.386654204),
    ("tversky", {"alpha": 0.5, "beta": 0.5}, 0.395389351),
    ("tversky", {"alpha": 1, "beta": 1}, 0.566708348),
    ("focal_tversky", {}, 0.490334049),
    ("focal", {}, 0.539588453),
    ("focal", {"alpha": 0.25}, 0.367458952),
    ("lovasz_hinge", {}, 1.5),
    ("lovasz_hinge", {"symmetric": True}, 1.566666667),
    ("lovasz_hinge", {"activation": "elu"}, 2.373575888),
    ("symmetric_lovasz", {}, 2.440242555),
]


def random_batch(channels, size=(3, 7, 9)):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(size[0], channels, *size[1:], generator=generator) * 2
    target = torch.randint(0, max(channels, 2), size, generator=generator)
    target[:, :2, :3] = IGNORE_ID
    return logits, target


@pytest.mark.parametrize(("name", "options", "expected"), TOY_VALUES)
def test_toy_values(name, options, expected):
    found = build_loss(name, **options)(LOGITS, TARGET)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("mean", "expected"), [(False, -1.550147), (True, 0.574975)])
def test_haru_dice_as_printed_is_unbounded_unless_averaged(mean, expected):
    truth, valid = (TARGET == 1)[None], torch.ones(1, 1, 2, 3, dtype=torch.bool)
    found = dice_per_pixel(LOGITS.sigmoid(), truth, valid, mean=mean)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    twice = [part.repeat(1, 1, 2, 1) for part in (LOGITS.sigmoid(), truth, valid)]
    more = dice_per_pixel(*twice, mean=mean).item()
    assert more == pytest.approx(expected if mean else 2 * expected - 1, abs=1e-6)
    nothing = torch.zeros(1, 1, 2, 3)
    assert dice_per_pixel(nothing, nothing > 0, valid).item() == 1


@pytest.mark.parametrize(("activation", "expected"), [("relu", 1.0), ("elu", 2.0)])
def test_lovasz_of_zero_logits(activation, expected):
    loss = build_loss("lovasz_hinge", activation=activation)
    assert loss(torch.zeros_like(LOGITS), TARGET).item() == pytest.approx(expected)


@pytest.mark.parametrize(("activation", "expected"), [("relu", 0), ("elu", math.exp(-4))])
def test_lovasz_of_an_empty_target_answered_with_minus_5(activation, expected):
    loss = build_loss("lovasz_hinge", activation=activation)
    found = loss(torch.full((1, 1, 2, 2), -5.0), torch.zeros(1, 2, 2, dtype=torch.int64))
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("losses", "variances", "expected"),
    [
        ([1.0, 2.0], [1.0, 1.0], 2.886294361),
        ([1.0] * 6, [1.0] * 6, 7.158883083),
        ([1.0], [1.0], 1.193147181),
        ([2.0], [1.618034], 1.580457639),
    ],
)
def test_multi_scale_toy_values(losses, variances, expected):
    found = weigh_automatically(torch.tensor(losses), torch.tensor(variances).sqrt())
    assert found.item() == pytest.approx(expected, rel=1e-6)


# --- the same in Segmentation Models PyTorch and torchmetrics ------------------------------------


@pytest.fixture(scope="module")
def smp_losses():
    from segmentation_models_pytorch import losses

    return losses


@pytest.mark.parametrize("channels", [1, 4])
def test_dice_and_tversky_agree_with_smp(smp_losses, channels):
    logits, target = random_batch(channels)
    mode = "binary" if channels == 1 else "multiclass"
    theirs = smp_losses.DiceLoss(mode, ignore_index=IGNORE_ID)(logits, target)
    torch.testing.assert_close(build_loss("dice")(logits, target), theirs)
    theirs = smp_losses.TverskyLoss(mode, ignore_index=IGNORE_ID, alpha=0.3, beta=0.7)
    torch.testing.assert_close(build_loss("tversky")(logits, target), theirs(logits, target))


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_agrees_with_smp(smp_losses, alpha, gamma):
    logits, target = random_batch(1)
    theirs = smp_losses.FocalLoss("binary", alpha=alpha, gamma=gamma, ignore_index=IGNORE_ID)
    found = build_loss("focal", alpha=alpha, gamma=gamma)(logits, target)
    torch.testing.assert_close(found, theirs(logits, target))


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_agrees_with_smp(smp_losses, per_image):
    logits, target = random_batch(1)
    options = {"per_image": per_image, "ignore_index": IGNORE_ID}
    found = build_loss("lovasz_hinge", **options)(logits, target)
    theirs = smp_losses.LovaszLoss("binary", **options)(logits, target[:, None])
    torch.testing.assert_close(found, theirs)
    logits, target = random_batch(4)
    found = build_loss("lovasz_softmax", **options)(logits, target)
    theirs = smp_losses.LovaszLoss("multiclass", **options)(logits, target)
    torch.testing.assert_close(found, theirs)


def test_generalised_dice_of_certain_answers_agrees_with_torchmetrics():
    from torchmetrics.functional.segmentation import generalized_dice_score

    logits, target = random_batch(3, size=(1, 8, 8))
    target[target == IGNORE_ID] = 0
    answer = logits.argmax(dim=1)
    certain = torch.nn.functional.one_hot(answer, 3).permute(0, 3, 1, 2) * 100.0
    found = build_loss("generalised_dice")(certain, target)
    theirs = generalized_dice_score(answer, target, 3, input_format="index", weight_type="square")
    torch.testing.assert_close(1 - found, theirs.squeeze())


# --- one loss is another ------------------------------------------------------------------------


def test_focal_without_gamma_is_cross_entropy():
    for channels, name in ((1, "bce"), (4, "cross_entropy")):
        logits, target = random_batch(channels)
        found = build_loss("focal", gamma=0)(logits, target)
        torch.testing.assert_close(found, build_loss(name)(logits, target))


@pytest.mark.parametrize("channels", [1, 4])
def test_half_and_half_tversky_is_dice(channels):
    logits, target = random_batch(channels)
    found = build_loss("tversky", alpha=0.5, beta=0.5, smooth=0.5)(logits, target)
    torch.testing.assert_close(found, build_loss("dice", smooth=1.0)(logits, target))


def test_focal_of_several_classes_is_plain_arithmetic():
    logits, target = random_batch(3)
    weights = (0.5, 1.0, 2.0)
    p = logits.double().softmax(1).numpy()
    pixels = [i for i in np.ndindex(*target.shape) if target[i] != IGNORE_ID]
    expected = 0.0
    for b, y, x in pixels:
        label = int(target[b, y, x])
        right = p[b, label, y, x]
        expected -= weights[label] * (1 - right) ** 2 * math.log(right) / len(pixels)
    found = build_loss("focal", class_weights=weights)(logits, target)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_weighted_cross_entropy_is_torchs():
    logits, target = random_batch(3)
    weights = (0.2, 1.0, 3.0)
    expected = torch.nn.functional.cross_entropy(
        logits, target, weight=torch.tensor(weights), ignore_index=IGNORE_ID
    )
    found = build_loss("cross_entropy", class_weights=weights)(logits, target)
    torch.testing.assert_close(found, expected)


def test_generalised_dice_weighs_classes_by_their_squared_counts_or_as_told():
    logits, target = random_batch(3)
    counts = count_classes([target], 3)
    own = build_loss("generalised_dice", smooth=1e-9)
    told = build_loss(
        "generalised_dice",
        smooth=1e-9,
        class_weights=class_weights(counts, scheme="inverse_square"),
    )
    torch.testing.assert_close(own(logits, target), told(logits, target))
    even = build_loss("generalised_dice", class_weights=(1, 1, 1))(logits, target)
    # With even weights every pixel is hit by p of its class, and the denominators add up to 2.
    p = logits.softmax(1).gather(1, target.where(target != IGNORE_ID, 0)[:, None])[:, 0]
    torch.testing.assert_close(even, 1 - p[target != IGNORE_ID].mean())


def test_sums_add_their_parts_with_weights():
    logits, target = random_batch(3)
    parts = {name: build_loss(name)(logits, target) for name in ("cross_entropy", "dice", "focal")}
    parts["gdl"] = build_loss("generalised_dice")(logits, target)
    found = build_loss("sum", parts=("cross_entropy", "dice"), weights=(2, 3))(logits, target)
    torch.testing.assert_close(found, 2 * parts["cross_entropy"] + 3 * parts["dice"])
    found = build_loss("ce_generalised_dice", weight=0.3)(logits, target)
    torch.testing.assert_close(found, 0.3 * parts["cross_entropy"] + 0.7 * parts["gdl"])
    torch.testing.assert_close(
        build_loss("asrmu", weight=0.4)(logits, target), 0.4 * parts["focal"] + 0.6 * parts["gdl"]
    )
    named = build_loss("asrmu", pixels="cross_entropy", overlap="tversky", weight=1)
    torch.testing.assert_close(named(logits, target), parts["cross_entropy"])


# --- frequencies --------------------------------------------------------------------------------


def test_classes_are_counted_without_the_ignored():
    maps = [np.array([[0, 1], [1, 255]], np.uint8), torch.tensor([2, 2, 0, 255])]
    assert count_classes(maps, 4).tolist() == [2, 2, 2, 0]
    with pytest.raises(ValueError, match="4 classes"):
        count_classes([np.array([4])], 4)


def test_weighted_classes_all_weigh_the_same_in_total():
    counts = [1000, 100, 0, 10]
    weights = np.array(class_weights(counts))
    assert weights[2] == 0
    assert (weights * counts)[[0, 1, 3]] == pytest.approx([weights[0] * 1000] * 3)
    assert weights[[0, 1, 3]].mean() == pytest.approx(1)
    square, root = (class_weights(counts, scheme=f"inverse_{s}") for s in ("square", "root"))
    assert square[3] / square[1] == pytest.approx(100)
    assert root[3] / root[1] == pytest.approx(math.sqrt(10))


def test_foreground_is_counted_from_a_manifest():
    import pandas as pd

    manifest = pd.DataFrame({"patch_px": [10, 10, 20], "positive_fraction": [0.2, np.nan, 0.5]})
    counts = count_foreground(manifest)
    assert counts.tolist() == [80 + 200, 20 + 200]
    assert positive_weight(counts) == pytest.approx(280 / 220)
    with pytest.raises(ValueError, match="no patch of the manifest"):
        count_foreground(manifest.iloc[1:2])


def test_counts_that_give_no_weights_are_refused():
    with pytest.raises(ValueError, match="known: inverse, inverse_square, inverse_root"):
        class_weights([1, 2], scheme="log")
    with pytest.raises(ValueError, match="some above 0"):
        class_weights([0, 0])
    with pytest.raises(ValueError, match="some foreground"):
        positive_weight([10, 0])
