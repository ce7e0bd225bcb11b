"""Names of runs that can be read by eye and turned back into parameters.

``ps2048_po0_ep20_bs16_lr0p0001_bceW0p8_ds1e-06_posW25`` is how the slides of a project on KPIs name
their trainings: a short code, then the number, ``p`` for the point. We keep that for the parameters
in ``CODES``. All others, and values that are no numbers, are written ``model-name=unet``.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

CODES: Mapping[str, str] = {
    "patch_px": "ps",
    "patch_overlap_px": "po",
    "epochs": "ep",
    "batch_size": "bs",
    "learning_rate": "lr",
    "bce_weight": "bceW",
    "smooth": "ds",
    "positive_weight": "posW",
    "stride_px": "str",
    "steps": "st",
    "base_width": "bw",
    "train_share": "tr",
    "weight_decay": "wd",
    "seed": "seed",
}
MAX_LENGTH = 160  # of a name, so that a file called after it fits on every file system
_NAMES = {code: name for name, code in CODES.items()}
_SHORT = re.compile(r"([A-Za-z]+)(-?\d+(?:p\d+)?(?:e[+-]?\d+)?)")


def format_run_name(parameters: Mapping[str, Any]) -> str:
    """Return the name of a run with these parameters; their order is that of the name.

    Args:
        parameters: Plain values, or lists of them, by identifiers.

    Raises:
        ValueError: If there are none, a name is no identifier, a number is not finite, or the name
            gets too long for a file.
    """
    if not parameters:
        raise ValueError("a run without parameters has no name; vary at least one")
    name = "_".join(_format_part(key, value) for key, value in parameters.items())
    if len(name) > MAX_LENGTH:
        raise ValueError(
            f"the name of a run gets {len(name)} characters long, at most {MAX_LENGTH} fit: "
            f"{name[:60]}...; vary fewer parameters, and give the others once under 'parameters'"
        )
    return name


def parse_run_name(name: str) -> dict[str, Any]:
    """Return the parameters in a run's name, equal to those that it was made from.

    A whole number comes back as an int where it was a float such as 25.0, which equals it;
    ``notebooks.check_parameters`` gives it the notebook's type again.

    Raises:
        ValueError: If the text is no such name; the part that cannot be read is named.
    """
    parameters: dict[str, Any] = {}
    for part in name.split("_"):
        key, value = _parse_part(part, name)
        if key in parameters:
            raise ValueError(f"run name {name!r} says {key!r} twice")
        parameters[key] = value
    return parameters


def _format_part(key: str, value: Any) -> str:
    if not key.isidentifier():
        raise ValueError(f"parameter {key!r} is no name of a Python variable")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"parameter {key!r} is {value}, which is no finite number")
    if key in CODES and isinstance(value, int | float) and not isinstance(value, bool):
        return CODES[key] + _number_text(value)
    return f"{_escape(key).replace('%5F', '-')}={_escape(_value_text(value))}"


def _number_text(value: float | int) -> str:
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return repr(int(value) if whole else value).replace(".", "p")


def _value_text(value: Any) -> str:
    """Return text as it is where nothing else reads like it; everything else as JSON."""
    if isinstance(value, str) and _read_value(value) == value:
        return value
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _escape(text: str) -> str:
    return quote(text, safe="").replace("_", "%5F").replace("~", "%7E")


def _parse_part(part: str, name: str) -> tuple[str, Any]:
    if "=" in part:
        key, _, value = part.partition("=")
        key = unquote(key.replace("-", "_"))
        if key.isidentifier():
            return key, _read_value(unquote(value))
    if (found := _SHORT.fullmatch(part)) and found[1] in _NAMES:
        return _NAMES[found[1]], json.loads(found[2].replace("p", "."))
    raise ValueError(
        f"{part!r} in run name {name!r} is neither a code and a number like bs16 or lr0p001 "
        f"(codes: {', '.join(_NAMES)}) nor name=value"
    )
