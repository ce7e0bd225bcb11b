"""Recipes: the few numbers that say what a drawn slide shows.

Sizes are in micrometres, shares between 0 and 1. `donor_recipe` draws the recipe of one donor of
one disease group; the groups differ as those of the KPIs challenge do: 56Nx (five sixths of the
kidney removed: the remaining glomeruli grow, tubules widen, fibrosis follows), DN (diabetic:
mesangial expansion, large glomeruli, thick vessel walls), NEP25 (podocytes killed: collapse and
sclerosis of many glomeruli, fibrosis) and normal.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from renal_utils.geometry import check_mpp

GROUPS = ("normal", "56Nx", "DN", "NEP25")

# Allowed values of the numeric fields, ends included.
RANGES: dict[str, tuple[float, float]] = {
    "mpp": (0.2, 2.0),
    "cortex_fraction": (0.2, 1.0),
    "glomerulus_um": (60.0, 350.0),
    "glomerulus_spread": (0.0, 0.4),
    "glomeruli_per_mm2": (0.0, 25.0),
    "sclerosed_fraction": (0.0, 1.0),
    "mesangium": (0.0, 1.0),
    "fibrosis": (0.0, 0.9),
    "tubule_scale": (0.5, 2.0),
    "wall_scale": (0.5, 2.5),
    "haematoxylin": (0.2, 3.0),
    "pas": (0.2, 3.0),
    "hue": (-1.0, 1.0),
    "haze": (0.0, 1.0),
    "blur_um": (0.0, 5.0),
    "noise": (0.0, 30.0),
    "bowman": (0.0, 2.5),
    "collapsed_fraction": (0.0, 1.0),
    "irregularity": (0.0, 3.0),
    "capsule_scale": (0.3, 4.0),
    "tuft_stain": (0.4, 2.5),
    "epithelium": (0.3, 1.5),
    "tubule_contrast": (0.0, 4.0),
    "interstitium": (0.3, 2.5),
    "softness": (0.0, 1.0),
    "loop_scale": (0.5, 3.0),
    "patchiness": (0.0, 1.0),
    "crescent_fraction": (0.0, 1.0),
    "blur_patches": (0.0, 0.9),
}


@dataclass(frozen=True)
class Recipe:
    """What one drawn slide shows.

    Attributes:
        size_px: Width and height, level-0 pixels.
        mpp: Microns per pixel.
        group: Disease group, one of ``GROUPS``; a name only, the numbers below decide.
        cortex_fraction: Share of the tissue's depth, from the capsule, that is cortex.
        glomerulus_um: Mean diameter of a glomerulus that is not sclerosed.
        glomerulus_spread: Coefficient of variation of that diameter.
        glomeruli_per_mm2: Glomeruli per square millimetre of cortex, as far as they fit.
        sclerosed_fraction: Share of glomeruli that are globally sclerosed.
        mesangium: Share of the tuft that is mesangium; about 0.2 is normal.
        fibrosis: Share of the cortex with widened, fibrotic interstitium.
        tubule_scale: Factor on tubule diameters.
        wall_scale: Factor on the thickness of vessel walls and basement membranes.
        haematoxylin: Strength of the nuclear stain.
        pas: Strength of the periodic acid-Schiff stain.
        hue: Shift of both stains, -1 (redder) to 1 (bluer).
        haze: How far lumens are veiled, as in thick frozen sections; 0 in thin paraffin sections.
        gain: Scanner's factor on red, green and blue, 0.8 to 1.1.
        blur_um: Standard deviation of the scanner's blur.
        noise: Standard deviation of the camera's noise, grey levels.
        pen_mark: Whether somebody marked the slide with a pen.
        fold: Whether the section is folded somewhere.
        tear: Whether the section is torn somewhere.
        bowman: Factor on the width of Bowman's space; 0 where tufts fill their capsules.
        collapsed_fraction: Share of tufts that shrank to one side of their capsule.
        irregularity: Factor on how far glomeruli are from round; above 1 they are oval too.
        capsule_scale: Factor on the thickness of Bowman's capsule.
        tuft_stain: Factor on both stains of glomeruli, nuclei apart.
        epithelium: Factor on the height of tubules' walls: the lower, the wider the lumen.
        tubule_contrast: Factor on how much tubules differ in stain from each other.
        interstitium: Factor on the stains of the interstitium, nuclei apart.
        softness: How thick the section looks: walls fade into lumens, lumens are filled alike,
            nuclei are veiled.
        loop_scale: Factor on the size of capillary loops and patches of mesangium.
        patchiness: How much the stain changes from patch to patch, some of glomerular size.
        crescent_fraction: Share of the glomeruli that are not sclerosed that have a crescent.
        blur_patches: Share of the slide that is out of focus, in soft patches; the truth is not.

    The fields from ``bowman`` to ``patchiness`` are for domain randomisation. The defaults of all
    from there on change nothing.

    Raises:
        ValueError: If a value lies outside its range (``RANGES``), or the slide is smaller than two
            of its glomeruli.
    """

    size_px: tuple[int, int] = (4096, 4096)
    mpp: float = 0.5
    group: str = "normal"
    cortex_fraction: float = 0.68
    glomerulus_um: float = 185.0
    glomerulus_spread: float = 0.1
    glomeruli_per_mm2: float = 7.0
    sclerosed_fraction: float = 0.04
    mesangium: float = 0.2
    fibrosis: float = 0.04
    tubule_scale: float = 1.0
    wall_scale: float = 1.0
    haematoxylin: float = 1.0
    pas: float = 1.0
    hue: float = 0.0
    haze: float = 0.1
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur_um: float = 0.4
    noise: float = 2.0
    pen_mark: bool = False
    fold: bool = False
    tear: bool = False
    bowman: float = 1.0
    collapsed_fraction: float = 0.0
    irregularity: float = 1.0
    capsule_scale: float = 1.0
    tuft_stain: float = 1.0
    epithelium: float = 1.0
    tubule_contrast: float = 1.0
    interstitium: float = 1.0
    softness: float = 0.0
    loop_scale: float = 1.0
    patchiness: float = 0.0
    crescent_fraction: float = 0.0
    blur_patches: float = 0.0

    def __post_init__(self) -> None:
        check_mpp(self.mpp, where="recipe")
        if self.group not in GROUPS:
            raise ValueError(f"recipe: group {self.group!r} is not one of {GROUPS}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not (np.isfinite(value) and low <= value <= high):
                raise ValueError(f"recipe: {name} must lie in {low} to {high}, not {value}")
        if any(not 0.8 <= g <= 1.1 for g in self.gain) or len(self.gain) != 3:
            raise ValueError(f"recipe: gain needs three factors in 0.8 to 1.1, not {self.gain}")
        smallest = int(np.ceil(2 * self.glomerulus_um / self.mpp))
        if min(self.size_px) < smallest or max(self.size_px) > 200_000:
            raise ValueError(
                f"recipe: size_px {self.size_px} must lie in {smallest} (two glomeruli of "
                f"{self.glomerulus_um} um at {self.mpp} um a pixel) to 200000 a side"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# Mean of each field that sets a group apart from normal, and its spread between donors.
_GROUP_MEANS: dict[str, dict[str, float]] = {
    "normal": {},
    "56Nx": {
        "glomerulus_um": 222.0,
        "tubule_scale": 1.22,
        "fibrosis": 0.2,
        "sclerosed_fraction": 0.15,
        "mesangium": 0.27,
    },
    "DN": {
        "glomerulus_um": 212.0,
        "mesangium": 0.5,
        "wall_scale": 1.6,
        "fibrosis": 0.14,
        "sclerosed_fraction": 0.12,
    },
    "NEP25": {
        "glomerulus_um": 178.0,
        "mesangium": 0.34,
        "fibrosis": 0.3,
        "sclerosed_fraction": 0.38,
        "tubule_scale": 1.08,
    },
}
_DONOR_SPREAD = {
    "cortex_fraction": 0.05,
    "glomerulus_um": 0.04,
    "glomeruli_per_mm2": 0.1,
    "mesangium": 0.1,
    "fibrosis": 0.2,
    "tubule_scale": 0.05,
    "haematoxylin": 0.14,
    "pas": 0.14,
    "blur_um": 0.15,
    "noise": 0.25,
}


def donor_recipe(group: str, rng: np.random.Generator, **fixed: Any) -> Recipe:
    """Return the recipe of one donor of a disease group.

    Args:
        group: One of ``GROUPS``.
        rng: Where the donor's own traits come from: anatomy, stain, scanner, artefacts.
        **fixed: Fields that override what is drawn, such as ``size_px`` and ``mpp``.

    Raises:
        ValueError: If the group is unknown, or a fixed value is out of range.
    """
    if group not in GROUPS:
        raise ValueError(f"group {group!r} is not one of {GROUPS}")
    values: dict[str, Any] = {f.name: f.default for f in fields(Recipe)}
    values |= {"group": group} | _GROUP_MEANS[group]
    for name, spread in _DONOR_SPREAD.items():
        factor = float(np.exp(np.clip(rng.normal(), -2, 2) * spread))
        values[name] = min(values[name] * factor, RANGES[name][1])
    values["hue"] = float(rng.uniform(-0.8, 0.8))
    values["gain"] = tuple(float(g) for g in 1 - rng.uniform(0, 0.03, 3))
    frozen = bool(rng.random() < 0.35)
    values["haze"] = float(rng.uniform(0.55, 1.0) if frozen else rng.uniform(0.0, 0.3))
    values["pas"] *= 1.2 if frozen else 1.0
    for name, chance in (("pen_mark", 0.3), ("fold", 0.35), ("tear", 0.4)):
        values[name] = bool(rng.random() < chance)
    return Recipe(**(values | fixed))


# Fields that domain randomisation draws, wider than donors differ; those of the second group are
# factors and scales, drawn evenly in their logarithm.
_RANDOM_EVEN = {
    "cortex_fraction": (0.65, 1.0),
    "glomerulus_spread": (0.08, 0.3),
    "sclerosed_fraction": (0.0, 0.25),
    "mesangium": (0.1, 0.42),
    "fibrosis": (0.0, 0.6),
    "hue": (-1.0, 1.0),
    "haze": (0.0, 1.0),
    "noise": (0.0, 8.0),
    "bowman": (0.0, 0.8),
    "collapsed_fraction": (0.0, 0.25),
    "irregularity": (1.0, 2.5),
    "tubule_contrast": (0.5, 1.8),
    "softness": (0.0, 1.0),
}
_RANDOM_LOG = {
    "glomerulus_um": (85.0, 210.0),
    "glomeruli_per_mm2": (3.0, 14.0),
    "tubule_scale": (0.7, 1.5),
    "wall_scale": (0.7, 2.0),
    "haematoxylin": (0.4, 2.0),
    "pas": (0.7, 2.4),
    "blur_um": (0.2, 2.5),
    "capsule_scale": (0.4, 2.0),
    "tuft_stain": (0.8, 1.35),
    "epithelium": (0.4, 1.1),
    "interstitium": (0.6, 1.3),
    "loop_scale": (0.75, 1.4),
}


# Of these, shapes and shades that donors of the archive never have.
ODD_FIELDS = (
    "bowman",
    "collapsed_fraction",
    "irregularity",
    "capsule_scale",
    "tuft_stain",
    "epithelium",
    "tubule_contrast",
    "interstitium",
    "softness",
    "loop_scale",
)


def random_recipe(rng: np.random.Generator, *, odd: bool = True, **fixed: Any) -> Recipe:
    """Return a recipe far from any one laboratory's: domain randomisation.

    A network that has seen every stain, scale, sharpness and density that might occur has no reason
    to rely on those of one archive (Tobin et al. 2017). `donor_recipe` draws what donors of one
    laboratory look like; this one is for training what has to work elsewhere.

    Args:
        rng: Where every trait comes from.
        odd: Vary ``ODD_FIELDS`` too: shapes and shades of glomeruli and tubules that donors of the
            archive never have. Real glomeruli are found the better for it
            (docs/drawn_kidneys.md).
        **fixed: Fields that override what is drawn, such as ``size_px`` and ``mpp``.

    Raises:
        ValueError: If a fixed value is out of range.
    """
    values: dict[str, Any] = {"group": str(rng.choice(GROUPS))}
    values |= {name: float(rng.uniform(*ends)) for name, ends in _RANDOM_EVEN.items()}
    for name, ends in _RANDOM_LOG.items():
        values[name] = float(np.exp(rng.uniform(*np.log(ends))))
    values["gain"] = tuple(float(g) for g in rng.uniform(0.82, 1.02, 3))
    for name, chance in (("pen_mark", 0.2), ("fold", 0.3), ("tear", 0.3)):
        values[name] = bool(rng.random() < chance)
    if not odd:
        values |= {f.name: f.default for f in fields(Recipe) if f.name in ODD_FIELDS}
    return Recipe(**(values | fixed))
