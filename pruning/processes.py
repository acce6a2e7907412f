"""What several processes that train one model must share, so that all of them prune alike.

As under ``DistributedDataParallel``: parameters and their gradients are the same in all processes, and so is the
accuracy that the loop reports, which it has to reduce itself. Where there is one process, nothing is done. All
processes have to call these functions, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as processes


def several() -> bool:
    """Say whether there is more than one process."""
    return processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1


def mean(tensor: Tensor) -> Tensor:
    """Return the average of a tensor over the processes."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    processes.all_reduce(total)
    return total / processes.get_world_size()


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in the first process, in place."""
    if several():
        for tensor in tensors:
            processes.broadcast(tensor.detach(), 0)
