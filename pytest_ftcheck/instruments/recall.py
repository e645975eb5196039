"""What the modules before the head returned: with the same weights and inputs they are not computed again.

Many measurements pass the same rows through the same weights in evaluation mode, or change nothing but the head. Most of the work of such
a pass is the base's. Inside `Recall.recalling` a module before the head that is given the very inputs of an earlier call returns what it
returned then, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .batches import rows_of, take_rows
from .nested_values import cloned, comparable, leaves_of, same_values
from .parameter_roles import in_part
from .reader import Reader
from .uncompiled import compiled
from .undisturbed import quiet
from .undo import Undo
from .work import FREE_TENSORS, PER_TENSOR

#: Numbers that are kept, at most: 128 MB.
MOST_NUMBERS = 2**25
#: Of hundreds of modules before the head, with fewer parameters each than these, nothing is recalled: to compare what each is given takes
#: as long as `PER_TENSOR` operations, which is a call with 16 rows of one token.
WORTH = PER_TENSOR / (2 * 16)


class Recall:
    """The memory of one run. It is empty, and nothing is kept, before `begin` and after `forget`: the weights may change then.

    A model may pass values on in other ways than from module to module (a hook that keeps a layer's output for the head). So nothing is
    recalled before `check` has found that it makes no difference.

    :param head: prefixes of the head's parameters; of a model without a head nothing is recalled.
    """

    def __init__(self, model: nn.Module, reader: Reader, head: Sequence[str]) -> None:
        self.model, self.reader = model, reader
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._modules = [] if not head or distributed or compiled(model) else modules_before(model, head)
        #: Parameters of what is recalled.
        self.parameters = sum(p.numel() for m in self._modules for p in m.parameters())
        if len(self._modules) > FREE_TENSORS and self.parameters < WORTH * len(self._modules):
            self._modules, self.parameters = [], 0
        self._memory: dict[nn.Module, list[tuple[Any, Any]]] = {}
        self._numbers = self._recalled = 0
        self._keeps = False
        self._trusted: bool | None = None
        self._inside = self._constant = False

    @property
    def works(self) -> bool:
        """Whether something is recalled, which `check` found out."""
        return bool(self._trusted)

    def begin(self) -> None:
        """From now on the weights stay as they are, but for those of the head."""
        self.forget()
        self._keeps = True

    def forget(self) -> None:
        """The weights change now."""
        self._keeps = False
        self._memory.clear()
        self._numbers = 0

    def recalls(self, module: nn.Module) -> bool:
        """Whether a call of this module may be recalled: then what is inside it is not called."""
        return self.works and module in self._modules

    @contextlib.contextmanager
    def recalling(self, *, but: Sequence[nn.Module] = (), constant: bool = False) -> Iterator[None]:
        """Inside, calls in evaluation mode and without gradients are kept and recalled. Weights of the head may differ each time.

        :param but: modules that have to be called: what they are inside of is computed again.
        :param constant: with gradients, too, as constants: for gradients with respect to the head's parameters alone.
        """
        if self._inside or not self._keeps or self._trusted is False or not self._modules:
            yield
            return
        chosen = [m for m in self._modules if not but or not any(inner is b for inner in m.modules() for b in but)]
        with Undo(_Inside(self), _Forwards(chosen)):
            self._inside, self._constant = True, constant
            for module in chosen:
                with contextlib.suppress(Exception):  # a module that refuses attributes is computed again
                    vars(module)["forward"] = self._remembering(module, module.forward)
            yield

    def check(self, batch: Any, loss: torch.Tensor, logits: torch.Tensor | None) -> None:
        """Find out whether a pass that recalls gives the same: the first time that it is called. One row and a pass of the head.

        :param batch: the first of those that were passed through the model inside `recalling`.  :param loss, logits: what it gave.
        """
        if self._trusted is not None or not self._memory or rows_of(batch) < 2:
            return
        self._trusted, same, before = False, False, self._recalled
        with contextlib.suppress(Exception), quiet(self.model):
            self.reader.loss(
                take_rows(batch, [rows_of(batch) - 1])
            )  # what is kept elsewhere is now that of another row
            self._trusted = True
            with self.recalling():
                again, logits_again = self.reader.loss(batch)
            same = torch.equal(again, loss) and (logits is logits_again is None or same_values(logits, logits_again))
        self._trusted = same and self._recalled > before
        if not self._trusted:
            self.forget()

    def _remembering(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def recalled(*args: Any, **kwargs: Any) -> Any:
            if module.training or _autocast() or not self._keeps:
                return forward(*args, **kwargs)
            if torch.is_grad_enabled() and not self._constant:
                return forward(*args, **kwargs)
            if self._trusted:
                for given, out in self._memory.get(module, ()):
                    if same_values(given, (args, kwargs)):
                        self._recalled += 1
                        return cloned(out)
            given = cloned((args, kwargs))  # the module may write into what it is given
            with torch.no_grad():
                out = forward(*args, **kwargs)
            self._keep(module, given, out)
            return out

        return recalled

    def _keep(self, module: nn.Module, given: Any, out: Any) -> None:
        leaves = leaves_of((given, out))
        numbers = sum(v.numel() for v in leaves if isinstance(v, torch.Tensor))
        if self._numbers + numbers <= MOST_NUMBERS and all(map(comparable, leaves)):
            self._memory.setdefault(module, []).append((given, cloned(out)))
            self._numbers += numbers


class _Inside:
    """Whether a `Recall` is inside `Recall.recalling`."""

    def __init__(self, recall: Recall) -> None:
        self.recall, self.was = recall, (recall._inside, recall._constant)

    def restore(self) -> None:
        """As before."""
        self.recall._inside, self.recall._constant = self.was


class _Forwards:
    """The ``forward`` of modules: their class's, or one of their own."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.own = [(module, vars(module).get("forward")) for module in modules]

    def restore(self) -> None:
        """As before."""
        for module, forward in self.own:
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


def modules_before(model: nn.Module, head: Sequence[str]) -> list[nn.Module]:
    """The largest modules with parameters, none of which is the head's.

    >>> from pytest_ftcheck import tiny_distilbert
    >>> [type(m).__name__ for m in modules_before(tiny_distilbert(), ("classifier",))]
    ['DistilBertModel']
    """
    of_head = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if in_part(n, head)}
    found: list[nn.Module] = []

    def walk(parent: nn.Module, prefix: str) -> None:
        for name, child in parent.named_children():
            parameters = {id(p) for p in child.parameters()}
            if not parameters or in_part(prefix + name, head) or isinstance(child, torch.jit.ScriptModule):
                continue
            if parameters & of_head or type(child).forward is nn.Module.forward:  # a list of modules is not called
                walk(child, f"{prefix}{name}.")
            else:
                found.append(child)

    walk(model, "")
    return list(dict.fromkeys(found))


def _autocast() -> bool:
    """Whether operations are computed in another precision than the weights'."""
    return any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
