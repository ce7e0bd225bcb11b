"""The U-Net family: published counts of each part, and what each block does, recomputed by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from renal_utils.models.attention import CBAM, ChannelAttention, SpatialAttention
from renal_utils.models.attention_unet import AttentionGate, AttentionUNet
from renal_utils.models.blocks import Encoder, count_parameters
from renal_utils.models.build import build_model
from renal_utils.models.cbam_unet import CbamUNet
from renal_utils.models.ce_net import CENet, DecoderBlock, DenseAtrousConv, MultiKernelPooling
from renal_utils.models.fcn import FCN, bilinear_kernel, bilinear_up
from renal_utils.models.res_unet import ResUNet, residual_stem, residual_unit
from renal_utils.models.unet import UNet
from renal_utils.models.unet3p import FullScaleNode, UNet3Plus
from renal_utils.models.unetpp import SmallUNet, UNetPlusPlus

# name, options, classes, published count of parameters
COUNTS = [
    ("unetpp", {}, 4, 36_629_828),
    ("unetpp", {}, 1, 36_629_633),
    ("unetpp_small", {}, 1, 9_163_329),
    ("unetpp_small", {"deep_supervision": True}, 1, 9_163_428),
    ("unet_small", {}, 1, 7_852_545),
    ("cbam_unet", {}, 4, 34_571_148),
    ("attention_unet", {}, 1, 34_878_573),
    ("attention_unet", {}, 4, 34_878_768),
    ("res_unet", {}, 1, 13_043_009),
    ("unet3p", {}, 1, 26_971_777),
    ("unet3p", {"deep_supervision": True}, 1, 26_989_637),
    ("ce_net", {}, 1, 29_003_093),
    ("fcn32s", {}, 21, 136_152_917),
    ("fcn16s", {}, 21, 134_815_994),
    ("fcn8s", {}, 21, 134_489_759),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "options", "classes", "expected"), COUNTS)
def test_parameters_are_as_many_as_published(name, options, classes, expected):
    with torch.device("meta"):
        model = build_model(name, num_classes=classes, **options)
    assert count_parameters(model) == expected


def test_blocks_have_their_published_counts():
    with torch.device("meta"):
        gates = [count_parameters(gate) for gate in AttentionUNet().gates]
        cbams = [count_parameters(cbam) for cbam in CbamUNet().attention]
        assert gates == [263_939, 66_435, 16_835, 4_323]
        assert cbams == [32_866, 8_290, 2_146, 610]
        assert count_parameters(ChannelAttention(512, reduction=32)) == 16_384
        assert count_parameters(Encoder(3, [64, 128, 256, 512, 1024])) == 18_851_136
        assert count_parameters(DenseAtrousConv(512)) == 7_342_080
        assert count_parameters(MultiKernelPooling(512)) == 513


def test_blocks_without_a_published_count_have_that_of_their_formula():
    def conv(i, o, kernel=3):
        return kernel * kernel * i * o + o

    stem = 2 * conv(3, 64) + 2 * 64 + conv(64, 64)
    unit = 2 * 64 + 2 * conv(64, 128) + 2 * 2 * 128 + conv(128, 128)  # normalisations: 2 a channel
    up = conv(516, 129, 1) + conv(129, 129) + conv(129, 256, 1) + 2 * (129 + 129 + 256)
    assert count_parameters(residual_stem(3, 64)) == stem == 40_640
    assert count_parameters(residual_unit(64, 128, stride=2)) == unit == 295_936
    assert count_parameters(DecoderBlock(516, 256)) == up == 250_899


# -- attention ------------------------------------------------------------------------------------


def test_channel_attention_weighs_by_the_shared_network_of_average_and_maximum():
    features = torch.randn(2, 4, 3, 5)
    block = ChannelAttention(4, reduction=2)
    squeeze, expand = block.squeeze.weight[:, :, 0, 0], block.expand.weight[:, :, 0, 0]
    for image, found in zip(features, block(features), strict=True):
        flat = image.reshape(4, 15)
        scores = sum(
            expand @ (squeeze @ part).clamp(min=0) for part in (flat.mean(1), flat.amax(1))
        )
        weights = 1 / (1 + (-scores).exp())
        torch.testing.assert_close(found, weights[:, None, None] * image)


def test_spatial_attention_weighs_by_a_convolution_of_maximum_and_mean():
    features = torch.randn(2, 4, 6, 5)
    block = SpatialAttention(kernel=3)
    summary = torch.stack([features.amax(1), features.mean(1)], dim=1)
    padded = functional.pad(summary, (1, 1, 1, 1))
    row, column = 2, 0
    window = padded[:, :, row : row + 3, column : column + 3]
    weight = (window * block.conv.weight).sum(dim=(1, 2, 3)).sigmoid()
    torch.testing.assert_close(
        block(features)[:, :, row, column], features[:, :, row, column] * weight[:, None]
    )


def test_cbam_weighs_channels_first_then_pixels_of_the_result():
    features = torch.randn(1, 8, 9, 9)
    cbam = CBAM(8, reduction=4, kernel=5)
    channel, spatial = cbam
    weighed = features * channel.weights(features)
    torch.testing.assert_close(cbam(features), weighed * spatial.weights(weighed))
    assert not torch.allclose(cbam(features), channel(spatial(features)))


def test_attention_refuses_sizes_that_make_no_sense():
    with pytest.raises(ValueError, match="kernel must be odd"):
        SpatialAttention(kernel=4)
    with pytest.raises(ValueError, match="reduction must be at least 1"):
        CBAM(8, reduction=0)
    assert ChannelAttention(4, reduction=16).squeeze.out_channels == 1


def test_a_gate_multiplies_the_skip_by_weights_between_0_and_1():
    skip, coarser = torch.randn(2, 2, 6, 4, 4).unbind()
    gate = AttentionGate(6)
    gate(skip, coarser)  # once in training mode, so that the running averages are not trivial
    gate.eval()
    weights = gate.weights(skip, coarser)
    assert weights.shape == (2, 1, 4, 4)
    assert 0 < weights.min() < weights.max() < 1
    torch.testing.assert_close(gate(skip, coarser), weights * skip)
    a = functional.conv2d(skip, *gate.of_skip[0].parameters())
    b = functional.conv2d(coarser, *gate.of_coarser[0].parameters())
    hidden = (gate.of_skip[1](a) + gate.of_coarser[1](b)).clamp(min=0)
    score = gate.to_weight[1](
        (hidden * gate.to_weight[0].weight).sum(1, keepdim=True) + gate.to_weight[0].bias
    )
    torch.testing.assert_close(weights, score.sigmoid())


def test_a_gate_listens_to_the_coarser_map_as_well():
    skip, coarser = torch.randn(2, 1, 6, 4, 4).unbind()
    gate = AttentionGate(6).eval()
    assert not torch.allclose(gate.weights(skip, coarser), gate.weights(skip, -coarser))


@pytest.mark.parametrize(("make", "share"), [(CbamUNet, 0.25), (AttentionUNet, 0.5)])
def test_attention_that_knows_nothing_passes_a_fixed_share_of_each_skip_and_all_else(make, share):
    model = make(base_width=2).eval()
    attention = model.attention if make is CbamUNet else model.gates
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()  # every sigmoid gives 1/2, CBAM has two in a row
    unet = UNet(base_width=2).eval()
    unet.encoder.load_state_dict(model.encoder.blocks.state_dict())
    for part in ("up", "decoder", "head"):
        getattr(unet, part).load_state_dict(getattr(model, part).state_dict())
    with torch.no_grad():
        for block in unet.decoder:
            block[0].weight[:, : block[0].in_channels // 2] *= share
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(image), unet(image), rtol=1e-4, atol=1e-5)


# -- UNet++ and the small U-Net -------------------------------------------------------------------


class _Sum(nn.Module):
    """A node that adds up its maps and notes how many there were."""

    def forward(self, features):
        self.maps = features.shape[1]
        return features.sum(dim=1, keepdim=True)


def test_each_nested_node_gets_all_maps_of_its_row_and_the_one_below():
    model = UNetPlusPlus(base_width=1)
    model.nodes = nn.ModuleDict({name: _Sum() for name in model.nodes})
    rows = model.connect([torch.ones(1, 1, 32 >> level, 32 >> level) for level in range(5)])
    assert [len(row) for row in rows] == [5, 4, 3, 2, 1]
    for level, row in enumerate(rows):
        # node (i, j) is the sum of the nodes (i, 0..j-1) and (i+1, j-1): 1, 2, 5, 13, 34
        assert [features.mean().item() for features in row] == [1, 2, 5, 13, 34][: 5 - level]
        assert all(features.shape[-1] == 32 >> level for features in row)
    assert {name: node.maps for name, node in model.nodes.items()} == {
        "0_1": 2, "0_2": 3, "0_3": 4, "0_4": 5,
        "1_1": 2, "1_2": 3, "1_3": 4,
        "2_1": 2, "2_2": 3,
        "3_1": 2,
    }  # fmt: skip


def test_a_nested_node_has_the_channels_of_its_row_and_of_the_level_below():
    nodes = UNetPlusPlus(base_width=3).nodes
    assert nodes["1_2"][0].in_channels == 2 * 6 + 12
    assert nodes["0_4"][0].in_channels == 4 * 3 + 6
    assert nodes["0_4"][0].out_channels == 3


def test_the_small_unet_is_a_unet_whose_maps_are_enlarged_without_a_convolution():
    small, unet = SmallUNet(base_width=2).eval(), UNet(base_width=2).eval()
    unet.encoder, unet.decoder, unet.head = small.encoder.blocks, small.decoder, small.head
    unet.up = nn.ModuleList(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) for _ in range(4)
    )
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(small(image), unet(image))


# -- UNet 3+ --------------------------------------------------------------------------------------


def test_a_full_scale_node_pools_finer_maps_and_enlarges_coarser_ones():
    node = FullScaleNode(2, [1, 1, 1, 1, 1], 1)
    node.parts = nn.ModuleList(part[0] for part in node.parts)  # the resizing alone
    node.fuse = nn.Identity()
    maps = [torch.rand(1, 1, 32 >> level, 48 >> level) for level in range(5)]
    found = node(maps)
    assert found.shape == (1, 5, 8, 12)
    blocks = maps[0][0, 0].reshape(8, 4, 12, 4).amax(dim=(1, 3))
    assert torch.equal(found[0, 0], blocks)
    assert torch.equal(found[0, 2], maps[2][0, 0])
    expected = functional.interpolate(maps[4], (8, 12), mode="bilinear")
    torch.testing.assert_close(found[:, 4:], expected)


def test_decoder_levels_see_finer_encoder_maps_and_coarser_decoder_maps():
    model, seen = UNet3Plus(base_width=2), []
    for node in model.decoder:
        node.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].copy()))
    encoded = []
    model.encoder.register_forward_hook(lambda _, __, maps: encoded.extend(maps))
    made = []
    for node in model.decoder:
        node.register_forward_hook(lambda _, __, features: made.append(features))
    model.eval()(torch.randn(1, 3, 16, 16))
    for step, maps in enumerate(seen):
        level = 3 - step
        expected = encoded[: level + 1] + made[:step][::-1] + encoded[4:]
        assert [id(features) for features in maps] == [id(features) for features in expected]


# -- deep supervision -----------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "outputs"), [(UNetPlusPlus, 4), (UNet3Plus, 5)])
def test_side_outputs_come_in_training_only_the_main_one_first(make, outputs):
    model = make(num_classes=2, base_width=2, deep_supervision=True)
    plain = make(num_classes=2, base_width=2)
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        model.head.bias += 1000
    found = model(image)
    assert [logits.shape for logits in found] == [(2, 2, 32, 48)] * outputs
    assert [bool(logits.mean() > 900) for logits in found] == [True] + [False] * (outputs - 1)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model.eval()(image), plain.eval()(image))
    assert isinstance(plain.train()(image), torch.Tensor)


@pytest.mark.parametrize("make", [UNetPlusPlus, UNet3Plus])
def test_gradients_of_all_outputs_reach_every_parameter(make):
    model = make(base_width=2, deep_supervision=True)
    sum(logits.square().mean() for logits in model(torch.randn(2, 3, 32, 32))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("make", [UNetPlusPlus, UNet3Plus])
def test_each_side_output_reads_its_own_map(make):
    model = make(base_width=2, deep_supervision=True)
    image = torch.randn(2, 3, 32, 32)
    for side, head in enumerate(model.side_heads):
        before = model(image)
        with torch.no_grad():
            next(head.parameters()).mul_(2)
        changed = [not torch.equal(a, b) for a, b in zip(before, model(image), strict=True)]
        assert changed == [place == side + 1 for place in range(len(before))]


# -- Res-UNet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_unit_is_its_pre_activated_body_plus_a_convolved_shortcut(stride):
    unit = residual_unit(3, 5, stride=stride)
    features = torch.randn(2, 3, 8, 12)
    unit(features)
    unit.eval()
    norm1, _, conv1, norm2, _, conv2 = unit.body
    conv, norm = unit.shortcut

    def convolve(layer, x, step=1):
        return functional.conv2d(x, layer.weight, layer.bias, stride=step, padding=1)

    body = convolve(conv1, norm1(features).clamp(min=0), stride)
    body = convolve(conv2, norm2(body).clamp(min=0))
    expected = body + norm(convolve(conv, features, stride))
    assert expected.shape == (2, 5, 8 // stride, 12 // stride)
    torch.testing.assert_close(unit(features), expected)


def test_a_residual_unit_whose_body_is_silent_is_its_shortcut():
    unit = residual_unit(3, 5).eval()
    nn.init.zeros_(unit.body[-1].weight)
    nn.init.zeros_(unit.body[-1].bias)
    features = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(unit(features), unit.shortcut(features))


def test_the_residual_unet_returns_logits_not_probabilities():
    model = ResUNet(base_width=2).eval()
    nn.init.constant_(model.head.bias, -20)
    assert model(torch.randn(1, 3, 16, 16)).max() < -1


# -- CE-Net ---------------------------------------------------------------------------------------


def test_the_dense_atrous_block_adds_four_branches_that_share_their_layers():
    block = DenseAtrousConv(2)
    features = torch.randn(1, 2, 12, 12)

    def dilated(layer, x, dilation):
        return functional.conv2d(x, layer.weight, layer.bias, padding=dilation, dilation=dilation)

    def point(x):
        return functional.conv2d(x, block.point.weight, block.point.bias)

    first = dilated(block.near, features, 1)
    second = point(dilated(block.middle, features, 3))
    third = point(dilated(block.middle, first, 3))
    fourth = point(dilated(block.far, dilated(block.middle, first, 3), 5))
    expected = features + sum(x.clamp(min=0) for x in (first, second, third, fourth))
    torch.testing.assert_close(block(features), expected)
    assert (block(features) >= features).all()


def test_the_dense_atrous_block_sees_nineteen_pixels():
    block = DenseAtrousConv(1)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[..., 20, 20] = 1
    rows = block(impulse)[0, 0].amax(dim=1).nonzero().flatten()
    assert (rows.min(), rows.max()) == (20 - 9, 20 + 9)


def test_pooled_summaries_stand_before_the_map_itself():
    block = MultiKernelPooling(3)
    nn.init.ones_(block.squeeze.weight)
    nn.init.zeros_(block.squeeze.bias)
    features = torch.rand(2, 3, 12, 12)
    found = block(features)
    assert found.shape == (2, 7, 12, 12)
    assert torch.equal(found[:, 4:], features)
    pooled = features.reshape(2, 3, 2, 6, 2, 6).amax(dim=(3, 5)).sum(dim=1, keepdim=True)
    corner = found[:, 3:4, ::11, ::11]  # beyond the outer cells' centres nothing is mixed
    torch.testing.assert_close(corner, pooled)


def test_maps_smaller_than_a_kernel_are_pooled_as_a_whole():
    block = MultiKernelPooling(2)
    features = torch.rand(1, 2, 1, 3)
    found = block(features)
    for summary in found[0, 1:4, 0]:  # kernels 3, 5 and 6 over three columns
        torch.testing.assert_close(summary, summary[:1].expand(3))
    assert torch.equal(found[:, 4:], features)


def test_unknown_encoder_weights_list_the_known_ones():
    with pytest.raises(ValueError, match=r"ce_net.*flowers.*imagenet"):
        CENet(encoder_weights="flowers")


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    from segmentation_models_pytorch import encoders

    def unreachable(*args, **kwargs):
        raise FileNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(encoders, "get_encoder", unreachable)
    with pytest.raises(ConnectionError, match="encoder_weights=None"):
        CENet(encoder_weights="imagenet")


# -- FCN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_the_up_kernel_enlarges_a_ramp_to_a_ramp(stride):
    ramp = torch.stack([torch.arange(5.0).expand(4, 5), torch.full((4, 5), 7.0)])[None]
    found = bilinear_up(2, stride)(ramp)
    assert found.shape == (1, 2, 4 * stride, 5 * stride)
    inside = found[:, :, stride:-stride, stride:-stride]
    places = (torch.arange(5.0 * stride) + 0.5) / stride - 0.5  # pixel centres, in the small map
    expected = places[stride:-stride].expand_as(inside[0, 0])
    torch.testing.assert_close(inside[0, 0], expected)
    torch.testing.assert_close(inside[0, 1], torch.full_like(expected, 7.0))


def test_the_up_kernel_is_symmetric_and_weighs_each_pixel_by_one_in_total():
    kernel = bilinear_kernel(2)
    assert kernel[0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    assert torch.equal(kernel, kernel.flip(0, 1))
    assert kernel.sum() == 2 * 2


def test_each_fcn_adds_the_scores_of_one_more_pool():
    options = {"num_classes": 2, "base_width": 2, "hidden_width": 4}
    image, joined, scores = torch.randn(1, 3, 64, 96), [], []
    models = [FCN(fused=fused, **options).eval() for fused in (0, 1, 2)]
    for model in models:
        model.load_state_dict(
            {k: v for k, v in models[2].state_dict().items() if not k.startswith("enlarge")},
            strict=False,
        )
        model.enlarge.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0]))
    for layer in models[2].finer_scores:
        layer.register_forward_hook(lambda _, __, score: scores.append(score))
    outputs = [model(image) for model in models]
    assert {output.shape for output in outputs} == {(1, 2, 64, 96)}
    assert [tuple(score.shape[-2:]) for score in joined] == [(2, 3), (4, 6), (8, 12)]
    for coarse, up, fine, score in zip(joined, models[2].up, joined[1:], scores, strict=False):
        torch.testing.assert_close(fine - up(coarse), score, rtol=1e-4, atol=1e-5)


def test_the_signal_of_an_fcn_does_not_fade_before_training():
    model = FCN(base_width=16, hidden_width=64).eval()
    features = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for stage in model.encoder:
            features = stage(features)
    assert 0.1 < features.std() < 10


@pytest.mark.parametrize("options", [{"fused": 5}, {"fused": -1}, {"hidden_width": 0}])
def test_an_fcn_refuses_numbers_out_of_range(options):
    with pytest.raises(ValueError, match="must be"):
        FCN(**options)


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [UNetPlusPlus, SmallUNet, UNet3Plus, AttentionUNet, CbamUNet])
def test_a_width_below_one_is_refused(make):
    with pytest.raises(ValueError, match="at least 1 channel"):
        make(base_width=0)
    with pytest.raises(ValueError, match="at least 1"):
        ResUNet(base_width=0)
