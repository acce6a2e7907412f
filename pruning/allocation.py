"""How much of which layer: allocations turn scores into one threshold per layer, maskings turn thresholds into masks.

    >>> import torch
    >>> from pruning import masked, masked_layers
    >>> from pruning.criteria import magnitude
    >>> layers = masked_layers(masked(torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))))
    >>> scores = {name: magnitude(layer) for name, layer in layers.items()}
    >>> thresholds = global_threshold(layers, scores, dict.fromkeys(layers, 0.25))
    >>> sum(int((scores[name] > thresholds[name]).sum()) for name in layers)     # of 200 synapses
    50

An allocation takes the layers, their scores and one amount per layer: the density to keep, but for ``std_threshold``,
which takes a quality factor. A synapse stays when its score is above its layer's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.layers import Synapses

Layers = Mapping[str, Synapses]
Scores = Mapping[str, Tensor]
Amounts = Mapping[str, float]
Thresholds = dict[str, float]


def std_threshold(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Multiply the standard deviation of each layer's weights by a quality factor (Han et al. 2015).

    ``amounts`` are the quality factors. The deviation is that of the weights still
    there, so the threshold follows a layer whose small weights have gone.
    """
    thresholds = {}
    for name, layer in layers.items():
        weights = layer.weight.detach()[layer.mask]
        thresholds[name] = amounts[name] * float(weights.std(correction=0)) if weights.numel() else math.inf
    return thresholds


def uniform(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Keep in every layer the fraction ``amounts`` of its synapses, those with the best scores."""
    return {name: _threshold(_unpruned(layers[name], scores[name]), amounts[name]) for name in layers}


def global_threshold(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Set one threshold for all layers, so that together they keep the fraction ``amounts``.

    Where layers have amounts of their own, the mean over all synapses counts.
    """
    together = torch.cat([_unpruned(layers[name], scores[name]).flatten() for name in layers])
    return dict.fromkeys(layers, _threshold(together, _overall(layers, amounts)))


def erk(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Keep in each layer its Erdős–Rényi-kernel density, together the fraction ``amounts``; see ``erk_densities``."""
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    densities = erk_densities(shapes, _overall(layers, amounts))
    return {name: _threshold(_unpruned(layers[name], scores[name]), densities[name]) for name in layers}


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Compute densities in proportion to the sum of a weight's dimensions over their product.

    So Mocanu et al. 2018 for linear layers [out, in] and Evci et al. 2020 for convolutions
    [out, in, height, width]. Together they keep the fraction ``density``, in (0, 1]; a layer that
    would be denser than 1 is kept whole, and the others share what remains.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    densities = dict.fromkeys(shapes, 1.0)
    sparse = set(shapes)
    while sparse:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in shapes if name not in sparse)
        factor = budget / sum(sum(shapes[name]) for name in sparse)
        densities |= {name: min(factor * sum(shapes[name]) / sizes[name], 1.0) for name in sparse}
        whole = {name for name in sparse if densities[name] >= 1}
        if not whole:
            break
        sparse -= whole
    return densities


def lamp(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Keep together the fraction ``amounts`` by ``lamp_scores`` (LAMP, Lee et al. 2021).

    Every layer keeps at least its best synapse. ``scores`` must not be negative.
    """
    ranked = {name: scores[name][layer.mask].sort().values for name, layer in layers.items() if layer.mask.any()}
    lamps = {name: lamp_scores(values) for name, values in ranked.items()}
    synapses = sum(layer.synapses for layer in layers.values())
    kept = max(round(_overall(layers, amounts) * synapses), len(ranked))
    together = torch.cat([*lamps.values()])
    thresholds = dict.fromkeys(layers, -math.inf)
    if kept >= len(together):
        return thresholds
    bound = together.kthvalue(len(together) - kept).values
    for name, values in ranked.items():
        pruned = values[(lamps[name] <= bound) & (values < values[-1])]
        if len(pruned):
            thresholds[name] = float(pruned[-1])
    return thresholds


def lamp_scores(values: Tensor) -> Tensor:
    """Divide each squared score by the sum of the squares of all that are not smaller; ``values`` [n] ascend."""
    squares = values.double().square()
    return squares / squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)


def above_threshold(layer: Synapses, scores: Tensor, threshold: float) -> Tensor:
    """Keep what scores above the threshold; what is pruned stays pruned."""
    return layer.mask & (scores > threshold)


def spliced(layer: Synapses, scores: Tensor, threshold: float) -> Tensor:
    """Keep by two thresholds, as network surgery does (Guo et al. 2016, equation 3).

    Scores below 0.9 of the threshold are pruned, those above 1.1 of it come back, and between them
    the mask stays as it is. The paper's own threshold is the mean of a layer's magnitudes plus
    some of their standard deviations; any allocation will do here.
    """
    return (layer.mask & (scores >= 0.9 * threshold)) | (scores > 1.1 * threshold)


def _overall(layers: Layers, amounts: Amounts) -> float:
    synapses = {name: layer.synapses for name, layer in layers.items()}
    return sum(amounts[name] * count for name, count in synapses.items()) / sum(synapses.values())


def _unpruned(layer: Synapses, scores: Tensor) -> Tensor:
    return torch.where(layer.mask, scores, -math.inf)


def _threshold(scores: Tensor, density: float) -> float:
    """Find the score above which the fraction ``density`` of all synapses, pruned ones counted, stays."""
    pruned = scores.numel() - max(round(density * scores.numel()), 1)
    return float(scores.flatten().kthvalue(pruned).values) if pruned > 0 else -math.inf
