"""How far apart the tokens of texts of several kinds are: what `tokens_apart` (`pytest_ftcheck.checks.data.held_out_apart`) is limited by.

    python benchmarks/token_distance.py

Words and signs are the tokens, 24 of them a row, up to 512 rows of a kind. Texts are those of this repository and of the packages that it
needs: pages of one documentation (which differ by subject alone), source code, and the same pages in capitals. 0: rows of one source, 1: no
token in common.
"""

from __future__ import annotations

import random
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pytest_ftcheck.checks.data.probe.token_shift import token_shift  # noqa: E402
from pytest_ftcheck.instruments.row_hashes import Rows  # noqa: E402

KINDS = {
    "how-to pages": (ROOT / "docs/how-to", "*.md"),
    "reference pages": (ROOT / "docs/reference/checks", "*.md"),
    "explanations": (ROOT / "docs/explanation", "*.md"),
    "our source": (ROOT / "pytest_ftcheck", "*.py"),
    "torch's source": (Path(torch.__file__).parent / "nn/modules", "*.py"),
}


def rows_of(folder: Path, pattern: str, *, capitals: bool = False, size: int = 24) -> Rows:
    """Rows of 24 tokens from all files, in random order."""
    rows = []
    for file in sorted(folder.rglob(pattern)):
        words = re.findall(r"[A-Za-z]+|[^\sA-Za-z]", file.read_text(encoding="utf-8"))
        ids = [zlib.crc32((w.upper() if capitals else w).encode()) % 30_000 for w in words]
        rows += [np.array(ids[i : i + size]) for i in range(0, len(ids) - size, size)]
    random.Random(0).shuffle(rows)
    return Rows(ids=rows[:512], batch=[0] * len(rows[:512]))


def main() -> None:
    """Print the distances."""
    kinds = {name: rows_of(*where) for name, where in KINDS.items()}
    kinds["how-to pages in capitals"] = rows_of(*KINDS["how-to pages"], capitals=True)
    names = list(kinds)
    for i, one in enumerate(names):
        halves = [kinds[one].select(np.arange(start, len(kinds[one]), 2)) for start in (0, 1)]
        pairs = [
            (one, "the other half of them", *halves),
            *((one, two, kinds[one], kinds[two]) for two in names[i + 1 :]),
        ]
        for a, b, here, there in pairs:
            found = token_shift(here, there)
            assert found is not None
            print(f"{a:26s} {b:26s} {found.excess:5.2f}")


if __name__ == "__main__":
    main()
