"""``renal segment``: whole slides with a trained network."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from renal_utils.cli.workers import add_workers

if TYPE_CHECKING:
    from renal_utils.segment_settings import SegmentSettings
    from renal_utils.stitching import StitchResult


def add_segment(verbs: Any) -> None:
    """Add the verb ``segment``."""
    segment = verbs.add_parser(
        "segment",
        help="segment whole slides with a trained network",
        description="Write labels.ome.tiff, probability.ome.tiff, objects.geojson, objects.csv, "
        "tissue.png and summary.json. Several slides get a folder each within --out; one that "
        "fails does not stop the others. Stopped and started again, it goes on where it was.",
    )
    segment.add_argument("slides", type=Path, nargs="+", metavar="SLIDE")
    segment.add_argument(
        "--checkpoint",
        dest="checkpoints",
        type=Path,
        nargs="+",
        required=True,
        metavar="SAFETENSORS",
        help="of the network; of several, their mean is taken",
    )
    segment.add_argument("--out", type=Path, required=True, help="folder for the results")
    _add_looking(segment)
    _add_counting(segment)
    segment.add_argument(
        "--device",
        default="auto",
        help="auto (all GPUs), cpu, cuda, cuda:1, mps, or several: cuda:0,cuda:1. One slide is "
        "shared by them, of many each worker takes its own (tested as cpu,cpu, not on GPUs)",
    )
    segment.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed")
    add_workers(segment, processes="slides at once, in processes (default: 1)")
    segment.add_argument("--restart", action="store_true", help="discard an earlier, other result")
    segment.add_argument(
        "--submission", type=Path, metavar="CSV", help="write HuBMAP's id,predicted"
    )
    segment.add_argument("--kpis", type=Path, metavar="FOLDER", help="write masks as KPIs has them")
    segment.set_defaults(verb=_segment)


def _add_looking(segment: argparse.ArgumentParser) -> None:
    """Add the options of how a slide is read and looked at."""
    segment.add_argument("--mpp", type=float, help="the slide's microns per pixel, over the file's")
    segment.add_argument(
        "--downsample",
        type=float,
        help="slide pixels per pixel that the network sees, over what the checkpoint says",
    )
    segment.add_argument("--patch", type=int, metavar="PX", help="window (default: as trained)")
    segment.add_argument("--stride", type=int, metavar="PX", help="step (default: half a window)")
    segment.add_argument(
        "--window", default="hann", help="how a window's pixels count: hann, gaussian, uniform"
    )
    segment.add_argument("--batch", type=int, default=8, help="windows at once")
    segment.add_argument(
        "--flips",
        type=int,
        default=1,
        choices=(1, 2, 4, 8),
        help="mirrored and turned views of each window, averaged (default: 1, as it is)",
    )
    segment.add_argument(
        "--uncertainty",
        action="store_true",
        help="write uncertainty.ome.tiff: where views or checkpoints differ",
    )
    segment.add_argument("--all-windows", action="store_true", help="look at bare glass too")
    segment.add_argument("--skip-damaged", action="store_true", help="take damaged tiles as white")


def _add_counting(segment: argparse.ArgumentParser) -> None:
    """Add the options of what is counted."""
    least = segment.add_mutually_exclusive_group()
    least.add_argument(
        "--min-object",
        type=float,
        metavar="PX",
        help="least area of an object, in pixels that the network sees (default: 0)",
    )
    least.add_argument(
        "--min-object-um2", type=float, metavar="UM2", help="the same, in square microns"
    )


def _segment(options: argparse.Namespace) -> int:
    from renal_utils.dask_clusters import check_workers
    from renal_utils.segment_settings import SegmentSettings
    from renal_utils.segmenting import LEDGER_NAME, segment_slide, segment_slides

    check_workers(options.workers, options.dask)
    given = {name: getattr(options, name) for name in SegmentSettings.__dataclass_fields__}
    settings = SegmentSettings(**given | {"checkpoints": tuple(options.checkpoints)})
    alone = len(options.slides) == 1 and not options.dask
    if alone and not (options.out / LEDGER_NAME).exists():
        result = segment_slide(options.slides[0], options.out, settings)
        _print_result(result, settings)
        folders = {options.slides[0]: options.out}
    else:
        how = {"workers": options.workers, "dask": options.dask}
        outcomes = segment_slides(options.slides, options.out, settings, **how, progress=True)
        for outcome in outcomes:
            print(f"{outcome.slide}: {outcome.told()}")
        folders = {o.path: o.folder for o in outcomes if o.is_done}
        print(f"{len(folders)} of {len(outcomes)} slides are done: {options.out}")
    _export(options, folders)
    return int(len(folders) < len(options.slides))


def _print_result(result: "StitchResult", settings: "SegmentSettings") -> None:
    least = f"{settings.min_object or 0:g} pixels of the network's scale"
    if settings.min_object_um2 is not None:
        least = f"{settings.min_object_um2:g} square microns"
    for name, count in result.counts.items():
        print(f"{name}: {count}")
    print(f"counted: objects of at least {least}")
    if not result.summary["windows"]["seen"]:
        print("no tissue was found on the slide; --all-windows looks at all of it")
    if damaged := result.summary["run"]["damaged_tiles"]:
        print(f"damaged: {len(damaged)} tiles of the slide, left white")
    print(f"written: {result.folder}")


def _export(options: argparse.Namespace, folders: "Mapping[Path, Path]") -> None:
    from renal_utils.submissions import write_kpis_masks, write_submission

    if options.submission:
        print(f"written: {write_submission(folders.values(), options.submission)}")
    if options.kpis:
        for path in write_kpis_masks(folders, options.kpis):
            print(f"written: {path}")
