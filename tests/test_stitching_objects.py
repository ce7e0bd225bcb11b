"""The objects of a stitched slide: outlined, measured and counted."""

import csv

import numpy as np
import pytest
import torch
from scipy import ndimage
from stitching_cases import (
    identity,
    make_slide,
    plan_of,
    stitch,
    whole,
)

from renal_utils.labels import FOUR_TISSUES
from renal_utils.polygon_files import read_polygons


def test_objects_are_those_of_the_label_map_in_level_0_pixels(tmp_path):
    path = make_slide(tmp_path, (420, 390), seed=3)
    plan = plan_of(downsample=2.0, min_object_um2=30)
    result = stitch(path, tmp_path / "out", plan=plan, threshold=0.6)
    ids, count = ndimage.label(whole(path, 2.0) > 0.6 * 255, np.ones((3, 3)))
    areas = ndimage.sum_labels(ids > 0, ids, range(1, count + 1))
    kept = sorted(areas[areas >= 30])
    with result.csv_path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(kept) > 5
    assert sorted(int(row["area_px"]) for row in rows) == kept
    assert sorted(float(row["area_um2"]) for row in rows) == kept  # a working pixel is 1 um wide
    polygons = read_polygons(result.geojson_path)
    assert [p.polygon.area for p in polygons] == [4 * int(row["area_px"]) for row in rows]
    assert {p.label for p in polygons} == {"glomerulus"}
    assert polygons[0].properties["measurements"]["Area µm^2"] == float(rows[0]["area_um2"])
    for polygon, row in zip(polygons, rows, strict=True):
        left, top, right, bottom = polygon.polygon.bounds
        assert [left, top] == [float(row["left_l0"]), float(row["top_l0"])]
        assert [right - left, bottom - top] == [float(row["width_l0"]), float(row["height_l0"])]
        assert left < float(row["x_l0"]) < right and top < float(row["y_l0"]) < bottom
        assert 0.6 < float(row["mean_probability"]) <= 1
    assert result.counts == {"glomerulus": len(kept)}
    assert result.summary["classes"]["glomerulus"]["objects_area_px"] == sum(kept)
    assert result.summary["classes"]["glomerulus"]["pixels"] == areas.sum()


def test_only_objects_of_the_classes_asked_for_are_counted(tmp_path):
    path = make_slide(tmp_path, (150, 140))

    def network(images):
        red = identity(images)
        return torch.cat([red, 1 - red, red * 0, red * 0], 1)

    plan = plan_of(object_classes=("interstitial_fibrosis",))
    result = stitch(path, tmp_path / "out", network, label_set=FOUR_TISSUES, plan=plan)
    assert {p.label for p in read_polygons(result.geojson_path)} == {"interstitial_fibrosis"}
    assert result.counts["interstitial_fibrosis"] > 0 == result.counts["normal_tubule"]
    assert result.summary["classes"]["normal_tubule"]["pixels"] > 0
    with pytest.raises(ValueError, match="no class 'nucleus'"):
        stitch(path, tmp_path / "other", plan=plan_of(object_classes=("nucleus",)))


def test_without_a_scale_areas_are_in_pixels_only(tmp_path):
    path = make_slide(tmp_path, (150, 140), mpp=None)
    result = stitch(path, tmp_path / "out", plan=plan_of(min_object_px=10))
    assert result.summary["classes"]["glomerulus"]["pixels_area_um2"] is None
    polygon = read_polygons(result.geojson_path)[0]
    assert polygon.properties["measurements"]["Area px"] == polygon.polygon.area
    with pytest.raises(ValueError, match="min_object_px"):
        stitch(path, tmp_path / "other", plan=plan_of(min_object_um2=10))
    with pytest.raises(ValueError, match="mpp"):
        stitch(path, tmp_path / "other", plan=plan_of(downsample=None, mpp=1.0))
    assert not (tmp_path / "other").exists()
