"""Segmenting: checkpoints and slides in, folders of results out, for one slide or many.

Many slides are worked off one by one, in processes or on a Dask cluster. A slide that fails is told
of at the end and stops none of the others, even if its process dies. Workers share the devices of
their machine: worker i takes device i, counted round. A ledger remembers by content
which slides are done: slide (path, size, time of change), weights and settings; those are not
opened again.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from renal_utils.dask_clusters import (
    check_workers,
    connect,
    count_workers,
    own_place,
    place_workers,
)
from renal_utils.devices import list_devices, share_devices
from renal_utils.labels import get_label_set
from renal_utils.progress import progress_bar
from renal_utils.result_folder import RUN_NAME, content_key, is_finished
from renal_utils.runtime import count_cores, file_hash
from renal_utils.segment_settings import SegmentSettings, load_predictor, make_plan, read_infos
from renal_utils.segmented import slide_name
from renal_utils.slides import open_slide
from renal_utils.stitching import StitchResult, stitch_slide

LEDGER_NAME = "slides.jsonl"
_SAME_RESULT = (
    "device",
    "restart",
    "checkpoints",
)  # what the result does not depend on, or by hash


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
    workers: int | None = None,
    dask: str | None = None,
    progress: bool = False,
) -> list[SlideOutcome]:
    """Segment many slides, each into a folder of ``out`` called by its name.

    Args:
        paths: The slides; their names must differ.
        out: Folder of folders, and of the ledger.
        settings: Of all of them.
        workers: Slides at once, 1 if not given. From 2 on each slide gets a process of its own.
        dask: Address of a Dask scheduler, whose workers (of one thread each) segment instead; they
            must see slides, checkpoints and ``out`` at the same paths.
        progress: Show a bar, over slides.

    Returns:
        One outcome a slide, in the order given. Whatever goes wrong with a slide is told there.

    Raises:
        ValueError: If two slides have the same name, ``out`` holds one slide's results, the
            checkpoints cannot be used together, a device is not here, or ``workers`` is below 1 or
            given beside ``dask``.
        OSError: If a checkpoint is missing.
        ConnectionError: If no Dask scheduler answers, or it has no worker.
    """
    slides, out = [Path(path) for path in paths], Path(out)
    _check_names(slides)
    if (out / RUN_NAME).exists():
        raise ValueError(
            f"{out} holds the results of one slide, so others cannot lie in it; choose another "
            "folder for many"
        )
    check_workers(workers, dask)
    read_infos(settings.checkpoints)  # what is wrong with them is no slide's fault
    if dask is None:  # else the devices are those of other machines
        list_devices(settings.device)
    hashes = [file_hash(path) for path in settings.checkpoints]
    ledger = _Ledger(out / LEDGER_NAME)

    def work(path: Path) -> SlideOutcome:
        return _one_of_many(path, out / slide_name(path.name), settings, (hashes, ledger, run))

    with _way_to_run(workers or 1, dask) as (run, at_once):
        done = _each(work, slides, at_once)
        return list(progress_bar(done, total=len(slides), unit="slide", disable=not progress))


def _each(
    work: Callable[[Path], SlideOutcome], slides: Sequence[Path], at_once: int
) -> Iterator[SlideOutcome]:
    """Yield the outcomes in order. One at a time is done in this thread, so Ctrl-C stops it."""
    if at_once == 1:
        yield from map(work, slides)
        return
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(work, slides)


_Run = Callable[[Path, Path, SegmentSettings], dict[str, int]]
_Place = tuple[int, int]  # a worker's number on its machine, and how many work there


class _Ledger:
    """Lines of JSON, one a slide that was tried; what is no such line is passed over.

    It spares opening what is done, and nothing more: where the disk is too full for a line, the
    slide's own folder still knows, and the other slides go on.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._done = path, dict[str, dict[str, Any]]()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry, dict) and entry.get("status") == "done":
                self._done[entry["key"]] = entry

    def find(self, key: str) -> dict[str, Any] | None:
        return self._done.get(key)

    def add(self, **entry: Any) -> None:
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            # one write: lines do not mix
            file.write("\n" * self._is_torn() + json.dumps(entry) + "\n")

    def _is_torn(self) -> bool:
        data = self._path.read_bytes()
        return bool(data) and not data.endswith(b"\n")


def _one_of_many(
    path: Path,
    folder: Path,
    settings: SegmentSettings,
    shared: tuple[Sequence[str], _Ledger, _Run],
) -> SlideOutcome:
    """Segment one slide unless the ledger says it is done; turn any error into an outcome."""
    hashes, ledger, run = shared
    started = time.perf_counter()
    try:
        key = _slide_key(path, settings, hashes)
        before = ledger.find(key)
        if before and before["folder"] == folder.name and is_finished(folder):
            return SlideOutcome(path, folder, "kept", before["counts"])
        counts = run(path, folder, settings)
    except Exception as error:  # of whatever kind: the other slides go on
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        ledger.add(slide=path.name, folder=folder.name, status="failed", error=text)
        return SlideOutcome(path, folder, "failed", {}, time.perf_counter() - started, text)
    seconds = time.perf_counter() - started
    entry = {"slide": path.name, "folder": folder.name, "status": "done", "counts": counts}
    ledger.add(**entry, key=key, seconds=round(seconds, 1))
    return SlideOutcome(path, folder, "done", counts, seconds)


@contextmanager
def _way_to_run(workers: int, dask: str | None) -> Iterator[tuple[_Run, int]]:
    """Give the function that segments a slide, and how many slides go on at once."""
    if dask is None:
        yield (_run if workers == 1 else partial(_run_apart, _places(workers))), workers
        return
    with connect(dask) as client:
        yield partial(_run_on, client), count_workers(client)


def _places(workers: int) -> "SimpleQueue[_Place]":
    places: SimpleQueue[_Place] = SimpleQueue()
    for number in range(workers):
        places.put((number, workers))
    return places


def _run(
    path: Path, folder: Path, settings: SegmentSettings, place: _Place = (0, 1)
) -> dict[str, int]:
    """Segment on the devices of one of several workers of this machine."""
    own = share_devices(list_devices(settings.device), *place)
    settings = replace(settings, device=",".join(own))
    return segment_slide(path, folder, settings, progress=False).counts


def _run_there(
    path: Path, folder: Path, settings: SegmentSettings, places: Mapping[str, _Place]
) -> dict[str, int]:
    return _run(path, folder, settings, own_place(places))


def _run_on(client: Any, path: Path, folder: Path, settings: SegmentSettings) -> dict[str, int]:
    """Segment on a worker of a Dask cluster; if that is lost, another one goes on from there."""
    checkpoints = tuple(Path(checkpoint).resolve() for checkpoint in settings.checkpoints)
    settings = replace(settings, checkpoints=checkpoints)
    given = path.resolve(), folder.resolve(), settings, place_workers(client)
    return client.submit(_run_there, *given, pure=False).result()


def _run_apart(
    places: "SimpleQueue[_Place]", path: Path, folder: Path, settings: SegmentSettings
) -> dict[str, int]:
    """Segment in a process of its own, which may die without harm to the others."""
    place = places.get()
    threads = max(1, count_cores() // place[1])
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_limit_threads, initargs=(threads,)
    ) as pool:
        try:
            return pool.submit(_run, path, folder, settings, place).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "its process died, most likely because memory ran out; run again with fewer "
                "--workers or a smaller --batch, and it goes on from there"
            ) from error
        finally:
            places.put(place)


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
