"""The faults that the checks of loss find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

LOSS_NOT_DIFFERENTIABLE = Fault(
    "loss_not_differentiable",
    Rank.LOSS_DISCONNECTED + 30,
    "the loss has no gradient with respect to the logits",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
SOFTMAX_OVER_ONE_OUTPUT = Fault(
    "softmax_over_one_output",
    Rank.LOSS_DISCONNECTED + 40,
    "softmax over a single output is always 1",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
LOSS_IGNORES_LOGITS = Fault(
    "loss_ignores_logits",
    Rank.LOSS_DISCONNECTED + 50,
    "the loss does not depend on the logits",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
WRONG_TASK = Fault(
    "wrong_task",
    Rank.LOSS + 10,
    "the loss is that of another task",
    explains=(
        Symptom.LOSS_WRONG,
        "logits_unbounded",
    ),
    confidence="certain",
)
NLL_ON_RAW_LOGITS = Fault(
    "nll_on_raw_logits",
    Rank.LOSS + 20,
    "NLL loss is given raw logits",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.STANDS_STILL,
    ),
    confidence="certain",
)
NLL_ON_PROBABILITIES = Fault(
    "nll_on_probabilities",
    Rank.LOSS + 30,
    "NLL loss is given probabilities",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.STANDS_STILL,
    ),
    confidence="certain",
)
NLL_ON_SIGMOID = Fault(
    "nll_on_sigmoid",
    Rank.LOSS + 40,
    "NLL loss is given sigmoid outputs",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.STANDS_STILL,
    ),
    confidence="certain",
)
DOUBLE_SOFTMAX = Fault(
    "double_softmax", Rank.LOSS + 50, "softmax is taken twice", explains=(Symptom.LOSS_WRONG,), confidence="certain"
)
DOUBLE_SOFTMAX_OVER_BATCH = Fault(
    "double_softmax_over_batch",
    Rank.LOSS + 60,
    "softmax is taken over the batch before the cross-entropy",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SOFTMAX_OVER_BATCH = Fault(
    "softmax_over_batch",
    Rank.LOSS + 70,
    "softmax is taken over the batch, not the classes",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SIGMOID_BEFORE_CROSS_ENTROPY = Fault(
    "sigmoid_before_cross_entropy",
    Rank.LOSS + 80,
    "a sigmoid comes before the cross-entropy",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SIGMOID_BEFORE_BCE = Fault(
    "sigmoid_before_bce",
    Rank.LOSS + 90,
    "a sigmoid comes before BCE-with-logits",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SOFTMAX_BEFORE_BCE = Fault(
    "softmax_before_bce",
    Rank.LOSS + 100,
    "a softmax comes before the binary cross-entropy",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SOFTMAX_ON_TAGS = Fault(
    "softmax_on_tags",
    Rank.LOSS + 110,
    "a softmax makes independent tags compete",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
CROSS_ENTROPY_ON_TAGS = Fault(
    "cross_entropy_on_tags",
    Rank.LOSS + 120,
    "cross-entropy makes independent tags compete",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LOSS_NEGATED = Fault(
    "loss_negated",
    Rank.LOSS + 130,
    "the sign of the loss is flipped",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
OWN_PREDICTIONS_AS_TARGETS = Fault(
    "own_predictions_as_targets",
    Rank.LOSS + 140,
    "the model's own predictions are the targets",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_PERMUTED = Fault(
    "labels_permuted",
    Rank.LOSS + 150,
    "the loss sees other classes than the labels name",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_OF_OTHER_TOKENS = Fault(
    "labels_of_other_tokens",
    Rank.LOSS + 160,
    "labels meet the logits of other tokens (a reshape, not a transpose)",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_OF_OTHER_ROWS = Fault(
    "labels_of_other_rows",
    Rank.LOSS + 170,
    "the loss sees the labels of other rows",
    explains=(
        Symptom.LOSS_WRONG,
        "rows_independent",
    ),
    confidence="certain",
)
REGRESSION_BROADCAST = Fault(
    "regression_broadcast",
    Rank.LOSS + 180,
    "predictions and labels are broadcast against each other",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SMOOTHING_TOO_STRONG = Fault(
    "smoothing_too_strong",
    Rank.LOSS + 190,
    "label smoothing rewards the wrong classes",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
POSITIVES_IGNORED = Fault(
    "positives_ignored",
    Rank.LOSS + 200,
    "labels that are on count nothing: pos_weight is zero",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
NEGATIVES_IGNORED = Fault(
    "negatives_ignored",
    Rank.LOSS + 210,
    "labels that are off count nothing in the loss",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
TAGS_NOT_READ = Fault(
    "tags_not_read",
    Rank.LOSS + 220,
    "the loss does not read all tags of a row",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
MISTAKES_PAY = Fault(
    "mistakes_pay",
    Rank.LOSS + 230,
    "surely wrong answers cost less than not knowing",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
CLASS_IGNORED = Fault(
    "class_ignored",
    Rank.LOSS + 240,
    "a class counts nothing in the loss",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
ROWS_IGNORED = Fault(
    "rows_ignored",
    Rank.LOSS + 250,
    "some rows count nothing in the loss",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LOSS_UNBOUNDED = Fault(
    "loss_unbounded",
    Rank.LOSS + 260,
    "the loss can fall without end",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
SUM_REDUCTION = Fault(
    "sum_reduction",
    Rank.LOSS + 270,
    "the loss is a sum over the rows, not their mean",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
TEMPERATURE_EXTREME = Fault(
    "temperature_extreme",
    Rank.LOSS + 280,
    "a temperature in the loss is far too high",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.STANDS_STILL,
        Symptom.BLOWS_UP,
    ),
)
OTHER_TERMS_DROWN = Fault(
    "other_terms_drown",
    Rank.LOSS + 290,
    "another term of the loss (a regulariser, a penalty) drowns the task",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.STANDS_STILL,
        Symptom.INPUT_LOST,
    ),
)
LOSS_SCALED_TO_NOTHING = Fault(
    "loss_scaled_to_nothing",
    Rank.LOSS + 300,
    "the loss is scaled to nothing",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.STANDS_STILL,
    ),
    confidence="certain",
)
LOGITS_BOUNDED = Fault(
    "logits_bounded",
    Rank.LOSS + 310,
    "the logits are bounded (squashed, or cosines without a scale): the loss cannot fall below its floor",
    explains=(
        "initial_loss",
        "grads_reach_depth",
        "head_init",
    ),
    confidence="certain",
)
LOGITS_ONE_SIGNED = Fault(
    "logits_one_signed",
    Rank.LOSS + 320,
    "the logits cannot change sign",
    explains=(
        "initial_loss",
        Symptom.INPUT_LOST,
    ),
    confidence="certain",
)
OUTPUTS_CANNOT_REACH_LABELS = Fault(
    "outputs_cannot_reach_labels",
    Rank.LOSS + 330,
    "the outputs cannot reach the labels",
    explains=("initial_loss",),
    confidence="certain",
)
INITIAL_LOSS_NOT_FINITE = Fault(
    "initial_loss_not_finite", Rank.LOSS + 350, "the very first loss is not finite", explains=(Symptom.BLOWS_UP,)
)
BATCHNORM_TINY_BATCH = Fault(
    "batchnorm_tiny_batch",
    Rank.INPUTS + 320,
    "batch normalisation over too few rows",
    explains=("output_depends_on_input",),
)
DIVERGED = Fault("diverged", Rank.OUTCOME + 50, "the training diverges", explains=(Symptom.BLOWS_UP,))
LOSS_NOT_FINITE = Fault(
    "loss_not_finite", Rank.OUTCOME + 60, "the loss stops being finite", explains=(Symptom.BLOWS_UP,)
)
INITIAL_LOSS_TOO_HIGH = Fault(
    "initial_loss_too_high", Rank.OUTCOME + 120, "the first loss is far above knowing nothing"
)
COLLAPSED = Fault(
    "collapsed",
    Rank.OUTCOME + 140,
    "the training makes the output the same for every input",
    explains=(Symptom.INPUT_LOST,),
)
