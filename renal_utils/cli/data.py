"""``renal data``: draw slides, check a data set, put tiles together."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from renal_utils.cli.parsers import make_whole

if TYPE_CHECKING:
    from renal_utils.records import ImageRecord

DRAWN = "data/drawn"


def add_data(verbs: Any) -> None:
    """Add the verb ``data``."""
    data = verbs.add_parser("data", help="draw slides, check a data set, put tiles together")
    actions = data.add_subparsers(
        title="actions", required=True, metavar="ACTION", parser_class=make_whole
    )

    draw = actions.add_parser("draw", help="draw the course's archive of synthetic slides")
    draw.add_argument("--out", type=Path, help=f"folder (default: {DRAWN} of the project)")
    draw.add_argument("--seed", type=int, default=0, help="another seed draws other kidneys")
    draw.add_argument("--donors", type=int, default=8, help="how many slides (default: 8)")
    draw.add_argument("--slide-px", type=int, default=4096, help="side of a slide (default: 4096)")
    draw.add_argument("--overwrite", action="store_true", help="draw anew what is there")
    draw.set_defaults(verb=_draw)

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
    check.set_defaults(verb=_check)

    assemble = actions.add_parser("assemble", help="rebuild a slide from tiles and their tiles.csv")
    assemble.add_argument("folder", type=Path, help="holds images/ and tiles.csv")
    assemble.add_argument("out", type=Path, help="the slide to write, for example slide.ome.tiff")
    assemble.add_argument("--mpp", type=float, help="microns per pixel, where known")
    assemble.add_argument("--label-set", default="glomeruli", help="what the truth labels")
    assemble.set_defaults(verb=_assemble)


def _draw(options: argparse.Namespace) -> int:
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


def _check(options: argparse.Namespace) -> int:
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


def _assemble(options: argparse.Namespace) -> int:
    from renal_utils.datasets.tiles import assemble_slide

    record = assemble_slide(
        options.folder, options.out, mpp=options.mpp, label_set=options.label_set
    )
    print(f"slide:  {record.image_path}\nlabels: {record.truth_path or 'none'}")
    print(f"its corner lay at x={record.x_l0}, y={record.y_l0} of the slide that was cut up")
    return 0
