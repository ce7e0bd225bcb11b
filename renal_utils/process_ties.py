"""Processes that end with the one that started them, however that ended."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End this process and its group's members when the process that started it has ended.

    A thread waits for that; to be called once, in a child of multiprocessing.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end with parent").start()
