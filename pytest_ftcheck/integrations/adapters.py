"""Which adapter watches which framework's object: told by the names of its classes, so that no framework is imported for it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ..core.formatting import describe_type
from .framework_loop import FrameworkAdapter

#: What `watch` takes, for messages.
ACCEPTED = "a torch.nn.Module"


@dataclass(frozen=True)
class Framework:
    """One framework's object that can be watched."""

    #: Top-level package and name of a class; those that derive from it count, too.
    package: str
    class_name: str
    #: ``module:Class`` of the adapter, the module in this folder. Called as ``Class(subject)``, or ``Class(subject, module=module)`` where
    #: a module is needed.
    adapter: str
    #: The model is not known to the object itself: it is passed as ``module=``.
    needs_module: bool = False


#: All frameworks that are known; the first that fits is taken.
FRAMEWORKS: tuple[Framework, ...] = (
    Framework("transformers", "Trainer", "transformers:TrainerAdapter"),
    Framework("lightning", "Trainer", "lightning:LightningAdapter", needs_module=True),
    Framework("pytorch_lightning", "Trainer", "lightning:LightningAdapter", needs_module=True),
)


def find_adapter(subject: Any, *, module: Any = None) -> FrameworkAdapter:
    """The adapter for a framework's object.

    :param module: the model, for a framework whose object does not know it (a ``lightning.Trainer``).
    :raises TypeError: an object of no known framework; a ``module`` that is missing or too much.
    """
    found = next((f for f in FRAMEWORKS if _is_a(subject, f)), None)
    if found is None:
        known = "".join(f", a {f.package}.{f.class_name}" for f in FRAMEWORKS)
        raise TypeError(f"watch: the first argument is {describe_type(subject)}: expected {ACCEPTED}{known}")
    if found.needs_module and module is None:
        raise TypeError(
            f"module=None: a {found.package}.{found.class_name} does not know what it will train; "
            "pass module=, the module that you give to fit()"
        )
    if module is not None and not found.needs_module:
        raise TypeError(f"module is given, but a {found.package}.{found.class_name} knows its model: leave module out")
    where, name = found.adapter.split(":")
    adapter: Any = getattr(importlib.import_module(f".{where}", __package__), name)
    made: FrameworkAdapter = adapter(subject, module=module) if found.needs_module else adapter(subject)
    return made


def _is_a(subject: Any, framework: Framework) -> bool:
    return any(
        c.__name__ == framework.class_name and c.__module__.partition(".")[0] == framework.package
        for c in type(subject).__mro__
    )
