"""Any model's inputs, outputs and loss: which reading fits is found out once, before training, and written down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ..core.arguments import as_called, call
from ..core.formatting import describe_type
from ..core.observations import Reading
from .batches import device_of, fresh, in_words, own_copy, row_count, split, to_device, with_labels
from .configs import config_of
from .label_comparison import compares_only, reads_no_labels, relates_outputs, trains_logits
from .loss_state import LossState
from .model_call import ModelCall, unwrapped
from .model_outputs import check_loss, describe_output, logits_in, loss_in
from .row_hashes import vocabulary_of
from .task_readers.class_probabilities import are_class_probabilities
from .task_readers.interface import Example, FieldMetric, TaskReader
from .task_readers.registered import declared_form, form_of, loss_in_words, reader_of, recognised, standard_loss
from .tasks import IGNORED, earlier
from .undisturbed import is_probing

#: ``(model, batch) -> loss``, or ``(loss, logits)``.
LossFn = Callable[[Any, Any], Any]
#: ``(model, batch) -> logits``.
Forward = Callable[[Any, Any], Any]
#: So many float labels that are all 0 or 1 are not so by chance.
SURELY_CLASSES = 8
REGRESSION_LOSSES = (F.mse_loss, F.l1_loss, F.smooth_l1_loss)
#: What torch says where a loss computes gradients while they are off.
NEEDS_GRADIENTS = "require grad"
SELF_SUPERVISED = (
    "the loss reads no labels, and relates outputs of the model to each other, as self-supervised learning does: the batch's labels are no "
    "task, and there are no metrics and no standard loss"
)
ZERO_OR_ONE = (
    "the labels of one output are floats that are all 0 or 1, and are fitted by mean squared error; for two classes make them whole "
    "numbers, or pass a loss_fn that computes binary_cross_entropy_with_logits"
)


class Reader:
    """Reads batches for one model: calls it, finds the logits, computes the loss.

    All of it is decided on the first batch, with ``quiet`` around it.

    :param zero_or_one_are_classes: floats of one output that are all 0 or 1 are two classes, without a ``loss_fn`` too: where a loop of the
        user's trains, the standard loss decides nothing but what is measured.
    :raises ValueError: the batch has no labels and nothing else defines the loss; labels do not fit the logits; no way of calling the
        model works; the loss is not a scalar.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        *,
        loss_fn: LossFn | None = None,
        forward: Forward | None = None,
        embeddings: bool = False,
        argument: str = "batches",
        zero_or_one_are_classes: bool = False,
    ) -> None:
        self.model, self.loss_fn, self.user_forward, self.argument = model, loss_fn, forward, argument
        self.task: str | None = None
        self.classes: int | None = None
        #: Numbers a row in the logits: of a token-level head, outputs times tokens; 0 where there are no logits.
        self.outputs = 0
        #: The logits of a position are compared with the label so many positions later: 1 in a causal language model.
        self.shift = 0
        #: The outputs are embeddings: declared, or the loss only compares labels with each other.
        self.embeddings = False
        self._declared_embeddings = embeddings
        self._zero_or_one_are_classes = zero_or_one_are_classes
        self._differentiates = False  # the user's loss needs gradients to be computed
        #: The loss reads no labels, and relates outputs to each other: the labels of the batch are not its task.
        self.self_supervised = False
        #: The model computes the loss itself.
        self.uses_own_loss = False
        #: Remarks for the trace.
        self.notes: list[str] = []
        self._code_note = ""  # that labels are no class numbers
        #: Reads the task of the batches; None: it is not known.
        self.task_reader: TaskReader | None = reader_of(batch)
        #: The metrics of the task's field.
        self.field_metrics: Mapping[str, FieldMetric] = {}
        self._call = ModelCall(model, self.task_reader)
        self._inputs: Any = None  # of the first batch, while it is read
        self._first: tuple[torch.Tensor, bool] | None = None  # labels of the first batch; whether there is one a row
        self.reading = self._read(own_copy(to_device(batch, device_of(model))))

    # ------------------------------------------------------------------ the first batch
    def _read(self, batch: Any) -> Reading:
        inputs, labels = split(batch)
        self._inputs = inputs
        how, outputs, logits, output, given = "the user's loss_fn", "the loss only", None, None, None
        if self.user_forward is not None:
            given_to_it = (self.model, fresh(batch))
            logits = call(
                "forward", self.user_forward, given_to_it, "the model and the batch", "(model, batch) -> logits"
            )
            how, outputs = "the user's forward", "logits"
            if not isinstance(logits, torch.Tensor):
                raise TypeError(f"forward returned {describe_type(logits)}: expected the logits, a tensor")
            output = logits
        elif self.loss_fn is None:
            if labels is None:
                raise ValueError(
                    f"{self.argument}: {in_words(batch)} has no labels, and there is no loss_fn: expected a mapping with a key 'labels', "
                    "(inputs, labels), or loss_fn=(model, batch) -> loss"
                )
            output, how = self._first_call(inputs, labels)
            logits, outputs = logits_in(output), describe_output(output)
            if logits is None and loss_in(output) is None:
                raise ValueError(
                    f"the model returned {outputs}: no logits in it; pass forward=(model, batch) -> logits"
                )
        else:
            try:  # logits allow metrics, but the loss does not depend on them
                output, how = self._first_call(inputs, labels)
                logits, outputs = logits_in(output), describe_output(output)
            except Exception:  # noqa: BLE001
                self._call.style = None
                self.notes.clear()  # remarks on a call that is not made
        if self.loss_fn is not None:
            self._classify(logits, labels, own=False, strict=False)
            value, given = self._first_user_loss(batch)
            check_loss(value, "what loss_fn returned")
            if given is not None and logits is None:
                outputs = "(loss, logits) from the loss_fn"
                self._classify(given, labels, own=False, strict=False)
            outputs_read = logits if logits is not None else given
            self._align(value, outputs_read, labels)
            self._recognise_two_classes(value, outputs_read, labels)
            self._recognise_numbers(value, outputs_read, labels)
            self._recognise_shares(value, outputs_read, batch)
            self._count_outputs(outputs_read, inputs)
            if self._declared_embeddings:
                self._read_as_embeddings(batch, labels)
            elif outputs_read is not None and outputs_read.dim() > 1 and outputs_read.shape[-1] > 1:
                self._recognise_embeddings(batch, labels)
            loss = "the user's loss_fn"
        elif (own := loss_in(output)) is not None:
            self.uses_own_loss = True
            check_loss(own, "the model's loss")
            self._classify(logits, labels, own=True, strict=True)
            self._align(own, logits, labels)
            self._recognise_two_classes(own, logits, labels)
            self._recognise_shares(own, logits, batch)
            if self._declared_embeddings:
                self._read_as_embeddings(batch, labels)
            loss = "the model's own"
        elif self._declared_embeddings:
            raise ValueError(
                "intent.task='embedding': embeddings have no standard loss; expected loss_fn=(model, batch) -> loss, or a model that "
                "computes its own"
            )
        else:
            self._classify(logits, labels, own=False, strict=True)
            one_each = self.task == "regression" and logits is not None and logits.numel() == len(labels)
            if one_each and len(labels) >= SURELY_CLASSES and bool(((labels == 0) | (labels == 1)).all()):
                if self._zero_or_one_are_classes:  # most loops give such labels to binary_cross_entropy_with_logits
                    self.task, self.classes = "single_label", 2
                else:
                    self.notes.append(ZERO_OR_ONE)
            loss = self._standard_loss(logits, labels)
        if self.loss_fn is None:
            self._count_outputs(logits, inputs)
        self._recognise_task(logits if logits is not None else given, labels)
        self._inputs = None
        known = self.task_reader
        return Reading(
            inputs=how,
            outputs=outputs,
            loss=loss,
            task="embedding" if self.embeddings else self.task,
            classes=self.classes,
            reader=known.name if known is not None else None,
            labels=known.labels_are if known is not None else None,
        )

    def _recognise_task(self, logits: Any, labels: Any) -> None:
        """Which task reader is the one of this batch."""
        if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor):
            return
        example = self._as_read(labels, logits, "embedding" if self.embeddings else self.task)
        self.task_reader = recognised(example, self.task_reader)
        if self.task_reader is not None:
            self.field_metrics = self.task_reader.metrics(example)

    def _as_read(self, labels: torch.Tensor, logits: torch.Tensor, form: str | None) -> Example:
        config = config_of(unwrapped(self.model))
        return Example(
            inputs=self._inputs,
            labels=labels,
            logits=logits.detach(),
            form=form,
            shift=self.shift,
            vocabulary=vocabulary_of(self.model),
            encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
            names=_class_names(config),
        )

    def _count_outputs(self, logits: torch.Tensor | None, inputs: Any) -> None:
        if isinstance(logits, torch.Tensor):
            self.outputs = -(-logits.numel() // (row_count(inputs) or 1))

    def _first_call(self, inputs: Any, labels: Any) -> tuple[Any, str]:
        try:
            return self._call.first(inputs, labels)
        except ValueError as error:
            wrong_labels = self._error_of_labels(inputs, labels)
            # without the traceback of torch's own error, which names neither
            named = ValueError(f"{self.argument}: {error}")
            raise (wrong_labels or named) from (None if wrong_labels else error.__cause__)
        finally:
            if self._call.dropped:
                self.notes.append(
                    f"batch keys that the model does not take were left out: {', '.join(sorted(self._call.dropped))}"
                )

    def _error_of_labels(self, inputs: Any, labels: Any, *, of_user_loss: bool = False) -> Exception | None:
        """Where labels are the reason why a model's own loss, or the user's, raised: our error about them, which names them."""
        if not of_user_loss and (not self._call.passes_labels or self.loss_fn is not None):
            return None
        loss_fn, self.loss_fn = self.loss_fn, None
        try:
            logits = logits_in(self._call.first(inputs, None)[0] if of_user_loss else self._call(inputs, None))
        except Exception:  # noqa: BLE001 - the labels are not the reason
            return None
        else:
            try:
                self._classify(logits, labels, own=False, strict=True)
                self.check_labels((inputs, labels), 0, self.argument)
            except (ValueError, TypeError) as error:
                return error
            return None
        finally:
            self.loss_fn = loss_fn

    def _standard_loss(self, logits: torch.Tensor | None, labels: Any) -> str:
        if self.task is None:
            raise ValueError(
                f"{self.argument}: labels {in_words(labels)} and logits {in_words(logits)} fit no standard loss: pass loss_fn="
            )
        assert logits is not None  # a task is found from logits and labels
        return loss_in_words(self.task, logits, labels)

    # ------------------------------------------------------------------ labels and task
    def _align(self, value: Any, logits: Any, labels: Any) -> None:
        """Which position's logits meet which position's label: the standard loss that is nearer to the loss says it."""
        if self.task != "single_label" or not isinstance(logits, torch.Tensor) or logits.dim() < 3:
            return
        if not bool((labels != IGNORED).any()):  # no loss says anything
            return
        first_loss, losses = float(value), {0: float(standard_loss(self.task, logits.float(), labels))}
        if labels.dim() == 2 and labels.shape[1] > 1 and bool((labels[:, 1:] != IGNORED).any()):
            losses[1] = float(standard_loss(self.task, logits.float(), earlier(labels, 1)))
        near = min(losses, key=lambda k: abs(losses[k] - first_loss))
        if abs(first_loss - losses[near]) <= 0.01 * abs(losses[near]):
            self.shift = near
        elif self.loss_fn is None:
            self.task, self.classes = None, None
            self.notes.append(
                f"the model's own loss ({first_loss:.4g}) is not the cross-entropy of its logits and labels ({losses[0]:.4g}), "
                "nor with labels shifted by one position: there are no metrics and no standard loss"
            )

    def _recognise_two_classes(self, value: Any, logits: Any, labels: Any) -> None:
        """Float labels that are all 0 or 1, with one logit each, are two classes, unless the loss is one for regression."""
        if self.task != "regression" or not isinstance(logits, torch.Tensor) or logits.numel() != labels.numel():
            return
        z, y = logits.detach().float().reshape(-1), labels.float().reshape(-1)
        if not bool(((y == 0) | (y == 1)).all()):
            return
        regression = _equals_one(value, REGRESSION_LOSSES, z, y)
        if _equals_one(value, [F.binary_cross_entropy_with_logits], z, y) or (
            len(y) >= SURELY_CLASSES and not regression
        ):
            self.task, self.classes = "single_label", 2

    def _recognise_numbers(self, value: Any, logits: Any, labels: Any) -> None:
        """Whole numbers beyond 0 and 1, one for each output, are quantities where the user's loss is one for regression of them."""
        tensors = isinstance(logits, torch.Tensor) and isinstance(labels, torch.Tensor)
        if self.task is not None or not tensors or not labels.numel() or logits.numel() != labels.numel():
            return
        if _equals_one(value, REGRESSION_LOSSES, logits.detach().float().reshape(-1), labels.float().reshape(-1)):
            self.task = "regression"
            self.notes = [n for n in self.notes if n != self._code_note]

    def _recognise_shares(self, value: Any, logits: Any, batch: Any) -> None:
        """Numbers that are 1 in all in each row are quantities where the loss is one for regression of the outputs themselves.

        It is so for other labels, too: two losses that are alike once are so by chance in one batch of a hundred.
        """
        if self.task != "class_probabilities":
            return
        z, labels = logits.detach().float().reshape(-1), split(batch)[1]
        other = labels.roll(1, -1)
        if not _equals_one(value, REGRESSION_LOSSES, z, labels.float().reshape(-1)):
            return
        with torch.no_grad():
            of_other = self.loss(with_labels(batch, other))[0]
        if _equals_one(of_other, REGRESSION_LOSSES, z, other.float().reshape(-1)):
            self.task, self.classes = "regression", None

    def _recognise_embeddings(self, batch: Any, labels: Any) -> None:
        """Labels that the user's loss only compares with each other, as metric learning does, name no output: there are no logits. Nor are
        there where it reads no labels at all, and relates outputs to each other.

        In bfloat16 losses of the class priors are equal by rounding, however the classes are numbered: the gradient tells them apart.
        """
        if self.task != "single_label" or not self.classes:
            return
        if compares_only(lambda y: self._user_loss(own_copy(with_labels(batch, y)))[0], labels, self.classes):
            if trains_logits(self.model, lambda: self.loss(batch)[0], lambda z: self.reference(z, labels)):
                return
            self.task, self.classes, self.embeddings = None, None, True
            self.notes.append(
                "the loss only compares labels with each other, as in metric learning: the outputs are embeddings, and there are no "
                "metrics and no standard loss"
            )
        elif self._is_self_supervised(batch, labels, self.classes):
            self.task, self.classes, self.self_supervised = None, None, True
            self.notes.append(SELF_SUPERVISED)

    def _is_self_supervised(self, batch: Any, labels: torch.Tensor, classes: int) -> bool:
        if not reads_no_labels(lambda y: self._user_loss(own_copy(with_labels(batch, y)))[0], labels, classes):
            return False
        return relates_outputs(self.model, lambda: self.loss(batch)[0])

    def _read_as_embeddings(self, batch: Any, labels: Any) -> None:
        """Outputs that are declared to be embeddings are read as such, unless the loss treats them as the logits of classes."""
        if self.task in ("single_label", "multi_label") and trains_logits(
            self.model, lambda: self.loss(batch)[0], lambda z: self.reference(z, labels)
        ):
            return
        self.task, self.classes, self.embeddings = None, None, True
        self.notes.append("the outputs are declared to be embeddings: there are no metrics and no standard loss")

    def _classify(self, logits: Any, labels: Any, *, own: bool, strict: bool) -> None:
        """Find the task from logits and labels; with ``strict`` reject labels that do not fit."""
        if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor) or logits.dim() == 0:
            if strict and labels is not None and not own and not isinstance(labels, torch.Tensor):
                raise TypeError(f"{self.argument}: labels are {describe_type(labels)}: expected a tensor")
            return
        config = config_of(unwrapped(self.model))
        # not problem_type, which the forward pass may have set from the labels just now
        looks = form_of(logits, labels, regression=own and getattr(config, "num_labels", None) == 1)
        declared = declared_form(self._as_read(labels, logits, looks), self.task_reader)
        self.task = None if declared == "none" else declared or looks
        if self.task == "single_label":
            self.classes = 2 if logits.shape[-1] == 1 or logits.dim() == labels.dim() else logits.shape[-1]
            self._check_label_code(labels)
        elif self.task in ("multi_label", "class_probabilities"):
            self.classes = logits.shape[-1]
        elif self.task is None and declared is None and strict and not own:
            raise ValueError(
                f"{self.argument}: labels {in_words(labels)} do not fit logits {in_words(logits)}: expected whole-number classes of shape "
                f"{tuple(logits.shape[:-1])}, a multi-hot tensor or class probabilities of shape {tuple(logits.shape)}, or floats of shape "
                f"{tuple(logits.shape[:-1])} for a model with one output; for any others pass loss_fn=(model, batch) -> loss"
            )

    def _check_label_code(self, labels: torch.Tensor) -> None:
        """A user's loss_fn may take labels that are no class indices: grades with K - 1 thresholds, -1 for unlabelled rows."""
        counted = labels[labels != IGNORED]
        if self.loss_fn is None or self._declared_embeddings or not self.classes or not counted.numel():
            return
        low, high = (int(v) for v in torch.aminmax(counted))
        if low < 0 or high >= self.classes:
            self._code_note = (
                f"label {low if low < 0 else high} is none of the {self.classes} classes of the output; your loss_fn may use another label "
                "code: there are no metrics and no standard loss"
            )
            self.notes.append(self._code_note)
            self.task, self.classes = None, None

    def check_labels(self, batch: Any, number: int, argument: str = "batches") -> None:
        """``ValueError`` if labels of a batch are outside the head's classes, or differ in form from those of the first batch."""
        inputs, labels = split(batch)
        if self.loss_fn is not None or not isinstance(labels, torch.Tensor):
            return
        where = f"{argument}[{number}]"
        if labels.dim() and not len(labels):
            raise ValueError(
                f"{where} has no rows: the mean of no losses is NaN, and so is every weight after a step with it; leave the batch out"
            )
        self._compare_with_first(inputs, labels, where)
        if self.task == "single_label" and self.classes and labels.numel():
            as_floats = self.uses_own_loss or self._zero_or_one_are_classes
            if (labels.is_floating_point() and not as_floats) or labels.is_complex():
                raise ValueError(f"{where}: labels are {in_words(labels)}, those of the first batch whole numbers")
            if outside := self.labels_outside(labels):
                low, high = min(outside), max(outside)
                wrong = low if low < 0 else high
                raise ValueError(
                    f"{where}: label {wrong} of row {outside[wrong]} is outside the head's {self.classes} classes: "
                    f"expected 0 to {self.classes - 1}, or {IGNORED} for a row to leave out{self._more_classes(low, high)}"
                )
        elif self.task == "class_probabilities" and not self.uses_own_loss and not are_class_probabilities(labels):
            raise ValueError(
                f"{where}: labels {in_words(labels)} are no class probabilities, as those of the first batch are: expected rows of numbers "
                "from 0 to 1 that are 1 in all"
            )
        elif self.task == "regression" and not bool(torch.isfinite(labels.float()).all()):
            raise ValueError(f"{where}: a label is NaN or infinite")

    def labels_outside(self, labels: Any) -> dict[int, int]:
        """Whole-number labels that the head has no class for, each with the first row that has it."""
        if not isinstance(labels, torch.Tensor) or self.task != "single_label" or not self.classes:
            return {}
        labels = labels.reshape(-1) if labels.dim() == 0 else labels
        outside = (labels != IGNORED) & ((labels < 0) | (labels.long() >= self.classes))
        if not bool(outside.any()):
            return {}
        rows = outside.nonzero()[:, 0].tolist()
        return {int(label): row for label, row in reversed(list(zip(labels[outside].tolist(), rows, strict=True)))}

    def _more_classes(self, low: int, high: int) -> str:
        """What to change in the model so that it has a class for the highest label; empty where the labels are at fault."""
        if low < 0:
            return ""
        config = config_of(unwrapped(self.model))
        how = f"num_labels={high + 1}" if hasattr(config, "num_labels") else f"{high + 1} outputs"
        return f". Make the model with {how}, if there are classes 0 to {high}"

    def _compare_with_first(self, inputs: Any, labels: torch.Tensor, where: str) -> None:
        """Compare the form of labels with that of the first batch."""
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
        same_form = labels.dim() == first.dim() and (
            self.task not in ("multi_label", "class_probabilities") or labels.shape[1:] == first.shape[1:]
        )
        if not same_form and not self.uses_own_loss:
            raise ValueError(
                f"{where}: labels {in_words(labels)}, those of the first batch {in_words(first)}: expected the same form"
            )

    # ------------------------------------------------------------------ every batch after that
    def loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Loss and logits (None where they would need a second forward pass); the batch itself is not changed."""
        return self.training_loss(own_copy(batch))

    def training_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same with the batch itself, which a model or a loss function may change in place, as in training."""
        if self.loss_fn is not None:
            return self._user_loss(batch)
        inputs, labels = split(batch)
        if self.user_forward is not None:
            logits = self.user_forward(self.model, fresh(batch))
            return self.reference(logits, labels), logits
        output = self._call(inputs, labels)
        logits = logits_in(output)
        if self.uses_own_loss:
            own = loss_in(output)
            assert own is not None
            return own, logits
        assert logits is not None
        return self.reference(logits, labels), logits

    def _first_user_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The user's loss of the first batch; the error for a ``loss_fn`` of logits and labels says what it is called with."""
        try:
            return self._user_loss(batch)
        except IndexError as error:
            wrong_labels = self._error_of_labels(*split(batch), of_user_loss=True)
            raise (wrong_labels or error) from (None if wrong_labels else error.__cause__)
        except (TypeError, AttributeError) as error:
            name = getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__)
            called = "it" if name == "<lambda>" else name
            way = "model(**inputs)" if isinstance(split(batch)[0], Mapping) else "model(inputs)"
            said = as_called("loss_fn", self.loss_fn, error, "the model and the batch", "(model, batch) -> loss")
            raise ValueError(
                f"{said}. For a function of logits and labels write one around it that ends in return {called}({way}, labels)"
            ) from error

    def _user_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The user's loss; where gradients are off, and it computes some itself (a gradient penalty, MAML), they are on inside it."""
        if torch.is_grad_enabled():
            return self._called_loss(batch)
        if not self._differentiates:
            try:
                return self._called_loss(batch)
            except RuntimeError as error:
                if NEEDS_GRADIENTS not in str(error):
                    raise
        with torch.enable_grad():
            value, logits = self._called_loss(batch)
        self._differentiates = True
        return _detached(value), _detached(logits)

    def _called_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert self.loss_fn is not None
        # a probe's call must not change what the loss function keeps for the next step
        with LossState(self.loss_fn, self.model).kept() if is_probing() else contextlib.nullcontext():
            value = self.loss_fn(self.model, fresh(batch))
        if isinstance(value, tuple) and len(value) == 2:
            return value
        return value, None

    def logits(self, batch: Any) -> torch.Tensor | None:
        """The logits of a batch, which is not changed; None where there are none to read."""
        batch = own_copy(batch)
        if self.user_forward is not None:
            found = self.user_forward(self.model, fresh(batch))
            return found if isinstance(found, torch.Tensor) else None
        if self._call.style:
            inputs, labels = split(batch)
            return logits_in(self._call(inputs, labels if self.uses_own_loss else None))
        return self._user_loss(batch)[1] if self.loss_fn is not None else None

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels of a batch, each at the position of the logits that it is compared with."""
        return earlier(labels, self.shift) if self.shift and labels.dim() > 1 else labels

    def reference(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The standard loss of the task, from logits and the labels of a batch: cross-entropy, binary cross-entropy or mean squared
        error."""
        return standard_loss(self.task, logits, self.targets(labels))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _equals_one(value: Any, losses: Iterable[Callable[..., torch.Tensor]], z: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether a value is the mean or the sum of one of these losses, to 1 %."""
    found = float(value)
    known = [float(loss(z, y, reduction=reduction)) for loss in losses for reduction in ("mean", "sum")]
    return any(abs(found - v) <= 0.01 * abs(v) for v in known)


def _class_names(config: Any) -> dict[int, str]:
    """Names of the classes in a model's config, by their numbers; empty where it has none, or others.

    >>> from types import SimpleNamespace
    >>> _class_names(SimpleNamespace(id2label={"0": "O", "1": "B-PER"})), _class_names(SimpleNamespace(id2label={"a": 1}))
    ({0: 'O', 1: 'B-PER'}, {})
    """
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping):
        return {}
    try:
        return {int(number): str(name) for number, name in names.items()}
    except (TypeError, ValueError):
        return {}
