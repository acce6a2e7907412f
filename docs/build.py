"""Build what is written from the code: docs/methods.md from ``METHODS``, the API's pages from the docstrings."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pdoc

import pruning
import pruning.study.vision  # noqa: F401  # lets torchvision be imported beside a CPU build of torch, by others too
from pruning.allocation import above_threshold
from pruning.hooks import Hook
from pruning.methods import METHODS, Method

SOURCES = {
    "Chen et al. 2015": "Compressing Neural Networks with the Hashing Trick. ICML. https://arxiv.org/abs/1504.04788",
    "Evci et al. 2020": "Rigging the Lottery: Making All Tickets Winners. ICML. https://arxiv.org/abs/1911.11134",
    "Frankle and Carbin 2019": "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks. ICLR. "
    "https://arxiv.org/abs/1803.03635",
    "Frankle et al. 2020": "Linear Mode Connectivity and the Lottery Ticket Hypothesis. ICML. https://arxiv.org/abs/1912.05671",
    "Guo et al. 2016": "Dynamic Network Surgery for Efficient DNNs. NeurIPS. https://arxiv.org/abs/1608.04493",
    "Han et al. 2015": "Learning both Weights and Connections for Efficient Neural Networks. NeurIPS. "
    "https://arxiv.org/abs/1506.02626",
    "Han et al. 2017": "DSD: Dense-Sparse-Dense Training for Deep Neural Networks. ICLR. https://arxiv.org/abs/1607.04381",
    "Hanson and Pratt 1989": "Comparing Biases for Minimal Network Construction with Back-Propagation. "
    "Advances in Neural Information Processing Systems 1",
    "Lee et al. 2019": "SNIP: Single-shot Network Pruning based on Connection Sensitivity. ICLR. "
    "https://arxiv.org/abs/1810.02340",
    "Lee et al. 2021": "Layer-adaptive Sparsity for the Magnitude-based Pruning. ICLR. https://arxiv.org/abs/2010.07611",
    "Mocanu et al. 2018": "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity "
    "inspired by Network Science. Nature Communications 9. https://arxiv.org/abs/1707.04780",
    "Renda et al. 2020": "Comparing Rewinding and Fine-tuning in Neural Network Pruning. ICLR. "
    "https://arxiv.org/abs/2003.02389",
    "Sanh et al. 2020": "Movement Pruning: Adaptive Sparsity by Fine-Tuning. NeurIPS. https://arxiv.org/abs/2005.07683",
    "Zhu and Gupta 2017": "To prune, or not to prune: exploring the efficacy of pruning for model compression. "
    "https://arxiv.org/abs/1710.01878",
}
# Authors and year, as references name them.
CITATION = re.compile(r"[A-Z]\w+(?: et al\.| and [A-Z]\w+)? \d{4}")
HEAD = """# Methods

Every known method as a combination of parts: which synapses matter (criterion), how much of which layer (allocation),
what happens at an evaluation (strategy) and at every iteration (hook). A part leads to the module that defines it, with
those of its settings that are not the default. A study names a method as here, and so does `METHODS` in
[pruning/methods.py](../pruning/methods.py), from which `make docs` writes this page.

| method | what it is | source | criterion | allocation | strategy | hook |
|---|---|---|---|---|---|---|
"""
TAIL = """
A study knows one more, which is trained with few weights from the start instead of pruned: `hashed`, HashedNets
(Chen et al. 2015), in [pruning/study/hashed.py](../pruning/study/hashed.py).

## Sources

"""


def methods_page() -> str:
    """Return the page: one line per method, with its parts, its source and their places in the code."""
    rows = [f"| {' | '.join(row(name, method))} |\n" for name, method in METHODS.items()]
    return HEAD + "".join(rows) + TAIL + "".join(f"- {name}. {work}\n" for name, work in SOURCES.items())


def row(name: str, method: Method) -> tuple[str, ...]:
    """Describe a method in the page's columns."""
    what, _, source = method.reference.partition("; ")
    unknown = set(CITATION.findall(source)) - set(SOURCES)
    if unknown:
        raise ValueError(f"method '{name}' cites {sorted(unknown)}: add to SOURCES of docs/build.py")
    allocation = part(method.allocation)
    if method.masking is not above_threshold:
        allocation += f", masks by {part(method.masking)}"
    hook = "" if type(method.hook) is Hook else part(method.hook)
    return f"`{name}`", what, source, part(method.criterion), allocation, part(method.strategy), hook


def part(one: object) -> str:
    """Link a function or a dataclass to its module, with the settings that are not the default."""
    kind: Any = type(one) if is_dataclass(one) else one
    link = f"[{kind.__name__}](../{kind.__module__.replace('.', '/')}.py)"
    settings = []
    for item in fields(one) if is_dataclass(one) else ():
        value = getattr(one, item.name)
        if item.init and (item.default is MISSING or value != item.default):
            settings.append(part(value) if is_dataclass(value) else f"{item.name}={value!r}")
    return f"{link}({', '.join(settings)})" if settings else link


def build_api(folder: Path) -> None:
    """Write a page for each module of the package, ``index.html`` leads to them."""
    pruning.__all__ = [one.name for one in pkgutil.iter_modules(pruning.__path__)]  # which pdoc goes by
    pdoc.pdoc("pruning", r"!pruning\.(.*\.)?_", output_directory=folder)


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    (root / "docs/methods.md").write_text(methods_page(), encoding="utf-8")
    build_api(root / "build/docs")
