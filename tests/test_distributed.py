from unittest.mock import create_autospec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from renal_utils.distributed import RankBatches, deal_batches, leave_group, make_fabric

BATCHES = some.lists(some.lists(some.integers(0, 99), min_size=1, max_size=9), max_size=5)


def parts(batches, world_size, *, even):
    ranks = range(world_size)
    return [list(RankBatches(batches, rank=r, world_size=world_size, even=even)) for r in ranks]


@given(BATCHES, some.integers(1, 4))
def test_scores_see_every_patch_once(batches, world_size):
    dealt = [item for rank in parts(batches, world_size, even=False) for b in rank for item in b]
    assert sorted(dealt) == sorted(item for batch in batches for item in batch)


@given(BATCHES, some.integers(1, 4))
def test_training_gives_every_rank_as_many_steps_of_as_many_patches(batches, world_size):
    ranks = parts(batches, world_size, even=True)
    sizes = [[len(batch) for batch in rank] for rank in ranks]
    assert sizes == [sizes[0]] * world_size
    for step, batch in enumerate(batches):
        together = [item for rank in ranks for item in rank[step]]
        assert set(together) == set(batch)
        assert len(together) < len(batch) + world_size


def of_two_ranks(rank):
    return create_autospec(Fabric, instance=True, world_size=2, global_rank=rank)


def test_a_loader_is_dealt_with_its_settings():
    whole = DataLoader(list(range(10)), batch_size=4)
    seen = [
        [batch.tolist() for batch in deal_batches(whole, of_two_ranks(rank), even=True)]
        for rank in (0, 1)
    ]
    assert seen == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]


def test_one_process_keeps_its_loader():
    loader = [{"image": None}]
    assert deal_batches(loader, make_fabric("cpu", "32-true"), even=True) is loader


def test_what_cannot_be_dealt_is_refused():
    with pytest.raises(ValueError, match=r"torch DataLoader.*not a list.*make_loader"):
        deal_batches([1, 2], of_two_ranks(0), even=True)


def test_a_process_leaves_its_group_and_may_be_told_so_twice(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    for _ in range(2):
        leave_group()
        assert not torch.distributed.is_initialized()
