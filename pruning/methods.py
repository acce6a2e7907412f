"""The known methods as combinations of criterion, allocation, strategy and hook.

>>> METHODS["gradual"].strategy.schedule
PolynomialSchedule(final=0.005)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass

from pruning.adaptive import AccuracyDriven
from pruning.allocation import above_threshold, erk, global_threshold, lamp, spliced, std_threshold, uniform
from pruning.criteria import ema_snip, magnitude, movement, random, snip
from pruning.hooks import BiasedDecay, GradientScores, Hook, NetworkSurgery, RigL
from pruning.schedules import AccuracyTolerance, GeometricSchedule, LinearThreshold, PolynomialSchedule
from pruning.strategies import NoPruning, Ramp, Rewind, Rounds, Strategy


@dataclass(frozen=True)
class Method:
    """A pruning method: which synapses matter, how much of which layer, when, and what happens at every iteration.

    ``masking`` makes a layer's new mask from scores and threshold. ``strategy`` and ``hook`` are prototypes, which a
    control copies. ``reference`` says what the method is and who published it.
    """

    criterion: Callable
    allocation: Callable
    strategy: Strategy
    masking: Callable = above_threshold
    hook: Hook = field(default_factory=Hook)
    reference: str = ""

    def fields(self) -> dict:
        """All that a run's numbers follow from, as plain values: what a key is made of."""
        parts = ("criterion", "allocation", "masking")
        named = {name: getattr(self, name).__name__ for name in parts}
        return named | {"strategy": settings(self.strategy), "hook": settings(self.hook)}


def settings(part) -> dict:
    """Turn a dataclass and its settings into nested plain values, without the state that it keeps."""
    chosen = {}
    for name in [item.name for item in fields(part) if item.init]:
        value = getattr(part, name)
        chosen[name] = settings(value) if is_dataclass(value) else value
    return {type(part).__name__: chosen}


def _adaptive(reference: str, measured: int = 2, error: float = 0.1, sensitive: bool = True, **changes) -> Method:
    strategy = AccuracyDriven(AccuracyTolerance(**changes), measured, error, sensitive)
    return Method(magnitude, global_threshold, strategy, reference=reference)


HAN = "Han et al. 2015"
METHODS: Mapping[str, Method] = {
    "unpruned": Method(magnitude, global_threshold, NoPruning(), reference="training without pruning"),
    # Convolutions lose accuracy sooner than fully connected layers (Han et al. 2015, figure 6).
    "iterative": Method(
        magnitude,
        std_threshold,
        Rounds(LinearThreshold(0.1), convolution_pace=0.5),
        reference=f"rounds of a threshold per layer that rises with the layer's standard deviation; {HAN}",
    ),
    "gradual": Method(
        magnitude,
        global_threshold,
        Ramp(PolynomialSchedule(0.005)),
        reference="one global threshold that follows a cubic; Zhu and Gupta 2017",
    ),
    "oneshot": Method(
        magnitude,
        global_threshold,
        Rounds(GeometricSchedule(0.7), from_dense=True),
        reference=f"the dense network pruned at once, to a smaller density each time; a baseline of {HAN}",
    ),
    "random": Method(
        random,
        uniform,
        Rounds(GeometricSchedule(0.8)),
        reference="synapses at random: the baseline of all criteria",
    ),
    # Each differs from gradual in one part: the allocation, or the criterion.
    "uniform": Method(
        magnitude,
        uniform,
        Ramp(PolynomialSchedule(0.005)),
        reference="gradual with the same density in every layer; Zhu and Gupta 2017",
    ),
    "erk": Method(
        magnitude,
        erk,
        Ramp(PolynomialSchedule(0.005)),
        reference="gradual with Erdős–Rényi-kernel densities; Mocanu et al. 2018, Evci et al. 2020",
    ),
    "lamp": Method(
        magnitude,
        lamp,
        Ramp(PolynomialSchedule(0.005)),
        reference="gradual with layer-adaptive magnitudes; Lee et al. 2021",
    ),
    "sensitivity": Method(
        ema_snip,
        global_threshold,
        Ramp(PolynomialSchedule(0.005)),
        hook=GradientScores(),
        reference="gradual by connection sensitivity averaged over mini-batches; after Lee et al. 2019",
    ),
    # Densities of a geometric schedule, each trained from the initialisation (SNIP's masks are those of its
    # first batch) or from early weights, or with the warm-up repeated. All iterations count.
    "snip": Method(
        snip,
        global_threshold,
        Rounds(GeometricSchedule(0.7), rewind=Rewind(0)),
        hook=GradientScores(once=True),
        reference="connection sensitivity at initialisation, trained from there; SNIP, Lee et al. 2019",
    ),
    "lottery": Method(
        magnitude,
        global_threshold,
        Rounds(GeometricSchedule(0.7), rewind=Rewind(50)),
        reference="lottery tickets with weights rewound to iteration 50; Frankle and Carbin 2019, Frankle et al. 2020",
    ),
    "raterewind": Method(
        magnitude,
        global_threshold,
        Rounds(GeometricSchedule(0.7), rewind=Rewind(None)),
        reference="learning-rate rewinding after each round; Renda et al. 2020",
    ),
    # RigL exchanges synapses at the density of each round, from the mask that magnitude left;
    # dense-sparse-dense has all of them back between two rounds.
    "rigl": Method(
        magnitude,
        erk,
        Rounds(GeometricSchedule(0.7)),
        hook=RigL(),
        reference="synapses dropped by magnitude and grown by gradient, between two rounds; RigL, Evci et al. 2020",
    ),
    "movement": Method(
        movement,
        uniform,
        Rounds(GeometricSchedule(0.7)),
        hook=GradientScores(),
        reference="synapses whose weights move towards zero; movement pruning, Sanh et al. 2020",
    ),
    "dsd": Method(
        magnitude,
        global_threshold,
        Rounds(GeometricSchedule(0.7), redense=3),
        reference="all synapses back between two rounds; dense-sparse-dense, Han et al. 2017",
    ),
    # Two that add one part to iterative.
    "surgery": Method(
        magnitude,
        std_threshold,
        Rounds(LinearThreshold(0.1), convolution_pace=0.5),
        masking=spliced,
        hook=NetworkSurgery(),
        reference="iterative with pruned synapses that may come back; Guo et al. 2016",
    ),
    "biased": Method(
        magnitude,
        std_threshold,
        Rounds(LinearThreshold(0.1), convolution_pace=0.5),
        hook=BiasedDecay(),
        reference="iterative with a weight decay that favours large weights; Hanson and Pratt 1989",
    ),
    # The study's own, at twice the unpruned effort, at more, and at much more; then with one ingredient off each.
    "adaptive": _adaptive(
        "compensated steps as far as the accuracy allows, scored by magnitude and effect on the outputs, at twice the "
        "unpruned effort; this study"
    ),
    "adaptive-patient": _adaptive(
        "adaptive at five times the unpruned effort; this study", effort=5.0, depth=0.03, patience=10.0
    ),
    "adaptive-tireless": _adaptive(
        "adaptive at thirty times the unpruned effort; this study", effort=30.0, depth=0.03, patience=10.0
    ),
    "adaptive-uncompensated": _adaptive("adaptive without measuring or compensation; this study", measured=0),
    "adaptive-magnitude": _adaptive("adaptive by magnitudes alone; this study", sensitive=False),
    "adaptive-thorough": _adaptive("adaptive with a whole evaluation after each step; this study", error=0.0),
    "adaptive-strict": _adaptive("adaptive without tolerance; this study", depth=0.0),
    "adaptive-constant": _adaptive("adaptive with a constant tolerance; this study", power=0.0, patience=math.inf),
    "adaptive-coarse": _adaptive("adaptive with large steps; this study", keep=0.5),
    "adaptive-steep": _adaptive("adaptive without a limit on its descents; this study", decay=math.inf),
}
