"""Bands: the committed range in which a notebook's number must lie.

A trained network's Dice is never the same to the last digit on two machines, so notebooks do not
compare it literally. They print one checked line for each number instead, against a band file
such as ``notebooks/bands/04.json``: ``{"dice": [0.70, 1.00]}``. nbval compares that line.
"""

import json
import math
import os
from pathlib import Path

from renal_utils.runtime import display_path, read_json, resolve_path

Band = tuple[float, float]


def check_bands(path: str | Path, **values: float | int) -> dict[str, bool]:
    """Print for each band of a file whether its value lies within, ends included.

    Values outside are reported, not raised: a run with other parameters may well leave the bands.

    Args:
        path: Band file, relative to the project.
        **values: One value for every band of the file, by its name.

    Returns:
        By name, whether the value lies within its band. NaN never does.

    Raises:
        ValueError: If the names differ from those of the file, or the file holds no bands.
    """
    path = resolve_path(path)
    bands = read_bands(path)
    missing, unknown = sorted(set(bands) - set(values)), sorted(set(values) - set(bands))
    if missing or unknown:
        raise ValueError(
            f"{display_path(path)} has bands for {', '.join(bands)}; "
            f"missing values: {', '.join(missing) or 'none'}, "
            f"values without a band: {', '.join(unknown) or 'none'}"
        )
    inside = {}
    for name, (low, high) in bands.items():
        inside[name] = low <= float(values[name]) <= high
        print(f"{name} within its band [{low:g}, {high:g}]: {inside[name]}")
        _record(path.name, name, float(values[name]), (low, high))
    return inside


def _record(file: str, name: str, value: float, band: Band) -> None:
    """Hand a checked number to whoever runs the notebook (``studies``), exact and unprinted."""
    if ledger := os.environ.get("RENAL_BANDS_LEDGER"):
        row = {"bands": file, "name": name, "value": value, "low": band[0], "high": band[1]}
        with Path(ledger).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def read_bands(path: str | Path) -> dict[str, Band]:
    """Read a band file: a JSON object of ``name: [low, high]``.

    Raises:
        ValueError: If it holds anything else; the message names the file and the band.
    """
    content = read_json(path)
    if not content:
        raise ValueError(f"{display_path(path)} holds no band; write name: [low, high]")
    return {name: _check_band(name, band, Path(path)) for name, band in content.items()}


def _check_band(name: str, band: object, path: Path) -> Band:
    match band:
        case [int() | float() as low, int() | float() as high] if (
            math.isfinite(low) and math.isfinite(high) and low <= high
        ):
            return float(low), float(high)
    raise ValueError(
        f"{display_path(path)}: band {name!r} is {band!r}; expected [low, high], two numbers of "
        "which the first is not greater"
    )
