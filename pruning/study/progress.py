"""Progress of a run: a bar when a person watches, a plain line now and then otherwise.

>>> from pruning.study.studies import load
>>> one = load("digits").runs[1]
>>> report = progress(one, 2, 60)  # for ``runner.run(one, progress=report)``
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}"
# What JupyterLab shows in one line in a window 1280 pixels wide, its file browser open; a terminal says its own width.
COLUMNS = 100


def watched() -> TextIO | None:
    """Return the stream on which a person sees a bar move, in JupyterLab or at a terminal; else None."""
    if os.environ.get("JPY_SESSION_NAME"):  # set by Jupyter's server, not by Papermill, nbconvert or nbval
        return sys.stdout
    return sys.stderr if sys.stderr.isatty() else None


def progress(run, number: int = 1, total: int = 1, every: float = 20.0) -> Callable:
    """Return a callback (event, training) for a run; it prints plain lines at least ``every`` seconds apart.

    This is run ``number`` of ``total``. A run whose record is current does not train and prints nothing.
    """
    title, stream, last = f"{run.name} ({number} of {total})", watched(), time.monotonic()
    bar = None

    def report(event, training) -> None:
        nonlocal bar, last
        state = f"accuracy {event.accuracy:.3f}, density {event.density:.1%}"
        if stream is not None:
            if bar is None:
                columns = None if stream.isatty() else COLUMNS
                bar = tqdm(total=run.settings.budget, desc=title, file=stream, bar_format=BAR, ncols=columns)
            bar.set_postfix_str(state, refresh=False)
            bar.update(event.iteration - bar.n)
            if event.finished:
                bar.total = event.iteration  # most runs stop before their budget, yet the bar ends full
                bar.close()
        elif event.finished or time.monotonic() - last >= every:
            last = time.monotonic()
            ending = f"; {event.action}" if event.finished else ""
            print(f"{title}: iteration {event.iteration:,}, {state}{ending}", flush=True)

    return report
