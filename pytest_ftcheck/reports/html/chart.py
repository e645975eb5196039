"""What a chart is: its numbers, the table that says the same, the legend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...core.serialization import encode

#: Pixels of the charts whose height does not depend on the numbers, axes included (see `drawing`).
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
    """One column of the table that says the same as the chart."""

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
    #: Which specification draws it.
    kind: str
    #: What is to be seen, in one sentence with numbers: for those who do not see it.
    description: str = ""
    #: Dataset -> blocks of rows; a block has what its rows have in common, and the columns in which they differ.
    data: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: The table beside it. For curves (``pivot``) one column a curve.
    columns: tuple[Column, ...] = ()
    pivot: bool = False
    legend: tuple[Key, ...] = ()
    #: A remark under it, and the sentence that stands in its place where there is nothing to draw.
    note: str = ""
    missing: str = ""

    @property
    def height(self) -> int:
        """Pixels that it will take, about: kept free, so that nothing jumps when it is drawn."""
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
