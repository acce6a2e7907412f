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
which takes a quality factor. A synapse stays when its score is above its layer's threshold. Where several score just
the threshold, as in a layer that starts at zero, so many of them stay that what is asked for is what is kept: layers
share them in proportion, none is emptied by it, and within a layer a fixed order decides.
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
Thresholds = Mapping[str, float]


class Threshold(float):
    """The score above which synapses stay, and how many stay of those that have just this score: ``equals``."""

    equals: int

    def __new__(cls, value: float, equals: int = 0) -> Threshold:
        """Make a threshold; ``equals`` is 0 or more."""
        threshold = super().__new__(cls, value)
        threshold.equals = equals
        return threshold


def std_threshold(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Multiply the standard deviation of each layer's weights by a quality factor (Han et al. 2015).

    ``amounts`` are the quality factors. The deviation is that of the weights still
    there, so the threshold follows a layer whose small weights have gone. Weights that are all equal stay.
    """
    thresholds = {}
    for name, layer in layers.items():
        weights = layer.weight.detach()[layer.mask]
        deviation = float(weights.std(correction=0)) if weights.numel() else math.inf
        thresholds[name] = Threshold(amounts[name] * deviation, 0 if deviation else weights.numel())
    return thresholds


def uniform(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Keep in every layer the fraction ``amounts`` of its synapses, those with the best scores."""
    return _each(layers, scores, amounts)


def global_threshold(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Set one threshold for all layers, so that together they keep the fraction ``amounts``.

    Where layers have amounts of their own, the mean over all synapses counts.
    """
    present = {name: _unpruned(layers[name], scores[name]).flatten() for name in layers}
    together = torch.cat([*present.values()])
    bound = _threshold(together, _count(_overall(layers, amounts), together.numel()))
    if not bound.equals:
        return dict.fromkeys(layers, bound)
    kept = _shared(present, bound, bound.equals)
    return {name: _threshold(values, kept[name]) for name, values in present.items()}


def erk(layers: Layers, scores: Scores, amounts: Amounts) -> Thresholds:
    """Keep in each layer its Erdős–Rényi-kernel density, together the fraction ``amounts``; see ``erk_densities``."""
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    densities = erk_densities(shapes, _overall(layers, amounts))
    return _each(layers, scores, densities)


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
    together = torch.cat([*lamps.values()])
    bound = _threshold(together, max(_count(_overall(layers, amounts), _synapses(layers)), len(ranked)))
    kept = _shared(lamps, bound, bound.equals)
    none = dict.fromkeys(layers, Threshold(-math.inf))
    return none | {name: _threshold(values, max(kept[name], 1)) for name, values in ranked.items()}


def lamp_scores(values: Tensor) -> Tensor:
    """Divide each squared score by the sum of the squares of all that are not smaller; ``values`` [n] ascend."""
    squares = values.double().square()
    return squares / squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)


def above_threshold(layer: Synapses, scores: Tensor, threshold: float) -> Tensor:
    """Keep what scores above the threshold, and its ``equals``; what is pruned stays pruned."""
    keep = layer.mask & (scores > threshold)
    equals = threshold.equals if isinstance(threshold, Threshold) else 0
    if equals:
        places = (layer.mask & (scores == threshold)).flatten().nonzero().flatten()
        # Multiples of the golden ratio, modulo 1, spread what stays over rows and columns (a Weyl sequence).
        order = (places.double() * 0.6180339887498949).frac().argsort(stable=True)
        flat = keep.flatten()
        flat[places[order[:equals]]] = True
        keep = flat.view(keep.shape)
    return keep


def spliced(layer: Synapses, scores: Tensor, threshold: float) -> Tensor:
    """Keep by two thresholds, as network surgery does (Guo et al. 2016, equation 3).

    Scores below 0.9 of the threshold are pruned, those above 1.1 of it come back, and between them
    the mask stays as it is. The paper's own threshold is the mean of a layer's magnitudes plus
    some of their standard deviations; any allocation will do here.
    """
    return (layer.mask & (scores >= 0.9 * threshold)) | (scores > 1.1 * threshold)


def _synapses(layers: Layers) -> int:
    return sum(layer.synapses for layer in layers.values())


def _overall(layers: Layers, amounts: Amounts) -> float:
    return sum(amounts[name] * layer.synapses for name, layer in layers.items()) / _synapses(layers)


def _unpruned(layer: Synapses, scores: Tensor) -> Tensor:
    return torch.where(layer.mask, scores, -math.inf)


def _count(density: float, synapses: int) -> int:
    """Count the synapses of a density, at least one."""
    return max(round(density * synapses), 1)


def _each(layers: Layers, scores: Scores, densities: Amounts) -> Thresholds:
    counts = {name: _count(densities[name], layer.synapses) for name, layer in layers.items()}
    return {name: _threshold(_unpruned(layers[name], scores[name]), counts[name]) for name in layers}


def _threshold(scores: Tensor, kept: int) -> Threshold:
    """Find the score above which the best ``kept`` lie, and how many of those that score just it are of them."""
    rest = scores.numel() - kept
    if rest <= 0:
        return Threshold(-math.inf)
    bound = float(scores.flatten().kthvalue(rest).values)
    return Threshold(bound, kept - int((scores > bound).sum()) if bound > -math.inf else 0)


def _shared(scores: Scores, bound: float, equals: int) -> dict[str, int]:
    """Count what each layer keeps above a common bound, with its part of the ``equals`` that score just it.

    Parts are proportional, by the largest remainders; a layer with nothing above the bound gets one first.
    """
    above = {name: int((values > bound).sum()) for name, values in scores.items()}
    alike = {name: int((values == bound).sum()) for name, values in scores.items()}
    exact = {name: equals * count / max(sum(alike.values()), 1) for name, count in alike.items()}
    parts = {name: int(part) for name, part in exact.items()}
    for name in sorted(exact, key=lambda name: parts[name] - exact[name])[: equals - sum(parts.values())]:
        parts[name] += 1
    for name in [name for name, count in alike.items() if count and not above[name] + parts[name]]:
        giver = max(parts, key=lambda other: above[other] + parts[other] if parts[other] else -1)
        if parts[giver] and above[giver] + parts[giver] > 1:
            parts[giver], parts[name] = parts[giver] - 1, 1
    return {name: above[name] + parts[name] for name in scores}
