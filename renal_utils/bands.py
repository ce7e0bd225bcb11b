"""Bands: the committed range in which a notebook's number must lie.

A trained network's Dice is never the same to the last digit on two machines, so notebooks do not
compare it literally. They print one checked line for each number instead, against a band file
such as ``notebooks/bands/04.json``: ``{"rests_on": "seeds 0, 1 and 2", "dice": [0.70, 1.00]}``.
nbval compares that line. Where a run has no band file yet, the numbers are printed as they are.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from renal_utils.runtime import display_path, read_json, resolve_path

Band = tuple[float, float]
RESTS_ON = "rests_on"  # in a band file: what the bands were taken from, for people


def check_bands(path: str | Path, **values: float | int) -> dict[str, bool]:
    """Print for each band of a file whether its value lies within, ends included.

    Values outside are reported, not raised: a run with other parameters may well leave the bands.

    Args:
        path: Band file, relative to the project. If there is none, as for a run that nobody has
            made yet, the values are printed, and that there is no band for them.
        **values: One value for every band of the file, by its name.

    Returns:
        By name, whether the value lies within its band. NaN never does. Empty without a file.

    Raises:
        ValueError: If the names differ from those of the file, or the file holds no bands.
    """
    path = resolve_path(path)
    if not path.exists():
        return _tell_without_bands(path, values)
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


def _tell_without_bands(path: Path, values: Mapping[str, float | int]) -> dict[str, bool]:
    print(f"no band for this run, since there is no {display_path(path)}; its numbers:")
    for name, value in values.items():
        print(f"{name} = {value:.4g}")
        _record(path.name, name, float(value), (None, None))
    return {}


def _record(file: str, name: str, value: float, band: Band | tuple[None, None]) -> None:
    """Hand a checked number to whoever runs the notebook (``studies``), exact and unprinted."""
    if ledger := os.environ.get("RENAL_BANDS_LEDGER"):
        row = {"bands": file, "name": name, "value": value, "low": band[0], "high": band[1]}
        with Path(ledger).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def read_bands(path: str | Path) -> dict[str, Band]:
    """Read a band file: a JSON object of ``name: [low, high]``, and a text ``rests_on`` if known.

    Raises:
        ValueError: If it holds anything else; the message names the file and the band.
    """
    content = read_json(path)
    rests_on = content.pop(RESTS_ON, "")
    if not isinstance(rests_on, str):
        raise ValueError(f"{display_path(path)}: {RESTS_ON!r} is {rests_on!r}; expected a text")
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
