"""Kernels as forks of multiprocessing's fork server, in the way that Jupyter starts them."""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from renal_utils.process_ties import end_with_parent

_LAUNCHER = "ipykernel_launcher"


class WarmProvisioner(LocalProvisioner):
    """Starts this Python's kernels as forks of the fork server, others as Jupyter does."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        """Start the kernel and return how to connect to it."""
        if cmd[0] != sys.executable or _LAUNCHER not in cmd:
            return await super().launch_kernel(cmd, **options)
        arguments = cmd[cmd.index(_LAUNCHER) + 1 :]
        folder, environment = str(options["cwd"]), dict(options["env"])
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=_become_kernel, args=(arguments, environment, folder))
        try:
            process.start()
        except (OSError, EOFError):  # the fork server is gone, say for a module it cannot import
            return await super().launch_kernel(cmd, **options)
        self.process = KernelProcess(process)
        self.pid = self.pgid = self.process.pid  # the kernel makes itself the leader of its group
        self.cwd = folder
        return self.connection_info


class KernelProcess:
    """A process of multiprocessing, with those methods of ``subprocess.Popen`` that Jupyter uses.

    Args:
        process: Started already.
    """

    stdin = stdout = stderr = None

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait for its end and return the exit code."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel alone, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def _become_kernel(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    """Be a kernel in a fresh fork: own group, environment and folder, and Python's own defaults."""
    os.setsid()
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    os.environ.pop("JPY_PARENT_PID", None)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)
    sys.argv = [_LAUNCHER, *arguments]
    from ipykernel.kernelapp import IPKernelApp

    try:
        IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
    finally:
        atexit._run_exitfuncs()
