"""Stitching: a network's windows on a slide become one map of the slide, row by row.

The slide is read at a stated scale, window by window, from top to bottom. Windows overlap and are
blended (``windows``). Rows that no later window reaches are finished: they go to disk as 8-bit
probability and class and are forgotten, so memory depends on the slide's width, not its height.

A run that was killed goes on from its last finished row and ends with the same bytes. Two things
make that hold. Which windows share a batch follows from the plan alone, not from where a run
starts, since a network may round differently in batches of another size. And the windows that reach
into unfinished rows are all looked at again, in the same order, so that every sum is the same.
"""

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from renal_utils.augment import to_batch
from renal_utils.bandstore import BandStore
from renal_utils.labels import LabelSet
from renal_utils.prediction import Predict, check_probabilities, gives_spread, identity_of
from renal_utils.progress import progress_bar
from renal_utils.replicas import work_in_order
from renal_utils.result_folder import (
    CSV_NAME,
    GEOJSON_NAME,
    LABELS_NAME,
    PROBABILITY_NAME,
    ROWS_NAME,
    SPREAD_NAME,
    SUMMARY_NAME,
    claim_folder,
    content_key,
    file_identity,
    hold_folder,
    is_finished,
)
from renal_utils.row_writer import RowWriter
from renal_utils.runtime import peak_memory_bytes, provenance, read_json, write_json
from renal_utils.slide_results import Scale, write_results, write_tissue
from renal_utils.slides import Slide, SlideView
from renal_utils.stitch_plan import StitchPlan, choose_windows
from renal_utils.window_reader import WindowBatch, find_tissue, read_ahead, read_windows
from renal_utils.windows import Positions, window_weights


@dataclass(frozen=True)
class StitchResult:
    """Where a slide's results lie, and their summary."""

    folder: Path
    summary: dict[str, Any]

    @property
    def labels_path(self) -> Path:
        return self.folder / LABELS_NAME

    @property
    def probability_path(self) -> Path:
        return self.folder / PROBABILITY_NAME

    @property
    def geojson_path(self) -> Path:
        return self.folder / GEOJSON_NAME

    @property
    def csv_path(self) -> Path:
        return self.folder / CSV_NAME

    @property
    def uncertainty_path(self) -> Path:
        """Where the spread of the predictor's answers lies, if it gave one."""
        return self.folder / SPREAD_NAME

    @property
    def counts(self) -> dict[str, int]:
        """Objects of each class."""
        return {name: values["objects"] for name, values in self.summary["classes"].items()}


def stitch_slide(
    slide: Slide,
    predict: Predict,
    folder: str | Path,
    *,
    plan: StitchPlan,
    label_set: LabelSet,
    threshold: float = 0.5,
    resume: bool = True,
    progress: bool = True,
) -> StitchResult:
    """Segment a whole slide into label and probability pyramids, outlines, a table, a summary.

    With one output channel, a pixel is foreground where its stored 8-bit probability lies strictly
    above ``threshold * 255``, and ``probability.ome.tiff`` holds that of the foreground. With more,
    a pixel is of its most probable class, whose probability is the one stored. Windows that were
    skipped leave probability 0 and background (``IGNORE_ID`` where the label set has none).
    ``tissue.png`` is where the slide has tissue.

    A predictor with ``has_spread`` (see ``views.average_views``) gives one more channel, which
    becomes ``uncertainty.ome.tiff``, 255 standing for 1, and each object's mean of it.

    Args:
        slide: The slide. With ``skip_damaged``, damaged tiles are taken as white and listed in the
            summary (those that this run came upon).
        predict: Maps normalised images ``B 3 P P`` to probabilities ``B C P P``, see
            ``make_predictor``. Its ``identity``, where it has one, guards a resume; its ``at_once``
            says how many threads may call it at the same time.
        folder: Where results go; made if absent. A finished one is returned as it is.
        plan: Scale, windows, batches.
        label_set: What the channels mean.
        threshold: For one channel; between 0 and 1.
        resume: Go on where a killed run was; if False, discard what the folder holds.
        progress: Show a bar.

    Raises:
        ValueError: If the folder was made with other settings (they are named), the network gives
            another shape, NaN or no probabilities, or the slide has no mpp and the plan needs it.
        OSError: If the disk is full; run again after making room, and it goes on.
        BlockingIOError: If another process is stitching into the folder.
    """
    started = time.perf_counter()
    view = plan.view_of(slide)
    job = _Job(view, predict, plan, label_set, threshold)
    made_from = _made_from(job)
    with hold_folder(folder):
        folder = claim_folder(folder, made_from, resume=resume)
        if not is_finished(folder):
            _fill(job, folder, made_from, started, progress=progress)
        (folder / ROWS_NAME).unlink(missing_ok=True)
    return StitchResult(folder, read_json(folder / SUMMARY_NAME))


@dataclass(frozen=True)
class _Job:
    """All that a slide's results are made from."""

    view: SlideView
    predict: Predict
    plan: StitchPlan
    label_set: LabelSet
    threshold: float

    @property
    def has_spread(self) -> bool:
        return gives_spread(self.predict)

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, not {self.threshold}")
        self.plan.smallest_object_px(self.view.mpp)
        self.plan.classes_with_objects(self.label_set)


@dataclass
class _Cost:
    """What a run took; the seconds of several devices at once are added up."""

    windows: int = 0
    network_seconds: float = 0.0
    from_row: int = 0


def _fill(
    job: _Job, folder: Path, made_from: dict[str, Any], started: float, *, progress: bool
) -> None:
    """Write all results, the summary last."""
    with _explained_full_disk(folder):
        results = _run(job, folder, content_key(made_from), progress=progress)
        results["run"] |= {"seconds": round(time.perf_counter() - started, 3), **_traces()}
        write_json(folder / SUMMARY_NAME, {"made_from": made_from, **results})


def _run(job: _Job, folder: Path, key: str, *, progress: bool) -> dict[str, Any]:
    """Finish all rows, write the results, and return the summary of both."""
    scale = Scale(job.view.size_px, job.view.downsample, job.view.mpp)
    tissue = find_tissue(job.view.slide)
    positions, planned = choose_windows(job.view, job.plan, tissue=tissue)
    rows, channels = folder / ROWS_NAME, 2 + job.has_spread
    with BandStore(rows, width_px=scale.size_px[0], channels=channels, key=key) as store:
        cost = _stitch_rows(job, positions, store, progress=progress)
        classes = write_results(
            folder,
            store,
            scale=scale,
            label_set=job.label_set,
            object_classes=job.plan.classes_with_objects(job.label_set),
            min_object_px=job.plan.smallest_object_px(scale.mpp),
        )
    windows = {"seen": len(positions), "skipped": planned - len(positions)}
    found = write_tissue(folder, *tissue, mpp_l0=job.view.slide.mpp)
    results = {"windows": windows, "tissue": found, "classes": classes}
    results["has_spread"] = job.has_spread  # so that a lost map of it is missed
    damaged = {"damaged_tiles": sorted(job.view.slide.damaged)}  # a list a tile: level, column, row
    return {**asdict(scale), **results, "run": asdict(cost) | damaged}


def _stitch_rows(job: _Job, positions: Positions, store: BandStore, *, progress: bool) -> _Cost:
    """Look at all windows that reach into unfinished rows, and finish these."""
    patch, batch_size = job.plan.patch_px, job.plan.batch_size
    cost = _Cost(from_row=store.rows_done)
    rows = RowWriter(
        store,
        height_px=job.view.size_px[1],
        weights=window_weights(job.plan.window, patch),
        label_set=job.label_set,
        threshold=job.threshold,
        has_spread=job.has_spread,
    )
    first = int(np.searchsorted(positions[:, 1] + patch, store.rows_done, side="right"))
    if first < len(positions):
        first_batch = first // batch_size
        batches = read_windows(
            job.view, positions, patch, batch_size=batch_size, first_batch=first_batch
        )
        with progress_bar(
            total=len(positions),
            initial=first_batch * batch_size,
            unit="window",
            disable=not progress,
        ) as bar:
            add = partial(_add_answer, rows=rows, cost=cost, bar=bar)
            at_once = getattr(job.predict, "at_once", 1)
            work_in_order(read_ahead(batches), partial(_ask, job), add, at_once=at_once)
    rows.close()
    return cost


@dataclass(frozen=True)
class _Answer:
    """What the network said of a batch of windows, and how long it took."""

    positions: Int[np.ndarray, "B 2"]
    probabilities: Float32[np.ndarray, "B C P P"]
    seconds: float


def _ask(job: _Job, batch: WindowBatch) -> _Answer:
    """Return the network's checked probabilities; several threads may ask at once."""
    images = to_batch(batch.images)
    started = time.perf_counter()
    probabilities = job.predict(images)
    seconds = time.perf_counter() - started
    x, y = (int(v) for v in batch.positions[0])
    checked = check_probabilities(
        probabilities,
        expected=(len(images), job.label_set.num_outputs + job.has_spread, *images.shape[2:]),
        source=f"{job.view.slide.path}, windows from x {x}, y {y} on",
    )
    return _Answer(batch.positions, checked.numpy(), seconds)


def _add_answer(answer: _Answer, *, rows: RowWriter, cost: _Cost, bar: Any) -> None:
    """Blend a batch's answers into the open rows, note what they cost, and move the bar on."""
    cost.windows += len(answer.positions)
    cost.network_seconds += answer.seconds
    for (x, y), prediction in zip(answer.positions.tolist(), answer.probabilities, strict=True):
        rows.add((x, y), prediction)
    bar.update(len(answer.positions))


def _made_from(job: _Job) -> dict[str, Any]:
    """Return, as plain values by name, everything that the results depend on."""
    slide = job.view.slide
    return {
        "slide": Path(slide.path).name,
        "slide_bytes": file_identity(slide.path),
        "slide_size_l0": list(slide.size_l0),
        "slide_mpp": slide.mpp,
        "network": identity_of(job.predict),
        "label_set": job.label_set.name,
        "classes": list(job.label_set.names),
        "threshold": job.threshold,
        **asdict(job.plan),
        "object_classes": list(job.plan.classes_with_objects(job.label_set)),
        "renal_utils": version("renal-utils"),
    }


def _traces() -> dict[str, Any]:
    peak = None if sys.platform == "win32" else peak_memory_bytes()
    return {"peak_memory_bytes": peak, "provenance": provenance()}


@contextmanager
def _explained_full_disk(folder: Path) -> Iterator[None]:
    """Say what a full disk means for the folder; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: the results in {folder} are not complete. The rows finished so far "
            "are kept; make room and run again, and it goes on from there",
        ) from error
