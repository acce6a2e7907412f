"""Every mask of a run, round after round, and the paths that a mask leaves from an input to an output.

    >>> from pruning.study.studies import load
    >>> run = next(run for run in load("report").runs if run.name == "mnist-2c-0.99-iterative-0")
    >>> rounds = rounds_of(run)  # committed; other runs are trained again, where that takes a minute at most
    >>> rounds.outlived["fc1"].shape, rounds.densities()[0]
    ((120, 256), 1.0)

A record holds the densities of each round but hardly a mask. So a run whose masks are to be seen is trained once more,
and keeps for each synapse the number of rounds that it outlived: some 20 kB for a LeNet. On another kind of processor
than the record's, that training rounds differently and leads to another network of the same kind.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruning.files import write_whole
from pruning.masks import masked, masked_layers
from pruning.methods import METHODS
from pruning.notation import lenet
from pruning.study import datasets
from pruning.study.config import Run, StudyError
from pruning.study.machine import environment
from pruning.study.networks import fitting
from pruning.study.runner import dataset_of
from pruning.study.store import current
from pruning.study.training import Training, prepare, train

MOST = 60.0  # seconds of training that a picture is worth


@dataclass(frozen=True)
class Rounds:
    """Which synapses each round left, up to the delivered network.

    ``outlived`` has an array of whole numbers for each layer, of its weight's shape: the rounds that each synapse
    outlived, of ``len(iterations) - 1`` in all. ``iterations`` holds when each round cut, 0 for the network as it was
    before the first.
    """

    outlived: dict[str, np.ndarray]
    iterations: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of rounds."""
        return len(self.iterations) - 1

    @property
    def synapses(self) -> int:
        """All synapses of the network."""
        return sum(layer.size for layer in self.outlived.values())

    def densities(self) -> list[float]:
        """Density of the network after each round, 1 before the first."""
        left = [sum(int((layer >= number).sum()) for layer in self.outlived.values()) for number in self._numbers]
        return [count / self.synapses for count in left]

    @property
    def _numbers(self) -> range:
        return range(len(self.iterations))


def rounds_of(run: Run, most: float = MOST) -> Rounds | None:
    """Return a run's rounds: as they were kept, else by training again, which keeps them.

    None where they are not kept and the run's record is missing or took more than ``most`` seconds, its data is not at
    hand, the environment says ``PRUNING_TRAIN=no``, or the run is one with confidence, which trains otherwise.
    ``StudyError`` where the method is none that prunes in rounds.
    """
    if (kept := _read(run)) is not None:
        return kept
    record = current(run)
    wanted = record is not None and record["seconds"] <= most and os.environ.get("PRUNING_TRAIN") != "no"
    if run.settings.confidence or not wanted or datasets.fingerprint(run.dataset) is None:
        return None
    found = train_again(run)
    header = {"key": run.key, "iterations": found.iterations, "environment": environment()}
    buffer = io.BytesIO()
    told = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(buffer, header=told, **found.outlived)  # type: ignore[arg-type]  # arrays by name
    write_whole(run.place("rounds", ".npz"), buffer.getbuffer())
    return found


def _read(run: Run) -> Rounds | None:
    try:
        with np.load(run.place("rounds", ".npz")) as stored:
            header = json.loads(stored["header"].tobytes())
            layers = {name: stored[name] for name in stored.files if name != "header"}
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None  # not there, or damaged
    return Rounds(layers, tuple(header["iterations"])) if header["key"] == run.key else None


def train_again(run: Run) -> Rounds:
    """Train for a run on the CPU and keep every mask; ``StudyError`` where its method brings synapses back."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dataset = dataset_of(run.dataset, "cpu")
    made_as = fitting(run.benchmark, run.made_of, dataset.shape, len(dataset.classes))
    assert run.requirement
    training = prepare(
        made_as, run.settings, run.requirement, METHODS[run.method], run.seed, "cpu", **run.settings.limits
    )
    layers = training.control.pruner.layers
    masks = [{name: torch.ones_like(layer.mask) for name, layer in layers.items()}]
    times = [0]

    def watch(event, under_way: Training) -> None:
        if event.thresholds:
            masks.append({name: layer.mask.clone() for name, layer in layers.items()})
            times.append(event.iteration)

    outcome = train(training, dataset, run.settings, run.seed, progress=watch)
    final = {name: layer.mask for name, layer in masked_layers(outcome.model).items()}
    # What was cut after the delivered network led nowhere.
    ends = 1 + next((n for n, each in enumerate(masks) if all(map(torch.equal, each.values(), final.values()))), -1)
    masks, times = masks[: ends or None], times[: ends or None]
    for before, after in itertools.pairwise(masks):
        if any((after[name] & ~before[name]).any() for name in after):
            raise StudyError(f"the method '{run.method}' brings synapses back: there are no rounds that one outlives")
    kind = np.min_scalar_type(len(masks))
    outlived = {name: np.sum([mask[name].numpy() for mask in masks[1:]], 0, kind) for name in layers}
    whole = {name: np.zeros(layer.mask.shape, kind) for name, layer in layers.items()}
    return Rounds(outlived if len(masks) > 1 else whole, tuple(times))


def delivered(rounds: Rounds, notation: str) -> nn.Module:
    """Return the network in the report's notation with the masks that the last round left; its weights mean nothing."""
    model = masked(lenet(notation))
    for name, layer in masked_layers(model).items():
        layer.set_mask(torch.from_numpy(rounds.outlived[name] == rounds.count))
    return model


def paths(model: nn.Module, shape: tuple[int, int, int]) -> np.ndarray:
    """Count the paths through the masks from each input pixel to each output: float64 [outputs, C, H, W].

    ``shape`` is an image's (C, H, W). A pixel that no path leads from has no say in that output, whatever the weights
    are; where pooling takes the largest of four, a path leads through each of them. ``ValueError`` names a layer other
    than masked ones, ReLU, max pooling and flattening.

        >>> from pruning.masks import masked
        >>> model = masked(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> paths(model, (1, 2, 2))[0].tolist()
        [[[3.0, 3.0], [3.0, 3.0]]]
    """
    counting = copy.deepcopy(model).double().requires_grad_(False)
    for layer in masked_layers(counting).values():
        layer.parameter.copy_(layer.mask)
    for name, module in list(counting.named_modules()):
        if isinstance(getattr(module, "bias", None), Tensor):
            module.bias.zero_()
        if isinstance(module, nn.MaxPool2d):
            places = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, divisor_override=1)
            counting.set_submodule(name, places)
        elif not list(module.children()) and not isinstance(module, (nn.Linear, nn.Conv2d, nn.ReLU, nn.Flatten)):
            raise ValueError(f"paths through layer '{name}' ({type(module).__name__}) are not known")
    image = torch.ones(1, *shape, dtype=torch.float64)
    counts = torch.autograd.functional.jacobian(lambda pixels: counting(pixels)[0], image)
    return torch.as_tensor(counts).squeeze(1).numpy()
