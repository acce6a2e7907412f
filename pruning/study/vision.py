"""Import torchvision's datasets, models and transforms, also where it does not fit the installed torch."""

import sys

import torch

try:
    from torchvision import datasets, models, transforms
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    # Beside a CPU build of torch, torchvision may be unable to load its compiled operators, and
    # its import then stops where it describes two of them. Nothing here calls these; declared,
    # they let it pass. The declarations live as long as the Library object.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import datasets, models, transforms

__all__ = ["datasets", "models", "transforms"]
