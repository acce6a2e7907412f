"""Runs to a requirement: train, and say in plain values what came of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import nn

from pruning.events import Event
from pruning.masks import PRUNABLE, masked_layers
from pruning.methods import METHODS
from pruning.study import cost
from pruning.study.config import HASHED_FIELDS, Run, StudyError
from pruning.study.datasets import Dataset
from pruning.study.hashed import HASHABLE, ladder
from pruning.study.networks import Network, build, described
from pruning.study.states import Context
from pruning.study.training import Outcome, accuracy, halves, network, prepare, train

TRAJECTORY_POINTS = 80
HISTOGRAM_BINS = 41
# Linear layers of at most so many synapses show their mask in the record (the report's figure 1).
MASK_LIMIT = 4096


def prune(run: Run, context: Context) -> tuple[dict, nn.Module]:
    """Train and prune to the requirement; the record's parts and the delivered model."""
    assert run.requirement
    settings, dataset, limits, certifying = run.settings, context.dataset, run.settings.limits, None
    if settings.confidence:
        steering, certifying = halves(dataset.validation, run.seed)
        dataset = replace(dataset, validation=steering)
        limits |= {"confidence": settings.confidence, "certifying": len(certifying.labels)}
    training = prepare(
        context.network, settings, run.requirement, METHODS[run.method], run.seed, context.device, **limits
    )
    kept = context.checkpoint, context.every, context.dense, context.progress
    outcome = train(training, dataset, settings, run.seed, *kept, certifying)
    return summary(run, context.network, dataset, outcome), outcome.model


def hash_ladder(run: Run, context: Context) -> tuple[dict, nn.Module]:
    """Train smaller and smaller HashedNets; many short trainings: one that is stopped starts again."""
    assert run.requirement
    kinds = dict(build(context.network).named_modules()) if not isinstance(context.network, str) else {}
    if others := [name for name, part in kinds.items() if isinstance(part, PRUNABLE) and type(part) not in HASHABLE]:
        raise StudyError(f"HashedNets have linear and 2-d convolutional layers alone: '{others[0]}' is another")
    settings, dataset = run.settings, context.dataset
    outcome = ladder(
        context.network,
        dataset,
        settings,
        run.requirement,
        run.seed,
        settings.patience,
        settings.budget,
        **HASHED_FIELDS,
        progress=context.progress,
    )
    return summary(run, context.network, dataset, outcome), outcome.model


def summary(run: Run, made_as: Network, dataset: Dataset, outcome: Outcome) -> dict:
    """Describe a finished run in plain values; the test split is read here, once."""
    dense = network(made_as, run.seed)
    if outcome.dense is not None:
        dense.load_state_dict(outcome.dense)
    before, after, table = masked_layers(dense), masked_layers(outcome.model), described(made_as)
    parts = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "shape": list(layer.shape),
            "synapses": layer.synapses,
            "significant": after[layer.name].significant,
            "positions": layer.output_positions,
        }
        | _mask(after[layer.name].mask, layer)
        for layer in table
    ]
    synapses = sum(part["synapses"] for part in parts)
    significant = sum(part["significant"] for part in parts)
    macs = sum(layer.macs for layer in table)
    best, events = outcome.best, outcome.events
    # Of the looks those whose model may be delivered; the others count for the cost alone.
    told = [
        event
        for event in events
        if event.phase != "look" or (event.action != "undo" and event.accuracy >= (run.requirement or 0))
    ]
    iterations = best["iteration"] if best else outcome.iterations
    own: dict = {} if isinstance(made_as, str) else {"input": list(made_as.shape)}
    if outcome.certificate:
        own["certificate"] = asdict(outcome.certificate)
    return {
        "result": {
            "synapses": synapses,
            "significant": significant,
            "density": significant / synapses,
            "validation_accuracy": best["accuracy"] if best else events[-1].accuracy,
            "test_accuracy": accuracy(outcome.model, dataset.test),
            "iterations": iterations,
            "iterations_unpruned": outcome.start,
            "effort": iterations / outcome.start if best and outcome.start else None,
            "reached": outcome.reached,
            "iterations_spent": outcome.iterations,
            "stopped": events[-1].action,
            **_cost(run, outcome, {layer.name: layer.macs for layer in table}),
            "macs_dense": macs,
            # Hashed connections share their weights, but each of them multiplies.
            "macs": sum(
                getattr(after[layer.name], "connections", after[layer.name].significant) * layer.output_positions
                for layer in table
            ),
            # A backward pass takes about twice the forward pass's multiply-accumulates.
            "training_macs": 3 * macs * run.settings.batch * iterations,
        },
        "layers": parts,
        **own,
        "trajectory": trajectory(_whole(told)),
        "rounds": rounds(told),
        "histograms": {
            name: {"before": histogram(before[name].weight), "after": histogram(layer.weight[layer.mask])}
            for name, layer in after.items()
        },
        "seconds": round(outcome.seconds, 2),
    }


def _cost(run: Run, outcome: Outcome, macs: dict[str, int]) -> dict:
    """Compare what the delivered model took with what the unpruned one took to meet the requirement."""
    events, best, start, batch = outcome.events, outcome.best, outcome.start, run.settings.batch
    if run.kind == "ladder":  # hashed connections share their weights, but each of them multiplies
        events = tuple(replace(event, densities=dict.fromkeys(macs, 1.0)) for event in events)
    if not best or not start:
        spent = cost.passes(events, outcome.iterations, batch, macs)
        return {"images_evaluated": spent.evaluated, "images_trained": spent.trained, "cost": None, "macs_cost": None}
    spent = cost.delivered(events, best["events"], best["iteration"], batch, macs)
    first = next(place for place, event in enumerate(events, start=1) if event.iteration == start)
    unpruned = cost.passes(events[:first], start, batch, macs)
    return {
        "images_evaluated": spent.evaluated,
        "images_trained": spent.trained,
        "cost": spent.images / unpruned.images,
        "macs_cost": spent.macs / unpruned.macs,
    }


def _whole(events: Sequence[Event]) -> list[Event]:
    """Return the evaluations of all examples by iteration; those that confirmed a model come last in ``events``."""
    every = max(event.examples or 0 for event in events)
    return sorted((event for event in events if (event.examples or every) == every), key=lambda one: one.iteration)


def trajectory(events: Sequence[Event]) -> dict[str, list]:
    """Return accuracy and density at each evaluation, thinned to about ``TRAJECTORY_POINTS``, the last included."""
    step = max(1, -(-len(events) // TRAJECTORY_POINTS))
    kept = [*events[::step], *(events[-1:] if (len(events) - 1) % step else [])]
    return {
        "iteration": [event.iteration for event in kept],
        "accuracy": [round(event.accuracy, 5) for event in kept],
        "density": [round(event.density, 5) for event in kept],
    }


def rounds(events: Sequence[Event]) -> list[dict]:
    """Return the iteration and the layers' densities of each pruning, thinned to half of ``TRAJECTORY_POINTS``."""
    pruned = [event for event in events if event.thresholds]
    step = max(1, -(-len(pruned) // (TRAJECTORY_POINTS // 2)))
    return [
        {"iteration": event.iteration, "densities": {name: round(value, 5) for name, value in event.densities.items()}}
        for event in pruned[::step]
    ]


def histogram(weights: torch.Tensor) -> dict:
    """Count weights in ``HISTOGRAM_BINS`` bins from -``limit`` to ``limit``."""
    weights = weights.detach().cpu()
    limit = float(weights.abs().max()) if weights.numel() else 0.0
    limit = float(f"{limit:.4g}") or 1.0
    # The rounded limit may lie just below the largest weight, which belongs to the last bin.
    counts = torch.histc(weights.clamp(-limit, limit), HISTOGRAM_BINS, -limit, limit)
    return {"limit": limit, "counts": [int(count) for count in counts]}


def _mask(mask: torch.Tensor, layer) -> dict:
    """Encode a small linear layer's mask: its bits, row by row, eight to a byte (``numpy.unpackbits``), as base64."""
    if layer.kind != "linear" or not mask.numel() == layer.synapses <= MASK_LIMIT:
        return {}
    return {"mask": base64.b64encode(np.packbits(mask.cpu().numpy()).tobytes()).decode()}
