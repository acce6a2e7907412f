"""The training loop: batches, optimizer, averaging, evaluation, prune control, checkpoints.

    >>> from pruning.methods import METHODS
    >>> from pruning.study.datasets import load
    >>> recipe = Recipe(batch=32, warmup=20, averaging=0.9, interval=20)
    >>> training = prepare("28x28-6c5-16c5-120-84-10", recipe, 0.4, METHODS["unpruned"], seed=0)
    >>> outcome = train(training, load("digits"), recipe, seed=0)
    >>> outcome.best["density"], outcome.iterations == outcome.start
    (1.0, True)

One iteration is one mini-batch update. Everything random is a function of the seed and the
iteration, so a run that was killed resumes its checkpoint and gives the same numbers bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.accel import convolution
from pruning.certificate import Certificate
from pruning.control import PruneControl
from pruning.events import Event
from pruning.looks import Examples
from pruning.masks import masked, masked_layers
from pruning.methods import Method
from pruning.study.config import Recipe, StudyError
from pruning.study.datasets import Dataset, Split
from pruning.study.networks import Network, OwnNetwork, build
from pruning.study.states import DenseStates, StateFile

TINY = torch.finfo(torch.float32).tiny
ORDER, WEIGHTS, NOISE, HALVES = 1, 2, 5, 6  # purposes of random generators, beside those of other modules


def generator(*words: int) -> torch.Generator:
    """Return a random generator of its own for each tuple of numbers, such as seed, purpose and epoch."""
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def network(made_as: Network, seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """Make a masked network with the weights that belong to ``seed``, in the layout that is fastest on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, WEIGHTS).initial_seed())
        model = build(made_as)
    compiled = torch.device(device).type == "cpu" and convolution.suits(model)
    layout = torch.contiguous_format if compiled else torch.channels_last
    return masked(model).to(device, memory_format=layout)  # type: ignore[call-overload]  # as PyTorch documents it


def batches(dataset: Dataset, recipe: Recipe, seed: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Make the training batches for iteration ``done`` + 1 and on: images [B, C, H, W], labels [B].

    Each epoch visits the images in a new order and leaves out the last incomplete batch.
    """
    images, labels = dataset.train.images, dataset.train.labels
    if recipe.batch > len(labels):
        raise StudyError(
            f"a batch of {recipe.batch} is more than the {len(labels)} training images of {dataset.name}: "
            "give the study's settings a smaller 'batch'"
        )
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
        down, right = moves[:, chosen]
        flipped = mirrored[chosen] if recipe.flip else None
        batch = convolution.windows(padded, picked, down, right, flipped, *images.shape[2:])
        yield batch, labels[picked]
        iteration += 1


def _padded(images: Tensor, black: Tensor, shift: int) -> Tensor:
    """Return the images with a black margin of ``shift`` pixels on every side."""
    height, width = images.shape[2:]
    padded = black.to(images).view(1, -1, 1, 1).repeat(len(images), 1, height + 2 * shift, width + 2 * shift)
    padded[:, :, shift : shift + height, shift : shift + width] = images
    return padded


@torch.no_grad()
def margins(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> Tensor:
    """Return by how much the logit of each image's class [N, C, H, W] exceeds all others [N]; above 0 where right."""
    training = model.training
    model.eval()
    found = []
    for some, answers in zip(images.split(batch), labels.split(batch)):
        logits = convolution.run(model, some).clone()
        own, place = logits.gather(1, answers[:, None]), torch.arange(len(answers), device=logits.device)
        won = logits.argmax(1) == answers
        logits[place, answers] = -math.inf
        margin = (own - logits.amax(1, keepdim=True))[:, 0]
        found.append(torch.where(won, margin.clamp_min(TINY), margin.clamp_max(-TINY)))  # ties as argmax has them
    model.train(training)
    return torch.cat(found)


def accuracy(model: nn.Module, split: Split, batch: int = 500) -> float:
    """Return the fraction of the split's images that the model classifies rightly; one device synchronisation."""
    return int((margins(model, split.images, split.labels, batch) > 0).sum()) / len(split.labels)


def halves(split: Split, seed: int) -> tuple[Split, Split]:
    """Part a split at random into images that steer and images that certify, at most one more of these."""
    order = torch.randperm(len(split.labels), generator=generator(seed, HALVES)).to(split.labels.device)
    parts = order[: len(order) // 2].sort().values, order[len(order) // 2 :].sort().values
    steering, certifying = (Split(split.images[part], split.labels[part]) for part in parts)
    return steering, certifying


def examples(model: nn.Module, split: Split) -> Examples:
    """Return a split's images as a control looks at them, through ``model``."""

    def some(places: Tensor) -> Tensor:
        chosen = places.to(split.labels.device)
        return margins(model, split.images[chosen], split.labels[chosen])

    return Examples(some, len(split.labels))


@dataclass
class Training:
    """A training under way or finished: the live model, its average, and the control.

    ``noise`` is the seed of what is random within the network, such as dropout, None where nothing is.
    """

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    control: PruneControl
    iteration: int = 0
    seconds: float = 0.0
    noise: int | None = None

    @functools.cached_property
    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The average's parameters and the live ones, in the same order."""
        return list(self.average.parameters()), list(self.model.parameters())

    @functools.cached_property
    def statistics(self) -> list[tuple[Tensor, Tensor]]:
        """The average's buffers beside the live ones, without masks: what batch normalisation has measured."""
        masks = {id(layer.mask) for layer in masked_layers(self.model).values()}
        kept, averaged = self.model.state_dict().keys(), dict(self.average.named_buffers())
        live = {name: buffer for name, buffer in self.model.named_buffers() if name in kept and id(buffer) not in masks}
        return [(averaged[name], buffer) for name, buffer in live.items()]

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
    made_as: Network,
    recipe: Recipe,
    requirement: float,
    method: Method,
    seed: int,
    device: torch.device | str = "cpu",
    **limits,
) -> Training:
    """Make a training before its first iteration; ``limits`` are the control's patience, budget and ramp."""
    training = prepare_model(network(made_as, seed, device), recipe, requirement, method, seed, **limits)
    training.noise = seed if isinstance(made_as, OwnNetwork) else None
    return training


def prepare_model(
    model: nn.Module, recipe: Recipe, requirement: float, method: Method, seed: int, **limits
) -> Training:
    """Make a training of a model of masked layers."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
        fused=True,
    )
    control = PruneControl(model, requirement, method, optimizer=optimizer, average=average, seed=seed, **limits)
    return Training(model, average, optimizer, control)


def step(training: Training, recipe: Recipe, images: Tensor, labels: Tensor) -> None:
    """Do one iteration: forward, backward, update, average; no synchronisation with the device."""
    control = training.control
    with _noise(training):
        loss = F.cross_entropy(convolution.run(training.model, images), labels)
    loss.backward()
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
        average, live = training.parameters
        torch._foreach_lerp_(average, live, 1 - decay)  # type: ignore[arg-type]  # parameters are tensors
        for averaged, measured in training.statistics:
            if averaged.is_floating_point():
                averaged.lerp_(measured, 1 - decay)
            else:
                averaged.copy_(measured)


@contextlib.contextmanager
def _noise(training: Training) -> Iterator[None]:
    """Make what is random within the network a function of seed and iteration, so that a resumed run repeats it."""
    if training.noise is None:
        yield
        return
    device = next(training.model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator(training.noise, NOISE, training.iteration).initial_seed())
        yield


@dataclass(frozen=True)
class Outcome:
    """What a training to a requirement gave.

    ``start`` is the iteration at which the requirement was first met, ``best`` the evaluation of the delivered
    ``model`` (iteration, accuracy, density, and the number of events that led to it); both are None where it never was.
    ``dense`` holds the weights at ``start``, where pruning began, ``iterations`` and ``seconds`` all that was spent,
    ``certificate`` what the control's says, where it was asked for one.
    """

    events: tuple[Event, ...]
    start: int | None
    best: Mapping | None
    dense: Mapping[str, Tensor] | None
    model: nn.Module
    iterations: int
    seconds: float
    certificate: Certificate | None = None

    @property
    def reached(self) -> bool:
        """Whether any model met the requirement."""
        return self.best is not None


def outcome(training: Training) -> Outcome:
    """Say what a training gave."""
    control = training.control
    best = control.best and {name: control.best[name] for name in ("iteration", "accuracy", "density", "events")}
    dense = control.pruner.checkpoints.get("dense", {}).get("average")
    return Outcome(
        tuple(control.events),
        control.start,
        best,
        dense,
        control.delivered() if control.reached else control.pruner.deliver(None),
        training.iteration,
        training.seconds,
        control.delivery.certificate,
    )


def train(
    training: Training,
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    checkpoint: StateFile | None = None,
    every: float = 20.0,
    dense: DenseStates | None = None,
    progress: Callable[[Event, Training], None] | None = None,
    certifying: Split | None = None,
) -> Outcome:
    """Train until the control has stopped, resuming ``checkpoint`` if there is one.

    The validation images steer; ``certifying`` are those that certify what is delivered, where the control asks it.

    It is written at the first evaluation after ``every`` seconds. ``dense`` holds the trainings that met their
    requirement first, to be resumed, and takes this one's; a method that watches training from its first iteration has
    none in common with the others.
    """
    device = next(training.model.parameters()).device
    average, control = training.average, training.control
    state = checkpoint.load(device) if checkpoint else None
    if control.watches_early:
        dense = None
    control.check(dataset.train.images[:2])
    if state is not None:
        training.load_state_dict(state)
    evaluations = resume_dense_state(training, dense, device) if dense and state is None else []
    began = saved = time.perf_counter()
    before = training.seconds
    stream = batches(dataset, recipe, seed, training.iteration)

    evaluate = examples(average, dataset.validation)

    def next_images() -> Tensor:
        training.iteration += 1
        return next(stream)[0]

    _replay(control, evaluations, evaluate, next_images)
    while not control.finished:
        due = training.iteration // recipe.interval + 1  # measuring may have gone past an evaluation
        while training.iteration < due * recipe.interval:
            step(training, recipe, *next(stream))
        measured = evaluate()
        training.seconds = before + time.perf_counter() - began
        if dense and control.start is None and measured >= control.aim:
            save_dense_state(training, measured, dense)
        event = control.update(training.iteration, measured, evaluate, next_images)
        training.seconds = before + time.perf_counter() - began
        if progress:
            progress(event, training)
        if checkpoint and time.perf_counter() - saved >= every and not control.finished:
            checkpoint.save(training.state_dict())
            saved = time.perf_counter()
    if certifying is not None:
        control.certify(lambda model: margins(model, certifying.images, certifying.labels) > 0)
    return outcome(training)


def _replay(control: PruneControl, evaluations: list, evaluate: Examples, next_images: Callable[[], Tensor]) -> None:
    """Tell the control of evaluations that another run has made."""
    for number, (iteration, measured) in enumerate(evaluations, start=1):
        if number == len(evaluations):
            evaluate()  # looks build on which images were right in the last of them
        if not control.finished:
            control.update(iteration, measured, evaluate, next_images)


def save_dense_state(training: Training, measured: float, dense: DenseStates) -> None:
    """Save a training that meets its requirement first, with its evaluations in place of its control."""
    control = training.control
    evaluations = [(event.iteration, event.accuracy) for event in control.events] + [(training.iteration, measured)]
    dense.at(f"{control.aim}").save(training.state_dict() | {"control": evaluations})


def resume_dense_state(training: Training, dense: DenseStates, device: torch.device) -> list[tuple[int, float]]:
    """Resume the training that met the same requirement, or the highest one below.

    Returns the evaluations that the control has not seen: iterations and accuracies.
    """
    control = training.control
    for requirement in dense.met():
        state = dense.at(f"{requirement}").load(device) if requirement <= control.aim else None
        if state is None or (control.budget is not None and state["iteration"] > control.budget):
            continue
        for name in ("model", "average", "optimizer"):
            getattr(training, name).load_state_dict(state[name])
        training.iteration, training.seconds = state["iteration"], state["seconds"]
        return state["control"]
    return []
