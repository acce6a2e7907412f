"""How fast training runs, side by side with what people would use instead: `make bench`.

Every variant runs in the same process in turn, round after round; the median over the rounds
counts, on the CPU in processor time. Nothing here is a test: it prints ratios, and writes
training.csv and training.md.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset

from pruning.accel import convolution
from pruning.files import load_state, save_state
from pruning.masks import masked_layers, unmasked
from pruning.methods import METHODS
from pruning.notation import input_shape, layers, lenet
from pruning.study import datasets
from pruning.study.benchmarks import BENCHMARKS
from pruning.study.config import Recipe
from pruning.study.machine import checked_device, environment
from pruning.study.training import accuracy, batches, prepare, step

HERE = Path(__file__).parent
DENSITY = 0.5
DENSITIES = (1.0, 0.5, 0.1, 0.03)
# Processors of fewer instructions that an x86-64 acts out: for PyTorch, its libraries and the compiled convolutions.
ACTED = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "PRUNING_KERNEL": "x86-64-v3",
    },
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "PRUNING_KERNEL": "x86-64-v2",
    },
}
VARIANTS = ("dataloader_torchprune", "memory_torchprune", "ours_unmasked", "ours_masked")


class Pictures(Dataset):
    """Images as torchvision's MNIST and CIFAR10 hold and hand them out: uint8, a PIL image each."""

    def __init__(self, data: datasets.Dataset):
        from pruning.study.vision import transforms

        images = data.train.images.cpu()
        scale = [torch.tensor(values).view(-1, 1, 1) for values in (data.std, data.mean)]
        pixels = ((images * scale[0] + scale[1]) * 255).round().to(torch.uint8)
        self.pixels = (pixels[:, 0] if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1)).numpy()
        self.labels = data.train.labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def torch_pruned(notation: str, device: torch.device):
    """The network pruned by ``torch.nn.utils.prune``: ReLU before pooling, as PyTorch's examples have it."""
    parts = list(lenet(notation))
    for number in reversed(range(len(parts) - 1)):
        if isinstance(parts[number], torch.nn.MaxPool2d):
            parts[number], parts[number + 1] = parts[number + 1], parts[number]
    model = torch.nn.Sequential(*parts).to(device)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            prune.l1_unstructured(module, "weight", amount=1 - DENSITY)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)


def plain_steps(model, optimizer, stream: Iterator) -> Callable[[], None]:
    def one() -> None:
        images, labels = next(stream)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return one


def dataloader(data: datasets.Dataset, pictures: Pictures, notation: str, batch: int, device) -> Callable[[], None]:
    def stream():
        while True:
            for images, labels in DataLoader(pictures, batch_size=batch, shuffle=True):
                yield images.to(device), labels.to(device)

    return plain_steps(*torch_pruned(notation, device), stream())


def memory(data: datasets.Dataset, pictures: Pictures, notation: str, batch: int, device) -> Callable[[], None]:
    def stream():
        while True:
            for chosen in torch.randperm(len(data.train.labels), device=device).split(batch):
                yield data.train.images[chosen], data.train.labels[chosen]

    return plain_steps(*torch_pruned(notation, device), stream())


def pruned(notation: str, recipe: Recipe, density: float, device):
    """A training as the study prepares it, its weights of the smallest magnitude pruned."""
    training = prepare(notation, recipe, 0.5, METHODS["unpruned"], 0, device)
    for layer in masked_layers(training.model).values():
        scores = layer.weight.detach().abs()
        layer.prune(scores > scores.flatten().kthvalue(max(round((1 - density) * scores.numel()), 1)).values)
    return training


def ours(
    data: datasets.Dataset, notation: str, batch: int, device, masks: bool, density: float = DENSITY
) -> Callable[[], None]:
    """One step of the study's own loop, images moved and mirrored as in the study."""
    recipe = Recipe(batch=batch, flip=data.shape[0] == 3)
    training = pruned(notation, recipe, density, device)
    if not masks:
        unmasked(training.model)
    stream = batches(data, recipe, 0)
    return lambda: step(training, recipe, *next(stream))


def by_pytorch(make: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """The step that ``make`` returns, made and done with PyTorch's convolutions in place of the study's own."""

    def off(action: Callable):
        before = os.environ.get("PRUNING_KERNEL", "")
        os.environ["PRUNING_KERNEL"] = "off"
        try:
            return action()
        finally:
            os.environ["PRUNING_KERNEL"] = before

    one = off(make)
    return lambda: off(one)


def passes(notation: str, batch: int, density: float) -> Callable[[], None]:
    """One forward and backward pass of random images through the pruned network."""
    model = pruned(notation, Recipe(batch=batch), density, torch.device("cpu")).model
    images, labels = torch.randn(batch, *input_shape(notation)), torch.randint(10, (batch,))

    def one() -> None:
        model.zero_grad()
        F.cross_entropy(convolution.run(model, images), labels).backward()

    return one


def convolutions(names: list[str], rounds: int, seconds: float) -> list[tuple]:
    """Benchmark, density, form, and images a second of the compiled convolutions and of PyTorch's, batch 128."""
    rows = []
    for name in names:
        for density in DENSITIES:
            make = functools.partial(passes, BENCHMARKS[name].network, 128, density)
            found = rates({"own": make(), "torch": by_pytorch(make)}, 128, rounds, seconds, torch.device("cpu"))
            rows.append((name, density, convolution.form(), found["own"], found["torch"]))
    return rows


def acted_out(names: list[str], rounds: int, seconds: float) -> dict[str, list[tuple]]:
    """``convolutions`` on this processor, and on those that it can act out, each in a process of its own."""
    forms = {"all it has": {}}
    if platform.machine() == "x86_64":
        smaller = {16: ["AVX2", "SSE4"], 8: ["SSE4"]}.get(convolution.lanes(), [])
        forms |= {form: ACTED[form] for form in smaller}
    script = (
        "import json, torch; from benchmarks.training import convolutions\n"
        "torch.set_num_threads(1); torch.set_flush_denormal(True)\n"
        f"print(json.dumps(convolutions({names!r}, {rounds}, {seconds})))"
    )
    found = {}
    for form, variables in forms.items():
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=HERE.parent,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[form] = json.loads(done.stdout)
    return found


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds: on the CPU those of the process, which has one thread, as other programs may run beside it."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def rates(
    steps: dict[str, Callable], batch: int, rounds: int, seconds: float, device: torch.device
) -> dict[str, float]:
    """Images a second of each variant: medians over rounds in which all take their turn."""
    clock = clock_of(device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for one in steps.values():
        for _ in range(3):
            one()
    for number in range(rounds):
        order = list(steps) if number % 2 == 0 else list(steps)[::-1]
        for name in order:
            done, began = 0, clock()
            while clock() - began < seconds:
                steps[name]()
                done += 1
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(done * batch / (clock() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_rate(device: torch.device, size: int = 1024) -> float:
    """Single-precision matrix product, GFLOP/s."""
    a, b = torch.randn(2, size, size, device=device)
    one = {"product": lambda: a @ b}
    return rates(one, 1, 5, 0.3, device)["product"] * 2 * size**3 / 1e9


def median_seconds(action: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    times, clock = [], clock_of(device)
    for _ in range(rounds):
        began = clock()
        action()
        times.append(clock() - began)
    return statistics.median(times)


def fresh(code: str) -> float:
    """Processor seconds that a statement takes in a fresh process, the interpreter's own start not counted."""
    script = f"import time; began = time.process_time(); {code}; print(time.process_time() - began)"
    command = [sys.executable, "-c", script]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    return statistics.median(float(text.split()[-1]) for text in said)


def side_by_side(seconds: float) -> float:
    """Steps of two processes at once over those of one alone, in as much processor time each; 2 is perfect.

    Alternating, median of 3.
    """
    script = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from benchmarks.training import *\n"
        "data, network = datasets.load('digits'), BENCHMARKS['digits-2c'].network\n"
        "one = ours(data, network, 128, torch.device('cpu'), True)\n"
        "[one() for _ in range(5)]; print('ready', flush=True); sys.stdin.readline()\n"
        f"n, end = 0, time.process_time() + {seconds}\n"
        "while time.process_time() < end: one(); n += 1\n"
        "print(n)"
    )

    def count(processes: int) -> int:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                cwd=HERE.parent,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(processes)
        ]
        for process in running:
            process.stdout.readline()
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        return sum(int(process.communicate()[0]) for process in running)

    ratios = []
    for _ in range(3):
        alone = count(1)
        ratios.append(count(2) / alone)
    return statistics.median(ratios)


def timed(benchmark: str, device: torch.device) -> list[tuple[str, float]]:
    """What else takes time, each with its seconds."""
    parts = []
    for name in ("digits", "mnist", "cifar10"):
        if datasets.fingerprint(name) is not None:
            seconds = fresh(f"from pruning.study import datasets; began = time.process_time(); datasets.load('{name}')")
            parts.append((f"load {name} from its prepared copy", seconds))
    dataset, notation = BENCHMARKS[benchmark].dataset, BENCHMARKS[benchmark].network
    data = datasets.load(dataset, device)
    training = prepare(notation, Recipe(), 0.5, METHODS["unpruned"], 0, device)
    parts.append(
        (
            f"evaluate the {len(data.test.labels):,} test images of {benchmark}",
            median_seconds(lambda: accuracy(training.average, data.test), device),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        parts.append(
            ("write a checkpoint", median_seconds(lambda: save_state(path, training.state_dict(), "bench"), device))
        )
        parts.append(("read a checkpoint", median_seconds(lambda: load_state(path, "bench", device), device)))
    parts.append(("import pruning (and torch)", fresh("import pruning")))
    parts.append(("import torch alone", fresh("import torch")))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--benchmarks", nargs="+", default=["mnist-2c", "mnist-3c", "cifar10-2c", "cifar10-3c"])
    parser.add_argument("--output", type=Path, default=HERE, help="folder of training.csv and training.md")
    given = parser.parse_args()
    device = checked_device(given.device)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)

    product = matrix_rate(device)
    rows, lines = [], []
    for name in given.benchmarks:
        dataset, notation = BENCHMARKS[name].dataset, BENCHMARKS[name].network
        data = datasets.load(dataset, device)
        pictures = Pictures(data)
        macs = sum(layer.macs for layer in layers(notation))
        for batch in (64, 128):
            variants = {
                "dataloader_torchprune": dataloader(data, pictures, notation, batch, device),
                "memory_torchprune": memory(data, pictures, notation, batch, device),
                "ours_unmasked": ours(data, notation, batch, device, masks=False),
                "ours_masked": ours(data, notation, batch, device, masks=True),
            }
            found = rates(variants, batch, given.rounds, given.seconds, device)
            form = convolution.form() if device.type == "cpu" else "torch"
            rows += [
                (
                    notation,
                    batch,
                    1,
                    DENSITY if variant != "ours_unmasked" else 1.0,
                    variant,
                    "all it has",
                    form if variant.startswith("ours") else "torch",
                    round(found[variant]),
                )
                for variant in VARIANTS
            ]
            a, b, c, d = (found[variant] for variant in VARIANTS)
            # A training step is about three forward passes, a multiply-accumulate two operations.
            share = d * 3 * 2 * macs / 1e9 / product
            lines.append(
                f"| {name} | {batch} | {a:,.0f} | {b:,.0f} | {c:,.0f} | {d:,.0f} "
                f"| {d / a:.1f} | {d / b:.2f} | {d / c:.3f} | {100 * share:.0f} % |"
            )
            print(lines[-1], flush=True)

    wide = []
    dataset, notation = BENCHMARKS[given.benchmarks[0]].dataset, BENCHMARKS[given.benchmarks[0]].network
    data = datasets.load(dataset, device)
    for factor in (1, 2, 4, 8):
        grown = "-".join(
            f"{factor * int(part.split('c')[0])}c{part.split('c')[1]}" if "c" in part else part
            for part in notation.split("-")
        )
        found = rates({"one": ours(data, grown, 128, device, masks=True)}, 128, 3, given.seconds, device)["one"]
        macs = sum(layer.macs for layer in layers(grown))
        wide.append(f"| {grown} | {found:,.0f} | {100 * found * 6 * macs / 1e9 / product:.0f} % |")

    kernel, forms = [], {}
    if device.type == "cpu" and convolution.available():
        forms = acted_out(given.benchmarks, given.rounds, given.seconds / 5)
    for instructions, compared in forms.items():
        for name, density, form, own, torchs in compared:
            for variant, rate in (("convolutions_compiled", own), ("convolutions_torch", torchs)):
                who = form if variant == "convolutions_compiled" else "torch"
                rows.append((BENCHMARKS[name].network, 128, 1, density, variant, instructions, who, round(rate)))
            kernel.append(
                f"| {instructions} | {form} | {name} | {100 * density:g} % "
                f"| {own:,.0f} | {torchs:,.0f} | {own / torchs:.2f} |"
            )
            print(kernel[-1], flush=True)

    parts = timed(given.benchmarks[0], device)
    both = side_by_side(4 * given.seconds) if device.type == "cpu" else None

    machine = environment(device)
    text = f"""# Training speed

{machine["device"]}, one thread a process, {platform.system()}, Python {machine["python"]}, torch {machine["torch"]}.
Images a second{" of processor time" if device.type == "cpu" else ""}, medians of {given.rounds} alternating rounds
of {given.seconds} s; made by `make bench`.

- A: `DataLoader`, `ToTensor`, `Normalize` and `torch.nn.utils.prune`
- B: tensors in memory and `torch.nn.utils.prune`
- C: the study's loop without masks, D: with masks (both move each image, mirror CIFAR-10's, and average the weights)
- share: of the measured single-precision matrix product, {product:.0f} GFLOP/s

| benchmark | batch | A | B | C | D | D / A | D / B | D / C | share |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

| {given.benchmarks[0]}, wider, batch 128 | D | share |
|---|---|---|
{chr(10).join(wide)}

Forward and backward pass of the pruned network, batch 128, medians of {given.rounds} alternating rounds of
{given.seconds / 5:g} s. Instructions other than all that the processor has are acted out: PyTorch, oneDNN and the
compiler are held to them, and so is MKL, which does the matrix products, on processors where it can be.

| instructions | convolutions | benchmark | density | compiled convolutions | PyTorch's | ratio |
|---|---|---|---|---|---|---|
{chr(10).join(kernel)}

| what | seconds{" of processor time" if device.type == "cpu" else ""} |
|---|---|
{chr(10).join(f"| {what} | {seconds:.3f} |" for what, seconds in parts)}
"""
    if both is not None:
        text += f"\nTwo runs side by side do {both:.2f} times the iterations of one alone.\n"
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "training.md").write_text(text)
    with open(given.output / "training.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            (
                "processor",
                "network",
                "batch",
                "threads",
                "density",
                "variant",
                "instructions",
                "convolutions",
                "images_per_second",
            )
        )
        writer.writerows((machine["device"], *row) for row in rows)


if __name__ == "__main__":
    main()
