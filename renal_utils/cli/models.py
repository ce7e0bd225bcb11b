"""``renal models``: the networks and what they cost."""

import argparse
from pathlib import Path
from typing import Any


def add_models(verbs: Any) -> None:
    """Add the verb ``models``."""
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


def _models(options: argparse.Namespace) -> int:
    from renal_utils.models.costs import cost_table

    names = options.names or None
    table = cost_table(names, size_px=options.size, measure=options.measure)
    shown = {"parameters": "{:,}".format}
    print(table.to_string(index=False, na_rep="-", float_format="%.3f", formatters=shown))
    if options.csv:
        table.to_csv(options.csv, index=False)
    return 0
