"""Whole slides here and in the libraries that users would pick instead, side by side.

    python benchmarks/bench_peers.py --slide build/slide.ome.tiff --region 2400 4200 7200 6000
    python benchmarks/bench_peers.py --drawn 20000 20000 --network darkness
    python benchmarks/bench_peers.py --linear

The same slide, network, window side and stride, precision and threads for each engine, each in a
process of its own, one run each. Needs the extra ``bench`` (docs/peers.md says how to install it);
engines that are not installed are left out, and without any peer nothing is run.
``--linear`` runs ours alone, with a callable that costs next to nothing, on slides of growing size.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from bench_stitching import TILE, draw_tile
from peer_engines import CHEAP, ENGINES, MAP_NAME, MODULES, Cost, Job

from renal_utils.geometry import grid_offsets
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.window_reader import find_tissue

MB = 1e6
GLASS = 247
BAND = 512
CLEARLY = 8  # of 255
LINEAR_SIDES = (4000, 8000, 16000, 28000, 40000)
# What ours is to reach: times as fast as a peer, share of the smaller peer's memory, over forward.
FASTER_THAN = {"tiatoolbox_mask": 1.5, "monai": 2.0}
MOST_MEMORY, MOST_OVER_FORWARD, MOST_SLOPE = 0.25, 1.05, 1.05
NUMERIC_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def draw_slide(path: Path, size_px: tuple[int, int], *, tissue: float) -> Path:
    """Write a JPEG pyramid of glass with one oval of drawn tissue on it.

    Args:
        path: The slide to write.
        size_px: Width and height.
        tissue: Share of the slide that the oval covers, above 0 and up to pi / 4.
    """
    write_pyramid(path, _drawn_bands(size_px, tissue), size_px=size_px, mpp=0.5, compression="jpeg")
    return path


def _drawn_bands(size_px: tuple[int, int], tissue: float) -> Iterator[np.ndarray]:
    tile = draw_tile()
    width, height = size_px
    radius = math.sqrt(4 * tissue / math.pi)  # of the oval, in halves of the slide's sides
    columns = np.arange(width)
    x = (2 * columns + 1) / width - 1
    for top in range(0, height, BAND):
        rows = np.arange(top, min(top + BAND, height))
        y = (2 * rows + 1) / height - 1
        band = tile[rows % TILE][:, columns % TILE]
        band[x**2 + y[:, None] ** 2 > radius**2] = GLASS
        yield band


def cut_slide(path: Path, out: Path, *, region: Sequence[int] | None, downsample: float) -> Path:
    """Write a part of a slide at the reading level as a slide of its own, so that all read it so.

    Args:
        path: The slide.
        out: The slide to write.
        region: x, y, width, height at the reading level; None takes all of it.
        downsample: Level-0 pixels of ``path`` per pixel of the reading level.
    """
    with open_slide(path) as slide:
        view = slide.at_downsample(downsample)
        x, y, width, height = region or (0, 0, *view.size_px)
        bands = (
            view.read((x, top), (width, min(BAND, y + height - top)))
            for top in range(y, y + height, BAND)
        )
        mpp = 0.5 if view.mpp is None else view.mpp
        write_pyramid(out, bands, size_px=(width, height), mpp=mpp, compression="jpeg")
    return out


def count_windows(size_px: tuple[int, int], patch_px: int, stride_px: int) -> dict[str, int]:
    """Return how many windows the whole slide has: flush with its borders, or reaching beyond.

    Ours and MONAI's end flush. TIAToolbox starts a window at each stride that begins on the slide.
    """
    flush = math.prod(len(grid_offsets(side, patch_px, stride_px)) for side in size_px)
    return {"flush": flush, "beyond": math.prod(-(-side // stride_px) for side in size_px)}


def run_engine(engine: str, job: Job, *, python: str) -> Cost:
    """Run one engine in a process of its own.

    Raises:
        RuntimeError: If it failed; with the end of what it said.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    script = Path(__file__).with_name("peer_engines.py")
    command = [python, str(script), engine, str(folder / "job.json")]
    done = subprocess.run(
        command, env=_environment(job.threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{engine} failed:\n{done.stderr[-3000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of an engine: this library, and so many threads."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    limits = dict.fromkeys(NUMERIC_THREADS, str(threads))
    return {**os.environ, **limits, "PYTHONPATH": os.pathsep.join(paths)}


def find_engines(names: Sequence[str], pythons: Mapping[str, str]) -> list[str]:
    """Return those engines that their interpreter can import."""
    found = []
    for name in names:
        probe = (
            f"import importlib.util as u, sys; sys.exit(u.find_spec({MODULES[name][0]!r}) is None)"
        )
        command = [pythons.get(name, sys.executable), "-c", probe]
        if subprocess.run(command, env=_environment(1), check=False).returncode == 0:
            found.append(name)
    return found


def compare_maps(
    ours: np.ndarray, other: np.ndarray, tissue: np.ndarray, *, margin_px: int = 0
) -> tuple[float, float]:
    """Return the mean absolute difference of probabilities within tissue, and what it is over.

    Where the other engine has 0 and ours clearly more, it did not look: those pixels do not count.
    The second value is the share of the tissue's pixels that do.

    Args:
        ours: Probabilities ``H W`` as 8 bits.
        other: The same; may reach beyond.
        tissue: Coarse mask of the whole slide.
        margin_px: Left out on the right and below, where the engines' last windows differ.
    """
    height, width = ours.shape
    bottom, right = max(height - margin_px, 1), max(width - margin_px, 1)
    x = np.arange(right) * tissue.shape[1] // width
    total, counted, inside = 0, 0, 0
    for top in range(0, bottom, BAND):
        rows = np.arange(top, min(top + BAND, bottom))
        mask = tissue[rows * tissue.shape[0] // height][:, x]
        here, there = (np.asarray(m[top : rows[-1] + 1, :right], np.int16) for m in (ours, other))
        seen = mask & ((there > 0) | (here < CLEARLY))
        total += int(np.abs(here - there)[seen].sum())
        counted, inside = counted + int(seen.sum()), inside + int(mask.sum())
    return total / max(counted, 1) / 255, counted / max(inside, 1)


def tabulate(
    costs: Sequence[Cost], maps: Mapping[str, tuple[float, float]] | None = None
) -> pd.DataFrame:
    """Return a row an engine; ratios are the engine's value over ours, so 2 means twice ours."""
    ours = next((cost for cost in costs if cost.engine == "ours"), None)
    rows = []
    for cost in costs:
        row = {
            "engine": cost.engine,
            "windows": cost.windows,
            "wall s": round(cost.wall, 1),
            "forward s": round(cost.forward, 1),
            "processor s": round(cost.processor, 1),
            "wall / forward": round(cost.over_forward, 3),
            "peak MB": round(cost.peak / MB),
        }
        if ours is not None:
            row["time / ours"] = round(cost.wall / ours.wall, 2)
            row["peak / ours"] = round(cost.peak / max(ours.peak, 1), 2)
        if maps:
            difference, share = maps.get(cost.engine, (math.nan, math.nan))
            row |= {"difference": round(difference, 4), "compared": round(share, 3)}
        rows.append(row)
    return pd.DataFrame(rows)


def judge(costs: Sequence[Cost], *, is_cheap: bool = False) -> list[tuple[str, float, float, bool]]:
    """Return what ours was to reach on this slide: words, value, target, whether it is met.

    Args:
        costs: Of ours and of peers.
        is_cheap: The network costs next to nothing, so nothing is said of time over forward.
    """
    by_name = {cost.engine: cost for cost in costs}
    ours, checks = by_name["ours"], []
    for name, target in FASTER_THAN.items():
        if name in by_name:
            value = by_name[name].wall / ours.wall
            checks.append((f"times as fast as {name}", value, target, value >= target))
    if peers := [by_name[name].peak for name in FASTER_THAN if name in by_name]:
        value = ours.peak / max(min(peers), 1)
        words = f"of the memory of the smaller of {', '.join(FASTER_THAN)}, at most"
        checks.append((words, value, MOST_MEMORY, value <= MOST_MEMORY))
    if is_cheap:
        return checks
    value = ours.over_forward
    words = "wall over forward, at most"
    return [*checks, (words, value, MOST_OVER_FORWARD, value <= MOST_OVER_FORWARD)]


def compare(options: argparse.Namespace, folder: Path) -> int:
    """Run the engines one after the other and print the table; return 1 if a target is missed."""
    pythons = dict(pair.split("=", 1) for pair in options.python)
    engines = find_engines(options.engines, pythons)
    print("left out, not installed:", ", ".join(set(options.engines) - set(engines)) or "none")
    if engines == ["ours"] and options.engines != ["ours"]:
        print("no peer to compare with: see docs/peers.md")
        return 0
    slide, job = _make_slide(options, folder), _make_job(options, folder)
    with open_slide(slide) as opened:
        planned = count_windows(opened.size_l0, job.patch_px, job.stride_px)
        tissue = find_tissue(opened)[0]
        print(f"{opened.size_l0[0]} x {opened.size_l0[1]} px, {tissue.mean():.2f} of it tissue")
    print(f"windows of the whole slide: {planned['flush']} flush, {planned['beyond']} beyond")
    costs = []
    for name in engines:
        own = replace(job, slide=str(slide), folder=str(folder / name))
        costs.append(run_engine(name, own, python=pythons.get(name, sys.executable)))
        print(tabulate(costs[-1:]).to_string(index=False, header=len(costs) == 1), flush=True)
    maps = _compare_all(engines, folder, tissue, job.patch_px) if job.keep_map else {}
    print("\n" + tabulate(costs, maps).to_string(index=False))
    return _print_verdict(costs, job.network) if "ours" in engines else 0


def _compare_all(
    engines: Sequence[str], folder: Path, tissue: np.ndarray, margin_px: int
) -> dict[str, tuple[float, float]]:
    if "ours" not in engines:
        return {}
    maps = {name: np.load(folder / name / MAP_NAME, mmap_mode="r") for name in engines}
    ours = maps["ours"]
    return {name: compare_maps(ours, maps[name], tissue, margin_px=margin_px) for name in engines}


def _print_verdict(costs: Sequence[Cost], network: str) -> int:
    checks = judge(costs, is_cheap=network == CHEAP)
    for words, value, target, met in checks:
        print(f"  {value:.2f} {words} (target {target:g}): {'met' if met else 'missed'}")
    return int(not all(check[-1] for check in checks))


def measure_linear(options: argparse.Namespace, folder: Path) -> int:
    """Run ours on square slides of growing side; print time and memory against tissue's area."""
    rows = []
    for side in options.sides:
        slide = draw_slide(folder / f"{side}.ome.tiff", (side, side), tissue=options.tissue)
        job = replace(_make_job(options, folder / "ours"), slide=str(slide), keep_map=False)
        job = replace(job, network=options.network or CHEAP)
        with open_slide(slide) as opened:
            mask, downsample = find_tissue(opened)
        cost = run_engine("ours", job, python=sys.executable)
        area = float(mask.sum()) * downsample**2 / MB
        rows.append(linear_row(side, area, cost))
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
        slide.unlink()
    slope = growth(pd.DataFrame(rows))
    met = slope <= MOST_SLOPE
    print(f"processor time grows as tissue to the power {slope:.3f} (target {MOST_SLOPE}): {met}")
    return int(not met)


def linear_row(side: int, area_mpx: float, cost: Cost) -> dict[str, float]:
    """Return what a slide took, per million pixels of tissue and per pixel of its width."""
    return {
        "side px": side,
        "tissue Mpx": round(area_mpx, 1),
        "windows": cost.windows,
        "wall s": round(cost.wall, 2),
        "processor s": round(cost.processor, 2),
        "processor s / tissue Mpx": round(cost.processor / area_mpx, 4),
        "peak MB": round(cost.peak / MB),
        "peak MB / 1000 px": round(cost.peak / MB / side * 1000, 1),
    }


def growth(table: pd.DataFrame) -> float:
    """Return by which power of tissue area processor time grows: the slope of their logarithms."""
    x, y = np.log(table["tissue Mpx"]), np.log(table["processor s"])
    return float(np.polyfit(x, y, 1)[0])


def _make_slide(options: argparse.Namespace, folder: Path) -> Path:
    if options.slide is None:
        return draw_slide(folder / "drawn.ome.tiff", tuple(options.drawn), tissue=options.tissue)
    return cut_slide(
        options.slide,
        folder / "part.ome.tiff",
        region=options.region,
        downsample=options.downsample,
    )


def _make_job(options: argparse.Namespace, folder: Path) -> Job:
    return Job(
        slide="",
        folder=str(folder),
        network=options.network or "unet_resnet34",
        patch_px=options.patch,
        stride_px=options.stride,
        batch=options.batch,
        window=options.window,
        precision=options.precision,
        min_object=options.min_object,
        threads=options.threads,
        timed_batches=options.timed_batches,
        keep_map=not options.no_maps,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, help="a slide; without it one is drawn")
    parser.add_argument(
        "--region", type=int, nargs=4, metavar=("X", "Y", "WIDTH", "HEIGHT"), help="reading level"
    )
    parser.add_argument("--downsample", type=float, default=1.0, help="of the reading level")
    parser.add_argument(
        "--drawn", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), default=(4096, 4096)
    )
    parser.add_argument("--tissue", type=float, default=0.4, help="share of a drawn slide")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--network", help="of MODELS, 'darkness', or a checkpoint's path")
    parser.add_argument("--patch", type=int, default=512)
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", default="hann", help="where an engine lets one choose")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--min-object", type=int, default=200, help="of ours, pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timed-batches", type=int, default=4)
    parser.add_argument("--no-maps", action="store_true", help="do not compare what came out")
    parser.add_argument("--work", type=Path, help="folder for slides and results; kept")
    parser.add_argument("--linear", action="store_true", help="ours alone, on growing slides")
    parser.add_argument("--sides", type=int, nargs="+", default=list(LINEAR_SIDES))
    return parser


def main() -> int:
    """Compare, or measure growth; return 1 if a target is missed."""
    options = _parser().parse_args()
    run = measure_linear if options.linear else compare
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
        return run(options, options.work.resolve())
    with tempfile.TemporaryDirectory() as folder:
        return run(options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
