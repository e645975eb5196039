"""Any model's inputs, outputs and loss: which reading fits is found out once, before training, and written down."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ..core.formatting import describe_type
from ..core.observations import Reading
from .batches import LABELS, device_of, in_words, own_copy, row_count, split, to_device
from .tasks import IGNORED, reference_loss, task_of

#: ``(model, batch) -> loss``, or ``(loss, logits)``.
LossFn = Callable[[Any, Any], Any]
#: ``(model, batch) -> logits``.
Forward = Callable[[Any, Any], Any]


class Reader:
    """Reads batches for one model: calls it, finds the logits, computes the loss.

    Which call works is tried once, on the first batch, with ``quiet`` around it.

    :raises ValueError: the batch has no labels and nothing else says what the loss is; labels do not fit the logits; no way of
        calling the model works; the loss is not a scalar.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        *,
        loss_fn: LossFn | None = None,
        forward: Forward | None = None,
        argument: str = "batches",
    ) -> None:
        self.model, self.loss_fn, self.user_forward = model, loss_fn, forward
        self._forward_of = unwrapped(model).forward
        self._parameters = _signature(self._forward_of)
        self._passes_labels = False
        self._label_key = "labels"
        self._style = ""
        self.notes: list[str] = []
        self._dropped: set[str] = set()
        self.task: str | None = None
        self.classes: int | None = None
        self._own_loss = False
        self.argument = argument
        self._first: tuple[torch.Tensor, bool] | None = None  # labels of the first batch; one a row of the inputs?
        self.reading = self._read(own_copy(to_device(batch, device_of(model))))

    # ------------------------------------------------------------------ the first look
    def _read(self, batch: Any) -> Reading:
        inputs, labels = split(batch)
        how, outputs, logits = "the user's loss_fn", "the loss only", None
        if self.user_forward is not None:
            logits, how, outputs = self.user_forward(self.model, batch), "the user's forward", "logits"
            if not isinstance(logits, torch.Tensor):
                raise TypeError(f"forward returned {describe_type(logits)}: expected the logits, a tensor")
            out = logits
        elif self.loss_fn is None:
            if labels is None:
                raise ValueError(
                    f"{self.argument}: {in_words(batch)} has no labels, and there is no loss_fn: expected a mapping with a key 'labels', "
                    "(inputs, labels), or loss_fn=(model, batch) -> loss"
                )
            out, how = self._first_call(inputs, labels)
            logits, outputs = self._logits(out), _describe(out)
            if logits is None and _own_loss(out) is None:
                raise ValueError(
                    f"the model returned {outputs}: no logits in it; pass forward=(model, batch) -> logits"
                )
        else:
            out = None
            try:  # logits are welcome for the metrics, but the loss does not depend on them
                out, how = self._first_call(inputs, labels)
                logits, outputs = self._logits(out), _describe(out)
            except Exception:  # noqa: BLE001
                self._style = ""
        if self.loss_fn is not None:
            self._classify(logits, labels, own=False, strict=False)
            value, given = self._first_loss(batch)
            _scalar(value, "loss_fn")
            if given is not None and logits is None:
                outputs = "(loss, logits) from the loss_fn"
                self._classify(given, labels, own=False, strict=False)
            self._two_classes(value, logits if logits is not None else given, labels)
            loss = "the user's loss_fn"
        elif _own_loss(out) is not None:
            self._own_loss = True
            _scalar(_own_loss(out), "the model's loss")
            self._classify(logits, labels, own=True, strict=True)
            self._doubt(_own_loss(out), logits, labels)
            self._two_classes(_own_loss(out), logits, labels)
            loss = "the model's own"
        else:
            self._classify(logits, labels, own=False, strict=True)
            loss = {
                "single_label": "cross-entropy of the logits"
                if (self.classes or 0) != 2 or logits is None or logits.shape[-1] > 1
                else "binary cross-entropy of one logit",
                "multi_label": "binary cross-entropy of the logits, one a tag",
                "regression": "mean squared error",
            }.get(self.task or "", "unknown")
            if self.task is None:
                raise ValueError(
                    f"{self.argument}: cannot tell a loss from labels {in_words(labels)} and logits {in_words(logits)}: pass loss_fn="
                )
        return Reading(how, outputs, loss, self.task, self.classes)

    def _first_call(self, inputs: Any, labels: Any) -> tuple[Any, str]:
        """Try the ways of calling the model that fit the batch, most literal first."""
        accepts = self._parameters
        names, keywords = [n for n, k in accepts.items() if k != "rest"], "rest" in accepts.values()
        self._label_key = next((k for k in LABELS if k in names), "")
        if isinstance(inputs, Mapping):
            self._style = "keywords"
            if not keywords:
                self._dropped = {k for k in inputs if k not in names}
                if self._dropped:
                    self.notes.append(
                        f"batch keys the model does not take were left out: {', '.join(sorted(self._dropped))}"
                    )
            used = [k for k in inputs if k not in self._dropped]
            self._passes_labels = bool(self._label_key) and labels is not None
            try:
                out = self._call(inputs, labels)
            except Exception as error:
                self._blame_labels(inputs, labels)
                raise ValueError(
                    f"the model could not be called with the keywords {', '.join(used)} "
                    f"({type(error).__name__}: {str(error).strip()[:200]}); it takes {', '.join(names) or 'anything'}"
                ) from error
            return out, "keywords " + ", ".join(used) + (" and labels" if self._passes_labels else "")
        ways = ["one"] if not isinstance(inputs, (tuple, list)) else ["one", "spread"]
        what = "one tensor" if isinstance(inputs, torch.Tensor) else f"one {type(inputs).__name__}"
        errors = []
        for way in ways:
            self._style = way
            try:
                out = self._call(inputs, labels)
            except Exception as error:  # noqa: BLE001 - whatever the user's model raises, the next way is tried
                errors.append(
                    f"as {what if way == 'one' else 'positional arguments'}: {type(error).__name__}: {str(error).strip()[:160]}"
                )
                continue
            if way == "one":
                return out, f"{what} of {len(inputs)}" if isinstance(inputs, (tuple, list)) else what
            return out, f"{len(inputs)} positional arguments"
        raise ValueError(f"the model could not be called with {in_words(inputs)}: " + "; ".join(errors))

    def _blame_labels(self, inputs: Any, labels: Any) -> None:
        """The error about labels that a model with a loss of its own would word in its own way."""
        if not self._passes_labels or self.loss_fn is not None:
            return
        try:
            logits = self._logits(self._call(inputs, None))
        except Exception:  # noqa: BLE001 - it is not the labels
            return
        self._classify(logits, labels, own=False, strict=True)
        self.check_labels((inputs, labels), 0, self.argument)

    def _call(self, inputs: Any, labels: Any) -> Any:
        if self._style == "keywords":
            chosen = {k: v for k, v in inputs.items() if k not in self._dropped}
            if self._passes_labels and labels is not None:
                chosen[self._label_key] = labels
            return self.model(**chosen)
        return self.model(*inputs) if self._style == "spread" else self.model(inputs)

    def _logits(self, out: Any) -> torch.Tensor | None:
        if isinstance(out, torch.Tensor):
            return out if out.dim() else None
        if isinstance(out, Mapping):
            for key in ("logits", "prediction_logits"):
                if isinstance(out.get(key), torch.Tensor):
                    found: torch.Tensor = out[key]
                    return found
            return None
        if isinstance(out, (tuple, list)) and out:
            first = out[0]
            if isinstance(first, torch.Tensor) and first.dim() == 0 and len(out) > 1:
                first = out[1]
            return first if isinstance(first, torch.Tensor) and first.dim() else None
        logits = getattr(out, "logits", None)
        return logits if isinstance(logits, torch.Tensor) else None

    # ------------------------------------------------------------------ labels and task
    def _doubt(self, own: Any, logits: Any, labels: Any) -> None:
        """One label a token may be meant shifted by one (causal language models): then ours would be another loss."""
        if self.task != "single_label" or not isinstance(logits, torch.Tensor) or logits.dim() < 3:
            return
        textbook = float(self.reference(logits.float(), labels))
        if abs(float(own) - textbook) > 0.01 * abs(textbook):
            self.task, self.classes = None, None
            self.notes.append(
                f"the model's own loss ({float(own):.4g}) is not the cross-entropy of logits and labels as they stand ({textbook:.4g}), "
                "as with labels that are shifted by one: no metrics and no textbook loss beside it"
            )

    def _two_classes(self, value: Any, logits: Any, labels: Any) -> None:
        """Float labels that are all 0 or 1, one logit each: two classes, unless the loss is one of numbers."""
        if self.task != "regression" or not isinstance(logits, torch.Tensor) or logits.numel() != labels.numel():
            return
        z, y = logits.detach().float().reshape(-1), labels.float().reshape(-1)
        if not bool(((y == 0) | (y == 1)).all()):
            return
        found = float(value)

        def is_(loss: Callable[..., torch.Tensor]) -> bool:
            return any(abs(found - v) <= 0.01 * abs(v) for v in (float(loss(z, y)), float(loss(z, y, reduction="sum"))))

        numbers = is_(F.mse_loss) or is_(F.l1_loss) or is_(F.smooth_l1_loss)
        # few numbers can all be 0 or 1 by chance
        if is_(F.binary_cross_entropy_with_logits) or (len(y) >= 8 and not numbers):
            self.task, self.classes = "single_label", 2

    def _classify(self, logits: Any, labels: Any, *, own: bool, strict: bool) -> None:
        """Find the task from logits and labels; with ``strict`` reject labels that do not fit."""
        if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor) or logits.dim() == 0:
            if strict and labels is not None and not own and not isinstance(labels, torch.Tensor):
                raise TypeError(f"{self.argument}: labels are {describe_type(labels)}: expected a tensor")
            return
        config = getattr(unwrapped(self.model), "config", None)
        # problem_type may have been written by the forward pass just now: it says the same as the labels do
        self.task = task_of(logits, labels, regression=own and getattr(config, "num_labels", None) == 1)
        if self.task == "single_label":
            self.classes = 2 if logits.shape[-1] == 1 or logits.dim() == labels.dim() else logits.shape[-1]
            self._own_code(labels)
        elif self.task == "multi_label":
            self.classes = logits.shape[-1]
        elif self.task is None and strict and not own:
            raise ValueError(
                f"{self.argument}: labels {in_words(labels)} do not fit logits {in_words(logits)}: expected whole-number classes of shape "
                f"{tuple(logits.shape[:-1])}, a multi-hot tensor of shape {tuple(logits.shape)}, or floats of shape "
                f"{tuple(logits.shape[:-1])} for a model with one output"
            )

    def _own_code(self, labels: torch.Tensor) -> None:
        """A loss function of the user's own may take labels that are no columns: grades behind K - 1 thresholds, -1 for none."""
        counted = labels[labels != IGNORED]
        if self.loss_fn is None or not self.classes or not counted.numel():
            return
        low, high = (int(v) for v in torch.aminmax(counted))
        if low < 0 or high >= self.classes:
            self.notes.append(
                f"label {low if low < 0 else high} is none of the {self.classes} classes of the output: your loss may read it in a way of "
                "its own; no metrics and no textbook loss beside it"
            )
            self.task, self.classes = None, None

    def check_labels(self, batch: Any, number: int, argument: str = "batches") -> None:
        """``ValueError`` if the labels of a batch lie outside the head's classes, or are unlike those of the first batch."""
        inputs, labels = split(batch)
        if self.loss_fn is not None or not isinstance(labels, torch.Tensor):
            return
        where = f"{argument}[{number}]"
        self._compare(inputs, labels, where)
        if self.task == "single_label" and self.classes and labels.numel():
            if (labels.is_floating_point() and not self._own_loss) or labels.is_complex():
                raise ValueError(f"{where}: labels are {in_words(labels)}, those of the first batch whole numbers")
            counted = labels[labels != IGNORED].long()
            low, high = (int(v) for v in torch.aminmax(counted)) if counted.numel() else (0, 0)
            if low < 0 or high >= self.classes:
                raise ValueError(
                    f"{where}: label {low if low < 0 else high} is outside the head's {self.classes} classes: "
                    f"expected 0 to {self.classes - 1}, or {IGNORED} for a row to leave out"
                )
        elif self.task == "regression" and not bool(torch.isfinite(labels.float()).all()):
            raise ValueError(f"{where}: a label is NaN or infinite")

    def _compare(self, inputs: Any, labels: torch.Tensor, where: str) -> None:
        """Labels beside those of the first batch looked at."""
        rows = row_count(inputs)
        aligned = labels.dim() > 0 and rows == len(labels)
        if self._first is None:
            self._first = labels, aligned
            return
        first, was_aligned = self._first
        if was_aligned and not aligned:
            raise ValueError(
                f"{where}: labels {in_words(labels)} for {rows} rows: expected one a row, as in the first batch"
            )
        like = labels.dim() == first.dim() and (self.task != "multi_label" or labels.shape[1:] == first.shape[1:])
        if not like and not self._own_loss:
            raise ValueError(
                f"{where}: labels {in_words(labels)}, those of the first batch {in_words(first)}: expected the same but for the rows"
            )

    # ------------------------------------------------------------------ every look after that
    def loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Loss and logits (None where they are not to be had without a second forward pass); the batch is as before afterwards."""
        return self.training_loss(own_copy(batch))

    def training_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same of the batch itself, which a model or a loss function may change in place: as in the training."""
        if self.loss_fn is not None:
            return self._user_loss(batch)
        inputs, labels = split(batch)
        if self.user_forward is not None:
            logits = self.user_forward(self.model, batch)
            return self.reference(logits, labels), logits
        out = self._call(inputs, labels)
        found = self._logits(out)
        if self._own_loss:
            own = _own_loss(out)
            assert own is not None
            return own, found
        assert found is not None
        return self.reference(found, labels), found

    def _first_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of the first batch; a ``loss_fn`` that takes logits and labels, as torch's do, is told what it is given."""
        try:
            return self._user_loss(batch)
        except (TypeError, AttributeError) as error:
            name = getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__)
            taken = "it" if name == "<lambda>" else name
            call = "model(**inputs)" if isinstance(split(batch)[0], Mapping) else "model(inputs)"
            raise ValueError(
                f"loss_fn={name} raised {type(error).__name__}: {str(error).strip()[:200]}. It is called with the model and the batch, "
                "(model, batch) -> loss. For a function of logits and labels write one around it that ends in "
                f"return {taken}({call}, labels)"
            ) from error

    def _user_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert self.loss_fn is not None
        value = self.loss_fn(self.model, batch)
        if isinstance(value, tuple) and len(value) == 2:
            return value
        return value, None

    def logits(self, batch: Any) -> torch.Tensor | None:
        """Logits for a batch, which is as before afterwards; None where no reading gives any."""
        batch = own_copy(batch)
        if self.user_forward is not None:
            found = self.user_forward(self.model, batch)
            return found if isinstance(found, torch.Tensor) else None
        if self._style:
            inputs, _ = split(batch)
            return self._logits(self._call(inputs, None) if not self._own_loss else self._call(*split(batch)))
        return self._user_loss(batch)[1] if self.loss_fn is not None else None

    def reference(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The standard loss of the task: cross-entropy, binary cross-entropy or mean squared error."""
        return reference_loss(self.task, logits, labels)


def _own_loss(out: Any) -> torch.Tensor | None:
    if isinstance(out, torch.Tensor):
        return out if out.dim() == 0 else None
    if isinstance(out, Mapping):
        loss = out.get("loss")
    elif isinstance(out, (tuple, list)):
        loss = out[0] if len(out) and isinstance(out[0], torch.Tensor) and out[0].dim() == 0 else None
    else:
        loss = getattr(out, "loss", None)
    return loss if isinstance(loss, torch.Tensor) else None


def _scalar(value: Any, source: str) -> None:
    if isinstance(value, (int, float)):
        return
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{source} is {describe_type(value)}: expected a scalar tensor, or (loss, logits)")
    if value.is_complex():
        raise ValueError(f"{source} is complex: expected a real number")
    if value.numel() != 1:
        raise ValueError(f"{source} has shape {tuple(value.shape)}: expected one number; take its mean over the rows")


def _describe(out: Any) -> str:
    if isinstance(out, torch.Tensor):
        return "bare logits" if out.dim() else "a bare loss"
    if isinstance(out, Mapping):
        name = "a dict" if type(out) is dict else type(out).__name__
        keys = [k for k in ("loss", "logits") if out.get(k) is not None]
        return f"{name} with {' and '.join('.' + k for k in keys) or 'keys ' + ', '.join(list(out)[:4])}"
    if isinstance(out, (tuple, list)):
        return f"a tuple of {len(out)}"
    return type(out).__name__


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel or torch.compile."""
    for name in ("module", "_orig_mod"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and type(model).__name__ in (
            "DistributedDataParallel",
            "DataParallel",
            "OptimizedModule",
        ):
            return unwrapped(inner)
    return model


def _signature(forward: Any) -> dict[str, str]:
    """Parameter name -> ``required``, ``optional`` or ``rest`` (**kwargs)."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # pragma: no cover - scripted modules
        return {"kwargs": "rest"}
    kinds = {}
    for p in parameters:
        if p.kind is p.VAR_KEYWORD:
            kinds[p.name] = "rest"
        elif p.kind is not p.VAR_POSITIONAL:
            kinds[p.name] = "required" if p.default is p.empty else "optional"
    return kinds
