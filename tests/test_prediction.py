import pytest
import torch
from torch import nn

from renal_utils.prediction import check_probabilities, make_predictor, weights_hash


def _network(channels=1):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, channels, 1)
    )


def test_one_channel_is_a_sigmoid_and_several_a_softmax():
    images = torch.randn(2, 3, 16, 16)
    for channels in (1, 4):
        model = _network(channels).eval()
        found = make_predictor(model, device="cpu", precision="32-true")(images)
        logits = model(images)
        expected = logits.sigmoid() if channels == 1 else logits.softmax(1)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
        assert found.dtype == torch.float32 and found.is_contiguous()


def test_the_model_itself_is_left_as_it_was():
    model = _network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_predictor(model, device="cpu", precision="bf16-mixed")(torch.randn(2, 3, 16, 16))
    assert model.training
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_rounding_the_weights_beforehand_changes_no_bit_of_autocast():
    model, images = _network(3).eval(), torch.randn(2, 3, 16, 16)
    images = images.contiguous(memory_format=torch.channels_last)
    found = make_predictor(model, device="cpu", precision="bf16-mixed")(images)
    model = model.to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = model(images).float().softmax(1)
    assert torch.equal(found, expected)


def test_identity_tells_weights_and_precision_apart():
    model, other = _network(), _network()
    assert weights_hash(model) != weights_hash(other)
    other.load_state_dict(model.state_dict())
    assert weights_hash(model) == weights_hash(other)
    one = make_predictor(model, device="cpu", precision="32-true").identity
    assert one == make_predictor(other, device="cpu", precision="32-true").identity
    assert one != make_predictor(model, device="cpu", precision="bf16-mixed").identity


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(2, 1, 8, 8), "patch size"),
        (torch.zeros(2, 3, 16, 16), "label set"),
        (torch.zeros(2, 16, 16), "batch, channels"),
        (torch.full((2, 1, 16, 16), float("nan")), "NaN"),
        (torch.full((2, 1, 16, 16), 3.0), "logits"),
        (torch.full((2, 1, 16, 16), float("inf")), "logits"),
    ],
)
def test_what_cannot_be_stitched_is_refused_with_a_remedy(given, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_probabilities(given, expected=(2, 1, 16, 16), source="slide.tiff")
    assert "slide.tiff" in str(caught.value)
