"""The model starts from the declared pretrained values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...core.formatting import block_of, clean, number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Stage, check, declared_not_measured, not_measured
from . import faults
from .harm import harm_of_alteration, readout_of
from .record import Differing, Pretrained

NAME = "pretrained_kept"
#: Kinds of difference that a healthy start explains.
HARMLESS = ("rounded", "close", "resized")
#: Share of the declared base tensors that counts as all of it: some biases start at zero in any checkpoint.
WHOLE = 0.9
_DIFFERENCES = {
    "rounded": "rounded to a smaller dtype",
    "close": "slightly different",
    "resized": "rows added or cut off",
    "shape": "another shape",
    "scaled": "the same times a factor",
    "shifted": "the same plus a constant",
    "scaled and shifted": "the same times a factor, plus a constant",
    "refilled": "another constant",
    "shuffled": "the same values in another order",
    "misplaced": "the declared values of another tensor",
    "constant": "reset to a constant",
    "rows zeroed": "the same, but for whole rows that are zero",
    "changed": "changed, still related",
    "unrelated": "unrelated to the declared values",
}
#: Kind of difference -> fault; the others mean tensors that were not loaded, or re-initialised.
_FAULTS = {
    "shape": faults.PRETRAINED_OTHER_SHAPE,
    "scaled": faults.PRETRAINED_SCALED,
    "shifted": faults.PRETRAINED_SHIFTED,
    "scaled and shifted": faults.PRETRAINED_SCALED_AND_SHIFTED,
    "refilled": faults.PRETRAINED_REFILLED,
    "shuffled": faults.PRETRAINED_SHUFFLED,
    "misplaced": faults.PRETRAINED_MISPLACED,
    "rows zeroed": faults.PRETRAINED_ROWS_ZEROED,
    "constant": faults.PRETRAINED_FILLED,
    "changed": faults.PRETRAINED_CHANGED,
}
_MEASURED_NAMED = "every parameter of the base against the file, before the first step"
_MEASURED = "every declared tensor against the parameter of that name before the first step"


@check(
    stage=Stage.START,
    position=2,
    faults=(
        faults.PRETRAINED_NOT_LOADED,
        faults.PRETRAINED_PARTLY_LOST,
        faults.PRETRAINED_OTHER_SHAPE,
        faults.PRETRAINED_SCALED,
        faults.PRETRAINED_SHIFTED,
        faults.PRETRAINED_SHUFFLED,
        faults.PRETRAINED_CHANGED,
    ),
    measurements=(Pretrained,),
)
def check_pretrained_kept(trace: Trace) -> Verdict:
    """Every declared base tensor starts with the declared values (``Intent(pretrained=state_dict)``), up to rounding.

    Formula: ``|w - declared| / |declared|`` (L2) of each tensor is at most 0.05; up to 0.004 is what casting to bf16 and back does.
    Where it is more, the correlation shows what happened: unrelated values (re-initialised after loading, or never loaded), the same
    values in another order (transposed), times a factor, plus a constant, or reset to one. Tensors of the head are noted, not judged: a
    checkpoint usually gets a new head.

    Where nothing is declared, the checkpoint that a library base's config names is read, if it lies on this machine and most tensors are
    its own bit for bit. Then only values count that neither training nor an initialiser leaves behind (scaled, shifted, shuffled, of
    another tensor, a constant, rows of zeros); they are a fault where the run does not learn, or where they make the features clearly
    worse for the task and the run does not make up for it; else advice.

    >>> from pytest_ftcheck import example_trace
    >>> check_pretrained_kept(example_trace()).status
    'inconclusive'
    """
    found = trace.measured(Pretrained)
    if found is None:
        return not_measured(NAME, trace, Pretrained)
    if found.error is not None:
        return declared_not_measured(NAME, trace, Pretrained, found.error)
    if found.named is not None:
        return _against_named(found, trace)
    faulty = [d for d in found.differing if d.part != "head" and d.kind not in HARMLESS]
    if not faulty:
        kept = found.equal + sum(d.kind in HARMLESS for d in found.differing)
        return Verdict(
            NAME,
            "pass",
            f"{kept} of {plural(found.compared, 'declared tensor')} start with the declared values ({found.equal} bit for bit).",
            measured=_MEASURED,
            notes=_notes(found),
        )
    in_base = found.compared - sum(d.part == "head" for d in found.differing)
    kind = _decisive_kind(faulty)
    # norms and biases at a constant, beside unrelated matrices: re-initialised, all of them
    alike = [d for d in faulty if d.kind == kind] + [d for d in faulty if d.kind == "constant" and kind == "unrelated"]
    whole = len(faulty) >= WHOLE * in_base
    return _explain(kind, alike, trace.head, whole=whole, initializer_range=found.initializer_range).verdict(
        NAME,
        f"{len(faulty)} of {plural(in_base, 'declared tensor')} do not start from the declared pretrained values: {alike[0].name} is "
        f"{_DIFFERENCES[alike[0].kind]}{_difference(alike[0])}.",
        evidence=_rows(faulty),
        limit="|w - declared| / |declared| <= 0.05 for every base tensor; casting to bf16 and back gives 0.002",
        measured=_MEASURED,
        notes=_notes(found),
    )


def _against_named(found: Pretrained, trace: Trace) -> Verdict:
    """Nothing was declared: a start from later training or with new top layers is none of our business, but edited values are."""
    edited = [d for d in found.differing if d.edited]
    where = f"the checkpoint that the base's config names ({clean(found.named or '')})"
    if not edited:
        others = tuple(d.name for d in found.differing if d.kind not in HARMLESS)
        notes = (f"{plural(len(others), 'tensor')} start otherwise, and not by an edit: {others[0]}",) if others else ()
        headline = f"{found.equal} of {plural(found.compared, 'tensor')} start with the values of {where}, bit for bit."
        return Verdict(NAME, "pass", headline, measured=_MEASURED_NAMED, notes=notes)
    readout = readout_of(trace)
    if readout is not None and readout.change == 0:
        notes = (
            f"{plural(len(edited), 'tensor')} edited, which changes no feature of {readout.rows} rows: {edited[0].name}",
        )
        headline = f"{found.equal} of {plural(found.compared, 'tensor')} start with the values of {where}, bit for bit."
        return Verdict(NAME, "pass", headline, measured=_MEASURED_NAMED, notes=notes)
    harm = harm_of_alteration(trace)
    kind = _decisive_kind(edited)
    alike = [d for d in edited if d.kind in (kind, "constant")]
    if all(d.kind == "constant" for d in alike):
        kind = "constant"
    fault = _explain(kind, alike, trace.head, whole=False, initializer_range=None)
    return replace(fault, confidence="likely").verdict(
        NAME,
        f"{len(edited)} of {plural(found.compared, 'tensor')} do not start with the values of {where}: {alike[0].name} is "
        f"{_DIFFERENCES[alike[0].kind]}{_difference(alike[0])}.{harm.sentence}",
        harm.status,
        evidence=_rows(edited),
        limit=harm.limit,
        measured=_MEASURED_NAMED,
        notes=harm.notes,
    )


def _decisive_kind(faulty: Sequence[Differing]) -> str:
    """The kind of difference that most tensors have."""
    kinds = Counter("unrelated" if d.kind == "constant" else d.kind for d in faulty)
    # values of other tensors do not come there by chance, while the biases beside them look merely unrelated or changed
    return "misplaced" if 3 * kinds["misplaced"] >= len(faulty) else kinds.most_common(1)[0][0]


def _difference(d: Differing) -> str:
    if d.shape != d.declared_shape:
        return f" ({d.shape}, declared {d.declared_shape})"
    if d.std == 0 and d.mean is not None:
        return f" ({number(d.mean)}, declared a mean of {number(d.declared_mean)})"
    if d.correlation is None:
        return f" (std {number(d.std)}, declared {number(d.declared_std)})"
    return f" (correlation {d.correlation:.3f}, relative difference {number(d.relative)})"


def _explain(
    kind: str, differing: Sequence[Differing], head: Sequence[str], *, whole: bool, initializer_range: float | None
) -> Fault:
    blocks = list(dict.fromkeys(block_of(d.name) for d in differing))
    where = ", ".join(blocks[:3]) + (f" and {len(blocks) - 3} more" if len(blocks) > 3 else "")
    stds = sorted(d.std for d in differing if d.kind == "unrelated" and len(d.shape) > 1)
    own = [s for s in stds if initializer_range and abs(s / initializer_range - 1) < 0.1]
    drawn_as = f" (std {number(stds[len(stds) // 2])}, as config.initializer_range)" if 2 * len(own) > len(stds) else ""
    lost = faults.PRETRAINED_NOT_LOADED if whole else faults.PRETRAINED_PARTLY_LOST
    return _FAULTS.get(kind, lost).with_details(
        where="the whole base" if whole else where,
        drawn_as=drawn_as,
        head=head[0] if head else "classifier",
    )


def _notes(found: Pretrained) -> tuple[str, ...]:
    notes = []
    for kind in HARMLESS:
        some = [d for d in found.differing if d.kind == kind and d.part != "head"]
        if some:
            notes.append(f"{plural(len(some), 'tensor')} {_DIFFERENCES[kind]}: {some[0].name}")
    heads = [d for d in found.differing if d.part == "head"]
    if heads:
        notes.append(
            f"{plural(len(heads), 'tensor')} of the head differ from the declared ones: {heads[0].name}; not judged"
        )
    if found.undeclared:
        notes.append(f"{plural(found.undeclared, 'base tensor')} of the model were not declared")
    if found.unknown:
        notes.append(f"{plural(found.unknown, 'declared name')} are not in the model")
    return tuple(notes)


def _rows(differing: Sequence[Differing]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "tensor": d.name,
            "relative difference": d.relative,
            "correlation": d.correlation,
            "std": d.std,
            "declared std": d.declared_std,
            "why": _DIFFERENCES[d.kind],
        }
        for d in differing
    )
