"""What one classification costs in DRAM accesses and energy, at 45 nm.

    >>> from pruning.notation import lenet
    >>> loads = loads_of(lenet("28x28-300-100-10"), (1, 28, 28))      # of a masked network, or of any other
    >>> dense = classify(loads, "dense", on_chip=8 * 1024)
    >>> f"{dense.pj / 1e6:.0f} µJ, {dense.dram_words:,.0f} words from DRAM"
    '174 µJ, 265,646 words from DRAM'

The machine: one multiply-accumulate unit with its accumulator in a register, an on-chip SRAM, and
DRAM behind it. Every multiply-accumulate reads one weight and one activation from the SRAM. What
does not fit into the SRAM comes from DRAM, once per classification. Outputs are pooled in passing
and written to the SRAM once; that, ReLU and filling the SRAM from DRAM are not counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pruning.deploy.encodings import relative_codes
from pruning.masks import masked_layers

# pJ at 45 nm. Han et al. 2015, "Learning both Weights and Connections", figure 1, after Horowitz.
DRAM_PJ = 640.0  # 32 bits
SRAM_PJ = 5.0  # 32 bits from 32 KB
REGISTER_PJ = 1.0  # 32 bits
FORMS = ("dense", "pruned", "compressed")
# Multiply and add in pJ. Horowitz 2014, "Computing's energy problem", ISSCC, figure 1.1.9; the
# table of Han et al. 2015 has the 32-bit ones.
ARITHMETIC_PJ = {"float32": (3.7, 0.9), "int32": (3.1, 0.1), "int8": (0.2, 0.03)}
# pJ for 64 bits from a cache of so many bytes. Horowitz 2014, figure 1.1.9. Han et al. have 5 pJ
# for 32 bits from 32 KB, half of what this table gives.
CACHE_PJ = ((8 * 1024, 10.0), (32 * 1024, 20.0), (1024 * 1024, 100.0))


def sram_pj(size: int) -> float:
    """Give pJ for 32 bits from an SRAM of ``size`` bytes, by Horowitz's table.

    Between its sizes, energy is taken as a power of the size; outside, as that of the nearest.
    """
    if size <= CACHE_PJ[0][0]:
        return CACHE_PJ[0][1] / 2
    for (small, low), (large, high) in itertools.pairwise(CACHE_PJ):
        if size <= large:
            exponent = math.log(high / low) / math.log(large / small)
            return low * (size / small) ** exponent / 2
    return CACHE_PJ[-1][1] / 2


@dataclass(frozen=True)
class Load:
    """What one layer asks of the machine for one classification.

    ``output_positions`` outputs share each weight (height x width, 1 if linear); ``inputs`` and
    ``outputs`` are activations, the latter as the next layer takes them. ``codes`` relative
    indices of ``index_bits`` address the ``significant`` of all ``synapses``, fillers included.
    """

    name: str
    synapses: int
    significant: float
    biases: int
    output_positions: int
    inputs: int
    outputs: int
    codes: float
    index_bits: int

    @property
    def density(self) -> float:
        """Significant over all synapses."""
        return self.significant / self.synapses

    def macs(self, form: str) -> float:
        """Multiply-accumulates."""
        return (self.synapses if form == "dense" else self.significant) * self.output_positions

    def synapse_bits(self, form: str, weight_bits: int) -> float:
        """Bits of weights and indices: 32 per weight, ``weight_bits`` where compressed."""
        if form == "dense":
            return 32 * self.synapses
        return self.significant * (weight_bits if form == "compressed" else 32) + self.codes * self.index_bits

    def activation_bits(self) -> int:
        """Bits of the layer's inputs and outputs, which it needs at the same time."""
        return 32 * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Energy:
    """The cost of one classification or of one layer of it; words are of 32 bits."""

    name: str
    form: str
    macs: float
    weight_bytes: float
    dram_words: float
    sram_words: float
    dram_pj: float
    sram_pj: float
    arithmetic_pj: float

    @property
    def pj(self) -> float:
        """All energy in pJ."""
        return self.dram_pj + self.sram_pj + self.arithmetic_pj


def layer_energies(
    loads: Sequence[Load],
    form: str,
    *,
    on_chip: float = 0,
    sram: float = SRAM_PJ,
    dram: float = DRAM_PJ,
    arithmetic: str = "float32",
    weight_bits: int = 5,
) -> list[Energy]:
    """List each layer's energy for one classification.

    ``form``: ``dense`` has every weight in 32 bits, ``pruned`` the significant ones with relative
    indices, ``compressed`` has shared weights of ``weight_bits`` too (Han et al. 2016 use 5 for
    linear layers, 8 for convolutions). ``on_chip`` is the SRAM in bytes: it holds first the
    activations of the layer at work, then as much of all layers' weights as fits beside the
    largest of these, shared out evenly; the rest comes from DRAM. ``sram`` and ``dram`` are pJ
    for 32 bits; ``sram=sram_pj(on_chip)`` lets a larger memory cost more. Raises ``ValueError``
    for an unknown form or arithmetic.
    """
    if form not in FORMS or arithmetic not in ARITHMETIC_PJ:
        raise ValueError(
            f"form must be one of {FORMS}, arithmetic of {tuple(ARITHMETIC_PJ)}, got {form!r}, {arithmetic!r}"
        )
    if on_chip < 0 or not 1 <= weight_bits <= 8:
        raise ValueError(f"on_chip must be bytes, weight_bits 1 to 8, got {on_chip} and {weight_bits}")
    multiply, add = ARITHMETIC_PJ[arithmetic]
    chip_bits = 8 * on_chip
    busy = max(min(load.activation_bits(), chip_bits) for load in loads)
    # Biases, and shared weights as pruning.deploy.storage has them: float16, one codebook per layer.
    beside = [32 * load.biases + (16 * 2**weight_bits if form == "compressed" else 0) for load in loads]
    stored = [load.synapse_bits(form, weight_bits) + bits for load, bits in zip(loads, beside)]
    resident = min(1.0, (chip_bits - busy) / max(1, sum(stored)))
    energies = []
    for load, bits, once in zip(loads, stored, beside):
        macs = load.macs(form)
        spilled = max(0, load.activation_bits() - chip_bits)
        dram_words = (bits * (1 - resident) + spilled) / 32
        read = (load.synapse_bits(form, weight_bits) * load.output_positions + once) / 32
        sram_words = read + macs + load.outputs
        pj = macs * (multiply + add + REGISTER_PJ)
        if form != "dense":  # a position is the sum of the indices so far
            pj += load.codes * load.output_positions * ARITHMETIC_PJ["int32"][1]
        if form == "compressed":  # the shared weights lie in registers by then
            pj += macs * REGISTER_PJ
        energies.append(
            Energy(load.name, form, macs, bits / 8, dram_words, sram_words, dram_words * dram, sram_words * sram, pj)
        )
    return energies


def classify(loads: Sequence[Load], form: str, **machine) -> Energy:
    """Sum up the energy of one classification; ``machine`` as in ``layer_energies``."""
    layers = layer_energies(loads, form, **machine)
    counted = [name for name in Energy.__dataclass_fields__ if name not in ("name", "form")]
    return Energy("all", form, **{name: sum(getattr(layer, name) for layer in layers) for name in counted})


def loads_of(model: nn.Module, shape: tuple[int, int, int]) -> list[Load]:
    """Trace the loads of all Linear and Conv2d layers of ``model`` for one image of ``shape`` (C, H, W).

    The layers are taken as a chain, in the order in which they run. Masks count where layers
    have them; a layer without is dense. At padded borders every position counts as a whole one.
    The model may lie on the meta device.
    """
    masks = {name: layer.mask for name, layer in masked_layers(model).items()}
    loads: list[Load] = []

    def observe(name: str):
        def hook(layer: nn.Linear | nn.Conv2d, inputs: tuple, output: torch.Tensor) -> None:
            size, channels = layer.weight.numel(), len(layer.weight)
            if name in masks:
                significant = int(masks[name].sum())
                width, codes = relative_codes(masks[name].cpu().numpy())
            else:
                significant, width, codes = size, 1, size
            biases = 0 if layer.bias is None else channels
            output_positions = output[0].numel() // channels
            taken, given = inputs[0][0].numel(), output[0].numel()
            loads.append(Load(name, size, significant, biases, output_positions, taken, given, codes, width))

        return hook

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise ValueError("the model has no Linear or Conv2d layer")
    hooks = [layer.register_forward_hook(observe(name)) for name, layer in layers]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, device=layers[0][1].weight.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return [replace(load, outputs=after.inputs) for load, after in itertools.pairwise(loads)] + loads[-1:]


def at_density(load: Load, density: float) -> Load:
    """Prune a load's synapses at random to ``density``: what its indices take on average.

    A gap is then geometric, so a code of filler ``f`` is followed by another with probability
    (1 - density)^f, and a synapse takes 1 / (1 - that) codes.
    """
    if not 0 < density <= 1:
        raise ValueError(f"the density of {load.name} must be above 0 and at most 1, got {density}")
    significant = load.synapses * density
    costs = []
    for width in range(1, 17):
        again = (1 - density) ** (2**width - 1)
        codes = significant / (1 - again)
        costs.append((width * codes, width, codes))
    _, width, codes = min(costs)
    return replace(load, significant=significant, codes=codes, index_bits=width)
