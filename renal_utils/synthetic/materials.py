"""Materials: what each kind of tissue takes up of each stain, how it is textured, what it is.

A block is first painted with material ids; these tables turn ids into concentrations and classes.
"""

from dataclasses import dataclass

import numpy as np

from renal_utils.labels import KIDNEY_TISSUES


@dataclass(frozen=True)
class Material:
    """One material.

    Attributes:
        name: What it is.
        haematoxylin: Concentration (optical density, base 10) of haematoxylin.
        pas: Concentration of the PAS stain.
        grain: Strength of the fine texture.
        cloud: Strength of the coarse texture.
        fibre: Strength of fibres.
        tissue: Name of its class in ``KIDNEY_TISSUES``.
    """

    name: str
    haematoxylin: float
    pas: float
    grain: float = 0.15
    cloud: float = 0.1
    fibre: float = 0.0
    tissue: str = "background"


_TUBULE = "normal_tubule"
# Tubules come in fours: basement membrane, epithelium, apical border, lumen.
_TUBULES = [
    Material("proximal_membrane", 0.10, 0.80, 0.15, 0.15, tissue=_TUBULE),
    Material("proximal_epithelium", 0.075, 0.25, 0.22, 0.16, tissue=_TUBULE),
    Material("proximal_brush", 0.05, 0.42, 0.30, 0.22, tissue=_TUBULE),
    Material("proximal_lumen", 0.02, 0.10, 0.5, 0.5, tissue=_TUBULE),
    Material("distal_membrane", 0.10, 0.66, 0.15, 0.15, tissue=_TUBULE),
    Material("distal_epithelium", 0.08, 0.165, 0.22, 0.18, tissue=_TUBULE),
    Material("distal_apex", 0.05, 0.16, 0.22, 0.2, tissue=_TUBULE),
    Material("distal_lumen", 0.012, 0.04, 0.6, 0.6, tissue=_TUBULE),
    Material("collecting_membrane", 0.10, 0.66, 0.15, 0.15, tissue=_TUBULE),
    Material("collecting_epithelium", 0.06, 0.13, 0.22, 0.2, tissue=_TUBULE),
    Material("collecting_apex", 0.06, 0.2, 0.22, 0.2, tissue=_TUBULE),
    Material("collecting_lumen", 0.008, 0.028, 0.6, 0.6, tissue=_TUBULE),
    Material("ascending_membrane", 0.10, 0.62, 0.15, 0.15, tissue=_TUBULE),
    Material("ascending_epithelium", 0.08, 0.19, 0.22, 0.18, tissue=_TUBULE),
    Material("ascending_apex", 0.05, 0.18, 0.22, 0.2, tissue=_TUBULE),
    Material("ascending_lumen", 0.01, 0.035, 0.6, 0.6, tissue=_TUBULE),
    Material("thin_membrane", 0.08, 0.36, 0.15, 0.15, tissue=_TUBULE),
    Material("thin_epithelium", 0.08, 0.2, 0.2, 0.18, tissue=_TUBULE),
    Material("thin_apex", 0.04, 0.1, 0.2, 0.2, tissue=_TUBULE),
    Material("thin_lumen", 0.01, 0.03, 0.6, 0.6, tissue=_TUBULE),
]
_OTHERS = [
    Material("interstitium", 0.055, 0.22, 0.2, 0.25, 0.16),
    Material("capillary", 0.012, 0.05, 0.3, 0.3),
    Material("capsule", 0.06, 0.36, 0.12, 0.15, 0.2),
    Material("bowman_space", 0.008, 0.026, 0.6, 0.6, tissue="glomerulus"),
    Material("bowman_capsule", 0.08, 0.66, 0.12, 0.15, tissue="glomerulus"),
    Material("tuft", 0.15, 0.26, 0.22, 0.2, tissue="glomerulus"),
    Material("mesangium", 0.13, 0.56, 0.2, 0.22, tissue="glomerulus"),
    Material("nodule", 0.07, 0.66, 0.1, 0.16, tissue="glomerulus"),
    Material("loop_wall", 0.1, 0.52, 0.15, 0.12, tissue="glomerulus"),
    Material("loop_open", 0.015, 0.06, 0.5, 0.5, tissue="glomerulus"),
    Material("loop_filled", 0.07, 0.2, 0.25, 0.3, tissue="glomerulus"),
    Material("scar", 0.07, 0.58, 0.14, 0.22, 0.16, tissue="sclerosed_glomerulus"),
    Material("scar_capsule", 0.08, 0.62, 0.12, 0.15, tissue="sclerosed_glomerulus"),
    Material("scar_space", 0.05, 0.33, 0.2, 0.3, 0.2, tissue="sclerosed_glomerulus"),
    Material("media", 0.09, 0.31, 0.18, 0.2, 0.12, tissue="vessel"),
    Material("intima", 0.08, 0.52, 0.12, 0.15, tissue="vessel"),
    Material("adventitia", 0.05, 0.32, 0.15, 0.2, 0.3, tissue="vessel"),
    Material("vessel_lumen", 0.003, 0.01, 0.6, 0.6, tissue="vessel"),
    Material("crescent", 0.12, 0.24, 0.22, 0.2, 0.08, tissue="glomerulus"),
    Material("crescent_seam", 0.07, 0.42, 0.2, 0.2, tissue="glomerulus"),
    Material("empty_space", 0.003, 0.01, 0.6, 0.6, tissue="glomerulus"),
]
MATERIALS = (Material("glass", 0.0, 0.0, 0.0, 0.0), *_TUBULES, *_OTHERS)
ID = {material.name: i for i, material in enumerate(MATERIALS)}
FIRST_TUBULE = 1

# What `DrawnRegion.structures` tells apart, finer than the tissues.
_STRUCTURES: dict[str, tuple[str, ...]] = {
    "glass": ("glass",),
    "interstitium": ("interstitium",),
    "capillary": ("capillary",),
    "kidney_capsule": ("capsule",),
    "bowman_capsule": ("bowman_capsule", "scar_capsule"),
    "bowman_space": ("bowman_space", "empty_space"),
    "tuft": ("tuft", "mesangium", "nodule", "loop_wall", "loop_open", "loop_filled"),
    "crescent": ("crescent", "crescent_seam"),
    "scar": ("scar", "scar_space"),
    "vessel_wall": ("media", "intima", "adventitia"),
    "vessel_lumen": ("vessel_lumen",),
} | {
    f"{name}_{part}": tuple(f"{name}_{zone}" for zone in zones)
    for name in ("proximal", "distal", "collecting", "ascending", "thin")
    for part, zones in (
        ("wall", ("membrane", "epithelium", "brush" if name == "proximal" else "apex")),
        ("lumen", ("lumen",)),
    )
}
STRUCTURES = tuple(_STRUCTURES)


def _column(name: str) -> np.ndarray:
    values = np.zeros(256, np.float32)
    values[: len(MATERIALS)] = [getattr(m, name) for m in MATERIALS]
    return values


HAEMATOXYLIN, PAS = _column("haematoxylin"), _column("pas")
# Where there is hardly any tissue, so that haze shows.
VOID = np.zeros(256, np.float32)
for _name, _share in {
    "proximal_lumen": 1.0,
    "distal_lumen": 1.0,
    "collecting_lumen": 1.0,
    "ascending_lumen": 1.0,
    "thin_lumen": 1.0,
    "capillary": 0.9,
    "bowman_space": 0.7,
    "loop_open": 1.1,
    "vessel_lumen": 0.35,
}.items():
    VOID[ID[_name]] = _share
# The wall that a brush border or lumen fades into.
WALL = np.arange(256, dtype=np.uint8)
for _first in range(FIRST_TUBULE, FIRST_TUBULE + len(_TUBULES), 4):
    WALL[_first + 2 : _first + 4] = _first + 1
GRAIN, CLOUD, FIBRE = _column("grain"), _column("cloud"), _column("fibre")
TISSUE = np.zeros(256, np.uint8)
TISSUE[: len(MATERIALS)] = [KIDNEY_TISSUES.id_of(m.tissue) for m in MATERIALS]
STRUCTURE = np.zeros(256, np.uint8)
for _index, _names in enumerate(_STRUCTURES.values()):
    STRUCTURE[[ID[_name] for _name in _names]] = _index
