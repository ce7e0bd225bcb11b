"""The command line ``renal``: a module a verb, each short and calling the library.

What a verb needs is imported inside it, so that ``renal --help`` answers at once. A user's mistake
ends with one line on stderr and exit code 2, a run that failed with exit code 1; ``--debug`` gives
the traceback instead.
"""

import argparse
import sys
from collections.abc import Sequence

from renal_utils.cli.data import add_data
from renal_utils.cli.models import add_models
from renal_utils.cli.parsers import make_whole
from renal_utils.cli.report import add_report
from renal_utils.cli.run import add_run
from renal_utils.cli.segment import add_segment
from renal_utils.cli.study import add_study

_WORDS = {
    FileNotFoundError: "there is no such file or folder",
    FileExistsError: "this is a file, where a folder is needed; name another",
    NotADirectoryError: "part of this path is a file, where a folder is needed; name another",
    IsADirectoryError: "this is a folder, where a file is needed",
    PermissionError: "you may not read or write here; name another place, or ask for the right",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        return options.verb(options)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if options.debug:
            raise
        print(f"renal: {_explain(error)}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    except KeyboardInterrupt:
        print("renal: stopped", file=sys.stderr)
        return 130


def _explain(error: Exception) -> str:
    """Return what went wrong; what the operating system says only by number, in words."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error) or type(error).__name__
    for kind, words in _WORDS.items():
        if isinstance(error, kind):
            return f"{error.filename}: {words}"
    return f"{error.filename}: {error.strerror}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = make_whole(
        prog="renal", description="Segment kidney tissue in whole-slide images. Not for diagnosis."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(
        title="verbs", required=True, metavar="VERB", parser_class=make_whole
    )
    for add in (add_data, add_run, add_study, add_segment, add_report, add_models):
        add(verbs)
    return parser
