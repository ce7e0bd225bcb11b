"""The parser of the command line and of all its verbs."""

import argparse
from functools import partial

# Options count by their whole names: ``--mp`` is no ``--mpp``.
make_whole = partial(argparse.ArgumentParser, allow_abbrev=False)
