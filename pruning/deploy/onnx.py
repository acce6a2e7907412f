"""A pruned network as ONNX, for any runtime: dense, as ONNX has no sparse layers.

>>> import tempfile
>>> import torch
>>> from pruning.notation import lenet
>>> with tempfile.TemporaryDirectory() as folder:
...     size = to_onnx(lenet("28x28-300-100-10"), (1, 28, 28), f"{folder}/model.onnx")
...     runtime = session(Path(folder, "model.onnx").read_bytes())
>>> runtime.run(None, {"images": torch.rand(16, 1, 28, 28).numpy()})[0].shape
(16, 10)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruning.deploy.stages import Pool, Stage, described, stages
from pruning.files import write_whole


def to_onnx(model: nn.Module, shape: Sequence[int], path: str | Path) -> int:
    """Write a sequential network as ONNX, images [batch, C, H, W] to logits [batch, classes]; size in bytes.

    The file is checked before it is written: by ONNX, and by ONNX Runtime, whose logits for
    random images must be those of PyTorch. Needs onnx and onnxruntime. Raises ``ValueError`` as
    ``stages`` does.
    """
    import onnx
    from onnx import TensorProto, helper

    # Own code: torch.onnx needs onnxscript, and its file's bytes change with PyTorch's version.
    chain = stages(model, shape)
    nodes, tensors, value = _nodes(chain)
    ends = {"images": shape, value: [math.prod(chain[-1].output)]}
    first, last = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *size]) for n, size in ends.items())
    graph = helper.make_graph(nodes, described(chain), [first], [last], tensors)
    # Operators of 2020 suffice: older runtimes can read the file too.
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="pruning")
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(model).cpu().eval()(images).numpy()
    difference = np.abs(session(data).run(None, {"images": images.numpy()})[0] - expected).max()
    if not difference <= 1e-4 * max(1, np.abs(expected).max()):
        raise RuntimeError(f"ONNX Runtime's logits differ from PyTorch's by {difference}")
    write_whole(Path(path), data)
    return len(data)


def _nodes(chain: Sequence[Stage]) -> tuple[list, list, str]:
    """Return the nodes, the tensors of the layers and the name of the outputs."""
    from onnx import helper, numpy_helper

    nodes: list = []
    tensors: list = []
    value = "images"

    def add(kind: str, name: str, *inputs: str, **settings) -> str:
        nodes.append(helper.make_node(kind, [value, *inputs], [name], **settings))
        return name

    for before, stage in zip([None, *chain], chain):
        parts = {f"{stage.name}.weight": stage.weight, f"{stage.name}.bias": stage.bias}
        tensors += [numpy_helper.from_array(part.astype(np.float32), name) for name, part in parts.items()]
        if not stage.convolution and (before is None or before.convolution):
            value = add("Flatten", "flat")
        if stage.convolution:
            value = add("Conv", stage.name, *parts, **_settings(stage))
        else:
            value = add("Gemm", stage.name, *parts, transB=1)
        largest = all(each.kind == "max" for each in stage.pools)  # ReLU of fewer values is the same after these
        if stage.relu and not largest:
            value = add("Relu", f"{stage.name}.relu")
        for number, each in enumerate(stage.pools, start=1):
            kind = "MaxPool" if each.kind == "max" else "AveragePool"
            value = add(kind, f"{stage.name}.pool{number if number > 1 else ''}", **_settings(each))
            if each.relu:
                value = add("Relu", f"{value}.relu")
        if stage.relu and largest:
            value = add("Relu", f"{stage.name}.relu")
    if chain[-1].convolution:
        value = add("Flatten", "flat")
    return nodes, tensors, value


def _settings(part: Stage | Pool) -> dict:
    """Return the attributes of a Conv or a pooling that differ from what ONNX takes for granted."""
    if isinstance(part, Pool):
        settings: dict = {"kernel_shape": part.kernel, "strides": part.stride, "pads": 2 * part.padding}
        if part.kind == "average":
            settings["count_include_pad"] = 1
        return {name: value for name, value in settings.items() if value != (0, 0, 0, 0)}
    settings = {"strides": part.stride, "pads": part.padding, "dilations": part.dilation, "group": part.groups}
    return {name: value for name, value in settings.items() if value not in ((1, 1), (0, 0, 0, 0), 1)}


def session(data: bytes):
    """Open a model's bytes in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
