"""AlexNet and VGG-16 at the densities of other networks: what one image would cost.

classify(what_if("alexnet", 0.11), "compressed", on_chip=1024**2)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning.deploy.energy import Load, at_density, loads_of


def what_if(network: str, density: float | Mapping[str, float]) -> list[Load]:
    """Give the loads of torchvision's ``alexnet`` or ``vgg16`` at given densities, for ImageNet.

    ``density`` is one for all layers, or one each for ``conv`` and ``fc``, or by the layers'
    names; Han et al. 2015 reached 0.11 with AlexNet and 0.075 with VGG-16 in all. Only shapes are
    made: no weight takes memory.
    """
    from pruning.study._torchvision import models

    if network not in ("alexnet", "vgg16"):
        raise ValueError(f"unknown network {network!r}; there are alexnet and vgg16")
    with torch.device("meta"):
        loads = loads_of(models.get_model(network, weights=None), (3, 224, 224))
    if not isinstance(density, Mapping):
        return [at_density(load, density) for load in loads]
    names = {load.name: (load.name, "fc" if load.output_positions == 1 else "conv") for load in loads}
    unknown = set(density) - {name for both in names.values() for name in both}
    if unknown:
        raise ValueError(f"no layer {sorted(unknown)} in {network}; there are conv, fc and {list(names)}")
    chosen = {name: next((density[key] for key in keys if key in density), 1.0) for name, keys in names.items()}
    return [at_density(load, chosen[load.name]) for load in loads]
