import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from renal_utils.optimisation import (
    OPTIMIZERS,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
    pack_optimizer,
    unpack_optimizer,
)


def rates(schedule, steps, peak=0.1):
    return [learning_rate_at(s, steps, schedule=schedule, peak=peak) for s in range(steps)]


def torch_rates(make, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(found) < steps else None
    return found


@pytest.mark.parametrize("steps", [10, 37, 400])
def test_one_cycle_is_that_of_torch(steps):
    expected = torch_rates(
        lambda o: OneCycleLR(o, max_lr=0.1, total_steps=steps, cycle_momentum=False), steps
    )
    assert rates("one_cycle", steps) == pytest.approx(expected, rel=1e-6)


def test_cosine_is_that_of_torch():
    expected = torch_rates(lambda o: CosineAnnealingLR(o, T_max=50), 50)
    assert rates("cosine", 50) == pytest.approx(expected, rel=1e-9)


def test_cosine_to_a_hundredth_is_that_of_torch_with_a_least_rate():
    expected = torch_rates(lambda o: CosineAnnealingLR(o, T_max=50, eta_min=0.001), 50)
    assert rates("cosine_to_hundredth", 50) == pytest.approx(expected, rel=1e-9)


def test_constant_stays():
    assert rates("constant", 5) == [0.1] * 5


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "cosine_to_hundredth", "constant"])
def test_the_shortest_trainings_have_rates_above_zero_and_near_the_peak(schedule, steps):
    found = rates(schedule, steps)
    assert all(0 < r <= 0.1 for r in found)
    assert max(found) > 0.05


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_training_is_refused(step):
    with pytest.raises(ValueError, match=rf"step {step} is not within 0..4"):
        learning_rate_at(step, 5, schedule="cosine", peak=0.1)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="'step'; known: one_cycle, cosine, constant"):
        learning_rate_at(0, 5, schedule="step", peak=0.1)
    with pytest.raises(ValueError, match="'lamb'; known: adamw, adam, sgd"):
        build_optimizer("lamb", [], learning_rate=0.1, weight_decay=0)


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
def test_clipping_reports_the_norm_before_and_bounds_the_norm_after(max_norm):
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    before = torch.cat([p.grad.flatten() for p in parameters]).norm().item()
    assert clip_gradients(parameters, max_norm) == pytest.approx(before)
    after = torch.cat([p.grad.flatten() for p in parameters]).norm().item()
    assert after == pytest.approx(min(before, max_norm or before), rel=1e-4)


def steps_of(network, optimizer, inputs):
    for batch in inputs:
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()


def new_network():
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    layers[0].bias.requires_grad_(False)
    network = layers.to(memory_format=torch.channels_last)
    return network, [p for p in network.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_put_together_again_goes_on_bit_for_bit(name):
    inputs = torch.randn(6, 2, 3, 9, 9)
    straight, parameters = new_network()
    optimizer = build_optimizer(name, parameters, learning_rate=0.01, weight_decay=0.01)
    steps_of(straight, optimizer, inputs[:3])
    names = [n for n, p in straight.named_parameters() if p.requires_grad]
    tensors, groups = pack_optimizer(optimizer, names)
    stored = {
        k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    weights = {k: v.clone() for k, v in straight.state_dict().items()}
    steps_of(straight, optimizer, inputs[3:])

    other, parameters = new_network()
    other.load_state_dict(weights)
    again = build_optimizer(name, parameters, learning_rate=0.5, weight_decay=0.0)
    unpack_optimizer(again, names, stored, groups)
    steps_of(other, again, inputs[3:])
    for key, value in straight.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    moment = next(v for v in again.state[parameters[0]].values() if v.dim() == 4)
    assert moment.stride() == parameters[0].stride()
