"""A hand-written healthy trace and its parts; checks are tested on changed copies of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from . import arguments
from .formatting import as_given, describe_type
from .observations import (
    Descent,
    Gradients,
    Group,
    Iteration,
    Metric,
    Motion,
    Optimizer,
    ProbeLoss,
    ProbeLossPoint,
    Reading,
    Statistics,
    Step,
    Tensor,
)
from .recipe import Recipe
from .trace import Trace

STEPS = 20


def tensor(name: str, part: str, *, shape: tuple[int, ...] = (64, 64), steps: int = STEPS, **changes: Any) -> Tensor:
    """A healthy tensor: every element changed, by about a quarter of the LR budget."""
    recipe = Recipe(steps=steps)
    budget = recipe.lr_sum()
    vector = len(shape) == 1
    zero = name.endswith("bias")
    first = Statistics(0.0, 0.0, 0.0, 0.0, 0.0, 0) if zero else Statistics(0.0, 0.02, 0.02, -0.08, 0.08, 0)
    values: dict[str, Any] = {
        "name": name,
        "aliases": (),
        "part": part,
        "role": "bias" if vector else "matrix",
        "shape": shape,
        "dtype": "float32",
        "trainable": True,
        "trainable_last": True,
        "group": 0,
        "first_step": 0,
        "lr_sum": budget,
        "lr_peak": recipe.lr,
        "replaced": False,
        "unchanged": None,
        "gradients": Gradients(steps, 0, 0, 0, 0, None, 0.5, 0.4, 0.008),
        "motion": Motion(
            elements=shape[0] * (1 if vector else shape[1]),
            share_changed=1.0,
            share_with_gradient=1.0,
            rms=0.25 * budget,
            largest=0.8 * budget,
            relative=None if zero else 0.25 * budget / 0.02,
            by_gradient=0.25 * budget,
            by_decay=1e-4 * budget,
            between_steps=0.0,
            max_update=4e-5,
            wasserstein=6e-5,
        ),
        "first": first,
        "last": Statistics(0.0, 0.0201, 0.0201, -0.08, 0.08, 0),
        "grad_norms": tuple(0.4 + 0.005 * i for i in range(steps)),
        "updates": (4e-5,) * steps,
        "displacements": tuple(0.25 * budget * (i + 1) / steps for i in range(steps)),
    }
    return Tensor(**{**values, **changes})


def _example() -> Trace:
    recipe = Recipe(steps=STEPS)
    losses = [round(0.70 - 0.02 * i, 3) for i in range(STEPS)]
    return Trace(
        source="finetune",
        recipe=recipe,
        reading=Reading(
            "keywords input_ids, attention_mask",
            "bare logits",
            "cross-entropy of the logits",
            "single_label",
            2,
        ),
        head=("classifier",),
        optimizer=Optimizer(
            "AdamW",
            "adam",
            (
                Group(
                    0,
                    recipe.lr_at(0),
                    recipe.lr,
                    recipe.lr_sum(),
                    0.01,
                    {"eps": 1e-8, "betas[0]": 0.9},
                    tensors=4,
                    not_in_model=0,
                ),
            ),
        ),
        iterations=tuple(Iteration(loss, i, 1, True) for i, loss in enumerate(losses)),
        steps=tuple(Step(i, (recipe.lr_at(i),), 0.9, 1.4, True) for i in range(STEPS)),
        recorded=tuple(range(STEPS)),
        tensors=(
            tensor("base_model.layer.0.lin.weight", "base"),
            tensor("base_model.layer.0.lin.bias", "base", shape=(64,)),
            tensor("classifier.weight", "head", shape=(2, 64)),
            tensor("classifier.bias", "head", shape=(2,)),
        ),
        probe_loss=ProbeLoss(
            rows=32,
            source="the first 2 training batches",
            points=tuple(ProbeLossPoint(s, loss, loss) for s, loss in ((0, 0.70), (5, 0.6), (10, 0.5), (20, 0.31))),
            descents=tuple(Descent(i, 0.7 - 0.02 * i, 0.69 - 0.02 * i) for i in range(12)),
            prior_entropy=0.6931,
        ),
        metrics=(Metric("accuracy", 0.5, 0.9, 64, "held-out rows", 0.53, 0.001, (31, 33), (34, 30)),),
        environment={"torch": "2", "device": "cpu", "dtype": "float32"},
        seconds=1.0,
        training_seconds=0.8,
    )


def example_trace(**changes: Any) -> Trace:
    """A small hand-written healthy trace (20 steps, a base layer and a head), for docs, tests and your own reports.

    Fields named in ``changes`` replace those of the example.

    :raises TypeError: no such field, or a value of another type.

    >>> example_trace()
    <Trace of 20 steps in 1.0 s: 4 tensors, head classifier, loss 0.700 -> 0.320>
    """
    example = _example()
    for name, value in changes.items():
        if name not in Trace.__dataclass_fields__:
            raise TypeError(f"{name}={as_given(value)}: a Trace has no field of this name")
        default = getattr(example, name)
        if isinstance(default, (tuple, dict, str, float)):  # as is written by hand: steps=20
            kind = (int, float) if isinstance(default, float) else type(default)
            arguments.instance(name, value, kind, f"{describe_type(default)}, as in the example")
        if isinstance(default, tuple) and default and not isinstance(default[0], str):
            for i, item in enumerate(value):
                arguments.instance(f"{name}[{i}]", item, type(default[0]), describe_type(default[0]))
    return dataclasses.replace(example, **changes)
