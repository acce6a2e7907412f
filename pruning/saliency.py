"""Which synapses matter: criteria score them, allocations turn scores into thresholds per layer.

A criterion maps a masked layer to scores of its weight's shape, higher for what should stay. A
criterion of gradients (``snip``, ``sensitivity``, ``movement``) is asked after every backward
pass, gets its last scores too, and needs ``dynamics.Trace`` in its method.
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


@torch.no_grad()
def snip(layer: Layer, scores: Tensor | None) -> Tensor:
    """Connection sensitivity |w dL/dw| of one mini-batch (Lee et al. 2019).

    That is the derivative of the loss with respect to a gate that multiplies the synapse.
    """
    return (layer.weight * layer.weight.grad).abs()


@torch.no_grad()
def sensitivity(layer: Layer, scores: Tensor | None) -> Tensor:
    """Connection sensitivity of single mini-batches, averaged over about the last hundred of them."""
    found = snip(layer, None)
    return found if scores is None else scores.lerp(found, 0.01)


@torch.no_grad()
def movement(layer: Layer, scores: Tensor | None) -> Tensor:
    """Sum of -w dL/dw over the iterations (Sanh et al. 2020): high for weights that move away from zero."""
    found = -layer.weight * layer.weight.grad
    return found if scores is None else scores + found


def cut(layer: Layer, scores: Tensor, threshold: float) -> Tensor:
    """The new mask: what scores above the threshold stays, and what is cut stays cut."""
    return layer.mask & (scores > threshold)


def spliced(layer: Layer, scores: Tensor, threshold: float) -> Tensor:
    """The new mask of network surgery (Guo et al. 2016, equation 3).

    Scores below 0.9 of the threshold are cut, those above 1.1 of it come back, and between them
    the mask stays as it is. The paper's own threshold is the mean of a layer's magnitudes plus
    some of their standard deviations; any allocation will do here.
    """
    return (layer.mask & (scores >= 0.9 * threshold)) | (scores > 1.1 * threshold)


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
    return dict.fromkeys(layers, _threshold(together, _together(layers, amounts)))


def erk(layers: Mapping[str, Layer], scores: Scores, amounts: Amounts) -> dict[str, float]:
    """Each layer keeps its Erdős–Rényi-kernel density, together the fraction ``amounts``; see ``erk_densities``."""
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    densities = erk_densities(shapes, _together(layers, amounts))
    return {name: _threshold(_left(layers[name], scores[name]), densities[name]) for name in layers}


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Densities in proportion to the sum of a weight's dimensions over their product.

    So Mocanu et al. 2018 for linear layers [out, in] and Evci et al. 2020 for convolutions
    [out, in, height, width]. Together they keep the fraction ``density``, in (0, 1]; a layer that
    would be denser than 1 is kept whole, and the others share what is left.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    found = dict.fromkeys(shapes, 1.0)
    sparse = set(shapes)
    while sparse:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in shapes if name not in sparse)
        factor = budget / sum(sum(shapes[name]) for name in sparse)
        found |= {name: min(factor * sum(shapes[name]) / sizes[name], 1.0) for name in sparse}
        whole = {name for name in sparse if found[name] >= 1}
        if not whole:
            break
        sparse -= whole
    return found


def lamp(layers: Mapping[str, Layer], scores: Scores, amounts: Amounts) -> dict[str, float]:
    """LAMP (Lee et al. 2021): together the layers keep the fraction ``amounts`` by ``lamp_scores``.

    Every layer keeps at least its best synapse. ``scores`` must not be negative.
    """
    ranked = {name: scores[name][layer.mask].sort().values for name, layer in layers.items() if layer.mask.any()}
    lamps = {name: lamp_scores(values) for name, values in ranked.items()}
    synapses = sum(layer.synapses for layer in layers.values())
    kept = max(round(_together(layers, amounts) * synapses), len(ranked))
    together = torch.cat([*lamps.values()])
    thresholds = dict.fromkeys(layers, -math.inf)
    if kept >= len(together):
        return thresholds
    bound = together.kthvalue(len(together) - kept).values
    for name, values in ranked.items():
        gone = values[(lamps[name] <= bound) & (values < values[-1])]
        if len(gone):
            thresholds[name] = float(gone[-1])
    return thresholds


def lamp_scores(values: Tensor) -> Tensor:
    """Each score squared, over the sum of the squares of all that are not smaller; ``values`` [n] ascend."""
    squares = values.double().square()
    return squares / squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)


def _together(layers: Mapping[str, Layer], amounts: Amounts) -> float:
    synapses = {name: layer.synapses for name, layer in layers.items()}
    return sum(amounts[name] * count for name, count in synapses.items()) / sum(synapses.values())


def _left(layer: Layer, scores: Tensor) -> Tensor:
    return torch.where(layer.mask, scores, -math.inf)


def _threshold(scores: Tensor, density: float) -> float:
    """The score above which the fraction ``density`` of all synapses, pruned ones counted, stays."""
    cut = scores.numel() - max(round(density * scores.numel()), 1)
    return float(scores.flatten().kthvalue(cut).values) if cut > 0 else -math.inf
