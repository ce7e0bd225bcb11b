"""The ledger of a study: one line of JSON for each run that ended, never rewritten.

Keys are hashes of what a run is made from, so that a finished run is found again whatever study
file asks for it. Of several lines of one key the last counts, but none replaces a finished one.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from renal_utils.runtime import atomic_path, display_path

LEDGER_NAME = "ledger.jsonl"
FINISHED, FAILED = "finished", "failed"
_NEEDED = {"key", "name", "status", "parameters", "source"}
_WORDS = {"notebook": "the notebook's code", "data": "the data", "library": "the library"}


class Ledger:
    """The runs of a study that ended, in memory and on the disk.

    Args:
        folder: The study's.

    Raises:
        ValueError: If the file cannot be read; it is left as it is. (A last line that was cut off
            in the middle of writing is dropped: that run had not been recorded yet.)
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LEDGER_NAME
        self.records: dict[str, dict[str, Any]] = {}
        for record in _read_lines(self.path):
            self._take(record)

    def find(self, key: str) -> dict[str, Any] | None:
        """Return the record of a run; None if it has not ended yet."""
        return self.records.get(key)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a run that ended; once this returns a kill or a power cut does not lose it."""
        line = json.dumps(dict(record), allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._take(dict(record))

    def check_source(self, source: Mapping[str, str]) -> None:
        """Refuse to mix results of different code, data or library in one table unnoticed.

        Raises:
            ValueError: If all finished runs come from something else; it says from what, and what
                to do.
        """
        finished = [r for r in self.records.values() if r["status"] == FINISHED]
        if not finished or any(r["source"] == dict(source) for r in finished):
            return
        last = finished[-1]["source"]
        changed = [_WORDS.get(name, name) for name in source if source[name] != last.get(name)]
        raise ValueError(
            f"{display_path(self.path)} holds {len(finished)} finished runs, but since then "
            f"{' and '.join(changed)} changed. They are kept. Restore what changed, choose another "
            "folder, or run all anew beside them (accept_changes, --accept-changes)"
        )

    def _take(self, record: dict[str, Any]) -> None:
        before = self.records.get(record["key"])
        if before is None or before["status"] != FINISHED:
            self.records.pop(record["key"], None)
            self.records[record["key"]] = record


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole, _, rest = content.rpartition(b"\n")
    records = [_read_line(line, path, n) for n, line in enumerate(whole.splitlines(), 1)]
    if rest:
        with atomic_path(path) as temporary:
            temporary.write_bytes(whole + b"\n" if whole else b"")
    return records


def _read_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not set(record) >= _NEEDED:
        raise ValueError(
            f"{display_path(path)}, line {number}, is no record of a run; the other lines are. "
            "Remove that line and only that run is done again, or move the file away"
        )
    return record
