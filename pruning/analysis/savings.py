"""What pruning saves: a study's delivered models in bytes and in energy.

    python -m pruning.analysis.savings tables report     # storage.csv, energy.csv and compressed/*.prn
    python -m pruning.analysis.savings readme report     # the README's table of them

A pruned network is stored in every encoding of ``pruning.deploy.storage``. Weights are shared by the
smallest codebook of ``CLUSTERS`` that keeps the requirement on the validation split, fine-tuned
where sharing lost it. ``compact`` is the last encoding again, of the network without the neurons
that have no synapse in or none out.
"""

from __future__ import annotations

import argparse
import base64
import copy
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.accel import convolution
from pruning.analysis.tables import KEYS, between, frame, titles
from pruning.deploy import storage
from pruning.deploy.energy import classify, loads_of
from pruning.deploy.export import compact
from pruning.files import DamagedFile, load_state, write_whole
from pruning.masks import masked_layers, unmasked
from pruning.study import datasets
from pruning.study.networks import input_shape
from pruning.study.config import HASHED, Run, StudyError
from pruning.study.paths import root
from pruning.study.records import digest, folder, read_record, write_record
from pruning.study.store import recorded
from pruning.study.studies import Study, load
from pruning.study.training import accuracy, batches

# To be raised when a change to the code makes the same models give other numbers.
PROTOCOL = 1
CLUSTERS = (16, 32, 64, 256)
UPDATES, ATTEMPTS = 25, 4  # of fine-tuning, before each look at the validation split
ON_CHIP = (8 * 1024, 32 * 1024)  # bytes of SRAM in the energy table
SHOWN = "adaptive-patient"  # the method whose models are committed, as the notebooks have it too
ENCODINGS = (*storage.ENCODINGS, "compact")
STORAGE_COLUMNS = (*KEYS, "encoding", "bytes", "dense_bytes", "ratio", "test_accuracy")
ENERGY_COLUMNS = (
    *KEYS, "variant", "on_chip_bytes", "synapses", "weight_bits", "weight_bytes", "validation_accuracy", "macs",
    "dram_accesses", "sram_accesses", "dram_nj", "sram_nj", "arithmetic_nj", "total_nj",
)  # fmt: skip
TABLES = {"storage": STORAGE_COLUMNS, "energy": ENERGY_COLUMNS}


def quantized(
    model: nn.Module, goal: float, validate: Callable[[nn.Module], float], stream: Iterator[tuple[Tensor, Tensor]]
) -> tuple[nn.Module, int, float]:
    """The model with weights shared by the smallest codebook that keeps ``goal``.

    Returns it with the codebook's size and what ``validate`` says of it. Every size of
    ``CLUSTERS`` is looked at as k-means leaves it, then after ``UPDATES`` batches of ``stream``,
    up to ``ATTEMPTS`` times. Where none keeps the goal, it is the best that was seen.
    """

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(convolution.run(network, batch[0]), batch[1])

    best: tuple[nn.Module, int, float] | None = None
    for clusters in CLUSTERS:
        small = storage.shared(model, clusters)
        for attempt in range(ATTEMPTS + 1):
            if attempt:
                small = storage.tune(small, loss, itertools.islice(stream, UPDATES))
            found = validate(small)
            if best is None or found > best[2]:
                # A network that is tuned further is a new one only in its numbers.
                best = storage.shared(small, clusters), clusters, found
            if found >= goal:
                return best
    return best


def measure(run: Run, record: dict, model: nn.Module, dataset: datasets.Dataset) -> dict:
    """A delivered model's rows of both tables, and its file in the encoding ``entropy``.

    The goal that quantization must keep is the run's requirement; where the run never met it,
    the validation accuracy that was delivered. Test accuracy is that of the decoded file; a
    lossless one that decodes to anything but the model is a ``RuntimeError``.
    """
    result = record["result"]

    def validate(network: nn.Module) -> float:
        return accuracy(network, dataset.validation)

    goal = min(run.requirement, result["validation_accuracy"])
    stream = batches(dataset, run.settings, run.seed, result["iterations"])
    small, clusters, kept = quantized(model, goal, validate, stream)
    tiny, short = compact(small, run.network)
    # What compacting adds to biases is rounded like all others, unless that costs the goal.
    rounded = storage.shared(tiny, clusters)
    tiny = rounded if validate(rounded) >= min(goal, kept) else tiny

    key = {name: getattr(run, name) for name in KEYS}
    rows, files, tests = [], {}, {}
    networks = dict.fromkeys(storage.ENCODINGS, model) | dict.fromkeys(storage.SHARED, small) | {"compact": tiny}
    for encoding, meant in networks.items():
        form, notation = ("entropy", short) if encoding == "compact" else (encoding, run.network)
        files[encoding] = storage.encode(meant, form, notation)
        decoded = storage.decode(files[encoding])
        if not _same(decoded, meant):
            raise RuntimeError(f"{run.name}: the encoding {encoding} gives another network back")
        if id(meant) not in tests:
            tests[id(meant)] = result["test_accuracy"] if meant is model else accuracy(decoded, dataset.test)
        size, dense = len(files[encoding]), len(files["dense32"])
        rows.append(key | {"encoding": encoding, "bytes": size, "dense_bytes": dense,
                           "ratio": round(dense / size, 3), "test_accuracy": tests[id(meant)]})
    return {"storage": rows, "energy": _energies(run, model, small, clusters, result, kept),
            "file": base64.b64encode(files["entropy"]).decode()}


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two masked networks compute with the same numbers, whatever lies under their masks."""
    states = [unmasked(copy.deepcopy(model)).state_dict() for model in (one, other)]
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def _energies(run: Run, model: nn.Module, small: nn.Module, clusters: int, result: dict, kept: float) -> list[dict]:
    bits = math.ceil(math.log2(clusters))
    rows = []
    for on_chip in ON_CHIP:
        for variant, network, width in (("dense", model, 32), ("pruned", model, 32), ("compressed", small, bits)):
            loads = loads_of(network, input_shape(run.network))
            cost = classify(loads, variant, on_chip=on_chip, weight_bits=bits)
            synapses = sum(load.synapses if variant == "dense" else load.significant for load in loads)
            rows.append({name: getattr(run, name) for name in KEYS} | {
                "variant": variant, "on_chip_bytes": on_chip, "synapses": synapses, "weight_bits": width,
                "weight_bytes": round(cost.weight_bytes, 1),
                "validation_accuracy": kept if variant == "compressed" else result["validation_accuracy"],
                "macs": round(cost.macs), "dram_accesses": round(cost.dram_words, 1),
                "sram_accesses": round(cost.sram_words, 1), "dram_nj": round(cost.dram_pj / 1e3, 3),
                "sram_nj": round(cost.sram_pj / 1e3, 3), "arithmetic_nj": round(cost.arithmetic_pj / 1e3, 3),
                "total_nj": round(cost.pj / 1e3, 3),
            })
    return rows


def write_tables(study: Study, progress: Callable[[str], None] = print) -> dict[Run, bytes]:
    """Write ``storage.csv`` and ``energy.csv`` from the delivered models; the files of ``entropy`` by run.

    What was measured of a model is kept in ``work/`` and not measured again. ``StudyError``
    where models are missing: nothing is written then.
    """
    found = _pruned(study)
    lacking = [run for run, record in found.items() if _kept(run, record) is None
               and not run.place("models", ".model").is_file()]
    if lacking:
        raise StudyError(
            f"{len(lacking)} of the {len(found)} pruned models of the study '{study.name}' are not at hand (such as "
            f"{lacking[0].place('models', '.model')}): they are not committed. Train them with 'make study "
            f"STUDY={study.name} FRESH=1'; the tables are left as they are"
        )
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows, stored = {name: [] for name in TABLES}, {}
    dataset = None
    for number, (run, record) in enumerate(found.items(), start=1):
        measured = _kept(run, record)
        if measured is None:
            if dataset is None or dataset.name != run.dataset:
                dataset = datasets.load(run.dataset)
            state = load_state(run.place("models", ".model"), run.key)
            model = storage.rebuilt(state["network"], state["state"])
            measured = {"of": _origin(record)} | measure(run, record, model, dataset)
            write_record(_kept_path(run), measured)
            sizes = {row["encoding"]: row["bytes"] for row in measured["storage"]}
            progress(f"{number}/{len(found)} {run.name}: {sizes['dense32']:,} bytes dense, {sizes['compact']:,} compact")
        for name in TABLES:
            rows[name] += measured[name]
        stored[run] = base64.b64decode(measured["file"])
    for name, columns in TABLES.items():
        table = pd.DataFrame(rows[name], columns=list(columns)).sort_values(KEYS, kind="stable", ignore_index=True)
        write_whole(folder(study.name) / f"{name}.csv", table.to_csv(index=False, lineterminator="\n").encode())
    return stored


def _pruned(study: Study) -> dict[Run, dict]:
    """The study's current records of pruned networks, by their run; weights that are shared are none that these files hold."""
    named = {record["run"]["name"]: record for record in recorded(study)}
    return {run: named[run.name] for run in study.runs if run.method not in ("unpruned", HASHED) and run.name in named}


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


def shown(study: Study, method: str = SHOWN) -> list[Run]:
    """The run of each benchmark whose compressed model is kept: its highest requirement, the median seed.

    The median is that of the density among the seeds that met the requirement, the sparser of
    two; a benchmark where none did is left out. The test split plays no part.
    """
    chosen = []
    for benchmark in study.benchmarks:
        highest = max(study.requirements[benchmark])
        met = [
            (record["result"]["density"], run.seed, run) for run, record in _pruned(study).items()
            if (run.benchmark, run.requirement, run.method) == (benchmark, highest, method)
            and record["result"]["reached"]
        ]
        if met:
            chosen.append(sorted(met, key=lambda item: item[:2])[(len(met) - 1) // 2][2])
    if not chosen:
        raise StudyError(f"no run of '{method}' met the highest requirement of a benchmark in the study '{study.name}'")
    return chosen


def write_compressed(study: Study, stored: dict[Run, bytes], method: str = SHOWN) -> list[Path]:
    """Write the files of the ``shown`` runs to ``compressed/``; others there are removed."""
    paths = []
    for run in shown(study, method):
        paths.append(run.place("compressed", ".prn"))
        write_whole(paths[-1], stored[run])
    for path in (folder(study.name) / "compressed").glob("*.prn"):
        if path not in paths:
            path.unlink()
    return paths


def opened(run: Run) -> nn.Module:
    """The masked network in a run's compressed file; ``StudyError`` where there is none."""
    path = run.place("compressed", ".prn")
    if not path.is_file():
        raise StudyError(
            f"no compressed model {path}: run 'python -m pruning.analysis.savings tables {run.study} --method {run.method}' "
            "where the study's delivered models are"
        )
    return storage.load(path)


def tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``storage.csv`` and ``energy.csv``, each row with ``reached`` and ``significant`` of its record.

    ``StudyError`` where one is missing or was made from other records than the current ones.
    """
    runs = frame(_pruned(study).values()).set_index(KEYS)
    found = {}
    again = f"run 'make savings STUDY={study.name}' where the study's delivered models are"
    for name, columns in TABLES.items():
        path = folder(study.name) / f"{name}.csv"
        if not path.is_file():
            raise StudyError(f"no table {path}: {again}")
        table = pd.read_csv(path)
        if tuple(table.columns) != columns:
            raise StudyError(f"{path} has other columns than {', '.join(columns)}: {again}")
        found[name] = table.join(runs[["reached", "significant"]], on=KEYS)
    lossless = found["storage"].query("encoding == 'dense32'").set_index(KEYS)["test_accuracy"]
    pruned = found["energy"].query("variant == 'pruned'").drop_duplicates(KEYS).set_index(KEYS)["synapses"]
    for seen, expected in ((lossless, runs["test_accuracy"]), (pruned, runs["significant"])):
        if not seen.sort_index().equals(expected.sort_index().astype(seen.dtype).rename(seen.name)):
            raise StudyError(f"the tables of the study '{study.name}' were made from other records: {again}")
    return found["storage"], found["energy"]


def held(energies: pd.DataFrame) -> pd.Series:
    """Whether quantization kept the requirement on validation, of each run that had met it; by ``KEYS``."""
    rows = energies[(energies["variant"] == "compressed") & energies["reached"]].drop_duplicates(KEYS).set_index(KEYS)
    return rows["validation_accuracy"] >= rows.index.get_level_values("requirement")


def markdown(study: Study, method: str = SHOWN) -> str:
    """The README's table: a method's networks at each benchmark's highest requirement, in bytes and energy."""
    stored, energies = tables(study)
    named = titles(_pruned(study).values())
    on_chip = ON_CHIP[0]
    columns = ["benchmark", "requirement", "met by", "weights left", "dense file", "compressed file", "smaller"]
    columns += ["test accuracy", f"energy, {on_chip // 1024} KiB on chip"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for benchmark in study.benchmarks:
        highest = max(study.requirements[benchmark])
        query = "benchmark == @benchmark and requirement == @highest and method == @method and reached"
        files, costs = stored.query(query), energies.query(query).query("on_chip_bytes == @on_chip")
        if files.empty:
            continue
        small = files.query("encoding == 'compact'")
        runs = stored.query("benchmark == @benchmark and requirement == @highest and method == @method")["seed"].nunique()
        total = costs.groupby("variant")["total_nj"].mean() / 1e3
        lines.append(
            f"| {benchmark}, {named[benchmark]} | {100 * highest:g} % | {len(small)} of {runs} | "
            f"{small['significant'].mean():,.0f} | "
            f"{small['dense_bytes'].iloc[0]:,} bytes | {small['bytes'].mean():,.0f} bytes | "
            f"{smaller(small)}× | {100 * small['test_accuracy'].mean():.2f} % | "
            f"{total['dense']:.1f} to {total['compressed']:.1f} µJ, {total['dense'] / total['compressed']:.1f}× less |"
        )
    return "\n".join(lines)


def smaller(rows: pd.DataFrame) -> str:
    """How many times smaller than dense files are: dense over their mean size (smallest to largest)."""
    mean = rows["dense_bytes"].mean() / rows["bytes"].mean()
    return f"{mean:.1f} ({rows['ratio'].min():.1f} to {rows['ratio'].max():.1f})" if len(rows) > 1 else f"{mean:.1f}"


def readme(text: str, study: Study, method: str = SHOWN) -> str:
    """``text`` with the table between ``<!-- savings -->`` and ``<!-- /savings -->`` made anew."""
    return between(text, "savings", markdown(study, method))


def by_layer(model: nn.Module) -> pd.DataFrame:
    """Synapses of each masked layer: all, left, and the neurons or filters that have one at their input."""
    rows = {
        name: {"synapses": layer.synapses, "significant": layer.significant, "neurons": len(layer.weight),
               "with inputs": int(layer.mask.flatten(1).any(1).sum())}
        for name, layer in masked_layers(model).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def main(arguments: list[str] | None = None) -> int:
    """Make the tables and compressed models of a study from its delivered models, or the README's table."""
    parser = argparse.ArgumentParser(prog="python -m pruning.analysis.savings", description=main.__doc__)
    parser.add_argument("action", choices=("tables", "readme"))
    parser.add_argument("study", nargs="?", default="report")
    parser.add_argument("--method", default=SHOWN, help=f"whose models are shown (default {SHOWN})")
    given = parser.parse_args(arguments)
    try:
        study = load(given.study)
        if given.method not in study.methods:
            raise StudyError(f"no method '{given.method}' in the study '{study.name}': {', '.join(study.methods)}")
        if given.action == "tables":
            stored = write_tables(study, lambda line: print(line, flush=True))
            for path in write_compressed(study, stored, given.method):
                print(f"{path}: {path.stat().st_size:,} bytes")
            kept = held(tables(study)[1])
            print(f"{len(stored)} models; {kept.sum()} of {len(kept)} keep their requirement with shared weights")
        else:
            path = root() / "README.md"
            write_whole(path, readme(path.read_text(encoding="utf-8"), study, given.method).encode())
    except (StudyError, DamagedFile, datasets.DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
