"""Why a published fault that hurts is not failed, and what was changed once it was known; written after the messages were read."""

from __future__ import annotations

_SHORT = "The run learns, in few steps: no more is wrong with it"
_WEAK = "The alteration takes {} % of what the features say at the start, less than a third"
_EQUAL_ROWS = (
    "All classes start from the same row, as with zeros, which are a common start of a last layer and learn as slowly"
)
#: ``(source, name)`` -> a sentence without its full stop.
REMARKS = {
    ("DEForm", "OZR"): "A last layer of zeros is a common start, and learns more slowly",
    ("DEForm", "QZQ"): _WEAK.format(2),
    ("DEForm", "QZK"): _WEAK.format(12),
    ("DeepCrime", "TRD"): "A list of one batch is overfitted on purpose in many tests",
    ("DeepCrime", "TUD"): "The run learns, and one class may well be the most frequent",
    ("DeepCrime", "HBS"): _SHORT,
    ("DeepCrime", "HNE"): _SHORT,
    ("DeepCrime", "HDB"): "One step decides nothing",
    ("DeepCrime", "ACH"): _WEAK.format(29),
    ("DeepCrime", "WCI"): _EQUAL_ROWS,
    ("DeepCrime", "OCH"): "The run learns, slowly",
    ("DeepCrime", "TAN"): "40 steps show no learning, which may be a hard task",
    ("DeepCrime", "RCD"): "40 steps show no learning, which may be a hard task",
    ("DeepFD", "epoch"): _SHORT,
    ("DeepFD", "opt-SGD"): "40 steps show no learning, which may be a hard task",
    ("DeepFD", "opt-Adadelta"): "40 steps show no learning, which may be a hard task",
    ("Shah et al.", "class-imbalance"): "The run learns, and one class may well be the most frequent",
    ("Shah et al.", "no-preprocessing"): "The run learns",
}
#: Paragraphs, each followed by an empty line.
HISTORY = (
    "Not all of this is blind. The first runs of DEForm's operators showed that weights edited after loading passed, and "
    "`pretrained_kept` has read the checkpoint that the config names since. They showed, too, that zeroed rows passed, and that an "
    "alteration was advice wherever the run learnt: since then the harm is measured, with a limit that was chosen on 14 of these "
    "operators. They were made again. An alteration that takes less than a third of what the features say is advice.",
    "",
    "DeepCrime's operators were first run on 2026-11-29, after nothing had been changed for them: of 14 that hurt 3 failed, with the "
    "cause first (TCL, HLR, ARM), and two more had advice that names it (TUD, ACH). Three kinds were mended then: a class whose rows "
    "are there again as another class's (TCO fails), dropout that was raised after the base was made (RCD, and DEForm's KMD: advice), "
    "a last layer of one value (WCI: advice). Shah et al.'s bugs were unseen, too: of 3 that hurt none failed, and two had advice "
    "that names it. Exchanged classes are judged by a test since, in place of a fixed share of their rows alone (concept-drift "
    "fails). For DeepFD's faults nothing was changed; the harmless ones of them that fail are activations behind the last layer, which "
    "bound the logits or their sign: this task is learnt in spite of them. DEForm's runs were made again "
    "on 2026-11-30 (commit ec084be4), and say the same; TrainCheck's and 15 of the clean seeds are of the code before these changes.",
    "",
)
