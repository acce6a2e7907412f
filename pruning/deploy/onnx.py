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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruning.deploy.stages import described, stages
from pruning.files import write_whole


def to_onnx(model: nn.Module, shape: Sequence[int], path: str | Path) -> int:
    """Write a sequential network as ONNX, images [batch, C, H, W] to logits [batch, classes]; size in bytes.

    The file is checked before it is written: by ONNX, and by ONNX Runtime, whose logits for
    random images must be those of PyTorch. Needs onnx and onnxruntime. Raises ``ValueError`` as
    ``stages`` does.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # Own code: torch.onnx needs onnxscript, and its file's bytes change with PyTorch's version.
    chain = stages(model, shape)
    nodes, tensors, value = [], [], "images"

    def add(kind: str, name: str, *inputs: str, **settings) -> str:
        nodes.append(helper.make_node(kind, [value, *inputs], [name], **settings))
        return name

    for before, stage in zip([None, *chain], chain):
        parts = {f"{stage.name}.weight": stage.weight, f"{stage.name}.bias": stage.bias}
        tensors += [numpy_helper.from_array(part.astype(np.float32), name) for name, part in parts.items()]
        if not stage.convolution and (before is None or before.convolution):
            value = add("Flatten", "flat")
        value = add("Conv", stage.name, *parts) if stage.convolution else add("Gemm", stage.name, *parts, transB=1)
        if stage.pool:
            value = add("MaxPool", f"{stage.name}.pool", kernel_shape=[2, 2], strides=[2, 2])
        if stage.relu:
            value = add("Relu", f"{stage.name}.relu")
    ends = {"images": shape, value: [len(chain[-1].bias)]}
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


def session(data: bytes):
    """Open a model's bytes in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
