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

from pruning.masks import Synapses

Layers = Mapping[str, Synapses]
Scores = Mapping[str, Tensor]
Amounts = Mapping[str, float]


class Thresholds(dict[str, float]):
    """One threshold per layer; ``counts`` says how many synapses stay where scores are equal to it (None: none of them)."""

    counts: Mapping[str, int] | None = None

    @classmethod
    def counted(cls, pairs: Mapping[str, tuple[float, int]]) -> Thresholds:
        """Thresholds with counts, from both of each layer."""
        found = cls({name: threshold for name, (threshold, _) in pairs.items()})
        found.counts = {name: count for name, (_, count) in pairs.items()}
        return found


def std_threshold(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Multiply the standard deviation of each layer's weights by a quality factor (Han et al. 2015).

    ``amounts`` are the quality factors. The deviation is that of the weights still
    there, so the threshold follows a layer whose small weights have gone.
    """
    thresholds = Thresholds()
    for name, layer in layers.items():
        weights = layer.weight.detach()[layer.mask]
        thresholds[name] = amounts[name] * float(weights.std(correction=0)) if weights.numel() else math.inf
    return thresholds


def uniform(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Keep in every layer the fraction ``amounts`` of its synapses, those with the best scores."""
    return Thresholds.counted({
        name: _threshold(_unpruned(layers[name], scores[name]), _kept(layers[name].synapses, amounts[name])) for name in layers
    })


def global_threshold(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Set one threshold for all layers, so that together they keep the fraction ``amounts``.

    Where layers have amounts of their own, the mean over all synapses counts. Of the scores equal to the
    threshold every layer keeps the same share.
    """
    each = {name: _unpruned(layers[name], scores[name]).flatten() for name in layers}
    together = torch.cat([*each.values()])
    threshold, wanted = _threshold(together, _kept(together.numel(), _overall(layers, amounts)))
    above = {name: int((values > threshold).sum()) for name, values in each.items()}
    tied = {name: int((values == threshold).sum()) if threshold > -math.inf else 0 for name, values in each.items()}
    missing = max(wanted - sum(above.values()), 0)
    return Thresholds.counted({name: (threshold, above[name] + share) for name, share in _shared(missing, tied).items()})


def erk(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Keep in each layer its Erdős–Rényi-kernel density, together the fraction ``amounts``; see ``erk_densities``."""
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    return uniform(layers, scores, erk_densities(shapes, _overall(layers, amounts)))


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
    pairs = {name: (-math.inf, layer.significant) for name, layer in layers.items()}
    if kept < len(together):
        bound = together.kthvalue(len(together) - kept).values
        for name, values in ranked.items():
            pruned = min(int((lamps[name] <= bound).sum()), len(values) - 1)
            if pruned:
                pairs[name] = float(values[pruned - 1]), len(values) - pruned
    return Thresholds.counted(pairs)


def lamp_scores(values: Tensor) -> Tensor:
    """Divide each squared score by the sum of the squares of all that are not smaller; ``values`` [n] ascend."""
    squares = values.double().square()
    return squares / squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)


def above_threshold(layer: Synapses, scores: Tensor, threshold: float, count: int | None = None) -> Tensor:
    """Keep what scores above the threshold; what is pruned stays pruned.

    With ``count`` the first of those equal to the threshold, in the order of the weight's elements, stay too, until so many do.
    """
    keep = layer.mask & (scores > threshold)
    missing = 0 if count is None else count - int(keep.sum())
    if missing > 0:
        tied = (layer.mask & (scores == threshold)).flatten().nonzero()[:missing, 0]
        keep.view(-1)[tied] = True
    return keep


def spliced(layer: Synapses, scores: Tensor, threshold: float, count: int | None = None) -> Tensor:
    """Keep by two thresholds, as network surgery does (Guo et al. 2016, equation 3); ``count`` is not used.

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


def _kept(synapses: int, density: float) -> int:
    return max(round(density * synapses), 1)


def _threshold(scores: Tensor, kept: int) -> tuple[float, int]:
    """The score above which at most ``kept`` synapses stay, and ``kept``; pruned ones score minus infinity."""
    pruned = scores.numel() - kept
    return (float(scores.flatten().kthvalue(pruned).values) if pruned > 0 else -math.inf), kept


def _shared(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Share ``total`` in proportion to ``sizes``, in whole numbers; what rounding leaves goes to the largest remainders."""
    exact = {name: total * size / max(sum(sizes.values()), 1) for name, size in sizes.items()}
    shares = {name: int(value) for name, value in exact.items()}
    rest = min(total, sum(sizes.values())) - sum(shares.values())
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[:rest]:
        shares[name] += 1
    return shares
