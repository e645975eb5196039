"""`Intent`: what is expected of a run, declared beforehand. Checks compare it with the trace."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import arguments
from .formatting import as_given, describe_type, one_line
from .init_scheme import InitScheme
from .recipe import OPTIMIZERS, SCHEDULES, Recipe

TASKS = ("single_label", "multi_label", "regression", "embedding")
#: Names of parts, in ``part=`` of the checks and in `Intent`.
PARTS = ("head", "base", "all")


@dataclass(frozen=True)
class Intent:
    """What you expect of the fine-tune. Fields left out are not checked.

    Parameters are given as parts (``"head"``, ``"base"``, ``"all"``, as in ``part=`` of the checks, unless a module of the model has
    that name), prefixes of names (``"classifier"``, ``"distilbert.transformer.layer.5"``; ``""`` is all) or globs (``"*.lora_*"``).

    >>> Intent(peak_lr=5e-5, schedule="linear", warmup_steps=10, total_steps=100).lr_at(10)
    5e-05
    >>> Intent(frozen="distilbert.embeddings").wants_frozen("distilbert.embeddings.LayerNorm.weight")
    True
    """

    #: ``single_label``, ``multi_label``, ``regression``, or ``embedding``: outputs that the loss compares with each other (pairs,
    #: triplets, in-batch negatives), and no logits.
    task: str | None = None
    #: Parameters that should learn; those that must stay unchanged; those that take no part in the forward pass.
    trained: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    #: Class name of the optimizer, as in ``torch.optim``; letter case does not count.
    optimizer: str | None = None
    #: Highest learning rate of the schedule.
    peak_lr: float | None = None
    #: ``linear`` (warm-up from zero, then decay to zero) or ``constant`` (after the warm-up).
    schedule: str | None = None
    #: Length of the warm-up and of the whole training in optimizer steps (the run may be its first part).
    warmup_steps: int | None = None
    total_steps: int | None = None
    #: Batches for each optimizer step.
    accumulation: int | None = None
    #: Total gradient norm after clipping.
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    #: True: norms and biases have no weight decay.
    no_decay: bool | None = None
    #: How the head is initialised: a scheme, or the standard deviation of N(0, std) weights with zero biases.
    head_init: float | InitScheme | None = None
    #: True: dropout is on in training; a number: at this rate; False: there is none.
    dropout: bool | float | None = None
    pad_token_id: int | None = None
    #: Pairs of parameter names that share one tensor.
    tied: tuple[tuple[str, str], ...] = ()
    #: Parameter name -> the tensor that it starts from. Compared when the run begins; not kept in the trace.
    pretrained: Mapping[str, Any] | None = None
    #: Optimizer step before which parameters in ``trained`` that are not in the head may stay unchanged.
    thaw_step: int | None = None

    def __post_init__(self) -> None:
        for name in ("trained", "frozen", "unused"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        arguments.one_of("task", self.task, TASKS, optional=True)
        arguments.one_of("schedule", self.schedule, SCHEDULES, optional=True)
        arguments.text(
            "optimizer", self.optimizer, optional=True, expected="the name of an optimizer class, such as 'AdamW',"
        )
        if self.optimizer == "":
            raise ValueError("optimizer='': expected the name of an optimizer class, such as 'AdamW', or None")
        for name in ("peak_lr", "max_grad_norm", "weight_decay"):
            arguments.number(name, getattr(self, name), least=0, optional=True)
        if not isinstance(self.head_init, InitScheme):
            arguments.number(
                "head_init", self.head_init, least=0, optional=True, accepted="a number, an InitScheme or None"
            )
        smallest = {"warmup_steps": 0, "total_steps": 1, "accumulation": 1, "pad_token_id": None, "thaw_step": 0}
        for name, least in smallest.items():
            arguments.whole(name, getattr(self, name), least=least, optional=True)
        arguments.flag("no_decay", self.no_decay, optional=True)
        if self.dropout is not None and not isinstance(self.dropout, bool):
            arguments.number("dropout", self.dropout, least=0, optional=True)
            if self.dropout >= 1:
                raise ValueError(f"dropout={as_given(self.dropout)}: expected True, False or a rate below 1")
        object.__setattr__(self, "tied", _pairs(self.tied))
        expected = "a mapping parameter name -> tensor"
        given = {} if self.pretrained is None else arguments.mapping("pretrained", self.pretrained, expected)
        for name, values in given.items():
            if not all(_has(values, part) for part in ("shape", "dtype", "detach")):
                raise TypeError(f"pretrained[{as_given(name)}] is {describe_type(values)}: expected a tensor")

    def wants_trained(self, name: str) -> bool | None:
        """Whether the parameter of that name should learn; None: not declared."""
        arguments.text("name", name)
        if _any(self.frozen, name) or _any(self.unused, name):
            return False
        return _any(self.trained, name) if self.trained else None

    def wants_frozen(self, name: str) -> bool:
        """Whether the parameter of that name was declared frozen."""
        arguments.text("name", name)
        return _any(self.frozen, name)

    def is_unused(self, name: str) -> bool:
        """Whether the parameter of that name was declared to take no part in the forward pass."""
        arguments.text("name", name)
        return _any(self.unused, name)

    def lr_at(self, step: int) -> float | None:
        """The declared learning rate at optimizer step ``step`` (0-based); None: not declared.

        >>> Intent(peak_lr=1e-3, schedule="linear", warmup_steps=4, total_steps=12).lr_at(8)
        0.0005
        """
        arguments.whole("step", step, least=0)
        if self.peak_lr is None or self.schedule is None:
            return None
        warm = self.warmup_steps or 0
        # its end, too: where the warm-up is the whole run, nothing falls after it
        if warm and step <= warm:
            return self.peak_lr * step / warm
        if self.schedule == "constant":
            return self.peak_lr
        if self.total_steps is None:
            return None
        return self.peak_lr * max(0.0, (self.total_steps - step) / max(1, self.total_steps - warm))

    @property
    def declared(self) -> tuple[str, ...]:
        """Names of the fields that are declared."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) not in (None, (), {}))

    def plain(self) -> Intent:
        """The same without tensors, as a trace keeps it."""
        return dataclasses.replace(self, pretrained=None)

    def filled(self, recipe: Recipe) -> Intent:
        """Fields left out are taken from the recipe, whose own optimizer and schedule do the training."""
        arguments.instance("recipe", recipe, Recipe, "a pytest_ftcheck.Recipe")
        known: dict[str, Any] = {
            "optimizer": OPTIMIZERS[recipe.optimizer],
            "peak_lr": recipe.lr,
            "schedule": recipe.schedule,
            "warmup_steps": recipe.warmup_steps,
            "total_steps": recipe.steps,
            "max_grad_norm": recipe.max_grad_norm,
            "weight_decay": recipe.weight_decay,
        }
        return dataclasses.replace(self, **{k: v for k, v in known.items() if getattr(self, k) is None})

    def for_model(self, names: Iterable[str], head: Sequence[str]) -> Intent:
        """The same for one model: parts are replaced with the prefixes of their parameters.

        :param names: of the model's parameters.  :param head: prefixes of the head's.
        :raises ValueError: a name that matches no parameter.

        >>> names = ["encoder.weight", "pooler.weight", "classifier.weight"]
        >>> intent = Intent(trained="head", frozen="base").for_model(names, ["classifier"])
        >>> intent.trained, intent.frozen
        (('classifier.',), ('encoder.', 'pooler.'))
        """
        known, head = list(arguments.texts("names", names)), arguments.texts("head", head)
        shown = one_line(", ".join(known[:3]), 200)
        resolved: dict[str, tuple[str, ...]] = {}
        for field in ("trained", "frozen", "unused"):
            prefixes: list[str] = []
            for pattern in getattr(self, field):
                if pattern in PARTS and not any(_is_under(n, (pattern,)) for n in known):
                    found = _prefixes_of_part(pattern, known, head)
                    if not found:
                        raise ValueError(
                            f"intent.{field}={as_given(pattern)}: every parameter is in the head ({', '.join(head)})"
                        )
                    prefixes += found
                elif any(_fits(pattern, n) for n in known):
                    prefixes.append(pattern)
                else:
                    raise ValueError(
                        f"intent.{field}={as_given(pattern)} matches none of the {len(known)} parameters ({shown}, ...), and is no part "
                        f"({', '.join(PARTS)})"
                    )
            resolved[field] = tuple(dict.fromkeys(prefixes))
        for pair in self.tied:
            for name in pair:
                if name not in known:
                    raise ValueError(f"intent.tied names {name!r}, which is no parameter of the model ({shown}, ...)")
        if self.pretrained and not any(n in self.pretrained for n in known):
            raise ValueError(
                f"intent.pretrained: none of its {len(self.pretrained)} names is a parameter of the model ({shown}, ...)"
            )
        return dataclasses.replace(self, **resolved)  # type: ignore[arg-type]


def _fits(pattern: str, name: str) -> bool:
    return name.startswith(pattern) or fnmatch.fnmatchcase(name, pattern)


def _is_under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def _prefixes_of_part(part: str, names: Sequence[str], head: Sequence[str]) -> list[str]:
    """The shortest prefixes that cover a part and nothing else."""
    if part == "all":
        return [""]
    if part == "head":
        return [f"{p}." if any(n.startswith(f"{p}.") for n in names) else p for p in head]
    in_head = [n for n in names if _is_under(n, head)]
    found: dict[str, None] = {}
    for name in names:
        if not _is_under(name, head):
            modules = name.split(".")
            shorter = (".".join(modules[:i]) + "." for i in range(1, len(modules)))
            found[next((p for p in shorter if not any(n.startswith(p) for n in in_head)), name)] = None
    return list(found)


def _any(patterns: Iterable[str], name: str) -> bool:
    return any(_fits(p, name) for p in patterns)


def _names(field: str, value: Any) -> tuple[str, ...]:
    expected = "a prefix or glob of parameter names, or a sequence of them"
    return () if value is None else arguments.texts(field, value, expected)


def _has(value: Any, part: str) -> bool:
    try:
        return hasattr(value, part)
    except Exception:  # noqa: BLE001 - an object of the user's
        return False


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    given = () if value is None else arguments.items("tied", value, "pairs of parameter names")
    pairs = tuple(tuple(p) if isinstance(p, (tuple, list)) else p for p in given)
    if not all(isinstance(p, tuple) and len(p) == 2 and all(isinstance(n, str) for n in p) for p in pairs):
        raise TypeError(f"tied={as_given(value)}: expected pairs of parameter names")
    return pairs
