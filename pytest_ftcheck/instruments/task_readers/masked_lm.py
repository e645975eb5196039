"""A masked language model, such as BERT."""

from __future__ import annotations

from .interface import Example
from .language_model import LanguageModel, words_at_positions


class MaskedLm(LanguageModel):
    """The hidden token at each masked position."""

    name = "masked language model"
    labels_are = "the hidden token, at each masked position"

    def fits(self, example: Example) -> bool:
        """The classes are the vocabulary, and each position is compared with its own label."""
        return (
            words_at_positions(example)
            and example.shift == 0
            and not example.encoder_decoder
            and example.logits.shape[-1] == example.vocabulary
        )
