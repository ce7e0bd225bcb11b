"""Options of who does the work, the same for every verb that has much of it."""

import argparse


def add_workers(verb: argparse.ArgumentParser, *, processes: str) -> None:
    """Add ``--workers`` and ``--dask``, of which one may be given.

    Args:
        verb: Whose options they are.
        processes: What ``--workers`` says of itself.
    """
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help=processes)
    where.add_argument("--dask", metavar="ADDRESS", help="use the workers of a Dask scheduler")
