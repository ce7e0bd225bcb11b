import pytest
import torch
from torch.nn import functional

from renal_utils.losses import build_loss
from renal_utils.models.blocks import count_parameters
from renal_utils.models.haru_net import BranchLogits, ContextFusion, HARUNet
from renal_utils.models.rsu import RSU
from renal_utils.models.u2net import U2Net, u2netp

U2NET_DOWN = [206_016, 305_856, 1_108_992, 3_986_688, 10_034_688, 10_034_688]
U2NET_UP = [12_393_984, 4_280_064, 1_181_952, 323_904, 139_200]
HARU_DOWN = [205_504, 305_280, 1_107_968, 3_984_896, 10_032_128, 10_032_128]
HARU_UP = [12_391_424, 4_278_784, 1_181_184, 323_456, 138_880]


def on_meta(network, *args, **options):
    with torch.device("meta"):
        return network(*args, **options)


@pytest.mark.parametrize(
    ("network", "down", "up"), [(U2Net, U2NET_DOWN, U2NET_UP), (HARUNet, HARU_DOWN, HARU_UP)]
)
def test_every_stage_has_its_published_count(network, down, up):
    model = on_meta(network)
    assert [count_parameters(stage) for stage in model.encoder] == down
    assert [count_parameters(stage) for stage in model.decoder] == up


def test_attention_and_fusion_have_their_published_counts():
    model = on_meta(HARUNet)
    assert [count_parameters(a) for a in model.attention] == [610, 2_146, 8_290, 32_866, 16_384]
    assert count_parameters(model.mask.fuse) == 91
    assert count_parameters(ContextFusion(2)) == 188  # 12 x 6 + 6, 6 x 12 + 12, 12 x 2 + 2


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("size", [(33, 47), (1, 5), (64, 32)])
def test_a_residual_block_keeps_any_size(dilated, size):
    block = RSU(3, 4, 6, height=4, dilated=dilated).eval()
    assert block(torch.randn(1, 3, *size)).shape == (1, 6, *size)


def test_a_dilated_block_never_pools_and_a_pooled_one_dilates_only_at_the_bottom():
    rates = {
        dilated: [[unit[0].dilation[0] for unit in part] for part in (block.down, block.up)]
        for dilated in (False, True)
        for block in [RSU(3, 4, 6, height=4, dilated=dilated)]
    }
    assert rates[True] == [[1, 2, 4, 8], [4, 2, 1]]
    assert rates[False] == [[1, 1, 1, 2], [1, 1, 1]]
    assert not RSU(3, 4, 6, height=4, dilated=True).pooled


def test_a_residual_block_adds_what_entered():
    block = RSU(3, 4, 6, height=3).eval()
    last = block.up[-1]
    torch.nn.init.zeros_(last[1].weight)  # normalisation that gives 0 everywhere
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(block(image), block.entry(image))


def test_a_block_of_too_few_levels_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        RSU(3, 4, 6, height=2)


def test_context_fusion_is_what_its_formula_says():
    torch.manual_seed(0)
    block, sides = ContextFusion(1), torch.randn(2, 6, 4, 5)
    summary = sides.flatten(2).mean(2) + sides.flatten(2).max(2).values
    hidden = functional.relu(summary @ block.squeeze.weight[:, :, 0, 0].T + block.squeeze.bias)
    weights = (hidden @ block.expand.weight[:, :, 0, 0].T + block.expand.bias).sigmoid()
    weighed = sides * weights[:, :, None, None]
    expected = (weighed * block.fuse.weight[0, :, 0, 0].view(1, 6, 1, 1)).sum(1, keepdim=True)
    got = block(list(sides.split(1, dim=1)))
    assert torch.allclose(got, expected + block.fuse.bias, atol=1e-6)


def test_in_training_u2net_gives_the_fused_logits_and_six_sides():
    model = u2netp(num_classes=2, deep_supervision=True)
    image = torch.randn(2, 3, 32, 64)
    outputs = model.train()(image)
    assert [tuple(output.shape) for output in outputs] == [(2, 2, 32, 64)] * 7
    joined = torch.cat(outputs[1:], dim=1)
    assert torch.equal(model.fuse(joined), outputs[0])
    assert model.eval()(image).shape == (2, 2, 32, 64)


def test_in_training_haru_net_gives_both_branches_and_its_loss_takes_them():
    model = HARUNet(small=True, deep_supervision=True).train()
    image = torch.randn(2, 3, 32, 32)
    outputs = model(image)
    assert isinstance(outputs, BranchLogits)
    assert [len(branch) for branch in outputs] == [7, 7]
    target = torch.randint(0, 2, (2, 2, 32, 32))
    loss = build_loss("two_branch")(outputs, target)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_contours_follow_the_masks_as_further_channels():
    torch.manual_seed(0)
    both = HARUNet(num_classes=2, small=True, contours=True).eval()
    alone = HARUNet(num_classes=2, small=True).eval()
    alone.load_state_dict(both.state_dict())
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert both(image).shape == (1, 4, 32, 32)
        assert torch.equal(both(image)[:, :2], alone(image))


@pytest.mark.parametrize(
    ("switch", "gone"),
    [("attention", ("attention.",)), ("context_fusion", ("fuse.squeeze.", "fuse.expand."))],
)
def test_a_switch_takes_away_exactly_its_block(switch, gone):
    names = {name for name, _ in on_meta(HARUNet).named_parameters()}
    without = {name for name, _ in on_meta(HARUNet, **{switch: False}).named_parameters()}
    renamed = {name.replace("fuse.fuse.", "fuse.") for name in names}
    lost = renamed - {name.replace("fuse.fuse.", "fuse.") for name in without}
    assert lost and all(any(part in name for part in gone) for name in lost)


def test_without_residual_blocks_a_stage_is_two_convolutions():
    model = on_meta(HARUNet, rsu=False)
    assert [count_parameters(stage) for stage in model.encoder[:2]] == [38_976, 221_952]


@pytest.mark.parametrize("network", [u2netp, lambda **o: HARUNet(small=True, **o).mask])
def test_a_fused_output_begins_as_the_mean_of_its_sides(network):
    fuse = network(num_classes=2).fuse
    sides = [torch.randn(1, 2, 4, 4) for _ in range(6)]
    joined = torch.cat(sides, dim=1)
    gated = isinstance(fuse, ContextFusion)
    fused = fuse.fuse(joined * 0.5) if gated else fuse(joined)
    assert torch.allclose(fused, torch.stack(sides).mean(0), atol=1e-6)
