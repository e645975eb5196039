"""From a `Subject` to what `finetune` takes: whatever is left to a function is made, under the seed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..core.formatting import describe_type
from ..instruments.snapshots import preserved_globals, seed_everything
from ..instruments.tiny_architectures import keyword_batches
from .subject import Subject

_EXPECTED = "expected a model, (model, batches) or a Subject"


def made(subject: Subject, seed: int) -> Subject:
    """The same subject with batches, and a model that ``finetune`` takes.

    :param seed: what functions of the subject's are called under. Under another seed the model is made anew, the batches stay.
    :raises TypeError, ValueError: a function gave something else, or no batches can be made for the model.

    >>> from .architectures import tiny
    >>> subject = made(Subject("tiny", lambda: tiny("distilbert")), seed=0)
    >>> len(subject.batches), type(subject.model()).__name__
    (6, 'DistilBertForSequenceClassification')
    """
    with preserved_globals():
        return _made(subject, seed)


def _made(subject: Subject, seed: int) -> Subject:
    def call(function: Callable[[], Any]) -> Any:
        seed_everything(seed)  # each begins anew: what one draws must not depend on another
        return function()

    arguments = dict(subject.arguments)
    if _is_function(arguments.get("eval_batches")):
        arguments["eval_batches"] = call(arguments["eval_batches"])
    if subject.batches is not None:
        batches = call(subject.batches) if _is_function(subject.batches) else subject.batches
        return _with(subject, subject.model, batches, arguments)
    if isinstance(subject.model, nn.Module):
        return _with(subject, subject.model, _for_model(subject.name, subject.model), arguments)
    given = call(subject.model)
    if isinstance(given, (Subject, Mapping)):
        inner = given if isinstance(given, Subject) else Subject(**{"name": subject.name, **given})
        if inner.model is subject.model:
            raise ValueError(f"{subject.name}: its function gives itself")
        whole = _made(inner, seed)
        reasons = {**whole.expected_failures, **subject.expected_failures}
        return _with(subject, whole.model, whole.batches, {**whole.arguments, **arguments}, reasons)
    model, batches = _pair(subject.name, given)
    again = _Again(model, subject.name, subject.model)
    if batches is None:
        batches = _for_model(subject.name, model)
    return _with(subject, again, batches, arguments)


def _is_function(thing: Any) -> bool:
    """Not what is iterated over, and can be called besides."""
    return callable(thing) and not isinstance(thing, Iterable) and not hasattr(thing, "__getitem__")


def _with(
    subject: Subject, model: Any, batches: Any, arguments: Mapping[str, Any], reasons: Mapping[str, str] | None = None
) -> Subject:
    if reasons is None:
        reasons = subject.expected_failures
    return Subject(subject.name, model, batches, expected_failures=reasons, **arguments)


class _Again:
    """The model that was made along with the batches, at the first call under the same seed; else another.

    Either way it is as if the function had been called now: what is drawn next, dropout's masks, does not depend on which it was.
    """

    def __init__(self, first: nn.Module, name: str, make: Callable[[], Any]) -> None:
        self._first: nn.Module | None = first
        self._name = name
        self._make = make
        self._seed = torch.initial_seed()
        numpy = sys.modules.get("numpy")
        self._states = random.getstate(), numpy.random.get_state() if numpy else None, torch.get_rng_state()

    def __call__(self) -> nn.Module:
        first, self._first = self._first, None
        if first is None or torch.initial_seed() != self._seed:
            return _pair(self._name, self._make())[0]
        python, numpy_state, state = self._states
        random.setstate(python)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)
        torch.set_rng_state(state)
        return first


def _pair(name: str, given: Any) -> tuple[nn.Module, Any]:
    model, batches = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(model, nn.Module):
        what = describe_type(given) if model is given else f"a pair that begins with {describe_type(model)}"
        raise TypeError(f"{name}: its function gave {what}: {_EXPECTED}")
    return model, batches


def _for_model(name: str, model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    try:
        if config is None:
            raise ValueError(f"{type(model).__name__} has no config to make batches from")
        return keyword_batches(config)
    except ValueError as error:
        raise ValueError(f"{name}: no batches were given, and none can be made: {error}; {_EXPECTED}") from None
