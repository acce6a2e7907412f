# The study as a graph: runs -> table and notebooks -> figures.
#   snakemake                                the digits study
#   snakemake --config study=report          MNIST and CIFAR-10
#   snakemake --config study=my/own.yaml     a study file of one's own
#   snakemake --config study=report train=no  only what the records that are there give
# On a cluster (docs/clusters.md) the trainings are its jobs; tables, notebooks and figures stay with the main process.
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pruning.study import graph, records
from pruning.study.locks import locked
from pruning.study.paths import figures_folder, root

# What --config takes.
KNOWN = {
    "study": (".+", "a name or a file"), "device": (r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:0"),
    "train": ("True|False|yes|no", "yes or no"), "split": ("seed|method", "seed or method"),
}
for key, value in config.items():
    if key not in KNOWN:
        raise WorkflowError(f"--config {key}={value}: unknown key; known are {', '.join(KNOWN)}")
    if not re.fullmatch(KNOWN[key][0], str(value)):
        raise WorkflowError(f"--config {key}={value}: expected {KNOWN[key][1]}")
TRAIN = str(config.get("train", "yes")) not in ("False", "no")
if not TRAIN:
    os.environ["PRUNING_TRAIN"] = "no"  # for whatever is asked for by name, notebooks included

# What there is to do is decided once, here: a job on a cluster's node reads this file again, when other records are
# there, and is to find the same graph. So it is also spared importing torch.
if workflow.is_main_process:
    from pruning.study import studies

    try:
        study = studies.load(config.get("study", "digits"))
    except ValueError as error:
        raise WorkflowError(str(error)) from None
    if study.own:
        from pruning.study import runner

        try:
            runner.check(study.runs)  # that their networks fit their data, before anything is trained
        except (ValueError, RuntimeError) as error:
            raise WorkflowError(str(error)) from None
    if study.plan:
        raise WorkflowError(f"the study '{study.name}' measures trade-offs: run 'make tradeoff'")
    own = study.file.parent != root() / "studies"
    named = str(config["study"]) if own else study.name  # as notebooks are told of it
    STUDY = graph.decide(study, named, figures_folder(study.name), TRAIN)
else:
    STUDY = graph.read(config.get("study", "digits"))
RESULTS = records.folder(STUDY.study)
FIGURES = Path(STUDY.figures)
WORK = RESULTS / "work"
STORIES = {
    "2-significant-synapses": ["figure-1-iterative-pruning", "figure-3-benchmarks", "figure-4-significant-synapses"],
    "3-training-effort": ["figure-2-implementation", "figure-5-training-effort"],
}
MASKS = ["pruning/analysis/figures/masks.py"]
# Not every run can have it: the notebook draws it where it can, and from then on it belongs to the graph.
if (FIGURES / "figure-11-filters.png").is_file():
    STORIES["2-significant-synapses"] += ["figure-11-filters"]
if "adaptive" in STUDY.methods:
    STORIES["5-prune-control"] = ["figure-6-overview", "figure-6-frontier"]
# Notebooks 5 and 9 read the tables of these studies too, where they are.
BESIDE = [path for name in ("methods", "ingredients", "lenet", "smallest") if name != STUDY.study
          if (path := records.folder(name) / "runs.csv").is_file()]
# The last notebook draws its conclusions from what is committed: from the report's study, and these beside it.
ALL = [records.folder("fashion") / "runs.csv", records.folder("tradeoff") / "tradeoff.csv"]
if STUDY.study == "report" and len(BESIDE) == 4 and all(path.is_file() for path in ALL):
    STORIES["9-conclusions"] = ["figure-13-rounds"]
# Bytes and energy are made for a study once by `make savings`; from then on they belong to its graph.
SAVINGS = [RESULTS / "storage.csv", RESULTS / "energy.csv"]
if all(path.is_file() for path in SAVINGS):
    STORIES |= {
        "6-memory-and-energy": ["figure-7-bytes-by-encoding", "figure-8-energy", "figure-9-on-chip-memory"],
        "7-deploy": ["figure-10-classified", "figure-12-pixels"],
    }
PICTURES = [FIGURES / f"{name}.{kind}" for names in STORIES.values() for name in names for kind in ("png", "svg", "pdf")]
PICTURES += [FIGURES / "figure-13-rounds.gif"] if "9-conclusions" in STORIES else []

# A training job is one benchmark and seed, in a notebook, or on a cluster (split=method) one method of them. Only those
# with a run whose record is missing or not current belong to the graph: file times say nothing about a record, least of
# all in a fresh clone.
SPLIT = config.get("split", "seed")
ENDING = {"seed": "ipynb", "method": "trained"}[SPLIT]
STALE = sorted({("-".join(map(str, run[: 2 if SPLIT == "seed" else 3])), run[0]) for run in STUDY.stale})
# Newer than what an earlier run of the study has left, so that it is made again; removed only by who has the lock.
MARK = WORK / "stale"
if workflow.is_main_process:
    if STALE:
        WORK.mkdir(parents=True, exist_ok=True)
        MARK.write_text(secrets.token_hex())  # by its content too: Snakemake passes over files that are the same
    # What a study that was killed has not published yet; the newest of all files, so that the table is made.
    for path in STUDY.pending:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)

# Papermill writes into the log, which outlives a failure; the output appears when all went well.
PAPERMILL = (
    "papermill --no-progress-bar --log-level WARNING -k python3 -y {params.given} {params.notebook} {log:q}"
    " || {{ echo 'The executed notebook, with the error in it: {log}' >&2; exit 1; }}"
)


def trained(benchmark):
    return [WORK / f"{name}.{ENDING}" for name, where in STALE if where == benchmark]


def stale(name):
    return [MARK] if workflow.is_main_process and any(name == other for other, _ in STALE) else []


def given(benchmark=None, seeds=None):
    parameters = {"study": STUDY.given}
    if benchmark:
        parameters |= {
            "benchmark": benchmark, "seeds": list(seeds), "methods": list(STUDY.methods),
            "requirements": list(STUDY.requirements[benchmark]), "device": config.get("device", "cpu"),
        }
    return shlex.quote(json.dumps(parameters))


# Open until this process ends, however it ends.
held = contextlib.ExitStack()


def busy(who):
    raise WorkflowError(f"another process is running the study '{STUDY.study}' (process {who}): wait for it, or stop it")


def queued():
    """Slurm's jobs that a main process of this study has left when it was killed."""
    if workflow.local_exec or not shutil.which("squeue"):
        return []
    told = subprocess.run(["squeue", "--me", "--noheader", "--format=%i %j"], capture_output=True, text=True)
    return [line.split()[0] for line in told.stdout.splitlines() if f" pruning-{STUDY.study}_" in line]


onstart:
    held.enter_context(locked(WORK / "study.lock", waiting=busy))
    if jobs := queued():
        raise WorkflowError(
            f"Slurm still has jobs of the study '{STUDY.study}', which another main process has left: {', '.join(jobs)}. "
            f"Wait for them, or 'scancel {' '.join(jobs)}'; then start again"
        )
    # A job that does nothing, and is taken for a success, is seen by what is not there.
    for path in (path for benchmark in STUDY.benchmarks for path in trained(benchmark)):
        path.unlink(missing_ok=True)
    graph.write(STUDY)


rule all:
    default_target: True
    input:
        # Asked for by name: what only lies in between is not made again when it is missing.
        [path for benchmark in STUDY.benchmarks for path in trained(benchmark)],
        RESULTS / "runs.csv",
        expand(str(RESULTS / "notebooks" / "{benchmark}.ipynb"), benchmark=STUDY.whole),
        PICTURES,


rule figures:
    """Every figure, from the records that are there."""
    input: PICTURES


rule runs:
    """Train what a benchmark and seed still lack; a run that was interrupted goes on from its checkpoint."""
    input: lambda w: stale(f"{w.benchmark}-{w.seed}")
    output: WORK / "{benchmark}-{seed,[0-9]+}.ipynb"
    log: WORK / "log-{benchmark}-{seed}.ipynb"
    params:
        given=lambda w: given(w.benchmark, [int(w.seed)]),
        notebook="notebooks/1-benchmark.ipynb",
    shell: PAPERMILL + "; cp {log:q} {output:q}"


rule train:
    """Train what a benchmark, seed and method still lack, after the dense training that it resumes."""
    input:
        lambda w: stale(f"{w.benchmark}-{w.seed}-{w.method}"),
        lambda w: [WORK / f"{w.benchmark}-{w.seed}-unpruned.trained"] if w.method in STUDY.shared
        and (w.benchmark, int(w.seed), "unpruned") in STUDY.stale else [],
    output: WORK / "{benchmark}-{seed,[0-9]+}-{method}.trained"
    log: WORK / "log-{benchmark}-{seed}-{method}.txt"
    wildcard_constraints:
        benchmark="|".join(map(re.escape, STUDY.benchmarks)),
    params:
        device=config.get("device", "cpu"),
    resources:
        **({"gpu": 1} if config.get("device", "cpu") != "cpu" else {}),
    # The output appears when all went well.
    shell:
        "python -m pruning run {STUDY.given:q} --benchmark {wildcards.benchmark} --seeds [{wildcards.seed}]"
        " --methods [{wildcards.method}] --device {params.device} > {log:q} 2>&1"
        " || {{ cat {log:q} >&2; exit 1; }}; cp {log:q} {output:q}"


rule table:
    """Publish the records and collect them into one table."""
    localrule: True
    input: STUDY.pending, [path for benchmark in STUDY.benchmarks for path in trained(benchmark)]
    output: RESULTS / "runs.csv"
    params:
        whole="--whole" if STALE else "",
    shell: "python -m pruning table {STUDY.given:q} {params.whole}"


rule savings:
    """Bytes and energy of the delivered models, and the compressed ones that are shown."""
    localrule: True
    input: [path for benchmark in STUDY.benchmarks if STUDY.remake for path in trained(benchmark)]
    output: SAVINGS
    shell: "python -m pruning savings tables {STUDY.given:q}"


rule benchmark:
    """A benchmark's notebook over all its seeds, for reading."""
    localrule: True
    input: lambda w: trained(w.benchmark)
    output: RESULTS / "notebooks" / "{benchmark}.ipynb"
    log: WORK / "log-{benchmark}.ipynb"
    params:
        given=lambda w: given(w.benchmark, STUDY.seeds),
        notebook="notebooks/1-benchmark.ipynb",
    # Without the machine's folders, which papermill writes into the metadata.
    shell: PAPERMILL + r"""; sed -E 's|("output_path": ")[^"]*/|\1|' {log:q} > {output:q}"""


for story, names in STORIES.items():

    rule:
        name: story
        localrule: True
        input:
            RESULTS / "runs.csv",
            f"notebooks/{story}.ipynb",
            "pruning/analysis/figures/__init__.py",
            ["pruning/analysis/comparison.py", "pruning/control.py", *BESIDE] if story == "5-prune-control" else [],
            [*SAVINGS, "pruning/analysis/figures/savings.py"] if story in ("6-memory-and-energy", "7-deploy") else [],
            MASKS if {"figure-11-filters", "figure-12-pixels", "figure-13-rounds"} & set(names) else [],
            [*BESIDE, *ALL, *SAVINGS] if story == "9-conclusions" else [],
        output: [path for path in PICTURES if path.stem in names]
        log: WORK / f"log-{story}.ipynb"
        params:
            given=given(),
            notebook=f"notebooks/{story}.ipynb",
        shell: PAPERMILL
