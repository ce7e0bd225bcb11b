"""Every network is held to the same rules; a new one is a line in COUNTS, perhaps one in NARROW."""

import copy
import functools
import itertools

import pytest
import torch

from renal_utils.checkpoints import CheckpointInfo, load_checkpoint, save_checkpoint
from renal_utils.models.blocks import DoubleConv, UpConv, count_parameters
from renal_utils.models.build import MODELS, build_model, model_options
from renal_utils.models.mask_rcnn import MaskRCNN
from renal_utils.models.unet import UNet
from renal_utils.models.unext import UNEXT_S_WIDTHS

# name, options, classes, published count of parameters (or that of our reading, where a paper
# leaves open what it counts: variable_unet, lsu_net, asrmu_net, mau_net)
COUNTS = [
    ("unet", {}, 4, 34_527_236),
    ("unet", {}, 1, 34_527_041),
    ("unet_resnet34", {}, 1, 24_436_369),
    ("unetpp", {}, 4, 36_629_828),
    ("unetpp", {}, 1, 36_629_633),
    ("cbam_unet", {}, 4, 34_571_148),
    ("attention_unet", {}, 1, 34_878_573),
    ("attention_unet", {}, 4, 34_878_768),
    ("res_unet", {}, 1, 13_043_009),
    ("unet_small", {}, 1, 7_852_545),
    ("unetpp_small", {}, 1, 9_163_329),
    ("unetpp_small", {"deep_supervision": True}, 1, 9_163_428),
    ("unext", {}, 1, 1_471_921),
    ("unext", {}, 4, 1_471_972),
    ("unext", {"widths": UNEXT_S_WIDTHS}, 1, 253_561),
    ("fcn32s", {}, 21, 136_152_917),
    ("fcn16s", {}, 21, 134_815_994),
    ("fcn8s", {}, 21, 134_489_759),
    ("linknet", {}, 1, 11_533_377),
    ("linknet", {}, 4, 11_533_764),
    ("linknet", {}, 21, 11_535_957),
    ("linknet_efficientnet_b2", {}, 1, 7_892_755),
    ("linknet_efficientnet_b3", {}, 1, 10_926_953),
    ("linknet_efficientnet_b5", {}, 1, 28_745_835),
    ("linknet_mobilenet_v2", {}, 1, 4_319_859),
    ("unet_mobilenet_v2", {}, 1, 6_628_945),
    ("double_unet", {}, 1, 29_288_886),
    ("variable_unet", {}, 1, 762_133),
    ("lsu_net", {"deep_supervision": True}, 4, 1_080_360),
    ("asrmu_net", {}, 4, 21_320_810),
    ("mau_net", {}, 4, 11_105_815),
    ("u2net", {}, 1, 44_009_869),
    ("u2netp", {}, 1, 1_131_181),
    ("haru_net", {}, 1, 44_069_770),
    ("haru_net", {}, 2, 44_097_624),
    ("unet3p", {}, 1, 26_971_777),
    ("unet3p", {"deep_supervision": True}, 1, 26_989_637),
    ("ce_net", {}, 1, 29_003_093),
    ("rolling_unet_s", {}, 1, 1_783_185),
    ("rolling_unet_s", {"size": "m"}, 1, 7_098_401),
    ("rolling_unet_s", {"size": "l"}, 1, 28_324_929),
    ("mask_rcnn", {"deconvolutions": 1}, 1, 43_975_515),  # torchvision's own, with 2 and 91 classes
    ("mask_rcnn", {"deconvolutions": 1}, 91, 44_454_513),
    ("mask_rcnn", {}, 1, 44_237_915),
]

# Networks that cannot be shown an image on the meta device, where a tensor has a shape but no
# values, and why. Their shapes are tested on small versions with values.
NEED_VALUES = {"mask_rcnn": "which boxes it keeps, and how many, depends on their scores"}

# Options that make a network small; others with the option base_width get 4 of them.
NARROW = {
    "unext": {"widths": (4, 6, 6, 8, 12)},
    "lsu_net": {"widths": (8, 8, 8, 16, 16)},
    "variable_unet": {"base_width": 3},
    "u2net": {"small": True},
    "haru_net": {"small": True},
    "mask_rcnn": {"encoder": "resnet18", "width": 8, "hidden_width": 16},
    **{key: {"base_width": 4, "hidden_width": 16} for key in ("fcn32s", "fcn16s", "fcn8s")},
}
NAMES = list(MODELS)


def narrow(name):
    default = {"base_width": 4} if "base_width" in model_options(name) else {}
    return NARROW.get(name, default)


def numeric(name):
    """The name as a parameter, marked slow where there is no narrow version of a large network."""
    large = max((c for n, _, _, c in COUNTS if n == name), default=0) > 15e6
    return pytest.param(name, marks=pytest.mark.slow if large and not narrow(name) else ())


every_name = pytest.mark.parametrize("name", NAMES)
every_network = pytest.mark.parametrize("name", [numeric(name) for name in NAMES])


@functools.cache
def built(name, classes=2):
    """A narrow version; tests leave its weights alone."""
    torch.manual_seed(0)
    return build_model(name, num_classes=classes, **narrow(name))


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return build_model(name, **kwargs)


def with_shapes(name, **kwargs):
    """On the meta device, without memory or time, where the network can be shown an image there."""
    if name in NEED_VALUES:
        return build_model(name, **kwargs, **narrow(name)).eval()
    return on_meta(name, **kwargs).eval()


def images(model, number=2):
    """The smallest images that are not square."""
    return torch.randn(number, 3, model.size_multiple, 2 * model.size_multiple)


def is_strided_point(part):
    convolution = isinstance(part, torch.nn.Conv2d)
    return convolution and part.kernel_size == (1, 1) and part.stride != (1, 1)


def some_loss(model):
    """Of one batch; a network that learns from objects gets one in each image."""
    image = images(model)
    if not isinstance(model, MaskRCNN):
        outputs = model(image)
        return sum(logits.square().mean() for logits in flattened(outputs))
    instances = torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.int32)
    instances[:, 4:20, 4:20] = 1
    return sum(model.losses(image, instances).values())


def flattened(outputs):
    """All logits of a network, in one list, whether it gives one tensor, several or branches."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [logits for part in outputs for logits in flattened(part)]


def test_every_network_has_its_count_in_the_table():
    assert set(NAMES) <= {name for name, *_ in COUNTS}


@pytest.mark.parametrize(("name", "options", "classes", "expected"), COUNTS)
def test_parameters_are_as_many_as_published(name, options, classes, expected):
    assert count_parameters(on_meta(name, num_classes=classes, **options)) == expected


@every_name
def test_group_norms_take_the_place_of_all_batch_norms_of_images(name):
    batch, group = on_meta(name, **narrow(name)), on_meta(name, norm="group", **narrow(name))
    assert count_parameters(batch) == count_parameters(group)
    assert not [part for part in group.modules() if isinstance(part, torch.nn.BatchNorm2d)]


def test_with_group_norms_an_image_is_seen_alike_in_training_and_in_use_whatever_lies_beside_it():
    torch.manual_seed(0)
    model = build_model("unet", base_width=8, depth=2, norm="group")
    pair = torch.randn(2, 3, 32, 32) * torch.tensor([1.0, 5.0])[:, None, None, None]
    with torch.no_grad():
        together, alone = model.train()(pair), model.eval()(pair[:1])
    torch.testing.assert_close(together[:1], alone)


def test_a_network_with_group_norms_comes_back_from_its_checkpoint(tmp_path):
    model = build_model("unext", norm="group")
    path = tmp_path / "group.safetensors"
    save_checkpoint(path, model, CheckpointInfo("unext", {"norm": "group"}))
    back, _ = load_checkpoint(path)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(back.eval()(image), model.eval()(image))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="'batch' or 'group', not 'layer'"):
        build_model("unet", norm="layer")


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


@every_name
@pytest.mark.parametrize("classes", [1, 3, 7])
def test_logits_have_the_size_of_the_image(name, classes):
    model = with_shapes(name, num_classes=classes)
    height, width = 2 * model.size_multiple, 3 * model.size_multiple
    found = model(torch.zeros(2, 3, height, width, device=next(model.parameters()).device))
    assert found.shape == (2, classes, height, width)


@every_name
def test_images_of_other_channels_are_taken_when_built_for_them_else_refused(name):
    model = with_shapes(name, in_channels=1)
    if any(parameter.is_meta for parameter in model.parameters()):
        model = model.to("meta")  # a first convolution that was exchanged has values
    side, device = 2 * model.size_multiple, next(model.parameters()).device
    assert model(torch.zeros(1, 1, side, side, device=device)).shape == (1, 1, side, side)
    with pytest.raises(ValueError, match="image has 3 channels, but the network takes 1"):
        model(torch.zeros(1, 3, side, side, device=device))


@every_name
def test_a_wrong_size_names_the_next_valid_one(name):
    model = on_meta(name)
    side = model.size_multiple
    with pytest.raises(ValueError, match=f"next valid size is {2 * side} x {side}: "):
        model(torch.empty(1, 3, side + 1, side, device="meta"))


@pytest.mark.parametrize("name", [n for n in NAMES if "deep_supervision" in model_options(n)])
def test_side_outputs_come_only_in_training_and_when_asked_for(name):
    model = on_meta(name, num_classes=2, deep_supervision=True)
    image = torch.empty(2, 3, 2 * model.size_multiple, 2 * model.size_multiple, device="meta")
    main, *sides = flattened(model.train()(image))
    assert main.shape == (2, 2, *image.shape[2:]) and sides
    assert all(side.shape[:2] == (2, 2) for side in sides)
    assert isinstance(model.eval()(image), torch.Tensor)
    plain = on_meta(name, num_classes=2, deep_supervision=False)
    assert isinstance(plain.train()(image), torch.Tensor)


@every_network
def test_gradients_reach_every_parameter_but_those_stated(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=2, **narrow(name))
    some_loss(model).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    unused = tuple(getattr(model, "UNUSED", ()))
    assert without == {n for n, _ in model.named_parameters() if n.startswith(unused)}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "name", [numeric(name) for name in NAMES if "deep_supervision" in model_options(name)]
)
def test_gradients_of_all_outputs_reach_every_parameter(name):
    model = build_model(name, num_classes=3, deep_supervision=True, **narrow(name))
    some_loss(model).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_network
def test_evaluation_is_deterministic_and_independent_of_the_batch(name):
    model = built(name).eval()
    batch = images(model, 3)
    with torch.inference_mode():
        together = model(batch)
        assert torch.equal(together, model(batch))
        torch.testing.assert_close(together[1:2], model(batch[1:2]), rtol=1e-3, atol=1e-4)


@every_network
def test_a_checkpoint_gives_the_same_logits(name, tmp_path):
    model, path = built(name).eval(), tmp_path / "net.safetensors"
    info = CheckpointInfo(model=name, options=narrow(name), num_classes=2)
    save_checkpoint(path, model, info)
    image = images(model, 1)
    with torch.inference_mode():
        assert torch.equal(load_checkpoint(path)[0](image), model(image))


@every_name
def test_no_network_holds_a_strided_1x1_convolution_of_few_channels(name):
    """Its backward pass writes past its memory on the CPU (oneDNN's issue 6035)."""
    parts = [*on_meta(name).modules(), *built(name).modules()]
    strided = [p for p in parts if is_strided_point(p)]
    assert all(part.in_channels >= 16 for part in strided)


@every_network
def test_channels_last_gives_the_same_logits(name):
    model = built(name).eval()
    image = images(model, 1)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model(image)
        found = other(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@every_network
def test_bfloat16_logits_are_close_to_those_of_float32(name):
    model = built(name).eval()
    image = images(model, 1)
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
    with pytest.raises(ValueError, match="no model 'unett'; known: unet, "):
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
