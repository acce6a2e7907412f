"""Convolutions that skip what is pruned: a small C kernel, compiled on first use.

    >>> model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 24 * 24, 10))
    >>> images = torch.rand(16, 1, 28, 28)
    >>> logits = run(model, images)     # what model(images) gives, within rounding, sooner the more is pruned
    >>> torch.allclose(logits, model(images), atol=1e-4)
    True

On the CPU PyTorch's convolutions reach a small share of the machine's arithmetic at 6 to 36
channels, and compute pruned synapses like any other. ``convolution.c`` puts as many images into
one vector as the processor's registers hold (its lanes: 16 with AVX-512, 8 with AVX2, else 4) and
walks a list of the synapses that are left, forward and backward, with pooling and ReLU in the same
pass. Where there is no C compiler, on other devices and for other layers, PyTorch does the work.

The environment variable ``PRUNING_KERNEL`` names another processor to compile for, as the
compiler's ``-march`` does (``x86-64-v3`` is AVX2); ``off`` leaves all convolutions to PyTorch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from pruning.files import cache_folder, write_whole
from pruning.layers import MaskedConv2d

# Of more connections between feature maps than so many, PyTorch's dense convolutions are the faster ones. Measured at
# 384, 864, 1536 and 3456 connections of 5 x 5 (AMD EPYC, Zen 4): 1.2, 1.2, 0.9 and 0.9 times PyTorch's speed with 16
# lanes and with 8; 1.6, 1.5, 1.4 and 1.1 times with 4.
CONNECTIONS = 1200
SOURCE = Path(__file__).with_name("convolution.c")
NATIVE, OFF = "native", "off"
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")

SIZES = ("blocks", "inputs", "height", "width", "outputs", "kernel", "pool", "rows", "columns")


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in SIZES]


def run(model: nn.Module, images: Tensor) -> Tensor:
    """``model(images)``; a sequence's leading convolutions by the compiled kernel where that is possible.

    ``images`` [N, C, H, W]. The kernel takes float32 on the CPU and layers ``Conv2d`` (stride 1, no
    padding, few channels), perhaps ``MaxPool2d(2)``, ``ReLU``; gradients reach the parameters, not the images.
    """
    fits = images.device.type == "cpu" and images.dtype == torch.float32 and not images.requires_grad and len(images)
    parts = list(model) if fits and isinstance(model, nn.Sequential) else []
    stages, used = _stages(parts)
    if not _all(stages, parts[used:]):
        return model(images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images)
    blocks = _packed(images)
    for layer, pooled in stages:
        weight = layer.effective_weight() if isinstance(layer, MaskedConv2d) else layer.weight
        if blocks.shape[1] != weight.shape[1] or min(blocks.shape[2:4]) < weight.shape[2] + pooled:
            return model(images)  # which says what does not fit
        mask = layer.mask if isinstance(layer, MaskedConv2d) and not layer.dense_gradient else None
        blocks = _Convolution.apply(blocks, weight, layer.bias, mask, pooled, torch.is_grad_enabled())
    found = blocks.permute(0, 4, 1, 2, 3).reshape(-1, *blocks.shape[1:4])[: len(images)]
    for part in parts[used:]:
        found = part(found)
    return found


def suits(model: nn.Module) -> bool:
    """Whether the kernel does the model's convolutions here: all of them, or none."""
    parts = list(model) if isinstance(model, nn.Sequential) else []
    stages, used = _stages(parts)
    return _all(stages, parts[used:])


def _all(stages: list, rest: list[nn.Module]) -> bool:
    more = (module for part in rest for module in (part.modules() if part._modules else (part,)))
    return bool(stages) and not any(isinstance(module, nn.Conv2d) for module in more) and available()


def available() -> bool:
    """Whether the kernel can be used here: compiled now if it was not before."""
    return lanes() > 0


def lanes() -> int:
    """Images in one vector of the kernel; 0 where PyTorch does the convolutions.

    A ValueError says that ``PRUNING_KERNEL`` names what the compiler or this processor does not know.
    """
    library = _library()
    return library.lanes() if library else 0


def form() -> str:
    """Who does the convolutions on this machine's CPU: "compiled, 16 lanes", "torch"."""
    target = "" if _target() == NATIVE else f" for {_target()}"
    return f"compiled{target}, {lanes()} lanes" if available() else "torch"


def windows(
    padded: Tensor, picked: Tensor, down: Tensor, right: Tensor, mirrored: Tensor | None, height: int, width: int
) -> Tensor:
    """Cut windows [B, C, height, width] at ``down`` and ``right`` out of images ``picked`` [B], mirrored where asked.

    ``padded`` [N, C, H, W] holds the images with their margins. Copies only: the same bits on every path.
    """
    if padded.device.type == "cpu" and padded.dtype == torch.float32 and available():
        shape = (len(picked), padded.shape[1], height, width)
        found = torch.empty(shape)
        where = [index.contiguous() for index in (picked, down, right)]
        flags = mirrored.contiguous() if mirrored is not None else None
        places = (*map(_at, where), _at(flags))
        _library().windows(_at(padded), *padded.shape[1:], *places, len(picked), height, width, _at(found))
        return found
    views = padded.unfold(2, height, 1).unfold(3, width, 1)
    found = views[picked, :, down, right]
    if mirrored is not None:
        found = torch.where(mirrored[:, None, None, None], found.flip(3), found)
    return found


def _stages(parts: list[nn.Module]) -> tuple[list[tuple[nn.Conv2d, bool]], int]:
    """Find the leading convolutions that the kernel can do, each with whether it is pooled, and count their modules."""
    found, used = [], 0
    while used < len(parts) and _plain(layer := parts[used]):
        kinds = [type(part) for part in parts[used + 1 : used + 3]]
        if kinds[:1] == [nn.ReLU] and kinds[1:] != [nn.MaxPool2d]:
            length, pooled = 2, False
        elif sorted(kinds, key=str) == [nn.ReLU, nn.MaxPool2d] and _halves(parts[used + 1 : used + 3]):
            length, pooled = 3, True
        else:
            break
        together = parts[used : used + length]
        if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in together):
            break
        found.append((layer, pooled))
        used += length
    return found, used


def _plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(layer, nn.Conv2d)
        and type(layer) in (nn.Conv2d, MaskedConv2d)
        and (weight := layer.parameter if isinstance(layer, MaskedConv2d) else layer.weight).dtype == torch.float32
        and weight.device.type == "cpu"
        and layer.in_channels * layer.out_channels <= CONNECTIONS
        and layer.kernel_size[0] == layer.kernel_size[1]
        and layer.bias is not None
        and (layer.stride, layer.padding, layer.dilation, layer.groups) == ((1, 1), (0, 0), (1, 1), 1)
    )


def _halves(parts: list[nn.Module]) -> bool:
    pool = next(part for part in parts if isinstance(part, nn.MaxPool2d))
    return (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices) == (
        2,
        2,
        0,
        1,
        False,
        False,
    )


class _Convolution(torch.autograd.Function):
    """Blocks [blocks, in, H, W, lanes] to blocks [blocks, out, rows, columns, lanes] after pooling and ReLU."""

    @staticmethod
    def forward(ctx, blocks, weight, bias, mask, pooled, wanted):
        count, inputs, height, width, together = blocks.shape
        outputs, _, kernel, _ = weight.shape
        rows, columns = ((size - kernel + 1) // (2 if pooled else 1) for size in (height, width))
        shape = _Shape(count, inputs, height, width, outputs, kernel, int(pooled), rows, columns)
        weight = weight.contiguous()
        found = torch.empty(count, outputs, rows, columns, together)
        passed = torch.empty(found.shape, dtype=torch.int32) if wanted else None
        library = _library()
        _call(library.convolution_forward, shape, blocks, weight, bias, found, passed)
        if wanted:
            ctx.save_for_backward(blocks, weight, passed, mask)
            ctx.library, ctx.shape = library, shape
        return found

    @staticmethod
    def backward(ctx, gradient):
        blocks, weight, passed, mask = ctx.saved_tensors
        back = torch.empty_like(blocks) if ctx.needs_input_grad[0] else None
        of_weight, of_bias = torch.empty_like(weight), torch.empty(len(weight))
        mask = None if mask is None else mask.contiguous()
        _call(
            ctx.library.convolution_backward,
            ctx.shape,
            blocks,
            weight,
            mask,
            gradient.contiguous(),
            passed,
            back,
            of_weight,
            of_bias,
        )
        return back, of_weight, of_bias, None, None, None


def _packed(images: Tensor) -> Tensor:
    images, together = images.contiguous(), lanes()
    blocks = torch.empty(-(-len(images) // together), *images.shape[1:], together)
    _library().pack(_at(images), len(images), images[0].numel(), _at(blocks))
    return blocks


def _call(function, shape: _Shape, *tensors: Tensor | None) -> None:
    if function(ctypes.byref(shape), *map(_at, tensors)):
        raise MemoryError("no memory for a convolution")


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def _target() -> str:
    return os.environ.get("PRUNING_KERNEL") or NATIVE


def _library() -> Any:
    return _loaded(_target())


@functools.cache
def _loaded(target: str) -> Any:
    """Return the kernel compiled for ``target``; None for "off" or, with a warning, if it cannot be compiled."""
    if target == OFF:
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        warnings.warn("no C compiler (cc) here: PyTorch does the convolutions, which takes longer", stacklevel=2)
        return None
    try:
        library = _compiled(compiler, target)
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or "").strip() or str(error)
        if target != NATIVE:
            raise ValueError(
                f"PRUNING_KERNEL={target}: {compiler} does not compile for it; known are {OFF}, {NATIVE} "
                f"and what its -march takes, such as x86-64-v3: {told.splitlines()[0]}"
            ) from error
        warnings.warn(f"convolution.c could not be compiled, PyTorch does the convolutions: {told}", stacklevel=2)
        return None
    if not library.lanes():
        raise ValueError(
            f"PRUNING_KERNEL={target}: this processor does not have its instructions; unset it, or set it to {OFF}"
        )
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.pack.argtypes = [pointer, number, number, pointer]
    library.pack.restype = None
    library.windows.argtypes = [pointer, *[number] * 3, *[pointer] * 4, *[number] * 3, pointer]
    library.windows.restype = None
    return library


def _compiled(compiler: str, target: str) -> ctypes.CDLL:
    """Load the library for this source, compiler, target and processor; compile it, and keep it, if it is not there."""
    asked: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 120}
    version = subprocess.run([compiler, "--version"], **asked).stdout
    made_from = "\n".join((SOURCE.read_text(), version, " ".join(FLAGS), target, platform.machine(), _instructions()))
    name = f"convolution-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    kept = cache_folder() / name
    if kept.is_file():
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        try:
            subprocess.run([compiler, *FLAGS, f"-march={target}", "-o", str(made), str(SOURCE)], **asked)
        except subprocess.CalledProcessError:
            if target != NATIVE:
                raise
            # A compiler that does not know this processor.
            subprocess.run([compiler, *FLAGS, "-o", str(made), str(SOURCE)], **asked)
        with contextlib.suppress(OSError):  # a folder that cannot be written: compiled again next time
            write_whole(kept, made.read_bytes())
        return ctypes.CDLL(str(made))


def _instructions() -> str:
    """Read what this processor can do: nodes of a cluster share the folder, not the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
