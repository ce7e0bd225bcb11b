"""Class ids, names and colours: the one place where they stand.

A label map is a ``uint8`` image of class ids. Ids of a set run from 0 without gaps, so a class's
id is also its channel in a network's output. Pixels that nobody labelled hold ``IGNORE_ID`` in
every set; losses and metrics leave them out.

Colours are taken from the Okabe-Ito palette, which stays distinguishable under the common forms of
colour blindness.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

IGNORE_ID = 255

GREY = (153, 153, 153)
ORANGE = (230, 159, 0)
SKY = (86, 180, 233)
GREEN = (0, 158, 115)
YELLOW = (240, 228, 66)
BLUE = (0, 114, 178)
VERMILION = (213, 94, 0)
PURPLE = (204, 121, 167)


@dataclass(frozen=True)
class LabelClass:
    """One class: its id in label maps, its name in files, its title in figures, its RGB colour."""

    id: int
    name: str
    title: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """The classes that a data set labels, in the order of their ids.

    Raises:
        ValueError: If the ids are not 0, 1, 2, ... or a name stands twice.
    """

    name: str
    classes: tuple[LabelClass, ...]

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if ids != list(range(len(ids))):
            raise ValueError(f"label set {self.name!r}: ids must be 0, 1, 2, ... but are {ids}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"label set {self.name!r}: a name stands twice in {self.names}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def has_background(self) -> bool:
        return self.classes[0].name == "background"

    @property
    def foreground(self) -> tuple[LabelClass, ...]:
        """All classes but the background."""
        return self.classes[1:] if self.has_background else self.classes

    @property
    def num_outputs(self) -> int:
        """Channels of the logits: 1 (sigmoid) for one class on background, else one a class."""
        return 1 if self.has_background and len(self.classes) == 2 else len(self.classes)

    def id_of(self, name: str) -> int:
        """Return the id of the class called ``name``; an unknown name lists the known ones."""
        for label_class in self.classes:
            if label_class.name == name:
                return label_class.id
        raise ValueError(f"no class {name!r} in label set {self.name!r}; it has {self.names}")

    @property
    def colours(self) -> UInt8[np.ndarray, "256 3"]:
        """Lookup table from class id to RGB; ids outside the set, ``IGNORE_ID`` too, are white."""
        table = np.full((256, 3), 255, np.uint8)
        for label_class in self.classes:
            table[label_class.id] = label_class.colour
        return table


_BACKGROUND = LabelClass(0, "background", "Background", GREY)

GLOMERULI = LabelSet(
    "glomeruli", (_BACKGROUND, LabelClass(1, "glomerulus", "Glomerulus", VERMILION))
)

# What AIDPATH's slides tell apart: glomeruli that work and those that are scarred.
GLOMERULI_SCLEROSIS = LabelSet(
    "glomeruli_sclerosis",
    (
        _BACKGROUND,
        LabelClass(1, "glomerulus", "Glomerulus", VERMILION),
        LabelClass(2, "sclerosed_glomerulus", "Sclerosed glomerulus", ORANGE),
    ),
)

NUCLEI = LabelSet("nuclei", (_BACKGROUND, LabelClass(1, "nucleus", "Nucleus", BLUE)))

# What the drawn slides know. Background is glass, capsule and interstitium that is not fibrotic.
# Capsule, Bowman's space, tuft and crescent of a glomerulus all have its class.
KIDNEY_TISSUES = LabelSet(
    "kidney_tissues",
    (
        _BACKGROUND,
        LabelClass(1, "normal_tubule", "Normal tubule", SKY),
        LabelClass(2, "interstitial_fibrosis", "Interstitial fibrosis", YELLOW),
        LabelClass(3, "vessel", "Vessel", PURPLE),
        LabelClass(4, "glomerulus", "Glomerulus", VERMILION),
        LabelClass(5, "sclerosed_glomerulus", "Sclerosed glomerulus", ORANGE),
    ),
)

# What a glomerulus is made of, as the drawn slides' structures name it.
GLOMERULUS_PARTS = LabelSet(
    "glomerulus_parts",
    (
        _BACKGROUND,
        LabelClass(1, "bowman_capsule", "Bowman's capsule", PURPLE),
        LabelClass(2, "bowman_space", "Bowman's space", SKY),
        LabelClass(3, "tuft", "Tuft", VERMILION),
        LabelClass(4, "crescent", "Crescent", BLUE),
        LabelClass(5, "scar", "Scar", ORANGE),
    ),
)

# The four classes of the ASRMU-Net paper (NT, IF, VES, GLO); it has no background class.
FOUR_TISSUES = LabelSet(
    "four_tissues",
    (
        LabelClass(0, "normal_tubule", "Normal tubule", SKY),
        LabelClass(1, "interstitial_fibrosis", "Interstitial fibrosis", YELLOW),
        LabelClass(2, "vessel", "Vessel", PURPLE),
        LabelClass(3, "glomerulus", "Glomerulus", VERMILION),
    ),
)

# What the mouse kidneys of Bouteldja et al. (JASN 2021) tell apart. Background is interstitium too;
# where tubules touch, a border of its own keeps them apart.
MOUSE_KIDNEY = LabelSet(
    "mouse_kidney",
    (
        _BACKGROUND,
        LabelClass(1, "tubule", "Tubule", SKY),
        LabelClass(2, "capsule", "Glomerulus outside the tuft", ORANGE),
        LabelClass(3, "tuft", "Glomerular tuft", VERMILION),
        LabelClass(4, "vein", "Vein", PURPLE),
        LabelClass(5, "artery_wall", "Wall of an artery", GREEN),
        LabelClass(6, "artery_lumen", "Lumen of an artery", YELLOW),
        LabelClass(7, "tubule_border", "Border of tubules", BLUE),
    ),
)

# Abdominal organs, on which some of the papers test their networks besides kidneys.
GI_ORGANS = LabelSet(
    "gi_organs",
    (
        _BACKGROUND,
        LabelClass(1, "large_bowel", "Large bowel", VERMILION),
        LabelClass(2, "small_bowel", "Small bowel", SKY),
        LabelClass(3, "stomach", "Stomach", YELLOW),
    ),
)

COLON_TUMOUR = LabelSet("colon_tumour", (_BACKGROUND, LabelClass(1, "tumour", "Tumour", BLUE)))

LABEL_SETS: Mapping[str, LabelSet] = {
    s.name: s
    for s in (
        GLOMERULI,
        GLOMERULI_SCLEROSIS,
        NUCLEI,
        KIDNEY_TISSUES,
        GLOMERULUS_PARTS,
        FOUR_TISSUES,
        MOUSE_KIDNEY,
        GI_ORGANS,
        COLON_TUMOUR,
    )
}


def get_label_set(name: str) -> LabelSet:
    """Return the label set called ``name``; an unknown name lists the known ones."""
    if name not in LABEL_SETS:
        raise ValueError(f"no label set {name!r}; known: {', '.join(LABEL_SETS)}")
    return LABEL_SETS[name]


def convert_labels(
    ids: UInt8[np.ndarray, "*shape"], source: LabelSet, target: LabelSet
) -> UInt8[np.ndarray, "*shape"]:
    """Rewrite class ids of one label set as those of another, matching classes by name.

    A sclerosed glomerulus becomes a glomerulus where the target does not tell them apart. A class
    the target lacks becomes its background, or ``IGNORE_ID`` where it has none.

    Args:
        ids: Label map in the ids of ``source``; ``IGNORE_ID`` stays as it is.
        source: The set of ``ids``.
        target: The set wanted.

    Raises:
        ValueError: If ``ids`` holds an id that ``source`` does not have.
    """
    missing = 0 if target.has_background else IGNORE_ID
    table = np.full(256, missing, np.uint8)
    for label_class in source.classes:
        name = label_class.name
        if name not in target.names:
            name = name.removeprefix("sclerosed_")
        if name in target.names:
            table[label_class.id] = target.id_of(name)
    table[IGNORE_ID] = IGNORE_ID
    found = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
    unknown = [int(i) for i in found if i >= len(source.classes) and i != IGNORE_ID]
    if unknown:
        raise ValueError(
            f"label map holds ids {unknown}, but label set {source.name!r} has only "
            f"0..{len(source.classes) - 1} (and {IGNORE_ID} for unlabelled)"
        )
    return table[ids]
