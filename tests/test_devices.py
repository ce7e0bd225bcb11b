"""Which devices a name stands for, and how workers share them; GPUs are pretended."""

import pytest
import torch

from renal_utils.devices import list_devices, share_devices
from renal_utils.runtime import pick_device


@pytest.fixture
def pretend_gpus(monkeypatch):
    def pretend(count, visible=None):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_auto_is_all_gpus_where_there_are_several_and_else_the_one_device(pretend_gpus):
    pretend_gpus(0)
    assert list_devices("auto") == (str(pick_device("auto")),)
    pretend_gpus(1)
    assert list_devices("auto") == ("cuda",)
    pretend_gpus(3)
    assert list_devices("auto") == ("cuda:0", "cuda:1", "cuda:2")


def test_workers_that_see_the_gpus_in_turned_order_agree_which_is_whose(pretend_gpus):
    """As dask-cuda starts them: worker i sees GPU i first."""
    taken = []
    for worker, visible in enumerate(("0,1,2", "1,2,0", "2,0,1")):
        pretend_gpus(3, visible)
        (own,) = share_devices(list_devices("auto"), worker, 3)
        taken.append(visible.split(",")[int(own.removeprefix("cuda:"))])
    assert taken == ["0", "1", "2"]


def test_ten_gpus_and_more_stand_in_order(pretend_gpus):
    pretend_gpus(12)
    assert list_devices("auto") == tuple(f"cuda:{number}" for number in range(12))


def test_a_list_is_taken_as_it_stands(pretend_gpus):
    assert list_devices("cpu") == ("cpu",)
    assert list_devices("cpu, cpu") == ("cpu", "cpu")
    pretend_gpus(2)
    assert list_devices("cuda:1,cpu,cuda:1") == ("cuda:1", "cpu", "cuda:1")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "no device is called 'gpu'; expected auto, cpu"),
        ("cpu,cuda:2", "'cuda:2' asked for, but torch sees cuda:0 to cuda:1"),
        ("cpu,", "with commas between"),
        ("", "with commas between"),
        ("auto,cpu", "with commas between"),
    ],
)
def test_a_device_that_is_not_here_is_refused(pretend_gpus, name, words):
    pretend_gpus(2)
    with pytest.raises(ValueError, match=words):
        list_devices(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_cuda_is_refused_in_a_list_too():
    with pytest.raises(ValueError, match="torch sees no CUDA GPU; use 'auto'"):
        list_devices("cpu,cuda:0")


@pytest.mark.parametrize("workers", range(1, 8))
@pytest.mark.parametrize("count", range(1, 5))
def test_every_device_has_work_and_worker_i_takes_device_i_counted_round(count, workers):
    devices = [f"cuda:{number}" for number in range(count)]
    shares = [share_devices(devices, worker, workers) for worker in range(workers)]
    assert {device for share in shares for device in share} == set(devices)
    assert [share[0] for share in shares] == [devices[i % count] for i in range(workers)]
    assert sum(map(len, shares)) == max(count, workers)
