"""`Measurement`: what a probe measured, frozen plain data, kept in a Trace under the probe's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

_KINDS: dict[str, type[Measurement]] = {}


@dataclass(frozen=True)
class Measurement:
    """Base of all measurements; a subclass is a frozen dataclass of numbers, texts and further such dataclasses.

    Its declaration names the probe, whose name is its key in `Trace.measurements`:

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Temperature(Measurement, probe="temperature"):
    ...     degrees: float
    >>> kind_of("temperature") is Temperature, Temperature.probe
    (True, 'temperature')
    >>> forget("temperature")
    """

    probe: ClassVar[str]
    #: Why the probe runs only where ``probes=`` names it; empty: it runs by default.
    on_request: ClassVar[str] = ""
    #: It depends on wall-clock time: the same run may measure something else.
    timed: ClassVar[bool] = False

    def __init_subclass__(cls, *, probe: str, on_request: str = "", timed: bool = False, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.probe, cls.on_request, cls.timed = probe, on_request, timed
        _KINDS[probe] = cls


#: Any kind of measurement.
M = TypeVar("M", bound=Measurement)


def kind_of(probe: str) -> type[Measurement]:
    """The class of a probe's measurement, if its room is imported; else ``ValueError``."""
    if probe not in _KINDS:
        raise ValueError(f"measurements: no probe is called {probe!r}; there are {', '.join(sorted(_KINDS)) or 'none'}")
    return _KINDS[probe]


def forget(probe: str) -> None:
    """Removes a kind again: for examples and tests."""
    _KINDS.pop(probe, None)
