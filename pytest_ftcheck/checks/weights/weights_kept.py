"""What the optimizer did to the weights is still there at the end: nothing resets or overwrites them."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.formatting import number, percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import meant_to_learn
from ..spec import Stage, check
from . import faults

#: Share of the optimizer's work that is still there. Lookahead keeps a half, a norm constraint more; a running average with a decay
#: of 0.9 copied in after every step a tenth of the last steps.
LEAST_KEPT = 0.25
#: Writes that it takes to speak of a habit; one alone may be a checkpoint restored on purpose, or the second of two phases.
HABIT = 2
#: Steps after which a write comes, as a share of all, to be "after nearly every step".
ALWAYS = 0.8
#: Share of a tensor's elements that ended elsewhere than they began: where the others are put back each time, that is a mask.
WHOLE = 0.95


@check(
    stage=Stage.WEIGHTS,
    position=2,
    faults=(
        faults.WEIGHTS_OVERWRITTEN,
        faults.WEIGHTS_RESET,
    ),
)
def check_weights_kept(trace: Trace) -> Verdict:
    """What the optimizer did to the weights is still there at the end: nothing resets or overwrites them.

    For each matrix: ``<displacement, U> / <U, U>``, ``U`` the sum of the optimizer's updates, is the share of its work that is kept (1
    where nothing else writes), and the writes between steps are counted that take back 70 % or more of the way made so far. Writes
    after the last step (weight averaging, the best checkpoint) take nothing from the training and are only mentioned.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_weights_kept(example_trace()))
    weights_kept: pass. Nothing but AdamW wrote to the weights between steps.
    """
    name = trace.optimizer.name
    measured = "elementwise, at each step: the values when it begins against those when the last one ended"
    limit = f"at least {percent(LEAST_KEPT)} of the optimizer's work is kept, and no write takes it back more than once"
    if not trace.steps:
        return Verdict("weights_kept", "skipped", "no optimizer step was taken.", measured=measured)
    tensors = [t for t in trace.tensors if meant_to_learn(t, trace) and t.motion.max_update > 0]
    written = [t for t in tensors if t.motion.between_steps_writes]
    if not written:
        late = [t for t in tensors if t.motion.between_steps > 0]
        after = "changed after the last step (weight averaging, a checkpoint)"
        notes = (f"{plural(len(late), 'tensor')} {after}: {late[0].name}",) if late else ()
        return Verdict(
            "weights_kept",
            "pass",
            f"Nothing but {name} wrote to the weights between steps.",
            limit=limit,
            measured=measured,
            notes=notes,
        )
    reset = [t for t in written if _whole(t) and t.motion.resets >= HABIT]
    lost = [
        t
        for t in written
        if _whole(t)
        and t.motion.between_steps_writes >= HABIT
        and t.motion.retained is not None
        and t.motion.retained < LEAST_KEPT
    ]
    ill = [t for t in tensors if t in reset or t in lost]
    if not _decisive(ill, tensors):
        return Verdict(
            "weights_kept",
            "pass",
            f"{plural(len(written), 'tensor')} also changed between steps; {percent(_kept(written))} of the work is kept (median).",
            limit=limit,
            measured=measured,
            notes=(
                f"largest such write: rms {number(_largest(written).motion.between_steps_largest)} in {_largest(written).name}",
            ),
        )
    times = max(t.motion.resets or t.motion.between_steps_writes for t in ill)
    steps = len(trace.steps)
    always = times >= ALWAYS * steps
    when = "after nearly every step" if always else f"{plural(times, 'time')} in {steps} steps"
    where = _where(ill, trace)
    cause = (
        f"something writes to them after nearly every step: the weights of a running average (EMA) copied into the model, or a state_dict "
        f"loaded again, or values saved before {name}.step()"
        if always
        else f"something puts them back or makes them anew every {steps / times:.0f} steps or so: an initialisation or a checkpoint "
        "loaded at the start of each epoch"
    )
    return Verdict(
        "weights_kept",
        "fail",
        f"{where} {'is' if len(ill) == 1 else 'are'} overwritten between optimizer steps, {when}: {percent(max(0.0, _kept(ill)))} of "
        f"{name}'s work is kept (median).",
        evidence=tuple(
            {
                "tensor": t.name,
                "kept": None if t.motion.retained is None else percent(max(0.0, t.motion.retained)),
                "writes": t.motion.between_steps_writes,
                "taken back": t.motion.resets,
                "largest write (rms)": t.motion.between_steps_largest,
                "largest step (rms)": t.motion.max_update,
            }
            for t in sorted(ill, key=lambda t: (t.part != "head", t.motion.retained or 0.0))
        ),
        limit=limit,
        causes=(cause,),
        remedy="look for copy_, load_state_dict, .data = and apply(init) inside the loop; keep an average in a copy of the model",
        measured=measured,
        fault="weights_overwritten" if always else "weights_reset",
    )


def _whole(t: Tensor) -> bool:
    """It is written to as a whole: where some elements are put back again and again and others are not, that is a mask."""
    return t.motion.share_changed >= WHOLE or t.motion.share_changed == 0


def _decisive(ill: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Half of the matrices of the head or of the model; one alone may have a constraint of its own, as a vector or a table may."""
    for part in ("head", "all"):
        matrices = [t for t in tensors if len(t.shape) > 1 and t.role != "embedding" and part in ("all", t.part)]
        if matrices and 2 * sum(t in ill for t in matrices) >= len(matrices):
            return True
    return False


def _kept(tensors: Sequence[Tensor]) -> float:
    shares = sorted(t.motion.retained for t in tensors if t.motion.retained is not None)
    return shares[len(shares) // 2] if shares else 0.0


def _largest(tensors: Sequence[Tensor]) -> Tensor:
    return max(tensors, key=lambda t: t.motion.between_steps_largest)


def _where(ill: Sequence[Tensor], trace: Trace) -> str:
    parts = {t.part for t in ill}
    if parts == {"head"}:
        return f"{plural(len(ill), 'head tensor')} ({ill[0].name} first)"
    return f"{len(ill)} of {plural(len(trace.tensors), 'tensor')}"
