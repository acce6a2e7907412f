"""Prune while PyTorch Lightning trains.

    >>> from pruning import METHODS
    >>> callback = PruningCallback(0.9, "val_accuracy", method=METHODS["gradual"], ramp=2000)

A ``Trainer`` with the callback prunes at every validation and stops when it is done; then ``callback.delivered()`` is
the sparsest network that met the requirement. ``docs/networks.md`` shows it in ten lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

try:
    from lightning.pytorch import Callback
except ImportError:  # the same library by its older name
    from pytorch_lightning import Callback  # type: ignore[assignment]

from pruning.control import PruneControl


class PruningCallback(Callback):
    """Prune a ``LightningModule`` with masked layers at every validation, and stop the trainer when that is done.

    ``requirement`` is the validation accuracy to be met, ``monitor`` the name by which the module logs it; where
    several processes train, their mean counts. ``evaluate`` and ``next_images`` go to methods that measure what pruning
    costs, ``settings`` to ``PruneControl``, such as ``method``. An iteration is a step of the trainer. Gradients are
    seen as Lightning orders it: after they are unscaled, before they are clipped.
    """

    def __init__(
        self,
        requirement: float,
        monitor: str = "val_accuracy",
        *,
        evaluate: Callable[[], float] | None = None,
        next_images: Callable[[], Any] | None = None,
        **settings: Any,
    ):
        self.requirement, self.monitor, self.settings = requirement, monitor, settings
        self.feedback = (evaluate, next_images)
        self.control: PruneControl | None = None
        self._state: dict | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        if any(kind.__name__ == "WeightAveraging" for each in trainer.callbacks for kind in type(each).__mro__):
            raise ValueError("WeightAveraging validates an average that is not pruned: train without it")
        self.control = PruneControl(pl_module, self.requirement, optimizer=trainer.optimizers, **self.settings)
        if self._state is not None:
            self.control.load_state_dict(self._state)
            self._state = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self.control is not None and self.control.watching and not self.control.finished:
            self.control.observe(trainer.global_step + 1)

    def on_validation_end(self, trainer, pl_module) -> None:
        if self.control is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(f"the module logs no '{self.monitor}', but {sorted(trainer.callback_metrics)}")
        if not self.control.finished:
            accuracy = trainer.strategy.reduce(trainer.callback_metrics[self.monitor], reduce_op="mean")
            self.control.update(trainer.global_step, float(accuracy), *self.feedback)
        trainer.should_stop |= self.control.finished

    def delivered(self) -> nn.Module:
        """Copy the sparsest module that met the requirement."""
        if self.control is None:
            raise RuntimeError("nothing was trained yet: call delivered() after trainer.fit()")
        return self.control.delivered()

    def state_dict(self) -> dict:
        return {} if self.control is None else {"control": self.control.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self._state = state_dict.get("control")
