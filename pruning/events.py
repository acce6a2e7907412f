"""What a control saw and did, one event an evaluation or a look.

>>> Event(100, "recover", 0.98, 0.5, "prune", {"fc": 0.4}).finished
False
"""

from __future__ import annotations

from dataclasses import dataclass

from pruning.strategies import GOING_ON


@dataclass(frozen=True)
class Event:
    """What the control saw and did at one evaluation.

    ``density`` is the one that was evaluated, on so many validation ``examples`` (None where that is not known). After
    a pruning, ``thresholds`` holds one threshold per layer (in units of the criterion's scores; None where nothing was
    pruned) and ``densities`` each layer's density after it. ``action`` says what was decided: ``wait``, ``prune``,
    ``undo``, ``regrow`` (all synapses are back) or the reason to stop.
    """

    iteration: int
    phase: str
    accuracy: float
    density: float
    action: str
    densities: dict[str, float]
    thresholds: dict[str, float] | None = None
    examples: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the control has stopped."""
        return self.action not in GOING_ON
