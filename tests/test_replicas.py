"""Copies of a network that share a batch: as one, whatever their number; on the CPU only."""

import threading

import pytest
import torch
from torch import nn

from renal_utils.prediction import Predictor, make_predictor
from renal_utils.replicas import make_replicas


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))


def _copies(count, **options):
    return make_replicas(_network(), devices=["cpu"] * count, precision="32-true", **options)


def _plain():
    return make_predictor(_network(), device="cpu", precision="32-true")


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8])
def test_the_answer_is_that_of_one_device_in_the_same_order(count, batch):
    images = torch.randn(batch, 3, 16, 16)
    found = _copies(count)(images)
    torch.testing.assert_close(found, _plain()(images), rtol=0, atol=1e-6)
    assert found.shape == (batch, 2, 16, 16)


def test_one_device_is_a_plain_predictor_and_the_identity_is_that_of_one():
    assert isinstance(_copies(1), Predictor)
    assert _copies(3).identity == _plain().identity


def test_each_copy_gets_its_piece_of_the_batch():
    copies, sizes = _copies(3), {}
    for number, one in enumerate(copies.predictors):
        one.model.register_forward_hook(lambda _, x, __, n=number: sizes.update({n: len(x[0])}))
    copies(torch.randn(8, 3, 8, 8))
    assert sizes == {0: 3, 1: 3, 2: 2}
    assert len({id(one.model) for one in copies.predictors}) == 3


def test_the_copies_work_at_the_same_time():
    """Each waits in the middle of its work for the other."""
    copies, both = _copies(2), threading.Barrier(2)

    def wait(*_):
        both.wait(timeout=20)

    for one in copies.predictors:
        one.model.register_forward_hook(wait)
    copies(torch.randn(4, 3, 8, 8))
    assert not both.broken


@pytest.mark.parametrize("broken", [0, 1])
def test_the_error_of_any_copy_is_raised_and_the_next_batch_goes_on(broken):
    copies = _copies(2)

    def fall_over(*_):
        raise RuntimeError(f"device {broken} ran out of memory")

    hook = copies.predictors[broken].model.register_forward_hook(fall_over)
    with pytest.raises(RuntimeError, match=f"device {broken} ran out of memory"):
        copies(torch.randn(4, 3, 8, 8))
    hook.remove()
    assert copies(torch.randn(4, 3, 8, 8)).shape == (4, 2, 8, 8)


def test_bfloat16_is_chosen_only_if_all_devices_gain_by_it(monkeypatch):
    fast = iter([True, False, True, True])
    monkeypatch.setattr("renal_utils.runtime.bf16_is_fast", lambda _: next(fast))
    mixed, same = (make_replicas(_network(), devices=["cpu", "cpu"]) for _ in range(2))
    assert [one.precision for one in mixed.predictors] == ["32-true"] * 2
    assert [one.precision for one in same.predictors] == ["bf16-mixed"] * 2


def test_no_device_is_refused():
    with pytest.raises(ValueError, match="no device was given"):
        make_replicas(_network(), devices=[])
