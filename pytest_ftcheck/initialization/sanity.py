"""`check_init` and `assert_init_sane`: does the head start sanely, before any training?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..checks.assertions import enforce
from ..checks.head.init_sane import judge
from ..core import arguments
from ..core.formatting import as_given
from ..core.init_scheme import InitScheme
from ..core.verdict import Verdict
from ..instruments.batches import check_readable, split
from ..instruments.given import module as checked_module
from ..instruments.given import switchable
from ..instruments.global_state import GlobalState
from ..instruments.inference import InferenceMode
from ..instruments.snapshots import BatchFlags, LoaderSnapshot, ModelSnapshot
from ..instruments.undisturbed import undisturbed
from ..instruments.undo import Undo
from .features import Features
from .measure_start import measure

#: Batches read, at most; of these `measure_start.ROWS` rows.
BATCHES = 8


def check_init(
    model: nn.Module,
    batches: Iterable[Any] | Features,
    expected: InitScheme | None = None,
    *,
    head: str | Sequence[str] | None = None,
    pretrained: Mapping[str, Any] | None = None,
) -> Verdict:
    """The head starts sanely: as declared, if declared; with distinct, live units, and a healthy signal, gradient and first loss.

    Fails for: weights never written; a base that was initialised along with the head; tensors that do not fit the declared scheme
    (goodness of fit, one healthy head in a million fails; biases exactly); identical hidden units; zeros before the last layer; more
    dead ReLU units than symmetric weights can give; logits certain of a class before any training, a signal that grows a hundredfold;
    gradients below ten times Adam's eps; a first loss farther from the class-prior entropy, on either side, than the logits' spread
    allows. A last layer of zeros is healthy.

    :param model: a head, or a whole model of which only the head is judged.
    :param batches: as for `finetune`; of a bare head ``(features [rows, d], labels [rows])``, or `Features`. Up to 64 rows are measured.
    :param expected: the declared scheme of weights and biases; None: not judged, but recognised if known.
    :param head: prefix or prefixes of the head's parameter names, where they are not found.
    :param pretrained: name -> tensor of the base as it was loaded, compared bit for bit.
    :raises ValueError, TypeError: no linear layer, no batch, labels of one class only, features that do not fit the head.

    Nothing is trained, and model, random states and batches are left as they were.

    >>> from torch import nn
    >>> from pytest_ftcheck import InitScheme, check_init, toy_batches, tiny_distilbert
    >>> model = InitScheme.normal(std=0.02).apply(tiny_distilbert(seed=0))
    >>> check_init(model, toy_batches(), InitScheme.normal(std=0.02)).status
    'pass'
    >>> check_init(model, toy_batches(), InitScheme.normal(std=0.05)).fault
    'head_init_initializer_range'
    """
    switchable(checked_module("model", model))
    if expected is not None and not isinstance(expected, InitScheme):
        raise TypeError(f"expected={as_given(expected)}: expected an InitScheme, or None")
    if pretrained is not None:
        pretrained = arguments.mapping("pretrained", pretrained, "a mapping parameter name -> tensor")
    if isinstance(batches, Features):
        batches = [(batches.x, batches.y)]
    if isinstance(batches, (str, bytes, Mapping, torch.Tensor)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is a {type(batches).__name__}: expected batches as for finetune(), Features, or [(features, labels)]"
        )
    source = batches
    undo = Undo()

    def check() -> Verdict:
        undo.keep(GlobalState(), LoaderSnapshot(source), ModelSnapshot(model, values=False))
        with InferenceMode(False), torch.enable_grad():
            rows = list(islice(iter(source), BATCHES))
            check_readable("batches", rows)
            undo.keep(BatchFlags(rows))
            _check(model, rows)
            with undisturbed(model, weights=True):
                return judge(measure(model, rows, expected, head, pretrained))

    try:
        return undo.after(check)
    except (ValueError, TypeError) as error:
        if re.match(r"only\b", str(error)):  # `only` there is `head` here
            raise type(error)(f"head{str(error).removeprefix('only')}") from None
        raise


def _check(model: nn.Module, rows: Sequence[Any]) -> None:
    if not rows:
        raise ValueError(
            "batches: there is none: expected batches as for finetune(), or (features, labels) for a bare head"
        )
    inputs, _ = split(rows[0])
    if isinstance(model, (nn.Linear, nn.Sequential)) and isinstance(inputs, torch.Tensor):
        first = next((m for m in model.modules() if not list(m.children())), model)
        if isinstance(first, nn.Linear) and not inputs.is_floating_point():
            raise ValueError(
                f"batches: the features are {inputs.dtype}: expected floating-point features [rows, {first.in_features}]"
            )
    labels = [y for _, y in map(split, rows) if isinstance(y, torch.Tensor)]
    if labels and not any(y.is_floating_point() for y in labels):
        found = torch.cat([y.reshape(-1).cpu() for y in labels])
        given = len(found)
        found = found[found != -100]
        if given and not len(found):
            raise ValueError(
                "batches: every label read is -100, which leaves its row out: expected some that are classes"
            )
        if len(found) > 1 and bool((found == found[0]).all()):
            raise ValueError(
                f"batches: all {len(found)} labels read are {int(found[0])}: expected more than one class (shuffle sorted data)"
            )


def assert_init_sane(
    model: nn.Module,
    batches: Iterable[Any] | Features,
    expected: InitScheme | None = None,
    *,
    head: str | Sequence[str] | None = None,
    pretrained: Mapping[str, Any] | None = None,
) -> Verdict:
    """Raise `CheckFailed` unless the head starts sanely; arguments as `check_init`.

    >>> from pytest_ftcheck import assert_init_sane, tiny_distilbert, toy_batches
    >>> assert_init_sane(tiny_distilbert(seed=0), toy_batches()).ok
    True
    """
    __tracebackhide__ = True
    return enforce(check_init(model, batches, expected, head=head, pretrained=pretrained))
