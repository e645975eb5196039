"""Losses that are wrong whatever the task, by the name under which their gradient is known: what happens, and the line to change."""

from __future__ import annotations

#: Losses that are wrong whatever the task: what happens, and the line to change.
WRONG = {
    "double_softmax": (
        "the loss is cross-entropy of softmax(logits): softmax is applied twice",
        "give cross_entropy the raw logits (remove the softmax from model or loss)",
    ),
    "sigmoid_before_cross_entropy": (
        "the loss is cross-entropy of sigmoid(logits): it applies its own softmax to numbers between 0 and 1",
        "give cross_entropy the raw logits (remove the sigmoid from model or loss)",
    ),
    "nll_on_raw_logits": (
        "nll_loss is given raw logits: it expects log-probabilities, and only reads off the label's number",
        "use cross_entropy(logits, labels), or nll_loss(logits.log_softmax(-1), labels)",
    ),
    "nll_on_probabilities": (
        "nll_loss is given probabilities: the logarithm is missing, and confident mistakes get no gradient",
        "use cross_entropy(logits, labels), or log_softmax in place of softmax",
    ),
    "nll_on_sigmoid": (
        "nll_loss is given sigmoid(logits): it expects log-probabilities",
        "use cross_entropy(logits, labels) on the raw logits",
    ),
    "softmax_over_batch": (
        "softmax runs over the rows of the batch (dim=0), not over the classes: rows compete with each other",
        "use cross_entropy(logits, labels), or dim=-1",
    ),
    "double_softmax_over_batch": (
        "softmax runs over the rows of the batch (dim=0), and cross_entropy applies its own softmax after it",
        "give cross_entropy the raw logits (remove the softmax)",
    ),
    "sigmoid_before_bce": (
        "binary_cross_entropy_with_logits is given sigmoid(logits): the sigmoid is applied twice",
        "give it the raw logits, or use binary_cross_entropy after the sigmoid",
    ),
    "softmax_before_bce": (
        "binary_cross_entropy_with_logits is given softmax(logits): it applies its own sigmoid to probabilities",
        "give it the raw logits",
    ),
    "softmax_on_tags": (
        "the tags of a row go through softmax: they compete, and no two can be likely at once",
        "use binary_cross_entropy_with_logits on the raw logits: a sigmoid a tag",
    ),
    "cross_entropy_on_tags": (
        "cross_entropy reads the rows of multi-hot labels as class probabilities: tags compete, and a row without tags counts nothing",
        "use binary_cross_entropy_with_logits (problem_type='multi_label_classification' in transformers)",
    ),
}
#: Only wrong where they go below zero: 1 - p is a loss of its own.
SIGNED = ("nll_on_probabilities", "nll_on_sigmoid")
#: Those that cannot come near zero, however right the answer: softmax or sigmoid is in the way.
FLOORED = (
    "double_softmax",
    "sigmoid_before_cross_entropy",
    "double_softmax_over_batch",
    "sigmoid_before_bce",
    "softmax_before_bce",
)
