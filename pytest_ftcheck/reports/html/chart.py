"""A chart: its data, the same data as a table, the legend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...core.serialization import encode

#: Pixels of the charts whose height does not depend on the numbers, axes included (see ``charts.js``).
HEIGHTS = {"loss": 331, "lines": 237, "log": 257, "histogram": 237, "time": 237, "metric": 82}


@dataclass(frozen=True)
class Key:
    """One line of a legend."""

    name: str
    ink: str
    wide: float = 2.0
    dash: tuple[int, ...] = ()
    #: ``line``, ``box`` or ``tick``.
    shape: str = "line"


@dataclass(frozen=True)
class Column:
    """One column of the chart's table."""

    field: str
    title: str


@dataclass(frozen=True)
class Chart:
    """One chart of one run.

    >>> Chart("loss", "Loss", "lines").drawn
    False
    """

    id: str
    title: str
    #: The specification that draws it.
    kind: str
    #: The chart in one sentence with numbers, for screen readers.
    description: str = ""
    #: Dataset -> blocks of rows; a block has the values that its rows share, and the columns in which they differ.
    data: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: Columns of its table. For curves (``pivot``) one column a curve.
    columns: tuple[Column, ...] = ()
    pivot: bool = False
    legend: tuple[Key, ...] = ()
    #: A remark below it, and the sentence that replaces it where there is nothing to draw.
    note: str = ""
    missing: str = ""

    @property
    def height(self) -> int:
        """Approximate height in pixels, reserved so that nothing jumps when it is drawn."""
        if self.kind in HEIGHTS:
            return HEIGHTS[self.kind]
        (bars,) = self.data.get("bars", [{"columns": {"": []}}])
        count = len(next(iter(bars["columns"].values())))
        return 47 + 21 * count

    @property
    def drawn(self) -> bool:
        """Whether there is something to draw."""
        return not self.missing and bool(self.data)

    def plain(self) -> dict[str, Any]:
        """For the page's script; standard JSON."""
        plain: dict[str, Any] = encode(
            {
                "kind": self.kind,
                "description": self.description,
                "data": self.data,
                "columns": [[c.field, c.title] for c in self.columns],
                "pivot": self.pivot,
            }
        )
        return plain
