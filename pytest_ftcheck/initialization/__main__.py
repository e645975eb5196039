"""``python -m pytest_ftcheck.initialization``: the trainability map of a model's head, without code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.recipe import OPTIMIZERS
from .head_module import head_of
from .sweep import SEEDS, sweep

#: Initial std of the toy model: its features then depend on the inputs; at DistilBERT's own 0.02 all rows are nearly the same.
TOY_RANGE = 0.1
GRID = {"std": "1e-3:1:12", "lr": "1e-6:1:13"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; bad arguments exit with status 2 and one line that says what is accepted.

    :param arguments: as on the command line; None: those of the process.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        stds, lrs = grid("--std", given.std), grid("--lr", given.lr)
        mark = _mark(given.mark)
        _picture(given.out)
        model, batches, held_out = _subject(given)
        head, features = head_of(model, batches, held_out, head=given.head)
        result = sweep(
            head, features, schemes=stds, lrs=lrs, seeds=given.seeds, steps=given.steps, batch_size=given.batch_size,
            optimizer=given.optimizer, mark=mark,
        )  # fmt: skip
    except (ValueError, TypeError, ImportError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{result}\n")
    if given.json:
        result.save(given.json)
    result.plot().savefig(given.out, dpi=given.dpi)
    sys.stdout.write(f"The map is in {given.out}.\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ftcheck map",
        description="Map which initial standard deviations of a head learn at which learning rates: train many heads on the features of a "
        "frozen base. Without --model and --batches: a tiny DistilBERT with random weights, and toy texts.",
    )
    add = parser.add_argument
    add("--model", metavar="PATH:NAME", help="a model, or a function that makes one: import.path:name")
    add("--batches", metavar="PATH:NAME", help="batches with labels, or a function that makes them")
    add("--held-out", metavar="PATH:NAME", help="other batches to judge by; default: a quarter of the rows")
    add("--head", help="prefix of the head's parameter names; default: found by name")
    add(
        "--std",
        default=GRID["std"],
        metavar="LOW:HIGH:COUNT",
        help="initial standard deviations (default: %(default)s)",
    )
    add("--lr", default=GRID["lr"], metavar="LOW:HIGH:COUNT", help="peak learning rates (default: %(default)s)")
    add("--mark", metavar="STD:LR", help="your own recipe, to be marked, such as 0.02:5e-5")
    add("--seeds", type=int, default=SEEDS, help="seeds for every combination (default: %(default)s)")
    add("--steps", type=int, default=30, help="optimizer steps (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="rows a step (default: %(default)s)")
    add("--optimizer", default="adamw", choices=sorted(OPTIMIZERS), help="(default: %(default)s)")
    add("--out", default="map.png", metavar="FILE", help="the picture, .png, .svg or .pdf (default: %(default)s)")
    add("--json", metavar="FILE", help="also write the numbers")
    add("--dpi", type=int, default=120, help="resolution of the picture (default: %(default)s)")
    return parser


def _subject(given: argparse.Namespace) -> tuple[Any, Any, Any]:
    if (given.model is None) != (given.batches is None):
        raise ValueError("--model and --batches go together: give both, or neither for the toy")
    if given.model is None:
        from ..instruments.toys import tiny_distilbert, toy_batches

        return tiny_distilbert(seed=0, initializer_range=TOY_RANGE), toy_batches(24), toy_batches(8, seed=1)
    batches = _made(found("--batches", given.batches))
    held_out = 0.25 if given.held_out is None else _made(found("--held-out", given.held_out))
    return found("--model", given.model), batches, held_out


def _made(value: Any) -> Any:
    return value() if callable(value) and not hasattr(value, "__iter__") else value


def found(option: str, path: str) -> Any:
    """The object at ``import.path:name``; modules of the current folder can be imported, too.

    >>> found("--model", "math:pi")
    3.141592653589793
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{option}: {path!r}: expected import.path:name")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{option}: {path!r}: {error}") from None
    finally:
        if added:
            sys.path.remove(here)
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise ValueError(f"{option}: {path!r}: {module} has no {name}") from None
    return value


def grid(option: str, text: str) -> list[float]:
    """``low:high:count`` as numbers with equal ratios.

    >>> grid("--lr", "1e-4:1e-2:3")
    [0.0001, 0.001, 0.01]
    """
    try:
        low, high, count = (kind(part) for kind, part in zip((float, float, int), text.split(":"), strict=True))
    except ValueError:
        raise ValueError(f"{option}: {text!r}: expected low:high:count, such as 1e-3:1:12") from None
    if count < 1:
        raise ValueError(f"{option}: {text!r}: expected a count of at least 1")
    if not 0 < low < high < float("inf"):
        raise ValueError(f"{option}: {text!r}: expected 0 < low < high")
    return [float(f"{low * (high / low) ** (i / max(1, count - 1)):.3g}") for i in range(int(count))]


def _mark(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        std, lr = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"--mark: {text!r}: expected std:lr, such as 0.02:5e-5") from None
    return std, lr


def _picture(path: str) -> None:
    """Refuse a format that cannot be written before anything is trained."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the map needs matplotlib: pip install 'pytest-ftcheck[plot]'") from None
    kinds = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in kinds:
        raise ValueError(f"--out: {path!r}: expected a file that ends in one of {', '.join(sorted(kinds))}")


if __name__ == "__main__":
    raise SystemExit(main())
