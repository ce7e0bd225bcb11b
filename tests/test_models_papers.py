"""LSU-Net, ASRMU-Net, our stand-in for MAU-Net, VariableUNet, and the blocks they are made of."""

import math

import pytest
import torch
from torch import nn

from renal_utils.models.blocks import count_parameters
from renal_utils.models.build import build_model
from renal_utils.models.lsu_net import LightConv, LSUNet, Pointwise
from renal_utils.models.mau_net import MultiScaleAttention
from renal_utils.models.reconstruction import (
    ASRM,
    branch_weights,
    cru,
    csru,
    open_gate,
    sru,
    ssru,
)
from renal_utils.models.shift import (
    COLUMNS_FIRST,
    ROWS_FIRST,
    PatchEmbedding,
    SpatialShift,
    SplitAttention,
    TokenizedShift,
    shift_by_one,
    spatial_shift,
)
from renal_utils.models.variable_unet import DilatedBottleneck, width_for_patch
from renal_utils.prediction import make_predictor

ALL_HEADS = {"deep_supervision": True}
NO_UNITS = {"use_ssru": False, "use_asrm": False, "use_csru": False}

# name, options, classes, parameters; the ablation rows stand beside the papers' in the docstrings
COUNTS = [
    ("lsu_net", ALL_HEADS, 4, 1_080_360),
    ("lsu_net", {}, 4, 1_078_548),
    ("lsu_net", {**ALL_HEADS, "light_blocks": False}, 4, 887_464),
    ("lsu_net", {**ALL_HEADS, "shift_blocks": False}, 4, 261_704),
    ("asrmu_net", NO_UNITS, 4, 34_527_236),
    ("asrmu_net", {"use_asrm": False, "use_csru": False}, 4, 34_527_432),
    ("asrmu_net", {"use_csru": False}, 4, 33_999_466),
    ("asrmu_net", {}, 4, 21_320_810),
    ("mau_net", {}, 4, 11_105_815),
    ("variable_unet", {}, 1, 762_133),
    ("variable_unet", {"patch_px": 1024}, 1, 3_042_025),
    ("variable_unet", {"patch_px": 4096}, 1, 12_155_089),
    ("variable_unet", {"base_width": 24, "shrink": 2}, 1, 3_042_025),
]

# name, options of a small version, what sides must be multiples of
NARROW = {"widths": (8, 8, 8, 16, 16)}
SMALL = [
    ("lsu_net", NARROW, 32),
    ("lsu_net", {**NARROW, **ALL_HEADS}, 32),
    ("lsu_net", {**NARROW, "light_blocks": False}, 32),
    ("lsu_net", {**NARROW, "shift_blocks": False}, 32),
    ("lsu_net", {"widths": (5, 6, 7, 9, 11)}, 32),
    ("asrmu_net", {"base_width": 4}, 16),
    ("asrmu_net", {"base_width": 4, "gate_threshold": None}, 16),
    ("mau_net", {"base_width": 4}, 16),
    ("variable_unet", {"base_width": 3}, 16),
    ("variable_unet", {"base_width": 3, "shrink": 2}, 32),
]

every_network = pytest.mark.parametrize(
    ("name", "options", "multiple"), SMALL, ids=[f"{n}{o}" for n, o, _ in SMALL]
)


@pytest.mark.parametrize(("name", "options", "classes", "expected"), COUNTS)
def test_parameters_are_as_many_as_stated(name, options, classes, expected):
    with torch.device("meta"):
        model = build_model(name, num_classes=classes, **options)
    assert count_parameters(model) == expected


def test_counts_lie_as_far_from_the_published_ones_as_the_docstrings_say():
    counts = {(n, str(o)): count for n, o, _, count in COUNTS}
    assert counts["asrmu_net", "{}"] - 21_317_542 == 3_268
    assert abs(counts["mau_net", "{}"] / 11_110_720 - 1) < 5e-4
    assert round(counts["lsu_net", str(ALL_HEADS)] / 1e6, 2) == 1.08
    assert round(counts["lsu_net", str({**ALL_HEADS, "shift_blocks": False})] / 1e6, 2) == 0.26


def operations(model: nn.Module, side_px: int) -> float:
    """G operations: multiplications of convolutions, and two for each value normalised."""
    counts = []

    def count(module, _, out):
        if isinstance(module, nn.Conv2d):
            taps = math.prod(module.kernel_size) * module.in_channels // module.groups
            counts.append(out.numel() * taps)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            counts.append(2 * out.numel())

    for module in model.modules():
        module.register_forward_hook(count)
    model.train()(torch.zeros(2, 3, side_px, side_px, device="meta"))
    return sum(counts) / 2 / 1e9


def test_lsu_net_costs_what_the_paper_counts():
    with torch.device("meta"):
        model = build_model("lsu_net", num_classes=4, deep_supervision=True)
    assert operations(model, 224) == pytest.approx(1.104, abs=5e-4)


@every_network
@pytest.mark.parametrize("classes", [1, 3])
def test_logits_have_the_size_of_the_image(name, options, multiple, classes):
    model = build_model(name, num_classes=classes, **options).eval()
    image = torch.randn(1, 3, multiple, 2 * multiple)
    with torch.inference_mode():
        logits = model(image)
        assert torch.equal(logits, model(image))
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(image)
    assert logits.shape == coarse.shape == (1, classes, multiple, 2 * multiple)
    assert (coarse - logits).abs().mean() < 0.1 * logits.std() + 0.02


@every_network
def test_gradients_reach_every_parameter(name, options, multiple):
    model = build_model(name, in_channels=1, num_classes=3, **options).train()
    outputs = model(torch.randn(2, 1, multiple, 2 * multiple))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(out.square().mean() for out in outputs).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_network
def test_sizes_that_cannot_be_halved_name_the_next_valid_one(name, options, multiple):
    model = build_model(name, **options)
    assert model.size_multiple == multiple
    with pytest.raises(ValueError, match=f"next valid size is {multiple} x {2 * multiple}"):
        model(torch.randn(1, 3, multiple, multiple + 1))


# LSU-Net


def test_side_outputs_come_only_in_training_and_at_the_sizes_of_their_levels():
    model = LSUNet(3, 4, deep_supervision=True, **NARROW)
    main, *sides = model(torch.randn(2, 3, 64, 96))
    assert main.shape == (2, 4, 64, 96)
    assert [tuple(side.shape[2:]) for side in sides] == [
        (32, 48), (16, 24), (8, 12), (4, 6), (2, 3),
    ]  # fmt: skip
    assert {side.shape[1] for side in sides} == {4}
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 4, 32, 32)


def test_five_widths_are_asked_for():
    with pytest.raises(ValueError, match=r"five positive numbers, not \(8, 8\)"):
        LSUNet(widths=(8, 8))


def slow_shift(features, moves):
    """Equations 6 and 7, one value at a time."""
    batch, channels, height, width = features.shape
    out = features.clone()
    for b in range(batch):
        for c in range(channels):
            dim, step = moves[4 * c // channels]
            down, right = (step, 0) if dim == 2 else (0, step)
            for y in range(height):
                for x in range(width):
                    if 0 <= y - down < height and 0 <= x - right < width:
                        out[b, c, y, x] = features[b, c, y - down, x - right]
    return out


@pytest.mark.parametrize("moves", [ROWS_FIRST, COLUMNS_FIRST], ids=["eq6", "eq7"])
@pytest.mark.parametrize("size", [(4, 5), (1, 3), (1, 1)])
def test_the_shift_equals_a_slow_loop_over_the_equation(moves, size):
    features = torch.randn(2, 8, *size)
    before = features.clone()
    assert torch.equal(spatial_shift(features, moves), slow_shift(features, moves))
    assert torch.equal(features, before)


@pytest.mark.parametrize(
    ("step", "expected"), [(1, [0, 0, 16, 32]), (-1, [16, 32, 48, 48])], ids=["down", "up"]
)
@pytest.mark.parametrize("dim", [2, 3])
def test_a_shift_moves_every_row_by_one_keeps_the_border_and_does_not_smear(dim, step, expected):
    column = torch.tensor([0.0, 16.0, 32.0, 48.0])
    features = column.reshape([4 if d == dim else 1 for d in range(4)])
    assert shift_by_one(features, dim=dim, step=step).flatten().tolist() == expected


def test_a_shift_of_no_or_two_pixels_is_refused():
    with pytest.raises(ValueError, match="1 or -1, not 2"):
        shift_by_one(torch.zeros(1, 1, 4, 4), dim=2, step=2)


def test_split_attention_weighs_parts_so_that_each_channel_sums_to_one():
    attention = SplitAttention(6)
    parts = torch.randn(2, 3, 6, 4, 5)
    weights = attention.weights(parts)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 6, 1, 1))
    expected = sum(weights[:, part] * parts[:, part] for part in range(3))
    torch.testing.assert_close(attention(parts), expected)
    same = parts[:, :1].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(attention(same), same[:, 0])


def test_a_shift_block_sees_its_four_neighbours_and_no_further():
    block = SpatialShift(8)
    image = torch.randn(1, 8, 7, 7, requires_grad=True)
    # the attention's weights come from the whole image; held fixed, only the shifts reach around
    fixed = block.attention.weights(torch.randn(1, 3, 8, 7, 7)).detach()
    block.attention.weights = lambda parts: fixed
    block(image)[0, :, 3, 3].sum().backward()
    seen = image.grad[0].abs().sum(dim=0) > 0
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[[3, 2, 4, 3, 3], [3, 3, 3, 2, 4]] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("channels", [8, 176, 512])
def test_blocks_of_lsu_net_count_as_their_formulas_say(channels):
    with torch.device("meta"):
        assert count_parameters(SpatialShift(channels)) == 8 * channels**2 + 4 * channels
        assert count_parameters(TokenizedShift(channels)) == 11 * channels**2 + 19 * channels
        assert count_parameters(SplitAttention(channels)) == 4 * channels**2


def test_a_light_block_halves_the_size_by_its_stride_and_adds_its_input_without_one():
    assert LightConv(3, 8, stride=2)(torch.randn(2, 3, 8, 12)).shape == (2, 8, 4, 6)
    block = LightConv(3, 8).eval()
    nn.init.zeros_(block.main[-1].weight)
    nn.init.zeros_(block.main[-1].bias)
    image = torch.randn(1, 3, 8, 8)
    assert torch.equal(block(image), block.first(image))


def test_patch_embeddings_have_no_mean_and_unit_spread_over_their_channels():
    tokens = PatchEmbedding(3, 16)(torch.randn(2, 3, 8, 12))
    assert tokens.shape == (2, 16, 4, 6)
    torch.testing.assert_close(tokens.mean(dim=1), torch.zeros(2, 4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        tokens.std(dim=1, correction=0), torch.ones(2, 4, 6), atol=1e-2, rtol=0
    )


# ASRMU-Net


@pytest.mark.parametrize(
    "unit", [sru(8), ssru(), ssru(threshold=None)], ids=["sru", "ssru", "soft"]
)
def test_spatial_units_part_and_recombine_without_loss(unit):
    features = torch.randn(2, 8, 6, 5)
    much, little = unit.parts(features)
    torch.testing.assert_close(much + little, features)
    first, second = unit(features).chunk(2, dim=1)
    torch.testing.assert_close(first + second, sum(features.chunk(2, dim=1)))
    if unit.threshold is not None:
        assert ((much == 0) ^ (little == 0)).all()
        assert ((much == features) ^ (little == features)).all()


def test_the_hard_gate_of_the_ssru_keeps_or_swaps_the_halves_of_each_pixel():
    unit, features = ssru(), torch.randn(1, 4, 6, 5)
    kept = unit.gate(features) > 0.5
    assert 0 < kept.float().mean() < 1
    swapped = torch.cat([features[:, 2:], features[:, :2]], dim=1)
    torch.testing.assert_close(unit(features), torch.where(kept, features, swapped))


def test_a_gate_is_zero_or_one_but_learns_as_if_it_were_not_cut():
    weights = torch.tensor([0.1, 0.5, 0.6, 0.9]).reshape(1, 1, 2, 2).requires_grad_()
    gate = open_gate(weights)
    assert gate.flatten().tolist() == [0, 0, 1, 1]
    gate.sum().backward()
    assert torch.equal(weights.grad, torch.ones_like(weights))
    assert open_gate(weights, threshold=None) is weights


@pytest.mark.parametrize("unit", [cru(16), csru(16)], ids=["cru", "csru"])
def test_channel_units_weigh_two_branches_that_sum_to_one(unit):
    features = 3 * torch.randn(2, 16, 5, 6)
    full, cheap = unit.branches(features)
    weights = branch_weights(torch.stack([full, cheap]))
    assert weights.shape == (2, 2, 16, 1, 1)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(2, 16, 1, 1))
    # by hand: two scores a channel, the means over the pixels
    a, b = full.mean(dim=(2, 3)).exp(), cheap.mean(dim=(2, 3)).exp()
    share = (a / (a + b))[..., None, None]
    torch.testing.assert_close(unit(features), share * full + (1 - share) * cheap)


def test_the_cheap_branch_carries_its_squeezed_half_along():
    unit, features = csru(16), torch.randn(1, 16, 4, 4)
    squeezed = unit.squeeze_cheap(features[:, 8:])
    torch.testing.assert_close(unit.branches(features)[1][:, -4:], squeezed)


def test_units_of_reconstruction_have_their_counts():
    with torch.device("meta"):
        assert [count_parameters(csru(c)) for c in (64, 256, 512, 1024)] == [
            3_984, 62_016, 246_912, 985_344,
        ]  # fmt: skip
        assert [count_parameters(cru(c)) for c in (64, 256, 512)] == [7_488, 119_040, 475_648]
        assert count_parameters(ssru()) == 98
        assert count_parameters(sru(64)) == 128
        assert count_parameters(ASRM(256)) == 62_016 + 98


def test_asrm_adds_what_it_reconstructs_to_its_input():
    unit, features = ASRM(8), torch.randn(1, 8, 4, 4)
    for weight in unit.channels.parameters():
        nn.init.zeros_(weight)
    assert torch.equal(unit(features), features)


def test_without_its_units_asrmu_net_is_the_unet():
    torch.manual_seed(0)
    ours = build_model("asrmu_net", base_width=2, **NO_UNITS)
    torch.manual_seed(0)
    unet = build_model("unet", base_width=2)
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours(image), unet(image))


def test_channels_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match="even"):
        build_model("asrmu_net", base_width=3)
    with pytest.raises(ValueError, match="even to be halved, not 3"):
        ssru()(torch.randn(1, 3, 4, 4))
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        csru(6)
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        build_model("mau_net", base_width=6)


# the stand-in for MAU-Net


def test_multi_scale_attention_only_weakens_and_sees_as_far_as_its_widest_scale():
    attention = MultiScaleAttention(16).eval()
    features = torch.randn(1, 16, 13, 13, requires_grad=True)
    out = attention(features)
    assert (out.abs() <= features.abs()).all()
    # the channels' weights see the whole image: with a first layer of zeros they see nothing
    nn.init.zeros_(attention.channel_gate[1].weight)
    attention(features)[0, :, 6, 6].sum().backward()
    rows, columns = features.grad[0].abs().sum(dim=0).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 10, 2, 10)


# VariableUNet


def test_each_dilation_gives_a_third_of_the_bottleneck_and_reaches_as_far_as_it_says():
    bottleneck = DilatedBottleneck(2, 12).eval()
    assert [scale.out_channels for scale in bottleneck.scales] == [4, 4, 4]
    for scale, dilation in zip(bottleneck.scales, (1, 2, 4), strict=True):
        image = torch.randn(1, 2, 11, 11, requires_grad=True)
        scale(image)[0, :, 5, 5].sum().backward()
        rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
        assert rows == [5 - dilation, 5, 5 + dilation]
    features = torch.randn(1, 2, 11, 11)
    out = bottleneck(features)
    assert out.shape == (1, 12, 11, 11)
    expected = bottleneck.norm(torch.cat([scale(features) for scale in bottleneck.scales], dim=1))
    assert torch.equal(out, expected.clamp_min(0))


@pytest.mark.parametrize("channels", [24, 72])  # multiples of 8, not of 16
def test_gradients_of_the_dilated_bottleneck_are_finite_in_bf16(channels):
    bottleneck = DilatedBottleneck(channels, 2 * channels)
    features = torch.randn(1, channels, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        bottleneck(features).float().square().mean().backward()
    assert all(scale.weight.grad.isfinite().all() for scale in bottleneck.scales)


def test_dilations_change_the_reach_of_variable_unet_and_not_its_count():
    plain = build_model("variable_unet", base_width=3, dilations=(1, 1, 1))
    assert count_parameters(plain) == count_parameters(build_model("variable_unet", base_width=3))
    assert [scale.dilation for scale in plain.bottleneck.scales] == [(1, 1)] * 3


def test_channels_grow_with_the_patch_so_that_parameters_grow_with_its_side():
    sizes = [64, 128, 256, 512, 1024, 2048, 4096]
    assert [width_for_patch(size) for size in sizes] == [6, 9, 12, 18, 24, 33, 48]
    with torch.device("meta"):
        counts = [count_parameters(build_model("variable_unet", patch_px=s)) for s in sizes]
    per_pixel = [count / size for count, size in zip(counts, sizes, strict=True)]
    assert max(per_pixel) / min(per_pixel) < 1.3  # the width is rounded to multiples of 3
    assert width_for_patch(1) == 3


def test_shrinking_runs_the_network_on_means_and_enlarges_its_logits():
    torch.manual_seed(0)
    whole = build_model("variable_unet", base_width=3).eval()
    shrunk = build_model("variable_unet", base_width=3, shrink=2).eval()
    shrunk.load_state_dict(whole.state_dict())
    small = torch.randn(1, 3, 16, 32)
    image = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    with torch.inference_mode():
        expected = nn.functional.interpolate(whole(small), scale_factor=2, mode="bilinear")
        torch.testing.assert_close(shrunk(image), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_width": 4}, "multiple of 3, not 4"),
        ({"shrink": 0}, "shrink must be at least 1"),
        ({"patch_px": 0}, "patch_px must be at least 1"),
        ({"dilations": (1, 2)}, "three positive numbers"),
        ({"dilations": (0, 1, 2)}, "three positive numbers"),
    ],
)
def test_options_of_variable_unet_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build_model("variable_unet", **options)


def test_mau_nets_gradients_are_finite_in_bfloat16():
    torch.manual_seed(0)
    model = build_model("mau_net", num_classes=4, base_width=8)
    images = torch.randn(8, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        model.to(memory_format=torch.channels_last)(images).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_mau_net_predicts_with_weights_that_are_stored_in_bfloat16():
    torch.manual_seed(0)
    model, images = build_model("mau_net", base_width=4), torch.randn(2, 3, 32, 32)
    exact, coarse = (make_predictor(model, precision=p)(images) for p in ("32-true", "bf16-mixed"))
    assert (coarse - exact).abs().max() < 0.05


@pytest.mark.parametrize("size", [8, 7])
def test_a_pointwise_convolution_of_every_second_pixel_is_one_of_stride_two(size):
    torch.manual_seed(0)
    ours, strided = Pointwise(3, 5, every=2), nn.Conv2d(3, 5, kernel_size=1, stride=2)
    strided.load_state_dict(ours.state_dict())
    image = torch.rand(2, 3, size, size)
    torch.testing.assert_close(ours(image), strided(image))


def test_light_blocks_hold_no_strided_pointwise_convolution():
    for options in ({}, {"light_blocks": False}, {"shift_blocks": False}):
        parts = build_model("lsu_net", widths=(8, 8, 8, 16, 16), **options).modules()
        convolutions = [part for part in parts if isinstance(part, nn.Conv2d)]
        assert all(c.stride == (1, 1) for c in convolutions if c.kernel_size == (1, 1))
