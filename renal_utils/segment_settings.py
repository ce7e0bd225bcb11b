"""Settings of a segmentation: from checkpoints and what a user asks to a predictor and a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from renal_utils.checkpoints import CheckpointInfo, load_checkpoint, read_checkpoint_info
from renal_utils.devices import list_devices
from renal_utils.prediction import Predict, make_predictor
from renal_utils.replicas import make_replicas
from renal_utils.runtime import file_hash
from renal_utils.slides import Slide
from renal_utils.stitch_plan import StitchPlan, check_least
from renal_utils.views import average_views


@dataclass(frozen=True)
class SegmentSettings:
    """What all slides of a run share; None leaves it to the checkpoint.

    Attributes:
        checkpoints: Of one network, or of several whose mean is taken.
        mpp: Microns per level-0 pixel of the slides, over what their files say.
        downsample: Level-0 pixels per pixel that the network sees.
        patch: Side of a window.
        stride: Step between windows; None is half a window.
        window: How a window's pixels count, one of ``windows.WINDOWS``.
        batch: Windows at once.
        flips: Views of each window that are averaged, see ``views.average_views``.
        uncertainty: Write where views or checkpoints differ.
        all_windows: Look at bare glass too.
        skip_damaged: Take damaged tiles of a slide as white.
        min_object: Least area of an object in pixels that the network sees.
        min_object_um2: The same in square microns; one of the two.
        device: ``auto``, a torch device, or several with commas between, see
            ``devices.list_devices``; each takes whole batches.
        precision: ``auto``, ``bf16-mixed`` or ``32-true``.
        restart: Discard earlier results of other settings.

    Raises:
        ValueError: If there is no checkpoint, a least object is negative, or an uncertainty is
            asked of a single look.
    """

    checkpoints: tuple[Path, ...]
    mpp: float | int | None = None
    downsample: float | int | None = None
    patch: int | None = None
    stride: int | None = None
    window: str = "hann"
    batch: int = 8
    flips: int = 1
    uncertainty: bool = False
    all_windows: bool = False
    skip_damaged: bool = False
    min_object: float | int | None = None
    min_object_um2: float | int | None = None
    device: str = "auto"
    precision: str = "auto"
    restart: bool = False

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ValueError("no checkpoint was given; expected one or more")
        check_least(self.min_object, name="min_object")  # here for its name, and before any slide
        check_least(self.min_object_um2, name="min_object_um2")
        if self.uncertainty and len(self.checkpoints) * self.flips == 1:
            raise ValueError(
                "one look of one network shows no uncertainty; take several flips (8), or several "
                "checkpoints"
            )


def load_predictor(settings: SegmentSettings) -> tuple[Predict, CheckpointInfo]:
    """Return the network, or the mean of several, and what the first says of itself.

    The threshold of several is the mean of theirs.

    Raises:
        ValueError: If they differ in classes or in the scale that they were trained at.
    """
    read_infos(settings.checkpoints)
    return _load(
        settings.checkpoints,
        tuple(file_hash(path) for path in settings.checkpoints),
        settings.device,
        settings.precision,
        settings.flips,
        settings.uncertainty,
    )


@lru_cache(maxsize=1)
def _load(
    paths: tuple[Path, ...],
    hashes: tuple[str, ...],
    device: str,
    precision: str,
    flips: int,
    uncertainty: bool,
) -> tuple[Predict, CheckpointInfo]:
    """Load the networks; ``hashes`` of their files tell changed ones from those kept here."""
    infos = read_infos(paths)
    models = [load_checkpoint(path)[0] for path in paths]

    def make(device: str, precision: str) -> Predict:
        members = [make_predictor(model, device=device, precision=precision) for model in models]
        if len(members) * flips == 1:
            return members[0]
        return average_views(members, flips=flips, spread=uncertainty)

    thresholds = [info.threshold for info in infos if info.threshold is not None]
    mean = sum(thresholds) / len(thresholds) if thresholds else None
    info = replace(infos[0], threshold=mean)
    return make_replicas(make, devices=list_devices(device), precision=precision), info


def read_infos(paths: Sequence[Path]) -> list[CheckpointInfo]:
    """Return what checkpoints say of themselves.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is broken, or they differ in classes or scale.
    """
    infos = [read_checkpoint_info(path) for path in paths]
    for name in ("label_set", "num_classes", "mpp", "downsample"):
        values = [getattr(info, name) for info in infos]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"the checkpoints {', '.join(p.name for p in paths)} differ in {name}: {values}; "
                "only networks of the same classes and scale can be averaged"
            )
    return infos


def make_plan(settings: SegmentSettings, info: CheckpointInfo, slide: Slide) -> StitchPlan:
    """Return the plan for a slide: what the settings say, else as the network was trained."""
    patch_px = info.patch_px if settings.patch is None else settings.patch
    half = max(1, patch_px // 2)
    scale = choose_scale(info, slide, settings.downsample)
    return StitchPlan(
        patch_px=patch_px,
        stride_px=half if settings.stride is None else settings.stride,
        window=settings.window,
        batch_size=settings.batch,
        skip_background=not settings.all_windows,
        min_object_px=settings.min_object,
        min_object_um2=settings.min_object_um2,
        downsample=scale.get("downsample"),
        mpp=scale.get("mpp"),
    )


def choose_scale(
    info: CheckpointInfo, slide: Slide, downsample: float | int | None
) -> Mapping[str, float]:
    """Return the scale to work at, as ``StitchPlan`` takes it: what was asked, else as trained.

    Raises:
        ValueError: If the network was trained at a physical scale and the slide states none.
    """
    if downsample is not None:
        return {"downsample": float(downsample)}
    if info.mpp is None:
        return {"downsample": float(info.downsample)}
    if slide.mpp is None:
        raise ValueError(
            f"the network was trained at {info.mpp:g} microns per pixel, but {slide.path} does not "
            "state its scale; say it (--mpp 0.5 states it), or set --downsample"
        )
    return {"mpp": float(info.mpp)}
