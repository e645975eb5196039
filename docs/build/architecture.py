"""The picture and the tables of rooms in ``docs/explanation/architecture.md``, drawn from the code's own imports and docstrings.

``python docs/build/architecture.py --write`` after a room has come, gone or imported another; a test compares.
"""

from __future__ import annotations

import ast
import functools
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pytest_ftcheck"
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
#: The files at the package's top count as one room.
FACE = "pytest_ftcheck"
_TOP = {"__init__": FACE, "__main__": FACE}
#: Width and height of a room in the picture, the gaps between them, and the columns of its caption.
BOX, GAP, COLUMNS = (236, 78), (26, 54), 38


def room_of(module: str) -> str:
    """The room of a module named from the package's root.

    >>> room_of("checks.spec"), room_of("__main__")
    ('checks', 'pytest_ftcheck')
    """
    top = module.partition(".")[0]
    return _TOP.get(top, top)


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top, in functions and for its types."""
    package = list(path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            named = [*base, *(node.module or "").split(".")] if node.module else base
            found |= {".".join([*named, alias.name]) for alias in node.names} if not named else {".".join(named)}
    return found


@functools.cache
def arrows() -> dict[str, frozenset[str]]:
    """Room -> the rooms that it imports.

    >>> "instruments" in arrows()["training"], arrows()["core"]
    (True, frozenset())
    """
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        here = room_of(_module(path))
        found.setdefault(here, set()).update(room_of(m) for m in _imported(path))
    return {room: frozenset(targets - {room}) for room, targets in found.items()}


@functools.cache
def floor_of(room: str) -> int:
    """Every room stands above all that it imports; the ground is 0."""
    return 1 + max((floor_of(target) for target in arrows()[room]), default=-1)


def direct(room: str) -> list[str]:
    """The rooms that it imports, less those that it reaches through another of them."""
    targets = arrows()[room]

    def reached(start: str) -> set[str]:
        return {t for mid in arrows()[start] for t in (mid, *reached(mid))}

    return sorted(t for t in targets if not any(t in reached(other) for other in targets if other != t))


def caption(room: str) -> str:
    """What a room says of itself: the first sentence of its docstring."""
    path = PACKAGE / "__init__.py" if room == FACE else PACKAGE / room / "__init__.py"
    path = path if path.is_file() else PACKAGE / f"{room}.py"
    told = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return " ".join(told.split()).replace("`", "")


def picture() -> str:
    """The rooms on their floors, as SVG; arrows that follow from others are left out."""
    floors: dict[int, list[str]] = {}
    for room in sorted(arrows()):
        floors.setdefault(floor_of(room), []).append(room)
    step = BOX[0] + GAP[0]
    width = max(map(len, floors.values())) * step + GAP[0]
    height = len(floors) * (BOX[1] + GAP[1]) + GAP[0]
    place: dict[str, tuple[float, float]] = {}
    for floor in sorted(floors):
        # above the middle of what it imports, as far as the neighbours on its floor leave room
        wanted = {
            room: sum(place[t][0] for t in direct(room)) / len(direct(room)) if direct(room) else (width - BOX[0]) / 2
            for room in floors[floor]
        }
        row = sorted(wanted, key=lambda room: (wanted[room], room))
        middle = sum(wanted.values()) / len(row) - (len(row) - 1) * step / 2
        for i, room in enumerate(row):
            left = wanted[room] if len(row) == 1 else middle + i * step
            left = min(max(left, GAP[0] + i * step), width - (len(row) - i) * step)
            place[room] = (left, height - GAP[0] - (floor + 1) * (BOX[1] + GAP[1]) + GAP[1])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<title>The rooms of pytest_ftcheck: each imports only rooms below it</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#4a6f78"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fbfaf7"/>',
    ]
    for room in sorted(arrows()):
        for target in direct(room):
            (x, y), (u, v) = place[room], place[target]
            x, y, u = x + BOX[0] / 2, y + BOX[1], u + BOX[0] / 2
            bend = (v - y) / 2
            lines.append(
                f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {u:g} {v - bend:g} {u:g} {v - 2:g}" fill="none" stroke="#4a6f78" '
                'stroke-width="1.4" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in sorted(place.items()):
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="7" fill="#e5efee" stroke="#4a6f78"/>'
            f'<text x="{x + 12:g}" y="{y + 21:g}" font-size="15" font-weight="bold" fill="#17343a">{escape(room)}</text>'
        )
        for i, line in enumerate(textwrap.wrap(caption(room), COLUMNS)[:3]):
            lines.append(
                f'<text x="{x + 12:g}" y="{y + 39 + 15 * i:g}" font-size="11.5" fill="#33484c">{escape(line)}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


def table(folder: str = "") -> str:
    """The rooms of the package, or of ``checks``, with what they say of themselves; the highest first."""
    if folder:
        inside = sorted(p.name for p in (PACKAGE / folder).iterdir() if (p / "__init__.py").is_file())
        rows = [f"| `{folder}/{name}/` | {caption(f'{folder}/{name}')} |" for name in inside]
        return "\n".join(["| room | what it is about |", "|---|---|", *rows])

    def imported(room: str) -> str:
        lowest_first = sorted(arrows()[room], key=lambda target: (floor_of(target), target))
        return ", ".join(f"`{target}`" for target in lowest_first) or "nothing of ours"

    rows = [
        f"| {_linked(room)} | {caption(room)} | {imported(room)} |"
        for room in sorted(arrows(), key=lambda r: (-floor_of(r), r))
    ]
    return "\n".join(["| room | what lives there | imports |", "|---|---|---|", *rows])


def _linked(room: str) -> str:
    return f"`{room}/`" if (PACKAGE / room).is_dir() else f"`{room}`"


def page() -> str:
    """The page with its tables as they have to be today."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in (("rooms", table()), ("rooms of checks", table("checks"))):
        head, found, rest = text.partition(f"<!-- {name} -->\n")
        if not found or f"<!-- /{name} -->" not in rest:
            raise ValueError(f"{PAGE.name} has no <!-- {name} --> ... <!-- /{name} -->")
        text = f"{head}{found}\n{made}\n\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    return text


def today() -> dict[Path, str]:
    """What is made here, as it has to be."""
    return {PAGE: page(), PICTURE: picture()}


if __name__ == "__main__":
    stale = {
        path: text for path, text in today().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        if "--write" in sys.argv:
            path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    sys.exit(0 if "--write" in sys.argv or not stale else 1)
