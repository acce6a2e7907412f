"""Which synapse matters: criteria score the synapses of a layer, higher for what should stay.

    >>> import torch
    >>> from pruning import masked
    >>> layer = masked(torch.nn.Linear(3, 1))
    >>> layer.set_mask(torch.tensor([[True, False, True]]))
    >>> scores = magnitude(layer)                 # [1, 3], as the weight
    >>> bool(scores[0, 1] == 0)
    True

A criterion returns scores of the weight's shape. ``magnitude`` and ``random`` need the layer alone.
``snip``, ``ema_snip`` and ``movement`` read its gradient: they are asked after every backward pass, get
their last scores too, and need the hook ``hooks.GradientScores``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.layers import Synapses


def magnitude(layer: Synapses, generator: torch.Generator | None = None) -> Tensor:
    """Score by the absolute weight (Han et al. 2015), where it learns under the mask too; ``generator`` is not used."""
    return layer.parameter.detach().abs()


def random(layer: Synapses, generator: torch.Generator | None = None) -> Tensor:
    """Score by uniform noise in [0, 1): the baseline that every criterion must beat."""
    return torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device)


@torch.no_grad()
def snip(layer: Synapses, scores: Tensor | None = None) -> Tensor:
    """Score by the connection sensitivity |w dL/dw| of one mini-batch (Lee et al. 2019).

    That is the derivative of the loss with respect to a gate that multiplies the synapse.
    """
    return (layer.weight * _gradient(layer)).abs()


@torch.no_grad()
def ema_snip(layer: Synapses, scores: Tensor | None = None) -> Tensor:
    """Score by the connection sensitivity, averaged exponentially over about the last hundred mini-batches."""
    latest = snip(layer)
    return latest if scores is None else scores.lerp(latest, 0.01)


@torch.no_grad()
def movement(layer: Synapses, scores: Tensor | None = None) -> Tensor:
    """Score by the sum of -w dL/dw over iterations (Sanh et al. 2020): high for weights that move away from zero."""
    latest = -layer.weight * _gradient(layer)
    return latest if scores is None else scores + latest


def _gradient(layer: Synapses) -> Tensor:
    if layer.gradient is None:
        raise RuntimeError("the layer has no gradient: score it after a backward pass in which it took part")
    return layer.gradient
