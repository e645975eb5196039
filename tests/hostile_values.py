"""Values that nobody means as an argument: name -> a function that makes a new one."""

from __future__ import annotations

import decimal
import fractions
import pathlib
import types

import numpy
import torch
from torch import nn

HUGE = 10**400  # no float holds it
UNPRINTABLE = 10**5000  # python refuses to write it


def _raising(*methods):
    """An object whose methods of these names raise."""

    def refuse(*_, **__):
        raise LookupError("a method of the user's value")

    return type(f"No{methods[0].strip('_').title()}", (), dict.fromkeys(methods, refuse))()


class NoAttributes:
    def __getattr__(self, name):
        raise LookupError("a method of the user's value")


class EqualIsArray:
    """As of numpy: compared, it is no truth value."""

    __hash__ = None

    def __eq__(self, other):
        return numpy.zeros(2) == numpy.zeros(2)


class MappingThatRaises(dict):
    def __getitem__(self, key):
        raise LookupError("a method of the user's value")

    def items(self):
        raise LookupError("a method of the user's value")

    def __iter__(self):
        raise LookupError("a method of the user's value")


class NoCopy(torch.optim.SGD):
    """An optimizer that cannot be deep-copied."""

    def __init__(self):
        super().__init__([nn.Parameter(torch.ones(1))], lr=0.1)
        self.handle = (i for i in ())

    def __deepcopy__(self, memo):
        raise TypeError("cannot copy")


def _nested_lists(depth=2000):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def _circle():
    value = []
    value.append(value)
    return value


VALUES = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "3": lambda: 3,
    "2.5": lambda: 2.5,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1e308": lambda: 1e308,
    "1e-320": lambda: 1e-320,
    "100_000": lambda: 100_000,
    "10**9": lambda: 10**9,
    "10**30": lambda: 10**30,
    "10**400": lambda: HUGE,
    "-10**400": lambda: -HUGE,
    "10**5000": lambda: UNPRINTABLE,
    "1j": lambda: 1j,
    "Decimal NaN": lambda: decimal.Decimal("NaN"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "empty text": lambda: "",
    "text": lambda: "text",
    "NUL": lambda: "a\x00b",
    "ESC": lambda: "\x1b[31m\n::error::x",
    "surrogate": lambda: "\ud800",
    "long text": lambda: "x" * 100_000,
    "meta": lambda: "meta",
    "bytes": lambda: b"bytes",
    "path": lambda: pathlib.PurePosixPath("a/b"),
    "[]": list,
    "()": tuple,
    "{}": dict,
    "set()": set,
    "[None]": lambda: [None],
    "[[]]": lambda: [[]],
    "['text']": lambda: ["text"],
    "[NaN]": lambda: [float("nan")],
    "[10**400]": lambda: [HUGE],
    "(1, 2)": lambda: (1, 2),
    "(None, None)": lambda: (None, None),
    "{'a': 1}": lambda: {"a": 1},
    "{1: 2}": lambda: {1: 2},
    "{None: None}": lambda: {None: None},
    "nested lists": _nested_lists,
    "circle": _circle,
    "range": lambda: range(3),
    "generator": lambda: (i for i in range(2)),
    "empty iterator": lambda: iter(()),
    "object": object,
    "class": lambda: int,
    "module of python": lambda: types,
    "function of nothing": lambda: lambda: None,
    "function of anything": lambda: lambda *_, **__: None,
    "function to text": lambda: lambda *_, **__: "text",
    "Ellipsis": lambda: ...,
    "numpy NaN": lambda: numpy.float64("nan"),
    "numpy 3": lambda: numpy.int64(3),
    "numpy empty": lambda: numpy.zeros(0),
    "numpy matrix": lambda: numpy.zeros((2, 3)),
    "numpy objects": lambda: numpy.array([None, "a"], dtype=object),
    "scalar tensor": lambda: torch.tensor(1.0),
    "NaN tensor": lambda: torch.tensor(float("nan")),
    "whole tensor": lambda: torch.tensor([0, 1, 2]),
    "empty tensor": lambda: torch.zeros(0),
    "matrix": lambda: torch.zeros(2, 3),
    "meta tensor": lambda: torch.empty(2, 3, device="meta"),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "complex tensor": lambda: torch.zeros(2, dtype=torch.complex64),
    "inference tensor": lambda: _of_inference(),
    "parameter": lambda: nn.Parameter(torch.zeros(2)),
    "module": lambda: nn.Linear(2, 2),
    "lazy module": lambda: nn.LazyLinear(2),
    "meta module": lambda: nn.Linear(2, 2, device="meta"),
    "optimizer": lambda: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1),
    "uncopyable optimizer": NoCopy,
    "no repr": lambda: _raising("__repr__", "__str__"),
    "no eq": lambda: _raising("__eq__", "__ne__", "__hash__"),
    "eq is an array": EqualIsArray,
    "no bool": lambda: _raising("__bool__"),
    "no len": lambda: _raising("__len__", "__bool__"),
    "no iter": lambda: _raising("__iter__"),
    "no call": lambda: _raising("__call__"),
    "no item": lambda: _raising("__getitem__", "__iter__", "__len__", "__contains__"),
    "no fspath": lambda: _raising("__fspath__"),
    "no float": lambda: _raising("__float__", "__index__", "__int__", "item"),
    "no attributes": NoAttributes,
    "mapping that raises": lambda: MappingThatRaises(a=1),
    "[no repr]": lambda: [_raising("__repr__", "__str__")],
}


def _of_inference():
    with torch.inference_mode():
        return torch.zeros(2, 3)
