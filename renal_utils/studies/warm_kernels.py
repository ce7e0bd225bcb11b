"""Warm kernels: forked from a process that has already imported what a notebook imports.

A kernel that starts cold reads Python, IPython and torch from the disk first, which takes seconds
and is the same for every run of a study. Here multiprocessing's fork server imports them once; each
kernel is a fork of it, a process of its own like any other kernel: nothing of one run is seen by
the next, and one that dies takes nothing with it.

Where there is no fork server (Windows), in daemonic processes, and for kernels that are not this
Python's, kernels start cold as usual. A fork must not inherit a GPU that is in use: importing torch
does not touch it, and with ``PYTORCH_NVML_BASED_CUDA_CHECK``, which ``notebook_runs`` sets, neither
do modules that look for one when they are imported.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

from renal_utils.notebooks import read_imports

_NAME = "renal-warm"
_ALWAYS = ("ipykernel.kernelapp", "ipykernel.ipkernel", "renal_utils.recording")


def can_fork_warm() -> bool:
    """Say whether this process can have a fork server with children."""
    there = "forkserver" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return there and not multiprocessing.current_process().daemon


@contextmanager
def warm_kernels(notebook: str | Path, *, enabled: bool = True) -> Iterator[None]:
    """Let kernels that start within the block be forks of a warm process, where that can be.

    The fork server lives as long as this process and imports what ``notebook`` imports when its
    first kernel starts; for another notebook later it is as warm as what both import.
    """
    if not (enabled and can_fork_warm()):
        yield
        return
    modules = [*_ALWAYS, *read_imports(notebook)]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    from jupyter_client.provisioning import KernelProvisionerFactory

    factory = KernelProvisionerFactory.instance()
    value, before = (
        "renal_utils.studies.kernel_forks:WarmProvisioner",
        factory.default_provisioner_name,
    )
    factory.provisioners[_NAME] = EntryPoint(_NAME, value, factory.GROUP_NAME)
    factory.default_provisioner_name = _NAME
    try:
        yield
    finally:
        factory.default_provisioner_name = before
