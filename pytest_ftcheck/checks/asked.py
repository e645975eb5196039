"""What is measured only when it is asked for."""

from __future__ import annotations

from ..trace import Trace


def not_asked(trace: Trace, probe: str) -> str:
    """Why an experiment that ``probes=`` has to name was not made."""
    why = trace.skipped.get(probe, "")
    if why and "probes= asked for" not in why:
        return why
    return f"not measured: it trains again, and is made only when probes= names {probe!r}."
