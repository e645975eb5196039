"""Faults and healthy controls: what `test_fault_matrix.py` and `benchmarks/detection.py` run.

``FAULTS`` and ``CONTROLS`` map a name to a `Case`; `observe` runs one without any testing tool.
"""

from __future__ import annotations

import importlib

from .cases import CASES, FAMILIES, Case, Run, Seen, observe

MODULES = (
    "wiring",
    "gradients",
    "motion",
    "losses",
    "schedules",
    "inputs",
    "modes",
    "heads",
    "data",
    "numerics",
    "adapters",
    "evaluation",
    "accumulation",
    "token_labels",
    "embeddings",
    "stopping",
    "scales",
    "controls",
    "controls_tasks",
    "altered",
    "soft_labels",
)
for _name in MODULES:
    importlib.import_module(f"{__name__}.{_name}")

FAULTS: dict[str, Case] = {n: c for n, c in CASES.items() if not c.healthy}
CONTROLS: dict[str, Case] = {n: c for n, c in CASES.items() if c.healthy}

__all__ = ["CASES", "CONTROLS", "FAMILIES", "FAULTS", "Case", "Run", "Seen", "observe"]
