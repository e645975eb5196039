"""An encoder with a decoder, such as T5 or BART."""

from __future__ import annotations

from .interface import Example
from .language_model import LanguageModel, words_at_positions


class Seq2Seq(LanguageModel):
    """The tokens of a target text."""

    name = "sequence to sequence"
    labels_are = "the tokens of the target text"

    def fits(self, example: Example) -> bool:
        """A decoder of its own writes the words."""
        return words_at_positions(example) and example.encoder_decoder
