"""A causal language model, such as GPT-2."""

from __future__ import annotations

from .interface import Example
from .language_model import LanguageModel, words_at_positions


class CausalLm(LanguageModel):
    """The next token at each position."""

    name = "causal language model"
    labels_are = "the next token, for each position"

    def fits(self, example: Example) -> bool:
        """The logits of a position are compared with the label of the next one."""
        return words_at_positions(example) and example.shift == 1 and not example.encoder_decoder
