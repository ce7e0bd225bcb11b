"""Donors of the drawn archive: who they are, and the files that one donor's slide fills."""

import csv
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from PIL import Image
from shapely.geometry import Polygon

from renal_utils.geometry import Box, grid_boxes
from renal_utils.polygon_files import write_geojson
from renal_utils.polygons import PolygonObject, mask_to_polygons
from renal_utils.rle import encode_rle
from renal_utils.slide_writing import write_pyramid
from renal_utils.synthetic import (
    GROUPS,
    DrawnRegion,
    Recipe,
    SlidePlan,
    donor_recipe,
    draw_region,
    plan_slide,
)

PATCH_PX = 2048
JPEG_QUALITY = 85
_MIN_TISSUE = 0.2
_CASES = {"normal": ("02", 11), "56Nx": ("12", 116), "DN": ("11", 356), "NEP25": ("08", 368)}
_TABLE = "HuBMAP-20-dataset_information.csv"


@dataclass(frozen=True)
class Donor:
    """One donor and the slide drawn of it.

    Attributes:
        image_id: Name of the slide in HuBMAP's layout, nine hexadecimal digits.
        patient: Number of the person in HuBMAP's table; the donor of records.
        case: Name of the animal in the KPIs layout, spelt as there.
        group: Disease group.
        split: Split in the KPIs layout.
        seed: Seed of the slide.
        recipe: What is drawn.
        traits: Further columns of HuBMAP's table.
    """

    image_id: str
    patient: str
    case: str
    group: str
    split: str
    seed: int
    recipe: Recipe
    traits: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the donor as plain values, for JSON."""
        return vars(self) | {"recipe": self.recipe.to_dict()}


def list_donors(seed: int, count: int, slide_px: int) -> list[Donor]:
    """Return the donors of an archive: groups take turns; every second of a group is held out.

    Raises:
        ValueError: If the seed is negative or the slide too small for its glomeruli.
    """
    if seed < 0:
        raise ValueError(f"the seed must not be negative, but is {seed}")
    return [_make_donor(seed, number, slide_px) for number in range(count)]


def _make_donor(seed: int, number: int, slide_px: int) -> Donor:
    rng = np.random.default_rng([seed, number])
    group, turn = GROUPS[number % len(GROUPS)], number // len(GROUPS)
    split = ("val", "test")[number % 2] if turn % 2 else "train"
    recipe = donor_recipe(group, rng, size_px=(slide_px, slide_px))
    digest = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
    prefix, first = _CASES[group]
    mark = "_" if split == "train" else "-"
    case = f"{prefix}{mark}{first + 57 * turn}" + (f"{mark}01" if group == "NEP25" else "")
    slide_seed = int(rng.integers(2**31))
    patient = str(60000 + int(digest[9:13], 16) % 9973 + 10000 * (number % 3))
    return Donor(
        digest[:9], patient, case, group, split, slide_seed, recipe, _make_traits(recipe, rng)
    )


def _make_traits(recipe: Recipe, rng: np.random.Generator) -> dict[str, str]:
    height, bmi = rng.normal(170, 9), rng.uniform(20, 36)
    cortex = round(100 * recipe.cortex_fraction)
    return {
        "race": "not stated",
        "ethnicity": "not stated",
        "sex": str(rng.choice(["Female", "Male"])),
        "age": str(int(rng.integers(31, 79))),
        "weight_kilograms": f"{bmi * (height / 100) ** 2:.1f}",
        "height_centimeters": f"{height:.1f}",
        "bmi_kg/m^2": f"{bmi:.1f}",
        "laterality": str(rng.choice(["Left", "Right"])),
        "percent_cortex": str(cortex),
        "percent_medulla": str(100 - cortex),
    }


def write_donor(folder: Path, donor: Donor) -> None:
    """Draw one donor's slide and write all its files under the archive's folder."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        plan = plan_slide(donor.recipe, donor.seed)
        drawn = draw_region(plan, Box(0, 0, *plan.size_px))
        _write_hubmap(folder / "hubmap" / "train", donor, plan, drawn)
        _write_truth(folder, donor, plan, drawn)
        group_folder = folder / "kpis" / donor.split / donor.group
        _write_kpis(group_folder, donor, drawn)
        slide = folder / "hubmap" / "train" / f"{donor.image_id}.tiff"
        shutil.copyfile(slide, group_folder / f"{donor.case}_wsi.tiff")
    finally:
        cv2.setNumThreads(threads)


def _write_hubmap(folder: Path, donor: Donor, plan: SlidePlan, drawn: DrawnRegion) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_pyramid(
        folder / f"{donor.image_id}.tiff",
        drawn.rgb,
        size_px=plan.size_px,
        mpp=donor.recipe.mpp,
        quality=JPEG_QUALITY,
    )
    (folder / f"{donor.image_id}.rle").write_text(encode_rle(drawn.glomeruli > 0))
    objects = [
        PolygonObject("glomerulus", Polygon(np.round(g.outline, 2)), {"id": f"glomerulus-{g.id}"})
        for g in plan.glomeruli
    ]
    write_geojson(folder / f"{donor.image_id}.json", objects)
    write_geojson(folder / f"{donor.image_id}-anatomical-structure.json", _trace_anatomy(plan))


def _trace_anatomy(plan: SlidePlan) -> list[PolygonObject]:
    """Return cortex and medulla as outlines within the tissue."""
    terrain = plan.terrain
    tissue = Polygon(terrain.outline).buffer(0)
    found = []
    for label, mask in (("Cortex", terrain.cortex), ("Medulla", ~terrain.cortex)):
        for polygon in mask_to_polygons(mask):
            scaled = shapely.transform(polygon, lambda xy: xy * terrain.cell)
            part = scaled.simplify(terrain.cell).buffer(0).intersection(tissue)
            for piece in shapely.get_parts(part):
                if isinstance(piece, Polygon) and piece.area > (10 * terrain.cell) ** 2:
                    rounded = shapely.transform(piece, lambda xy: np.round(xy, 1))
                    found.append(PolygonObject(label, rounded, {}))
    return found


def _write_truth(folder: Path, donor: Donor, plan: SlidePlan, drawn: DrawnRegion) -> None:
    options: dict[str, Any] = {"size_px": plan.size_px, "mpp": donor.recipe.mpp, "kind": "labels"}
    for name in ("tissues", "nuclei"):
        (folder / name).mkdir(exist_ok=True)
    write_pyramid(folder / "tissues" / f"{donor.image_id}.tiff", drawn.tissues, **options)
    nuclei = drawn.nuclei.view(np.uint32)
    write_pyramid(folder / "nuclei" / f"{donor.image_id}.tiff", nuclei, **options)
    tables = {"tissues": plan.objects(), "nuclei": plan.nucleus_table()}
    for name, table in tables.items():
        table.round(1).to_csv(folder / name / f"{donor.image_id}.csv", index=False)


def _write_kpis(folder: Path, donor: Donor, drawn: DrawnRegion) -> None:
    """Write the patches of 2048 pixels with their JPEG masks, and the slide's mask."""
    mask = np.where(drawn.glomeruli > 0, 255, 0).astype(np.uint8)
    height, width = mask.shape
    for kind in ("img", "mask"):
        (folder / donor.case / kind).mkdir(parents=True, exist_ok=True)
    for box in grid_boxes((width, height), PATCH_PX, PATCH_PX):
        image = drawn.rgb[box.slices]
        if (image.min(-1) < 225).mean() < _MIN_TISSUE or image.shape[:2] != (PATCH_PX, PATCH_PX):
            continue
        stem = f"{donor.case}_{box.x}_{box.y}"
        for kind, pixels in (("img", image), ("mask", mask[box.slices])):
            path = folder / donor.case / kind / f"{stem}_{kind}.jpg"
            Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)
    write_pyramid(
        folder / f"{donor.case}_mask.tiff",
        mask,
        size_px=(width, height),
        mpp=donor.recipe.mpp,
        kind="labels",
    )


def write_tables(folder: Path, donors: list[Donor]) -> None:
    """Write HuBMAP's two tables from what each donor left behind."""
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "encoding"])
        for donor in donors:
            runs = folder / "train" / f"{donor.image_id}.rle"
            writer.writerow([donor.image_id, runs.read_text()])
            runs.unlink()
    rows = [_table_row(donor) for donor in donors]
    with (folder / _TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def _table_row(donor: Donor) -> dict[str, str]:
    width, height = donor.recipe.size_px
    return {
        "image_file": f"{donor.image_id}.tiff",
        "width_pixels": str(width),
        "height_pixels": str(height),
        "anatomical_structures_segmention_file": f"{donor.image_id}-anatomical-structure.json",
        "glomerulus_segmentation_file": f"{donor.image_id}.json",
        "patient_number": donor.patient,
        **donor.traits,
    }
