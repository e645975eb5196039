"""`Recipe`: how to fine-tune, one frozen, validated value."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from . import arguments
from .formatting import PrintedAsRepr, as_given

#: Names that `Recipe.optimizer` accepts; each is the class of that name in ``torch.optim``.
OPTIMIZERS = {
    "adamw": "AdamW",
    "adam": "Adam",
    "nadam": "NAdam",
    "radam": "RAdam",
    "adamax": "Adamax",
    "adagrad": "Adagrad",
    "adafactor": "Adafactor",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}
SCHEDULES = ("linear", "constant")
DTYPES = ("float32", "bfloat16", "float16", "float64")
AUTOCASTS = ("bfloat16", "float16")
#: The norm of a recipe that asks for none: this object, not its value, so that a 1.0 that was asked for is another.
_CLIPPED_BY_DEFAULT = float("1.0")


#: Argument of ``finetune`` -> fields of the recipe that it decides in their place.
DECIDED_BY = {
    "optimizer": ("optimizer", "lr", "weight_decay", "warmup", "schedule"),
    "scheduler": ("warmup", "schedule"),
    "step": ("max_grad_norm", "autocast"),
    "trainer": (
        *("optimizer", "lr", "weight_decay", "warmup", "schedule", "max_grad_norm"),
        *("device", "dtype", "autocast"),
    ),
}


@dataclass(frozen=True)
class Recipe(PrintedAsRepr):
    """How to fine-tune. Defaults: AdamW, peak learning rate 5e-5, linear warm-up and linear decay.

    Optimizer and schedule are built from these fields, unless you pass your own.

    >>> Recipe(lr=3e-5, steps=50).lr_at(0) < 3e-5
    True
    >>> round(Recipe(steps=200).lr_sum(), 5)          # about as far as Adam can move a weight
    0.00505
    """

    #: One of `OPTIMIZERS`.
    optimizer: str = "adamw"
    #: Peak learning rate, >= 0. 0 is allowed: it is a fault worth testing for.
    lr: float = 5e-5
    #: Length of the linear warm-up: a share of ``steps`` below 1, or a number of steps.
    warmup: float = 0.1
    #: ``linear`` (decay to zero at the end) or ``constant``, after the warm-up.
    schedule: str = "linear"
    #: Iterations (batches) to run, >= 1.
    steps: int = 20
    #: Decoupled weight decay for AdamW, added to the gradient for the others; torch's own default for AdamW.
    weight_decay: float = 0.01
    #: Gradients are clipped to this total L2 norm; None: not clipped. 1.0 is the Hugging Face Trainer's default. With an optimizer of your
    #: own nothing is clipped unless you give it: clipping that you do not have would hide that the training diverges.
    max_grad_norm: float | None = _CLIPPED_BY_DEFAULT
    #: Seeds model factory, data order and dropout.
    seed: int = 0
    #: ``cpu``, ``cuda``, ``cuda:1``, ...; None: where the model already is.
    device: str | None = None
    #: Threads of torch during the run, >= 1; None: one for a model of less than a million parameters (more are slower, above all on a
    #: busy machine), else torch's own setting; in one of n workers of pytest-xdist at most an n-th of the processors.
    threads: int | None = None
    #: Parameters are converted to this dtype; None: left as they are.
    dtype: str | None = None
    #: Forward passes run under ``torch.autocast`` with this dtype; None: no autocast.
    autocast: str | None = None
    #: The run ends early, with a note in the trace, after this many seconds; None: no limit.
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        arguments.one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        arguments.one_of("schedule", self.schedule, SCHEDULES)
        arguments.number("lr", self.lr, least=0)
        arguments.number("weight_decay", self.weight_decay, least=0)
        arguments.number("warmup", self.warmup, least=0, most=arguments.MOST_STEPS)
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(
                f"warmup={as_given(self.warmup)}: expected a share of the steps below 1, or a whole number of steps"
            )
        arguments.whole("steps", self.steps, least=1, most=arguments.MOST_STEPS)
        arguments.seed("seed", self.seed)
        arguments.number("max_grad_norm", self.max_grad_norm, above=0, optional=True)
        arguments.number("max_seconds", self.max_seconds, above=0, optional=True)
        for name in ("lr", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if isinstance(value, int) and value > 2**53:  # torch converts whole numbers, and not all of them
                object.__setattr__(self, name, float(value))
        arguments.whole("threads", self.threads, least=1, most=arguments.MOST_THREADS, optional=True)
        arguments.one_of("dtype", self.dtype, DTYPES, optional=True)
        arguments.one_of("autocast", self.autocast, AUTOCASTS, optional=True)
        arguments.text("device", self.device, optional=True, expected="a text such as 'cpu' or 'cuda:0'")

    def for_own_optimizer(self) -> Recipe:
        """The same for an optimizer of the user's own: gradients are clipped only if that was asked for.

        >>> [r.for_own_optimizer().max_grad_norm for r in (Recipe(), Recipe(max_grad_norm=1.0), Recipe(max_grad_norm=0.5))]
        [None, 1.0, 0.5]
        """
        return replace(self, max_grad_norm=None) if self.max_grad_norm is _CLIPPED_BY_DEFAULT else self

    @property
    def warmup_steps(self) -> int:
        """Length of the warm-up in steps."""
        # rounded first: 0.07 * 100 is 7.000000000000001
        return math.ceil(round(self.warmup * self.steps, 9)) if self.warmup < 1 else int(self.warmup)

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate in force at optimizer step ``step`` (0-based).

        The first step of a warm-up of W steps has 1/W, not 0: a step at zero would be wasted.
        """
        arguments.whole("step", step, least=0)
        warm = self.warmup_steps
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant" or step >= self.steps:
            return 1.0 if self.schedule == "constant" else 0.0
        return (self.steps - step) / (self.steps - warm)

    def lr_at(self, step: int) -> float:
        """Learning rate in force at optimizer step ``step`` (0-based)."""
        return self.lr * self.lr_factor(step)

    def lr_sum(self) -> float:
        """Sum of the learning rates over the run: about as far as Adam can move a weight."""
        return math.fsum(self.lr_at(i) for i in range(self.steps))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return tuple(f.name for f in fields(cls))

    def warnings(self) -> tuple[str, ...]:
        """Notes on values that are allowed but probably a mistake."""
        if self.warmup_steps > self.steps:
            return (
                f"warm-up of {self.warmup_steps:,} steps is longer than the run of {self.steps:,}: "
                f"the learning rate ends at {self.lr_at(self.steps - 1):.3g}, not at the peak of {self.lr:.3g}",
            )
        return ()
