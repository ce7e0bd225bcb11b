import math

import pytest
import torch

from renal_utils.labels import IGNORE_ID
from renal_utils.losses import bring_down, build_loss, weigh_automatically
from renal_utils.losses.pixels import valid_pixels

MULTI_SCALE = {"levels": 3, "parts": ("bce", "dice", "focal")}


def random_outputs(sizes, channels=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    return tuple(
        torch.randn(2, channels, size, size, generator=generator).to(dtype) for size in sizes
    )


def random_target(size=8):
    target = torch.randint(0, 2, (2, size, size), generator=torch.Generator().manual_seed(9))
    target[:, 0] = IGNORE_ID
    return target


# --- deep supervision ---------------------------------------------------------------------------


def test_deep_supervision_sums_what_every_output_costs():
    outputs, target = random_outputs([8] * 7), random_target()
    each = torch.stack([build_loss("bce")(output, target) for output in outputs])
    torch.testing.assert_close(build_loss("deep_supervision")(outputs, target), each.sum())
    weights = (1, 0, 0, 2, 0, 0, 0.5)
    found = build_loss("deep_supervision", weights=weights)(outputs, target)
    torch.testing.assert_close(found, each[0] + 2 * each[3] + each[6] / 2)


def test_smaller_outputs_are_enlarged():
    target, level = random_target(), torch.full((2, 1, 4, 4), 1.5)
    same = build_loss("deep_supervision")((level,), target)
    torch.testing.assert_close(same, build_loss("bce")(torch.full((2, 1, 8, 8), 1.5), target))


@pytest.mark.parametrize("name", ["deep_supervision", "multi_scale"])
def test_one_tensor_is_scored_as_the_main_output(name):
    outputs, target = random_outputs([8, 4, 2]), random_target()
    options = {"part": "bce"} if name == "deep_supervision" else MULTI_SCALE
    loss = build_loss(name, **options)
    torch.testing.assert_close(loss(outputs[0], target), build_loss("bce")(outputs[0], target))


def test_another_number_of_outputs_is_refused():
    outputs, target = random_outputs([8, 8]), random_target()
    with pytest.raises(ValueError, match="gives 2 outputs, the loss has 3 weights"):
        build_loss("deep_supervision", weights=(1, 1, 1))(outputs, target)
    with pytest.raises(ValueError, match="gives 2 outputs, the loss has 3 levels"):
        build_loss("multi_scale", **MULTI_SCALE)(outputs, target)
    with pytest.raises(ValueError, match="2 parts for 6 levels"):
        build_loss("multi_scale", parts=("bce", "dice"))


def test_a_loss_of_one_output_says_what_takes_several():
    with pytest.raises(ValueError, match=r"gives 2 outputs and this loss takes one.*deep_superv"):
        valid_pixels(random_outputs([8, 8]), random_target(), highest=1, ignore_index=IGNORE_ID)


# --- multi-scale deep loss ----------------------------------------------------------------------


def test_each_level_has_its_own_loss_of_the_target_at_its_size():
    outputs, target = random_outputs([8, 4, 2]), random_target()
    loss = build_loss("multi_scale", **MULTI_SCALE)
    parts = zip(MULTI_SCALE["parts"], outputs, (8, 4, 2), strict=True)
    each = [build_loss(name)(o, bring_down(target, (size, size))) for name, o, size in parts]
    expected = sum(each) / 2 + 3 * math.log(2)
    assert loss(outputs, target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_target_is_brought_down_to_ids_that_lie_at_the_new_pixels():
    target = torch.tensor([[0, 0, 3, 3], [0, 0, 3, 3], [255, 255, 1, 1], [255, 255, 1, 1]])[None]
    assert bring_down(target, (2, 2)).tolist() == [[[0, 3], [255, 1]]]
    assert bring_down(target.to(torch.uint8), (4, 4)).dtype == torch.uint8
    third = bring_down(torch.arange(9).expand(1, 9, 9), (3, 3))
    assert third[0, 0].tolist() == [1, 4, 7]  # the middle of three


@pytest.mark.parametrize(("loss", "variance"), [(1.0, 1.0), (2.0, 1.618034), (0.5, 0.640388)])
def test_descending_the_multi_scale_loss_finds_the_best_sigma(loss, variance):
    assert variance == pytest.approx((loss + math.sqrt(loss**2 + 8 * loss)) / 4, rel=1e-6)
    sigmas = torch.tensor([0.7], requires_grad=True)
    optimizer = torch.optim.SGD([sigmas], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        weigh_automatically(torch.tensor([loss]), sigmas).backward()
        optimizer.step()
    assert sigmas.item() ** 2 == pytest.approx(variance, rel=1e-4)


def test_weights_stay_finite_where_a_level_costs_nothing():
    sigmas = torch.tensor([0.0, 1e-30, 1.0], requires_grad=True)
    value = weigh_automatically(torch.tensor([0.0, 0.0, 0.0]), sigmas)
    value.backward()
    assert value.isfinite()
    assert sigmas.grad.isfinite().all()


def test_only_the_sigmas_of_the_multi_scale_loss_are_learned():
    loss = build_loss("multi_scale")
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {"sigmas": (6,)}
    assert loss.weights.tolist() == pytest.approx([0.5] * 6, rel=1e-5)


@pytest.mark.parametrize("name", ["deep_supervision", "multi_scale", "two_branch"])
def test_gradients_of_several_outputs_are_those_of_small_differences(name):
    outputs = [o.requires_grad_() for o in random_outputs([4, 2, 2], dtype=torch.float64)]
    target = random_target(4)
    loss = build_loss(name, **({} if name != "multi_scale" else MULTI_SCALE)).double()
    if name == "two_branch":
        both = torch.stack([target, target.flip(1)], dim=1)
        call = lambda *x: loss((x, x[::-1]), both)  # noqa: E731
    else:
        call = lambda *x: loss(x, target)  # noqa: E731
    assert torch.autograd.gradcheck(call, outputs)


def test_gradients_of_sigmas_are_those_of_small_differences():
    sigmas = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weigh_automatically, (losses, sigmas))


# --- two branches -------------------------------------------------------------------------------


def test_two_branches_sum_cross_entropy_and_dice_of_14_outputs():
    masks, contours = random_outputs([8] * 7), random_outputs([8] * 7)[::-1]
    target = torch.stack([random_target(), random_target().flip(2)], dim=1)
    expected = 0.0
    for branch, outputs in enumerate((masks, contours)):
        for output in outputs:
            expected += build_loss("bce")(output, target[:, branch])
            expected += build_loss("dice", squared=True)(output, target[:, branch])
    torch.testing.assert_close(build_loss("two_branch")((masks, contours), target), expected)


def test_each_term_of_two_branches_has_its_weight():
    masks, contours = random_outputs([8] * 3), random_outputs([8] * 3)[::-1]
    target = torch.stack([random_target(), random_target().flip(2)], dim=1)
    loss = build_loss(
        "two_branch", part="bce", mask_weight=2, contour_weight=3, side_weights=(0.5, 0)
    )
    bce = build_loss("bce")
    expected = 2 * bce(masks[0], target[:, 0]) + 3 * bce(contours[0], target[:, 1])
    expected += (bce(masks[1], target[:, 0]) + bce(contours[1], target[:, 1])) / 2
    torch.testing.assert_close(loss((masks, contours), target), expected)


def test_two_branches_score_one_tensor_as_the_mask():
    logits, mask = random_outputs([8])[0], random_target()
    loss = build_loss("two_branch", part="bce")
    expected = build_loss("bce")(logits, mask)
    torch.testing.assert_close(loss(logits, mask), expected)
    torch.testing.assert_close(loss(logits, torch.stack([mask, 1 - mask], dim=1)), expected)


def test_two_branches_without_a_contour_say_what_the_target_must_be():
    outputs = (random_outputs([8]), random_outputs([8]))
    with pytest.raises(ValueError, match=r"target is \(2, 8, 8\).*want \(B, 2, H, W\)"):
        build_loss("two_branch")(outputs, random_target())


@pytest.mark.parametrize("fill", [0, IGNORE_ID])
@pytest.mark.parametrize("name", ["deep_supervision", "multi_scale", "two_branch"])
def test_empty_targets_and_rough_extreme_outputs_are_finite(name, fill):
    outputs = [
        torch.full((2, 1, size, size), value, dtype=torch.bfloat16, requires_grad=True)
        for size, value in ((8, 1e4), (4, -1e4), (2, 0.0))
    ]
    options = MULTI_SCALE if name == "multi_scale" else {}
    target = torch.full((2, 8, 8), fill)
    if name == "two_branch":
        loss = build_loss(name)((tuple(outputs), tuple(outputs)), torch.stack([target] * 2, dim=1))
    else:
        loss = build_loss(name, **options)(tuple(outputs), target)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(output.grad.isfinite().all() for output in outputs)
