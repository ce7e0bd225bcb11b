"""Show the library's own code in a notebook: one truth, no second copy."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

SourceObject = type | Callable | ModuleType


@dataclass(frozen=True, repr=False)
class SourceText:
    """Source code that Jupyter shows highlighted, and everything else as plain text.

    Attributes:
        code: The text of the object.
        origin: Module it stands in, as Python names it.
    """

    code: str
    origin: str

    def __repr__(self) -> str:
        return f"# {self.origin}\n{self.code}"

    def _repr_markdown_(self) -> str:
        return f"```python\n{self!r}\n```"


def show_source(thing: SourceObject) -> SourceText:
    """Return the source of a class, function or module of the library, to be shown by Jupyter.

    It is stored as markdown, so the output is the same text on every machine.

    Args:
        thing: What to show; the last line of a cell: ``show_source(DoubleConv)``.

    Raises:
        ValueError: If Python has no source of it (built in, or an instance rather than its class).
    """
    try:
        code = inspect.getsource(thing)
        module = inspect.getmodule(thing)
    except (TypeError, OSError) as error:
        raise ValueError(
            f"there is no source of {thing!r}; give a class, function or module written in Python"
        ) from error
    return SourceText(textwrap.dedent(code).rstrip(), module.__name__ if module else "notebook")
