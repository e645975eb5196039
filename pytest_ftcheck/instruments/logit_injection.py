"""Evaluates the loss function on synthetic logits: a hook puts them in place of a module's output."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..core.seeding import reseed
from .batches import with_labels
from .model_outputs import as_loss, logits_in, put_logits
from .nested_values import cloned
from .reader import Reader
from .tensor_bytes import are_values


class Injector:
    """Computes the loss of one batch with the output of one module replaced; all modules before it are computed once.

    :param site: the module whose output is replaced (the model itself where it returns logits).
    """

    def __init__(self, model: nn.Module, reader: Reader, batch: Any, site: nn.Module) -> None:
        self.model, self.reader, self.batch, self.site = model, reader, batch, site
        self._fired = 0
        self._form: Callable[[torch.Tensor, int], torch.Tensor] | None = None
        self._sign = 1.0
        self._memory: dict[nn.Module, list[Any]] = {}
        self._early = self._before_site()
        self._cpu, self._python = torch.get_rng_state(), random.getstate()

    def through(self, form: Callable[[torch.Tensor, int], torch.Tensor]) -> Injector:
        """The same with synthetic values transformed first (``torch.softmax``, where the module returns probabilities)."""
        self._form = form
        return self

    def minus(self) -> Injector:
        """The same for minus the loss."""
        other = copy.copy(self)
        other._sign = -self._sign
        return other

    # ------------------------------------------------------------------ evaluating
    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor | None = None, *, seed: int | None = None
    ) -> torch.Tensor:
        """The loss for these logits (and labels)."""
        value: torch.Tensor = self._evaluate(logits, lambda batch: as_loss(self.reader.loss(batch)[0]), labels, seed)
        return value if self._sign > 0 else -value

    def gradient(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[float, torch.Tensor | None]:
        """The loss and its gradient with respect to the logits; None: it has none."""
        z = logits.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            value = self.loss(z, labels)
            if not value.requires_grad:
                return float(value), None
            (g,) = torch.autograd.grad(value.reshape(()), [z], allow_unused=True)
        return float(value.detach()), None if g is None else g.detach().float()

    def logits(self, values: torch.Tensor) -> torch.Tensor | None:
        """The logits that the reader finds when the site returns these values."""
        found: torch.Tensor | None = self._evaluate(values, self.reader.logits, None, None)
        return None if found is None else found.detach().float()

    @property
    def fired(self) -> bool:
        """Whether the site was reached in the last call."""
        return self._fired > 0

    # ------------------------------------------------------------------ the call
    def _evaluate(
        self,
        logits: torch.Tensor,
        call: Callable[[Any], Any],
        labels: torch.Tensor | None,
        seed: int | None,
    ) -> Any:
        torch.set_rng_state(self._cpu)
        random.setstate(self._python)
        numpy = sys.modules.get("numpy")
        if numpy:
            numpy.random.seed(0 if seed is None else seed)
        if seed is not None:
            reseed(seed)
            random.seed(seed)
        self._fired = 0
        with ExitStack() as stack:

            def replace(_: Any, __: Any, output: Any) -> Any:
                self._fired += 1
                if not are_values():
                    raise ValueError("the loss calls the model inside a transform of torch.func")
                replaced = put_logits(output, logits if self._form is None else self._form(logits, -1))
                if replaced is None:
                    raise ValueError("the output to be replaced has changed its shape")
                return replaced

            handle = self.site.register_forward_hook(replace)
            stack.callback(handle.remove)
            stack.enter_context(self._remembered())
            return call(self.batch if labels is None else with_labels(self.batch, labels))

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        """Modules before the site return what they returned the first time, because their inputs are the same."""
        kept: list[tuple[nn.Module, Any]] = []
        try:
            for module in self._early:
                own = module.__dict__.get("forward", self)
                try:
                    module.__dict__["forward"] = self._recall(module, module.forward)
                except Exception:  # noqa: BLE001 - a scripted module: then it is computed again
                    continue
                kept.append((module, own))
            yield
        finally:
            for module, own in kept:
                if own is self:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

    def _recall(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        at = 0

        def recalled(*args: Any, **kwargs: Any) -> Any:
            nonlocal at
            if self._fired or not are_values():  # after the site: depends on the synthetic logits
                return forward(*args, **kwargs)
            memory = self._memory.setdefault(module, [])
            if at == len(memory):
                with torch.no_grad():
                    memory.append(forward(*args, **kwargs))
            at += 1
            return cloned(memory[at - 1])

        return recalled

    def _before_site(self) -> list[nn.Module]:
        """The largest modules that do not contain the site (for the model itself: its children), and the site, whose output is replaced."""
        found: list[nn.Module] = []

        def walk(module: nn.Module) -> None:
            for child in module.children():
                if child is self.site:
                    found.extend(child.children())
                    found.extend([] if isinstance(child, torch.jit.ScriptModule) else [child])
                elif any(m is self.site for m in child.modules()):
                    walk(child)
                elif not isinstance(child, torch.jit.ScriptModule):
                    found.append(child)

        if self.site is self.model:
            found.extend(m for m in self.model.children() if not isinstance(m, torch.jit.ScriptModule))
        else:
            walk(self.model)
        return found


def sites(
    model: nn.Module, reader: Reader, batch: Any, logits: torch.Tensor
) -> tuple[list[nn.Module], nn.Module | None]:
    """Modules whose output is the logits, the last in execution order first; and the last matrix layer with as many outputs.

    Found during one call of the loss, so that they take part in it.
    """
    equal: list[nn.Module] = []
    last: list[nn.Module] = []
    width = logits.shape[-1] if logits.dim() > 1 else 1

    def look(module: nn.Module, _: Any, output: Any) -> None:
        value = output if isinstance(output, torch.Tensor) else None
        if module is model and value is None:
            value = logits_in(output)
        if value is None or not value.dim():
            return
        if value.numel() == logits.numel() and value.shape[:1] == logits.shape[:1]:
            same = torch.allclose(value.detach().reshape(logits.shape).float(), logits.float(), rtol=1e-4, atol=1e-6)
            if same:
                equal.append(module)
        plain = module is not model and not any(True for _ in module.children())
        if plain and value.shape[-1] == width and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            last.append(module)

    handles = [m.register_forward_hook(look) for m in model.modules()]
    try:
        reader.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    order = list(dict.fromkeys(reversed(equal)))
    return order, last[-1] if last else None
