"""pytest-ftcheck: know within seconds whether a fine-tune really learns.

The public names are imported when first used, so that importing the package, as pytest does at start-up, costs nothing. Every check has its
``check_x`` and ``assert_x`` here, found by `checks.catalogue`; ``__init__.pyi`` tells editors and type checkers of all of them.
"""

from __future__ import annotations

import importlib
from typing import Any

from .core.late_binding import PROVIDERS
from .core.public_names import HOME_OF
from .core.version import __version__

# what the core calls in rooms above it
PROVIDERS.update(
    {
        name: f"{__name__}.{place}"
        for name, place in {
            "apply_scheme": "initialization.apply_scheme:apply",
            "assert_healthy": "checks.diagnosis:assert_healthy",
            "heatmap": "initialization.heatmap:draw",
            "log": "reports.trackers.log:log",
            "measurements": "checks.catalogue:load_measurements",
            "notebook_diagnosis": "reports.notebook:of_diagnosis",
            "notebook_trace": "reports.notebook:of_trace",
            "notebook_verdict": "reports.notebook:of_verdict",
            "page": "reports.html.page:page_of_traces",
            "plot": "reports.plot:draw",
            "table": "reports.trace_table:describe",
            "tensorboard": "reports.trackers.log:to_tensorboard",
        }.items()
    }
)


def __getattr__(name: str) -> Any:
    value: Any
    if name in HOME_OF:
        value = getattr(importlib.import_module(f".{HOME_OF[name]}", __name__), name)
    elif name == "__all__":
        from .checks.catalogue import CHECKS

        of_checks = (f"{kind}_{check}" for kind in ("assert", "check") for check in CHECKS)
        value = sorted([*HOME_OF, "__version__", *of_checks])
    elif name.startswith(("check_", "assert_")):
        from .checks.assertions import ASSERTIONS
        from .checks.catalogue import CHECKS

        kind, _, check = name.partition("_")
        found = CHECKS if kind == "check" else ASSERTIONS
        if check not in found:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}: there is no check {check!r}")
        value = found[check]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
