"""Observe a few iterations of the loop itself: hooks on the model and its base, and calls of loss functions.

Nothing is called that the loop does not call, and nothing is changed: hooks note what passes, and `loop_calls` tells the arguments of the
losses in ``torch.nn.functional`` and of ``backward()``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ....core.effect import Effect
from ....core.intent import Intent
from ....instruments.base_model import BaseModel, Call, effect, find_base_models, precision_of
from ....instruments.batches import split, tensors_in
from ....instruments.ctc_node import ctc_behind
from ....instruments.linear_terms import RESHAPES, Term, is_linear
from ....instruments.loop_calls import LoopCallListener, subscribe, unsubscribe
from ....instruments.probe import ModelContext, ProbeBase, ProbeContext
from ....instruments.tensor_bytes import of_bytes
from ....instruments.tokens import find_tokens
from ....instruments.uncompiled import outside_graphs
from ....instruments.undisturbed import is_probing, quiet
from ....instruments.weight_penalty import is_weight_penalty
from ...inputs.probe.padding import received_mask
from ..record import REGRESSION, BaseCall, CtcCall, LoopCalls, LossCall, LossParts
from .bounded_input import bounds_of

#: Iterations that are observed: the first ones, and then those at powers of two.
FIRST = 3
#: Calls that are kept of each kind; rows that are kept for the comparison of masks.
MOST = 64
ROWS = 8
#: Autograd nodes that are looked at behind a loss, the nearest first.
NODES = 2000
#: Labels are compared from so many rows on: of two classes, fewer agree or disagree by luck.
LEAST_ROWS = 8
#: Autograd nodes that only hand numbers on, by the beginning of their names.
_PLAIN = (*RESHAPES, "TBackward", "Slice", "Select", "Index", "AsStrided", "Split", "Chunk", "Unbind")
#: What a mapping must have to be the base's input.
_NEEDED = {"input_ids", "attention_mask"}
_FORMS = {"SoftmaxBackward": "softmax", "LogSoftmaxBackward": "log_softmax", "SigmoidBackward": "sigmoid"}


class LoopProbe(ProbeBase[ModelContext]):
    """What the loop's own calls give the model, its base and the loss function. A loop of the user's is observed without batches, too."""

    name = "loop"
    order = 1000  # its hooks go on last, right before the loop's own iteration

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        self.observer = LoopObserver(context)
        self.observed: list[int] = []
        self.mask_effect: Effect | None = None

    def idle(self, moment: str, number: int) -> bool:  # noqa: ARG002
        """In the other iterations."""
        return not is_due(number)

    def iteration(self, number: int, batch: Any) -> None:
        """Observe this iteration."""
        self.observed.append(number)
        self.observer.start(number, batch)

    def iterated(self, number: int) -> None:  # noqa: ARG002
        """The loop's own calls of this iteration are over."""
        self.observer.stop()

    def loop_begins(self) -> None:
        """A watched loop begins, whose iterations nobody announces: each call of ``backward()`` ends one."""
        self.observer.start(0, None, whole=True)

    def loop_ends(self) -> None:
        """The watched loop is over."""
        self.observer.stop()
        self.observed = [i for i in range(self.observer.iteration) if is_due(i)]

    def after(self) -> None:
        """What the mask that the loop gave does, beside the right one."""
        if self.observer.example is not None:
            with contextlib.suppress(Exception), quiet(self.context.model, weights=True):
                self.mask_effect = self._mask_effect(*self.observer.example)

    def close(self) -> None:
        """No hook and no mode of ours is left."""
        self.observer.stop()

    def record(self) -> LoopCalls | None:
        """What was observed; None: no iteration was."""
        seen = self.observer
        if not self.observed:
            return None
        return LoopCalls(
            recipe_loop=isinstance(self.context, ProbeContext) and self.context.recipe_loop,
            iterations=tuple(self.observed[:MOST]),
            candidates=len(seen.bases),
            base=seen.base.name if seen.base is not None else None,
            base_library=seen.base is not None and seen.base.library,
            calls=tuple(seen.calls),
            losses=tuple(dataclasses.replace(call, negated=term.negative()) for call, term in seen.losses),
            ctc=tuple(seen.ctc),
            linear=tuple(parts for made in seen.linear if (parts := made.parts()) is not None),
            outputs=seen.outputs,
            backwards=seen.backwards,
            reached=seen.reached,
            weights_only=seen.weights_only is True,
            mask_effect=self.mask_effect,
        )

    def _mask_effect(
        self, base: BaseModel, ids: torch.Tensor, given: torch.Tensor | None, real: torch.Tensor
    ) -> Effect | None:
        weight = real.float()[..., None]

        def rows(mask: torch.Tensor) -> torch.Tensor:
            return (base.direct(ids, mask).float() * weight).sum(1) / weight.sum(1)

        given = torch.ones_like(real, dtype=torch.long) if given is None else given
        return effect(rows(real.long()), rows(given), precision=precision_of(self.context.model))


def is_due(iteration: int) -> bool:
    """Whether this iteration is observed.

    >>> [i for i in range(20) if is_due(i)]
    [0, 1, 2, 4, 8, 16]
    """
    return iteration < FIRST or iteration & (iteration - 1) == 0


class LoopObserver(LoopCallListener):
    """Notes the loop's calls while it is started. Calls that probes make are not the loop's."""

    def __init__(self, context: ModelContext) -> None:
        batches = context.fixed_batches if isinstance(context, ProbeContext) else []
        self.model = context.model
        self.bases = find_base_models(context.model)
        self.base: BaseModel | None = None
        self.pad_id = _pad_id(context.intent, batches)
        self.labels_of_probe = _labels_of_rows(batches)
        self.calls: list[BaseCall] = []
        self.losses: list[tuple[LossCall, Term]] = []
        self.linear: list[_Linear] = []
        self.ctc: list[CtcCall] = []
        self.outputs = self.backwards = self.reached = self.iteration = 0
        #: Whether every gradient so far was that of a penalty of the weights alone; None: there was none as yet.
        self.weights_only: bool | None = None
        #: The base, token ids, mask and real tokens of a few rows to which the loop gave a wrong mask.
        self.example: tuple[BaseModel, torch.Tensor, torch.Tensor | None, torch.Tensor] | None = None
        self._through: nn.Module | None = (
            None  # a module around the base, where the base's own forward is called without hooks
        )
        self._batch: Any = None
        self._whole = self._on = False
        self._handles: list[RemovableHandle] = []
        self._outputs: set[Any] = set()  # autograd nodes of the model's outputs
        self._memory: set[int] = set()  # where the outputs are
        self._choices: list[torch.Tensor] = []  # what argmax of them returned
        self._rows: list[bytes] = []  # the rows that the model was called with last
        # losses whose backward() was not called as yet, by their node
        self._pending: list[tuple[Any, LossCall, Term]] = []

    # ------------------------------------------------------------------ on and off
    def start(self, iteration: int, batch: Any, *, whole: bool = False) -> None:
        """From now on the loop's calls are noted; ``whole``: each call of ``backward()`` ends an iteration."""
        self.stop()
        self.iteration, self._batch, self._whole = iteration, batch, whole
        self._handles.append(
            self.model.register_forward_hook(outside_graphs(self._called, self._not_read), with_kwargs=True)
        )
        for base in self.bases:
            hook = outside_graphs(self._hook_of(base))
            self._handles.append(base.module.register_forward_hook(hook, with_kwargs=True))
        for module in _around(self.model, self.bases):
            hook = outside_graphs(self._called_around_base)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        subscribe(self)
        self._on = True

    def stop(self) -> None:
        """Nothing is noted any more; may be called at any time."""
        self._on = False
        unsubscribe(self)
        while self._handles:
            self._handles.pop().remove()
        self._forget()
        self._batch = None

    def _forget(self) -> None:
        self._outputs.clear()
        self._memory.clear()
        self._choices.clear()
        self._pending.clear()
        self._rows = []

    @property
    def _listening(self) -> bool:
        return self._on and not is_probing() and (not self._whole or is_due(self.iteration))

    # ------------------------------------------------------------------ the model and its base
    def _called(self, _module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if not self._listening:
            return
        with contextlib.suppress(Exception):
            with_graph = [t for t in tensors_in(out) if t.grad_fn is not None]
            self.outputs += bool(with_graph)
            self._outputs |= {t.grad_fn for t in with_graph}
            self._memory |= {_memory_of(t) for t in with_graph if t.dim()}
            self._rows = _row_keys((args, kwargs))

    def _not_read(self) -> None:
        """Which rows the model was called with last is not known."""
        self._rows = []

    def _hook_of(self, base: BaseModel) -> Any:
        signature = inspect.signature(base.module.forward)
        rest = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)

        def hook(_module: nn.Module, args: Any, kwargs: Any, _out: Any) -> None:
            # without gradients it is an evaluation of the loop's
            if not self._listening or not torch.is_grad_enabled() or self.base not in (None, base):
                return
            with contextlib.suppress(Exception):
                call = Call(dict(signature.bind_partial(*args, **kwargs).arguments))
                call.unknown = tuple(call.arguments.pop(rest, {})) if rest is not None else ()
                self._note_base(base, call)

        return hook

    def _called_around_base(self, module: nn.Module, args: Any, kwargs: Any, _out: Any) -> None:
        """A module around the base calls ``base.forward`` itself, as sentence-transformers' does: its mapping is the base's input."""
        if not self._listening or not torch.is_grad_enabled() or not (self.base is None or module is self._through):
            return
        given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Mapping) and v.keys() >= _NEEDED), None)
        if given is not None:
            self._through = module
            with contextlib.suppress(Exception):
                self._note_base(self.bases[0], Call({name: given[name] for name in _NEEDED}))

    def _note_base(self, base: BaseModel, call: Call) -> None:
        ids = call.arguments.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.shape[1] < 2:
            return
        if call.arguments.get("encoder_hidden_states") is not None:
            return  # a decoder's own ids: the padding id may be its start token, and no token sees those after it
        self.base = base
        real = self._real(ids)
        if real is None or bool(real.all()) or not bool(real.any(1).all()) or len(self.calls) >= MOST:
            return
        received = received_mask(call, real)
        padded = int((~real).any(1).sum())
        self.calls.append(
            BaseCall(
                self.iteration,
                len(ids),
                padded,
                received["mask_received"],
                tuple(received["unknown_keywords"]),
                tuple(received["misplaced_mask"]),
            )
        )
        if self.example is None and received["mask_received"] in ("none", "all ones", "inverted"):
            short = real.sum(1).argsort(stable=True)[:ROWS]
            mask = call.arguments.get("attention_mask")
            given = mask.detach()[short].clone() if isinstance(mask, torch.Tensor) else None
            self.example = base, ids.detach()[short].clone(), given, real[short].clone()

    def _real(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Which tokens are real: as the batch says; else all but the padding id at either end of a row. None: not known."""
        if self._batch is not None:
            found = find_tokens(self._batch, self.pad_id, None)
            if found is not None and found.ids.shape == ids.shape and bool((found.ids.to(ids.device) == ids).all()):
                return found.real.to(ids.device)
        if self.pad_id is not None:
            return ~_at_either_end(ids == self.pad_id)
        own = _padding_of_embedding(self.base)
        if own is None:
            return None
        padding = _at_either_end(ids == own)
        # it may be a word here: padding is nowhere else, and some row has more than one of it
        nowhere_else = bool(((ids == own) == padding).all())
        return ~padding if nowhere_else and int(padding.sum(1).max()) > 1 else None

    # ------------------------------------------------------------------ the loss
    def largest_chosen(self, given: torch.Tensor, chosen: torch.Tensor) -> None:
        """Notes which classes the loop chose from the model's outputs."""
        if self._listening and len(self._choices) < MOST and self._is_output(given):
            self._choices.append(chosen)

    def _is_output(self, given: torch.Tensor) -> bool:
        """Whether it is an output of the model, perhaps detached, or was made from one by a softmax or a view."""
        return _memory_of(given) in self._memory or _form(given, self._outputs) != "other"

    def loss_called(self, function: str, loss: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Notes what the loss was given."""
        if self._listening:
            self._note_loss(function, loss, *_two(args, kwargs))

    def _note_loss(self, function: str, loss: torch.Tensor, given: torch.Tensor, labels: torch.Tensor) -> None:
        if loss.grad_fn is None or len(self._pending) >= MOST:
            return
        form = _form(given, self._outputs)
        rows = len(labels) if labels.dim() else 1
        own, reordered = self._compare(labels)
        chosen = labels.numel() > 0 and any(_memory_of(labels) == _memory_of(c) for c in self._choices)
        predicted = _predicted(given, labels)
        bounds = bounds_of(given) if function in REGRESSION and labels.numel() else None
        of_labels = None if bounds is None else (float(labels.min()), float(labels.max()))
        call = LossCall(
            *(self.iteration, function, form, rows, own, reordered, predicted),
            chosen_by_model=chosen,
            of_rows=_of_rows(given, labels),
            bounds=bounds,
            label_range=of_labels,
        )
        node = loss.grad_fn
        self._pending.append((node, call, Term(loss)))

    def _compare(self, labels: torch.Tensor) -> tuple[float | None, bool]:
        """Share of the rows that the model was called with last whose label is their own, and whether these are their labels in
        another order."""
        known = self.labels_of_probe if self._batch is None else _labels_of_rows([self._batch])
        own = [known.get(key) for key in self._rows]
        if len(own) != labels.numel() or len(own) < LEAST_ROWS or None in own:
            return None, False
        a, b = torch.tensor(own, dtype=torch.double, device="cpu"), labels.detach().reshape(-1).double().cpu()
        same = float((a == b).double().mean())
        reordered = same < 1 and bool((a.sort().values == b.sort().values).all()) and not _renumbered(a, b)
        return same, reordered

    def backward_called(self, loss: torch.Tensor) -> None:
        """Notes which losses and outputs are behind it."""
        self._note_penalty(loss)
        if self._listening:
            with contextlib.suppress(Exception):
                nodes = _behind(loss.grad_fn, self._outputs)
                self.backwards += 1
                self.reached += bool(nodes & self._outputs)
                reached = {node: (call, term) for node, call, term in self._pending if node in nodes}
                self.losses += [*reached.values()][: MOST - len(self.losses)]
                if reached and loss.dim() == 0 and len(self.linear) < MOST and is_linear(loss.grad_fn, reached):
                    terms = [term for _, term in reached.values()]
                    self.linear.append(_Linear(self.iteration, loss.detach().clone(), terms))
                if len(self.ctc) < MOST and (given := ctc_behind(loss)) is not None:
                    self.ctc.append(CtcCall(self.iteration, float(loss.detach()), *given))
            self._forget()
        if self._whole:
            self.iteration += 1

    def _note_penalty(self, loss: torch.Tensor) -> None:
        """At every call, until one is on something else than a penalty: which calls a loop makes may alternate."""
        if self._on and not is_probing() and self.weights_only is not False:
            self.weights_only = False  # also where the graph cannot be read
            with contextlib.suppress(Exception):
                self.weights_only = is_weight_penalty(loss.grad_fn, self.model)

    def gradient_taken(self) -> None:
        """What it is the gradient of is not looked at: so it is not certain that it is a penalty's."""
        if self._on and not is_probing():
            self.weights_only = False


@dataclasses.dataclass(frozen=True)
class _Linear:
    """A loss that ``backward()`` was called on, and the terms that all its gradient goes to."""

    iteration: int
    value: torch.Tensor
    terms: list[Term]

    def parts(self) -> LossParts | None:
        """What its terms are worth in it, and what is left; None: no gradient arrived, or a number is not finite."""
        shares = [term.share() for term in self.terms]
        if None in shares:
            return None
        terms = sum(share for share in shares if share is not None)
        rest = float(self.value.double()) - terms
        return LossParts(self.iteration, terms, rest) if math.isfinite(terms) and math.isfinite(rest) else None


# ------------------------------------------------------------------ reading tensors and graphs
def _predicted(given: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Share of rows whose label is the class of the largest input of the loss."""
    if given.dim() != 2 or labels.shape != given.shape[:1] or labels.is_floating_point() or not len(labels):
        return None
    return float((given.detach().argmax(1) == labels).float().mean())


def _of_rows(given: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether the classes are the rows of the batch: each is the label of one row, as of the similarities of two views."""
    if (
        given.dim() != 2
        or given.shape[0] != given.shape[1]
        or labels.shape != given.shape[:1]
        or len(labels) < LEAST_ROWS
    ):
        return False
    return bool((labels.sort().values == torch.arange(len(labels), device=labels.device)).all())


def _form(given: torch.Tensor, outputs: set[Any]) -> str:
    """How an input of a loss comes from the model's output: what was done to it last, but for views and casts."""
    node, steps = given.grad_fn, 0
    while node is not None and node not in outputs and steps < 16:
        form = _made_by(node)
        if form is not None:
            return form
        if not node.name().startswith(_PLAIN) or not node.next_functions:
            return "other"
        node, steps = node.next_functions[0][0], steps + 1
    if node is None:
        return "other"
    return _made_by(node) or "output"


def _made_by(node: Any) -> str | None:
    """The form that an autograd node gives its output; None: it is none of those that are looked for."""
    form = next((form for begin, form in _FORMS.items() if node.name().startswith(begin)), None)
    if form in ("softmax", "log_softmax"):
        columns = node._saved_result.dim()
        dim = (
            node._saved_dim if node._saved_dim < columns else node._saved_dim - 2**64 + columns
        )  # a negative one, as torch keeps it
        return f"{form}_over_batch" if columns > 1 and dim == 0 else form
    return form


def _behind(node: Any, outputs: set[Any]) -> set[Any]:
    """The autograd nodes behind a loss, the nearest first, as far as the model's outputs and not into the model."""
    if node is None:
        return set()
    seen, queue = {node}, deque([node])
    while queue and len(seen) < NODES:
        current = queue.popleft()
        if current in outputs:
            continue
        for following, _ in current.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return seen


def _renumbered(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one label always became the same other one: classes with other numbers."""
    pairs = {(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _two(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    given = args[0] if args else kwargs["input"]
    labels = args[1] if len(args) > 1 else kwargs["target"]
    return given, labels


def _row_keys(arguments: Any) -> list[bytes]:
    """What tells rows apart: the first two-dimensional tensor that a model was called with."""
    first = next((t for t in tensors_in(arguments) if t.dim() == 2), None)
    whole = None if first is None else of_bytes(first, bytes)
    if first is None or whole is None or not len(first):
        return []
    width = len(whole) // len(first)
    return [whole[i * width : (i + 1) * width] for i in range(len(first))]


def _labels_of_rows(batches: Sequence[Any]) -> dict[bytes, float | None]:
    """Row -> its label; None: the same row has several."""
    found: dict[bytes, float | None] = {}
    for batch in batches:
        inputs, labels = split(batch)
        keys = _row_keys(inputs)
        if isinstance(labels, torch.Tensor) and labels.dim() and labels.numel() == len(keys):
            for key, label in zip(keys, labels.detach().reshape(-1).double().tolist(), strict=True):
                found[key] = label if found.setdefault(key, label) == label else None
    return found


def _around(model: nn.Module, bases: Sequence[BaseModel]) -> list[nn.Module]:
    """The modules that the one base is in."""
    if len(bases) != 1:
        return []
    parts = bases[0].name.split(".")
    return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]


def _memory_of(tensor: torch.Tensor) -> int:
    """The address of its storage: views and detached copies of a tensor have the same."""
    return tensor.untyped_storage().data_ptr()


def _pad_id(intent: Intent, batches: Sequence[Any]) -> int | None:
    """As declared, else as the probe's batches show it."""
    if intent.pad_token_id is not None:
        return intent.pad_token_id
    found = (find_tokens(batch, None, None) for batch in batches)
    return next((tokens.pad_id for tokens in found if tokens is not None and tokens.pad_id is not None), None)


def _padding_of_embedding(base: BaseModel | None) -> int | None:
    """The id that the base itself takes for padding: the ``padding_idx`` of its embeddings; None: they have none, or several."""
    modules = () if base is None else base.module.modules()
    found = {m.padding_idx for m in modules if isinstance(m, nn.Embedding)} - {None}
    return found.pop() if len(found) == 1 else None


def _at_either_end(padding: torch.Tensor) -> torch.Tensor:
    """Those that no other element of the row precedes, or none follows."""
    run = padding.int()
    return run.cumprod(1).bool() | run.flip(1).cumprod(1).flip(1).bool()
