"""The training loop: batches, optimizer, averaging, evaluation, prune control, checkpoints.

One iteration is one mini-batch update. Everything random is a function of the seed and the
iteration, so a run that was killed goes on from its checkpoint to the same numbers bit for bit.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.accel import convolution
from pruning.control import Event, PruneControl
from pruning.methods import Method
from pruning.files import DamagedFile, load_state, save_state, set_aside
from pruning.masks import masked
from pruning.study.datasets import Dataset, Split
from pruning.notation import lenet

ORDER, WEIGHTS = 1, 2


@dataclass(frozen=True)
class Recipe:
    """How every network is trained, pruned or not.

    ``batch`` images an iteration; SGD with Nesterov momentum at a ``learning_rate`` that rises
    over the first ``warmup`` iterations (units that an early long step kills never come back)
    and is constant from there;
    ``averaging`` is the decay per iteration of the exponential moving average of the weights
    that is evaluated and delivered (Polyak averaging: what a decaying rate would bring, without
    a horizon that the control would have to know); training images are moved by up to ``shift``
    pixels, and with ``flip`` mirrored at random; ``interval`` iterations lie between evaluations.
    """

    batch: int = 128
    learning_rate: float = 0.05
    warmup: int = 200
    momentum: float = 0.9
    weight_decay: float = 5e-4
    averaging: float = 0.995
    shift: int = 1
    flip: bool = False
    interval: int = 100


def generator(*words: int) -> torch.Generator:
    """A random generator of its own for each tuple of numbers, such as seed, purpose and epoch."""
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def network(notation: str, seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """A masked network with the weights that belong to ``seed``, in the layout that is fastest on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, WEIGHTS).initial_seed())
        model = lenet(notation)
    compiled = torch.device(device).type == "cpu" and convolution.suits(model)
    return masked(model).to(device, memory_format=torch.contiguous_format if compiled else torch.channels_last)


def batches(dataset: Dataset, recipe: Recipe, seed: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches for iteration ``done`` + 1 and on: images [B, C, H, W], labels [B].

    Each epoch visits the images in a new order and leaves out the last incomplete batch.
    """
    images, labels = dataset.train.images, dataset.train.labels
    if recipe.batch > len(labels):
        raise ValueError(f"a batch of {recipe.batch} is more than the {len(labels)} training images of {dataset.name}")
    per_epoch = len(labels) // recipe.batch
    padded = _padded(images, dataset.black, recipe.shift)
    iteration, epoch = done, -1
    while True:
        if iteration // per_epoch != epoch:
            epoch = iteration // per_epoch
            source = generator(seed, ORDER, epoch)
            order = torch.randperm(len(labels), generator=source)
            moves = torch.randint(2 * recipe.shift + 1, (2, len(labels)), generator=source)
            mirrored = torch.rand(len(labels), generator=source) < 0.5
            order, moves, mirrored = (t.to(images.device) for t in (order, moves, mirrored))
        start = (iteration % per_epoch) * recipe.batch
        chosen = slice(start, start + recipe.batch)
        picked = order[chosen]
        batch = convolution.windows(
            padded, picked, *moves[:, chosen], mirrored[chosen] if recipe.flip else None, *images.shape[2:]
        )
        yield batch, labels[picked]
        iteration += 1


def _padded(images: Tensor, black: Tensor, shift: int) -> Tensor:
    """The images with a black margin of ``shift`` pixels on every side."""
    height, width = images.shape[2:]
    padded = black.to(images).view(1, -1, 1, 1).repeat(len(images), 1, height + 2 * shift, width + 2 * shift)
    padded[:, :, shift : shift + height, shift : shift + width] = images
    return padded


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, batch: int = 500) -> float:
    """Fraction of the split's images that the model classifies rightly; one device synchronisation."""
    training = model.training
    model.eval()
    right = sum(
        (convolution.run(model, images).argmax(1) == labels).sum()
        for images, labels in zip(split.images.split(batch), split.labels.split(batch))
    )
    model.train(training)
    return int(right) / len(split.labels)


@dataclass
class Training:
    """A training under way or finished: the live model, its average, and the control."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    control: PruneControl
    iteration: int = 0
    seconds: float = 0.0

    @functools.cached_property
    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The average's parameters and the live ones, in the same order."""
        return list(self.average.parameters()), list(self.model.parameters())

    def state_dict(self) -> dict:
        parts = ("model", "average", "optimizer", "control")
        return {name: getattr(self, name).state_dict() for name in parts} | {
            "iteration": self.iteration,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        for name in ("model", "average", "optimizer", "control"):
            getattr(self, name).load_state_dict(state[name])
        self.iteration, self.seconds = state["iteration"], state["seconds"]


def prepare(
    notation: str, recipe: Recipe, requirement: float, method: Method, seed: int,
    device: torch.device | str = "cpu", **limits,
) -> Training:
    """A training before its first iteration; ``limits`` are the control's patience, budget and ramp."""
    return assembled(network(notation, seed, device), recipe, requirement, method, seed, **limits)


def assembled(
    model: nn.Module, recipe: Recipe, requirement: float, method: Method, seed: int, **limits
) -> Training:
    """``prepare`` for a model of masked layers that is there already."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True,
    )
    control = PruneControl(model, requirement, method, optimizer=optimizer, average=average, seed=seed, **limits)
    return Training(model, average, optimizer, control)


def step(training: Training, recipe: Recipe, images: Tensor, labels: Tensor) -> None:
    """One iteration: forward, backward, update, average; no synchronisation with the device."""
    control = training.control
    F.cross_entropy(convolution.run(training.model, images), labels).backward()
    if control.watching:
        control.observe(training.iteration + 1)
    done = training.iteration - control.restarted + 1
    for group in training.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * min(1, done / max(recipe.warmup, 1))
    training.optimizer.step()
    training.optimizer.zero_grad()
    training.iteration += 1
    # Young averages forget faster, so that the first weights do not linger.
    decay = min(recipe.averaging, (1 + done) / (10 + done))
    with torch.no_grad():
        torch._foreach_lerp_(*training.parameters, 1 - decay)


def train(
    training: Training, dataset: Dataset, recipe: Recipe, seed: int,
    checkpoint: Path | None = None, owner: str = "", every: float = 20.0,
    dense: Path | None = None, dense_owner: str = "",
    progress: Callable[[Event, Training], None] | None = None,
    warn: Callable[[str], None] = print,
) -> Training:
    """Train until the control has stopped; goes on from ``checkpoint`` if one of ``owner`` is there.

    A checkpoint is written at the first evaluation after ``every`` seconds. One that is damaged
    or belongs to another run is set aside, with a word to ``warn``, and training starts anew.

    Until its control starts, every training of the same network, recipe and seed is the same
    one: ``dense`` names a folder in which trainings of one ``dense_owner`` leave their state at
    that moment, and from which later ones go on to the same numbers. A method that watches
    training from its first iteration takes no part in that.
    """
    device = next(training.model.parameters()).device
    if training.control.watches_early:
        dense = None
    state = _usable(checkpoint, owner, device, warn) if checkpoint is not None else None
    if state is not None:
        training.load_state_dict(state)
    known = _joined(training, dense, dense_owner, device, warn) if state is None and dense is not None else []
    average, control = training.average, training.control
    began = saved = time.perf_counter()
    before = training.seconds
    stream = batches(dataset, recipe, seed, training.iteration)

    def evaluate() -> float:
        return accuracy(average, dataset.validation)

    def measure() -> Tensor:
        training.iteration += 1
        return next(stream)[0]

    for iteration, found in known:
        if not control.finished:
            control.update(iteration, found, evaluate, measure)
    while not control.finished:
        due = training.iteration // recipe.interval + 1  # measuring may have gone past an evaluation
        while training.iteration < due * recipe.interval:
            step(training, recipe, *next(stream))
        found = evaluate()
        training.seconds = before + time.perf_counter() - began
        if dense is not None and control.start is None and found >= control.requirement:
            _leave(training, found, dense, dense_owner)
        event = control.update(training.iteration, found, evaluate, measure)
        training.seconds = before + time.perf_counter() - began
        if progress:
            progress(event, training)
        if checkpoint is not None and time.perf_counter() - saved >= every and not control.finished:
            save_state(checkpoint, training.state_dict(), owner)
            saved = time.perf_counter()
    return training


def _usable(path: Path, owner: str, device: torch.device, warn: Callable[[str], None]) -> dict | None:
    try:
        return load_state(path, owner, device)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        aside = set_aside(path, path.parent / "set-aside")
        warn(f"{error}; set aside as {aside}, training starts anew")
        return None


def _leave(training: Training, found: float, folder: Path, owner: str) -> None:
    control = training.control
    state = training.state_dict() | {
        "control": [(event.iteration, event.accuracy) for event in control.events] + [(training.iteration, found)]
    }
    save_state(folder / f"{control.requirement}.dense", state, owner)


def _joined(
    training: Training, folder: Path, owner: str, device: torch.device, warn: Callable[[str], None]
) -> list[tuple[int, float]]:
    """Go on from where the training to the same requirement, or the highest one below, met it.

    Returns what the control is to be told of: iterations and accuracies.
    """
    control = training.control
    there = {float(path.stem): path for path in folder.glob("*.dense")}
    for requirement in sorted((r for r in there if r <= control.requirement), reverse=True):
        state = _usable(there[requirement], owner, device, warn)
        if state is None or (control.budget is not None and state["iteration"] > control.budget):
            continue
        for name in ("model", "average", "optimizer"):
            getattr(training, name).load_state_dict(state[name])
        training.iteration, training.seconds = state["iteration"], state["seconds"]
        return state["control"]
    return []
