"""Copies of a network that take whole batches: as one, whatever their number; on the CPU only."""

import threading
from functools import partial

import pytest
import torch
from torch import nn

from renal_utils.prediction import Predictor, make_predictor
from renal_utils.replicas import make_replicas, work_in_order


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))


def _copies(count, **options):
    make = partial(make_predictor, _network())
    return make_replicas(make, devices=["cpu"] * count, **{"precision": "32-true", **options})


def _plain():
    return make_predictor(_network(), device="cpu", precision="32-true")


def _answers(predict, batches):
    found = []
    work_in_order(batches, predict, found.append, at_once=predict.at_once)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_the_answers_are_those_of_one_device_bit_for_bit_and_in_the_same_order(count):
    batches = [torch.randn(size, 3, 16, 16) for size in (8, 8, 7, 8, 1, 3)]
    found = _answers(_copies(count), batches)
    assert len(found) == len(batches)
    assert all(torch.equal(one, _plain()(batch)) for one, batch in zip(found, batches, strict=True))


def test_one_device_is_a_plain_predictor_and_the_identity_is_that_of_one():
    assert isinstance(_copies(1), Predictor)
    assert _copies(3).identity == _plain().identity
    assert not _copies(3).has_spread


def test_no_copy_is_used_twice_at_a_time_and_each_works_on_whole_batches():
    """Each waits in the middle of its work for the other."""
    copies, both, sizes = _copies(2), threading.Barrier(2), []

    def wait(model, images, _):
        sizes.append((id(model), len(images[0])))
        both.wait(timeout=20)

    for one in copies.predictors:
        one.model.register_forward_hook(wait)
    _answers(copies, [torch.randn(4, 3, 8, 8)] * 6)
    assert sorted(sizes) == sorted([(id(one.model), 4) for one in copies.predictors] * 3)


@pytest.mark.parametrize("broken", [0, 1])
def test_the_error_of_any_copy_is_raised_and_the_copy_is_free_again(broken):
    copies = _copies(2)

    def fall_over(*_):
        raise RuntimeError(f"device {broken} ran out of memory")

    hook = copies.predictors[broken].model.register_forward_hook(fall_over)
    with pytest.raises(RuntimeError, match=f"device {broken} ran out of memory"):
        _answers(copies, [torch.randn(4, 3, 8, 8)] * 6)
    hook.remove()
    assert len(_answers(copies, [torch.randn(4, 3, 8, 8)] * 6)) == 6


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_results_come_in_order_in_the_callers_thread_and_few_are_held(at_once):
    """From two on, each first of a pair ends after the second."""
    ended, made, taken = [threading.Event() for _ in range(12)], [], []

    def items():
        for number in range(12):
            made.append(number)
            yield number

    def work(number):
        if at_once > 1 and number % 2 == 0:
            assert ended[number + 1].wait(timeout=20)
        ended[number].set()
        return number

    def take(number):
        assert threading.current_thread() is threading.main_thread()
        assert len(made) <= len(taken) + (1 if at_once == 1 else at_once + 2)
        taken.append(number)

    work_in_order(items(), work, take, at_once=at_once)
    assert taken == list(range(12))


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("where", ["reading", "working", "taking"])
def test_an_error_anywhere_is_raised_and_ends_the_threads(at_once, where):
    before, made, taken = threading.active_count(), [], []

    def fail(step, number):
        if step == where and number == 5:
            raise OSError(f"{step} failed")

    def items():
        for number in range(1000):
            fail("reading", number)
            made.append(number)
            yield number

    def work(number):
        fail("working", number)
        return number

    def take(number):
        fail("taking", number)
        taken.append(number)

    with pytest.raises(OSError, match=f"{where} failed"):
        work_in_order(items(), work, take, at_once=at_once)
    assert taken == list(range(len(taken)))
    assert len(taken) == 5 or (where == "reading" and at_once > 1)
    assert len(made) < 12
    assert threading.active_count() == before


def test_bfloat16_is_chosen_only_if_all_devices_gain_by_it(monkeypatch):
    fast = iter([True, False, True, True])
    monkeypatch.setattr("renal_utils.runtime.bf16_is_fast", lambda _: next(fast))
    mixed, same = (_copies(2, precision="auto") for _ in range(2))
    assert [one.precision for one in mixed.predictors] == ["32-true"] * 2
    assert [one.precision for one in same.predictors] == ["bf16-mixed"] * 2


def test_no_device_is_refused():
    with pytest.raises(ValueError, match="no device was given"):
        _copies(0)
