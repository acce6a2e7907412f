"""What pruning saves: the tables of bytes and energy, and the compressed models that are committed.

python -m pruning savings tables report     # storage.csv, energy.csv and compressed/*.prn
python -m pruning savings readme report     # the table of them in docs/results.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from torch import nn

from pruning.analysis.measurement import ON_CHIP, TABLES, pruned, write_tables
from pruning.analysis.readme import between
from pruning.analysis.tables import KEYS, frame, titles
from pruning.deploy import storage
from pruning.files import DamagedFile, write_whole
from pruning.masks import masked_layers
from pruning.study import datasets
from pruning.study.config import Run, StudyError
from pruning.study.paths import root
from pruning.study.records import folder
from pruning.study.studies import Study, load

SHOWN = "adaptive-patient"  # the method whose models are committed, as the notebooks have it too


def shown(study: Study, method: str = SHOWN) -> list[Run]:
    """Choose the run of each benchmark whose compressed model is kept: the highest requirement, the median seed.

    The median is that of the density among the seeds that met the requirement, the sparser of
    two; a benchmark where none did is omitted. The test split is not read.
    """
    chosen = []
    for benchmark in study.benchmarks:
        highest = max(study.requirements[benchmark])
        met = [
            (record["result"]["density"], run.seed, run)
            for run, record in pruned(study).items()
            if (run.benchmark, run.requirement, run.method) == (benchmark, highest, method)
            and record["result"]["reached"]
        ]
        if met:
            chosen.append(sorted(met, key=lambda item: item[:2])[(len(met) - 1) // 2][2])
    if not chosen:
        raise StudyError(f"no run of '{method}' met the highest requirement of a benchmark in the study '{study.name}'")
    return chosen


def write_compressed(study: Study, stored: dict[Run, bytes], method: str = SHOWN) -> list[Path]:
    """Write the files of the ``shown`` runs to ``compressed/`` and remove others there; their paths."""
    paths = []
    for run in shown(study, method):
        paths.append(run.place("compressed", ".prn"))
        write_whole(paths[-1], stored[run])
    for path in (folder(study.name) / "compressed").glob("*.prn"):
        if path not in paths:
            path.unlink()
    return paths


def opened(run: Run) -> nn.Module:
    """Read the masked network in a run's compressed file; ``StudyError`` where there is none."""
    path = run.place("compressed", ".prn")
    if not path.is_file():
        raise StudyError(
            f"no compressed model {path}: run 'python -m pruning savings tables {run.study} --method {run.method}' "
            "where the study's delivered models are"
        )
    return storage.load(path)


def tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read ``storage.csv`` and ``energy.csv``, each row with ``reached`` and ``significant`` of its record.

    Raises ``StudyError`` where one is missing or was made from other records than the current ones.
    """
    runs = frame(pruned(study).values()).set_index(KEYS)
    read = {}
    again = f"run 'make savings STUDY={study.name}' where the study's delivered models are"
    for name, columns in TABLES.items():
        path = folder(study.name) / f"{name}.csv"
        if not path.is_file():
            raise StudyError(f"no table {path}: {again}")
        table = pd.read_csv(path)
        if tuple(table.columns) != columns:
            raise StudyError(f"{path} has other columns than {', '.join(columns)}: {again}")
        read[name] = table.join(runs[["reached", "significant"]], on=KEYS)
    lossless = read["storage"].query("encoding == 'dense32'").set_index(KEYS)["test_accuracy"]
    synapses = read["energy"].query("variant == 'pruned'").drop_duplicates(KEYS).set_index(KEYS)["synapses"]
    for seen, expected in ((lossless, runs["test_accuracy"]), (synapses, runs["significant"])):
        if not seen.sort_index().equals(expected.sort_index().astype(seen.dtype).rename(seen.name)):
            raise StudyError(f"the tables of the study '{study.name}' were made from other records: {again}")
    return read["storage"], read["energy"]


def held(energies: pd.DataFrame) -> pd.Series:
    """Tell by ``KEYS`` whether quantization kept the validation requirement, for each run that had met it."""
    rows = energies[(energies["variant"] == "compressed") & energies["reached"]].drop_duplicates(KEYS).set_index(KEYS)
    return rows["validation_accuracy"] >= rows.index.get_level_values("requirement")


def markdown(study: Study, method: str = SHOWN) -> str:
    """Write the table of docs/results.md: a method's networks at each benchmark's highest requirement."""
    stored, energies = tables(study)
    named = titles(pruned(study).values())
    on_chip = ON_CHIP[0]
    columns = ["benchmark", "requirement", "met by", "weights left", "dense file", "compressed file", "smaller"]
    columns += ["test accuracy", f"energy, {on_chip // 1024} KiB on chip"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for benchmark in study.benchmarks:
        highest = max(study.requirements[benchmark])
        query = "benchmark == @benchmark and requirement == @highest and method == @method"
        runs = stored.query(query)["seed"].nunique()
        small = stored.query(query).query("reached and encoding == 'compact'")
        costs = energies.query(query).query("reached and on_chip_bytes == @on_chip")
        if small.empty:
            continue
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
    """Say how many times smaller than dense files are: dense over their mean size (smallest to largest)."""
    mean = rows["dense_bytes"].mean() / rows["bytes"].mean()
    return f"{mean:.1f} ({rows['ratio'].min():.1f} to {rows['ratio'].max():.1f})" if len(rows) > 1 else f"{mean:.1f}"


def readme(text: str, study: Study, method: str = SHOWN) -> str:
    """Renew the table in ``text`` between ``<!-- savings -->`` and ``<!-- /savings -->``."""
    return between(text, "savings", markdown(study, method))


def by_layer(model: nn.Module) -> pd.DataFrame:
    """Count each masked layer's synapses, significant ones, neurons (filters), and neurons with a synapse in."""
    rows = {
        name: {
            "synapses": layer.synapses,
            "significant": layer.significant,
            "neurons": len(layer.weight),
            "with inputs": int(layer.mask.flatten(1).any(1).sum()),
        }
        for name, layer in masked_layers(model).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def main(arguments: list[str] | None = None) -> int:
    """Make the tables and compressed models of a study from its delivered models, or their table in docs/results.md."""
    parser = argparse.ArgumentParser(prog="python -m pruning savings", description=main.__doc__)
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
            path = root() / "docs/results.md"
            write_whole(path, readme(path.read_text(encoding="utf-8"), study, given.method).encode())
    except (StudyError, DamagedFile, datasets.DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
