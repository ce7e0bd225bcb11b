"""``python -m renal_utils.cli`` is ``renal``."""

import sys

from renal_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())
