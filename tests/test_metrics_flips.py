from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from renal_utils.labels import GLOMERULI, IGNORE_ID
from renal_utils.metrics.flips import FlipCounter, count_flips
from renal_utils.training import TrainingPlan, fit
from renal_utils.validation import FlipWatch
from tests.training_cases import Bce, Squares, TinyNet, tiny_info


def test_flips_are_counted_where_the_truth_is_known():
    before = torch.tensor([[0, 1, 1], [0, 0, 2]])
    after = torch.tensor([[1, 1, 0], [0, 1, 1]])
    target = torch.tensor([[0, 0, 1], [1, IGNORE_ID, 0]])
    assert count_flips(before, after, target) == (3, 5)
    assert count_flips(after, before, target) == (3, 5)
    assert count_flips(before, before, target) == (0, 5)


def test_a_counter_pools_the_batches_of_a_pass_as_numpy_would():
    rng = np.random.default_rng(0)
    passes = rng.integers(0, 3, (3, 5, 4, 4))
    target = np.where(rng.random((5, 4, 4)) < 0.2, IGNORE_ID, 0)
    counter, found = FlipCounter(), []
    for labels in passes:
        for start in (0, 2, 4):
            part = slice(start, start + 2)
            counter.update(torch.from_numpy(labels[part]), torch.from_numpy(target[part]))
        found.append(counter.finish())
    known = target != IGNORE_ID
    expected = [(a != b)[known].mean() for a, b in pairwise(passes)]
    assert found[0] is None
    assert found[1:] == pytest.approx(expected)


def test_other_batches_than_in_the_last_pass_are_refused():
    counter, batch = FlipCounter(), torch.zeros(2, 4, 4, dtype=torch.int64)
    counter.update(batch, batch)
    counter.update(batch, batch)
    counter.finish()
    with pytest.raises(ValueError, match="batch 0 of this pass is not of the shape"):
        counter.update(batch[:1], batch[:1])
    counter = FlipCounter()
    counter.update(batch, batch)
    counter.update(batch, batch)
    counter.finish()
    counter.update(batch, batch)
    with pytest.raises(ValueError, match="this pass had 1 batches, the last one 2"):
        counter.finish()


@pytest.mark.parametrize("rate", [1e-12, 0.02])
def test_a_watched_training_has_its_flips_in_the_history(tmp_path, rate):
    torch.manual_seed(0)
    train, val = (DataLoader(Squares(16), batch_size=4) for _ in range(2))
    plan = TrainingPlan(epochs=6, learning_rate=rate, weight_decay=0, monitor="val_loss")
    done = fit(TinyNet(), Bce(), train, val, plan=plan, label_set=GLOMERULI, folder=tmp_path,
               info=tiny_info(), progress=False, watch=FlipWatch(val))  # fmt: skip
    flips = done.frame()["val_flips"]
    assert np.isnan(flips[1])
    assert (flips[1:] > 0).any() == (rate > 1e-3)
    assert flips[1:].between(0, 1).all()
