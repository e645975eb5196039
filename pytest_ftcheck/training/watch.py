"""``watch``: anybody's loop, watched and not changed."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from ..checks.probes import chosen_probes
from ..core import arguments
from ..core.formatting import describe_type
from ..core.intent import Intent
from ..core.trace import Trace
from ..instruments.reader import LossFn
from ..instruments.undo import Undo
from ..integrations.adapters import find_adapter
from ..integrations.framework_loop import FrameworkAdapter, StartedLoop
from .gather import gather
from .started_loop import watch_started
from .watched_loop import WatchedLoop

T = TypeVar("T")


class watch:  # noqa: N801 - a context manager that reads as a verb
    """Watch a training loop: ``with watch(model) as w: ...``, then ``w.trace``.

    Nothing is patched, trained or restored: hooks on ``optimizer.step()`` read gradients and weights, and the loss is the tensor that
    ``backward()`` is called on. Accumulation, clipping, GradScaler and autocast, closures, several groups, groups added midway, shared
    parameters, sparse gradients, wrapped and compiled models all work. Of a model that ``fully_shard`` shards, each rank records its own
    shards; nothing is said to other ranks. One block watches one training, the first that begins in it.

    :param subject: the module being trained; or an object of a framework that trains one (a ``transformers.Trainer``).
    :param optimizer: the ``torch.optim.Optimizer`` (or Accelerate's wrapper) that trains it, or a list of several; default: each
        optimizer that steps on tensors of the model that no other one before it held.
    :param scheduler: your scheduler: whether it drives this optimizer, and steps after it. Learning rates are read off the optimizer.
    :param head: prefix, or prefixes, of the head's parameter names; default: found by the usual names.
    :param probe_batch: a batch to evaluate with dropout off when the block begins and ends; needs readable labels or ``loss_fn``.
    :param loss_fn: ``(model, batch) -> loss`` for the probe batch, where its loss cannot be read by default.
    :param intent: what you expect of the run (`Intent`).
    :param probes: which probes to run on the probe batch, names as for `finetune`; default: all that can run in a loop of yours.
    :param module: the module that a framework's object trains, where it does not know it beforehand (a ``lightning.Trainer``).
    :raises ValueError, TypeError: bad input, before the block begins; a ``FullyShardedDataParallel`` (FSDP1), whose flat parameters
        cannot be watched.

    >>> from pytest_ftcheck import tiny_distilbert, toy_batches
    >>> model, batches = tiny_distilbert(), toy_batches()
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> with watch(model) as w:
    ...     for inputs, labels in batches[:4]:
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    ...         optimizer.step()
    >>> len(w.trace.losses), len(w.trace.steps), w.trace.tensor("classifier.0.weight").motion.share_changed
    (4, 4, 1.0)
    """

    def __init__(
        self,
        subject: Any,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        scheduler: Any = None,
        head: str | Sequence[str] | None = None,
        probe_batch: Any = None,
        loss_fn: LossFn | None = None,
        intent: Intent | None = None,
        probes: Sequence[str] | None = None,
        module: nn.Module | None = None,
    ) -> None:
        chosen_probes(probes)
        arguments.callables(loss_fn=loss_fn)
        arguments.instance("intent", intent, Intent, "a pytest_ftcheck.Intent", optional=True)
        arguments.instance("module", module, nn.Module, "a torch.nn.Module", optional=True)
        self._optimizers = _several(optimizer)
        self._given: dict[str, Any] = {"scheduler": scheduler, "probe_batch": probe_batch, "loss_fn": loss_fn}
        self._declared: dict[str, Any] = {"head": head, "intent": intent, "probes": probes}
        self._subject = subject
        self._loop: WatchedLoop | None = None
        self._adapter: FrameworkAdapter | None = None
        self._used = self._over = False
        if isinstance(subject, nn.Module):
            if module is not None:
                raise TypeError("module is given, but the first argument is a torch.nn.Module itself: leave module out")
            self._loop = WatchedLoop(subject, self._optimizers, **self._given, **self._declared)
        else:
            self._adapter = find_adapter(subject, module=module)

    # ------------------------------------------------------------------ the block
    def __enter__(self) -> watch:
        if self._used:
            raise RuntimeError("this watch has been used already: create a new one for another loop")
        try:
            self._used = True
            if self._adapter is not None:
                self._adapter.attach(self)
            else:
                assert self._loop is not None
                self._loop.begin()
            return self
        except BaseException:  # also one that comes between the end of what was called and our own
            if self._adapter is not None:
                Undo(_Detached(self._adapter)).after(lambda: None)
            elif self._loop is not None:
                self._loop.abandon()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        detached = () if self._adapter is None else (_Detached(self._adapter),)
        Undo(*detached).after(lambda: self._leave(error))

    def _leave(self, error: BaseException | None) -> None:
        self._over = True
        if self._adapter is not None:
            self._adapter.detach()
        if self._loop is not None:
            self._loop.end(error)

    # ------------------------------------------------------------------ what an adapter says
    def training_begins(self, loop: StartedLoop) -> None:
        """Called by the adapter of a framework: its training begins. What the user gave goes before what the framework says."""
        if self._over or self._loop is not None:
            return  # one block watches one training
        self._loop = watch_started(loop, self._optimizers, self._given, **self._declared)
        self._loop.begin()

    def training_ends(self, error: BaseException | None = None) -> None:
        """Called by the adapter of a framework: its last step was taken."""
        if self._loop is not None:
            self._loop.end(error)

    # ------------------------------------------------------------------ what the user asks
    def loss(self, loss: T) -> T:
        """Record the loss of one batch, and return it: ``w.loss(loss).backward()``.

        It is the explicit way: without it, the loss is the tensor that ``backward()`` is called on. From the first call on, only the losses
        told count.

        :raises ValueError: a tensor of more than one element.
        """
        if self._loop is None:
            raise RuntimeError("w.loss() outside the with block")
        return self._loop.loss(loss)

    @property
    def trace(self) -> Trace:
        """What happened; available after the block.

        :raises RuntimeError: the block is not over, or no training began in it.
        """
        if self._loop is None:
            name = type(self._subject).__name__
            raise RuntimeError(
                f"no training of the {name} began inside the with block: nothing was watched"
                if self._over
                else "the trace is ready after the with block"
            )
        return self._loop.trace

    def gather(self, *, group: Any = None, timeout: float = 300.0) -> Trace:
        """The traces of all ranks as one, on every rank: that of the first, with the records of all, which `check_ranks_agree` compares.

        It is a collective: call it on every rank, after the block, while the process group exists. Objects go over a gloo group, which is
        made for it where the group is of another backend. Tensors that are sharded are merged. In a single process it is the trace itself,
        with a note.

        :param group: a ``torch.distributed`` process group of the ranks that hold the same model; default: all ranks.
        :param timeout: seconds to wait for the other ranks.
        :raises RuntimeError: not all ranks called it in time; ``torch.distributed`` is not initialized, or was not when the block began.

        >>> from pytest_ftcheck import tiny_distilbert, toy_batches
        >>> model, batches = tiny_distilbert(), toy_batches()
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> with watch(model) as w:
        ...     for inputs, labels in batches[:2]:
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        ...         optimizer.step()
        >>> w.gather().notes[-1]
        'one process trained: there are no ranks to gather'
        """
        return gather(self.trace, group=group, timeout=timeout)


class _Detached:
    """A framework's object that is not watched (any more)."""

    def __init__(self, adapter: FrameworkAdapter) -> None:
        self._adapter = adapter

    def restore(self) -> None:
        """As it was."""
        self._adapter.detach()


def _several(optimizer: Any) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers that were given, one or several or none."""
    if optimizer is None:
        return ()
    if isinstance(optimizer, torch.optim.Optimizer):
        return (optimizer,)
    expected = "a torch.optim.Optimizer, or a list of them"
    if not isinstance(optimizer, (list, tuple)):
        raise TypeError(f"optimizer is {describe_type(optimizer)}: expected {expected}")
    for i, one in enumerate(optimizer):
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(f"optimizer[{i}] is {describe_type(one)}: expected a torch.optim.Optimizer")
    if len({id(o) for o in optimizer}) < len(optimizer):
        raise ValueError("optimizer: the same optimizer is given twice")
    return tuple(optimizer)
