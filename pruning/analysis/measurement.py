"""What pruning saves, measured: each delivered model of a study in bytes and in energy.

``write_tables(load("report"))`` writes storage.csv, energy.csv and the compressed file of each run.

A pruned network is stored in every encoding of ``pruning.deploy.storage``. Weights are shared by the
smallest codebook of ``CLUSTERS`` that keeps the requirement on the validation split, fine-tuned
where sharing lost it. ``compact`` is the last encoding again, of the network without dead neurons.
"""

from __future__ import annotations

import base64
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.accel import convolution
from pruning.analysis.tables import KEYS
from pruning.deploy import encodings, storage
from pruning.deploy.dead_neurons import remove_dead_neurons
from pruning.deploy.energy import classify, loads_of
from pruning.deploy.quantization import fine_tune, share_weights
from pruning.deploy.stages import notation_of
from pruning.files import DamagedFile, load_state, write_whole
from pruning.masks import unmasked
from pruning.notation import input_shape
from pruning.study import datasets
from pruning.study.config import HASHED, Run, StudyError
from pruning.study.records import digest, folder, read_record, write_record
from pruning.study.store import recorded
from pruning.study.studies import Study
from pruning.study.training import accuracy, batches

# To be raised when a change to the code makes the same models give other numbers.
PROTOCOL = 1
CLUSTERS = (16, 32, 64, 256)
UPDATES, ATTEMPTS = 25, 4  # of fine-tuning, before each look at the validation split
ON_CHIP = (8 * 1024, 32 * 1024)  # bytes of SRAM in the energy table
ENCODINGS = (*encodings.ENCODINGS, "compact")
STORAGE_COLUMNS = (*KEYS, "encoding", "bytes", "dense_bytes", "ratio", "test_accuracy")
ENERGY_COLUMNS = (
    *KEYS, "variant", "on_chip_bytes", "synapses", "weight_bits", "weight_bytes", "validation_accuracy", "macs",
    "dram_accesses", "sram_accesses", "dram_nj", "sram_nj", "arithmetic_nj", "total_nj",
)  # fmt: skip
TABLES = {"storage": STORAGE_COLUMNS, "energy": ENERGY_COLUMNS}


def pruned(study: Study) -> dict[Run, dict]:
    """Return the study's current records of pruned networks by their run; HashedNets share weights instead."""
    named = {record["run"]["name"]: record for record in recorded(study)}
    return {run: named[run.name] for run in study.runs if run.method not in ("unpruned", HASHED) and run.name in named}


def write_tables(study: Study, progress: Callable[[str], None] = print) -> dict[Run, bytes]:
    """Write ``storage.csv`` and ``energy.csv`` from the delivered models; the files of ``entropy`` by run.

    What was measured of a model is kept in ``work/`` and not measured again. Raises ``StudyError``
    where models are missing: nothing is written then.
    """
    records = pruned(study)
    if other := next((run for run in records if not run.made_of.is_notation), None):
        raise StudyError(
            f"bytes and energy are measured of networks in the report's notation, and that of '{other.benchmark}' is "
            f"made by {other.network}"
        )
    lacking = [
        run
        for run, record in records.items()
        if _kept(run, record) is None and not run.place("models", ".model").is_file()
    ]
    if lacking:
        raise StudyError(
            f"{len(lacking)} of the {len(records)} pruned models of the study '{study.name}' are missing (such as "
            f"{lacking[0].place('models', '.model')}): they are not committed. Train them with 'make study "
            f"STUDY={study.name} FRESH=1'; the tables stay as they are"
        )
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows: dict[str, list[dict]] = {name: [] for name in TABLES}
    stored = {}
    dataset = None
    for number, (run, record) in enumerate(records.items(), start=1):
        measured = _kept(run, record)
        if measured is None:
            if dataset is None or dataset.name != run.made_of.label:
                dataset = datasets.load(run.dataset)
            state = load_state(run.place("models", ".model"), run.key)
            model = storage.rebuilt(state["network"], state["state"])
            measured = {"of": _origin(record)} | measure(run, record, model, dataset)
            write_record(_kept_path(run), measured)
            dense, *_, compact = (row["bytes"] for row in measured["storage"])
            progress(f"{number}/{len(records)} {run.name}: {dense:,} bytes dense, {compact:,} compact")
        for name in TABLES:
            rows[name] += measured[name]
        stored[run] = base64.b64decode(measured["file"])
    for name, columns in TABLES.items():
        table = pd.DataFrame(rows[name], columns=list(columns)).sort_values(KEYS, kind="stable", ignore_index=True)
        write_whole(folder(study.name) / f"{name}.csv", table.to_csv(index=False, lineterminator="\n").encode())
    return stored


def measure(run: Run, record: dict, model: nn.Module, dataset: datasets.Dataset) -> dict:
    """Measure a delivered model: its rows of both tables, and its file in the encoding ``entropy``.

    The goal that quantization must keep is the run's requirement; where the run never met it,
    the validation accuracy that was delivered. Test accuracy is that of the decoded file. Raises
    ``RuntimeError`` where a file decodes to anything but the model.
    """
    result, shape = record["result"], input_shape(run.network)

    def validate(network: nn.Module) -> float:
        return accuracy(network, dataset.validation)

    goal = min(run.requirement, result["validation_accuracy"])
    stream = batches(dataset, run.settings, run.seed, result["iterations"])
    small, clusters, validated = quantized(model, goal, validate, stream)
    tiny = remove_dead_neurons(small, shape)
    # What dead neurons add to biases is rounded like all others, unless that costs the goal.
    rounded = share_weights(tiny, clusters)
    tiny = rounded if validate(rounded) >= min(goal, validated) else tiny

    key = {name: getattr(run, name) for name in KEYS}
    rows, files, tests = [], {}, {}
    networks = dict.fromkeys(encodings.ENCODINGS, model) | dict.fromkeys(encodings.SHARED, small) | {"compact": tiny}
    for encoding, network in networks.items():
        if encoding == "compact":
            files[encoding] = storage.encode(network, "entropy", notation_of(network, shape))
        else:
            files[encoding] = storage.encode(network, encoding, run.network)
        decoded = storage.decode(files[encoding])
        if not _same(decoded, network):
            raise RuntimeError(f"{run.name}: the encoding {encoding} gives another network back")
        if id(network) not in tests:
            tests[id(network)] = result["test_accuracy"] if network is model else accuracy(decoded, dataset.test)
        size, dense = len(files[encoding]), len(files["dense32"])
        rows.append(
            key
            | {
                "encoding": encoding,
                "bytes": size,
                "dense_bytes": dense,
                "ratio": round(dense / size, 3),
                "test_accuracy": tests[id(network)],
            }
        )
    bits = math.ceil(math.log2(clusters))
    whole = (model, 32, result["validation_accuracy"])
    variants = {"dense": whole, "pruned": whole, "compressed": (small, bits, validated)}
    energies = [
        key
        | {"variant": variant, "on_chip_bytes": on_chip}
        | _energy(network, shape, variant, on_chip, bits)
        | {"weight_bits": width, "validation_accuracy": validation}
        for on_chip in ON_CHIP
        for variant, (network, width, validation) in variants.items()
    ]
    return {"storage": rows, "energy": energies, "file": base64.b64encode(files["entropy"]).decode()}


def quantized(
    model: nn.Module, goal: float, validate: Callable[[nn.Module], float], stream: Iterator[tuple[Tensor, Tensor]]
) -> tuple[nn.Module, int, float]:
    """Share a model's weights by the smallest codebook that keeps ``goal``.

    Returns the model with the codebook's size and what ``validate`` says of it. Every size of
    ``CLUSTERS`` is tried as k-means leaves it, then after ``UPDATES`` batches of ``stream``, up to
    ``ATTEMPTS`` times. Where none keeps the goal, the best one is returned.
    """

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(convolution.run(network, batch[0]), batch[1])

    best = model, 0, -math.inf
    for clusters in CLUSTERS:
        small = share_weights(model, clusters)
        for attempt in range(ATTEMPTS + 1):
            if attempt:
                small = fine_tune(small, loss, itertools.islice(stream, UPDATES))
            validated = validate(small)
            if validated > best[2]:
                # A copy: fine-tuning continues in place.
                best = share_weights(small, clusters), clusters, validated
            if validated >= goal:
                return best
    return best


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two masked networks compute with the same numbers, whatever lies under their masks."""
    first, second = (unmasked(copy.deepcopy(model)).state_dict() for model in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _energy(network: nn.Module, shape: tuple[int, int, int], variant: str, on_chip: int, bits: int) -> dict:
    loads = loads_of(network, shape)
    cost = classify(loads, variant, on_chip=on_chip, weight_bits=bits)
    return {
        "synapses": sum(load.synapses if variant == "dense" else load.significant for load in loads),
        "weight_bytes": round(cost.weight_bytes, 1),
        "macs": round(cost.macs),
        "dram_accesses": round(cost.dram_words, 1),
        "sram_accesses": round(cost.sram_words, 1),
        "dram_nj": round(cost.dram_pj / 1e3, 3),
        "sram_nj": round(cost.sram_pj / 1e3, 3),
        "arithmetic_nj": round(cost.arithmetic_pj / 1e3, 3),
        "total_nj": round(cost.pj / 1e3, 3),
    }


def _origin(record: dict) -> str:
    settings = [PROTOCOL, CLUSTERS, UPDATES, ATTEMPTS, ON_CHIP, ENCODINGS]
    return digest({"record": digest(record), "settings": settings})


def _kept_path(run: Run) -> Path:
    return folder(run.study) / "work" / "savings" / f"{run.name}.json"


def _kept(run: Run, record: dict) -> dict | None:
    try:
        measured = read_record(_kept_path(run))
    except (FileNotFoundError, DamagedFile):
        return None
    return measured if measured["of"] == _origin(record) else None
