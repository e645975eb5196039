"""`extract_features`: the input of a model's head, computed once, to train hundreds of heads on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checks.head.probe.layers import linear_layers
from ..core import arguments
from ..instruments.batches import Batches, device_of, in_words, split, to_device
from ..instruments.given import listable, switchable
from ..instruments.global_state import GlobalState, preserved_globals, seed_everything
from ..instruments.inference import InferenceMode
from ..instruments.parameter_roles import find_head
from ..instruments.reader import Reader
from ..instruments.snapshots import BatchFlags, LoaderSnapshot, ModelSnapshot
from ..instruments.task_readers.class_probabilities import ONE_CLASS, most_probable
from ..instruments.tasks import IGNORED
from ..instruments.undisturbed import quiet
from ..instruments.undo import Undo
from .features import Features, share_of

#: Rows taken from the batches, at most: a head of a few hundred thousand weights learns no more from others in the few dozen
#: steps of a sweep, and the features stay within a few megabytes.
MOST_ROWS = 8192


def extract_features(
    model: nn.Module | Callable[[], nn.Module],
    batches: Any,
    held_out: Any = None,
    *,
    head: Any = None,
    rows: int | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
) -> Features:
    """The input of a model's head: one pass over the batches, dropout off, without gradients; the model is restored afterwards.

    Taken where the head begins, so that ``head(features.x)`` are the logits; if a head takes all tokens and selects or pools them itself,
    before its first linear layer. One label a token: every token is a row, -100 left out. A linear head over all tokens
    whose logits are those of one token (causal decoders): that token is the row. Labels that are class probabilities become the most
    probable class.

    :param model: any model that :func:`finetune` can read, or a function that makes one.
    :param batches: batches with labels.  :param held_out: other batches, or a share of the rows, drawn at random; None: none.
    :param head: prefix of the head's parameter names, or several; None: found by name.
    :param rows: rows to take, at most; None: 8,192.
    :param forward: ``(model, batch) -> logits``, where the model cannot be called with the batches in a usual way.
    :raises ValueError: no head or no linear layer in it; a head that never runs; no labels; NaN; one class only.
    :raises TypeError: no model, no batches.

    >>> from pytest_ftcheck import tiny_distilbert, toy_batches
    >>> extract_features(tiny_distilbert(seed=0), toy_batches(4), held_out=toy_batches(2, seed=1))
    <Features of 64 rows x 64, 32 held out: single_label, 2 classes, what enters classifier of a TinyClassifier>
    """
    arguments.whole("rows", rows, least=2, most=arguments.MOST_ROWS, optional=True)
    arguments.callables(forward=forward)
    most = rows or MOST_ROWS
    share = None if held_out is None or not isinstance(held_out, (int, float)) else share_of(held_out)
    undo = Undo()

    def extract() -> Features:
        undo.keep(GlobalState(), LoaderSnapshot(batches), LoaderSnapshot(held_out))
        source = Batches(batches, None)
        other = Batches(held_out, None, "held_out") if held_out is not None and share is None else None
        undo.keep(BatchFlags([*source.known, *(other.known if other is not None else ())]))
        with InferenceMode(False), torch.no_grad():
            module = module_of("model", model)
            prefixes = find_head(module, head)
            undo.keep(ModelSnapshot(module, values=False))
            with quiet(module, weights=True):
                return _through(module, prefixes, source, other, most, share, forward)

    return undo.after(extract)


def _through(
    model: nn.Module,
    prefixes: tuple[str, ...],
    source: Batches,
    other: Batches | None,
    most: int,
    share: Any,
    forward: Any,
) -> Features:
    """What enters the head when the batches pass through the model."""
    reader = Reader(model, source.take(0), forward=forward)
    if reader.task is None:
        raise ValueError(
            "batches: the task cannot be read from the labels (classes, tags or numbers); "
            "make the features yourself with Features.of(x, y)"
        )
    tap = _Tap(model, prefixes)
    x, y = tap.collect(reader, source, most)
    held = tap.collect(reader, other, most) if other is not None else None
    return Features.of(
        x,
        y,
        held_out=share if held is None else held,
        task="single_label" if reader.task in ONE_CLASS else reader.task,
        classes=reader.classes,
        source=f"what enters {tap.where} of a {type(model).__name__}",
    )


def module_of(argument: str, given: Any) -> nn.Module:
    """The module itself, or the one that a function makes; random states are seeded for it, and restored.

    :raises TypeError: it is neither.
    """
    if not isinstance(given, nn.Module):
        if not callable(given):
            expected = "expected a torch.nn.Module or a function that makes one"
            raise TypeError(f"{argument} is a {type(given).__name__}: {expected}")
        with preserved_globals():
            seed_everything(0)
            given = given()
        if not isinstance(given, nn.Module):
            raise TypeError(f"{argument}() returned a {type(given).__name__}: expected a torch.nn.Module")
    listable(given, argument)
    switchable(given, argument)
    return given


class _Tap:
    """Records the input of the head, and of its first linear layer, batch by batch."""

    def __init__(self, model: nn.Module, prefixes: tuple[str, ...]) -> None:
        self.model = model
        self.layers = linear_layers(model, prefixes)
        if not self.layers:
            raise ValueError(
                f"head={', '.join(prefixes)}: no linear layer in it (nn.Linear, Conv1D) that features could enter; pass head="
            )
        modules = dict(model.named_modules())
        one = modules.get(prefixes[0]) if len(prefixes) == 1 else None
        self.whole = (prefixes[0], one) if isinstance(one, nn.Module) and one not in self.layers.values() else None
        self.where = ""
        self._first: str | None = None

    def collect(self, reader: Reader, source: Batches, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and their labels, on the CPU."""
        xs, ys, count = [], [], 0
        for number, batch in enumerate(_once(source)):
            moved = to_device(batch, device_of(self.model))
            reader.check_labels(moved, number, source.argument)
            labels = split(moved)[1]
            if not isinstance(labels, torch.Tensor):
                raise ValueError(
                    f"{source.argument}[{number}]: no labels, a tensor: expected one label a row or a token"
                )
            task, labels = most_probable(reader.task, labels)
            x, y = self._rows(*self._record(reader, moved), labels, f"{source.argument}[{number}]")
            if task == "single_label":
                keep = y != IGNORED
                x, y = x[keep], y[keep]
            xs.append(x.detach().float().cpu().clone())
            ys.append(y.detach().cpu().clone())
            count += len(x)
            if count >= most:
                break
        if len({x.shape[1] for x in xs}) > 1:
            raise ValueError(f"{source.argument}: the features of its batches have different widths")
        return torch.cat(xs)[:most], torch.cat(ys)[:most]

    def _record(self, reader: Reader, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, str]:
        """Inputs of the first linear layer and of the whole head, and the logits, of one batch."""
        seen: list[tuple[str, Any, Any]] = []
        entered: list[Any] = []
        handles = [m.register_forward_hook(_remember_calls(seen, n)) for n, m in self.layers.items()]
        if self.whole is not None:
            handles.append(self.whole[1].register_forward_pre_hook(lambda _, given: entered.append(given)))
        try:
            seed_everything(0)
            logits = reader.logits(batch)
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise ValueError(
                f"head: none of its linear layers ({', '.join(list(self.layers)[:4])}) runs in a forward pass; pass head="
            )
        name, given, out = seen[0]
        if self._first is None:
            self._first = name
        if name != self._first or not isinstance(given, torch.Tensor):
            raise ValueError(f"head: the layer that comes first differs from batch to batch ({self._first}, {name})")
        whole = entered[0][0] if len(entered) == 1 and len(entered[0]) == 1 else None
        if logits is None:
            raise ValueError("the model gives no logits that could be read; pass forward=(model, batch) -> logits")
        selected = self._selected(given, out, logits) if len(seen) == 1 else None
        if selected is not None:
            given = selected
        # the head's own input, unless it selects or pools tokens behind it
        fits = isinstance(whole, torch.Tensor) and whole.dim() == given.dim() and whole.shape[:-1] == given.shape[:-1]
        self.where = self.whole[0] if self.whole is not None and fits else name
        return given, whole if fits else None, logits, name

    @staticmethod
    def _selected(given: torch.Tensor, out: Any, logits: torch.Tensor) -> torch.Tensor | None:
        """The input of the token whose outputs are the logits, of a linear layer over all tokens; None: the layer gets one token only."""
        if given.dim() != 3 or not isinstance(out, torch.Tensor) or logits.dim() != 2 or len(logits) != len(given):
            return None
        if out.shape[-1] != logits.shape[-1]:
            return None
        same = (out == logits[:, None].to(out.dtype)).all(-1)
        if not bool(same.any(1).all()):
            return None
        return given[torch.arange(len(given), device=given.device), same.int().argmax(1)]

    def _rows(
        self,
        given: torch.Tensor,
        whole: torch.Tensor | None,
        logits: torch.Tensor,
        name: str,
        labels: torch.Tensor,
        at: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and labels side by side, ``[rows, width]``."""
        x = given if whole is None else whole
        if x.dim() > 2 and labels.shape[: x.dim() - 1] == x.shape[:-1]:  # one label a token
            return x.reshape(-1, x.shape[-1]), labels.reshape(-1, *labels.shape[x.dim() - 1 :])
        if x.dim() == 2 and len(x) == len(labels):
            return x, labels.squeeze(-1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
        raise ValueError(
            f"{at}: {name} takes {in_words(x)} for labels {in_words(labels)} and logits {in_words(logits)}: the features of a row are "
            "ambiguous; make them yourself with Features.of(x, y)"
        )


def _remember_calls(seen: list[tuple[str, Any, Any]], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def remember(_: nn.Module, given: Any, out: Any) -> None:
        seen.append((name, given[0] if isinstance(given, tuple) and given else None, out))

    return remember


def _once(source: Batches) -> Any:
    """Every batch once."""
    return iter(source.list if source.list is not None else source.source)
