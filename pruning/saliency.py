"""Which synapses matter: criteria score them, allocations turn scores into thresholds per layer.

A criterion maps a masked layer to scores of its weight's shape, higher for what should stay.
An allocation maps the scores of all layers and an amount to one threshold per layer; a synapse
stays when its score is above its layer's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.masks import MaskedConv2d, MaskedLinear

Layer = MaskedLinear | MaskedConv2d
Scores = Mapping[str, Tensor]
Amounts = Mapping[str, float]


def magnitude(layer: Layer, generator: torch.Generator) -> Tensor:
    """Absolute weight (Han et al. 2015); ``generator`` is not used."""
    return layer.weight.detach().abs()


def random(layer: Layer, generator: torch.Generator) -> Tensor:
    """Uniform noise in [0, 1): the control that every criterion must beat."""
    return torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device)


def by_deviation(layers: Mapping[str, Layer], scores: Scores, amounts: Amounts) -> dict[str, float]:
    """Han et al. 2015: a quality factor times the standard deviation of the layer's weights.

    ``amounts`` are the quality factors per layer. The deviation is that of the weights still
    left, so the threshold follows a layer whose small weights have gone.
    """
    thresholds = {}
    for name, layer in layers.items():
        left = layer.weight.detach()[layer.mask]
        thresholds[name] = amounts[name] * float(left.std(correction=0)) if left.numel() else math.inf
    return thresholds


def uniform(layers: Mapping[str, Layer], scores: Scores, amounts: Amounts) -> dict[str, float]:
    """Every layer keeps the fraction ``amounts`` of its synapses, those with the best scores."""
    return {name: _threshold(_left(layers[name], scores[name]), amounts[name]) for name in layers}


def across(layers: Mapping[str, Layer], scores: Scores, amounts: Amounts) -> dict[str, float]:
    """One threshold for all layers, so that together they keep the fraction ``amounts``.

    The amount is the same for every layer; where layers were given their own, the mean over
    all synapses counts.
    """
    together = torch.cat([_left(layers[name], scores[name]).flatten() for name in layers])
    synapses = {name: layer.synapses for name, layer in layers.items()}
    density = sum(amounts[name] * count for name, count in synapses.items()) / sum(synapses.values())
    return dict.fromkeys(layers, _threshold(together, density))


def _left(layer: Layer, scores: Tensor) -> Tensor:
    return torch.where(layer.mask, scores, -math.inf)


def _threshold(scores: Tensor, density: float) -> float:
    """The score above which the fraction ``density`` of all synapses, pruned ones counted, stays."""
    cut = scores.numel() - max(round(density * scores.numel()), 1)
    return float(scores.flatten().kthvalue(cut).values) if cut > 0 else -math.inf
