"""Run every benchmark beside this file, each in a process of its own, and print what they say.

A benchmark is a file ``bench_<what>.py`` that prints its ratios and exits 1 when one misses its
target. Run one alone with ``python benchmarks/bench_<what>.py``.
"""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Return 0 if every benchmark met its targets."""
    failed = []
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        print(f"\n{path.stem.removeprefix('bench_')}", flush=True)
        if subprocess.run([sys.executable, str(path)], check=False).returncode:
            failed.append(path.name)
    print(f"\nmissed its target: {', '.join(failed)}" if failed else "\nall targets met")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
