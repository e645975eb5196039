"""The subject of a suite of checks: a named model, its batches and how to fine-tune it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..checks.catalogue import CHECKS
from ..core import arguments as check_arguments
from ..core.formatting import as_given, describe_type
from ..core.recipe import Recipe
from ..training.finetune_arguments import ARGUMENTS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False, init=False)
class Subject:
    """A fine-tune that is judged by every check, each a test item of its own: for `parametrize_with_checks` and ``--ftcheck-model``.

    The model is made and trained when the first check runs, once a session (and process) for all checks.

    :param name: part of the tests' ids; unique within a suite.
    :param model: a module, or a function without arguments that makes one (called under the recipe's seed). Without ``batches`` the
        function may also return ``(model, batches)``, or another `Subject`.
    :param batches: as :func:`pytest_ftcheck.finetune` takes them, or a function without arguments that returns them (so that nothing
        is loaded while tests are collected). None, where the model's function returns none either: batches are made from the model's
        config by `pytest_ftcheck.instruments.tiny_tasks.batches_for`.
    :param expected_failures: check -> reason why it is expected to fail. That test is a strict ``xfail``: it fails when the check passes.
    :param arguments: all other arguments of ``finetune``: fields of the recipe, ``intent``, ``eval_batches``, ``step``, ``probes``
        ... They take precedence over the session's options.
    :raises ValueError, TypeError: invalid values.

    >>> subject = Subject("mine", lambda: None, lr=1e-3, steps=40, expected_failures={"head_needed": "one layer would do"})
    >>> subject
    Subject('mine', lr=0.001, steps=40)
    >>> Subject("mine", lambda: None, stepz=40)
    Traceback (most recent call last):
    TypeError: Subject('mine') has no argument 'stepz'; did you mean step, steps?
    """

    name: str
    #: A module, or a function that makes one.
    model: nn.Module | Callable[[], Any]
    #: Batches, or a function that returns them; None: the model's function returns them, too, or they are made.
    batches: Any = None
    #: Check (``weights_move``) -> reason why it is expected to fail.
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    #: Other arguments of ``finetune``.
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        name: str,
        model: nn.Module | Callable[[], Any],
        batches: Any = None,
        *,
        expected_failures: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> None:
        set_ = object.__setattr__
        set_(self, "name", check_name(name))
        who = f"Subject({as_given(name)})"
        if not callable(model):  # a module is callable, too
            raise TypeError(f"{who}: model is {describe_type(model)}: expected a module, or a function that makes one")
        set_(self, "model", model)
        if batches is not None and not (
            callable(batches) or isinstance(batches, Iterable) or hasattr(type(batches), "__getitem__")
        ):
            raise TypeError(
                f"{who}: batches is {describe_type(batches)}: expected batches, or a function that returns them"
            )
        set_(self, "batches", batches)
        set_(self, "expected_failures", check_reasons(f"{who}: expected_failures", expected_failures))
        known = (*ARGUMENTS, *Recipe.field_names())
        for argument in arguments:
            if argument not in known:
                near = difflib.get_close_matches(argument, known, 3)
                hint = f"; did you mean {', '.join(near)}?" if near else f": expected some of {', '.join(known)}"
                raise TypeError(f"{who} has no argument {argument!r}{hint}")
        fields = {n: v for n, v in arguments.items() if n in Recipe.field_names() and n != "optimizer"}
        try:
            Recipe(**fields)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{who}: {error}") from None
        set_(self, "arguments", dict(arguments))

    def __repr__(self) -> str:
        fields = "".join(
            f", {name}={as_given(value)}" for name, value in self.arguments.items() if name in Recipe.field_names()
        )
        return f"Subject({self.name!r}{fields})"


def as_subject(thing: Any, argument: str = "subject") -> Subject:
    """Convert to a `Subject`.

    :param thing: a `Subject`; a mapping of its arguments; or a function that makes a model, ``(model, batches)`` or a `Subject`. The
        subject then has the function's name, and the function is called when the first check runs.
    :param argument: its name in errors.
    :raises ValueError, TypeError: it is none of them, or has no name.

    >>> def make_mine(): ...
    >>> as_subject(make_mine), as_subject({"name": "other", "model": make_mine, "steps": 40})
    (Subject('make_mine'), Subject('other', steps=40))
    """
    if isinstance(thing, Subject):
        return thing
    if isinstance(thing, Mapping):
        given = check_arguments.mapping(argument, thing, "the arguments of Subject")
        if not {"name", "model"} <= set(given):
            keys = as_given(list(given))
            raise TypeError(
                f"{argument} with the keys {keys}: expected the arguments of Subject, including name and model"
            )
        return Subject(**given)
    if not callable(thing):
        raise TypeError(
            f"{argument} is {describe_type(thing)}: expected a Subject, a mapping of its arguments, or a function that makes one"
        )
    name = getattr(thing, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise TypeError(f"{argument} is {describe_type(thing)} without a name of its own: expected Subject(name, ...)")
    return Subject(name, thing)


def check_name(name: Any) -> str:
    """The name, if it is valid in a node id; else ``TypeError`` or ``ValueError``.

    >>> check_name("a::b")
    Traceback (most recent call last):
    ValueError: name='a::b': expected a text without '::', line breaks, and leading or trailing blanks
    """
    if not isinstance(name, str):
        raise TypeError(f"name={as_given(name)}: expected a text")
    if not name or name != name.strip() or "::" in name or not name.isprintable():
        raise ValueError(
            f"name={as_given(name)}: expected a text without '::', line breaks, and leading or trailing blanks"
        )
    return name


def check_names(argument: str, names: Iterable[Any]) -> tuple[str, ...]:
    """Names of checks without their prefix, in the order of the checks.

    :raises ValueError, TypeError: an unknown check.

    >>> check_names("checks", ["check_weights_move", "head_init"])
    ('head_init', 'weights_move')
    """
    if isinstance(names, str):
        raise TypeError(f"{argument} is {describe_type(names)}: expected names of checks")
    found = set()
    for name in check_arguments.texts(argument, names, "names of checks"):
        plain = name.removeprefix("check_").removeprefix("assert_")
        if plain not in CHECKS:
            near = difflib.get_close_matches(plain, CHECKS, 3)
            hint = f"did you mean {', '.join(near)}?" if near else f"the checks are {', '.join(CHECKS)}"
            raise ValueError(f"{argument}: there is no check {as_given(name)}; {hint}")
        found.add(plain)
    return tuple(name for name in CHECKS if name in found)


def check_reasons(argument: str, reasons: Any) -> dict[str, str]:
    """Check, without prefix -> reason why it is expected to fail.

    :raises ValueError, TypeError: an unknown check, or no reason.

    >>> check_reasons("expected_failures", {"check_head_needed": "one layer would do"})
    {'head_needed': 'one layer would do'}
    """
    if reasons is None:
        return {}
    found = {}
    for name, reason in check_arguments.mapping(argument, reasons, "a mapping check -> reason").items():
        (plain,) = check_names(argument, [name])
        if not isinstance(reason, str) or not reason.strip():
            raise TypeError(f"{argument}[{name!r}]={as_given(reason)}: expected the reason, a text")
        found[plain] = reason
    return found
