"""A pruned network as one C99 file of its synapses, and that file compiled and run.

    >>> from pruning import masked
    >>> from pruning.notation import lenet
    >>> source = to_c(masked(lenet("28x28-6c5-10")), (1, 28, 28), quantize=8)
    >>> "int classify(const float *pixels)" in source
    True

``compiled(source, "model")`` makes a program of it by the system's ``cc``, ``run_program(program, images)`` classifies.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pruning.deploy.stages import Pool, Stage, called, described, stages

FLAGS = ("-std=c99", "-O3", "-march=native", "-Wall", "-Wextra", "-Werror")
LANES = 8  # floats of a 256-bit register
REGISTERS = 8  # sums to work on at once: two additions begin in each cycle, and each takes four

STACK = 1 << 18  # bytes of activations that a program's stack is trusted with


def to_c(model: nn.Module, shape: Sequence[int], quantize: int | None = None) -> str:
    """Write a sequential network as one C99 file that needs nothing but the standard library.

    ``int classify(const float *pixels)`` takes one image of ``shape`` (C, H, W) as PyTorch takes
    it. Loops visit the significant synapses alone; in convolutions each is applied to a block of
    outputs whose sums stay in registers. With ``quantize=8`` weights are 8-bit integers times one
    factor per layer; biases and sums stay float, so no data is needed to calibrate it. Compiled
    with ``-DPRUNING_MAIN`` it is a program: raw float32 images on standard input, one class per
    line; with a number N as argument instead nanoseconds per image, over N times all images.
    Raises ``ValueError`` as ``stages`` does, and names a layer with forward hooks, or with weights
    that are not finite: nothing compares the file's outputs with the model's.
    """
    for place, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{called(place)} has forward hooks: remove them before")
    chain = stages(model, shape)
    tables = [_tables(stage, quantize) for stage in chain]
    synapses = sum(np.count_nonzero(stage.weight) for stage in chain)
    kind = "8-bit weights" if quantize else "float weights"
    functions = [function for stage, table in zip(chain, tables) for function in _functions(stage, table)]
    parts = [
        f"/* {described(chain)}: {synapses} synapses, {kind}, {_bytes(tables)} bytes of tables. */\n{_HEAD}",
        _LARGER if any("larger(" in text for _, text, _ in functions) else "",
        *(_table_text(stage.name, table) for stage, table in zip(chain, tables)),
        *(text for _, text, _ in functions),
        _classify(chain, functions),
        _MAIN.replace("@PIXELS", str(np.prod(chain[0].shape))),
    ]
    return "\n".join(parts)


def table_bytes(model: nn.Module, shape: Sequence[int], quantize: int | None = None) -> int:
    """Count the bytes of the tables in ``to_c``'s file: weights, indices, counts, biases, factors."""
    return _bytes([_tables(stage, quantize) for stage in stages(model, shape)])


def _bytes(tables: Sequence[dict[str, np.ndarray]]) -> int:
    return sum(array.nbytes for table in tables for array in table.values())


def _tables(stage: Stage, quantize: int | None) -> dict[str, np.ndarray]:
    """List a layer's synapses by filter or neuron: ``count`` of each, and ``at``, the place in the input."""
    if quantize not in (None, 8):
        raise ValueError(f"quantize must be None or 8, got {quantize!r}")
    with np.errstate(over="ignore"):
        finite = [np.isfinite(part.astype(np.float32)).all() for part in (stage.weight, stage.bias)]
    if not all(finite):
        raise ValueError(
            f"{called(stage.place)} has weights or biases, with BatchNorm folded in, that are NaN, infinite or beyond "
            "float32"
        )
    _, height, width = stage.padded
    if stage.convolution:
        owner, channel, row, column = np.nonzero(stage.weight)
        weights = stage.weight[owner, channel, row, column]
        first = owner // (len(stage.weight) // stage.groups) * stage.weight.shape[1]  # channel of the group
        at = ((first + channel) * height + row * stage.dilation[0]) * width + column * stage.dilation[1]
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
        # Hexadecimal floats are exact, and read the same by every compiler. C has no empty arrays.
        texts = [f"{float(x).hex()}f" if array.dtype == np.float32 else str(x) for x in (array if len(array) else [0])]
        rows = [", ".join(texts[start : start + 16]) for start in range(0, len(texts), 16)]
        lines.append(f"static const {_c_type(array)} {name}_{part}[{len(texts)}] = {{\n" + ",\n".join(rows) + "};")
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


def _functions(stage: Stage, tables: dict[str, np.ndarray]) -> list[tuple[str, str, int]]:
    """Return the functions of a stage in order: the name, the text and the number of outputs of each."""
    fused = stage.pools[:1] if stage.convolution and _pools_in_passing(stage) else []
    functions = []
    if any(stage.padding):
        functions.append((f"{stage.name}_pad", _pad(stage), math.prod(stage.padded)))
    output = math.prod(fused[0].output if fused else stage.sums)
    functions.append((stage.name, (_conv if stage.convolution else _linear)(stage, tables), output))
    for number, pool in enumerate(stage.pools[len(fused) :], start=1):
        name = f"{stage.name}_pool{number}"
        functions.append((name, _pool(name, pool), math.prod(pool.output)))
    return functions


def _pools_in_passing(stage: Stage) -> bool:
    """Whether the sums of a convolution are pooled before they are written: 2 x 2, by the largest."""
    first = stage.pools[0] if stage.pools else None
    return first is not None and (first.kind, first.kernel, first.stride, first.padding) == (
        "max",
        (2, 2),
        (2, 2),
        (0, 0),
    )


def _finish(stage: Stage, tables: dict[str, np.ndarray], value: str, index: str) -> str:
    value = f"{stage.name}_factor[0] * {value}" if "factor" in tables else value
    value = f"{value} + {stage.name}_bias[{index}]"
    return f"larger({value}, 0)" if stage.relu else value


def _conv(stage: Stage, tables: dict[str, np.ndarray]) -> str:
    name, width = stage.name, stage.padded[2] * stage.stride[0]
    beside = f" * {stage.stride[1]}" if stage.stride[1] > 1 else ""
    pooled = _pools_in_passing(stage)
    filters, height_out, width_out = stage.pools[0].output if pooled else stage.sums
    step = 2 if pooled else 1
    used_height, used_width = height_out * step, width_out * step
    # Blocks of this form are what compilers keep in registers; what one sums beyond the end of a
    # row is never read.
    across = 2 * LANES if -(-used_width // LANES) % 2 == 0 else LANES
    fitting = [rows for rows in range(step, used_height + 1, step) if used_height % rows == 0]
    rows = next((rows for rows in fitting if rows * across >= LANES * REGISTERS), used_height)
    value = "sum[y][x]"
    if pooled:
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
                    const float *pixel = in + at[k] + top * {width} + left{beside};
                    for (int x = 0; x < {across}; x++)
                        for (int y = 0; y < {rows}; y++)
                            sum[y][x] = ADD_PRODUCT(sum[y][x], w, pixel[y * {width} + x{beside}]);
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


def _pad(stage: Stage) -> str:
    (channels, height, width), (top, left, *_) = stage.shape, stage.padding
    _, padded_height, padded_width = stage.padded
    return f"""\
static void {stage.name}_pad(const float *restrict in, float *restrict out) {{
    memset(out, 0, {math.prod(stage.padded)} * sizeof *out);
    for (int channel = 0; channel < {channels}; channel++)
        for (int y = 0; y < {height}; y++)
            memcpy(out + (channel * {padded_height} + {top} + y) * {padded_width} + {left},
                   in + (channel * {height} + y) * {width}, {width} * sizeof *out);
}}
"""


def _pool(name: str, pool: Pool) -> str:
    (channels, height, width), (_, height_out, width_out) = pool.shape, pool.output
    (tall, wide), (down, right), (above, before) = pool.kernel, pool.stride, pool.padding
    value = f"in[(channel * {height} + row) * {width} + column]"
    if pool.kind == "max":
        start, step, result = "-INFINITY", f"value = larger(value, {value});", "value"
    else:
        start, step, result = "0", f"value += {value};", f"value / {tall * wide}"
    return f"""\
static void {name}(const float *restrict in, float *restrict out) {{
    for (int channel = 0; channel < {channels}; channel++)
        for (int y = 0; y < {height_out}; y++)
            for (int x = 0; x < {width_out}; x++) {{
                float value = {start};
                for (int row = y * {down} - {above}; row < y * {down} - {above} + {tall}; row++)
                    for (int column = x * {right} - {before}; column < x * {right} - {before} + {wide}; column++)
                        if (row >= 0 && row < {height} && column >= 0 && column < {width})
                            {step}
                out[(channel * {height_out} + y) * {width_out} + x] = {f"larger({result}, 0)" if pool.relu else result};
            }}
}}
"""


def _linear(stage: Stage, tables: dict[str, np.ndarray]) -> str:
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


def _classify(chain: Sequence[Stage], functions: Sequence[tuple[str, str, int]]) -> str:
    sizes = [math.prod(chain[0].shape), *(size for _, _, size in functions)]
    beyond = 2 * LANES * max(stage.stride[1] for stage in chain)
    first, second = max(sizes[::2]) + beyond, max(sizes[1::2]) + beyond
    calls = "\n".join(f"    {name}({'ab'[i % 2]}, {'ba'[i % 2]});" for i, (name, _, _) in enumerate(functions))
    result = "ab"[len(functions) % 2]
    where = "static " if 4 * (first + second) > STACK else ""
    return f"""\
/* The class of one image [C, H, W], normalised as in training. */
int classify(const float *pixels) {{
    /* Convolutions read up to {beyond - 1} values beyond the last row. */
    {where}float a[{first}], b[{second}];
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
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cc failed:\n{done.stderr}")
    return path


def run_program(program: Path, images: Tensor, rounds: int | None = None) -> np.ndarray:
    """Give a ``compiled`` program images [N, C, H, W]: classes [N], or with ``rounds`` nanoseconds per image [1]."""
    data = images.cpu().contiguous().numpy().astype("<f4").tobytes()
    arguments = [] if rounds is None else [str(rounds)]
    done = subprocess.run([str(program), *arguments], input=data, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program.name} stopped with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return np.array(done.stdout.decode().split(), dtype=np.int64 if rounds is None else float)
