r"""A notebook's parameters, checked: Papermill only warns of a name that the notebook does not have.

>>> check_parameters({"In": ["", "benchmark = 'digits-2c'", "# Parameters\nbenchmark = 'mnist-2c'"]})
>>> check_parameters({"In": ["", "benchmark = 'digits-2c'", "# Parameters\nbenchmarc = 'mnist-2c'"]})
Traceback (most recent call last):
pruning.study.benchmarks.StudyError: no parameter 'benchmarc'; this notebook has benchmark
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from pruning.study.benchmarks import StudyError

INJECTED = "# Parameters\n"  # how the cell begins that Papermill puts behind the one with the parameters


def check_parameters(namespace: Mapping) -> None:
    """Raise ``StudyError`` for a parameter from outside that the notebook does not have.

    ``namespace`` is the notebook's ``globals()``, in which IPython keeps the cells that were run.
    """
    cells: Sequence[str] = namespace.get("In", ())
    for number, cell in enumerate(cells):
        known = [name for before in cells[:number] for name in _assigned(before)]
        if cell.startswith(INJECTED) and known:
            for name in _assigned(cell):
                if name not in known:
                    raise StudyError(f"no parameter '{name}'; this notebook has {', '.join(dict.fromkeys(known))}")


def _assigned(cell: str) -> list[str]:
    """List the names that a cell assigns at its top level, in order."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        return []
    targets = [target for line in statements if isinstance(line, ast.Assign) for target in line.targets]
    targets += [line.target for line in statements if isinstance(line, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
