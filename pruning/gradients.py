"""Gradients of any model's outputs, one sample at a time: what compensation measures.

    >>> import torch
    >>> model, batch = torch.nn.Bilinear(4, 3, 2), (torch.randn(6, 4), torch.randn(6, 3))
    >>> gradients = SampleGradients(model, [batch], ["weight"])
    >>> [(first, slopes["weight"].shape) for first, slopes in gradients.rows(["weight"])]
    [(0, torch.Size([6, 2, 4, 3]))]

A batch holds the inputs of one call: a tensor, a tuple or list (``model(*batch)``) or a mapping (``model(**batch)``).
Tensors that have as many entries as the first one hold a sample in each; everything else is given as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

CHUNK = 64  # samples whose gradients are made at once, where memory allows
Result = TypeVar("Result")


class Batch:
    """The inputs of one call; ``count`` samples of them count, at most ``limit``."""

    def __init__(self, inputs: Any, limit: int | None = None):
        self.inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
        if not isinstance(self.inputs, (tuple, list, Mapping)):
            raise ValueError(
                "a batch is a tensor, or a tuple, list or mapping of the model's inputs, got " + type(inputs).__name__
            )
        self.size = next((len(tensor) for tensor in _tensors(self.inputs) if tensor.dim()), 0)
        if not self.size:
            raise ValueError("a batch without samples: no tensor in it has entries")
        self.count = min(self.size, limit or self.size)

    def samples(self, first: int, last: int, alone: bool = False) -> Any:
        """Take some samples of the inputs; with ``alone`` each has a batch of its own, [last - first, 1, ...]."""
        return self._changed(
            lambda tensor: tensor[first:last, None] if alone else tensor[first:last], lambda rest: rest
        )

    @property
    def dimensions(self) -> Any:
        """The inputs with 0 in place of what holds samples and None in place of the rest, as ``vmap`` takes it."""
        return self._changed(lambda tensor: 0, lambda rest: None)

    def _changed(self, samples: Callable, rest: Callable) -> Any:
        def walk(part: Any) -> Any:
            if isinstance(part, Mapping):
                return {name: walk(value) for name, value in part.items()}
            if isinstance(part, (tuple, list)):
                return tuple(walk(value) for value in part)
            along = isinstance(part, Tensor) and part.dim() and len(part) == self.size
            return samples(part) if along else rest(part)

        return walk(self.inputs)


def call(model: Callable, inputs: Any) -> Any:
    """Call a model on the inputs of a batch."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


class SampleGradients:
    """Gradients of one random combination of each sample's outputs, by the parameters ``names`` of ``model``.

    The outputs of a sample, of any shape, are flattened and added up with random signs of +1 and -1: in expectation
    over the signs, which follow from ``generator`` (of the CPU), that equals all of them. ``output`` takes from what
    the model gives a floating tensor with the samples first, or several; by default ``logits`` where there are any,
    otherwise all such tensors. With ``logits`` the outputs are a classifier's [N, classes], to which a common
    offset changes nothing: the signs have no mean. None takes outputs [N, C] of more than two columns for those.

    The gradients are those of evaluation. Made on two samples first, they raise ``ValueError`` with the module that
    fails. ``CHUNK`` samples go together through ``vmap``, where that takes at most half of ``memory`` (bytes) and gives
    the same as one alone, and otherwise one after another. ``model`` is the object's to change.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        names: Iterable[str],
        generator: torch.Generator | None = None,
        *,
        output: Callable[[Any], Any] | None = None,
        logits: bool | None = False,
        memory: float = 2**30,
    ):
        wanted, self.model, self.output = set(names), model.eval().requires_grad_(False), output
        self.parameters = {name: value.requires_grad_() for name, value in model.named_parameters() if name in wanted}
        self.batches, self.memory = [one if isinstance(one, Batch) else Batch(one) for one in batches], memory
        self.samples = sum(batch.count for batch in self.batches)
        self.first_signs = (generator or torch.Generator()).get_state()
        for module in model.modules():
            if isinstance(module, nn.RNNBase):  # cuDNN has no backward pass of theirs in evaluation
                module.train().dropout = 0.0
        values = list(self.parameters.values())
        self.device = values[0].device
        self.dtype = torch.cat([value.detach().flatten()[:0] for value in values]).dtype  # of all together
        parts, saved = self._probed(self.batches[0])
        outputs = _flat(parts)
        self.outputs, self.kind = outputs.shape[1], outputs.dtype
        plain = len(parts) == 1 and parts[0].dim() == 2
        self.centred = logits is not False and plain and self.outputs > (1 if logits else 2)
        if logits and not self.centred:
            raise ValueError(f"logits are [N, classes], got outputs of {[list(part.shape) for part in parts]}")
        row = sum(value.numel() * value.element_size() for value in values)
        self.sample_bytes = row + saved
        self.at_once = max(1, min(CHUNK, int(memory / 2 // (saved or 1))))
        self.together = CHUNK * self.sample_bytes <= memory / 2 and self._agrees(self.batches[0])
        self.chunk = CHUNK if self.together else 1

    def rows(self, names: Iterable[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Make gradients [n, shape of the parameter] by ``names``, with the number of their first sample."""
        parameters, make = (
            {name: self.parameters[name] for name in names},
            self._together if self.together else self._alone,
        )
        for first, batch, place, signs in self._chunks(self.chunk):
            yield first, make(parameters, batch, place, signs)

    def weighted(self, weights: Tensor) -> dict[str, Tensor]:
        """Add all gradients up, each times its sample's weight (``weights`` [samples])."""
        total = {name: torch.zeros_like(value, dtype=weights.dtype) for name, value in self.parameters.items()}
        for first, batch, place, signs in self._chunks(self.at_once):
            part = weights[first : first + len(signs), None].to(signs)
            for name, slope in self._slopes(self.parameters, batch.samples(*place), signs * part).items():
                total[name] += slope
        return total

    def _chunks(self, size: int) -> Iterator[tuple[int, Batch, tuple[int, int], Tensor]]:
        """Go through all samples: the number of the first, its batch, places in that, and signs [n, outputs]."""
        source, done = torch.Generator(), 0
        source.set_state(self.first_signs)
        for batch in self.batches:
            for start in range(0, batch.count, size):
                stop = min(start + size, batch.count)
                signs = torch.randint(0, 2, (stop - start, self.outputs), generator=source, dtype=torch.int8) * 2.0 - 1
                if self.centred and self.outputs == 2:
                    signs[:, 1] = -signs[:, 0]
                if self.centred:
                    signs = signs - signs.mean(1, keepdim=True)
                yield done + start, batch, (start, stop), signs.to(self.device, self.kind)
            done += batch.count

    def _parts(self, found: Any) -> list[Tensor]:
        found = self.output(found) if self.output else _logits(found)
        return [part for part in _tensors(found) if part.is_floating_point() and part.dim()]

    def _outputs(self, model: Callable, inputs: Any) -> Tensor:
        """Compute the outputs of some samples, flattened [n, outputs]."""
        parts = self._parts(call(model, inputs))
        return _flat([parts[number] for number in self.along])

    @torch.enable_grad()
    def _probed(self, batch: Batch) -> tuple[list[Tensor], int]:
        """Compute the outputs of two samples, and how many bytes of each a backward pass keeps."""
        kept, count = {}, min(batch.count, 2)
        own = {value.untyped_storage().data_ptr() for value in self.model.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = min(tensor.numel() * tensor.element_size(), storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found = _tried(self.model, "forward", call, self.model, batch.samples(0, count))
            parts = self._parts(found)
        last = self._parts(_tried(self.model, "forward", call, self.model, batch.samples(count - 1, count)))
        self.along = [n for n, pair in enumerate(zip(parts, last)) if [len(part) for part in pair] == [count, 1]]
        if not self.along:
            raise ValueError(
                f"what the model gives ({type(found).__name__}) holds no floating tensor with the {count} samples "
                f"first, but the shapes {[list(part.shape) for part in parts]}: put the samples first, in a module "
                "around the model where it takes them otherwise, or say what to measure by output=..."
            )
        parts = [parts[number] for number in self.along]
        outputs = _flat(parts)
        if not outputs.requires_grad:
            raise ValueError("compensation cannot be measured: the model's outputs depend on none of its weights")
        values = list(self.parameters.values())
        _tried(self.model, "backward", lambda: torch.autograd.grad(outputs.sum(), values, allow_unused=True))
        outputs = outputs.detach()
        alone = _flat([last[number].detach() for number in self.along])
        off, near = float((alone - outputs[-1:]).abs().max()), torch.finfo(outputs.dtype).eps ** 0.5
        if off > near * float(outputs.abs().max()):
            warnings.warn(
                f"a sample's outputs change by up to {off:.2g} with what else is in its batch: compensation measures "
                "each sample alone; are the samples first in all inputs?",
                stacklevel=4,
            )
        bytes_kept = sum(size for place, size in kept.items() if place not in own) // count
        return [part.detach() for part in parts], bytes_kept + 16 * outputs.shape[1]

    def _slopes(self, parameters: Mapping[str, Tensor], inputs: Any, signs: Tensor) -> dict[str, Tensor]:
        """Compute the gradient of the outputs' signed sum over samples."""
        with torch.enable_grad():
            total = (self._outputs(self.model, inputs) * signs).sum()
            slopes = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        pairs = zip(parameters.items(), slopes)
        return {name: torch.zeros_like(value) if slope is None else slope for (name, value), slope in pairs}

    def _alone(self, parameters: Mapping[str, Tensor], batch: Batch, place: tuple[int, int], signs: Tensor):
        slopes = self._slopes(parameters, batch.samples(*place), signs)
        return {name: slope[None] for name, slope in slopes.items()}

    def _together(self, parameters: Mapping[str, Tensor], batch: Batch, place: tuple[int, int], signs: Tensor):
        def combined(values: dict[str, Tensor], inputs: Any, signs: Tensor) -> Tensor:
            def model(*args: Any, **kwargs: Any) -> Any:
                return functional_call(self.model, values, args, kwargs)

            return (self._outputs(model, inputs)[0] * signs).sum()

        values = {name: value.detach() for name, value in parameters.items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # to that of samples one after another
            return vmap(grad(combined), in_dims=(None, batch.dimensions, 0))(values, batch.samples(*place, True), signs)

    def _agrees(self, batch: Batch) -> bool:
        """Say whether samples that go together have the same gradients as one alone."""
        _, _, place, signs = next(self._chunks(1))
        alone = self._alone(self.parameters, batch, place, signs)
        try:
            together = self._together(self.parameters, batch, place, signs)
        except Exception:  # whatever it is: samples one after another need nothing of it
            return False
        off = sum(float((together[name] - slope).double().square().sum()) for name, slope in alone.items())
        size = sum(float(slope.double().square().sum()) for slope in alone.values())
        return off <= torch.finfo(self.dtype).eps * size


def _tried(model: nn.Module, way: str, function: Callable[..., Result], *args: Any) -> Result:
    """Do what may fail in a model's forward or backward pass, and say in which module it did."""
    try:
        return function(*args)
    except Exception as error:
        names, where = {id(module): name for name, module in model.named_modules()}, "the model"
        trace = error.__traceback__
        while trace:  # down to the innermost module
            module = trace.tb_frame.f_locals.get("self")
            if names.get(id(module)):
                where = f"module '{names[id(module)]}' ({type(module).__name__})"
            trace = trace.tb_next
        raise ValueError(f"compensation cannot be measured: {where} fails in the {way} pass: {error}") from error


def _flat(parts: list[Tensor]) -> Tensor:
    """Put outputs side by side [n, outputs]."""
    return torch.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts], 1)


def _logits(found: Any) -> Any:
    """Take the ``logits`` of what a model gives, where it has them."""
    logits = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", None)
    return logits if isinstance(logits, Tensor) else found


def _tensors(found: Any) -> Iterator[Tensor]:
    """Go through the tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(found, Tensor):
        yield found
        return
    if is_dataclass(found) and not isinstance(found, Mapping):
        found = vars(found)
    for part in found.values() if isinstance(found, Mapping) else found if isinstance(found, (tuple, list)) else ():
        yield from _tensors(part)
