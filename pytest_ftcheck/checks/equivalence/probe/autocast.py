"""One batch in float32 and under autocast: outputs, loss and gradient, and where they part."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ....core.formatting import named_error
from ....instruments.batches import rows_of, take_rows, tensors_in
from ....instruments.global_state import seed_everything
from ....instruments.model_outputs import as_loss
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.undisturbed import perturbed, quiet
from ..record import Autocast, Errors, LocalError

#: Rows of the batch that are computed, at most.
ROWS = 16
#: Draws of random roundings.
DRAWS = 4
#: A module computes something else if its outputs differ by so many unit roundoffs from those in float32 of the same inputs ...
LOCAL = 32.0
#: ... and a tensor's gradient is another if it differs by this share of its length.
OTHER = 0.5
#: Errors of up to so many unit roundoffs are located in no module.
FINE = 8.0
#: Factors of the loss in float16, the largest first that leaves the gradient finite, as a GradScaler finds it.
SCALES = (2.0**16, 2.0**12, 2.0**8, 1.0)


@dataclass
class _Pass:
    """What one pass gave."""

    outputs: torch.Tensor | None = None
    loss: float = math.nan
    gradients: list[torch.Tensor] = field(default_factory=list)
    #: Gradient of a sum of the outputs with fixed signs; empty: there are no outputs.
    outputs_gradients: list[torch.Tensor] = field(default_factory=list)
    raised: str = ""
    raised_in: str = ""
    #: Names and classes of the modules whose outputs are not finite, in order of computation.
    not_finite: list[tuple[str, str]] = field(default_factory=list)


class AutocastProbe(Probe):
    """Computes a batch in float32, with rounding, and under autocast."""

    name = "autocast"
    order = 94
    default = False

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        if any(p.dtype != torch.float32 for p in context.model.parameters()):
            raise LeftOut("the weights are not all float32, so there is no float32 to compare with")
        self.device = context.device.type
        if not torch.amp.is_autocast_available(self.device):
            raise LeftOut(f"torch has no autocast for {self.device}")
        self.dtype = getattr(torch, context.recipe.autocast or "bfloat16")
        #: Half of epsilon: rounding to nearest.
        self.unit = torch.finfo(self.dtype).eps / 2
        batch = context.fixed_batches[0]
        count = rows_of(batch)
        divisible = count > ROWS and all(not t.dim() or len(t) == count for t in tensors_in(batch))
        self.batch = take_rows(batch, range(ROWS)) if divisible else batch
        self.parameters = {n: p for n, p in context.model.named_parameters() if p.requires_grad}
        self.autocast: Autocast | None = None

    def cost(self) -> float:
        """Forward and backward in float32, under autocast and for each draw; two forward passes to find the place."""
        return 3.0 * rows_of(self.batch) * (DRAWS + 4)

    def after(self) -> None:
        """Measure with the weights at the end of the run."""
        full = self._pass(cast=False)
        low = self._pass(cast=True)
        if full.raised:
            raise RuntimeError(full.raised)
        errors = None if low.raised else self._errors(low, full)
        suspicious = errors is not None and not self._small(errors)
        not_finite = next((m for m in low.not_finite if m not in full.not_finite), (None, ""))
        tensor, tensor_error = self._first_tensor(low, full) if suspicious else (None, 0.0)
        self.autocast = Autocast(
            dtype=str(self.dtype).removeprefix("torch."),
            unit=self.unit,
            rows=rows_of(self.batch),
            loss32=full.loss,
            loss=None if low.raised else low.loss,
            gradient32=_length(full.gradients),
            errors=errors,
            rounding=self._rounding(full),
            raised=low.raised,
            raised_in=low.raised_in,
            not_finite=not_finite[0],
            not_finite_class=not_finite[1],
            located=self._located() if suspicious else None,
            tensor=tensor,
            tensor_error=tensor_error,
        )

    def record(self) -> Autocast | None:
        """What was measured."""
        return self.autocast

    # ------------------------------------------------------------------ passes
    @contextlib.contextmanager
    def _mode(self) -> Iterator[None]:
        with quiet(self.context.model, grad=True), torch.backends.cudnn.flags(enabled=False):
            # cudnn's RNNs have no gradients in evaluation mode
            seed_everything(0)
            yield

    def _pass(self, *, cast: bool) -> _Pass:
        """Forward and backward; in float16 with the largest factor of the loss that leaves the gradient finite."""
        found = _Pass()
        for scale in SCALES if cast and self.dtype == torch.float16 else (1.0,):
            found = self._scaled_pass(scale, cast=cast)
            if found.raised or all(bool(torch.isfinite(g).all()) for g in found.gradients):
                break
        return found

    def _scaled_pass(self, scale: float, *, cast: bool) -> _Pass:
        found = _Pass()
        with self._mode(), self._watched(found):
            try:
                with torch.autocast(self.device, self.dtype, enabled=cast, cache_enabled=False):
                    loss, logits = self.context.reader.loss(self.batch)
                    if logits is None:
                        logits = self.context.reader.logits(self.batch)
                loss = as_loss(loss)
                found.loss = float(loss.detach())
                found.outputs = None if logits is None else logits.detach().double()
                if not loss.requires_grad:
                    raise LeftOut("the loss has no graph, so there is no gradient")
                found.gradients = self._gradients(scale * loss.float(), scale)
                if logits is not None and logits.requires_grad:
                    found.outputs_gradients = self._gradients(scale * _signed_mean(logits.float()), scale)
            except LeftOut:
                raise
            except Exception as error:  # noqa: BLE001 - the user's model may raise anything
                found.raised = named_error(error)
        return found

    def _gradients(self, loss: torch.Tensor, scale: float) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True, retain_graph=True)
        return [
            torch.zeros_like(p) if g is None else g.detach().to_dense() / scale
            for p, g in zip(self.parameters.values(), found, strict=True)
        ]

    @contextlib.contextmanager
    def _watched(self, found: _Pass) -> Iterator[None]:
        """Note the module that is being computed, and those whose outputs are not finite."""
        entered: list[str] = []

        def enter(name: str) -> Any:
            return lambda _module, _inputs: entered.append(name)

        def leave(name: str) -> Any:
            def note(module: nn.Module, _: Any, output: Any) -> None:
                if entered and entered[-1] == name:
                    entered.pop()
                if not _finite(output):
                    found.not_finite.append((name, type(module).__name__))

            return note

        handles = []
        for name, module in self.context.model.named_modules():
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
        try:
            yield
        finally:
            found.raised_in = entered[-1] if entered and found.raised else ""
            for handle in handles:
                handle.remove()

    def _rounding(self, full: _Pass) -> Errors:
        """The errors, in float32, with weights, outputs of all innermost modules and their gradients rounded to the digits of autocast's
        dtype, or, if that is more, moved at random by up to one unit roundoff (root mean square of several draws)."""
        rounded = self._errors(self._with_noise(functools.partial(_rounded, unit=self.unit)), full)
        drawn = []
        for draw in range(DRAWS):
            generator = torch.Generator(self.context.device).manual_seed(draw)
            drawn.append(self._errors(self._with_noise(functools.partial(_moved, unit=self.unit, by=generator)), full))
        return Errors(
            _largest(rounded.outputs, [e.outputs for e in drawn]),
            _largest(rounded.loss, [e.loss for e in drawn]) or 0.0,
            _largest(rounded.gradient, [e.gradient for e in drawn]) or 0.0,
            _largest(rounded.outputs_gradient, [e.outputs_gradient for e in drawn]),
        )

    def _with_noise(self, change: Callable[[torch.Tensor], torch.Tensor]) -> _Pass:
        """A pass in float32 with changed weights, outputs of innermost modules, and gradients of these outputs."""

        def note(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            return _mapped(output, lambda t: _through(t, change))

        model = self.context.model
        handles = [m.register_forward_hook(note) for m in model.modules() if not any(True for _ in m.children())]
        try:
            with perturbed(model.parameters()):
                with torch.no_grad():
                    for p in model.parameters():
                        p.data.copy_(change(p.data))
                return self._pass(cast=False)
        finally:
            for handle in handles:
                handle.remove()

    # ------------------------------------------------------------------ comparison
    def _errors(self, one: _Pass, full: _Pass) -> Errors:
        outputs = None
        if one.outputs is not None and full.outputs is not None and one.outputs.shape == full.outputs.shape:
            outputs = _ratio(float((one.outputs - full.outputs).norm()), float(full.outputs.norm()))
        return Errors(
            outputs,
            _ratio(abs(one.loss - full.loss), abs(full.loss)),
            _gradient_error(one.gradients, full.gradients),
            _gradient_error(one.outputs_gradients, full.outputs_gradients) if full.outputs_gradients else None,
        )

    def _small(self, errors: Errors) -> bool:
        """So small that it passes, and nothing has to be located."""
        found = (errors.outputs, errors.loss, errors.gradient, errors.outputs_gradient)
        return all(e is None or e <= FINE * self.unit for e in found)

    def _first_tensor(self, low: _Pass, full: _Pass) -> tuple[str | None, float]:
        """The tensor nearest to the loss whose gradient is another one."""
        ours, theirs = low.outputs_gradients, full.outputs_gradients
        if not theirs or len(ours) != len(theirs):
            ours, theirs = low.gradients, full.gradients
        if len(ours) != len(theirs):
            return None, 0.0
        largest = max((float(g.norm()) for g in theirs), default=0.0)
        pairs = zip(self.parameters, ours, theirs, strict=True)
        for name, one, other in reversed(list(pairs)):
            length = float(other.norm())
            error = float((one.double() - other.double()).norm()) / length if length > 0 else 0.0
            if length > self.unit * largest and not error < OTHER:
                return name, error if math.isfinite(error) else math.inf
        return None, 0.0

    # ------------------------------------------------------------------ the place
    def _located(self) -> LocalError | None:
        """The first module that computes something else under autocast than in float32 from the same inputs."""
        search = _Search(self.device, LOCAL * self.unit)
        handles: list[Any] = []
        for name, module in self.context.model.named_modules():
            handles.append(module.register_forward_pre_hook(search.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(functools.partial(search.leave, name)))
        try:
            with self._mode(), torch.no_grad(), torch.autocast(self.device, self.dtype, cache_enabled=False):
                self.context.reader.loss(self.batch)
        except Exception:  # noqa: BLE001 - as above
            return None
        finally:
            for handle in handles:
                handle.remove()
        return search.found


class _Search:
    """Computes every module again, in float32 from the inputs that it got under autocast, until one gives something else."""

    def __init__(self, device: str, limit: float) -> None:
        self.device, self.limit = device, limit
        self.found: LocalError | None = None
        self._inputs: list[tuple[Any, Any] | None] = []
        self._again = False

    def enter(self, module: nn.Module, inputs: Any, named: Any) -> None:  # noqa: ARG002
        """Keep the inputs as they are before the module is computed: it may write into them (a cache of keys)."""
        if not self._again:
            self._inputs.append(None if self.found else _kept((inputs, named)))

    def leave(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        """Compute the module again, and compare."""
        if self._again:
            return
        kept = self._inputs.pop()
        if self.found is not None or kept is None:
            return
        self._again = True
        try:
            with torch.autocast(self.device, enabled=False):
                error = _distance(output, module.forward(*kept[0], **kept[1]))
            if not error <= self.limit:
                self.found = LocalError(name, type(module).__name__, error)
        except Exception:  # noqa: BLE001 - a module that cannot be computed again is not located
            return
        finally:
            self._again = False


def _kept(value: Any) -> tuple[Any, Any] | None:
    """Inputs in float32, with copies of all objects in them; None: they cannot be copied."""
    try:
        inputs, named = _float(copy.deepcopy(value))
    except Exception:  # noqa: BLE001 - objects that cannot be copied
        return None
    return inputs, named


def _float(value: Any) -> Any:
    """The same with all tensors of lower precision in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if type(value) is dict:
        return {k: _float(v) for k, v in value.items()}
    return type(value)(_float(v) for v in value) if type(value) in (list, tuple) else value


def _distance(a: Any, b: Any) -> float:
    """Distance of two outputs over the length of the second: the largest of their tensors; infinite: one of them is not finite."""
    largest = 0.0
    for x, y in zip(tensors_in(a), tensors_in(b), strict=False):
        if not x.is_floating_point() or x.shape != y.shape:
            continue
        error = _ratio(float((x.double() - y.double()).norm()), float(y.double().norm()))
        largest = max(largest, error if math.isfinite(error) else math.inf)
    return largest


def _finite(output: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors_in(output) if t.is_floating_point())


def _ratio(difference: float, size: float) -> float:
    if not math.isfinite(difference) or not math.isfinite(size):
        return math.nan
    return difference / size if size > 0 else math.inf if difference > 0 else 0.0


def _gradient_error(one: Sequence[torch.Tensor], full: Sequence[torch.Tensor]) -> float:
    if len(one) != len(full):
        return math.nan
    return _ratio(_length([a.double() - b.double() for a, b in zip(one, full, strict=True)]), _length(full))


def _largest(rounded: float | None, drawn: Sequence[float | None]) -> float | None:
    """The larger of the one, and of the root mean square of the others."""
    if rounded is None:
        return None
    known = [v for v in drawn if v is not None]
    return max(rounded, math.sqrt(math.fsum(v**2 for v in known) / max(1, len(known))))


def _mapped(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """An output of a module, a tensor or a tuple or list of them, with changed tensors; any other is returned as it is."""
    if isinstance(output, torch.Tensor):
        return change(output)
    if type(output) in (tuple, list):
        return type(output)(_mapped(item, change) for item in output)
    return output


def _through(output: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The output changed, and its gradient, too, on its way back."""
    if not output.is_floating_point():
        return output
    # infinite values, as in masks, stay as they are
    changed = output + (change(output.detach()) - output.detach()).nan_to_num(0.0, 0.0, 0.0)
    if changed.requires_grad:
        changed.register_hook(change)  # type: ignore[no-untyped-call]
    return changed


def _rounded(value: torch.Tensor, unit: float) -> torch.Tensor:
    """Rounded to nearest, with the digits of a dtype of that unit roundoff and the range of float32."""
    fraction, exponent = torch.frexp(value)
    return torch.ldexp(torch.round(fraction / unit) * unit, exponent)


def _moved(value: torch.Tensor, unit: float, by: torch.Generator) -> torch.Tensor:
    """Each number moved at random by up to one unit roundoff."""
    noise = torch.rand(value.shape, generator=by, device=value.device)
    return value * (1 + unit * (2 * noise - 1))


def _signed_mean(outputs: torch.Tensor) -> torch.Tensor:
    """The mean of the outputs, each column with a sign of its own: what rows have in common does not cancel."""
    width = outputs.shape[-1] if outputs.dim() > 1 else 1
    signs = 1.0 - 2.0 * (torch.arange(width, device=outputs.device) % 2)
    return (outputs * signs).mean()


def _length(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(math.fsum(float(t.double().square().sum()) for t in tensors))
