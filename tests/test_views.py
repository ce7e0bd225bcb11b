import pytest
import torch
from torch import nn

from renal_utils.prediction import make_predictor
from renal_utils.views import VIEW_COUNTS, VIEWS, average_views, turn, turn_back


def _predictor(seed=0, channels=1):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, channels, 5, padding=2)
    return make_predictor(nn.Sequential(*layers), device="cpu", precision="32-true")


def test_the_views_are_the_eight_symmetries_and_turning_back_undoes_them():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    seen = set()
    for view in range(8):
        turned = turn(image, view)
        assert torch.equal(turn_back(turned, view), image)
        seen.add((turned.shape[2], *turned.flatten().tolist()))
    assert len(seen) == len(VIEWS) == 8


@pytest.mark.parametrize("flips", VIEW_COUNTS)
def test_the_first_views_form_a_group(flips):
    square = torch.arange(9.0).reshape(3, 3)
    views = {tuple(turn(square, v).flatten().tolist()) for v in range(flips)}
    for first in range(flips):
        for second in range(flips):
            assert tuple(turn(turn(square, first), second).flatten().tolist()) in views


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("spread", [False, True])
def test_the_mean_of_eight_views_turns_with_the_image(channels, spread):
    predict = _predictor(channels=channels)
    mean = average_views(predict, flips=8, spread=spread)
    images = torch.randn(2, 3, 12, 20)
    straight = mean(images)
    assert straight.shape == (2, channels + spread, 12, 20)
    for view in range(1, 8):
        torch.testing.assert_close(mean(turn(images, view)), turn(straight, view))
        assert not torch.allclose(predict(turn(images, view)), turn(predict(images), view))


def test_mean_and_spread_are_those_of_all_answers():
    members = [_predictor(seed) for seed in (0, 1, 2)]
    images = torch.randn(2, 3, 8, 8)
    found = average_views(members, flips=2, spread=True)(images)
    answers = [m(images) for m in members] + [m(images.flip(-1)).flip(-1) for m in members]
    stacked = torch.stack(answers)
    torch.testing.assert_close(found[:, :1], stacked.mean(0))
    torch.testing.assert_close(found[:, 1:], stacked.std(0, correction=0), atol=1e-5, rtol=1e-4)


def test_a_network_without_up_or_left_has_no_spread_and_one_view_changes_nothing():
    dot = make_predictor(nn.Conv2d(3, 1, 1), device="cpu", precision="32-true")
    images = torch.randn(1, 3, 8, 8)
    assert average_views(dot, flips=8, spread=True)(images)[:, 1].max() < 1e-5
    assert torch.equal(average_views(dot, flips=1)(images), dot(images))


def test_identity_tells_networks_and_views_apart():
    first, second = _predictor(0), _predictor(1)
    made = [
        average_views(first, flips=8),
        average_views(first, flips=4),
        average_views(first, flips=8, spread=True),
        average_views([first, second], flips=8),
    ]
    assert len({m.identity for m in made}) == 4
    assert made[0].identity == average_views(_predictor(0), flips=8).identity
    assert made[0].identity.startswith(first.identity)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"one of \(1, 2, 4, 8\), not 3"):
        average_views(_predictor(), flips=3)
    with pytest.raises(ValueError, match="no spread"):
        average_views(_predictor(), flips=1, spread=True)
    with pytest.raises(ValueError, match="no predictor"):
        average_views([])
