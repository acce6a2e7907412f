# The study as a graph: runs -> table and notebooks -> figures.
#   snakemake                                the digits study
#   snakemake --config study=report          MNIST and CIFAR-10
#   snakemake --config study=my/own.yaml     a study file of one's own
#   snakemake --config study=report train=no  only what the records that are there give
import contextlib
import json
import os
import re
import shlex

from snakemake.exceptions import WorkflowError

from pruning.analysis import figures
from pruning.study import records, store, studies
from pruning.study.locks import locked

# What --config takes.
KNOWN = {
    "study": (".+", "a name or a file"), "device": (r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:0"),
    "train": ("True|False|yes|no", "yes or no"),
}
for key, value in config.items():
    if key not in KNOWN:
        raise WorkflowError(f"--config {key}={value}: unknown key; known are {', '.join(KNOWN)}")
    if not re.fullmatch(KNOWN[key][0], str(value)):
        raise WorkflowError(f"--config {key}={value}: expected {KNOWN[key][1]}")
TRAIN = str(config.get("train", "yes")) not in ("False", "no")
if not TRAIN:
    os.environ["PRUNING_TRAIN"] = "no"  # for whatever is asked for by name, notebooks included
try:
    STUDY = studies.load(config.get("study", "digits"))
except ValueError as error:
    raise WorkflowError(str(error)) from None
GIVEN = STUDY.name if STUDY.file.parent.name == "studies" else str(config["study"])  # as notebooks are told of it
if STUDY.own:
    from pruning.study import runner

    try:
        runner.check(STUDY.runs)  # that their networks fit their data, before anything is trained
    except (ValueError, RuntimeError) as error:
        raise WorkflowError(str(error)) from None
if STUDY.plan:
    raise WorkflowError(f"the study '{STUDY.name}' measures trade-offs: run 'make tradeoff'")
RESULTS = records.folder(STUDY.name)
FIGURES = figures.folder(STUDY.name)
WORK = RESULTS / "work"
STORIES = {
    "2-significant-synapses": ["figure-1-iterative-pruning", "figure-3-benchmarks", "figure-4-significant-synapses"],
    "3-training-effort": ["figure-2-implementation", "figure-5-training-effort"],
}
if "adaptive" in STUDY.methods:
    STORIES["5-prune-control"] = ["figure-6-overview", "figure-6-frontier"]
# Notebook 5 reads the tables of these studies too, where they are.
BESIDE = [path for name in ("methods", "ingredients", "lenet", "smallest") if name != STUDY.name
          if (path := records.folder(name) / "runs.csv").is_file()]
# Bytes and energy are made for a study once by `make savings`; from then on they belong to its graph.
SAVINGS = [RESULTS / "storage.csv", RESULTS / "energy.csv"]
if all(path.is_file() for path in SAVINGS):
    STORIES |= {
        "6-memory-and-energy": ["figure-7-bytes-by-encoding", "figure-8-energy", "figure-9-on-chip-memory"],
        "7-deploy": ["figure-10-classified"],
    }
PICTURES = [FIGURES / f"{name}.{kind}" for names in STORIES.values() for name in names for kind in ("png", "svg", "pdf")]

# A training job is one benchmark and one seed. Only those with a run whose record is missing or not
# current belong to the graph: file times say nothing about a record, least of all in a fresh clone.
CURRENT = store.all_current(STUDY.runs)
STALE = sorted({(run.benchmark, run.seed) for run in STUDY.runs if run not in CURRENT})
# What a study that was killed has not published yet; the newest of all files, so that the table is made.
PENDING = [run.record_path for run in STUDY.runs if run.record_path.is_file()]
if not TRAIN:
    STALE, PENDING = [], []
# The notebook of a benchmark trains what it lacks, so without training there are those of whole benchmarks alone.
WHOLE = [name for name in STUDY.benchmarks if TRAIN or all(run in CURRENT for run in STUDY.runs if run.benchmark == name)]
for benchmark, seed in STALE:
    (WORK / f"{benchmark}-{seed}.ipynb").unlink(missing_ok=True)
for path in PENDING:
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)

# Papermill writes into the log, which outlives a failure; the output appears when all went well.
PAPERMILL = (
    "papermill --no-progress-bar --log-level WARNING -k python3 -y {params.given} {params.notebook} {log:q}"
    " || {{ echo 'The executed notebook, with the error in it: {log}' >&2; exit 1; }}"
)


# They come from the delivered models, which are not committed: where some are missing, the tables stay as they are.
REMAKE = bool(STALE) and all(
    (run.benchmark, run.seed) in STALE or run.method == "unpruned" or run.place("models", ".model").is_file()
    for run in STUDY.runs
)


def trained(benchmark):
    return [WORK / f"{name}-{seed}.ipynb" for name, seed in STALE if name == benchmark]


def given(benchmark=None, seeds=None):
    parameters = {"study": GIVEN}
    if benchmark:
        parameters |= {
            "benchmark": benchmark, "seeds": list(seeds), "methods": list(STUDY.methods),
            "requirements": list(STUDY.requirements[benchmark]), "device": config.get("device", "cpu"),
        }
    return shlex.quote(json.dumps(parameters))


# Open until this process ends, however it ends.
held = contextlib.ExitStack()


def busy(pid):
    raise WorkflowError(f"another process is running the study '{STUDY.name}' (process {pid}): wait for it, or stop it")


onstart:
    held.enter_context(locked(WORK / "study.lock", waiting=busy))


rule all:
    default_target: True
    input:
        # Asked for by name: what only lies in between is not made again when it is missing.
        [path for benchmark in STUDY.benchmarks for path in trained(benchmark)],
        RESULTS / "runs.csv",
        expand(str(RESULTS / "notebooks" / "{benchmark}.ipynb"), benchmark=WHOLE),
        PICTURES,


rule figures:
    """Every figure, from the records that are there."""
    input: PICTURES


rule runs:
    """Train what a benchmark and seed still lack; a run that was interrupted goes on from its checkpoint."""
    output: WORK / "{benchmark}-{seed,[0-9]+}.ipynb"
    log: WORK / "log-{benchmark}-{seed}.ipynb"
    params:
        given=lambda w: given(w.benchmark, [int(w.seed)]),
        notebook="notebooks/1-benchmark.ipynb",
    shell: PAPERMILL + "; cp {log:q} {output:q}"


rule table:
    """Publish the records and collect them into one table."""
    input: PENDING, [path for benchmark in STUDY.benchmarks for path in trained(benchmark)]
    output: RESULTS / "runs.csv"
    shell: "python -m pruning table {GIVEN:q}"


rule savings:
    """Bytes and energy of the delivered models, and the compressed ones that are shown."""
    input: [path for benchmark in STUDY.benchmarks if REMAKE for path in trained(benchmark)]
    output: SAVINGS
    shell: "python -m pruning savings tables {GIVEN:q}"


rule benchmark:
    """A benchmark's notebook over all its seeds, for reading."""
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
        input:
            RESULTS / "runs.csv",
            f"notebooks/{story}.ipynb",
            "pruning/analysis/figures/__init__.py",
            ["pruning/analysis/comparison.py", "pruning/control.py", *BESIDE] if story == "5-prune-control" else [],
            [*SAVINGS, "pruning/analysis/figures/savings.py"] if story in ("6-memory-and-energy", "7-deploy") else [],
        output: [path for path in PICTURES if path.stem in names]
        log: WORK / f"log-{story}.ipynb"
        params:
            given=given(),
            notebook=f"notebooks/{story}.ipynb",
        shell: PAPERMILL
