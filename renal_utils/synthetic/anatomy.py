"""Anatomy: where the glomeruli and vessels of a slide lie, as vectors in slide pixels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from renal_utils.synthetic.noise import sample_field
from renal_utils.synthetic.packing import round_rings, wobbly_ring
from renal_utils.synthetic.recipe import Recipe
from renal_utils.synthetic.terrain import FIELD_CELL_UM, Terrain
from renal_utils.synthetic.tuft import Glomerulus, make_glomerulus


@dataclass(frozen=True)
class Vessel:
    """An artery, arteriole or vein: rings in slide pixels, insides on their left."""

    kind: str
    outline: Float[np.ndarray, "n 2"]
    lumen: Float[np.ndarray, "n 2"]


def place_glomeruli(terrain: Terrain, recipe: Recipe, rng: np.random.Generator) -> list[Glomerulus]:
    """Scatter glomeruli over the cortex, away from rays and each other; draw up each."""
    radius_px = recipe.glomerulus_um / 2 / recipe.mpp
    room = terrain.cortex & terrain.inside & ~terrain.ray
    area_mm2 = (terrain.cortex & terrain.inside).sum() * (FIELD_CELL_UM / 1000) ** 2
    wanted = max(1, round(area_mm2 * recipe.glomeruli_per_mm2)) * (recipe.glomeruli_per_mm2 > 0)
    cells = np.argwhere(room)
    rng.shuffle(cells)
    kept: list[tuple[float, float, float]] = []
    edge = terrain.outline
    for row, column in cells[:4000]:
        if len(kept) >= wanted:
            break
        size = radius_px * np.exp(np.clip(rng.normal(), -2.2, 2.2) * recipe.glomerulus_spread)
        x, y = (np.array([column, row]) + rng.random(2)) * terrain.cell
        if np.hypot(*(edge - (x, y)).T).min() < 1.12 * size + 30 / recipe.mpp:
            continue
        if all(np.hypot(x - a, y - b) > 1.08 * (size + c) + 12 / recipe.mpp for a, b, c in kept):
            kept.append((float(x), float(y), float(size)))
    third = rng.spawn(1)[0]  # leaves ``rng`` as it is
    sclerosed = _pick_sclerosed(kept, terrain, recipe, rng)
    crescents = _pick_crescents(sclerosed, recipe.crescent_fraction, third)
    return [
        make_glomerulus(
            i + 1,
            (x, y),
            size * (0.72 if dead else 1.0),
            sclerosed=dead,
            crescent=crescent,
            recipe=recipe,
            rng=np.random.default_rng(rng.integers(2**63)),
        )
        for i, ((x, y, size), dead, crescent) in enumerate(
            zip(kept, sclerosed, crescents, strict=True)
        )
    ]


def _pick_crescents(sclerosed: list[bool], share: float, rng: np.random.Generator) -> list[bool]:
    """Choose which glomeruli have a crescent: a share of those that are not sclerosed."""
    alive = np.flatnonzero(~np.array(sclerosed, bool))
    count = share * len(alive)
    picked = rng.permutation(alive)[: int(count) + int(rng.random() < count % 1)]
    return np.isin(np.arange(len(sclerosed)), picked).tolist()


def _pick_sclerosed(
    kept: list[tuple[float, float, float]],
    terrain: Terrain,
    recipe: Recipe,
    rng: np.random.Generator,
) -> list[bool]:
    """Choose which glomeruli are sclerosed: the recipe's share, sooner where it is fibrotic."""
    if not kept:
        return []
    places = np.array(kept)[:, :2]
    score = sample_field(terrain.fibrosis, places, terrain.cell) + rng.normal(0, 0.35, len(kept))
    count = recipe.sclerosed_fraction * len(kept)
    count = int(count) + int(rng.random() < count % 1)
    dead = np.zeros(len(kept), bool)
    dead[np.argsort(-score)[:count]] = True
    return dead.tolist()


def place_vessels(
    terrain: Terrain,
    glomeruli: list[Glomerulus],
    recipe: Recipe,
    rng: np.random.Generator,
) -> list[Vessel]:
    """Place arteries with their veins near the rays' ends, and arterioles by the glomeruli."""
    um = 1 / recipe.mpp
    taken = [(*g.xy, g.radius) for g in glomeruli]
    vessels: list[Vessel] = []

    def place(kind: str, near: np.ndarray, reach: float, radius: float) -> None:
        for _ in range(40):
            turn, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1) * reach
            x, y = near + np.array([np.cos(turn), np.sin(turn)]) * out
            clear = np.hypot(*(terrain.outline - (x, y)).T).min() > radius + 25 * um
            clear &= bool(sample_field(terrain.inside, np.array([x, y]), terrain.cell))
            if clear and all(np.hypot(x - a, y - b) > radius + c + 3 * um for a, b, c in taken):
                taken.append((float(x), float(y), radius))
                vessels.append(make_vessel(kind, np.array([x, y]), radius, recipe, rng))
                return

    cells = np.argwhere(terrain.cortex & terrain.inside)
    area_mm2 = len(cells) * (FIELD_CELL_UM / 1000) ** 2
    for i in range(max(2, round(1.6 * area_mm2)) if len(cells) else 0):
        row, column = cells[rng.integers(len(cells))]
        near = np.array([column, row]) * terrain.cell
        radius = rng.uniform(55, 90) * um if i == 0 else rng.uniform(22, 46) * um
        place("artery", near, 500 * um, radius)
        if rng.random() < 0.7:
            place("vein", near, 320 * um, radius * rng.uniform(0.9, 1.7))
    for g in glomeruli:
        for _ in range(int(rng.integers(0, 3))):
            reach = g.radius + 24 * um
            place("arteriole", np.array(g.xy), reach, rng.uniform(9, 15) * um)
    return vessels


def make_vessel(
    kind: str,
    xy: Float[np.ndarray, " 2"],
    radius: float,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Vessel:
    """Draw up one vessel, cut somewhat aslant."""
    um = 1 / recipe.mpp
    aslant = np.array([1.0, rng.uniform(0.62, 1.0)])
    turn = rng.uniform(0, np.pi)
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    wobble = {"vein": 0.1, "artery": 0.04, "arteriole": 0.06}[kind]
    ring = wobbly_ring(radius, rng, wobble=wobble)
    share = rng.uniform(0.36, 0.5) if kind == "artery" else rng.uniform(0.44, 0.58)
    wall = 2.2 * um if kind == "vein" else share * radius * min(1.5, recipe.wall_scale**0.5)
    inner = ring * max(0.15, 1 - wall / radius)
    if kind == "artery":
        angle = np.linspace(0, 2 * np.pi, len(inner), endpoint=False)
        folds = np.cos(round(radius * recipe.mpp / 3.2) * angle + rng.normal(0, 0.5, len(angle)))
        inner = inner * (1 + 0.05 * folds[:, None])
        inner = round_rings(inner[None], 0.06 * radius)[0]
    return Vessel(kind, ring * aslant @ rotate + xy, inner * aslant @ rotate + xy)
