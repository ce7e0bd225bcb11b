"""Progress bars: tqdm's, a widget in notebooks and text elsewhere, that can be switched off.

tqdm itself heeds ``TQDM_DISABLE`` in a terminal only. A notebook that is executed to be saved must
not hold a bar: the widget's state is lost and what stays is a dead line.
"""

import os
from typing import Any

from tqdm.auto import tqdm


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """Return ``tqdm.auto.tqdm`` of the same arguments, silent where ``TQDM_DISABLE`` is set.

    ``disable=None`` hides the bar where the output is no terminal, but shows it in a notebook.
    """
    if os.environ.get("TQDM_DISABLE", "0").lower() not in ("", "0", "false"):
        options["disable"] = True
    return tqdm(*args, **options)
