"""A pruned network on a device: fewer neurons, ONNX, or one C99 file of its synapses.

    small, short = compact(model, notation)       # the same function in fewer neurons
    to_onnx(small, short, "model.onnx")           # for any ONNX runtime, dense
    source = to_c(small, short, quantize=8)       # int classify(const float *pixels)

From the command line, for a network stored by ``pruning.deploy.storage`` or a state dict of PyTorch:

    python -m pruning.deploy.export MODEL OUT_DIR [--quantize 8]
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from pruning.deploy import storage
from pruning.files import write_whole
from pruning.masks import masked, masked_layers, unmasked
from pruning.study.networks import input_shape, lenet

FLAGS = ("-std=c99", "-O3", "-march=native", "-Wall", "-Wextra", "-Werror")
LANES = 8  # floats of a 256-bit register
REGISTERS = 8  # sums to work on at once: two additions begin in each cycle, and each takes four


@dataclass(eq=False)
class _Stage:
    """A layer with what follows it; weight [out, in, k, k] or [out, in], ``shape`` (C, H, W) of its input."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    shape: tuple[int, int, int]
    pool: bool = False
    relu: bool = False

    @property
    def sums(self) -> tuple[int, int]:
        """Height and width of the layer's output before pooling."""
        if self.weight.ndim == 2:
            return 1, 1
        return tuple(size - kernel + 1 for size, kernel in zip(self.shape[1:], self.weight.shape[2:]))

    @property
    def output(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of what the next stage receives."""
        height, width = (size // 2 if self.pool else size for size in self.sums)
        return len(self.bias), height, width


def _stages(model: nn.Module, notation: str) -> list[_Stage]:
    with torch.device("meta"):
        expected = dict(lenet(notation).named_children())
    children = dict(model.named_children())
    if list(children) != list(expected) or not all(
        isinstance(child, type(expected[name])) and _shape(child) == _shape(expected[name])
        for name, child in children.items()
    ):
        raise ValueError(f"the model is not a lenet({notation!r}), masked or plain")
    stages: list[_Stage] = []
    shape = input_shape(notation)
    for name, child in unmasked(copy.deepcopy(model)).named_children():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            shape = stages[-1].output if stages else shape
            weight, bias = (
                tensor.detach().cpu().contiguous().double().numpy() for tensor in (child.weight, child.bias)
            )
            stages.append(_Stage(name, weight, bias, shape))
        elif isinstance(child, nn.MaxPool2d):
            stages[-1].pool = True
        elif isinstance(child, nn.ReLU):
            stages[-1].relu = True
    return stages


def _shape(layer: nn.Module) -> torch.Size | None:
    return layer.weight.shape if hasattr(layer, "weight") else None


def compact(model: nn.Module, notation: str) -> tuple[nn.Module, str]:
    """The network without neurons and filters that have no synapse in or none out, and its notation.

    What such a neuron puts out in spite of having no input, the ReLU of its bias, is folded into
    the biases of the next layer: no padding and maximum pooling leave it the same everywhere. So
    outputs change by no more than the rounding of float32. A layer keeps at least one neuron.
    Returns a new masked model; a weight of zero counts as pruned. Raises ``ValueError`` for
    another model than a ``lenet(notation)``, masked or plain.
    """
    stages = _stages(model, notation)
    for stage, after in zip(stages, stages[1:]):
        silent = ~stage.weight.any(axis=tuple(range(1, stage.weight.ndim)))
        constant = np.where(silent, np.maximum(stage.bias, 0), 0)
        incoming = _by_source(stage, after)
        after.bias = after.bias + incoming.sum(2) @ constant
        incoming[:, silent] = 0  # a view: these are the weights of the next layer
    for stage, after in zip(reversed(stages[:-1]), reversed(stages)):
        incoming = _by_source(stage, after)
        used = incoming.any(axis=(0, 2))
        if not used.any():
            used[0], stage.weight[0], stage.bias[0] = True, 0, 0
        stage.weight, stage.bias = stage.weight[used], stage.bias[used]
        after.weight = incoming[:, used].reshape(len(incoming), -1, *after.weight.shape[2:])
    state = {}
    for stage in stages:
        weight = torch.from_numpy(stage.weight).float()
        state[f"{stage.name}.weight"], state[f"{stage.name}.mask"] = weight, weight != 0
        state[f"{stage.name}.bias"] = torch.from_numpy(stage.bias).float()
    sizes = [f"{len(s.bias)}c{s.weight.shape[2]}" if s.weight.ndim == 4 else str(len(s.bias)) for s in stages]
    short = "-".join([notation.split("-")[0], *sizes])
    return storage.rebuilt(short, state), short


def _by_source(stage: _Stage, after: _Stage) -> np.ndarray:
    """The weights of ``after`` as a view [out, neurons of stage, weights of each]."""
    return after.weight.reshape(len(after.weight), len(stage.bias), -1)


def to_onnx(model: nn.Module, notation: str, path: str | Path) -> int:
    """Write the network as ONNX, images [batch, C, H, W] to logits [batch, classes]; size in bytes.

    The file is checked before it is written: by ONNX, and by ONNX Runtime, whose logits for
    random images must be those of PyTorch. Needs onnx and onnxruntime.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, value, shape = [], [], "images", input_shape(notation)
    for stage in _stages(model, notation):
        for part in ("weight", "bias"):
            tensors.append(numpy_helper.from_array(getattr(stage, part).astype(np.float32), f"{stage.name}.{part}"))
        inputs = [value, f"{stage.name}.weight", f"{stage.name}.bias"]
        if stage.weight.ndim == 4:
            nodes.append(helper.make_node("Conv", inputs, [stage.name]))
        else:
            if stage.name == "fc1":
                nodes.append(helper.make_node("Flatten", [value], ["flat"]))
                inputs[0] = "flat"
            nodes.append(helper.make_node("Gemm", inputs, [stage.name], transB=1))
        value = stage.name
        if stage.pool:
            nodes.append(
                helper.make_node("MaxPool", [value], [f"{stage.name}.pool"], kernel_shape=[2, 2], strides=[2, 2])
            )
            value = f"{stage.name}.pool"
        if stage.relu:
            nodes.append(helper.make_node("Relu", [value], [f"{stage.name}.relu"]))
            value = f"{stage.name}.relu"
        classes = len(stage.bias)
    graph = helper.make_graph(
        nodes,
        notation,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", classes])],
        tensors,
    )
    # Operators of 2020 suffice: older runtimes can read the file too.
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="pruning")
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(model).cpu()(images).numpy()
    difference = np.abs(session(data).run(None, {"images": images.numpy()})[0] - expected).max()
    if not difference <= 1e-4 * max(1, np.abs(expected).max()):
        raise RuntimeError(f"ONNX Runtime's logits differ from PyTorch's by {difference}")
    write_whole(Path(path), data)
    return len(data)


def session(data: bytes):
    """An ONNX Runtime session on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def to_c(model: nn.Module, notation: str, quantize: int | None = None) -> str:
    """The network as one C99 file that needs nothing but the standard library.

    ``int classify(const float *pixels)`` takes one image [C, H, W] as PyTorch takes it. Loops
    visit the significant synapses alone; in convolutions each is applied to a block of outputs
    whose sums stay in registers. With ``quantize=8`` weights are 8-bit integers times one factor
    a layer; biases and sums stay float, so no data is needed to calibrate it. Compiled with
    ``-DPRUNING_MAIN`` it is a program: raw float32 images on standard input, one class a line;
    with a number N as argument instead nanoseconds an image, over N times all images.
    """
    if quantize not in (None, 8):
        raise ValueError(f"quantize must be None or 8, got {quantize!r}")
    stages = _stages(model, notation)
    tables = [_tables(stage, quantize) for stage in stages]
    synapses = sum(np.count_nonzero(stage.weight) for stage in stages)
    kind = "8-bit weights" if quantize else "float weights"
    parts = [
        f"/* {notation}: {synapses} synapses, {kind}, {_bytes(tables)} bytes of tables. */\n{_HEAD}",
        _LARGER if any(stage.relu or stage.pool for stage in stages) else "",
        *(_table_text(stage.name, table) for stage, table in zip(stages, tables)),
        *(
            _conv(stage, table) if stage.weight.ndim == 4 else _linear(stage, table)
            for stage, table in zip(stages, tables)
        ),
        _classify(stages),
        _MAIN.replace("@PIXELS", str(np.prod(stages[0].shape))),
    ]
    return "\n".join(parts)


def table_bytes(model: nn.Module, notation: str, quantize: int | None = None) -> int:
    """Bytes of the tables in ``to_c``'s file: weights, indices, counts, biases, factors."""
    return _bytes([_tables(stage, quantize) for stage in _stages(model, notation)])


def _bytes(tables: Sequence[dict[str, np.ndarray]]) -> int:
    return sum(array.nbytes for table in tables for array in table.values())


def _tables(stage: _Stage, quantize: int | None) -> dict[str, np.ndarray]:
    """A layer's arrays: its synapses by filter or neuron, ``count`` of each; ``at`` is the place in the input."""
    _, height, width = stage.shape
    if stage.weight.ndim == 4:
        owner, channel, row, column = np.nonzero(stage.weight)
        at = (channel * height + row) * width + column
        weights = stage.weight[owner, channel, row, column]
    else:
        owner, at = np.nonzero(stage.weight)
        weights = stage.weight[owner, at]
    tables = {"count": _narrow(np.bincount(owner, minlength=len(stage.weight))), "at": _narrow(at)}
    if quantize:
        factor = np.abs(weights).max(initial=0) / 127 or 1.0
        tables |= {"weight": np.rint(weights / factor).astype(np.int8), "factor": np.array([factor], np.float32)}
    else:
        tables["weight"] = weights.astype(np.float32)
    return tables | {"bias": stage.bias.astype(np.float32)}


def _narrow(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def _table_text(name: str, tables: dict[str, np.ndarray]) -> str:
    lines = []
    for part, array in tables.items():
        array = array if len(array) else np.zeros(1, array.dtype)  # C has no empty arrays
        if array.dtype == np.float32:
            # Hexadecimal floats are exact, and read the same by every compiler.
            texts = [f"{float(value).hex()}f" for value in array]
        else:
            texts = [str(value) for value in array]
        rows = [", ".join(texts[start : start + 16]) for start in range(0, len(texts), 16)]
        lines.append(f"static const {_c_type(array)} {name}_{part}[{len(array)}] = {{\n" + ",\n".join(rows) + "};")
    return "\n".join(lines) + "\n"


def _c_type(array: np.ndarray) -> str:
    return "float" if array.dtype == np.float32 else f"{array.dtype}_t"


_HEAD = """\
#ifdef PRUNING_MAIN
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

int classify(const float *pixels);

/* C99 leaves it to the machine whether a fused multiply-add is fast. */
#ifdef FP_FAST_FMAF
#define ADD_PRODUCT(sum, a, b) fmaf(a, b, sum)
#else
#define ADD_PRODUCT(sum, a, b) ((sum) + (a) * (b))
#endif
"""
_LARGER = "static float larger(float a, float b) { return a > b ? a : b; }\n"


def _finish(stage: _Stage, tables: dict[str, np.ndarray], value: str, index: str) -> str:
    value = f"{stage.name}_factor[0] * {value}" if "factor" in tables else value
    value = f"{value} + {stage.name}_bias[{index}]"
    return f"larger({value}, 0)" if stage.relu else value


def _conv(stage: _Stage, tables: dict[str, np.ndarray]) -> str:
    name, width = stage.name, stage.shape[2]
    filters, height_out, width_out = stage.output
    step = 2 if stage.pool else 1
    used_height, used_width = height_out * step, width_out * step
    # Blocks of this form are what compilers keep in registers; what one sums beyond the end of a
    # row is never looked at.
    across = 2 * LANES if -(-used_width // LANES) % 2 == 0 else LANES
    fitting = [rows for rows in range(step, used_height + 1, step) if used_height % rows == 0]
    rows = next((rows for rows in fitting if rows * across >= LANES * REGISTERS), used_height)
    value = "sum[y][x]"
    if stage.pool:
        upper, lower = (f"larger(sum[{y}][2 * x], sum[{y}][2 * x + 1])" for y in ("2 * y", "2 * y + 1"))
        value = f"larger({upper},\n                                              {lower})"
    return f"""\
static void {name}(const float *restrict in, float *restrict out) {{
    const {_c_type(tables["weight"])} *weight = {name}_weight;
    const {_c_type(tables["at"])} *at = {name}_at;
    for (int filter = 0; filter < {filters}; filter++) {{
        const int count = {name}_count[filter];
        for (int top = 0; top < {used_height}; top += {rows})
            for (int left = 0; left < {used_width}; left += {across}) {{
                float sum[{rows}][{across}];
                memset(sum, 0, sizeof sum);
                for (int k = 0; k < count; k++) {{
                    const float w = weight[k];
                    const float *pixel = in + at[k] + top * {width} + left;
                    for (int x = 0; x < {across}; x++)
                        for (int y = 0; y < {rows}; y++)
                            sum[y][x] = ADD_PRODUCT(sum[y][x], w, pixel[y * {width} + x]);
                }}
                for (int y = 0; y < {rows // step}; y++)
                    for (int x = 0; x < {across // step} && x < {width_out} - left / {step}; x++) {{
                        const float best = {value};
                        const int row = filter * {height_out} + top / {step} + y;
                        out[row * {width_out} + left / {step} + x] = {_finish(stage, tables, "best", "filter")};
                    }}
            }}
        weight += count;
        at += count;
    }}
}}
"""


def _linear(stage: _Stage, tables: dict[str, np.ndarray]) -> str:
    name = stage.name
    return f"""\
static void {name}(const float *restrict in, float *restrict out) {{
    const {_c_type(tables["weight"])} *weight = {name}_weight;
    const {_c_type(tables["at"])} *at = {name}_at;
    for (int o = 0; o < {len(stage.bias)}; o++) {{
        const int count = {name}_count[o];
        float sum = 0;
        for (int k = 0; k < count; k++)
            sum = ADD_PRODUCT(sum, (float)weight[k], in[at[k]]);
        out[o] = {_finish(stage, tables, "sum", "o")};
        weight += count;
        at += count;
    }}
}}
"""


def _classify(stages: Sequence[_Stage]) -> str:
    sizes = [int(np.prod(stages[0].shape)), *(int(np.prod(stage.output)) for stage in stages)]
    first, second = max(sizes[::2]), max(sizes[1::2])
    calls = "\n".join(f"    {stage.name}({'ab'[i % 2]}, {'ba'[i % 2]});" for i, stage in enumerate(stages))
    result = "ab"[len(stages) % 2]
    return f"""\
/* The class of one image [C, H, W], normalised as in training. */
int classify(const float *pixels) {{
    /* Convolutions read up to {2 * LANES - 1} values beyond the last row. */
    float a[{first + 2 * LANES}], b[{second + 2 * LANES}];
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    memcpy(a, pixels, {sizes[0]} * sizeof *a);
{calls}
    int best = 0;
    for (int i = 1; i < {sizes[-1]}; i++)
        if ({result}[i] > {result}[best])
            best = i;
    return best;
}}
"""


_MAIN = """\
#ifdef PRUNING_MAIN
int main(int argc, char **argv) {
    enum { PIXELS = @PIXELS };
    float *images = NULL;
    size_t count = 0, room = 0, got;
    char *end = "";
    const long rounds = argc == 2 ? strtol(argv[1], &end, 10) : 0;
    if (argc > 2 || *end || (argc == 2 && rounds < 1)) {
        fprintf(stderr, "usage: %s [ROUNDS] < images: float32 [N, %d]\\n", argv[0], PIXELS);
        return 2;
    }
    do {
        if (count == room) {
            room = room ? 2 * room : 64;
            float *more = realloc(images, room * PIXELS * sizeof *images);
            if (!more) {
                fprintf(stderr, "no memory for %zu images\\n", room);
                free(images);
                return 1;
            }
            images = more;
        }
        got = fread(images + count * PIXELS, 1, PIXELS * sizeof *images, stdin);
        count += got == PIXELS * sizeof *images;
    } while (got == PIXELS * sizeof *images);
    if (got || ferror(stdin)) {
        fprintf(stderr, "the last image is cut off: an image has %d float32 values\\n", PIXELS);
        free(images);
        return 1;
    }
    if (rounds) {
        volatile int kept = 0; /* so that no call is left out */
        const clock_t start = clock();
        for (long round = 0; round < rounds; round++)
            for (size_t i = 0; i < count; i++)
                kept = classify(images + i * PIXELS);
        (void)kept;
        printf("%.1f\\n", (double)(clock() - start) / CLOCKS_PER_SEC * 1e9 / ((double)rounds * (double)count));
    } else {
        for (size_t i = 0; i < count; i++)
            printf("%d\\n", classify(images + i * PIXELS));
    }
    free(images);
    return 0;
}
#endif
"""


def compiled(source: str, path: str | Path, *flags: str) -> Path:
    """Compile ``to_c``'s file with its ``main`` by the system's ``cc``; the program's path.

    ``flags`` replace ``FLAGS``. Raises ``RuntimeError`` with what the compiler says.
    """
    path = Path(path).absolute()
    command = ["cc", *(flags or FLAGS), "-DPRUNING_MAIN", "-x", "c", "-", "-o", str(path), "-lm"]
    done = subprocess.run(command, input=source, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"cc failed:\n{done.stderr}")
    return path


def classes(program: Path, images: Tensor) -> np.ndarray:
    """What a ``compiled`` program says of images [N, C, H, W]: classes [N]."""
    return np.array(_run(program, images), dtype=np.int64)


def _run(program: Path, images: Tensor, *arguments: str) -> list[str]:
    data = images.cpu().contiguous().numpy().astype("<f4").tobytes()
    done = subprocess.run([str(program), *arguments], input=data, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{program.name} stopped with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode().split()


def measure(model: nn.Module, notation: str, images: Tensor, rounds: int = 15):
    """Microseconds an image at batch 1 on one thread, as a DataFrame with one row a program.

    Programs take turns, ``rounds`` times over ``images`` [N, C, H, W]; ``us`` is the median over
    the rounds, ``low`` and ``high`` are the quartiles, ``speedup`` counts against ONNX Runtime
    dense. All is processor time, so a busy machine disturbs it little. ``a call alone`` is what Python and
    ONNX Runtime take for a network without work: the others of these rows contain it.
    """
    import pandas

    rows = {}
    threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        programs = _programs(model, notation, images, Path(folder))
        torch.set_num_threads(1)
        try:
            times = [{name: program() for name, program in programs.items()} for _ in range(rounds + 1)][1:]
        finally:
            torch.set_num_threads(threads)
    for name in programs:
        low, median, high = np.quantile([time[name] for time in times], (0.25, 0.5, 0.75))
        rows[name] = {"us": median, "low": low, "high": high}
    table = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("program").reset_index()
    return table.assign(speedup=rows["ONNX Runtime dense"]["us"] / table["us"])


def _programs(model: nn.Module, notation: str, images: Tensor, folder: Path) -> dict[str, Callable[[], float]]:
    """What ``measure`` compares: functions that classify all images once and return us an image."""
    small, short = compact(model, notation)
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
        program = compiled(to_c(small, short, quantize), folder / f"model{quantize}")
        return lambda: float(_run(program, images, "1")[0]) / 1e3

    def torch_dense(image: Tensor) -> None:
        with torch.inference_mode():
            plain(image)

    to_onnx(model, notation, folder / "dense.onnx")
    to_onnx(small, short, folder / "compact.onnx")
    return {
        "PyTorch dense": timed(torch_dense, single),
        "ONNX Runtime dense": onnx_runtime((folder / "dense.onnx").read_bytes()),
        "ONNX Runtime compact": onnx_runtime((folder / "compact.onnx").read_bytes()),
        "ONNX Runtime, a call alone": onnx_runtime(_nothing(images.shape[1:])),
        "C": c_program(None),
        "C, 8-bit weights": c_program(8),
    }


def _nothing(shape: Sequence[int]) -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name in ("images", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["same"])], "nothing", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()


def opened(path: str | Path, network: str | None = None) -> tuple[nn.Module, str]:
    """A model and its notation, from a file of ``pruning.deploy.storage`` or from PyTorch's state dict.

    A state dict needs ``network``, its notation; without masks in it, weights of zero count as
    pruned. No pickled code is run. Raises ``ValueError`` that says what is wrong with the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        stored = file.read(3) == storage.MAGIC[:3]
    if stored:
        model, notation = storage.load_network(path)
        if network not in (None, notation):
            raise ValueError(f"{path} holds the network {notation!r}, not {network!r}")
        return model, notation
    if not network:
        raise ValueError(
            f"{path} is not a stored network; for a state dict of PyTorch say which: --network 28x28-6c5-16c5-120-84-10"
        )
    model = lenet(network)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a file of another kind
        raise ValueError(f"{path} is neither a stored network nor a state dict of PyTorch") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} holds no state dict: tensors by name, as torch.save(model.state_dict(), ...) writes them"
        )
    has_masks = any(name.endswith(".mask") for name in state)
    try:
        (masked(model) if has_masks else model).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {network!r}: {error}") from error
    return (model if has_masks else masked(model, zeros_pruned=True)), network


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m pruning.deploy.export", description="Make a pruned network small, and ready for a device."
    )
    parser.add_argument("model", type=Path, help="a stored network (.prn), or a state dict of PyTorch")
    parser.add_argument(
        "folder", type=Path, metavar="OUT_DIR", help="where model.prn, model.onnx and model.c are written"
    )
    parser.add_argument(
        "--network", metavar="NOTATION", help="what a state dict belongs to, such as 28x28-6c5-16c5-120-84-10"
    )
    parser.add_argument("--quantize", type=int, choices=[8], help="8-bit weights in model.c")
    parser.add_argument(
        "--clusters",
        type=int,
        default=64,
        metavar="N",
        help="shared weights a layer in all three files, 0 to keep each weight (default 64)",
    )
    options = parser.parse_args(arguments)
    try:
        model, notation = opened(options.model, options.network)
        dense = len(storage.encode(model, "dense32", notation))
        small, short = compact(model, notation)
        if options.clusters:
            small = storage.shared(small, options.clusters)
        encoding = "entropy" if options.clusters else "relative"
        written = {
            "model.prn": storage.save(options.folder / "model.prn", small, encoding, short),
            "model.onnx": to_onnx(small, short, options.folder / "model.onnx"),
        }
        source = to_c(small, short, options.quantize)
        write_whole(options.folder / "model.c", source.encode())
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counted = {name: (layer.significant, layer.synapses) for name, layer in masked_layers(model).items()}
    significant, synapses = (sum(column) for column in zip(*counted.values()))
    print(f"{notation}: {significant} of {synapses} synapses; without dead neurons {short}")
    sharing = f"{options.clusters} shared weights a layer" if options.clusters else "every weight kept"
    lines = [
        ("dense, 32 bits", dense, ""),
        ("model.prn", written["model.prn"], f"{encoding}, {sharing}"),
        ("model.onnx", written["model.onnx"], "dense, without dead neurons"),
        ("model.c", len(source), "source text"),
        ("  its tables", table_bytes(small, short, options.quantize), "what it takes on the device beside code"),
    ]
    for name, size, note in lines:
        print(f"{name:<16}{size:>10} bytes{dense / size:>8.1f}x  {note}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
