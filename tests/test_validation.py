import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from renal_utils.labels import FOUR_TISSUES, GLOMERULI, IGNORE_ID
from renal_utils.validation import evaluate, validate
from tests.training_cases import Bce, Squares, TinyNet


def batches(size, *, count=5, dataset=Squares):
    return DataLoader(dataset(count, seed=1), batch_size=size)


def network(**options):
    torch.manual_seed(2)
    return TinyNet(**options)


def everything(loader):
    images = torch.cat([b["image"] for b in loader])
    return images, torch.cat([b["target"] for b in loader])


def test_scores_do_not_depend_on_the_batches():
    settings = {"label_set": GLOMERULI, "loss": Bce(), "precision": "32-true"}
    whole = validate(network(), batches(5), **settings)
    for size in (1, 2, 4):
        assert validate(network(), batches(size), **settings) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6])
def test_the_evaluation_is_that_of_counting_by_hand(threshold):
    model = network().train()
    table = evaluate(
        model, batches(2), label_set=GLOMERULI, threshold=threshold, precision="32-true"
    )
    images, target = everything(batches(5))
    known = target != IGNORE_ID
    with torch.no_grad():
        found = (model.eval()(images)[:, 0].sigmoid() > threshold)[known]
    truth = target[known] == 1
    both = int((found & truth).sum())
    row = table.loc["glomerulus"]
    assert row["dice"] == pytest.approx(2 * both / int(found.sum() + truth.sum()))
    assert row["recall"] == pytest.approx(both / int(truth.sum()))
    assert row["accuracy"] == pytest.approx(float((found == truth).float().mean()))
    assert list(table.index) == ["background", "glomerulus", "mean"]
    assert table.loc["mean", "dice"] == row["dice"]


def test_several_classes_are_told_by_the_greatest_logit():
    table = evaluate(
        network(num_classes=4), batches(2), label_set=FOUR_TISSUES, precision="32-true"
    )
    images, target = everything(batches(5))
    with torch.no_grad():
        found = network(num_classes=4).eval()(images).argmax(dim=1)
    known = target != IGNORE_ID
    for label in FOUR_TISSUES.classes:
        here, there = (found == label.id) & known, (target == label.id) & known
        both, either = int((here & there).sum()), int(here.sum() + there.sum())
        expected = 2 * both / either if either else float("nan")
        assert table.loc[label.name, "dice"] == pytest.approx(expected, nan_ok=True)


def test_evaluating_leaves_the_network_in_the_mode_it_had():
    model = network().train()
    evaluate(model, batches(5), label_set=GLOMERULI)
    assert model.training and model.layers[2].training


class Supervised(nn.Module):
    """Gives several logits; those that count are called so."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        logits = self.network(images)
        return type("Result", (), {"logits": logits, "deep": logits[:, :, ::2, ::2]})


def test_a_result_with_several_logits_is_scored_by_the_one_that_counts():
    settings = {"label_set": GLOMERULI, "precision": "32-true"}
    plain = evaluate(network(), batches(5), **settings)
    assert evaluate(Supervised(network()), batches(5), **settings).equals(plain)


@pytest.mark.parametrize("label_set", [GLOMERULI, FOUR_TISSUES])
def test_a_network_that_gives_nan_is_not_scored(label_set):
    model = network(num_classes=label_set.num_outputs)
    nn.init.constant_(model.layers[3].bias, float("nan"))
    with pytest.raises(ValueError, match=r"gives NaN.*earlier checkpoint"):
        evaluate(model, batches(5), label_set=label_set)
