import math
from inspect import signature

import numpy as np
import pytest
import torch

from renal_utils.labels import IGNORE_ID
from renal_utils.losses import LOSSES, build_loss, soft_dice_loss

# Toy of three published implementations; the values below were computed outside of this library.
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-2.0, 3.0, -0.5]])[None, None]
TARGET = torch.tensor([[1, 0, 1], [0, 0, 1]])[None]

# name, channels: every loss is held to the rules that all of them share
LOSSES_AND_CHANNELS = [
    *((name, 1) for name in ("bce", "bce_dice", "lovasz_hinge", "symmetric_lovasz")),
    *((name, 1) for name in ("sum", "deep_supervision", "two_branch")),
    *((name, 2) for name in ("cross_entropy", "ce_dice", "generalised_dice", "asrmu")),
    *((name, 4) for name in ("ce_generalised_dice", "lovasz_softmax", "multi_scale")),
    *((name, k) for name in ("dice", "focal", "tversky", "focal_tversky") for k in (1, 5)),
    ("ce_dice", 5),
]
every_loss = pytest.mark.parametrize(("name", "channels"), LOSSES_AND_CHANNELS)


def batch(channels, size=(2, 6, 8)):
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(size[0], channels, *size[1:], generator=generator) * 3
    target = torch.randint(0, max(channels, 2), size, generator=generator)
    return logits, target


def reference_loss(logits, target, weight, smooth=1e-6):
    """Cross-entropy and Dice of the softmax, pixel by pixel in plain Python."""
    exp = np.exp(logits.numpy().astype(float))
    p = exp / exp.sum(axis=1, keepdims=True)
    cross, counted = 0.0, 0
    overlap, total, truth = (np.zeros(p.shape[1]) for _ in range(3))
    for b, y, x in np.ndindex(*target.shape):
        label = int(target[b, y, x])
        if label == IGNORE_ID:
            continue
        counted += 1
        cross -= math.log(p[b, label, y, x])
        overlap[label] += p[b, label, y, x]
        total += p[b, :, y, x]
        truth[label] += 1
    dice = [(2 * o + smooth) / (s + t + smooth) for o, s, t in zip(overlap, total, truth) if t]  # noqa: B905
    return weight * cross / counted + (1 - weight) * (1 - np.mean(dice))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weight": 1, "positive_weight": 1}, 0.843976505),
        ({"weight": 1, "positive_weight": 25}, 7.144304423),
        ({"weight": 0}, 0.395389351),
        ({}, 5.794521408),
        ({"weight": 0.2}, 1.745172366),
    ],
)
def test_bce_dice_gives_the_published_toy_values(options, expected):
    loss = build_loss("bce_dice", **options)(LOGITS, TARGET)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_ce_dice_agrees_with_plain_python(weight):
    logits, target = batch(4)
    target[0, :2] = IGNORE_ID
    target[target == 2] = 3  # class 2 occurs nowhere and leaves the mean
    found = build_loss("ce_dice", weight=weight)(logits, target)
    assert found.item() == pytest.approx(reference_loss(logits, target, weight), rel=1e-5)


def test_two_softmax_channels_are_one_sigmoid():
    logits, target = batch(1)
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    binary = build_loss("bce_dice", weight=1, positive_weight=1)(logits, target)
    softmax = build_loss("ce_dice", weight=1)(both, target)
    torch.testing.assert_close(binary, softmax)


@every_loss
def test_ignored_pixels_count_for_nothing(name, channels):
    logits, target = batch(channels)
    loss = build_loss(name)
    target[:, :, 5:] = IGNORE_ID
    changed = logits.clone()
    changed[..., 5:] = 50
    assert loss(changed, target).item() == pytest.approx(loss(logits, target).item())
    torch.testing.assert_close(
        loss(logits, target), loss(logits[..., :5], target[..., :5]), rtol=1e-6, atol=0
    )


@every_loss
def test_ignored_pixels_get_no_gradient(name, channels):
    logits, target = batch(channels)
    logits.requires_grad_()
    target[:, 0] = IGNORE_ID
    build_loss(name)(logits, target).backward()
    assert (logits.grad[:, :, 0] == 0).all()
    assert (logits.grad[:, :, 1:] != 0).any()


@every_loss
@pytest.mark.parametrize("fill", [0, IGNORE_ID])
@pytest.mark.parametrize("certain", [-1e4, 0.0, 1e4])
def test_empty_and_unlabelled_targets_have_finite_losses_and_gradients(
    name, channels, fill, certain
):
    logits = torch.full((2, channels, 4, 4), certain, requires_grad=True)
    loss = build_loss(name)(logits, torch.full((2, 4, 4), fill))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    if fill == IGNORE_ID:
        assert loss.item() == 0
        assert (logits.grad == 0).all()


@every_loss
def test_a_perfect_answer_costs_nothing_and_the_opposite_much(name, channels):
    _, target = batch(channels)
    truth = torch.nn.functional.one_hot(target, max(channels, 2)).permute(0, 3, 1, 2).float()
    right = (truth[:, -channels:] * 2 - 1) * 30
    loss = build_loss(name)
    assert loss(right, target).item() < 1e-5
    assert loss(-right, target).item() > 0.9


@every_loss
def test_wrong_answers_given_with_certainty_have_finite_gradients(name, channels):
    logits, target = batch(channels)
    logits = (logits.sign() * 1e4).requires_grad_()
    loss = build_loss(name)(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@every_loss
def test_the_order_of_pixels_does_not_matter(name, channels):
    logits, target = batch(channels)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    moved = logits.flatten(2)[..., order].view_as(logits)
    labels = target.flatten(1)[:, order].view_as(target)
    loss = build_loss(name)
    torch.testing.assert_close(loss(moved, labels), loss(logits, target))


@pytest.mark.parametrize(
    ("name", "channels"), [pair for pair in LOSSES_AND_CHANNELS if pair[0] != "lovasz_hinge"]
)
def test_gradients_are_those_of_small_differences(name, channels):
    # The hinge has corners; a softmax's errors meet each other only where they are equal.
    logits, target = batch(channels, size=(2, 3, 3))
    target[0, 0, 0] = IGNORE_ID
    logits = logits.double().requires_grad_()
    loss = build_loss(name)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@pytest.mark.parametrize(
    ("name", "channels"),
    [(n, c) for n, c in LOSSES_AND_CHANNELS if "ignore_index" in signature(LOSSES[n]).parameters],
)
def test_another_id_can_be_the_ignored_one(name, channels):
    logits, target = batch(channels)
    target[0, 0] = IGNORE_ID
    expected = build_loss(name)(logits, target)
    target[0, 0] = 99
    assert torch.equal(build_loss(name, ignore_index=99)(logits, target), expected)


@every_loss
def test_going_down_the_gradient_lowers_the_loss(name, channels):
    logits, target = batch(channels)
    logits.requires_grad_()
    loss = build_loss(name)
    before = loss(logits, target)
    before.backward()
    with torch.no_grad():
        assert loss(logits - 0.1 * logits.grad, target) < before


@every_loss
def test_bfloat16_logits_are_computed_in_float32(name, channels):
    logits, target = batch(channels)
    rough = logits.bfloat16()
    found = build_loss(name)(rough, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, build_loss(name)(rough.float(), target), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(build_loss(name)(rough, target), found, rtol=0, atol=0)


@every_loss
def test_uint8_targets_are_taken_as_well(name, channels):
    logits, target = batch(channels)
    loss = build_loss(name)
    assert torch.equal(loss(logits, target), loss(logits, target.to(torch.uint8)))


def test_dice_is_pooled_over_the_batch_not_averaged():
    probabilities = torch.tensor([[1.0, 1.0], [0.0, 1.0]])[:, None, None]
    truth = torch.tensor([[True, True], [True, False]])[:, None, None]
    loss = soft_dice_loss(probabilities, truth, torch.ones_like(truth))
    assert loss.item() == pytest.approx(1 - 2 * 2 / (3 + 3))  # per patch it would be (0 + 1) / 2


@every_loss
def test_ids_without_a_channel_are_named(name, channels):
    logits, target = batch(channels)
    target[0, 0, 0] = 7
    with pytest.raises(ValueError, match=r"holds ids \[7\]"):
        build_loss(name)(logits, target)


@every_loss
def test_a_target_of_another_size_is_refused(name, channels):
    logits, target = batch(channels)
    with pytest.raises(ValueError, match=r"target is \(2, 6, 4\).*want \(2, 6, 8\)"):
        build_loss(name)(logits, target[..., :4])


@pytest.mark.parametrize(
    ("binary", "several"),
    [("bce_dice", "ce_dice"), ("bce", "cross_entropy"), ("lovasz_hinge", "lovasz_softmax")],
)
def test_the_wrong_number_of_channels_names_the_right_loss(binary, several):
    logits, target = batch(2)
    with pytest.raises(ValueError, match=f"'{several}' takes more"):
        build_loss(binary)(logits, target)
    with pytest.raises(ValueError, match=f"'{binary}' takes 1"):
        build_loss(several)(logits[:, :1], target)


def test_generalised_dice_and_alpha_name_what_takes_other_channels():
    logits, target = batch(2)
    with pytest.raises(ValueError, match="'dice' takes 1"):
        build_loss("generalised_dice")(logits[:, :1], target)
    with pytest.raises(ValueError, match="'class_weights' takes more"):
        build_loss("focal", alpha=0.25)(logits, target)
    with pytest.raises(ValueError, match="3 class_weights for logits of 2 channels"):
        build_loss("cross_entropy", class_weights=(1, 2, 3))(logits, target)


def test_unknown_losses_and_options_list_the_known_ones():
    with pytest.raises(ValueError, match="no loss 'dise'; known: bce_dice, ce_dice, bce, "):
        build_loss("dise")
    with pytest.raises(ValueError, match=r"no option pos_weight; it takes: weight=0\.8, positive"):
        build_loss("bce_dice", pos_weight=25)
    assert set(LOSSES) == {name for name, _ in LOSSES_AND_CHANNELS}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bce_dice", {"weight": 1.1}),
        ("bce_dice", {"weight": -0.1}),
        ("bce_dice", {"positive_weight": 0}),
        ("bce_dice", {"smooth": 0.0}),
        ("bce", {"positive_weight": -1}),
        ("dice", {"smooth": 0}),
        ("tversky", {"beta": 0}),
        ("focal", {"gamma": -1}),
        ("focal", {"alpha": 2}),
        ("focal", {"alpha": 0.5, "class_weights": (1, 1)}),
        ("cross_entropy", {"class_weights": (1, -1)}),
        ("generalised_dice", {"class_weights": (0, 0)}),
        ("ce_generalised_dice", {"weight": 2}),
        ("lovasz_hinge", {"activation": "gelu"}),
        ("asrmu", {"weight": 2}),
        ("sum", {"weights": (1,)}),
        ("sum", {"part_options": ({},)}),
        ("multi_scale", {"levels": 0}),
        ("deep_supervision", {"weights": (1, -1)}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        build_loss(name, **options)


@pytest.mark.parametrize("option", ["pixels", "overlap"])
def test_an_unknown_term_of_the_asrmu_loss_lists_the_known_ones(option):
    with pytest.raises(ValueError, match="'jaccard' is not one of"):
        build_loss("asrmu", **{option: "jaccard"})
