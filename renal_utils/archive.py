"""The drawn archive: synthetic slides on disk in the layouts of the real data sets.

One folder holds, for every donor, one slide and all its truth:

- ``hubmap/``: HuBMAP's layout: ``train/<id>.tiff``, ``train.csv`` (run lengths), QuPath outlines of
  glomeruli and of cortex and medulla, the table of slides and patients.
- ``kpis/``: the KPIs challenge's: patches of 2048 pixels with JPEG masks, and slides with masks, by
  split, group and case. Pixels are those of the same slides.
- ``tissues/<id>.tiff``: class ids of ``labels.KIDNEY_TISSUES``; ``<id>.csv``: one row an object.
- ``nuclei/<id>.tiff``: instance ids of nuclei; ``<id>.csv``: one row a nucleus.
- ``archive.json``: donors, recipes, splits, and the hash of every file. It is written last.

The folder is drawn under another name and renamed when complete: one with its name is whole.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from renal_utils.drawn_donors import Donor, list_donors, write_donor, write_tables
from renal_utils.progress import progress_bar
from renal_utils.records import ImageRecord
from renal_utils.runtime import display_path, file_hash, read_json, resolve_path, write_json

# Raised whenever the same seed gives other slides than before.
DRAWING = 3
_STALE_SECONDS = 6 * 3600
_TRUTHS = {"tissues": ("label_image", "kidney_tissues"), "nuclei": ("instance_image", "nuclei")}


def draw_archive(
    folder: str | Path,
    *,
    seed: int = 0,
    slide_px: int = 4096,
    donors: int = 8,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Draw an archive; the same arguments give the same bytes, whatever the number of workers.

    Args:
        folder: Where it shall lie; relative paths start at the project's root.
        seed: Decides everything; not negative.
        slide_px: Width and height of each slide.
        donors: How many; groups take turns. Every second of a group is kept from training.
        workers: Processes that draw, each about 0.65 GB at 4096 pixels.
        overwrite: Replace an archive that is there.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The folder.

    Raises:
        ValueError: If a number is out of range, or the folder is there and may not be replaced.
    """
    folder = resolve_path(folder)
    if donors < 1 or workers < 1:
        raise ValueError(f"donors and workers must be at least 1, not {donors} and {workers}")
    people = list_donors(seed, donors, slide_px)
    _refuse_occupied(folder, overwrite)
    with _drawing_folder(folder) as temporary:
        _write_donors(temporary, people, min(workers, donors), progress)
        write_tables(temporary / "hubmap", people)
        write_json(temporary / "archive.json", _contents(temporary, people, seed, slide_px))
        _put_in_place(temporary, folder, overwrite)
    return folder


def ensure_drawn(
    folder: str | Path = "data/drawn",
    *,
    seed: int = 0,
    slide_px: int = 4096,
    donors: int = 8,
    progress: bool = True,
) -> Path:
    """Draw the archive unless it is there; two processes may ask at the same time.

    An archive of an older version of the library is drawn anew.

    Args:
        folder: As in ``draw_archive``, like the others.
        seed: Of the archive.
        slide_px: Width and height of each slide.
        donors: How many.
        progress: Show a bar while drawing, in a terminal or a notebook.

    Returns:
        The folder.

    Raises:
        ValueError: If there is an archive of another seed, size or number of donors, or a folder
            that is no archive.
    """
    folder = resolve_path(folder)
    wanted = {"seed": seed, "slide_px": slide_px, "donors": donors}
    outdated = False
    if (folder / "archive.json").is_file():
        contents = read_json(folder / "archive.json")
        found = {key: contents.get(key) for key in ("seed", "slide_px")}
        found["donors"] = len(contents.get("people", ()))
        if found != wanted:
            raise ValueError(
                f"{folder} holds an archive drawn with {found}, but {wanted} was asked for; name "
                "another folder, or draw it anew with draw_archive(..., overwrite=True)"
            )
        outdated = contents.get("drawing") != DRAWING
        if not outdated:
            return folder
    return draw_archive(folder, **wanted, overwrite=outdated, progress=progress)


def check_archive(folder: str | Path) -> int:
    """Compare every file of an archive with what was written; return how many there are.

    Raises:
        ValueError: If the folder is no archive, or a file is missing, changed or new; the message
            names it and the remedy.
    """
    folder = resolve_path(folder)
    remedy = f"delete {display_path(folder)} and draw it anew: renal data draw"
    if not (folder / "archive.json").is_file():
        raise ValueError(f"{folder} is no drawn archive (it has no archive.json); {remedy}")
    files = read_json(folder / "archive.json").get("files")
    if not isinstance(files, Mapping) or not files:
        raise ValueError(f"{folder / 'archive.json'} lists no files; {remedy}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; {remedy}")
        if path.stat().st_size != expected["bytes"] or file_hash(path) != expected["sha256"]:
            raise ValueError(f"{path} is not as it was drawn ({expected['bytes']} bytes); {remedy}")
    extra = sorted(set(_list_files(folder)) - set(files) - {"archive.json"})
    if extra:
        raise ValueError(f"{folder / extra[0]} does not belong to the archive; move it away")
    return len(files)


def read_drawn(folder: str | Path = "data/drawn", *, truth: str = "tissues") -> list[ImageRecord]:
    """Return the records of the drawn slides with their full truth.

    The other layouts are read as the real sets are, by ``read_hubmap`` and ``read_kpis``.

    Args:
        folder: The archive.
        truth: ``tissues`` (classes of ``KIDNEY_TISSUES``) or ``nuclei`` (instances).

    Raises:
        ValueError: If the folder is no archive, or the truth is unknown.
    """
    folder = resolve_path(folder)
    if truth not in _TRUTHS:
        raise ValueError(f"truth {truth!r} is not one of {tuple(_TRUTHS)}")
    if not (folder / "archive.json").is_file():
        raise ValueError(f"{folder} is no drawn archive; draw one: renal data draw")
    kind, label_set = _TRUTHS[truth]
    return [
        ImageRecord(
            image_id=person["image_id"],
            image_path=folder / "hubmap" / "train" / f"{person['image_id']}.tiff",
            truth_kind=kind,
            truth_path=folder / truth / f"{person['image_id']}.tiff",
            label_set=label_set,
            donor=person["patient"],
            group=person["group"],
            mpp=float(person["recipe"]["mpp"]),
            split=person["split"],
        )
        for person in read_json(folder / "archive.json")["people"]
    ]


def _write_donors(folder: Path, people: list[Donor], workers: int, progress: bool) -> None:
    """Draw the donors, in this process or in several new ones."""
    jobs = [(folder, person) for person in people]
    shown = None if progress else True  # None: not where the output is a file or a pipe
    with progress_bar(total=len(jobs), desc="drawing slides", disable=shown) as bar:
        if workers == 1:
            for job in jobs:
                write_donor(*job)
                bar.update()
            return
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for _ in pool.map(write_donor, *zip(*jobs, strict=True)):
                bar.update()


def _contents(folder: Path, people: list[Donor], seed: int, slide_px: int) -> dict[str, Any]:
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
        for name in _list_files(folder)
    }
    return {
        "drawing": DRAWING,
        "seed": seed,
        "slide_px": slide_px,
        "people": [person.to_dict() for person in people],
        "files": files,
    }


def _list_files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _refuse_occupied(folder: Path, overwrite: bool) -> None:
    """Raise unless there is nothing at ``folder``, or an archive that may be replaced."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        if not (folder / "archive.json").is_file():
            raise ValueError(
                f"{folder} is there and is no drawn archive; name another folder or move it away"
            )
        if not overwrite:
            raise ValueError(
                f"{folder} already holds a drawn archive; pass overwrite=True to replace it"
            )


@contextmanager
def _drawing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder``; it is gone afterwards. Old leftovers go first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}."
    for left in folder.parent.glob(f"{prefix}*.partial"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=folder.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path, overwrite: bool) -> None:
    """Rename a complete archive into place; if another process was faster, keep its archive."""
    temporary.chmod(0o755)
    if overwrite and folder.exists():
        old = temporary.with_name(f"{temporary.name}.old")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return
    try:
        os.replace(temporary, folder)  # noqa: PTH105  Path.replace says the same
    except OSError:
        if not (folder / "archive.json").is_file():
            raise
