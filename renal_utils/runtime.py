"""Where a run happens: paths, safe writes, seeds, device, precision, provenance.

Everything that depends on the machine passes through here, so that a notebook gives the same
numbers in JupyterLab, under papermill and under nbval, which start in different folders.

torch, which fills half a gigabyte of memory, is imported where it is needed: processes that only
draw or read slides do without.
"""

import hashlib
import json
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "bf16-mixed", "32-true")
_RECORDED = ("renal-utils", "torch", "numpy", "albumentations", "tifffile", "scikit-image")


def project_root() -> Path:
    """Return the folder that relative paths start from.

    That is ``RENAL_HOME`` where set, else the nearest folder at or above the current one that holds
    both ``notebooks`` and ``pyproject.toml``, else the current folder.
    """
    if home := os.environ.get("RENAL_HOME"):
        return Path(home).expanduser().resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return here


def count_cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has.

    Containers, job schedulers and ``taskset`` hold processes to some of the cores; as many threads
    as the machine has would get in each other's way there.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_path(path: str | Path) -> Path:
    """Return ``path`` as an absolute path; a relative one starts at ``project_root()``."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else project_root() / path


def display_path(path: str | Path) -> str:
    """Return ``path`` as it may be printed in a notebook: relative to the project, or its name."""
    path = Path(path)
    try:
        return path.resolve().relative_to(project_root()).as_posix()
    except ValueError:
        return path.name


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place only if the block succeeds.

    A full disk, an exception or a kill leaves ``path`` as it was. The temporary file keeps the
    suffix of the real one, since writers choose a format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically. NaN is refused: JSON has none."""
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=2, allow_nan=False, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a broken file is named in the error."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it cut off?") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries below us still use the global generator
    torch.manual_seed(seed)


def pick_device(name: str = "auto") -> "torch.device":
    """Return the device called ``name``; ``auto`` prefers CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: If the named device is not known or not on this machine.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"no device is called {name!r}; expected auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asked for, but torch sees no CUDA GPU; use 'auto'")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {name!r} asked for, but torch sees cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r} asked for, but torch sees no Apple GPU; use 'auto'")
    return device


def bf16_is_fast(device: "torch.device") -> bool:
    """Say whether bfloat16 speeds this device up: GPUs from Ampere, CPUs with bf16 or AMX."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pick_precision(name: str, device: "torch.device") -> str:
    """Return the Lightning Fabric precision to use; ``auto`` is bf16 where ``bf16_is_fast``.

    Raises:
        ValueError: If ``name`` is none of ``PRECISIONS``.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is not one of {PRECISIONS}")
    if name != "auto":
        return name
    return "bf16-mixed" if bf16_is_fast(device) else "32-true"


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had so far.

    On Linux from ``/proc``: ``getrusage`` there starts a child at the size of its parent.

    Raises:
        RuntimeError: On Windows, which lacks the ``resource`` module.
    """
    if sys.platform == "win32":
        raise RuntimeError("peak memory is not measured on Windows")
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance(**extra: Any) -> dict[str, Any]:
    """Return what is needed to say how a result came to be: versions, commit, device, time.

    Holds no user name, host name or path.
    """
    import torch

    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in _RECORDED},
        "git_commit": _git_commit(),
        "device": _device_name(),
        "threads": torch.get_num_threads(),
        **extra,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()
