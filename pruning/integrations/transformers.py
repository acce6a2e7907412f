"""Prune while the Trainer of Hugging Face's transformers trains.

    >>> from pruning import METHODS
    >>> callback = PruningCallback(0.9, "eval_accuracy", method=METHODS["gradual"], ramp=2000)

A ``Trainer`` with the callback prunes at every evaluation and stops when it is done; then ``callback.delivered()`` is
the sparsest network that met the requirement. ``docs/networks.md`` shows it in ten lines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from pruning.control import PruneControl


class PruningCallback(TrainerCallback):
    """Prune a Trainer's masked model at every evaluation, and stop the training when that is done.

    ``requirement`` is the validation accuracy to be met, ``metric`` its name in what ``compute_metrics`` returns, after
    ``eval_``. ``evaluate`` and ``next_images`` go to methods that measure what pruning costs, ``settings`` to
    ``PruneControl``, such as ``method``. An iteration is a step of the Trainer. Gradients are seen after they are
    unscaled and clipped. The control's state lies in each checkpoint's folder, as ``pruning.pt``.
    """

    def __init__(
        self,
        requirement: float,
        metric: str = "eval_accuracy",
        *,
        evaluate: Callable[[], float] | None = None,
        next_images: Callable[[], Any] | None = None,
        **settings: Any,
    ):
        self.requirement, self.metric, self.settings = requirement, metric, settings
        self.feedback = (evaluate, next_images)
        self.control: PruneControl | None = None
        self.training = False

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        self.control, self.training = PruneControl(model, self.requirement, optimizer=optimizer, **self.settings), True
        if state.global_step:
            path = _checkpoint(args, state)
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing: this training did not begin with a PruningCallback")
            self.control.load_state_dict(torch.load(path, map_location=args.device, weights_only=True))

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.control is not None and self.control.watching and not self.control.finished:
            self.control.observe(state.global_step + 1)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        if self.control is None or not self.training:
            return
        if self.metric not in metrics:
            raise ValueError(f"compute_metrics gives no '{self.metric}', but {sorted(metrics)}")
        if not self.control.finished:
            self.control.update(state.global_step, float(metrics[self.metric]), *self.feedback)
        control.should_training_stop |= self.control.finished

    def on_save(self, args, state, control, **kwargs) -> None:
        if self.control is not None and state.is_world_process_zero:
            torch.save(self.control.state_dict(), _checkpoint(args, state))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.training = False

    def delivered(self) -> nn.Module:
        """Copy the sparsest model that met the requirement."""
        if self.control is None:
            raise RuntimeError("nothing was trained yet: call delivered() after trainer.train()")
        return self.control.delivered()


def _checkpoint(args, state) -> Path:
    return Path(args.output_dir, f"checkpoint-{state.global_step}", "pruning.pt")
