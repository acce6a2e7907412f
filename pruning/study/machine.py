"""What the numbers were made with: device, versions, revision, threads."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from pruning import __version__
from pruning.accel import convolution
from pruning.study.config import StudyError
from pruning.study.paths import find_root


def checked_device(name: str) -> torch.device:
    """Return the device of this name; ``StudyError`` where this machine does not have it."""
    unknown = f"no device '{name}': say cpu, cuda or cuda:0"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StudyError(unknown) from error
    if device.type not in ("cpu", "cuda"):
        raise StudyError(unknown)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StudyError(f"device '{name}' was asked for, but torch sees no CUDA device here: say cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StudyError(f"device '{name}' was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def environment(device: torch.device | str = "cpu") -> dict:
    """Return versions, revision, device, threads, and who did the convolutions."""
    device = torch.device(device)
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "pruning": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        **versions,
        "device": cuda or _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        **({"instructions": _instructions()} if cuda is None else {}),
        "convolutions": "compiled" if device.type == "cpu" and convolution.available() else "torch",
    }


def kind(device: torch.device) -> str:
    """Return what rounding on a device follows from: its name, and the instructions that PyTorch and the kernel use.

    Nodes of a cluster may differ in it: what one of them began another one would not continue alike.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {_instructions()}, convolutions {convolution.form()}"


def _instructions() -> str:
    """Return the instructions that PyTorch uses here: AVX512, AVX2 or DEFAULT."""
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(FileNotFoundError):  # no git here
        answer = subprocess.run(command, cwd=find_root(), capture_output=True, text=True, check=False)
        if told := answer.stdout.strip():
            return told
    return os.environ.get("PRUNING_REVISION") or "unknown"  # a container's image has no history, but may be told


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
