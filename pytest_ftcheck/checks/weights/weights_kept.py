"""The optimizer's updates are still in the weights at the end: nothing resets or overwrites them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import should_learn
from ..learning import weight_of_suspicion
from ..spec import Stage, check
from ..tensor_state import lr_rises
from . import faults
from .record import Restores

NAME = "weights_kept"
#: Share of the updates that is still in the weights. Lookahead keeps a half, a norm constraint more; a running average with a decay
#: of 0.9 copied in after every step keeps a tenth of the last steps.
LEAST_KEPT = 0.25
#: Where rounding leaves less than this, even a short run shows what keeps it from learning: what others learn in 20 steps takes it 200.
#: Not while the learning rate still rises: after a warm-up to 1e-3 rounding to 8 bits keeps 98 %, in the first fifth of it 9 %.
LOST = 0.1
#: Writes that are judged: a single one may be a checkpoint restored on purpose, or the second of two phases.
LEAST_WRITES = 2
#: Share of the steps after which writes come "after nearly every step".
NEARLY_EVERY_STEP = 0.8
#: Share of a tensor's elements that ended elsewhere than they began: where the others are restored each time, that is a mask.
WHOLE_TENSOR = 0.95

#: Share of the initial values (rms) that one write took away: less than a hundredth of them was left. A limit in the wrong unit does that;
#: a clip of 0.01, as in WGAN, leaves a tenth or more of the usual initializations.
CRUSHED = 0.99


@check(
    stage=Stage.WEIGHTS,
    position=2,
    faults=(
        faults.WEIGHTS_OVERWRITTEN,
        faults.WEIGHTS_RESET,
        faults.CONSTRAINT_TOO_TIGHT,
        faults.WEIGHTS_ROUNDED,
        faults.RESTORE_WITHOUT_EFFECT,
    ),
)
def check_weights_kept(trace: Trace) -> Verdict:
    """The optimizer's updates are still in the weights at the end: nothing resets or overwrites them.

    For each matrix, ``<displacement, U> / <U, U>``, with ``U`` the sum of the optimizer's updates, is the share of the updates that is
    kept (1 where nothing else writes). Writes between steps are counted as resets if they undo 70 % or more of the displacement so far.
    A constraint (a clamp, or a limit on norms that scales rows, columns or all) resets nothing; one that leaves less than a quarter of the
    updates fails where the run does not learn, and is advice where it does.
    Writes after the last step (weight averaging, the best checkpoint) do not affect the training and are only noted. A state that the loop
    restores is a copy: ``load_state_dict`` is not given the parameters' own memory, changed since ``state_dict()`` returned it.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_weights_kept(example_trace()))
    weights_kept: pass. Nothing but AdamW wrote to the weights between steps.
    """
    name = trace.optimizer.name
    measured = "elementwise, at each step: the values when it begins against those when the last one ended"
    limit = f"at least {percent(LEAST_KEPT)} of the optimizer's updates are kept, and they are undone at most once"
    if not trace.steps:
        return Verdict(NAME, "skipped", "no optimizer step was taken.", measured=measured)
    if (restored := _restored_without_effect(trace)) is not None:
        return restored
    tensors = [t for t in trace.tensors if should_learn(t, trace) and t.motion.max_update > 0]
    written = [t for t in tensors if t.motion.between_steps_writes]
    if not written:
        headline = f"Nothing but {name} wrote to the weights between steps."
        return Verdict(NAME, "pass", headline, limit=limit, measured=measured, notes=_written_after_the_run(tensors))
    overwritten = [t for t in tensors if _is_reset(t) or _is_overwritten(t)]
    if not _decisive(overwritten, tensors):
        constrained = [t for t in written if _is_constrained(t)]
        if _decisive(constrained, tensors):
            return _constraint_too_tight(constrained, trace, limit, measured)
        largest = max(written, key=lambda t: t.motion.between_steps_largest)
        return Verdict(
            NAME,
            "pass",
            f"{plural(len(written), 'tensor')} also changed between steps; {percent(_median_kept(written))} of the updates are kept "
            "(median).",
            limit=limit,
            measured=measured,
            notes=(f"largest such write: rms {number(largest.motion.between_steps_largest)} in {largest.name}",),
        )
    times = max(t.motion.resets or t.motion.between_steps_writes for t in overwritten)
    steps = len(trace.steps)
    always = times >= NEARLY_EVERY_STEP * steps
    when = "after nearly every step" if always else f"{plural(times, 'time')} in {steps} steps"
    fault = (
        faults.WEIGHTS_OVERWRITTEN.with_details(optimizer=name)
        if always
        else faults.WEIGHTS_RESET.with_details(steps=f"{steps / times:.0f}")
    )
    verb = "is" if len(overwritten) == 1 else "are"
    return fault.verdict(
        NAME,
        f"{_subject(overwritten, trace)} {verb} overwritten between optimizer steps, {when}: "
        f"{percent(max(0.0, _median_kept(overwritten)))} of {name}'s updates are kept (median).",
        evidence=_rows(overwritten),
        limit=limit,
        measured=measured,
    )


def _rows(tensors: Sequence[Tensor]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "tensor": t.name,
            "kept": None if t.motion.retained is None else percent(max(0.0, t.motion.retained)),
            "writes": t.motion.between_steps_writes,
            "resets": t.motion.resets,
            "largest write (rms)": t.motion.between_steps_largest,
            "largest step (rms)": t.motion.max_update,
        }
        for t in sorted(tensors, key=lambda t: (t.part != "head", t.motion.retained or 0.0))
    )


def _constraint_too_tight(tensors: Sequence[Tensor], trace: Trace, limit: str, measured: str) -> Verdict:
    verb = "is" if len(tensors) == 1 else "are"
    status = weight_of_suspicion(trace)
    rounded = all(t.motion.roundings == t.motion.between_steps_writes for t in tensors)
    fault = (
        faults.WEIGHTS_ROUNDED.with_details(optimizer=trace.optimizer.name) if rounded else faults.CONSTRAINT_TOO_TIGHT
    )
    warming_up = all(lr_rises(t, trace) for t in tensors)
    if rounded and status == "inconclusive" and _median_kept(tensors) < LOST and not warming_up:
        status = "fail"
    how = "rounded" if rounded else "clamped or scaled to a constraint"
    what = f"{percent(max(0.0, _median_kept(tensors)))} of {trace.optimizer.name}'s updates are kept (median)"
    if all(_is_crushed(t) for t in tensors):
        what = f"less than {percent(1 - CRUSHED)} of the initial values is left"
        # without them even a short run shows what keeps it from learning
        status = "fail" if status == "inconclusive" else status
    return fault.verdict(
        NAME,
        f"{_subject(tensors, trace)} {verb} {how} between optimizer steps: {what}.",
        status,
        evidence=_rows(tensors),
        limit=limit,
        measured=measured,
    )


def _restored_without_effect(trace: Trace) -> Verdict | None:
    restores = trace.measured(Restores)
    if restores is None or not restores.without_effect:
        return None
    own = plural(restores.parameters, "trainable parameter")
    times = "" if restores.without_effect == 1 else f" in {restores.without_effect} of {plural(restores.calls, 'call')}"
    return faults.RESTORE_WITHOUT_EFFECT.verdict(
        NAME,
        f"load_state_dict was given the model's own {own}{times}: {restores.changed} of them had changed since state_dict() returned them, "
        "and stayed as they were.",
        limit="what is loaded has memory of its own",
        measured="the memory of what the loop's calls of load_state_dict are given",
    )


def _written_after_the_run(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    late = [t for t in tensors if t.motion.between_steps > 0]
    if not late:
        return ()
    return (
        f"{plural(len(late), 'tensor')} changed after the last step (weight averaging, a checkpoint): {late[0].name}",
    )


def _is_reset(tensor: Tensor) -> bool:
    return _as_a_whole(tensor) and tensor.motion.between_steps_writes > 0 and tensor.motion.resets >= LEAST_WRITES


def _is_overwritten(tensor: Tensor) -> bool:
    often = tensor.motion.between_steps_writes - tensor.motion.projections >= LEAST_WRITES
    return often and _keeps_little(tensor)


def _is_constrained(tensor: Tensor) -> bool:
    little = _keeps_little(tensor) or (_as_a_whole(tensor) and _is_crushed(tensor))
    return tensor.motion.projections >= LEAST_WRITES and little


def _is_crushed(tensor: Tensor) -> bool:
    first, taken = tensor.first.rms, tensor.motion.between_steps_largest
    return first > 0 and taken >= CRUSHED * first and tensor.last.rms <= (1 - CRUSHED) * first


def _keeps_little(tensor: Tensor) -> bool:
    kept = tensor.motion.retained
    return _as_a_whole(tensor) and kept is not None and kept < LEAST_KEPT


def _as_a_whole(tensor: Tensor) -> bool:
    """Whether writes reach all of it: where some elements are restored again and again and others are not, that is a mask."""
    return tensor.motion.share_changed >= WHOLE_TENSOR or tensor.motion.share_changed == 0


def _decisive(overwritten: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Half of the matrices of the head or of the model; one alone may have a constraint of its own, as a vector or a table may."""
    for part in ("head", "all"):
        matrices = [t for t in tensors if len(t.shape) > 1 and t.role != "embedding" and part in ("all", t.part)]
        if matrices and 2 * sum(t in overwritten for t in matrices) >= len(matrices):
            return True
    return False


def _median_kept(tensors: Sequence[Tensor]) -> float:
    shares = sorted(t.motion.retained for t in tensors if t.motion.retained is not None)
    return shares[len(shares) // 2] if shares else 0.0


def _subject(tensors: Sequence[Tensor], trace: Trace) -> str:
    if {t.part for t in tensors} == {"head"}:
        return f"{plural(len(tensors), 'head tensor')} ({tensors[0].name} first)"
    return f"{len(tensors)} of {plural(len(trace.tensors), 'tensor')}"
