"""Networks and plans that stitching refuses, with a remedy."""

import pytest
import torch
from stitching_cases import (
    identity,
    make_slide,
    plan_of,
    stitch,
)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda images: identity(images)[..., ::2], "patch size"),
        (lambda images: torch.cat([identity(images)] * 2, 1), "1 channels"),
        (lambda images: identity(images) * float("nan"), "NaN"),
        (lambda images: identity(images) * 20 - 10, "logits"),
    ],
)
def test_what_a_broken_network_gives_stops_the_run_with_a_remedy(tmp_path, network, words):
    path = make_slide(tmp_path, (150, 140))
    with pytest.raises(ValueError, match=words) as caught:
        stitch(path, tmp_path / "out", network)
    assert path.name in str(caught.value)
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"mpp": 1.0},
        {"downsample": None},
        {"stride_px": 65},
        {"batch_size": 0},
        {"window": "triangle"},
        {"min_tissue": 1.0},
        {"min_object_px": 3, "min_object_um2": 3},
        {"downsample": None, "mpp": 5000.0},
        {"downsample": 0},
        {"min_object_px": -1},
        {"min_object_um2": float("nan")},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(settings):
    with pytest.raises(ValueError):
        plan_of(**settings)


@pytest.mark.parametrize("name", ["min_object_px", "min_object_um2"])
@pytest.mark.parametrize("least", [-1, float("nan"), float("inf")])
def test_a_least_object_that_makes_no_sense_is_refused_by_its_name(name, least):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, not {least}"):
        plan_of(**{name: least})
    assert plan_of(**{name: 0}).smallest_object_px(0.5) == 0
