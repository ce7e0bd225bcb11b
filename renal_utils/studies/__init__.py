"""Studies: one notebook run again and again, over a grid of parameters or as a search by Optuna.

Runs go to processes of this machine or to a Dask cluster. Each one that ends is written to the
study's ledger at once, finished or failed, and a finished one is never run again: stopped and
started once more, a study goes on where it was.

- ``notebook_runs``: one notebook, with other parameters; ``run_failures`` explains those that fail.
- ``warm_kernels``, ``kernel_forks``: kernels that have imported everything already.
- ``plan``, ``search``: which runs a study consists of; ``agenda`` says which are left to do.
- ``jobs``, ``local_workers``, ``dask_workers``: who does them.
- ``ledger``, ``tables``: what came out.
"""

from renal_utils.studies.notebook_runs import NotebookRun, refresh_notebook, run_notebook
from renal_utils.studies.plan import StudyPlan, read_study
from renal_utils.studies.running import run_study
from renal_utils.studies.search import SearchPlan
from renal_utils.studies.tables import average_seeds, read_curves, read_runs

__all__ = [
    "NotebookRun",
    "SearchPlan",
    "StudyPlan",
    "average_seeds",
    "read_curves",
    "read_runs",
    "read_study",
    "refresh_notebook",
    "run_notebook",
    "run_study",
]
