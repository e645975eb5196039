"""The model starts from the pretrained values that it is said to start from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...core.formatting import block_of, number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Differing, Head, Pretrained

#: Kinds of difference that a healthy start explains.
HARMLESS = ("rounded", "close", "resized")
#: Share of the declared base tensors that counts as all of it: some biases start at zero in any checkpoint.
WHOLE = 0.9
_WHY = {
    "rounded": "rounded to a smaller dtype",
    "close": "slightly different",
    "resized": "rows added or cut off",
    "shape": "another shape",
    "scaled": "the same times a factor",
    "shuffled": "the same values in another order",
    "misplaced": "the declared values of another tensor",
    "constant": "reset to a constant",
    "changed": "changed, still related",
    "unrelated": "unrelated to the declared values",
}


@check(
    stage=Stage.START,
    position=2,
    faults=(
        faults.PRETRAINED_NOT_LOADED,
        faults.PRETRAINED_PARTLY_LOST,
        faults.PRETRAINED_OTHER_SHAPE,
        faults.PRETRAINED_SCALED,
        faults.PRETRAINED_SHUFFLED,
        faults.PRETRAINED_CHANGED,
    ),
    measurements=(Head,),
)
def check_pretrained_kept(trace: Trace) -> Verdict:
    """Every declared base tensor starts with the declared values (``Intent(pretrained=state_dict)``), up to rounding.

    Formula: ``|w - declared| / |declared|`` (L2) of each tensor is at most 0.05; up to 0.004 is what casting to bf16 and back does.
    Where it is more, the correlation says what happened: unrelated values (initialised anew after loading, or never loaded), the
    same values in another order (transposed), times a factor, or a constant. Tensors of the head are noted, not judged: a new head
    on an old checkpoint is the ordinary case.

    >>> from pytest_ftcheck import example_trace
    >>> check_pretrained_kept(example_trace()).status
    'skipped'
    """
    name, head = "pretrained_kept", trace.measured(Head)
    if head is None:
        return not_measured(name, trace, Head)
    found = head.pretrained
    if found is None:
        why = (head.skipped or {}).get("pretrained", "no pretrained values were declared (Intent(pretrained=...))")
        return Verdict(name, "skipped", f"{why}.")
    ill = [d for d in found.differing if d.part != "head" and d.kind not in HARMLESS]
    if not ill:
        fine = found.equal + sum(d.kind in HARMLESS for d in found.differing)
        return Verdict(
            name,
            "pass",
            f"{fine} of {plural(found.compared, 'declared tensor')} start with the declared values ({found.equal} bit for bit).",
            measured=_MEASURED,
            notes=_notes(found),
        )
    base = found.compared - sum(d.part == "head" for d in found.differing)
    # drawn anew means matrices without relation and norms and biases at a constant: one thing
    kinds = Counter("unrelated" if d.kind == "constant" else d.kind for d in ill)
    # values of other tensors do not come there by chance, while the biases beside them look merely unrelated or changed
    kind = "misplaced" if 3 * kinds["misplaced"] >= len(ill) else kinds.most_common(1)[0][0]
    worst = [d for d in ill if d.kind == kind] + [d for d in ill if d.kind == "constant" and kind == "unrelated"]
    whole = len(ill) >= WHOLE * base
    cause, remedy, fault = _cause(kind, worst, trace.head, whole=whole, initial=head.initializer_range)
    return Verdict(
        name,
        "fail",
        f"{len(ill)} of {plural(base, 'declared tensor')} do not start from the declared pretrained values: {worst[0].name} is "
        f"{_WHY[worst[0].kind]}{_figure(worst[0])}.",
        evidence=_rows(ill),
        limit="|w - declared| / |declared| <= 0.05 for every base tensor; casting to bf16 and back gives 0.002",
        causes=(cause,),
        remedy=remedy,
        measured=_MEASURED,
        notes=_notes(found),
        fault=fault,
    )


_MEASURED = "every declared tensor against the parameter of that name before the first step"


def _figure(d: Differing) -> str:
    if d.shape != d.declared_shape:
        return f" ({d.shape}, declared {d.declared_shape})"
    if d.correlation is None:
        return f" (std {number(d.std)}, declared {number(d.declared_std)})"
    return f" (correlation {d.correlation:.3f}, relative difference {number(d.relative)})"


def _cause(
    kind: str, worst: Sequence[Differing], head: Sequence[str], *, whole: bool, initial: float | None
) -> tuple[str, str, str]:
    blocks = list(dict.fromkeys(block_of(d.name) for d in worst))
    where = (
        "the whole base"
        if whole
        else ", ".join(blocks[:3]) + (f" and {len(blocks) - 3} more" if len(blocks) > 3 else "")
    )
    keep = (
        "load the checkpoint last, and see that load_state_dict(strict=True) or from_pretrained reports no missing keys"
    )
    was, has, holds = ("was", "has", "holds") if whole or len(blocks) == 1 else ("were", "have", "hold")
    if kind == "shape":
        return (
            f"{where} {has} another shape than the checkpoint: another config, or a vocabulary that was changed",
            "build the model from the checkpoint's own config, or resize with resize_token_embeddings()",
            "pretrained_other_shape",
        )
    if kind == "scaled":
        return (f"{where} {was} multiplied by a factor after loading", keep, "pretrained_scaled")
    if kind == "shuffled":
        return (
            f"{where} {holds} the checkpoint's values in another order: transposed, or its rows permuted (another vocabulary order)",
            "copy weight.t() where the layouts differ, and use the checkpoint's own tokenizer",
            "pretrained_shuffled",
        )
    if kind == "misplaced":
        return (
            f"{where} {holds} what the checkpoint has for other layers: numbered from another start, reversed, or assigned out of order",
            "map the names of the checkpoint one by one, and compare a tensor of each layer with it after loading",
            "pretrained_shuffled",
        )
    if kind == "changed":
        return (
            f"{where} {was} changed after loading (trained, averaged or noised), or taken from another version of the checkpoint",
            keep,
            "pretrained_changed",
        )
    drawn = [d.std for d in worst if d.kind == "unrelated" and len(d.shape) > 1]
    fresh = initial and drawn and sum(abs(s / initial - 1) < 0.1 for s in drawn) > len(drawn) / 2
    how = f": std {number(sorted(drawn)[len(drawn) // 2])}, as config.initializer_range" if fresh else ""
    return (
        f"{where} {was} initialised anew after loading, or never loaded{how}"
        + ("" if whole else " (apply(init) over the whole model, or names that did not match)"),
        f"{keep}; initialise only the head: model.{head[0] if head else 'classifier'}.apply(init), not model.apply(init)",
        "pretrained_not_loaded" if whole else "pretrained_partly_lost",
    )


def _notes(found: Pretrained) -> tuple[str, ...]:
    notes = []
    for kind in HARMLESS:
        some = [d for d in found.differing if d.kind == kind and d.part != "head"]
        if some:
            notes.append(f"{plural(len(some), 'tensor')} {_WHY[kind]}: {some[0].name}")
    heads = [d for d in found.differing if d.part == "head"]
    if heads:
        notes.append(
            f"{plural(len(heads), 'tensor')} of the head start otherwise than declared: {heads[0].name}; not judged"
        )
    if found.undeclared:
        notes.append(f"{plural(found.undeclared, 'base tensor')} of the model are not among the declared")
    if found.unknown:
        notes.append(f"{plural(found.unknown, 'declared name')} the model does not have")
    return tuple(notes)


def _rows(ill: Sequence[Differing]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "tensor": d.name,
            "relative difference": d.relative,
            "correlation": d.correlation,
            "std": d.std,
            "declared std": d.declared_std,
            "why": _WHY[d.kind],
        }
        for d in ill
    )
