"""One runner for every kind of run: to a requirement, a ladder of HashedNets, a trade-off curve, a scan of layers.

>>> from pruning.study.studies import load
>>> record = run(load("lenet").runs[0])  # trains, or reads the record if it is there and current
>>> record["run"]["name"], record["result"]["reached"]
('lenet-300-100-0.98-unpruned-0', True)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from pruning.files import save_state, set_aside
from pruning.study import datasets, requirement, tradeoff
from pruning.study.config import Run, StudyError
from pruning.study.locks import Claim, locked
from pruning.study.machine import checked_device, environment, kind
from pruning.study.networks import fitting
from pruning.study.records import folder, write_record
from pruning.study.states import Context, DenseStates, StateFile
from pruning.study.store import LAG, current, outdated

# Seconds between two checkpoints; fewer where a cluster takes its nodes back at short notice.
EVERY = float(os.environ.get("PRUNING_CHECKPOINT_SECONDS") or 20)
KINDS: dict[str, Callable] = {
    "requirement": requirement.prune,
    "ladder": requirement.hash_ladder,
    "curve": tradeoff.curve,
    "scan": tradeoff.scan,
}


def run(
    job: Run,
    device: str = "cpu",
    progress: Callable | None = None,
    warn: Callable[[str], None] = print,
    every: float = EVERY,
    waiting: Callable[[str], None] | None = None,
) -> dict:
    """Return the record of a run: read if it is current, else trained for, resuming its last checkpoint.

    Checkpoints are written every so many seconds. A record or checkpoint that cannot be used is
    set aside with a word to ``warn``. Where the environment says ``PRUNING_TRAIN=no``, a run without a current
    record is a ``StudyError``. Another process at work on the same run, on this machine or another one, is
    waited for, unless ``waiting``, which is told who that is, raises. Everything on the CPU runs on one thread,
    denormal numbers taken as zero.
    """
    target = checked_device(device)
    if (record := current(job)) is not None:
        return record
    if os.environ.get("PRUNING_TRAIN") == "no":
        raise StudyError(f"{job.name} is not trained, as train=no asks: its record is {outdated(job) or 'missing'}")
    work = folder(job.study) / "work"
    lock = job.place("work", ".lock")
    told = waiting or (lambda who: warn(f"process {who} is at work on {job.name}: waiting for it"))
    with in_one_line(job.name), locked(lock, told) as claim:
        if (record := current(job) or _awaited(job, claim)) is not None:
            return record
        if reason := outdated(job):
            if job.record_path.exists():
                reason += f"; set aside as {set_aside(job.record_path, work / 'set-aside')}"
            warn(f"the record of {job.name} is {reason}; the run is done again")
        for scrap in folder(job.study).glob(f"*/.{job.name}.*.tmp"):
            scrap.unlink()  # a process that was killed while it wrote leaves one behind
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        dataset = dataset_of(job.dataset, str(target))
        network = fitting(job.benchmark, job.made_of, dataset.shape, len(dataset.classes))
        # A training goes on where it was begun, or on a processor of the same kind: another one rounds differently.
        made = f"{dataset.fingerprint} {kind(target)}"
        place = work / f"dense-{job.benchmark}-{job.seed}-{hashlib.sha256(kind(target).encode()).hexdigest()[:8]}"
        checkpoint = StateFile(job.place("work", ".checkpoint"), f"{job.key} {made}", warn)
        dense = DenseStates(place, f"{job.dense_key} {made}", warn)

        def watched(event, training) -> None:
            claim.check()
            if progress:
                progress(event, training)

        parts, model = KINDS[job.kind](job, Context(dataset, network, target, checkpoint, dense, every, watched))
        claim.check()
        if model is not None:
            state = {"network": job.network, "state": model.state_dict()}
            save_state(job.place("models", ".model"), state, job.key)
        record = {
            "key": job.key,
            "fingerprint": dataset.fingerprint,
            "run": job.description,
            "data": dataset.title,
            **parts,
            "environment": environment(target),
        }
        write_record(job.record_path, record)
        claim.note = job.key
        checkpoint.path.unlink(missing_ok=True)
        return record


class Interrupted(KeyboardInterrupt):
    """An interrupt from the keyboard that says in one line what it stopped, in a notebook too."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [f"Interrupted: {self}"]


@contextlib.contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Raise an interrupt from the keyboard as ``Interrupted``."""
    try:
        yield
    except KeyboardInterrupt:
        # Papermill ends the kernel while it still reports this: ipykernel finds its socket closed and logs a traceback.
        logging.getLogger("IPKernelApp").addFilter(lambda line: "ZMQError" not in str(line.exc_info))
        raise Interrupted(f"{name} goes on from its last checkpoint when it is run again") from None


def _awaited(job: Run, claim: Claim) -> dict | None:
    """Return the record that another machine has just written, as soon as the file system shows it here."""
    before = claim.before
    if before is None or before.here or before.note != job.key:
        return None
    ends = time.monotonic() + LAG - before.silent
    while time.monotonic() < ends:
        if (record := current(job)) is not None:
            return record
        time.sleep(1)
    return None


def check(jobs: Sequence[Run]) -> None:
    """Raise ``StudyError`` where a network does not fit its benchmark's data, as far as that is at hand."""
    for name, made_of in {job.benchmark: job.made_of for job in jobs}.items():
        if found := datasets.form(made_of.dataset):
            fitting(name, made_of, *found)


@functools.lru_cache(maxsize=2)
def dataset_of(name: str | datasets.Data, device: str) -> datasets.Dataset:
    """Load the dataset, and keep it in memory for the next run."""
    return datasets.load(name, device)


def run_all(jobs: Sequence[Run], device: str = "cpu", processes: int = 1) -> None:
    """Carry out runs, ``processes`` side by side, and print a line for each.

    Those of one benchmark and seed stay in one process: they share their dense training.
    """
    check(jobs)
    numbered = [(f"{number}/{len(jobs)}", job) for number, job in enumerate(jobs, start=1)]
    if processes <= 1:
        return _run_share(numbered, device)
    shares: dict[tuple, list] = {}
    for place, job in numbered:
        shares.setdefault((job.benchmark, job.seed), []).append((place, job))
    # Ctrl-C ends them all at once: one that went on with its share would keep the others waiting.
    ends = signal.signal, (signal.SIGINT, signal.SIG_DFL)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), *ends)
    try:
        for waiting in [pool.submit(_run_share, share, device) for share in shares.values()]:
            waiting.result()
    except (KeyboardInterrupt, SystemExit):
        for child in multiprocessing.active_children():  # else they went on with their shares, and this one waited
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run_share(share: list[tuple[str, Run]], device: str) -> None:
    for place, job in share:
        record = run(job, device)
        last = record["points"][-1] if "points" in record else record["result"]
        split = "test" if "test_accuracy" in last else "validation"
        line = f"{place} {job.name}: density {last['density']:.4f}, {split} accuracy {last[f'{split}_accuracy']:.4f}"
        print(line + (f", {last['iterations']} iterations" if "iterations" in last else ""), flush=True)
