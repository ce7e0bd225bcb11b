"""The folder of a slide's results: what it was made from, whether it is whole, what to go on from.

``run.json`` is written first and says what the folder is made from: slide, network, plan. A run
with other settings is refused there, naming the difference. ``summary.json`` is written last: a
folder that has it is whole. Between the two, finished rows wait in ``rows.bands``.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from renal_utils.runtime import read_json, write_json

RUN_NAME, ROWS_NAME, SUMMARY_NAME = "run.json", "rows.bands", "summary.json"
LABELS_NAME, PROBABILITY_NAME = "labels.ome.tiff", "probability.ome.tiff"
GEOJSON_NAME, CSV_NAME, TISSUE_NAME = "objects.geojson", "objects.csv", "tissue.png"
SPREAD_NAME = "uncertainty.ome.tiff"  # only where the predictor gives a spread
OUTPUTS = (LABELS_NAME, PROBABILITY_NAME, GEOJSON_NAME, CSV_NAME, TISSUE_NAME)
LOCK_NAME = ".lock"
_OWN = (
    SUMMARY_NAME,
    *OUTPUTS,
    SPREAD_NAME,
    ROWS_NAME,
    RUN_NAME,
)  # in the order in which they are discarded
_SAMPLE_BYTES = 1 << 20


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Keep other processes from working in ``folder`` for as long as the block lasts.

    The operating system holds the lock and lets it go when the process ends, however it ends. Two
    machines on one network drive see each other's locks only if that drive supports them.

    Raises:
        BlockingIOError: If another process holds it; the message names the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"another process is writing to {folder}; wait until it is done, or choose another "
            "folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def claim_folder(folder: str | Path, made_from: Mapping[str, Any], *, resume: bool) -> Path:
    """Make ``folder`` ready for a run that is made from ``made_from``; return it.

    Args:
        folder: Made if absent. One of another run is refused.
        made_from: Plain JSON values by name.
        resume: Go on from what is there; if False, earlier results in it are discarded.

    Raises:
        ValueError: If it holds results made from something else; each difference is named.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(folder)
    if not resume:
        for name in _OWN:
            (folder / name).unlink(missing_ok=True)
    elif (folder / RUN_NAME).exists():
        _check_same(folder, made_from)
    elif found := [name for name in _OWN if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {', '.join(found)} but no {RUN_NAME}, so nobody knows what they were "
            "made from; choose another folder, or discard them with resume=False (--restart)"
        )
    write_json(folder / RUN_NAME, {"made_from": dict(made_from)})
    return folder


def is_finished(folder: Path) -> bool:
    """Say whether a folder holds all results, the uncertainty too where its summary has one.

    Raises:
        ValueError: If the summary is no JSON.
    """
    if not all((folder / name).exists() for name in (SUMMARY_NAME, *OUTPUTS)):
        return False
    has_spread = read_json(folder / SUMMARY_NAME).get("has_spread", False)
    return not has_spread or (folder / SPREAD_NAME).exists()


def file_identity(path: str | Path) -> str:
    """Return a hash of a file's size and of samples of its bytes: quick on files of many gigabytes.

    It tells another file from the same file moved or copied; it does not find a flipped bit.
    """
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def content_key(made_from: Mapping[str, Any]) -> str:
    """Return a short hash of what a run is made from."""
    text = json.dumps(made_from, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed run left: hidden, and named after a result."""
    for name in _OWN:
        for leftover in folder.glob(f".{Path(name).stem}.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _check_same(folder: Path, made_from: Mapping[str, Any]) -> None:
    before = read_json(folder / RUN_NAME).get("made_from", {})
    now = json.loads(json.dumps(made_from, allow_nan=False))
    names = [*now, *(name for name in before if name not in now)]
    changed = [n for n in names if before.get(n) != now.get(n)]
    if changed:
        told = "; ".join(f"{n} was {before.get(n)!r}, now {now.get(n)!r}" for n in changed)
        raise ValueError(
            f"{folder} was made with other settings: {told}. Use the same, choose another folder, "
            "or discard what it holds with resume=False (--restart)"
        )
