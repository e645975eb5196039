"""Names of models for ``--ftcheck-model``: ``pkg.module:make_model``, ``hf:NAME``, ``tiny:ARCHITECTURE``, ``tiny:ARCHITECTURE/TASK``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.formatting import describe_type, one_line, text_of
from .named_object import named_object
from .subject import Subject, check_name

if TYPE_CHECKING:
    from torch import nn

Loaded = TypeVar("Loaded")
ACCEPTED = "expected pkg.module:make_model, hf:NAME, tiny:ARCHITECTURE or tiny:ARCHITECTURE/TASK"
#: Architectures that a message names as examples.
WELL_KNOWN = ("distilbert", "bert", "gpt2", "t5", "vit")
#: Defaults for tiny models: enough steps for every check to decide, at the learning rate that random weights of width 64 need
#: (benchmarks/architectures.py).
TINY: dict[str, Any] = {"lr": 1e-3, "steps": 60}


def subject_named(name: str, settings: Mapping[str, Any]) -> Subject:
    """The subject of that name. A module is imported, an architecture or a checkpoint's config is looked up; no model is made or loaded.

    :param name: as on the command line.
    :param settings: fields of the recipe that the session sets; they take precedence over the defaults of a tiny model.
    :raises ValueError: names the part that does not resolve.

    >>> subject_named("tiny:distilbert", {"steps": 60})
    Subject('tiny:distilbert', lr=0.001)
    >>> subject_named("tiny:unheard-of", {})
    Traceback (most recent call last):
    ValueError: transformers has no class for text-classification of 'unheard-of'; distilbert, bert, gpt2, t5 are some that it has
    """
    check_name(name)
    kind, colon, rest = name.partition(":")
    if not colon or not kind or not rest:
        raise ValueError(ACCEPTED)
    if kind == "tiny":
        return _tiny(name, rest, settings)
    if kind == "hf":
        _require_checkpoint(rest)
        return Subject(name, lambda: _pretrained(rest))
    return _imported(name, kind, rest)


def definition_of(subject: Subject, root: Path) -> tuple[str, int] | None:
    """File (relative to ``root``) and line (from 1) of the user's function that makes the model; None: it is not in ``root``.

    >>> definition_of(Subject("x", subject_named), Path(__file__).parent)[0]
    'model_spec.py'
    """
    if subject.name.startswith(("tiny:", "hf:")):
        return None
    try:
        file = Path(inspect.getsourcefile(subject.model) or "").resolve().relative_to(root.resolve())
        return file.as_posix(), inspect.getsourcelines(subject.model)[1]
    except (TypeError, ValueError, OSError):  # no source, or not in root
        return None


# ---------------------------------------------------------------------- tiny:
def _tiny(name: str, rest: str, settings: Mapping[str, Any]) -> Subject:
    from ..instruments.tiny_architectures import ARGUMENTS, architectures, tiny
    from ..instruments.tiny_tasks import DEFAULT, TASKS

    kind, slash, given = rest.partition("/")
    task = given if slash else DEFAULT
    if task not in TASKS:
        raise ValueError(f"{task!r} is no task of a tiny model; expected one of {', '.join(TASKS)}")
    known = architectures(task)
    if kind not in known:
        near = difflib.get_close_matches(kind, known, 3)
        others = [t for t in TASKS if kind in architectures(t)]
        some = [k for k in WELL_KNOWN if k in known]
        hint = f"did you mean {', '.join(near)}?" if near else f"{', '.join(some)} are some that it has"
        if others:
            hint = f"it has one for {', '.join(others)}: tiny:{kind}/{others[0]}"
        raise ValueError(f"transformers has no class for {task} of {kind!r}; {hint}")
    defaults = {**TINY, **TASKS[task].arguments, **ARGUMENTS.get(kind, {})}
    return Subject(name, lambda: tiny(kind, task), **{f: v for f, v in defaults.items() if f not in settings})


# ---------------------------------------------------------------------- hf:
def _require_checkpoint(name: str) -> None:
    """``ValueError`` unless the checkpoint has a config that can be read: then its name is right, and the hub can be reached if it must."""
    from transformers import AutoConfig

    _found_first_here(name, lambda **where: AutoConfig.from_pretrained(name, trust_remote_code=False, **where))


def _pretrained(name: str) -> nn.Module:
    """A checkpoint's sequence classifier. Safetensors only, no remote code."""
    from transformers import AutoModelForSequenceClassification

    def load(**where: bool) -> nn.Module:
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, **where
        )
        return model

    model = _found_first_here(name, load)
    config: Any = model.config
    if config.pad_token_id is None:  # without it GPT-2 and others refuse batches of more than one row
        config.pad_token_id = config.eos_token_id
    return model


def _found_first_here(name: str, load: Callable[..., Loaded]) -> Loaded:
    """What is loaded from a folder, else from the cache, else from the hub. ``ValueError`` says why it is in none of them."""
    try:
        return load(local_files_only=True)
    except (OSError, ValueError) as missing:
        if Path(name).is_dir():
            raise ValueError(
                f"hf:{name}: the folder has no sequence classifier: {one_line(str(missing), 300)}"
            ) from None
        try:
            return load()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"hf:{name} is not a folder, is not in the cache, and cannot be loaded from the hub: {one_line(text_of(error), 300)}. "
                "Without a network, name the folder of a checkpoint, or load it once while online"
            ) from None


# ---------------------------------------------------------------------- pkg.module:make_model
def _imported(name: str, module: str, path: str) -> Subject:
    thing, reached = named_object(module, path, ACCEPTED)
    if isinstance(thing, Subject):
        return Subject(name, thing.model, thing.batches, expected_failures=thing.expected_failures, **thing.arguments)
    if isinstance(thing, Mapping):
        try:
            return Subject(**{**thing, "name": name})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{reached}: {error}") from None
    if not callable(thing):
        raise ValueError(
            f"{reached} is {describe_type(thing)}: expected a function that makes a model, a model or a Subject"
        )
    return Subject(name, thing)
