"""What networks cost, against counts by hand and the papers' figures."""

import sys

import pandas as pd
import pytest
import torch
from torch import nn

from renal_utils.cli import main
from renal_utils.models.build import MODELS, build_model
from renal_utils.models.costs import (
    NOT_COUNTED,
    PUBLISHED,
    cost_table,
    count_macs,
    macs_as_lsu_net,
    measure_latency,
    measure_training_memory,
)


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
        nn.ConvTranspose2d(8, 1, 2, stride=2),
    )


def test_true_macs_of_a_small_network_are_those_counted_by_hand():
    pixels = 16 * 16
    by_hand = pixels * 8 * 27 + pixels // 4 * 8 * 18 + pixels // 4 * 8 * 4
    assert count_macs(small_network(), size_px=16) == by_hand


def test_macs_of_the_lsu_net_paper_count_biases_norms_relus_and_pools_but_no_way_up():
    pixels = 16 * 16
    first = pixels * 8 * (27 + 1) + 2 * 8 * pixels + 8 * pixels + 8 * pixels
    assert macs_as_lsu_net(small_network(), size_px=16) == first + pixels // 4 * 8 * 18


def test_counting_leaves_modes_and_hooks_as_they_were():
    model = small_network().train()
    model[1].eval()
    macs_as_lsu_net(model, size_px=16)
    assert [part.training for part in model] == [True, False, True, True, True, True]
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("name", [n for n, p in PUBLISHED.items() if p.gmacs is not None])
def test_the_lsu_net_papers_figures_come_out(name):
    row = cost_table([name]).iloc[0]
    assert row["gmacs_lsu"] == pytest.approx(PUBLISHED[name].gmacs, rel=0.011)
    assert row["parameters"] / 1e6 == pytest.approx(PUBLISHED[name].parameters_m, abs=0.006)


def test_macs_grow_with_the_area():
    with torch.device("meta"):
        model = build_model("unet", base_width=4)
    assert count_macs(model, size_px=128) == 4 * count_macs(model, size_px=64)


def test_the_command_prints_and_writes_every_network(tmp_path, capsys):
    path = tmp_path / "costs.csv"
    assert main(["models", "--csv", str(path)]) == 0
    printed, table = capsys.readouterr().out, pd.read_csv(path)
    assert list(table["model"]) == list(MODELS)
    assert set(table["model"][table["gmacs"].isna()]) == set(NOT_COUNTED)
    assert "34,527,236" in printed and "LSU-Net paper, table 1" in printed


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="no model 'unett'"):
        cost_table(["unett"])


def test_a_detector_has_parameters_but_no_multiplications_and_says_why():
    row = cost_table(["mask_rcnn"]).iloc[0]
    assert row["parameters"] == 44_237_915
    assert pd.isna(row["gmacs"]) and pd.isna(row["gmacs_lsu"])
    assert "how many objects it proposes" in row["source"]


def test_latency_has_a_middle_and_a_spread():
    found = measure_latency("unext", size_px=32, repeats=3)
    assert found["latency_ms"] > 0 and found["latency_spread_ms"] >= 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is not measured on Windows")
def test_training_holds_at_least_weights_gradients_and_moments():
    assert measure_training_memory("rolling_unet_s", size_px=64) > 4 * 4 * 1_783_185
