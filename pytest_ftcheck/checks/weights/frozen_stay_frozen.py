"""Frozen parameters and the buffers of frozen modules do not change."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from ...core import arguments
from ...core.formatting import percent, plural
from ...core.intent import PARTS, Intent
from ...core.observations import Buffer, Tensor
from ...core.trace import GLOBS, Trace
from ...core.verdict import Verdict
from ..expected_roles import declared_frozen, ever_trainable, should_learn
from ..spec import Fault, Stage, check
from . import faults

NAME = "frozen_stay_frozen"


@check(
    stage=Stage.WEIGHTS,
    position=3,
    faults=(
        faults.FREEZE_WITHOUT_EFFECT,
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
    """Frozen parameters, and the buffers of modules that are frozen as a whole, do not change by a single bit.

    Without ``part`` and ``include``: what `Intent.frozen` names, what has ``requires_grad=False`` and is not declared to learn, and the
    parameters of a module on which ``requires_grad = False`` was set, which freezes nothing.
    With them: everything selected, whatever its flag, because selecting it declares it frozen. A checksum of every byte is compared;
    parameters that train are compared elementwise.

    :param part: ``head``, ``base`` or ``all``.  :param include, ignore: globs or prefixes of names.
    :raises ValueError: a selection that matches nothing.

    >>> from pytest_ftcheck import example_trace
    >>> check_frozen_stay_frozen(example_trace()).status, check_frozen_stay_frozen(example_trace(), "base").status
    ('skipped', 'fail')
    """
    arguments.one_of("part", part, PARTS, optional=True)
    include = None if include is None else arguments.texts("include", include, GLOBS)
    ignore = None if ignore is None else arguments.texts("ignore", ignore, GLOBS)
    selected = part is not None or include is not None
    tensors = [t for t in _parameters(trace, part, include, ignore) if selected or _should_stay_frozen(t, trace)]
    intent = trace.intent if not selected else None
    buffers = [b for b in trace.buffers if _buffer_is_selected(b, selected, part, include, ignore, intent)]
    measured = "a checksum of every byte before and after; parameters that train elementwise"
    if not tensors and not buffers:
        return Verdict(NAME, "skipped", "nothing is frozen.", measured=measured)
    changed = [t for t in tensors if _changed(t)]
    changed_buffers = [b for b in buffers if not b.unchanged]
    if averages := [t for t in changed if not selected and _is_average(t, trace)]:
        changed = [t for t in changed if t not in averages]
        changed_buffers = [b for b in changed_buffers if not _belongs_to(b, averages)]
        if not changed and not changed_buffers:
            return _moving_average(averages, measured)
    if not changed and not changed_buffers:
        headline = (
            f"{plural(len(tensors), 'parameter')} and {plural(len(buffers), 'buffer')} did not change by a single bit."
        )
        return Verdict(NAME, "pass", headline, measured=measured)
    found = _faults(changed, changed_buffers)
    return found[0].verdict(
        NAME,
        f"{len(changed)} of {plural(len(tensors), 'parameter')} and {len(changed_buffers)} of {plural(len(buffers), 'buffer')} that should "
        f"stay frozen changed{_largest_change(changed, changed_buffers)}.",
        evidence=(
            *(_row(t.name, "parameter", percent(t.motion.share_changed), t.trainable_last) for t in changed),
            *(_row(b.name, "buffer", "-", None) for b in changed_buffers),
        ),
        limit="not one bit changes",
        causes=tuple(fault.cause for fault in found),
        measured=measured,
    )


def _is_average(tensor: Tensor, trace: Trace) -> bool:
    """Nothing but writes between steps moved it, each towards one trainable parameter, and nobody declared it frozen."""
    own = tensor.average_of is not None and tensor.motion.max_update == 0
    return own and not ever_trainable(tensor) and not declared_frozen(tensor, trace)


def _belongs_to(buffer: Buffer, averages: Sequence[Tensor]) -> bool:
    """A buffer of the module that is averaged, or of one around it: its statistics, or the count of the averages."""
    owner = buffer.name.rpartition(".")[0]
    return bool(owner) and any(t.name.startswith(f"{owner}.") for t in averages)


def _moving_average(averages: Sequence[Tensor], measured: str) -> Verdict:
    first, verb = averages[0], "follows" if len(averages) == 1 else "follow"
    return Verdict(
        NAME,
        "advice",
        f"{plural(len(averages), 'frozen parameter')} {verb} a trainable one as a moving average does: {first.name} follows "
        f"{first.average_of}.",
        evidence=tuple(
            {"name": t.name, "follows": t.average_of, "moved": percent(t.motion.share_changed)} for t in averages
        ),
        limit="not one bit changes, but for a teacher or target network",
        causes=(
            "a teacher or target network inside the model is updated towards the trained part (EMA, mean teacher, BYOL, MoCo)",
        ),
        remedy="nothing, if it is meant to; else exclude these parameters from the average",
        measured=measured,
    )


def _faults(changed: Sequence[Tensor], buffers: Sequence[Buffer]) -> list[Fault]:
    """What explains the changes, the most fundamental first."""
    found = []
    in_name = next((t.frozen_in_name_by for t in changed if t.trainable and t.frozen_in_name_by is not None), None)
    training = [t for t in changed if ever_trainable(t)]
    if in_name is not None:
        found.append(faults.FREEZE_WITHOUT_EFFECT.with_details(module=in_name or "the model"))
    elif training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        found.append(faults.NOT_FROZEN.with_details(tensors=f"{training[0].name}{more}"))
    if len(changed) > len(training):
        found.append(faults.FROZEN_WRITTEN)
    if buffers:
        found.append(faults.FROZEN_STATISTICS_DRIFT.with_details(buffer=buffers[0].name))
    return found


def _row(name: str, kind: str, moved: str, requires_grad: bool | None) -> dict[str, Any]:
    return {"name": name, "kind": kind, "moved": moved, "requires_grad": requires_grad}


def _should_stay_frozen(tensor: Tensor, trace: Trace) -> bool:
    """Declared frozen; or frozen in fact and not declared to learn (which would be another fault)."""
    return declared_frozen(tensor, trace) or not (ever_trainable(tensor) or should_learn(tensor, trace))


def _largest_change(changed: Sequence[Tensor], buffers: Sequence[Buffer]) -> str:
    """The parameter that moved farthest, by name; else the first buffer."""
    if not changed:
        return f" ({buffers[0].name} first)"
    farthest = max(changed, key=lambda t: t.motion.relative or 0.0)
    if farthest.motion.relative:
        return f" ({farthest.name} by {percent(farthest.motion.relative)} of its norm)"
    return f" ({farthest.name} first)"


def _parameters(
    trace: Trace, part: str | None, include: str | Sequence[str] | None, ignore: str | Sequence[str] | None
) -> tuple[Tensor, ...]:
    """The selection among the parameters; a pattern may name buffers only."""

    def without_buffers(patterns: str | Sequence[str] | None) -> Any:
        return None if patterns is None else [p for p in patterns if not _names_buffers_only(p, trace)]

    included, ignored = without_buffers(include), without_buffers(ignore)
    if include and not included:
        return ()
    return trace.select(part or "all", included, ignored)


def _names_buffers_only(pattern: str, trace: Trace) -> bool:
    names = [name for t in trace.tensors for name in (t.name, *t.aliases)]
    return any(_matches(b.name, pattern) for b in trace.buffers) and not any(_matches(n, pattern) for n in names)


def _changed(tensor: Tensor) -> bool:
    return tensor.motion.share_changed > 0 if tensor.unchanged is None else not tensor.unchanged


def _buffer_is_selected(
    buffer: Buffer,
    selected: bool,
    part: str | None,
    include: str | Sequence[str] | None,
    ignore: str | Sequence[str] | None,
    intent: Intent | None,
) -> bool:
    if not selected and not buffer.frozen and not (intent is not None and intent.wants_frozen(buffer.name)):
        return False
    if part not in (None, "all", buffer.part):
        return False
    if include is not None and not _matches(buffer.name, include):
        return False
    return ignore is None or not _matches(buffer.name, ignore)


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    listed = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, p) or name.startswith(p + ".") for p in listed)
