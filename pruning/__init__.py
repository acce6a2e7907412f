"""Synapse pruning: masked layers and their controller, and above them a study.

    from pruning import METHODS, PruneControl, masked, unmasked

    model = masked(model)                                           # layers with masks, in place
    control = PruneControl(model, requirement=0.99, method=METHODS["gradual"], optimizer=optimizer)
"""

from pruning.control import PruneControl
from pruning.masks import MaskedConv2d, MaskedLinear, density, masked, masked_layers, unmasked
from pruning.methods import METHODS, Method

__version__ = "0.1.0"
__all__ = [
    "METHODS", "MaskedConv2d", "MaskedLinear", "Method", "PruneControl", "density", "masked", "masked_layers", "unmasked",
]
