"""Crescents: layers of cells that fill part of Bowman's space and push the tuft aside.

A cellular crescent lies against the capsule from the inside, thickest in its middle and pointed at
both ends. It is part of the glomerulus: its pixels have the glomerulus's class and instance id.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_LAYER_UM = 6.5  # thickness of a layer of cells
_GAP_UM = 0.9  # left between crescent and tuft


@dataclass(frozen=True)
class Crescent:
    """One crescent: its two edges from tip to tip, point by point opposite each other.

    Attributes:
        outer: The edge along the capsule.
        inner: The edge towards the tuft.
        layers: How many layers of cells lie between the two where it is thickest.
    """

    outer: Float[np.ndarray, "n 2"]
    inner: Float[np.ndarray, "n 2"]
    layers: int

    @property
    def outline(self) -> Float[np.ndarray, "k 2"]:
        """The closed edge, insides on its left."""
        return np.vstack([self.outer, self.inner[::-1]])

    def path(self, depth: float) -> Float[np.ndarray, "n 2"]:
        """Return the line from tip to tip at a depth from 0 (capsule) to 1 (tuft)."""
        return self.outer * (1 - depth) + self.inner * depth

    def moved(self, by: Float[np.ndarray, " 2"]) -> "Crescent":
        """Return the crescent elsewhere."""
        return Crescent(self.outer + by, self.inner + by, self.layers)


def make_crescent(
    capsule: Float[np.ndarray, "n 2"],
    tuft: Float[np.ndarray, "n 2"],
    lobes: Float[np.ndarray, "L 2"],
    *,
    um: float,
    rng: np.random.Generator,
) -> tuple[Crescent, Float[np.ndarray, "n 2"], Float[np.ndarray, "L 2"]]:
    """Draw up a crescent over a third to two thirds of the capsule, and push the tuft aside.

    Args:
        capsule: Inner edge of Bowman's capsule about (0, 0), round which it is star-shaped.
        tuft: Edge of the tuft; its points lie in the same directions as the capsule's.
        lobes: Middles of the tuft's lobules.
        um: Pixels a micrometre.
        rng: Source of chance.

    Returns:
        The crescent, and tuft and lobules as they lie now.
    """
    turn, half = rng.uniform(-np.pi, np.pi), rng.uniform(1.0, 2.0)
    thick, uneven = rng.uniform(0.24, 0.42), rng.uniform(0, 2 * np.pi)
    angles = np.arctan2(capsule[:, 1], capsule[:, 0])
    order, sizes = np.argsort(angles), np.hypot(*capsule.T)

    def share(angle: np.ndarray) -> np.ndarray:
        """Return how much of the way from capsule to middle the crescent takes up."""
        off = (np.mod(angle - turn + np.pi, 2 * np.pi) - np.pi) / half
        bump = np.maximum(1 - off**2, 0) ** 0.6
        return thick * bump * (1 + 0.12 * np.cos(5 * off + uneven))

    along = turn + half * np.linspace(-1, 1, 80)
    size = np.interp(along, angles[order], sizes[order], period=2 * np.pi)
    outer = size[:, None] * np.stack([np.cos(along), np.sin(along)], 1)
    inner = outer * (1 - share(along))[:, None]
    layers = max(2, round(float((size * share(along)).max()) / (_LAYER_UM * um)))
    room = sizes * (1 - share(angles)) - _GAP_UM * um
    reach = np.hypot(*tuft.T)
    tuft = tuft * np.minimum(1, room / reach)[:, None]
    lobes = lobes * (1 - share(np.arctan2(lobes[:, 1], lobes[:, 0])))[:, None]
    return Crescent(outer, inner, layers), tuft, lobes
