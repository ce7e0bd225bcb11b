"""The plan of a stitching: at which scale a slide is looked at, through which windows."""

import math
from dataclasses import dataclass

from renal_utils.geometry import check_mpp
from renal_utils.labels import LabelSet
from renal_utils.slides import Slide, SlideView
from renal_utils.window_reader import Tissue, find_tissue, grow_by_one
from renal_utils.windows import Positions, plan_windows, tissue_share, window_weights


@dataclass(frozen=True)
class StitchPlan:
    """How a slide is cut into windows and put together again.

    Attributes:
        patch_px: Side of a window in working pixels; best as in training.
        stride_px: Step between windows; half the window makes each pixel seen four times.
        downsample: Level-0 pixels per working pixel. Give this or ``mpp``.
        mpp: Microns per working pixel; needs a slide that states its own.
        window: Weights of a window's pixels: ``hann``, ``gaussian`` or ``uniform``.
        batch_size: Windows the network gets at once.
        skip_background: Leave out windows without tissue; their pixels become background.
        min_tissue: A window is left out when its share of tissue, 0 to 1, is not above this.
        min_object_px: Objects of fewer working pixels are not counted.
        min_object_um2: The same in square microns; give one of the two.
        object_classes: Classes whose objects are outlined and counted; empty means all but the
            background. Leave out those that run through the slide as one net.
    """

    patch_px: int = 512
    stride_px: int = 256
    downsample: float | int | None = None
    mpp: float | int | None = None
    window: str = "hann"
    batch_size: int = 8
    skip_background: bool = True
    min_tissue: float | int = 0.0
    min_object_px: float | int | None = None
    min_object_um2: float | int | None = None
    object_classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.downsample is None) == (self.mpp is None):
            raise ValueError(
                f"a plan needs downsample or mpp, one of them; got downsample={self.downsample}, "
                f"mpp={self.mpp}"
            )
        if self.mpp is not None:
            check_mpp(self.mpp, where="mpp of the plan")
        if self.downsample is not None and not 0 < self.downsample < math.inf:
            raise ValueError(f"downsample must be a positive number, not {self.downsample}")
        if min(self.patch_px, self.stride_px, self.batch_size) < 1:
            raise ValueError(
                "patch, stride and batch must be positive, not "
                f"{self.patch_px}, {self.stride_px}, {self.batch_size}"
            )
        if self.stride_px > self.patch_px:
            raise ValueError(
                f"stride {self.stride_px} is larger than the patch {self.patch_px}: rows and "
                "columns between would be left out; choose at most the patch"
            )
        if not 0 <= self.min_tissue < 1:
            raise ValueError(f"min_tissue is a share from 0 to below 1, not {self.min_tissue}")
        if self.min_object_px is not None and self.min_object_um2 is not None:
            raise ValueError("give min_object_px or min_object_um2, not both")
        check_least(self.min_object_px, name="min_object_px")
        check_least(self.min_object_um2, name="min_object_um2")
        window_weights(self.window, 1)

    def view_of(self, slide: Slide) -> SlideView:
        """Return the slide at this plan's scale."""
        if self.mpp is not None:
            return slide.at_mpp(float(self.mpp))
        return slide.at_downsample(float(self.downsample or 1))

    def classes_with_objects(self, label_set: LabelSet) -> tuple[str, ...]:
        """Return the names of the classes to count, checked against the label set."""
        for name in self.object_classes:
            label_set.id_of(name)
        return self.object_classes or tuple(c.name for c in label_set.foreground)

    def smallest_object_px(self, mpp: float | None) -> float:
        """Return the least area of an object, in working pixels of ``mpp`` microns."""
        if self.min_object_um2 is None:
            return float(self.min_object_px or 0)
        if mpp is None:
            raise ValueError(
                "min_object_um2 needs the slide's scale, which its file does not state; open the "
                "slide with mpp=... or give min_object_px"
            )
        return self.min_object_um2 / mpp**2


def check_least(area: float | int | None, *, name: str) -> None:
    """Check the least area of an object, where one is given.

    Raises:
        ValueError: If it is negative, infinite or NaN; ``name`` is what the message calls it.
    """
    if area is not None and not 0 <= area < math.inf:
        raise ValueError(f"{name} must be 0 or more, not {area}")


def choose_windows(
    view: SlideView, plan: StitchPlan, *, tissue: Tissue | None = None
) -> tuple[Positions, int]:
    """Return the windows to look at, row by row, and how many the whole slide would have.

    Args:
        view: The slide at the plan's scale.
        plan: The plan.
        tissue: What ``find_tissue`` returned for the slide; None looks for it here.
    """
    positions = plan_windows(view.size_px, plan.patch_px, plan.stride_px)
    if not plan.skip_background:
        return positions, len(positions)
    mask, downsample = tissue or find_tissue(view.slide)
    cell_px = downsample / view.downsample
    share = tissue_share(positions, plan.patch_px, grow_by_one(mask), cell_px)
    return positions[share > plan.min_tissue], len(positions)
