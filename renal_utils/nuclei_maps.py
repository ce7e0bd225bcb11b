"""Nuclei maps: what a trained network says of a tile, and how it becomes nuclei one by one.

``predict_nuclei`` gives probabilities of mask and contour, a ``Separation`` turns them into an
instance map, ``choose_separation`` finds its thresholds on validation, ``score_nuclei`` scores it.
A network looks at windows of the size that it was trained on: attention and context fusion take
averages and maxima over what they see, which on a larger window would be others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int32, UInt8
from torch import Tensor, nn

from renal_utils.augment import to_tensor
from renal_utils.instance_maps import remove_small
from renal_utils.instances import METHODS, separate_nuclei
from renal_utils.metrics.instance import InstanceCounts, count_instances, score_table
from renal_utils.runtime import pick_device, pick_precision
from renal_utils.validation import forward_logits
from renal_utils.windows import plan_windows, window_weights

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MIN_AREAS_PX = (0, 30, 60)
_BATCH = 4
Plane = Float32[np.ndarray, "H W"]
Rgb = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class NucleiMaps:
    """Probabilities of one tile, 0 to 1.

    Attributes:
        mask: That a pixel is of a nucleus.
        contour: That it is of a nucleus's contour; None of a network without that branch.
    """

    mask: Plane
    contour: Plane | None = None

    def crop(self, window: tuple[slice, slice]) -> "NucleiMaps":
        """Return the maps within rows and columns."""
        return NucleiMaps(self.mask[window], None if self.contour is None else self.contour[window])


@dataclass(frozen=True)
class Separation:
    """A way from probabilities to nuclei, with everything that is chosen on validation.

    Attributes:
        method: A key of ``instances.METHODS``.
        mask_threshold: Nuclei are where the probability is *greater*.
        contour_threshold: Likewise contours; None takes no notice of contours.
        min_area_px: Nuclei of fewer pixels are dropped in the end.
        options: Of the method, such as ``erode_px`` or ``min_distance_px``.

    Raises:
        ValueError: If the method is unknown.
    """

    method: str = "algorithm_1"
    mask_threshold: float = 0.5
    contour_threshold: float | None = 0.5
    min_area_px: int = 0
    options: Mapping[str, int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"no method {self.method!r}; known: {', '.join(METHODS)}")

    def __call__(self, maps: NucleiMaps) -> Int32[np.ndarray, "H W"]:
        """Return the instance map.

        Raises:
            ValueError: If contours are asked for and the network gave none.
        """
        contour = None
        if self.contour_threshold is not None:
            if maps.contour is None:
                raise ValueError(
                    f"{self.method!r} is to use contours, but the network has no contour branch; "
                    "set contour_threshold=None, or train haru_net"
                )
            contour = maps.contour > self.contour_threshold
        mask = maps.mask > self.mask_threshold
        found = separate_nuclei(mask, contour, method=self.method, **self.options)
        return remove_small(found, self.min_area_px)


@torch.no_grad()
def predict_nuclei(
    model: nn.Module,
    rgb: Rgb,
    *,
    patch_px: int = 256,
    stride_px: int | None = None,
    turns: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> NucleiMaps:
    """Look at a tile through overlapping windows and blend what the network says (Hann weights).

    Args:
        model: Gives logits ``B 1 H W`` of the mask, or ``B 2 H W`` of mask and contour. It is moved
            to the device and left in evaluation mode.
        rgb: The tile, 0 to 255; smaller than a window, it is mirrored to its size.
        patch_px: Side of the windows: the one of training.
        stride_px: Distance of neighbours; None is half a window.
        turns: Average over the eight orientations of each window, for eight times the work.
        precision: As in ``runtime.pick_precision``.
        device: As in ``runtime.pick_device``.

    Raises:
        ValueError: If the network gives other channels, or NaN.
    """
    chosen = pick_device(device)
    model.to(chosen).eval()
    padded = _mirrored(rgb, patch_px)
    height, width = padded.shape[:2]
    corners = plan_windows((width, height), patch_px, stride_px or max(1, patch_px // 2))
    weights = window_weights("hann", patch_px)
    total, sums = np.zeros((height, width), np.float32), None
    for part in np.array_split(corners, -(-len(corners) // _BATCH)):
        cut = [padded[y : y + patch_px, x : x + patch_px] for x, y in part]
        images = torch.stack([to_tensor(one) for one in cut]).to(chosen)
        found = _probabilities(model, images, turns, pick_precision(precision, chosen))
        sums = np.zeros((found.shape[1], height, width), np.float32) if sums is None else sums
        for (x, y), one in zip(part, found, strict=True):
            sums[:, y : y + patch_px, x : x + patch_px] += one * weights
            total[y : y + patch_px, x : x + patch_px] += weights
    planes = (sums / total)[:, : rgb.shape[0], : rgb.shape[1]]
    return NucleiMaps(*planes)


def choose_separation(
    candidates: Sequence[Separation],
    maps: Sequence[NucleiMaps],
    truths: Sequence[Int32[np.ndarray, "_ _"]],
) -> tuple[Separation, float]:
    """Return the candidate of the highest mean of pooled AJI and PQ, the first of equals, and it.

    Choose on validation and keep it for the test.

    Args:
        candidates: See ``list_separations``.
        maps: Of each validation image.
        truths: Its instance map, of the maps' size.

    Raises:
        ValueError: If nothing is defined: no nuclei, or no candidates.
    """
    marks = []
    for candidate in candidates:
        pairs = zip(truths, maps, strict=True)
        counts = [count_instances(truth, candidate(one)) for truth, one in pairs]
        scores = sum(counts, InstanceCounts()).scores()
        marks.append((scores.aji + scores.pq) / 2)
    if not marks or np.isnan(marks).all():
        raise ValueError("there are no candidates, or no nuclei in the validation images")
    best = int(np.nan_to_num(marks, nan=-1).argmax())
    return candidates[best], marks[best]


def list_separations(
    method: str, *, contours: bool, **options: int | float | str
) -> list[Separation]:
    """Return a method at all thresholds and least areas, the candidates of ``choose_separation``.

    Args:
        method: A key of ``instances.METHODS``.
        contours: Whether it uses contours.
        **options: Of the method.
    """
    grid = product(THRESHOLDS, THRESHOLDS if contours else (None,), MIN_AREAS_PX)
    start = Separation(method, options=options)
    return [
        replace(start, mask_threshold=mask, contour_threshold=contour, min_area_px=area)
        for mask, contour, area in grid
    ]


def score_nuclei(
    separation: Separation,
    maps: Mapping[str, NucleiMaps],
    truths: Mapping[str, Int32[np.ndarray, "_ _"]],
) -> pd.DataFrame:
    """Return Dice, AJI, AJI+, DQ, SQ and PQ of each image, their mean, and pooled.

    Args:
        separation: As chosen on validation.
        maps: By the image's name.
        truths: By the same names.
    """
    return score_table(
        {name: count_instances(truths[name], separation(one)) for name, one in maps.items()}
    )


def _mirrored(rgb: Rgb, patch_px: int) -> UInt8[np.ndarray, "H2 W2 3"]:
    lacking = [max(0, patch_px - side) for side in rgb.shape[:2]]
    return np.pad(rgb, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")


def _probabilities(
    model: nn.Module, images: Float[Tensor, "B C H W"], turns: bool, precision: str
) -> Float32[np.ndarray, "B K H W"]:
    """Return the sigmoid of each channel, averaged over orientations."""
    total: Tensor | None = None
    orientations = list(product(range(4), (False, True))) if turns else [(0, False)]
    for quarters, flipped in orientations:
        turned = torch.rot90(images, quarters, (2, 3))
        turned = turned.flip(3) if flipped else turned
        found = forward_logits(model, turned, precision).float().sigmoid()
        found = torch.rot90(found.flip(3) if flipped else found, -quarters, (2, 3))
        total = found if total is None else total + found
    mean = total / len(orientations)
    if mean.shape[1] not in (1, 2) or mean.isnan().any():
        raise ValueError(
            f"the network gave {mean.shape[1]} channels (NaN: {bool(mean.isnan().any())}); mask, "
            "or mask and contour, are wanted: one class, and finite weights"
        )
    return mean.cpu().numpy()
