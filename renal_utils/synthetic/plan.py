"""Plans: all that a drawn slide shows, as vectors, from a recipe and a seed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float

from renal_utils.synthetic.anatomy import Vessel, place_glomeruli, place_vessels
from renal_utils.synthetic.artefacts import Artefacts, place_artefacts
from renal_utils.synthetic.nuclei import NUCLEUS_NAMES, Nuclei, place_nuclei
from renal_utils.synthetic.packing import ring_area
from renal_utils.synthetic.recipe import Recipe
from renal_utils.synthetic.terrain import Terrain, survey_terrain
from renal_utils.synthetic.tubules import TUBULE_NAMES, Tubules, pack_tubules
from renal_utils.synthetic.tuft import Glomerulus

Corners = Float[np.ndarray, "N 2"]


@dataclass(frozen=True)
class SlidePlan:
    """A slide as vectors, in level-0 pixels; `raster.draw_region` paints any part of it.

    Attributes:
        recipe: What was asked for.
        seed: The seed it was planned with.
        terrain: Tissue edge, cortex, rays, fibrosis.
        glomeruli: In the order of their ids, from 1.
        vessels: Arteries, arterioles, veins.
        tubules: Profiles of all tubules.
        junctions: Points where three tubules meet; small capillaries lie there.
        nuclei: Nuclei; the id of row i is i + 1.
        artefacts: Pen marks, folds, tears.
    """

    recipe: Recipe
    seed: int
    terrain: Terrain
    glomeruli: tuple[Glomerulus, ...]
    vessels: tuple[Vessel, ...]
    tubules: Tubules
    junctions: Float[np.ndarray, "J 2"]
    nuclei: Nuclei
    artefacts: Artefacts

    @cached_property
    def glomerulus_corners(self) -> tuple[Corners, Corners]:
        """Left top and right bottom corner of each glomerulus."""
        return _corners([g.outline for g in self.glomeruli])

    @cached_property
    def vessel_corners(self) -> tuple[Corners, Corners]:
        """Left top and right bottom corner of each vessel."""
        return _corners([vessel.outline for vessel in self.vessels])

    @property
    def size_px(self) -> tuple[int, int]:
        return self.recipe.size_px

    def objects(self) -> pd.DataFrame:
        """Return one row for each glomerulus, vessel and tubule.

        Columns: ``kind``, ``id`` (within its kind), ``x_l0``, ``y_l0`` (middle), ``area_um2`` of
        the outline, ``sclerosed`` (glomeruli only, else False).
        """
        rows = [
            ("glomerulus", g.id, *g.outline.mean(0), ring_area(g.outline), g.sclerosed)
            for g in self.glomeruli
        ]
        rows += [
            (v.kind, i + 1, *v.outline.mean(0), ring_area(v.outline), False)
            for i, v in enumerate(self.vessels)
        ]
        names = [f"{TUBULE_NAMES[kind]}_tubule" for kind in self.tubules.kind]
        middles = self.tubules.rings.mean(1)
        rows += [
            (name, i + 1, *middles[i], ring_area(self.tubules.rings[i]), False)
            for i, name in enumerate(names)
        ]
        columns = ["kind", "id", "x_l0", "y_l0", "area_um2", "sclerosed"]
        table = pd.DataFrame(rows, columns=columns)
        table["area_um2"] *= self.recipe.mpp**2
        return table

    def glomerulus_table(self) -> pd.DataFrame:
        """Return one row for each glomerulus, with its parts.

        Columns: ``id``, ``sclerosed``, ``crescent`` (whether it has one), and the areas within the
        outlines of the capsule, the tuft and the crescent: ``area_um2``, ``tuft_um2``,
        ``crescent_um2``. A sclerosed one's tuft is its scar.
        """
        rows = [
            (
                g.id,
                g.sclerosed,
                g.crescent is not None,
                ring_area(g.outline),
                ring_area(g.tuft),
                ring_area(g.crescent.outline) if g.crescent is not None else 0.0,
            )
            for g in self.glomeruli
        ]
        areas = ["area_um2", "tuft_um2", "crescent_um2"]
        table = pd.DataFrame(rows, columns=["id", "sclerosed", "crescent", *areas])
        table[areas] *= self.recipe.mpp**2
        return table

    def nucleus_table(self) -> pd.DataFrame:
        """Return one row for each nucleus: ``id``, ``kind``, ``x_l0``, ``y_l0``."""
        names = np.array(NUCLEUS_NAMES)[self.nuclei.kind]
        x, y = self.nuclei.xy.T
        ids = np.arange(1, len(x) + 1)
        return pd.DataFrame({"id": ids, "kind": names, "x_l0": x, "y_l0": y})


def _corners(rings: list[Float[np.ndarray, "_ 2"]]) -> tuple[Corners, Corners]:
    ends = [[ring.min(0) for ring in rings], [ring.max(0) for ring in rings]]
    low, high = np.array(ends, float).reshape(2, -1, 2)
    return low, high


def plan_slide(recipe: Recipe, seed: int) -> SlidePlan:
    """Plan a slide; the same recipe and seed give the same plan.

    Args:
        recipe: What to draw.
        seed: Not negative.
    """
    if seed < 0:
        raise ValueError(f"the seed must not be negative, but is {seed}")
    rngs = [np.random.default_rng([seed, part]) for part in range(6)]
    terrain = survey_terrain(recipe, rngs[0])
    glomeruli = place_glomeruli(terrain, recipe, rngs[1])
    vessels = place_vessels(terrain, glomeruli, recipe, rngs[2])
    tubules, junctions = pack_tubules(terrain, glomeruli, vessels, recipe, rngs[3])
    nuclei = place_nuclei(
        terrain, glomeruli, vessels, tubules, junctions, recipe=recipe, rng=rngs[4]
    )
    artefacts = place_artefacts(terrain, glomeruli, recipe, rngs[5])
    return SlidePlan(
        recipe,
        seed,
        terrain,
        tuple(glomeruli),
        tuple(vessels),
        tubules,
        junctions,
        nuclei,
        artefacts,
    )
