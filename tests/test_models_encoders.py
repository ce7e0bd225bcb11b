"""Blocks of LinkNet, DoubleU-Net, UNeXt and Rolling-UNet; encoders by name, frozen and not."""

import copy
from urllib.error import URLError

import pytest
import torch
from torch import nn

from renal_utils.models.blocks import count_parameters
from renal_utils.models.build import build_model
from renal_utils.models.double_unet import (
    AtrousPyramid,
    DoubleUNet,
    SqueezeExcitation,
    foreground,
)
from renal_utils.models.freezing import encoder_is_frozen, freeze_encoder, unfreeze_encoder
from renal_utils.models.linknet import LinkBlock
from renal_utils.models.pretrained import torchvision_weights
from renal_utils.models.rolling_unet import LongLocalBlock, roll_channels
from renal_utils.models.unet import UNet
from renal_utils.models.unext import ShiftedBlock, shift_groups


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("channels", [5, 12, 16])
def test_groups_shift_as_a_slow_loop_says(axis, channels):
    maps = torch.randn(2, channels, 4, 6)
    group = -(-channels // 5)
    expected = torch.zeros_like(maps)
    for channel in range(channels):
        shift = channel // group - 2
        for place in range(maps.shape[axis]):
            if 0 <= place - shift < maps.shape[axis]:
                source = maps[:, channel].select(axis - 1, place - shift)
                expected[:, channel].select(axis - 1, place).copy_(source)
    assert torch.equal(shift_groups(maps, axis), expected)


def test_uneven_groups_are_those_of_the_paper():
    ones = torch.ones(1, 256, 8, 8)
    lost = (shift_groups(ones, 2)[0, :, :, 0] == 0).sum(1)  # rows that a shift empties
    assert lost.unique_consecutive(return_counts=True)[1].tolist() == [52, 52, 52, 52, 48]


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("step", [1, -1])
def test_channels_roll_round_the_image_as_torch_rolls_each(axis, step):
    maps = torch.randn(2, 9, 4, 6)
    expected = torch.stack(
        [maps[:, i].roll(step * i, dims=axis - 1) for i in range(maps.shape[1])], dim=1
    )
    assert torch.equal(roll_channels(maps, axis, step=step), expected)


def test_squeeze_excitation_by_hand():
    block = SqueezeExcitation(8, reduction=8)
    with torch.no_grad():
        block.squeeze.weight.fill_(0.5)
        block.squeeze.bias.fill_(-1)
        block.excite.weight.copy_(torch.arange(8.0)[:, None])
        block.excite.bias.zero_()
    maps = torch.ones(1, 8, 2, 3)
    hidden = 0.5 * 8 - 1
    expected = torch.sigmoid(torch.arange(8.0) * hidden)
    torch.testing.assert_close(block(maps)[0, :, 1, 2], expected)


def test_blocks_have_their_published_counts():
    assert count_parameters(LinkBlock(512, 256)) == 246_784
    assert count_parameters(ShiftedBlock(160)) == 53_440
    assert count_parameters(LongLocalBlock(128)) == 9 * 128**2 + 23 * 128
    assert count_parameters(AtrousPyramid(512)) == 971_520
    with torch.device("meta"):
        model = DoubleUNet()
    parts = {name: count_parameters(part) for name, part in model.named_children()}
    assert parts == {
        "encoder": 20_024_384, "pyramid": 971_520, "decoder": 2_908_828, "head": 33,
        "second_encoder": 1_195_516, "second_pyramid": 496_384, "second_decoder": 3_692_188,
        "second_head": 33,
    }  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
def test_a_link_block_multiplies_the_size_by_its_stride(stride):
    out = LinkBlock(8, 4, stride=stride)(torch.randn(2, 8, 3, 5))
    assert out.shape == (2, 4, 3 * stride, 5 * stride)


def test_foreground_is_one_class_or_all_but_the_first():
    logits = torch.randn(2, 3, 4, 4)
    one = foreground(logits[:, :1])
    torch.testing.assert_close(one, logits[:, :1].sigmoid())
    several = foreground(logits)
    torch.testing.assert_close(several[:, 0], logits.softmax(1)[:, 1:].sum(1))


def test_the_second_network_sees_only_what_the_first_lets_through():
    model = DoubleUNet().eval()
    seen = []
    model.second_encoder[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(-100)
        model(torch.randn(1, 3, 16, 16))
    assert seen[0].abs().max() < 1e-20


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["unet", "linknet_mobilenet_v2"])
def test_a_frozen_encoder_keeps_still_in_training_and_the_rest_learns(name):
    model = build_model(name, **({"base_width": 4} if name == "unet" else {}))
    side = 2 * model.size_multiple
    freeze_encoder(model)
    freeze_encoder(model)  # a second time changes nothing
    before = copy.deepcopy(model.encoder.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    means = [norm.running_mean.clone() for norm in norms(model.decoder)]
    model.train()
    model(torch.randn(2, 3, side, side)).square().mean().backward()
    optimizer.step()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())
    moved = zip(norms(model.decoder), means, strict=True)
    assert all(not torch.equal(norm.running_mean, mean) for norm, mean in moved)
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_an_unfrozen_encoder_learns_again():
    model = UNet(base_width=4)
    freeze_encoder(model)
    assert encoder_is_frozen(model)
    unfreeze_encoder(model)
    assert not encoder_is_frozen(model) and all(m.training for m in model.modules())
    mean = norms(model.encoder)[0].running_mean.clone()
    model(torch.randn(2, 3, 16, 16)).mean().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert not torch.equal(norms(model.encoder)[0].running_mean, mean)


def test_a_frozen_network_can_be_copied_and_has_the_same_keys():
    model = UNet(base_width=4)
    keys = list(model.state_dict())
    freeze_encoder(model)
    twin = copy.deepcopy(model)
    unfreeze_encoder(twin)
    assert list(model.state_dict()) == keys == list(twin.state_dict())
    assert encoder_is_frozen(model) and not encoder_is_frozen(twin)


def test_a_network_without_an_encoder_says_what_it_has():
    with pytest.raises(ValueError, match="no encoder to freeze, its parts are: 0, 1"):
        freeze_encoder(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))


@pytest.mark.parametrize(
    ("name", "network", "extra"),
    [("linknet", "resnet18", ["fc.weight", "fc.bias"]), ("double_unet", "vgg19", [])],
)
def test_encoder_weights_arrive_where_torchvision_has_them(name, network, extra, monkeypatch):
    # what torchvision would give: its own keys and order, other values, and the classifier after
    model = build_model(name)
    state = {f"features.{k}": torch.full_like(v, 7) for k, v in model.encoder.state_dict().items()}
    state |= {key: torch.zeros(3) for key in extra}
    monkeypatch.setattr(
        "renal_utils.models.pretrained.torchvision_weights", lambda *arguments: state
    )
    loaded = build_model(name, encoder_weights="imagenet")
    assert all((v == 7).all() for v in loaded.encoder.state_dict().values())
    with pytest.raises(ValueError, match=f"of {network} are for images of 3 channels, not 1"):
        build_model(name, in_channels=1, encoder_weights="imagenet")


@pytest.mark.parametrize("network", ["vgg19", "resnet18"])
def test_encoders_list_their_tensors_as_torchvision_does(network):
    from torchvision.models import get_model

    ours = build_model({"vgg19": "double_unet", "resnet18": "linknet"}[network]).encoder
    with torch.device("meta"):
        theirs = get_model(network, weights=None).state_dict().values()
    mine = ours.state_dict().values()
    assert [v.shape for v in mine] == [v.shape for v in list(theirs)[: len(mine)]]


def test_unknown_or_unreachable_weights_of_torchvision_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match=r"no weights 'flowers' of vgg19; known: imagenet, IMAGE"):
        torchvision_weights("vgg19", "flowers")

    def unreachable(*arguments, **options):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ConnectionError, match=r"torchvision's server.*encoder_weights=None"):
        build_model("linknet", encoder_weights="imagenet")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unext", {"widths": (4, 8, 8, 8)}, "five numbers"),
        ("unext", {"widths": (4, 8, 8, 8, 3)}, "at least 5"),
        ("rolling_unet_s", {"size": "xl"}, "known: s, m, l"),
        ("rolling_unet_s", {"base_width": 5}, "even"),
    ],
)
def test_options_that_make_no_network_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **options)
