"""Synapse pruning: masked layers and their controller, and above them a study.

    >>> import torch
    >>> from pruning import METHODS, PruneControl, masked
    >>> model = masked(torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2)))
    >>> control = PruneControl(model, requirement=0.99, method=METHODS["gradual"])

``pruning.control`` shows the training loop around it, ``pruning.methods`` lists the methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruning.control import PruneControl
    from pruning.layers import MaskedConv2d, MaskedLinear
    from pruning.masks import density, masked, masked_layers, unmasked
    from pruning.methods import METHODS, Method

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "MaskedConv2d",
    "MaskedLinear",
    "Method",
    "PruneControl",
    "density",
    "masked",
    "masked_layers",
    "unmasked",
]
_MODULES = {
    "MaskedConv2d": "layers",
    "MaskedLinear": "layers",
    "METHODS": "methods",
    "Method": "methods",
    "PruneControl": "control",
}


def __getattr__(name: str):
    """Import a name when it is first asked for: ``python -m pruning --help`` loads no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'pruning' has no attribute '{name}'")
    return getattr(importlib.import_module(f"pruning.{_MODULES.get(name, 'masks')}"), name)
