"""Segmenting: checkpoints and slides in, folders of results out, for one slide or many.

Many slides are worked off one by one or in processes. A slide that fails is told of at the end and
stops none of the others, even if its process dies. A ledger remembers by content which slides are
done: slide (path, size, time of change), weights and settings; those are not opened again.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from renal_utils.checkpoints import CheckpointInfo, load_checkpoint, read_checkpoint_info
from renal_utils.labels import get_label_set
from renal_utils.prediction import Predict, make_predictor
from renal_utils.progress import progress_bar
from renal_utils.result_folder import content_key, is_finished
from renal_utils.runtime import file_hash
from renal_utils.segmented import slide_name
from renal_utils.slides import Slide, open_slide
from renal_utils.stitch_plan import StitchPlan
from renal_utils.stitching import StitchResult, stitch_slide
from renal_utils.views import average_views

LEDGER_NAME = "slides.jsonl"
_SAME_RESULT = (
    "device",
    "restart",
    "checkpoints",
)  # what the result does not depend on, or by hash


@dataclass(frozen=True)
class SegmentSettings:
    """What all slides of a run share; None leaves it to the checkpoint.

    Attributes:
        checkpoints: Of one network, or of several whose mean is taken.
        mpp: Microns per level-0 pixel of the slides, over what their files say.
        downsample: Level-0 pixels per pixel that the network sees.
        patch: Side of a window.
        stride: Step between windows; None is half a window.
        batch: Windows at once.
        flips: Views of each window that are averaged, see ``views.average_views``.
        uncertainty: Write where views or checkpoints differ.
        all_windows: Look at bare glass too.
        skip_damaged: Take damaged tiles of a slide as white.
        min_object: Least area of an object in pixels that the network sees.
        min_object_um2: The same in square microns; one of the two.
        device: ``auto`` or a torch device.
        precision: ``auto``, ``bf16-mixed`` or ``32-true``.
        restart: Discard earlier results of other settings.
    """

    checkpoints: tuple[Path, ...]
    mpp: float | int | None = None
    downsample: float | int | None = None
    patch: int | None = None
    stride: int | None = None
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
        if self.uncertainty and len(self.checkpoints) * self.flips == 1:
            raise ValueError(
                "one look of one network shows no uncertainty; take several flips (8), or several "
                "checkpoints"
            )


@dataclass(frozen=True)
class SlideOutcome:
    """How it went with one slide of many.

    Attributes:
        path: The slide.
        folder: Where its results lie, or would.
        status: ``done``, ``kept`` (it was done before), or ``failed``.
        counts: Objects of each class.
        seconds: What it took.
        error: Why it failed, else "".
    """

    path: Path
    folder: Path
    status: str
    counts: Mapping[str, int]
    seconds: float = 0.0
    error: str = ""

    @property
    def slide(self) -> str:
        return self.path.name

    @property
    def is_done(self) -> bool:
        return self.status != "failed"

    def told(self) -> str:
        """Return the outcome in a line."""
        if not self.is_done:
            return f"failed: {self.error}"
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        return f"{counts} ({'done before' if self.status == 'kept' else f'{self.seconds:.0f} s'})"


def segment_slide(
    path: str | Path, folder: str | Path, settings: SegmentSettings, *, progress: bool = True
) -> StitchResult:
    """Segment one slide into ``folder``; a finished one of the same settings is returned as it is.

    Raises:
        ValueError: If the slide or a checkpoint cannot be used, the checkpoints contradict each
            other, or the folder holds results of other settings (see ``stitch_slide``).
        OSError: If a file is missing or the disk is full.
    """
    predict, info = load_predictor(settings)
    with open_slide(path, mpp=settings.mpp, skip_damaged=settings.skip_damaged) as slide:
        return stitch_slide(
            slide,
            predict,
            folder,
            plan=make_plan(settings, info, slide),
            label_set=get_label_set(info.label_set),
            threshold=0.5 if info.threshold is None else info.threshold,
            resume=not settings.restart,
            progress=progress,
        )


def segment_slides(
    paths: Sequence[str | Path],
    out: str | Path,
    settings: SegmentSettings,
    *,
    workers: int = 1,
    progress: bool = False,
) -> list[SlideOutcome]:
    """Segment many slides, each into a folder of ``out`` called by its name.

    Args:
        paths: The slides; their names must differ.
        out: Folder of folders, and of the ledger.
        settings: Of all of them.
        workers: Slides at once. From 2 on each slide gets a process of its own.
        progress: Show a bar, over slides.

    Returns:
        One outcome a slide, in the order given. Whatever goes wrong with a slide is told there.

    Raises:
        ValueError: If two slides have the same name, or the checkpoints cannot be used together.
        OSError: If a checkpoint is missing.
    """
    slides, out = [Path(path) for path in paths], Path(out)
    _check_names(slides)
    if workers < 1:
        raise ValueError(f"at least one worker is needed, not {workers}")
    _read_infos(settings.checkpoints)  # what is wrong with them is no slide's fault
    hashes = [file_hash(path) for path in settings.checkpoints]
    ledger = _Ledger(out / LEDGER_NAME)

    def work(path: Path) -> SlideOutcome:
        return _one_of_many(path, out / slide_name(path.name), settings, (hashes, ledger, workers))

    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(work, slides)
        return list(progress_bar(done, total=len(slides), unit="slide", disable=not progress))


def load_predictor(settings: SegmentSettings) -> tuple[Predict, CheckpointInfo]:
    """Return the network, or the mean of several, and what the first says of itself.

    The threshold of several is the mean of theirs.

    Raises:
        ValueError: If they differ in classes or in the scale that they were trained at.
    """
    _read_infos(settings.checkpoints)
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
    infos = _read_infos(paths)
    models = [load_checkpoint(path)[0] for path in paths]
    members = [make_predictor(model, device=device, precision=precision) for model in models]
    thresholds = [info.threshold for info in infos if info.threshold is not None]
    mean = sum(thresholds) / len(thresholds) if thresholds else None
    info = replace(infos[0], threshold=mean)
    if len(members) * flips == 1:
        return members[0], info
    return average_views(members, flips=flips, spread=uncertainty), info


def _read_infos(paths: Sequence[Path]) -> list[CheckpointInfo]:
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
    patch_px = settings.patch or info.patch_px
    scale = choose_scale(info, slide, settings.downsample)
    return StitchPlan(
        patch_px=patch_px,
        stride_px=settings.stride or max(1, patch_px // 2),
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


class _Ledger:
    """Lines of JSON, one a slide that was tried; a torn last line is passed over."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._done = path, dict[str, dict[str, Any]]()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("status") == "done":
                self._done[entry["key"]] = entry

    def find(self, key: str) -> dict[str, Any] | None:
        return self._done.get(key)

    def add(self, **entry: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:  # one write: lines do not mix
            file.write("\n" * self._is_torn() + json.dumps(entry) + "\n")

    def _is_torn(self) -> bool:
        data = self._path.read_bytes()
        return bool(data) and not data.endswith(b"\n")


def _one_of_many(
    path: Path,
    folder: Path,
    settings: SegmentSettings,
    shared: tuple[Sequence[str], _Ledger, int],
) -> SlideOutcome:
    """Segment one slide unless the ledger says it is done; turn any error into an outcome."""
    hashes, ledger, workers = shared
    started = time.perf_counter()
    try:
        key = _slide_key(path, settings, hashes)
        before = ledger.find(key)
        if before and before["folder"] == folder.name and is_finished(folder):
            return SlideOutcome(path, folder, "kept", before["counts"])
        run: Callable[..., Mapping[str, int]] = _run if workers == 1 else _run_apart
        counts = run(path, folder, settings, workers)
    except Exception as error:  # of whatever kind: the other slides go on
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        ledger.add(slide=path.name, folder=folder.name, status="failed", error=text)
        return SlideOutcome(path, folder, "failed", {}, time.perf_counter() - started, text)
    seconds = time.perf_counter() - started
    entry = {"slide": path.name, "folder": folder.name, "status": "done", "counts": counts}
    ledger.add(**entry, key=key, seconds=round(seconds, 1))
    return SlideOutcome(path, folder, "done", counts, seconds)


def _run(path: Path, folder: Path, settings: SegmentSettings, workers: int) -> dict[str, int]:
    return segment_slide(path, folder, settings, progress=False).counts


def _run_apart(path: Path, folder: Path, settings: SegmentSettings, workers: int) -> dict[str, int]:
    """Segment in a process of its own, which may die without harm to the others."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_limit_threads, initargs=(threads,)
    ) as pool:
        try:
            return pool.submit(_run, path, folder, settings, workers).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "its process died, most likely because memory ran out; run again with fewer "
                "--workers or a smaller --batch, and it goes on from there"
            ) from error


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _slide_key(path: Path, settings: SegmentSettings, hashes: Sequence[str]) -> str:
    status = path.stat()
    chosen = {k: v for k, v in asdict(settings).items() if k not in _SAME_RESULT}
    slide = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    return content_key({"slide": slide, "weights": list(hashes), "settings": chosen})


def _check_names(slides: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in slides:
        name = slide_name(path.name)
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {path} would both write to the folder {name!r}; segment them "
                "into different folders"
            )
        seen[name] = path
