"""The command line ``renal``: each verb is short and calls the library.

What a verb needs is imported inside it, so that ``renal --help`` answers at once. A user's mistake
ends with one line on stderr and exit code 2, a run that failed with exit code 1; ``--debug`` gives
the traceback instead.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from renal_utils.records import ImageRecord
    from renal_utils.segment_settings import SegmentSettings
    from renal_utils.stitching import StitchResult

DRAWN = "data/drawn"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        return options.verb(options)
    except (ValueError, OSError, RuntimeError) as error:
        if options.debug:
            raise
        print(f"renal: {error or type(error).__name__}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    except KeyboardInterrupt:
        print("renal: stopped", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="renal", description="Segment kidney tissue in whole-slide images. Not for diagnosis."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_data(verbs)
    _add_run(verbs)
    _add_study(verbs)
    _add_segment(verbs)
    _add_report(verbs)
    _add_models(verbs)
    return parser


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser("data", help="draw slides, check a data set, put tiles together")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")

    draw = actions.add_parser("draw", help="draw the course's archive of synthetic slides")
    draw.add_argument("--out", type=Path, help=f"folder (default: {DRAWN} of the project)")
    draw.add_argument("--seed", type=int, default=0, help="another seed draws other kidneys")
    draw.add_argument("--donors", type=int, default=8, help="how many slides (default: 8)")
    draw.add_argument("--slide-px", type=int, default=4096, help="side of a slide (default: 4096)")
    draw.add_argument("--overwrite", action="store_true", help="draw anew what is there")
    draw.set_defaults(verb=_data_draw)

    check = actions.add_parser(
        "check",
        help="check a data set and say what it holds",
        description="Read the layout, open every image and its truth, and list what does not fit.",
    )
    check.add_argument("folder", type=Path)
    check.add_argument(
        "--layout",
        metavar="NAME",
        default="auto",
        help="the data set's name; a wrong one lists them all (default: look and see)",
    )
    check.set_defaults(verb=_data_check)

    assemble = actions.add_parser("assemble", help="rebuild a slide from tiles and their tiles.csv")
    assemble.add_argument("folder", type=Path, help="holds images/ and tiles.csv")
    assemble.add_argument("out", type=Path, help="the slide to write, for example slide.ome.tiff")
    assemble.add_argument("--mpp", type=float, help="microns per pixel, where known")
    assemble.add_argument("--label-set", default="glomeruli", help="what the truth labels")
    assemble.set_defaults(verb=_data_assemble)


def _add_run(verbs: Any) -> None:
    run = verbs.add_parser(
        "run",
        help="run a notebook, or a folder of them, in batch",
        description="Run a notebook with checked parameters; it is not changed itself. Given a "
        "folder, run each lesson in it by its defaults and write HTML and results.csv too. "
        "Relative paths among the parameters start at the project's folder.",
    )
    run.add_argument("notebook", type=Path, help="a notebook, or a folder of notebooks")
    run.add_argument("--output", type=Path, help="notebook or folder to write (default: in build/)")
    run.add_argument("--parameters-file", type=Path, metavar="YAML", help="names and values")
    run.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="one parameter, over those of the file; may be repeated",
    )
    run.add_argument("--timeout", type=float, metavar="S", help="seconds that one cell may take")
    run.add_argument("--show-output", action="store_true", help="show what cells print as they run")
    run.add_argument("--html", action="store_true", help="write it as a page too (one notebook)")
    run.add_argument("--jobs", type=int, default=1, help="notebooks at once (a folder)")
    run.add_argument(
        "--in-place",
        action="store_true",
        help="for authors: run by the defaults and save the notebook itself, cleaned",
    )
    run.set_defaults(verb=_run)


def _add_study(verbs: Any) -> None:
    study = verbs.add_parser(
        "study",
        help="run a notebook over a grid of parameters, or search for the best",
        description="Do the runs that have not been done and write their table. Stopped and "
        "started again, it goes on where it was. See docs/studies.md.",
    )
    study.add_argument("study", type=Path, metavar="STUDY.yaml")
    where = study.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: GPUs or cores)"
    )
    where.add_argument("--dask", metavar="ADDRESS", help="use the workers of a Dask scheduler")
    study.add_argument("--only", nargs="+", metavar="NAME", help="do these runs, leave the others")
    study.add_argument("--retry-failed", action="store_true", help="do failed runs once more")
    study.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a changed notebook, data or library: all runs anew beside the old ones",
    )
    study.add_argument("--cold", action="store_true", help="start each kernel from scratch")
    study.add_argument("--list", action="store_true", help="name the runs and do none")
    study.set_defaults(verb=_study)


def _add_segment(verbs: Any) -> None:
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
    segment.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    segment.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed")
    segment.add_argument("--workers", type=int, default=1, help="slides at once, in processes")
    segment.add_argument("--dask", metavar="ADDRESS", help="a Dask scheduler whose workers do it")
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


def _add_report(verbs: Any) -> None:
    report = verbs.add_parser(
        "report",
        help="count, measure and compare segmented slides",
        description="Write report.html, report.json and review/SLIDE.geojson (objects most worth a "
        "look) from folders that renal segment wrote. Not for diagnosis.",
    )
    report.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="results, or folders of them"
    )
    report.add_argument("--out", type=Path, required=True, help="folder for the report")
    report.add_argument(
        "--slides",
        type=Path,
        metavar="CSV",
        help="columns slide, and any of donor, group, image, cortex (outlines from QuPath)",
    )
    report.add_argument("--limit", type=int, default=25, help="objects a slide to look at, at most")
    report.add_argument("--level", type=float, default=0.95, help="of the intervals")
    report.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    report.set_defaults(verb=_report)


def _add_models(verbs: Any) -> None:
    models = verbs.add_parser(
        "models",
        help="list the networks and what they cost",
        description="One row a network: parameters, true MACs, MACs as the LSU-Net paper counts "
        "them, and the papers' figures beside ours. Seconds; with --measure minutes.",
    )
    models.add_argument("names", nargs="*", metavar="NAME", help="networks (default: all)")
    models.add_argument("--size", type=int, default=224, metavar="PX", help="image (default: 224)")
    models.add_argument("--measure", action="store_true", help="time them, and measure memory")
    models.add_argument("--csv", type=Path, metavar="FILE", help="write the table here too")
    models.set_defaults(verb=_models)


def _data_draw(options: argparse.Namespace) -> int:
    from renal_utils.archive import draw_archive, ensure_drawn
    from renal_utils.runtime import display_path, resolve_path

    folder = options.out.resolve() if options.out else resolve_path(DRAWN)
    recipe = {"seed": options.seed, "slide_px": options.slide_px, "donors": options.donors}
    if options.overwrite:
        draw_archive(folder, **recipe, overwrite=True, progress=True)
    else:
        ensure_drawn(folder, **recipe)
    print(f"drawn: {display_path(folder)}")
    return 0


def _data_check(options: argparse.Namespace) -> int:
    from renal_utils.archive import check_archive
    from renal_utils.catalogue import find_layout, get_reader
    from renal_utils.label_sources import check_truths

    folder = options.folder.resolve()
    layout = find_layout(folder) if options.layout == "auto" else options.layout
    if layout == "drawn":
        files = check_archive(folder)
        print(f"{options.folder}: a drawn archive, all {files} files as they were written")
        return 0
    records = get_reader(layout)(folder)
    check_truths(records)
    print(f"{options.folder}: {layout} layout, {describe_records(records)}; all can be opened")
    return 0


def describe_records(records: "Sequence[ImageRecord]") -> str:
    """Return one line on how many images, donors, groups and splits there are."""
    donors, groups = {r.donor for r in records}, sorted({r.group for r in records} - {""})
    splits = sorted({r.split for r in records} - {""})
    labelled = sum(r.truth_kind != "none" for r in records)
    text = f"{len(records)} images ({labelled} with truth) of {len(donors)} donors"
    text += f", groups {', '.join(groups)}" if groups else ""
    return text + (f", splits {', '.join(splits)}" if splits else "")


def _data_assemble(options: argparse.Namespace) -> int:
    from renal_utils.datasets.tiles import assemble_slide

    record = assemble_slide(
        options.folder, options.out, mpp=options.mpp, label_set=options.label_set
    )
    print(f"slide:  {record.image_path}\nlabels: {record.truth_path or 'none'}")
    print(f"its corner lay at x={record.x_l0}, y={record.y_l0} of the slide that was cut up")
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.notebook.is_dir():
        return _run_folder(options)
    if options.in_place:
        return _refresh(options)
    from renal_utils.runtime import project_root
    from renal_utils.studies import run_notebook

    output = options.output or project_root() / "build" / "runs" / options.notebook.name
    run = run_notebook(
        options.notebook,
        parameters=gather_parameters(options),
        output=output,
        timeout=options.timeout,
        show_output=options.show_output,
    )
    if options.html:
        from renal_utils.course import write_html

        write_html(run.output, run.output.with_suffix(".html"))
    for band in run.bands:
        no_band = band["low"] is None
        held = "no band" if no_band else f"band [{band['low']:g}, {band['high']:g}]"
        print(f"{band['name']} = {band['value']:.4g}, {held}")
    print(f"ran in {run.seconds:.0f} s: {run.output}")
    return 0


def gather_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of a file, then those of the command line over them."""
    from renal_utils.notebooks import parse_value, read_defaults, read_parameters

    file = options.parameters_file
    parameters = read_parameters(file) if file else {}
    defaults = read_defaults(options.notebook) if options.parameter else {}
    typed = {name: parse_value(text, defaults.get(name)) for name, text in options.parameter}
    return parameters | typed


def _refresh(options: argparse.Namespace) -> int:
    from renal_utils.studies import refresh_notebook

    if options.parameter or options.parameters_file or options.output:
        raise ValueError("--in-place runs by the defaults and takes no parameters and no --output")
    run = refresh_notebook(options.notebook, timeout=options.timeout)
    print(f"ran in {run.seconds:.0f} s and saved: {options.notebook}")
    return 0


def _run_folder(options: argparse.Namespace) -> int:
    from renal_utils.course import find_lessons, run_course
    from renal_utils.runtime import project_root

    if options.parameter or options.parameters_file:
        raise ValueError("parameters belong to one notebook; name it instead of its folder")
    lessons = find_lessons(options.notebook)
    if options.in_place:
        for lesson in lessons:
            _refresh(argparse.Namespace(**{**vars(options), "notebook": lesson}))
        return 0
    folder = (options.output or project_root() / "build" / "course").resolve()
    table = run_course(lessons, folder, jobs=options.jobs, timeout=options.timeout)
    print(table.drop(columns="error").to_string(index=False, na_rep="-"))
    for row in table[table["status"] == "failed"].to_dict("records"):
        print(f"\n{row['notebook']}: {row['error']}", file=sys.stderr)
    print(f"written: {folder}")
    return int(any(table["status"] == "failed") or any(table["inside"].eq(False)))


def _study(options: argparse.Namespace) -> int:
    from renal_utils.runtime import display_path
    from renal_utils.studies import read_study, run_study

    plan = read_study(options.study)
    if options.list:
        print("\n".join(run.name for run in plan.runs()))
        return 0
    table = run_study(
        plan,
        workers=options.workers,
        dask=options.dask,
        only=options.only,
        retry_failed=options.retry_failed,
        accept_changes=options.accept_changes,
        warm=not options.cold,
    )
    failed = table[table["status"] == "failed"]
    for row in failed.to_dict("records"):
        print(f"{row['name']}: {row['error']}", file=sys.stderr)
    print(f"{len(table) - len(failed)} runs finished, {len(failed)} failed")
    print(f"written: {display_path(plan.folder)}")
    return int(len(failed) > 0)


def _segment(options: argparse.Namespace) -> int:
    from renal_utils.segment_settings import SegmentSettings
    from renal_utils.segmenting import LEDGER_NAME, segment_slide, segment_slides

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


def _export(options: argparse.Namespace, folders: "Mapping[Path, Path]") -> None:
    from renal_utils.submissions import write_kpis_masks, write_submission

    if options.submission:
        print(f"written: {write_submission(folders.values(), options.submission)}")
    if options.kpis:
        for path in write_kpis_masks(folders, options.kpis):
            print(f"written: {path}")


def _report(options: argparse.Namespace) -> int:
    from renal_utils.reports import write_report
    from renal_utils.reports.words import summarise

    report = write_report(
        options.folders,
        options.out,
        table=options.slides,
        limit=options.limit,
        level=options.level,
        seed=options.seed,
    )
    print("\n".join([*summarise(report.findings, level=options.level), *report.remarks]))
    print(f"written: {report.html_path}\nNot for diagnosis.")
    return 0


def _models(options: argparse.Namespace) -> int:
    from renal_utils.models.costs import cost_table

    names = options.names or None
    table = cost_table(names, size_px=options.size, measure=options.measure)
    shown = {"parameters": "{:,}".format}
    print(table.to_string(index=False, na_rep="-", float_format="%.3f", formatters=shown))
    if options.csv:
        table.to_csv(options.csv, index=False)
    return 0


def _print_result(result: "StitchResult", settings: "SegmentSettings") -> None:
    least = f"{settings.min_object or 0:g} pixels of the network's scale"
    if settings.min_object_um2 is not None:
        least = f"{settings.min_object_um2:g} square microns"
    for name, count in result.counts.items():
        print(f"{name}: {count}")
    print(f"counted: objects of at least {least}")
    if damaged := result.summary["run"]["damaged_tiles"]:
        print(f"damaged: {len(damaged)} tiles of the slide, left white")
    print(f"written: {result.folder}")


if __name__ == "__main__":
    sys.exit(main())
