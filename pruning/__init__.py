"""Iterative synapse pruning: masked layers, prune control, and the study around them."""

from pruning.masks import MaskedConv2d, MaskedLinear, density, masked, masked_layers, unmasked

__version__ = "0.1.0"
__all__ = ["MaskedConv2d", "MaskedLinear", "density", "masked", "masked_layers", "unmasked"]
