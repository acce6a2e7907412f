"""Prune control: watches the validation accuracy of a model in training and prunes it.

    model = masked(model)
    control = PruneControl(model, requirement=0.99, optimizer=optimizer)
    for iteration, batch in enumerate(batches, start=1):
        training_step(model, optimizer, batch)
        if iteration % 100 == 0 and control.update(iteration, validation_accuracy(model)).finished:
            break
    model = control.delivered()

Phases: ``train`` until the start condition (the requirement met), ``recover`` after every
pruning, ``dense`` where a method lets all synapses come back, ``done`` once a stop condition
holds. An event of phase ``look`` is a step of pruning that left the requirement met. What is delivered
is the sparsest model that met the requirement.

Some methods work at every iteration; their loop says before the optimizer's update:

    if control.watching:
        control.observe(iteration)

and one that looks at what each step of pruning costs, as ``adaptive`` does, is told how:

    control.update(iteration, validation_accuracy(model), lambda: validation_accuracy(model), next_images)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from pruning import saliency
from pruning.compensation import Jacobian
from pruning.dynamics import Bias, Regrow, Splice, Trace
from pruning.masks import MaskedConv2d, masked_layers
from pruning.schedule import Cubic, Ladder, Rising, Slack

# So many rounds that cut nothing mean that no later one will: layers kept whole by their pace,
# or of equal weights, whose deviation is zero.
IDLE_ROUNDS = 10_000


@dataclass(frozen=True)
class Restart:
    """What each round starts again after its pruning, the masks kept: the recipe, and the weights too.

    The weights go back to those after ``iteration`` iterations of the dense training (Frankle
    et al. 2020; 0 is the initialisation, Frankle and Carbin 2019), or to those that first met the
    requirement where that was earlier; optimizer and average go with them. With None the weights
    go on, and the recipe's clock alone starts again: the warm-up of the learning rate is repeated
    (Renda et al. 2020), and the average is young again.
    """

    iteration: int | None

    def __post_init__(self):
        if self.iteration is not None and self.iteration < 0:
            raise ValueError(f"iteration must be 0 or more, or None, got {self.iteration}")


@dataclass(frozen=True)
class Method:
    """A pruning method: a criterion, an allocation over layers and a schedule.

    With ``rewind`` every round starts again from the dense model that first met the
    requirement; without, it goes on from the last pruned one. ``convolution_pace`` is the pace
    of convolutions against that of linear layers, where thresholds are per layer.

    ``masking`` makes a layer's new mask from scores and threshold. ``watch`` is what the method
    does at every iteration, ``restart`` what a round starts again. With ``redense`` a pruned model
    that met the requirement gets all its synapses back, starting at zero, for at least so many
    evaluations before the next round prunes it. ``measured`` counts the mini-batches that a method paced by looks
    spends, once for several steps, to find what the weights that stay must change by (``compensation``).
    """

    criterion: Callable
    allocation: Callable
    schedule: Rising | Ladder | Cubic | Slack
    rewind: bool = False
    convolution_pace: float = 1.0
    masking: Callable = saliency.cut
    watch: Trace | Splice | Regrow | Bias | None = None
    restart: Restart | None = None
    redense: int = 0
    measured: int = 0

    def __post_init__(self):
        if self.schedule.paced != "rounds" and (self.rewind or self.restart or self.redense):
            raise ValueError("rewind, restart and redense need a schedule that is paced by rounds")
        if self.rewind and self.restart:
            raise ValueError("a method has rewind or restart, not both")
        if self.measured and self.schedule.paced != "looks":
            raise ValueError("measured needs a schedule that is paced by looks")


def _adaptive(measured: int = 2, **changes) -> Method:
    return Method(saliency.magnitude, saliency.across, Slack(**changes), measured=measured)


METHODS: Mapping[str, Method | None] = {
    "unpruned": None,
    # Convolutions lose accuracy sooner than fully connected layers (Han et al. 2015, figure 6).
    "iterative": Method(saliency.magnitude, saliency.by_deviation, Rising(0.1), convolution_pace=0.5),
    "gradual": Method(saliency.magnitude, saliency.across, Cubic(0.005)),
    "oneshot": Method(saliency.magnitude, saliency.across, Ladder(0.7), rewind=True),
    "random": Method(saliency.random, saliency.uniform, Ladder(0.8)),
    # Each differs from gradual in one part: the allocation, or the criterion.
    "uniform": Method(saliency.magnitude, saliency.uniform, Cubic(0.005)),
    "erk": Method(saliency.magnitude, saliency.erk, Cubic(0.005)),
    "lamp": Method(saliency.magnitude, saliency.lamp, Cubic(0.005)),
    "sensitivity": Method(saliency.sensitivity, saliency.across, Cubic(0.005), watch=Trace()),
    # A ladder of densities, each trained from the initialisation (SNIP's masks are those of its first
    # batch) or from early weights, or with the warm-up repeated. All iterations count.
    "snip": Method(saliency.snip, saliency.across, Ladder(0.7), watch=Trace(once=True), restart=Restart(0)),
    "lottery": Method(saliency.magnitude, saliency.across, Ladder(0.7), restart=Restart(50)),
    "raterewind": Method(saliency.magnitude, saliency.across, Ladder(0.7), restart=Restart(None)),
    # A ladder too, going on from the last rung. RigL exchanges synapses at the density of each rung,
    # from the mask that magnitude left; dense-sparse-dense has all of them back between two rungs.
    "rigl": Method(saliency.magnitude, saliency.erk, Ladder(0.7), watch=Regrow()),
    "movement": Method(saliency.movement, saliency.uniform, Ladder(0.7), watch=Trace()),
    "dsd": Method(saliency.magnitude, saliency.across, Ladder(0.7), redense=3),
    # Two that add one part to iterative.
    "surgery": Method(
        saliency.magnitude, saliency.by_deviation, Rising(0.1), convolution_pace=0.5, masking=saliency.spliced,
        watch=Splice(),
    ),
    "biased": Method(saliency.magnitude, saliency.by_deviation, Rising(0.1), convolution_pace=0.5, watch=Bias()),
    # The study's own, at twice the unpruned effort, at more, and at much more; and the first with one ingredient off
    # each: nothing compensated, no slack, a slack that does not shrink, large steps, descents as deep as the slack allows.
    "adaptive": _adaptive(),
    "adaptive-patient": _adaptive(effort=5.0, depth=0.03, patience=10.0),
    "adaptive-tireless": _adaptive(effort=30.0, depth=0.03, patience=10.0),
    "adaptive-uncompensated": _adaptive(measured=0),
    "adaptive-strict": _adaptive(depth=0.0),
    "adaptive-constant": _adaptive(power=0.0, patience=math.inf),
    "adaptive-coarse": _adaptive(keep=0.5),
    "adaptive-steep": _adaptive(decay=math.inf),
}


_GOING_ON = ("wait", "prune", "regrow")


@dataclass(frozen=True)
class Event:
    """What the control saw and did at one evaluation.

    ``density`` is the one that was evaluated. After a pruning, ``thresholds`` holds one
    threshold per layer (in units of the criterion's scores; None where nothing was pruned) and
    ``densities`` each layer's density after it. ``action`` says what was decided: ``wait``,
    ``prune``, ``regrow`` (all synapses are back) or the reason to stop.
    """

    iteration: int
    phase: str
    accuracy: float
    density: float
    action: str
    densities: dict[str, float]
    thresholds: dict[str, float] | None = None

    @property
    def finished(self) -> bool:
        """Whether the control has stopped."""
        return self.action not in _GOING_ON


class PruneControl:
    """Decides when pruning starts, how far each layer is pruned, and when to stop.

    ``model`` has masked layers. ``requirement`` is the validation accuracy to be met, in (0, 1).
    Given the ``optimizer``, its momentum of pruned synapses is cleared, so that the stored
    weights stay zero too; given an ``average`` of the model (a masked copy that is the one
    evaluated), its masks follow and it is what is delivered. ``patience`` counts evaluations
    without the requirement met until the control gives up, ``budget`` iterations in all,
    ``ramp`` the iterations over which a schedule paced by iterations runs. ``paces`` sets the
    pace of single layers (rounds of the schedule a round, by name; 0 keeps a layer whole where
    thresholds are per layer).
    """

    def __init__(
        self,
        model: nn.Module,
        requirement: float,
        method: Method | None = METHODS["iterative"],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        average: nn.Module | None = None,
        patience: int = 10,
        budget: int | None = None,
        ramp: int = 4000,
        paces: Mapping[str, float] | None = None,
        seed: int = 0,
    ):
        if not 0 < requirement < 1:
            raise ValueError(f"requirement must be an accuracy between 0 and 1, got {requirement}")
        for name, value in (("patience", patience), ("ramp", ramp), ("budget", 1 if budget is None else budget)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.layers = masked_layers(model)
        if not self.layers:
            raise ValueError("the model has no masked layer: call masked(model) first")
        unknown = set(paces or {}) - set(self.layers)
        if unknown:
            raise ValueError(f"no masked layer {sorted(unknown)}; the layers are {list(self.layers)}")
        for name, pace in (paces or {}).items():
            if not 0 <= pace < math.inf:
                raise ValueError(f"the pace of '{name}' must be 0 or more, got {pace}")
        if average is not None and set(masked_layers(average)) != set(self.layers):
            raise ValueError("average must be a masked copy of the model: its masked layers are others")
        self._averages = masked_layers(average) if average is not None else {}
        self.model, self.requirement, self.method = model, requirement, method
        self.optimizer, self.average = optimizer, average
        self.patience, self.budget, self.ramp, self.seed = patience, budget, ramp, seed

        convolution_pace = method.convolution_pace if method else 1.0
        self.paces = {
            name: convolution_pace if isinstance(layer, MaskedConv2d) else 1.0
            for name, layer in self.layers.items()
        } | dict(paces or {})
        self.phase = "train"
        self.round = 0
        self.progress = dict.fromkeys(self.layers, 0.0)
        self.missed = 0
        self.start: int | None = None
        self.best: dict | None = None
        self.origin: dict | None = None
        self.events: list[Event] = []
        self.memory: dict[str, Tensor] = {}
        self.thresholds: dict[str, float] | None = None
        self.pruned: int | None = None
        self.restarted = 0
        self.rested = 0
        self.early = copy.deepcopy(self._snapshot()) if self._rewound == 0 else None

    @property
    def finished(self) -> bool:
        return self.phase == "done"

    @property
    def reached(self) -> bool:
        """Whether any model met the requirement."""
        return self.best is not None

    @property
    def watching(self) -> bool:
        """Whether ``observe`` is to be called at this iteration."""
        if self.method is None:
            return False
        watch = self.method.watch
        asked = watch is not None and (watch.early or self.start is not None)
        return asked or self._early_missing

    @property
    def watches_early(self) -> bool:
        """Whether the method sees iterations before the start, which then cannot be skipped."""
        method = self.method
        return method is not None and (bool(self._rewound) or (method.watch is not None and method.watch.early))

    def observe(self, iteration: int) -> None:
        """Do what the method does at every iteration, the gradients of ``iteration`` at hand."""
        if self._early_missing and iteration == self._rewound + 1:
            self.early = copy.deepcopy(self._snapshot())
        watch = self.method.watch
        if watch is not None and (watch.early or self.start is not None):
            watch.step(self, iteration)
            for layer in self.layers.values():
                layer.dense_grad = None

    @property
    def rates(self) -> dict[str, float]:
        """By how much each layer's amount moves in the next round, in the schedule's units."""
        if self.method is None or self.method.schedule.paced != "rounds":
            return {}
        amount = self.method.schedule.amount
        done = self.progress
        return {name: amount(done[name] + pace) - amount(done[name]) for name, pace in self.paces.items()}

    def update(
        self, iteration: int, accuracy: float,
        evaluate: Callable[[], float] | None = None, measure: Callable[[], Tensor] | None = None,
    ) -> Event:
        """Take the validation accuracy after ``iteration`` iterations; prune or stop where it is time.

        A method paced by looks asks what each step of pruning costs: ``evaluate`` tells the validation accuracy of the
        model (its average, where there is one) as it is at that moment, ``measure`` hands out the images of one
        mini-batch, which the caller counts as an iteration. Its effort is a multiple of the iterations up to the
        requirement: for a model that comes trained, ``iteration`` counts on from those of its training.
        """
        if self.finished:
            raise RuntimeError("the control has stopped: take delivered()")
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy must be a fraction between 0 and 1, got {accuracy}")
        looks = self.method is not None and self.method.schedule.paced == "looks"
        if looks and (evaluate is None or (self.method.measured and measure is None)):
            raise ValueError("this method asks what pruning costs: call update(iteration, accuracy, evaluate, measure)")
        if looks and iteration < 1:
            raise ValueError(
                f"iteration must be at least 1, got {iteration}: this method's effort is a multiple of the iterations up to "
                "the requirement, so count those of the training that a model comes with"
            )
        met = accuracy >= self.requirement
        phase, density = self.phase, self.density
        thresholds, seen = None, []
        if met:
            self._keep(iteration, accuracy, density)
            if self.start is None:
                self.start = iteration
        action = self._stop(iteration, met)
        if action is None and self.start is not None:
            if self.phase == "train":
                self.phase = "recover"
                self.origin = copy.deepcopy(self._snapshot())
                if self._early_missing and iteration <= self._rewound:
                    self.early = self.origin
                self._ask_for_gradients()
            if self.method.schedule.paced == "iterations":
                thresholds = self._follow(iteration)
            elif looks:
                thresholds, seen = self._look(iteration, accuracy, evaluate, measure)
                if sum(layer.significant for layer in self.layers.values()) <= len(self.layers):
                    action = "nothing left to prune"
                elif iteration >= self.method.schedule.effort * self.start:
                    action = "effort spent"
            elif self._to_be_dense:
                action = self._redense(met)
            elif met and (self.memory or not self._traced or iteration > self.start):
                thresholds = self._next_round(iteration)
                action = None if thresholds else "nothing left to prune"
        if thresholds:
            self.pruned, self.thresholds = iteration, thresholds
        self.missed = self.missed + 1 if self.start is not None and not met else 0
        action = action or ("prune" if thresholds else "wait")
        if action not in _GOING_ON:
            self.phase = "done"
        event = Event(iteration, phase, accuracy, density, action, self.densities(), thresholds)
        self.events += [event, *seen[:-1], *(replace(last, action=action) for last in seen[-1:])]
        return event

    @property
    def density(self) -> float:
        """Significant synapses over all synapses of the model as it is now."""
        layers = self.layers.values()
        return sum(layer.significant for layer in layers) / sum(layer.synapses for layer in layers)

    def densities(self) -> dict[str, float]:
        """Density of each layer as it is now."""
        return {name: layer.significant / layer.synapses for name, layer in self.layers.items()}

    def delivered(self) -> nn.Module:
        """A copy of the sparsest model that met the requirement; of the model as it is, where none did."""
        model = copy.deepcopy(self._looked_at)
        if self.best:
            model.load_state_dict(self.best["model"])
        for layer in masked_layers(model).values():
            layer.set_mask(layer.mask)  # weights that go on learning under the mask are not delivered
        return model

    def state_dict(self) -> dict:
        """All that the control needs to go on, as tensors and plain values."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._STATE} | {
            "events": [asdict(event) for event in self.events]
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state_dict()``; model, average and optimizer are restored by their owner."""
        if state["requirement"] != self.requirement or set(state["progress"]) != set(self.layers):
            raise ValueError("this state belongs to another requirement or model")
        for name in self._STATE:
            setattr(self, name, copy.deepcopy(state[name]))
        self.events = [Event(**event) for event in state["events"]]
        if self.start is not None:
            self._ask_for_gradients()

    _STATE = (
        "requirement", "phase", "round", "progress", "paces", "missed", "start", "best", "origin",
        "memory", "thresholds", "pruned", "restarted", "rested", "early",
    )

    @property
    def _traced(self) -> bool:
        return isinstance(self.method.watch, Trace)

    @property
    def _rewound(self) -> int | None:
        """The iteration to whose weights rounds go back."""
        return self.method.restart.iteration if self.method is not None and self.method.restart else None

    @property
    def _early_missing(self) -> bool:
        return self.early is None and self._rewound is not None

    @property
    def _enough(self) -> int:
        """How many evaluations without the requirement met end it.

        A training from early weights has as many as the dense one took, and the patience more.
        """
        if self._rewound is None:
            return self.patience
        return self.patience + sum(event.phase == "train" for event in self.events)

    def _ask_for_gradients(self) -> None:
        if self.method is not None and self.method.watch is not None and self.method.watch.dense:
            for layer in self.layers.values():
                layer.dense_gradient = True

    @property
    def _to_be_dense(self) -> bool:
        """Whether all synapses are to come back, or are back and have not rested long enough."""
        if self.method is None or not self.method.redense:
            return False
        return self.density < 1 or (self.phase == "dense" and self.rested < self.method.redense)

    def _stop(self, iteration: int, met: bool) -> str | None:
        if met and self.method is None:
            return "requirement met"
        if not met and self._exhausted(iteration):
            return "not recovered"
        if self.budget is not None and iteration >= self.budget:
            return "budget spent"
        ramped = self.method is not None and self.method.schedule.paced == "iterations" and self.start is not None
        if ramped and met and iteration - self.start >= self.ramp:
            return "ramp completed"
        return None

    def _exhausted(self, iteration: int) -> bool:
        if self.start is None or self.method.schedule.paced == "looks":
            return False
        return self.missed + 1 >= self._enough

    def _look(
        self, iteration: int, accuracy: float, evaluate: Callable, measure: Callable
    ) -> tuple[dict | None, list[Event]]:
        """Prune step by step as far as the schedule lets accuracy and density fall; undo each step that fell below.

        Such a step is tried again with what is measured anew, if that had served a step already, then at half its size.
        Returns the last thresholds, and the events of steps that left the requirement met.
        """
        schedule, layers = self.method.schedule, self.layers.values()
        missed = 0 if accuracy >= self.requirement else self.missed + 1
        least = schedule.least(self.requirement, self.start, iteration, self.budget, missed)
        last = next((event.iteration for event in reversed(self.events) if event.phase != "look"), 0)
        then = 2 * iteration - last  # the next evaluation is as far as the last
        lowest = schedule.lowest(self.start, then, self.budget) * self.synapses
        found, seen, keep, jacobian, fresh = None, [], schedule.keep, None, False
        while accuracy >= least and (left := sum(layer.significant for layer in layers)) > len(layers):
            if schedule.keep**0.5 * left < lowest:
                break
            before = copy.deepcopy(self._snapshot())
            self.round += 1
            if jacobian is None and self.method.measured:
                images = [measure() for _ in range(self.method.measured)]
                iteration += len(images)
                frozen = {name for name, value in self.model.named_parameters() if not value.requires_grad}
                jacobian, fresh = Jacobian(self._looked_at, images, self._generator, frozen), True
            target = max(min(max(keep * left, lowest), left - 1), len(layers))
            self.progress = dict.fromkeys(self.layers, target / self.synapses)
            thresholds = self._prune(jacobian)
            after = evaluate()
            if after < least:
                self._restore(before)
                if jacobian is not None and not fresh:
                    jacobian = None  # the network has moved away from where it was measured
                elif keep == schedule.keep:
                    keep = schedule.keep**0.5
                else:
                    break
                continue
            accuracy, keep, fresh = after, schedule.keep, False
            if jacobian is not None:
                jacobian = jacobian.within({name: layer.mask for name, layer in self.layers.items()})
            found, density = thresholds, self.density
            if accuracy >= self.requirement:
                self._keep(iteration, accuracy, density)
                seen.append(Event(iteration, "look", accuracy, density, "prune", self.densities(), thresholds))
        return found, seen

    def _next_round(self, iteration: int) -> dict[str, float] | None:
        self.phase = "recover"
        # A recovery that took over half of the patience asks for smaller steps.
        if 2 * self.missed > self._enough:
            self.paces = {name: pace / 2 for name, pace in self.paces.items()}
        before, thresholds = self.density, None
        last = self.round + IDLE_ROUNDS
        while self.density == before:
            if before * self.synapses <= len(self.layers) or self.round == last:
                return None
            self.round += 1
            self.progress = {name: done + self.paces[name] for name, done in self.progress.items()}
            if self.method.rewind:
                self._restore(self.origin)
                before = 1.0
            thresholds = self._prune()
        if self.method.restart:
            self._start_again(iteration)
        return thresholds

    def _start_again(self, iteration: int) -> None:
        self.restarted = iteration - min(self._rewound or 0, self.start)
        if self._rewound is None:
            return
        if self.early is None:
            raise RuntimeError(
                f"the weights of iteration {self._rewound} are not there: call observe(iteration) while watching is true"
            )
        masks = {name: layer.mask.clone() for name, layer in self.layers.items()}
        self._restore(self.early)
        for name, mask in masks.items():
            self.set_mask(name, mask)

    def _redense(self, met: bool) -> str | None:
        """Bring all synapses back, or count an evaluation of their rest; the action, if there is one."""
        if self.phase == "dense":
            self.rested += 1
            return None
        if not met:
            return None
        if self.density * self.synapses <= len(self.layers):
            return "nothing left to prune"
        for name, layer in self.layers.items():
            self.set_mask(name, torch.ones_like(layer.mask))
        self.phase, self.rested = "dense", 0
        return "regrow"

    def _follow(self, iteration: int) -> dict[str, float] | None:
        if iteration == self.start or min(self.progress.values()) == 1:
            return None
        self.round += 1
        self.progress = dict.fromkeys(self.layers, min((iteration - self.start) / self.ramp, 1.0))
        return self._prune()

    @property
    def synapses(self) -> int:
        """All prunable synapses of the model."""
        return sum(layer.synapses for layer in self.layers.values())

    @torch.no_grad()
    def _prune(self, jacobian: Jacobian | None = None) -> dict[str, float]:
        scores = self._scores()
        amounts = {name: self.method.schedule.amount(done) for name, done in self.progress.items()}
        thresholds = self.method.allocation(self.layers, scores, amounts)
        if jacobian is not None:
            keep = {name: self.method.masking(layer, scores[name], thresholds[name]) for name, layer in self.layers.items()}
            jacobian.compensated(keep, {id(model): model for model in (self.model, self._looked_at)}.values())
        self.apply(thresholds, scores)
        return thresholds

    @property
    def _looked_at(self) -> nn.Module:
        """The model that is evaluated and delivered."""
        return self.average if self.average is not None else self.model

    @property
    def _generator(self) -> torch.Generator:
        """A random generator that follows from seed and round."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + self.round)

    def _scores(self) -> dict[str, Tensor]:
        if self._traced:
            if not self.memory:
                raise RuntimeError("the criterion has seen no gradient: call observe(iteration) while watching is true")
            return self.memory
        generator = self._generator
        # What is looked at is the average: where one is pruned by looks, its weights tell which are small.
        layers = self._averages if self._averages and self.method.schedule.paced == "looks" else self.layers
        return {name: self.method.criterion(layers[name], generator) for name in self.layers}

    def apply(self, thresholds: Mapping[str, float], scores: Mapping[str, Tensor] | None = None) -> None:
        """Make the masks of model and average anew by one threshold per layer."""
        scores = self._scores() if scores is None else scores
        for name, layer in self.layers.items():
            self.set_mask(name, self.method.masking(layer, scores[name], thresholds[name]))

    @torch.no_grad()
    def set_mask(self, name: str, keep: Tensor) -> None:
        """Make ``keep`` (bool, shape of the weight) the mask of a layer, in the average too.

        What is off is zero in the weights and in the optimizer's momentum, unless it goes on learning.
        """
        hidden = self.method is not None and isinstance(self.method.watch, Splice)
        for layer in (self.layers[name], self._averages.get(name)):
            if layer is not None and hidden:
                layer.mask.copy_(keep)
            elif layer is not None:
                layer.set_mask(keep)
        if not hidden:
            self._clear_momentum(self.layers[name])

    def _clear_momentum(self, layer) -> None:
        if self.optimizer is None:
            return
        for value in self.optimizer.state.get(layer.weight, {}).values():
            if isinstance(value, Tensor) and value.shape == layer.mask.shape:
                value.masked_fill_(~layer.mask, 0)

    def _keep(self, iteration: int, accuracy: float, density: float) -> None:
        if self.best is None or density < self.best["density"]:
            state = {name: tensor.detach().clone() for name, tensor in self._looked_at.state_dict().items()}
            self.best = {"iteration": iteration, "accuracy": accuracy, "density": density, "model": state}

    def _snapshot(self) -> dict:
        return {
            name: part.state_dict()
            for name in ("model", "average", "optimizer")
            if (part := getattr(self, name)) is not None
        }

    def _restore(self, snapshot: Mapping) -> None:
        for name, state in snapshot.items():
            getattr(self, name).load_state_dict(copy.deepcopy(state))
