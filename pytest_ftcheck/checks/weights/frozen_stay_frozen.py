"""Does what is frozen stay as it is, buffers too?"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from ...core.formatting import percent, plural
from ...core.intent import Intent
from ...core.observations import Buffer, Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import meant_to_learn, meant_to_stay
from ..spec import Stage, check
from . import faults


@check(
    stage=Stage.WEIGHTS,
    position=3,
    faults=(
        faults.NOT_FROZEN,
        faults.FROZEN_WRITTEN,
        faults.FROZEN_STATISTICS_DRIFT,
    ),
)
def check_frozen_stay_frozen(
    trace: Trace,
    part: str | None = None,
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Verdict:
    """Frozen parameters, and the buffers of modules that are frozen as a whole, are bit for bit as before.

    Without ``part`` and ``include``: what `Intent.frozen` names, and what has ``requires_grad=False`` and is not declared to learn.
    With them: everything selected, whatever its flag, for you say that it is meant to stay. A checksum of every byte is compared;
    parameters that train are compared elementwise.

    :param part: ``head``, ``base`` or ``all``.  :param include, ignore: globs or prefixes of names.
    :raises ValueError: a selection that matches nothing.

    >>> from pytest_ftcheck import example_trace
    >>> check_frozen_stay_frozen(example_trace()).status, check_frozen_stay_frozen(example_trace(), "base").status
    ('skipped', 'fail')
    """
    meant = part is not None or include is not None
    tensors = [t for t in _parameters(trace, part, include, ignore) if meant or _should_stay(t, trace)]
    declared = trace.intent if not meant else None
    buffers = [b for b in trace.buffers if _selected(b, meant, part, include, ignore, declared)]
    measured = "a checksum of every byte before and after; parameters that train elementwise"
    if not tensors and not buffers:
        return Verdict("frozen_stay_frozen", "skipped", "nothing is frozen.", measured=measured)
    drifted = [t for t in tensors if _moved(t)]
    changed = [b for b in buffers if not b.unchanged]
    what = f"{plural(len(tensors), 'parameter')} and {plural(len(buffers), 'buffer')}"
    if not drifted and not changed:
        return Verdict("frozen_stay_frozen", "pass", f"{what} are bit for bit as before.", measured=measured)
    training = [t for t in drifted if t.trainable or t.trainable_last]
    causes: list[str] = []
    if training:
        causes.append(
            f"{training[0].name} is not frozen: requires_grad is True"
            + (f" ({len(training)} such)" if len(training) > 1 else "")
            + (": what freezes it was never called, or before it was there" if not meant else "")
        )
    if len(drifted) > len(training):
        causes.append(
            "requires_grad=False stops gradients, not writes: something copies into them (an EMA, load_state_dict, an optimizer "
            "that still holds an old .grad)"
        )
    if changed:
        causes.append(
            f"{changed[0].name} is a running statistic: a frozen BatchNorm in train mode goes on counting; call .eval() on the frozen "
            "module after every model.train()"
        )
    rows: list[dict[str, Any]] = [
        {
            "name": t.name,
            "kind": "parameter",
            "moved": percent(t.motion.share_changed),
            "requires_grad": t.trainable_last,
        }
        for t in drifted
    ]
    rows += [{"name": b.name, "kind": "buffer", "moved": "-", "requires_grad": None} for b in changed]
    return Verdict(
        "frozen_stay_frozen",
        "fail",
        f"{plural(len(drifted), 'parameter')} and {plural(len(changed), 'buffer')} changed of {what} that should stay"
        f"{_first(drifted, changed)}.",
        evidence=tuple(rows),
        limit="not one bit changes",
        causes=tuple(causes),
        remedy="freeze with requires_grad_(False) before the optimizer is built, and keep frozen modules in eval mode",
        measured=measured,
        fault="not_frozen" if training else "frozen_written" if drifted else "frozen_statistics_drift",
    )


def _should_stay(t: Tensor, trace: Trace) -> bool:
    """Declared frozen; or frozen in fact and not declared to learn (which would be another fault)."""
    if meant_to_stay(t, trace):
        return True
    return not (t.trainable or t.trainable_last) and not meant_to_learn(t, trace)


def _first(drifted: Sequence[Tensor], changed: Sequence[Buffer]) -> str:
    """The one that came farthest, by name."""
    if not drifted:
        return f" ({changed[0].name} first)"
    worst = max(drifted, key=lambda t: t.motion.relative or 0.0)
    if worst.motion.relative:
        return f" ({worst.name} by {percent(worst.motion.relative)} of its norm)"
    return f" ({worst.name} first)"


def _parameters(
    trace: Trace, part: str | None, include: str | Sequence[str] | None, ignore: str | Sequence[str] | None
) -> tuple[Tensor, ...]:
    """The selection among the parameters; a pattern may name buffers only."""

    def without_buffers(patterns: str | Sequence[str] | None) -> Any:
        if patterns is None or not isinstance(patterns, Iterable):
            return patterns  # what is no pattern is refused where all selections are made
        several = [patterns] if isinstance(patterns, str) else list(patterns)
        return [p for p in several if not isinstance(p, str) or not _names_buffers_only(p, trace)]

    wanted, unwanted = without_buffers(include), without_buffers(ignore)
    if isinstance(include, (str, Sequence)) and include and not wanted:
        return ()
    return trace.select(part or "all", wanted, unwanted)


def _names_buffers_only(pattern: str, trace: Trace) -> bool:
    names = [name for t in trace.tensors for name in (t.name, *t.aliases)]
    return any(_matches(b.name, pattern) for b in trace.buffers) and not any(_matches(n, pattern) for n in names)


def _moved(t: Tensor) -> bool:
    return t.motion.share_changed > 0 if t.unchanged is None else not t.unchanged


def _selected(
    b: Buffer,
    meant: bool,
    part: str | None,
    include: str | Sequence[str] | None,
    ignore: str | Sequence[str] | None,
    declared: Intent | None,
) -> bool:
    if not meant and not b.frozen and not (declared is not None and declared.wants_frozen(b.name)):
        return False
    if part not in (None, "all", b.part):
        return False
    if include is not None and not _matches(b.name, include):
        return False
    return ignore is None or not _matches(b.name, ignore)


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    several = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, p) or name.startswith(p + ".") for p in several)
