"""Artefacts: what goes wrong with a section and its slide: tears, folds, pen marks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from renal_utils.synthetic.packing import ring_normals
from renal_utils.synthetic.recipe import Recipe
from renal_utils.synthetic.terrain import Terrain
from renal_utils.synthetic.tuft import Glomerulus

# Optical densities (red, green, blue) of marker inks.
INKS = ((1.9, 1.2, 0.15), (0.25, 1.6, 1.3), (1.5, 0.35, 1.1), (1.6, 1.6, 1.5))


@dataclass(frozen=True)
class Artefacts:
    """Artefacts in slide pixels.

    Attributes:
        tears: Polygons where the glass shows through.
        folds: Polygons where the section lies double.
        pen: Paths of a pen's tip.
        pen_px: Width of its line.
        ink: Its optical density in red, green and blue.
    """

    tears: list[Float[np.ndarray, "_ 2"]]
    folds: list[Float[np.ndarray, "_ 2"]]
    pen: list[Float[np.ndarray, "_ 2"]]
    pen_px: float
    ink: tuple[float, float, float]


def place_artefacts(
    terrain: Terrain, glomeruli: list[Glomerulus], recipe: Recipe, rng: np.random.Generator
) -> Artefacts:
    """Place the artefacts that a recipe asks for; tears spare the glomeruli."""
    um = 1 / recipe.mpp
    tries = [_strip(terrain, (180.0, 480.0), (4.0, 14.0), um, rng) for _ in range(30 * recipe.tear)]
    tears = [tear for tear in tries if not any(_touch(tear, g) for g in glomeruli)][:2]
    folds = [_strip(terrain, (500.0, 1100.0), (9.0, 20.0), um, rng) for _ in range(recipe.fold)]
    pen = [_pen_path(terrain, um, rng)] if recipe.pen_mark else []
    return Artefacts(tears, folds, pen, 75.0 * um, INKS[rng.integers(len(INKS))])


def _touch(tear: Float[np.ndarray, "n 2"], glomerulus: Glomerulus) -> bool:
    reach = np.hypot(*(glomerulus.outline - glomerulus.xy).T).max()
    return bool(np.hypot(*(tear - glomerulus.xy).T).min() < 1.1 * reach)


def _strip(
    terrain: Terrain,
    length_um: tuple[float, float],
    half_um: tuple[float, float],
    um: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "n 2"]:
    """Return a long thin wavy shape, pointed at both ends, that starts within the tissue."""
    cells = np.argwhere(terrain.inside)
    row, column = cells[rng.integers(len(cells))]
    length, count = rng.uniform(*length_um) * um, 60
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.09, count))
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * length / count
    path = np.cumsum(steps, 0) - steps.sum(0) / 2 + np.array([column, row]) * terrain.cell
    t = np.linspace(0, 1, count)
    half = rng.uniform(*half_um) * um * np.sin(np.pi * t) ** 0.6
    half = half * (1 + 0.35 * np.sin(t * rng.uniform(14, 30) + 1) + rng.normal(0, 0.1, count))
    side = ring_normals(path[None])[0] * half[:, None]
    return np.vstack([path + side, (path - side)[::-1]])


def _pen_path(terrain: Terrain, um: float, rng: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """Return a stroke that runs along part of the tissue's edge, partly over it."""
    count = len(terrain.outline)
    first, length = int(rng.integers(count)), int(rng.integers(count // 9, count // 5))
    part = np.take(terrain.outline, np.arange(first, first + length, 6), axis=0, mode="wrap")
    middle = terrain.outline.mean(0)
    out = (part - middle) / np.hypot(*(part - middle).T)[:, None]
    shift = 40 + 45 * np.sin(np.linspace(0, rng.uniform(2, 5), len(part)) + rng.uniform(0, 6))
    return part + out * shift[:, None] * um
