"""Builds what `finetune` takes from a `Subject`: calls its functions under the seed, and makes missing batches."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..core.formatting import describe_type
from ..instruments.global_state import preserved_globals, seed_everything
from ..instruments.tiny_tasks import batches_for
from .subject import Subject

_EXPECTED = "expected a model, (model, batches) or a Subject"


def build(subject: Subject, seed: int) -> Subject:
    """The same subject with batches, and a model that ``finetune`` takes.

    :param seed: the seed under which the subject's functions are called. Under another seed the model is made again, the batches are not.
    :raises TypeError, ValueError: a function returned something else, or no batches can be made for the model.

    >>> from pytest_ftcheck.instruments.tiny_architectures import tiny
    >>> subject = build(Subject("tiny", lambda: tiny("distilbert")), seed=0)
    >>> len(subject.batches), type(subject.model()).__name__
    (6, 'DistilBertForSequenceClassification')
    """
    with preserved_globals():
        return _build(subject, seed)


def _build(subject: Subject, seed: int) -> Subject:
    def call(function: Callable[[], Any]) -> Any:
        seed_everything(seed)  # for each function, so that what one draws does not depend on another
        return function()

    arguments = dict(subject.arguments)
    if _is_function(arguments.get("eval_batches")):
        arguments["eval_batches"] = call(arguments["eval_batches"])
    if subject.batches is not None:
        batches = call(subject.batches) if _is_function(subject.batches) else subject.batches
        return _with(subject, subject.model, batches, arguments)
    if isinstance(subject.model, nn.Module):
        return _with(subject, subject.model, _batches_for(subject.name, subject.model), arguments)
    returned = call(subject.model)
    if isinstance(returned, (Subject, Mapping)):
        inner = returned if isinstance(returned, Subject) else Subject(**{"name": subject.name, **returned})
        if inner.model is subject.model:
            raise ValueError(f"{subject.name}: its function returns a subject with the same function")
        built = _build(inner, seed)
        reasons = {**built.expected_failures, **subject.expected_failures}
        return _with(subject, built.model, built.batches, {**built.arguments, **arguments}, reasons)
    model, batches = _model_and_batches(subject.name, returned)
    factory = _ModelFactory(model, subject.name, subject.model)
    if batches is None:
        batches = _batches_for(subject.name, model)
    return _with(subject, factory, batches, arguments)


def _is_function(thing: Any) -> bool:
    """Whether it is a function, and not a callable iterable or sequence."""
    return callable(thing) and not isinstance(thing, Iterable) and not hasattr(thing, "__getitem__")


def _with(
    subject: Subject, model: Any, batches: Any, arguments: Mapping[str, Any], reasons: Mapping[str, str] | None = None
) -> Subject:
    if reasons is None:
        reasons = subject.expected_failures
    return Subject(subject.name, model, batches, expected_failures=reasons, **arguments)


class _ModelFactory:
    """Returns the model that was made along with the batches at the first call under the same seed, else a new one.

    Random states are afterwards as if the function had been called, so dropout masks do not depend on which model it was.
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
            return _model_and_batches(self._name, self._make())[0]
        python, numpy_state, state = self._states
        random.setstate(python)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)
        torch.set_rng_state(state)
        return first


def _model_and_batches(name: str, returned: Any) -> tuple[nn.Module, Any]:
    model, batches = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(model, nn.Module):
        what = describe_type(returned) if model is returned else f"a pair that begins with {describe_type(model)}"
        raise TypeError(f"{name}: its function returned {what}: {_EXPECTED}")
    return model, batches


def _batches_for(name: str, model: nn.Module) -> Any:
    try:
        return batches_for(model)
    except ValueError as error:
        raise ValueError(f"{name}: it has no batches, and none can be made: {error}; {_EXPECTED}") from None
