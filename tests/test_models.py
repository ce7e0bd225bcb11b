"""Every network is held to the same rules; a new one is a line in COUNTS and one in SMALL."""

import copy
import itertools

import pytest
import torch

from renal_utils.models.blocks import DoubleConv, UpConv, count_parameters
from renal_utils.models.build import MODELS, build_model, model_options
from renal_utils.models.unet import UNet

# name, options, classes, published count of parameters
COUNTS = [
    ("unet", {}, 4, 34_527_236),
    ("unet", {}, 1, 34_527_041),
    ("unet_resnet34", {}, 1, 24_436_369),
    ("variable_unet", {}, 1, 762_133),
    ("lsu_net", {"deep_supervision": True}, 4, 1_080_360),
    ("asrmu_net", {}, 4, 21_320_810),
    ("mau_net", {}, 4, 11_105_815),
]

# name, options of a small version, what sides must be multiples of
SMALL = [
    ("unet", {"base_width": 4}, 16),
    ("unet", {"base_width": 3, "depth": 2}, 4),
    ("unet_resnet34", {}, 32),
    ("variable_unet", {"base_width": 3}, 16),
    ("lsu_net", {"widths": (8, 8, 8, 16, 16)}, 32),
    ("asrmu_net", {"base_width": 4}, 16),
    ("mau_net", {"base_width": 4}, 16),
]

every_network = pytest.mark.parametrize(
    ("name", "options", "multiple"), SMALL, ids=[f"{n}{o or ''}" for n, o, _ in SMALL]
)


def build(name, options, **kwargs):
    torch.manual_seed(0)
    return build_model(name, **kwargs, **options)


def test_the_table_of_small_networks_leaves_none_out():
    ours = {name for name, make in MODELS.items() if make.__module__.startswith("renal_utils")}
    assert {name for name, _, _ in SMALL} == ours == {name for name, *_ in COUNTS}


@pytest.mark.parametrize(("name", "options", "classes", "expected"), COUNTS)
def test_parameters_are_as_many_as_published(name, options, classes, expected):
    with torch.device("meta"):  # counts need no memory
        model = build_model(name, num_classes=classes, **options)
    assert count_parameters(model) == expected


@pytest.mark.parametrize(("width", "depth", "classes"), [(32, 4, 1), (5, 3, 2), (16, 1, 6)])
def test_the_unet_of_any_width_and_depth_counts_as_its_formula_says(width, depth, classes):
    # a 3x3 convolution i -> o with bias and normalisation: 9io + o + 2o
    def unit(i, o):
        return 9 * i * o + 3 * o

    def double(i, o):
        return unit(i, o) + unit(o, o)

    widths = [width * 2**level for level in range(depth + 1)]
    down = sum(map(double, [3, *widths], widths))
    up = sum(unit(o, i) + double(o, i) for i, o in itertools.pairwise(widths))
    model = UNet(3, classes, base_width=width, depth=depth)
    assert count_parameters(model) == down + up + classes * (width + 1)


def test_blocks_of_the_unet_have_their_published_counts():
    model = UNet(3, 4)
    assert [count_parameters(b) for b in model.encoder] == [
        38_976, 221_952, 886_272, 3_542_016, 14_161_920,
    ]  # fmt: skip
    assert [count_parameters(b) for b in model.up] == [4_720_128, 1_180_416, 295_296, 73_920]
    assert [count_parameters(b) for b in model.decoder] == [7_080_960, 1_771_008, 443_136, 110_976]
    assert count_parameters(model.head) == 4 * 65


@every_network
@pytest.mark.parametrize("classes", [1, 3])
def test_logits_have_the_size_of_the_image(name, options, multiple, classes):
    model = build(name, options, num_classes=classes).eval()
    height, width = 2 * multiple, 3 * multiple
    assert model(torch.randn(2, 3, height, width)).shape == (2, classes, height, width)


@every_network
def test_images_of_one_channel_are_taken_when_built_for_them(name, options, multiple):
    model = build(name, options, in_channels=1).eval()
    assert model(torch.randn(1, 1, 2 * multiple, 2 * multiple)).shape[1] == 1


@every_network
def test_gradients_reach_every_parameter(name, options, multiple):
    model = build(name, options, num_classes=2)
    model(torch.randn(2, 3, 2 * multiple, 2 * multiple)).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_network
def test_evaluation_is_deterministic_and_independent_of_the_batch(name, options, multiple):
    model = build(name, options).eval()
    images = torch.randn(3, 3, 2 * multiple, 2 * multiple)
    with torch.inference_mode():
        together = model(images)
        assert torch.equal(together, model(images))
        torch.testing.assert_close(together[1:2], model(images[1:2]), rtol=1e-4, atol=1e-4)


@every_network
def test_weights_carried_over_give_the_same_logits(name, options, multiple):
    model = build(name, options).eval()
    torch.manual_seed(1)
    other = build_model(name, **options).eval()
    image = torch.randn(1, 3, 2 * multiple, 2 * multiple)
    with torch.inference_mode():
        assert not torch.equal(model(image), other(image))
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        assert torch.equal(model(image), other(image))


@every_network
def test_channels_last_gives_the_same_logits(name, options, multiple):
    model = build(name, options).eval()
    image = torch.randn(1, 3, 2 * multiple, 2 * multiple)
    with torch.inference_mode():
        expected = model(image)
        model = model.to(memory_format=torch.channels_last)
        found = model(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_network
def test_bfloat16_logits_are_close_to_those_of_float32(name, options, multiple):
    model = build(name, options).eval()
    image = torch.randn(1, 3, 2 * multiple, 2 * multiple)
    with torch.inference_mode():
        expected = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(image)
    assert (found - expected).abs().mean() < 0.1 * expected.std() + 0.02


def test_a_size_that_cannot_be_halved_names_the_next_valid_one():
    model = UNet(base_width=2)
    with pytest.raises(ValueError, match="multiples of 16; the next valid size is 112 x 64"):
        model(torch.randn(1, 3, 100, 64))
    with pytest.raises(ValueError, match="next valid size is 64 x 80"):
        model(torch.randn(1, 3, 64, 65))


def test_an_image_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="image has 4 channels, but the network takes 3"):
        UNet(base_width=2)(torch.randn(1, 4, 32, 32))


def test_an_up_block_doubles_by_repeating_pixels_before_it_convolves():
    block = UpConv(1, 1).eval()
    with torch.no_grad():
        block[1].weight.zero_()
        block[1].weight[0, 0, 1, 1] = 1  # the convolution that changes nothing
        block[1].bias.zero_()
    image = torch.rand(1, 1, 3, 5)
    expected = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(block(image), expected, rtol=1e-4, atol=1e-4)


def test_a_double_block_is_never_negative_and_keeps_the_size():
    out = DoubleConv(3, 5)(torch.randn(2, 3, 8, 12))
    assert out.shape == (2, 5, 8, 12)
    assert out.min() >= 0


def test_unknown_names_and_options_list_the_known_ones():
    with pytest.raises(ValueError, match="no model 'unett'; known: unet, unet_resnet34"):
        build_model("unett")
    with pytest.raises(ValueError, match="no option width; it takes: base_width=64, depth=4"):
        build_model("unet", width=3)
    assert model_options("unet") == {"base_width": 64, "depth": 4}


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"base_width": 0}, {"depth": 0}])
def test_sizes_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        build_model("unet", **arguments)


def test_unknown_encoder_weights_list_the_known_ones():
    with pytest.raises(ValueError, match=r"flowers.*imagenet"):
        build_model("unet_resnet34", encoder_weights="flowers")


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    import segmentation_models_pytorch as smp

    def unreachable(*args, **kwargs):
        raise FileNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(smp, "Unet", unreachable)
    with pytest.raises(ConnectionError, match="encoder_weights=None"):
        build_model("unet_resnet34", encoder_weights="imagenet")
