"""Dask clusters: the way to one, for studies and for many slides."""

from collections.abc import Mapping
from typing import Any

_SECONDS = 10.0  # to wait for an answer


def connect(address: str) -> Any:
    """Return a client of the Dask scheduler at an address.

    Raises:
        RuntimeError: If Dask is not installed.
        ConnectionError: If no scheduler answers, or it has no worker.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise RuntimeError(
            "a Dask cluster was asked for, but Dask is not installed: pip install renal-utils[dask]"
        ) from error
    try:
        client = Client(address, timeout=_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address}; start one (dask scheduler), or leave out "
            f"--dask to use processes of this machine ({type(error).__name__})"
        ) from error
    if not count_workers(client):
        client.close()
        raise ConnectionError(
            f"the Dask scheduler at {address} has no worker; start one: dask worker {address}"
        )
    return client


def check_workers(workers: int | None, dask: str | None) -> None:
    """Refuse a number of processes below 1, or beside the address of a cluster.

    Raises:
        ValueError: If so.
    """
    if workers is not None and dask is not None:
        raise ValueError(
            f"workers ({workers}) are processes of this machine, and dask ({dask}) is a cluster "
            "that has workers of its own; give one of the two"
        )
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, given {workers}")


def count_workers(client: Any) -> int:
    """Return how many workers a cluster has now."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def place_workers(client: Any) -> dict[str, tuple[int, int]]:
    """Return, by each worker's address, its number on its machine, from 0, and how many are there.

    Workers of one machine can so share what it has, such as its GPUs.
    """
    machines: dict[str, list[str]] = {}
    for address, worker in sorted(client.scheduler_info(n_workers=-1)["workers"].items()):
        machines.setdefault(worker["host"], []).append(address)
    return {
        address: (number, len(those))
        for those in machines.values()
        for number, address in enumerate(those)
    }


def own_place(places: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the place of the worker that this runs on; one that came later is one more."""
    from distributed import get_worker

    return places.get(get_worker().address, (len(places), len(places) + 1))
