"""From records to one tidy table: what the figures and the claims are made from.

>>> table = pd.read_csv(folder("report") / "runs.csv")      # what ``write_table`` wrote
>>> summary(table).query("benchmark == 'mnist-2c' and method == 'unpruned'")["density"].tolist()
[1.0, 1.0, 1.0]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pruning.files import write_whole
from pruning.study.cost import derived
from pruning.study.datasets import KINDS, validation_images
from pruning.study.records import folder

COLUMNS = (
    "benchmark", "network", "dataset", "requirement", "method", "seed", "synapses", "significant", "density",
    "validation_accuracy", "test_accuracy", "iterations", "iterations_unpruned", "effort", "cost", "macs_cost",
    "images_evaluated", "images_trained", "reached",
    "iterations_spent", "stopped", "macs_dense", "macs", "training_macs",
)  # fmt: skip
KEYS = ["benchmark", "requirement", "method", "seed"]


def frame(records: Iterable[dict]) -> pd.DataFrame:
    """Return one row per record with ``COLUMNS``, sorted by benchmark, requirement, method and seed.

    A run that did not reach its requirement has density 1, also where its method had pruned before.
    """
    rows = [record["run"] | record["result"] | _counted(record) for record in records]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["iterations_unpruned"] = table["iterations_unpruned"].astype("Int64")
    for name in ("effort", "cost", "macs_cost"):
        table[name] = table[name].astype("float64")
    for name in ("images_evaluated", "images_trained"):
        table[name] = table[name].astype("Int64")
    table["density"] = table["density"].where(table["reached"].astype(bool), 1.0)
    return table.sort_values(KEYS, ignore_index=True)


def _counted(record: dict) -> dict:
    """Count images for a record that has no counts: where nothing but the evaluations looked, they follow."""
    run, result = record["run"], record["result"]
    settings, looks = run.get("settings", {}), "measured" in str(run.get("fields"))
    if "cost" in result or looks or run["dataset"] not in KINDS or not {"interval", "batch"} <= settings.keys():
        return {}
    images = validation_images(run["dataset"]) or 0
    counted = [
        derived(iterations, settings["interval"], images, settings["batch"])
        for iterations in (result["iterations"], result["iterations_unpruned"] or 0)
    ]
    ratio = counted[0].images / counted[1].images if result["reached"] and counted[1].images else None
    return {"images_evaluated": counted[0].evaluated, "images_trained": counted[0].trained, "cost": ratio}


def write_table(study: str, records: Iterable[dict]) -> Path:
    """Write ``runs.csv`` of a study from its records; return its path."""
    path = folder(study) / "runs.csv"
    write_whole(path, frame(records).to_csv(index=False, lineterminator="\n").encode())
    return path


def mixed_processors(records: Iterable[dict]) -> list[str]:
    """Say of each benchmark whose runs were made on several kinds of processor which, and how many on each.

    Arithmetic rounds differently on them, and trainings drift apart from there: what compares two methods then compares
    two processors as well.
    """
    made: dict[str, list[dict]] = {}
    for record in records:
        made.setdefault(record["run"]["benchmark"], []).append(record["environment"])
    kinds = {}
    for benchmark, environments in made.items():
        # Records of old do not tell the instructions.
        told = [name for name in ("device", "instructions") if all(name in one for one in environments)]
        kinds[benchmark] = Counter(", ".join(one[name] for name in told) for one in environments)
    return [
        f"the runs of {benchmark} were made on {len(counts)} kinds of processor: "
        + "; ".join(f"{kind}: {count}" for kind, count in counts.most_common())
        for benchmark, counts in kinds.items()
        if len(counts) > 1
    ]


def trained_on(records: Iterable[dict]) -> str:
    """Say on which processors each method was trained, in a sentence for each of them; a method may be in several."""
    methods: dict[str, set[str]] = {}
    for record in records:
        methods.setdefault(record["environment"]["device"], set()).add(record["run"]["method"])
    if len(methods) == 1:
        return f"All of them were trained on one kind of processor, {next(iter(methods))}."
    parts = [f"{device}: {', '.join(f'`{name}`' for name in sorted(names))}." for device, names in methods.items()]
    return " ".join(f"Trained on {part}" for part in parts)


def titles(records: Iterable[dict]) -> dict[str, str]:
    """Return each benchmark's data as figures name it: ``{"cifar10-2c": "CIFAR-10 (JPEG copy)"}``."""
    return {record["run"]["benchmark"]: record["data"] for record in records}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds, one row per benchmark, requirement and method.

    Columns: ``runs``, ``reached`` (how many met the requirement), ``density``, ``density_sd``,
    ``effort``, ``effort_sd``, ``cost``, ``cost_sd`` (of those that reached it), ``test_accuracy``,
    ``test_accuracy_sd``.
    """
    columns = {"runs": ("seed", "size"), "reached": ("reached", "sum")}
    for name in ("density", "effort", "cost", "test_accuracy"):
        columns |= {name: (name, "mean"), f"{name}_sd": (name, "std")}
    return table.groupby(KEYS[:3]).agg(**columns).reset_index()


def compression(table: pd.DataFrame) -> pd.Series:
    """Return the compression ratio (Blalock et al. 2020): all synapses over those that are left."""
    return table["synapses"] / table["significant"]


def speedup(table: pd.DataFrame) -> pd.Series:
    """Return the theoretical speed-up (Blalock et al. 2020): multiply-accumulates of an image, dense over remaining."""
    return table["macs_dense"] / table["macs"]
