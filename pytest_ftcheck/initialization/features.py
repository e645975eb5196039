"""The input of a head, and the labels: plain tensors, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core import arguments
from ..core.formatting import PrintedAsRepr, as_given, describe_type, one_line
from ..instruments.batches import in_words
from ..instruments.given import device as device_named
from ..instruments.given import tensor
from ..instruments.tasks import IGNORED

TASKS = ("single_label", "multi_label", "regression")


@dataclass(frozen=True, eq=False)
class Features(PrintedAsRepr):
    """The input of a head, ``x`` of shape ``[rows, width]``, and labels ``y``: training rows, and held-out ones.

    Made by :func:`extract_features` from a model and batches, or by :meth:`of` from tensors of your own. Floating-point tensors, on the
    CPU unless they were given elsewhere. Labels: whole numbers (``single_label``), floats of 0 and 1 ``[rows, tags]`` (``multi_label``), or
    floats (``regression``).

    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> Features.of(x, (x[:, 0] > 0).long(), held_out=0.25)
    <Features of 48 rows x 8, 16 held out: single_label, 2 classes, given by hand>
    """

    x: torch.Tensor
    y: torch.Tensor
    held_x: torch.Tensor | None = None
    held_y: torch.Tensor | None = None
    #: ``single_label``, ``multi_label`` or ``regression``.
    task: str = "single_label"
    #: Classes, or tags; None for a regression.
    classes: int | None = None
    #: Their origin, in words.
    source: str = "given by hand"

    def __post_init__(self) -> None:
        arguments.one_of("task", self.task, TASKS)
        arguments.whole("classes", self.classes, least=1, optional=True)
        arguments.text("source", self.source)
        for name in ("x", "y", "held_x", "held_y"):
            value = getattr(self, name)
            if value is not None or name in ("x", "y"):
                arguments.instance(name, value, torch.Tensor, "a tensor; Features.of takes arrays, too")
                tensor(name, value)
        _check_rows("x", "y", self.x, self.y, self.task)
        if (self.held_x is None) != (self.held_y is None):
            raise ValueError("held_x and held_y go together: give both or neither")
        if self.held_x is not None and self.held_y is not None:
            _check_rows("held_x", "held_y", self.held_x, self.held_y, self.task)
            if self.held_x.shape[1] != self.x.shape[1]:
                raise ValueError(f"held_x has {self.held_x.shape[1]} features a row, x has {self.x.shape[1]}")
            if self.held_y.shape[1:] != self.y.shape[1:]:
                raise ValueError(f"held_y is {in_words(self.held_y)}, y is {in_words(self.y)}")
        _check_labels(self)

    @property
    def width(self) -> int:
        """Features a row."""
        return self.x.shape[1]

    @property
    def judged(self) -> tuple[torch.Tensor, torch.Tensor, str]:
        """The rows to judge by, and which they are: the held-out ones, else the training rows.

        >>> Features.of(torch.eye(4), torch.tensor([0, 1, 0, 1])).judged[2]
        'training rows'
        """
        if self.held_x is not None and self.held_y is not None:
            return self.held_x, self.held_y, "held-out rows"
        return self.x, self.y, "training rows"

    def to(self, device: str | torch.device) -> Features:
        """The same on another device.

        >>> Features.of(torch.eye(4), torch.tensor([0, 1, 0, 1])).to("cpu").x.device.type
        'cpu'
        """
        device = device_named("device", device)
        tensors = {name: getattr(self, name) for name in ("x", "y", "held_x", "held_y")}
        try:
            return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"device={as_given(str(device))}: {one_line(str(error), 200)}") from None

    @classmethod
    def of(
        cls,
        x: Any,
        y: Any,
        *,
        held_out: float | tuple[Any, Any] | None = None,
        task: str | None = None,
        classes: int | None = None,
        seed: int = 0,
        source: str = "given by hand",
    ) -> Features:
        """Features from tensors or arrays.

        :param x: ``[rows, width]``, floating point.  :param y: ``[rows]``, or ``[rows, tags]``; rows labelled -100 are left out.
        :param held_out: a share of the rows, drawn at random with ``seed``, or ``(x, y)`` of other rows; None: no rows are held out.
        :param task: None: whole numbers are classes, a matrix of 0 and 1 are tags, other floats a regression.
        :param classes: number of classes; None: the largest label and one.
        :raises TypeError: not tensors.  :raises ValueError: integer features, NaN, no rows, one class only, shapes that do not fit.

        >>> Features.of([[0.0, 1.0], [1.0, 0.0]], [0, 1]).width
        2
        """
        x, y = tensor("x", x), tensor("y", y)
        arguments.one_of("task", task, TASKS, optional=True)
        arguments.whole("classes", classes, least=1, optional=True)
        arguments.seed("seed", seed)
        other: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        share = None
        if isinstance(held_out, tuple):
            if len(held_out) != 2:
                raise ValueError(f"held_out is a tuple of {len(held_out)}: expected (x, y), or a share of the rows")
            other = tensor("held_out[0]", held_out[0]), tensor("held_out[1]", held_out[1])
        elif held_out is not None:
            share = share_of(held_out)
        if task is None:
            whole = not y.is_floating_point()
            task = "single_label" if whole and y.dim() == 1 else "regression"
            if y.dim() == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all()):
                task = "multi_label"
        _check_rows("x", "y", x, y, task)
        x, y = _kept(x, y, task)
        if not len(y):
            raise ValueError(f"y: every row is labelled {IGNORED}, and left out")
        held_x, held_y = other
        if held_x is not None and held_y is not None:
            _check_rows("held_out[0]", "held_out[1]", held_x, held_y, task)
            held_x, held_y = _kept(held_x, held_y, task)
            if not len(held_y):
                raise ValueError(f"held_out[1]: every row is labelled {IGNORED}, and left out")
        if share is not None:
            if len(x) < 2:
                raise ValueError(f"held_out={as_given(held_out)}: there is {len(x)} row, and none to hold out")
            count = min(len(x) - 1, max(1, round(share * len(x))))
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed), device="cpu").to(x.device)
            held_x, held_y, x, y = x[order[:count]], y[order[:count]], x[order[count:]], y[order[count:]]
        if classes is None and task != "regression":
            every = y if held_y is None else torch.cat([y, held_y])
            classes = y.shape[1] if task == "multi_label" else max(2, int(every.max()) + 1) if every.numel() else 2
        return cls(x, y, held_x, held_y, task, classes, source)

    def __repr__(self) -> str:
        held = f", {len(self.held_x):,} held out" if self.held_x is not None else ""
        classes = f", {self.classes} {'tags' if self.task == 'multi_label' else 'classes'}" if self.classes else ""
        return f"<Features of {len(self.x):,} rows x {self.width}{held}: {self.task}{classes}, {self.source}>"


def features_of(given: Any) -> Features:
    """The argument ``features``, which may be ``(x, y)``.

    :raises TypeError, ValueError: it is neither, or no head can learn from them.
    """
    if isinstance(given, Features):
        return given
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(
            f"features is {describe_type(given)}: expected Features, by extract_features(model, batches), or (x, y)"
        )
    try:
        return Features.of(*given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"features: {error}") from None


def share_of(value: Any) -> float:
    """A share of the rows to hold out, checked."""
    arguments.number("held_out", value, above=0, below=1, accepted="a share of the rows, or other rows")
    return float(value)


def _kept(x: torch.Tensor, y: torch.Tensor, task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies in the types that heads are trained in; rows labelled -100 left out."""
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if task == "single_label":
        keep = y != IGNORED
        return x[keep], y[keep].long()
    return x.clone(), y.to(x.dtype)


def _check_rows(at_x: str, at_y: str, x: torch.Tensor, y: torch.Tensor, task: str) -> None:
    if not x.is_floating_point():
        raise ValueError(
            f"{at_x} is {in_words(x)}: expected floating-point features [rows, width]; "
            "token ids become features by extract_features(model, batches)"
        )
    if x.dim() != 2 or not x.shape[1]:
        raise ValueError(f"{at_x} is {in_words(x)}: expected [rows, width]")
    if not len(x):
        raise ValueError(f"{at_x} has no rows: expected at least two, of different labels")
    if not y.dim() or len(y) != len(x):
        raise ValueError(f"{at_y} is {in_words(y)}: expected one label for each of the {len(x)} rows of {at_x}")
    bad = (~torch.isfinite(x)).any(1)
    if bool(bad.any()):
        raise ValueError(
            f"{at_x} is not finite: {int(bad.sum())} of {len(x)} rows have a NaN or an infinite value, "
            f"row {int(bad.nonzero()[0])} first"
        )
    if task == "single_label" and (y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool):
        raise ValueError(f"{at_y} is {in_words(y)}: expected whole-number classes [rows]; or give task=")
    if task == "multi_label" and (y.dim() != 2 or not bool(((y == 0) | (y == 1)).all())):
        raise ValueError(f"{at_y} is {in_words(y)}: expected [rows, tags] of 0 and 1")
    if task == "regression" and not bool(torch.isfinite(y.double()).all()):
        raise ValueError(f"{at_y} is not finite: a label is NaN or infinite")


def _check_labels(features: Features) -> None:
    """Labels that a head can learn from."""
    y = features.y
    if features.task == "single_label":
        for name, labels in (("y", y), ("held_y", features.held_y)):
            low, high = (0, 0) if labels is None else (int(v) for v in torch.aminmax(labels))
            if low < 0 or (features.classes is not None and high >= features.classes):
                raise ValueError(
                    f"{name}: label {low if low < 0 else high} is none of the {features.classes} classes: "
                    f"expected 0 to {(features.classes or 2) - 1}, or {IGNORED} for a row to leave out"
                )
    if bool((y == y[:1]).all()):
        label = y[:1].reshape(-1).tolist()
        what = f"class {label[0]}" if features.task == "single_label" else f"the label {[round(v, 4) for v in label]}"
        raise ValueError(
            f"y: all {len(y)} rows have {what}: a head can only learn a constant from them; take rows of several classes"
        )
