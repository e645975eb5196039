"""A mask that hides real tokens: advice where the run learns all the same, else a fault."""

from __future__ import annotations

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..learning import weight_of_suspicion
from . import faults
from .record import Inputs

#: Share of the real tokens that a mask may hide: one at the end of texts of a hundred.
MOST_HIDDEN = 0.01
_SOURCES = {
    "declared": "as declared",
    "config": "by the model's config",
    "at the end of rows": "it fills the ends of rows",
}


def judge_hidden_tokens(trace: Trace, inputs: Inputs, name: str) -> Verdict | None:
    """The verdict where masks hide real tokens; None: they do not, or it was not measured."""
    found = inputs.hidden_tokens
    if found is None or found.hidden <= MOST_HIDDEN * found.tokens:
        return None
    share = percent(found.hidden / found.tokens)
    fault = faults.MASK_HIDES_TOKENS.with_details(share=share, pad_id=found.pad_id, source=_SOURCES[found.source])
    shown = f", and shows {plural(found.padding_shown, 'padding token')}" if found.padding_shown else ""
    mask = "The mask that the base receives" if found.of_base else "The attention mask"
    return fault.verdict(
        name,
        f"{mask} hides {found.hidden:,} of {plural(found.tokens, 'real token')} ({share}), in {found.rows_with_hidden} of "
        f"{plural(found.rows, 'row')}{shown}: the model never reads them.",
        weight_of_suspicion(trace),
        limit=f"at most {percent(MOST_HIDDEN)} of the tokens whose id is not {found.pad_id}; a fault only in a run that does not learn",
        measured="a call of the base" if found.of_base else "ids and mask of the first batches; no model involved",
        notes=("tokens may be hidden on purpose, as an augmentation",),
    )
