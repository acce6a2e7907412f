"""How long one image takes: PyTorch, ONNX Runtime and the C program side by side.

``measure_latency(model, images)`` is a table of microseconds, one row per program.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from pruning.deploy.c99 import compiled, run_program, to_c
from pruning.deploy.dead_neurons import remove_dead_neurons
from pruning.deploy.onnx import session, to_onnx
from pruning.masks import unmasked


def measure_latency(model: nn.Module, images: Tensor, rounds: int = 15):
    """Measure microseconds per image at batch 1 on one thread; a DataFrame with one row per program.

    Programs take turns, ``rounds`` times over ``images`` [N, C, H, W]; ``us`` is the median over
    the rounds, ``low`` and ``high`` are the quartiles, ``speedup`` counts against ONNX Runtime
    dense. All is processor time, so a busy machine disturbs it little. ``a call alone`` is what
    Python and ONNX Runtime take for a network without work: the other rows of ONNX Runtime
    contain it.
    """
    import pandas

    threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        programs = _programs(model, images, Path(folder))
        torch.set_num_threads(1)
        try:
            times = [{name: program() for name, program in programs.items()} for _ in range(rounds + 1)][1:]
        finally:
            torch.set_num_threads(threads)
    quartiles = pandas.DataFrame(times, columns=list(programs)).quantile([0.5, 0.25, 0.75]).T
    table = quartiles.set_axis(["us", "low", "high"], axis=1).rename_axis("program").reset_index()
    return table.assign(speedup=quartiles.loc["ONNX Runtime dense", 0.5] / table["us"])


def _programs(model: nn.Module, images: Tensor, folder: Path) -> dict[str, Callable[[], float]]:
    """Programs by name: functions that classify all images once and return microseconds per image."""
    shape = tuple(images.shape[1:])
    small = remove_dead_neurons(model, shape)
    plain = unmasked(copy.deepcopy(model)).eval()
    single = images.split(1)

    def timed(call: Callable, inputs: Sequence) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            for image in inputs:
                call(image)
            return (time.process_time() - start) * 1e6 / len(inputs)

        return run

    def onnx_runtime(data: bytes) -> Callable[[], float]:
        ready = session(data)
        return timed(lambda image: ready.run(None, {"images": image}), [image.numpy() for image in single])

    def c_program(quantize: int | None) -> Callable[[], float]:
        program = compiled(to_c(small, shape, quantize), folder / f"model{quantize}")
        return lambda: float(run_program(program, images, rounds=1)[0]) / 1e3

    def torch_dense(image: Tensor) -> None:
        with torch.inference_mode():
            plain(image)

    to_onnx(model, shape, folder / "dense.onnx")
    to_onnx(small, shape, folder / "compact.onnx")
    return {
        "PyTorch dense": timed(torch_dense, single),
        "ONNX Runtime dense": onnx_runtime((folder / "dense.onnx").read_bytes()),
        "ONNX Runtime compact": onnx_runtime((folder / "compact.onnx").read_bytes()),
        "ONNX Runtime, a call alone": onnx_runtime(_nothing(shape)),
        "C": c_program(None),
        "C, 8-bit weights": c_program(8),
    }


def _nothing(shape: Sequence[int]) -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name in ("images", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["same"])], "nothing", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()
