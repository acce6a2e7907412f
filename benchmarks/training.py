"""How fast training runs, side by side with what people would use instead: `make bench`.

Every variant runs in the same process in turn, round after round; the median over the rounds
counts. Nothing here is a test: it prints ratios, and writes training.csv and training.md.
"""

from __future__ import annotations

import argparse
import csv
import functools
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
from pruning.study import datasets
from pruning.study.networks import layers, lenet
from pruning.study.benchmarks import BENCHMARKS
from pruning.study.machine import checked_device, environment
from pruning.study.config import Recipe
from pruning.study.training import accuracy, batches, prepare, step

HERE = Path(__file__).parent
DENSITY = 0.5
VARIANTS = ("dataloader_torchprune", "memory_torchprune", "ours_unmasked", "ours_masked")


class Pictures(Dataset):
    """Images as torchvision's MNIST and CIFAR10 hold and hand them out: uint8, a PIL image each."""

    def __init__(self, data: datasets.Dataset):
        from pruning.study._torchvision import transforms

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


def ours(
    data: datasets.Dataset, notation: str, batch: int, device, masks: bool, density: float = DENSITY
) -> Callable[[], None]:
    """One step of the study's own loop, images moved and mirrored as in the study."""
    recipe = Recipe(batch=batch, flip=data.shape[0] == 3)
    training = prepare(notation, recipe, 0.5, METHODS["unpruned"], 0, device)
    for layer in masked_layers(training.model).values():
        scores = layer.weight.detach().abs()
        layer.prune(scores > scores.flatten().kthvalue(max(round((1 - density) * scores.numel()), 1)).values)
    if not masks:
        unmasked(training.model)
    stream = batches(data, recipe, 0)
    return lambda: step(training, recipe, *next(stream))


def by_pytorch(make: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """The step that ``make`` returns, made and done with PyTorch's convolutions in place of the study's own."""

    def off(action: Callable):
        os.environ["PRUNING_KERNEL"] = "off"
        try:
            return action()
        finally:
            del os.environ["PRUNING_KERNEL"]

    one = off(make)
    return lambda: off(one)


def rates(steps: dict[str, Callable], batch: int, rounds: int, seconds: float, device: torch.device) -> dict[str, float]:
    """Images a second of each variant: medians over rounds in which all take their turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for one in steps.values():
        for _ in range(3):
            one()
    for number in range(rounds):
        order = list(steps) if number % 2 == 0 else list(steps)[::-1]
        for name in order:
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                steps[name]()
                done += 1
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(done * batch / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_rate(device: torch.device, size: int = 1024) -> float:
    """Single-precision matrix product, GFLOP/s."""
    a, b = torch.randn(2, size, size, device=device)
    one = {"product": lambda: a @ b}
    return rates(one, 1, 5, 0.3, device)["product"] * 2 * size**3 / 1e9


def median_seconds(action: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def fresh(code: str) -> float:
    """Seconds that a statement takes in a fresh process, the interpreter's own start not counted."""
    script = f"import time; began = time.perf_counter(); {code}; print(time.perf_counter() - began)"
    run = lambda: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return statistics.median(float(run().stdout.split()[-1]) for _ in range(3))


def side_by_side(seconds: float) -> float:
    """Steps of two processes at once over those of one alone; 2 is perfect. Alternating, median of 3."""
    script = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from benchmarks.training import *\n"
        "data = datasets.load('digits'); one = ours(data, BENCHMARKS['digits-2c'][1], 128, torch.device('cpu'), True)\n"
        "[one() for _ in range(5)]; print('ready', flush=True); sys.stdin.readline()\n"
        f"n, end = 0, time.perf_counter() + {seconds}\n"
        "while time.perf_counter() < end: one(); n += 1\n"
        "print(n)"
    )

    def count(processes: int) -> int:
        running = [
            subprocess.Popen([sys.executable, "-c", script], cwd=HERE.parent, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
        dataset, notation = BENCHMARKS[name]
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
            rows += [(notation, batch, 1, variant, round(found[variant])) for variant in VARIANTS]
            a, b, c, d = (found[variant] for variant in VARIANTS)
            # A training step is about three forward passes, a multiply-accumulate two operations.
            share = d * 3 * 2 * macs / 1e9 / product
            lines.append(
                f"| {name} | {batch} | {a:,.0f} | {b:,.0f} | {c:,.0f} | {d:,.0f} "
                f"| {d / a:.1f} | {d / b:.2f} | {d / c:.3f} | {100 * share:.0f} % |"
            )
            print(lines[-1], flush=True)

    wide = []
    dataset, notation = BENCHMARKS[given.benchmarks[0]]
    data = datasets.load(dataset, device)
    for factor in (1, 2, 4, 8):
        grown = "-".join(
            f"{factor * int(part.split('c')[0])}c{part.split('c')[1]}" if "c" in part else part
            for part in notation.split("-")
        )
        found = rates({"one": ours(data, grown, 128, device, masks=True)}, 128, 3, given.seconds, device)["one"]
        macs = sum(layer.macs for layer in layers(grown))
        wide.append(f"| {grown} | {found:,.0f} | {100 * found * 6 * macs / 1e9 / product:.0f} % |")

    kernel = []
    for name in (given.benchmarks[0], given.benchmarks[-1]) if device.type == "cpu" and convolution.available() else ():
        dataset, notation = BENCHMARKS[name]
        data = datasets.load(dataset, device)
        for density in (1.0, 0.5, 0.1, 0.03):
            make = functools.partial(ours, data, notation, 128, device, True, density)
            found = rates({"own": make(), "torch": by_pytorch(make)}, 128, 3, given.seconds, device)
            own, torchs = found["own"], found["torch"]
            kernel.append(f"| {name} | {100 * density:g} % | {own:,.0f} | {torchs:,.0f} | {own / torchs:.2f} |")

    parts = []
    for name in ("digits", "mnist", "cifar10"):
        if datasets.fingerprint(name) is not None:
            seconds = fresh(f"from pruning.study import datasets; began = time.perf_counter(); datasets.load('{name}')")
            parts.append((f"load {name} from its prepared copy", seconds))
    dataset, notation = BENCHMARKS[given.benchmarks[0]]
    data = datasets.load(dataset, device)
    training = prepare(notation, Recipe(), 0.5, METHODS["unpruned"], 0, device)
    parts.append((f"evaluate the {len(data.test.labels):,} test images of {given.benchmarks[0]}",
                  median_seconds(lambda: accuracy(training.average, data.test))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        parts.append(("write a checkpoint", median_seconds(lambda: save_state(path, training.state_dict(), "bench"))))
        parts.append(("read a checkpoint", median_seconds(lambda: load_state(path, "bench", device))))
    parts.append(("import pruning (and torch)", fresh("from pruning import PruneControl")))
    parts.append(("import torch alone", fresh("import torch")))
    both = side_by_side(4 * given.seconds) if device.type == "cpu" else None

    machine = environment(device)
    text = f"""# Training speed

{machine['device']}, one thread a process, {platform.system()}, Python {machine['python']}, torch {machine['torch']}.
Images a second, medians of {given.rounds} alternating rounds of {given.seconds} s; made by `make bench`.

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

| D, batch 128 | density | compiled convolutions | PyTorch's | ratio |
|---|---|---|---|---|
{chr(10).join(kernel)}

| what | seconds |
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
        writer.writerow(("network", "batch", "threads", "variant", "images_per_second"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
