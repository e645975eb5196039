"""The faults that the checks of the loss find, the most fundamental first."""

from __future__ import annotations

from dataclasses import replace

from ..spec import Fault, Rank, Symptom

LOSS_NOT_DIFFERENTIABLE = Fault(
    "loss_not_differentiable",
    Rank.LOSS_DISCONNECTED + 30,
    "the loss has no gradient with respect to the logits",
    cause="the graph is cut between logits and loss: argmax, .detach(), .data, .item(), a new tensor, torch.no_grad()",
    remedy="compute the loss from the logits themselves; requires_grad_() on the loss only hides the error",
    explains=(Symptom.STANDS_STILL, Symptom.LOSS_WRONG),
    confidence="certain",
)
SOFTMAX_OVER_ONE_OUTPUT = Fault(
    "softmax_over_one_output",
    Rank.LOSS_DISCONNECTED + 40,
    "softmax over a single output is always 1",
    cause="softmax over a single output is 1 for every row, and its gradient is 0",
    remedy="use binary_cross_entropy_with_logits(logits.squeeze(-1), labels.float()), or two outputs and cross_entropy",
    explains=(Symptom.STANDS_STILL, Symptom.LOSS_WRONG),
    confidence="certain",
)
LOSS_IGNORES_LOGITS = Fault(
    "loss_ignores_logits",
    Rank.LOSS_DISCONNECTED + 50,
    "the loss does not depend on the logits",
    cause="the loss is computed from something other than the model's output, or the output is multiplied by zero",
    remedy="compute the loss from the logits of this forward pass",
    explains=(Symptom.STANDS_STILL, Symptom.LOSS_WRONG),
    confidence="certain",
)
WRONG_TASK = Fault(
    "wrong_task",
    Rank.LOSS + 10,
    "the loss does not fit the declared task",
    cause="the labels or the outputs do not have the form of the declared task",
    remedy="use {loss_of_task}",
    explains=(Symptom.LOSS_WRONG, "logits_unbounded"),
    confidence="certain",
)
NLL_ON_RAW_LOGITS = Fault(
    "nll_on_raw_logits",
    Rank.LOSS + 20,
    "raw logits are given to nll_loss or kl_div",
    cause="nll_loss and kl_div expect log-probabilities; of raw logits they return the label's logit, negated",
    remedy="use cross_entropy(logits, labels), or give logits.log_softmax(-1) to nll_loss or kl_div",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL),
    confidence="certain",
)
NLL_ON_PROBABILITIES = Fault(
    "nll_on_probabilities",
    Rank.LOSS + 30,
    "probabilities are given to nll_loss or kl_div",
    cause="the logarithm is missing before nll_loss or kl_div, so confident mistakes get no gradient",
    remedy="use cross_entropy(logits, labels), or log_softmax in place of softmax",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL),
    confidence="certain",
)
NLL_ON_SIGMOID = Fault(
    "nll_on_sigmoid",
    Rank.LOSS + 40,
    "sigmoid outputs are given to nll_loss",
    cause="nll_loss is given sigmoid(logits), but expects log-probabilities",
    remedy="use cross_entropy(logits, labels) on the raw logits",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL),
    confidence="certain",
)
DOUBLE_SOFTMAX = Fault(
    "double_softmax",
    Rank.LOSS + 50,
    "softmax is applied twice",
    cause="the loss is cross-entropy of softmax(logits): cross_entropy applies a softmax of its own",
    remedy="give cross_entropy the raw logits (remove the softmax from the model or the loss)",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
DOUBLE_SOFTMAX_OVER_BATCH = Fault(
    "double_softmax_over_batch",
    Rank.LOSS + 60,
    "softmax over the batch is applied before the cross-entropy",
    cause="softmax runs over the rows of the batch (dim=0), and cross_entropy applies a softmax of its own after it",
    remedy="give cross_entropy the raw logits (remove the softmax)",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SOFTMAX_OVER_BATCH = Fault(
    "softmax_over_batch",
    Rank.LOSS + 70,
    "softmax runs over the batch, not over the classes",
    cause="softmax runs over the rows of the batch (dim=0), so rows compete with each other",
    remedy="use cross_entropy(logits, labels), or dim=-1",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SIGMOID_BEFORE_CROSS_ENTROPY = Fault(
    "sigmoid_before_cross_entropy",
    Rank.LOSS + 80,
    "a sigmoid is applied before the cross-entropy",
    cause="the loss is cross-entropy of sigmoid(logits): its softmax is applied to numbers between 0 and 1",
    remedy="give cross_entropy the raw logits (remove the sigmoid from the model or the loss)",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SIGMOID_BEFORE_BCE = Fault(
    "sigmoid_before_bce",
    Rank.LOSS + 90,
    "a sigmoid is applied before BCE-with-logits",
    cause="binary_cross_entropy_with_logits is given sigmoid(logits): the sigmoid is applied twice",
    remedy="give it the raw logits, or use binary_cross_entropy after the sigmoid",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SOFTMAX_BEFORE_BCE = Fault(
    "softmax_before_bce",
    Rank.LOSS + 100,
    "a softmax is applied before BCE-with-logits",
    cause="binary_cross_entropy_with_logits is given softmax(logits): its sigmoid is applied to probabilities",
    remedy="give it the raw logits",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SOFTMAX_ON_TAGS = Fault(
    "softmax_on_tags",
    Rank.LOSS + 110,
    "a softmax makes independent tags compete",
    cause="the tags of a row go through one softmax, so no two of them can be likely at once",
    remedy="use binary_cross_entropy_with_logits on the raw logits: one sigmoid for each tag",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
CROSS_ENTROPY_ON_TAGS = Fault(
    "cross_entropy_on_tags",
    Rank.LOSS + 120,
    "cross-entropy makes independent tags compete",
    cause="cross_entropy reads multi-hot labels as class probabilities: tags compete, and a row without tags has no loss",
    remedy="use binary_cross_entropy_with_logits (problem_type='multi_label_classification' in transformers)",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LOSS_NEGATED = Fault(
    "loss_negated",
    Rank.LOSS + 130,
    "the sign of the loss is flipped",
    cause="the loss, or the logits, are multiplied by -1, or a score is returned as a loss",
    remedy="remove the minus sign, and return the loss, not the score",
    explains=(Symptom.LOSS_WRONG, Symptom.BLOWS_UP),
    confidence="certain",
)
OWN_PREDICTIONS_AS_TARGETS = Fault(
    "own_predictions_as_targets",
    Rank.LOSS + 140,
    "the model's own predictions are the targets",
    cause="the targets are made from the logits (their argmax or softmax), not from the labels of the batch",
    remedy="pass the labels of the batch to the loss",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_PERMUTED = Fault(
    "labels_permuted",
    Rank.LOSS + 150,
    "the loss reads other classes than the labels name",
    cause="the labels are renumbered on their way into the loss (an offset of one, another label map)",
    remedy="use one label map for training and evaluation; labels run from 0 to classes - 1",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_OF_OTHER_TOKENS = Fault(
    "labels_of_other_tokens",
    Rank.LOSS + 160,
    "labels are paired with the logits of other tokens",
    cause="logits (rows, tokens, classes) were brought to (rows, classes, tokens) by reshape or view, which mixes tokens and classes",
    remedy="use transpose(1, 2), or flatten both: cross_entropy(logits.reshape(-1, classes), labels.reshape(-1))",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_OF_OTHER_ROWS = Fault(
    "labels_of_other_rows",
    Rank.LOSS + 170,
    "labels are paired with the logits of other rows",
    cause="logits and labels are in different orders: rolled, reversed, shuffled separately, or reshaped across rows",
    remedy="keep logits and labels of a batch in the same order up to the loss",
    explains=(Symptom.LOSS_WRONG, "rows_independent"),
    confidence="certain",
)
REGRESSION_BROADCAST = Fault(
    "regression_broadcast",
    Rank.LOSS + 180,
    "predictions and labels are broadcast against each other",
    cause="predictions of shape (B, 1) and labels of shape (B,) are broadcast to (B, B): at best the mean is learnt",
    remedy="bring them to one shape: loss(logits.squeeze(-1), labels)",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
SMOOTHING_TOO_STRONG = Fault(
    "smoothing_too_strong",
    Rank.LOSS + 190,
    "label smoothing is too strong",
    cause="the targets are almost uniform: label_smoothing near 1 (1 - eps instead of eps), or a wrong distillation temperature",
    remedy="label_smoothing is the share taken away from the label: 0.1, not 0.9",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
POSITIVES_IGNORED = Fault(
    "positives_ignored",
    Rank.LOSS + 200,
    "positive labels have no weight in the loss",
    cause="pos_weight is zero (an integer division, an empty count), or the term for positive labels is missing",
    remedy="pos_weight = negatives / positives, as floats",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
NEGATIVES_IGNORED = Fault(
    "negatives_ignored",
    Rank.LOSS + 210,
    "negative labels have no weight in the loss",
    cause="the term for negative labels is missing: (1 - y) * log(1 - p)",
    remedy="use binary_cross_entropy_with_logits",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
TAGS_NOT_READ = Fault(
    "tags_not_read",
    Rank.LOSS + 220,
    "the loss does not read all tags of a row",
    cause="the tags are reduced before the loss: argmax (keeps only the first; a row without tags becomes tag 0), a sum, one column",
    remedy="binary_cross_entropy_with_logits(logits, labels.float()) on the tags as they are",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
MISTAKES_PAY = Fault(
    "mistakes_pay",
    Rank.LOSS + 230,
    "confidently wrong predictions have a lower loss than uniform ones",
    cause="a factor removes the loss of wrong predictions: focal loss with p instead of (1 - p), or weights proportional to p",
    remedy="focal loss is -(1 - p) ** gamma * log(p), p the label's probability; weights must not vanish with p",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
CLASS_IGNORED = Fault(
    "class_ignored",
    Rank.LOSS + 240,
    "a class has no weight in the loss",
    cause="ignore_index is a real class, or its class weight is zero",
    remedy="ignore_index must be a number that no row has (-100); give every class a positive weight",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
ROWS_IGNORED = Fault(
    "rows_ignored",
    Rank.LOSS + 250,
    "some rows have no weight in the loss",
    cause="only some rows reach the loss: a slice or an index ([0], [-1], [:k]), a mask, a reduction over the wrong rows",
    remedy="take the mean of the loss over all rows",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
IGNORED_LABELS_COUNT = Fault(
    "ignored_labels_count",
    Rank.LOSS + 255,
    "labels that should be ignored (-100) count as a class",
    cause="the loss makes a class of -100 before it reads the labels (clamp(min=0), %, where, abs): padding, prompts or parts of words are "
    "taught as that class",
    remedy="cross_entropy(logits, labels, ignore_index=-100) on the labels as they are; in a loss of your own take only labels != -100",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LOSS_UNBOUNDED = Fault(
    "loss_unbounded",
    Rank.LOSS + 260,
    "the loss is unbounded below",
    cause="the loss is not a negative log-likelihood: log_softmax is missing, or a margin loss has no hinge",
    remedy="use cross_entropy on raw logits",
    explains=(Symptom.LOSS_WRONG, Symptom.BLOWS_UP),
    confidence="certain",
)
CLASS_WEIGHTS_REVERSED = Fault(
    "class_weights_reversed",
    Rank.LOSS + 265,
    "the class weights amplify the imbalance of the classes",
    cause="the weights are in another order than the classes, or are the classes' shares instead of their inverses: the most frequent "
    "class counts most",
    remedy="weight = total / (classes * counts), in the order of the class numbers, as a tensor that cross_entropy(weight=...) is given",
    explains=(Symptom.LOSS_WRONG,),
)
SUM_REDUCTION = Fault(
    "sum_reduction",
    Rank.LOSS + 270,
    "the loss is a sum over the rows, not their mean",
    cause="reduction='sum': with this optimizer the steps grow with the number of rows in the batch",
    remedy="reduction='mean', or divide the learning rate by the batch size",
    explains=(Symptom.LOSS_WRONG, Symptom.BLOWS_UP),
    confidence="certain",
)
TEMPERATURE_EXTREME = Fault(
    "temperature_extreme",
    Rank.LOSS + 280,
    "the temperature in the loss is far too high",
    cause="a temperature in the loss divides the logits instead of multiplying them, or is in other units",
    remedy="cross_entropy(logits, labels); multiply cosines by 10 to 64",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL, Symptom.BLOWS_UP),
)
OTHER_TERMS_DROWN = Fault(
    "other_terms_drown",
    Rank.LOSS + 290,
    "another term of the loss (a regulariser, a penalty) outweighs the task",
    cause="a regulariser (weight penalty, auxiliary loss) is not scaled: its gradient outweighs the task's",
    remedy="weight it so that its gradient is no longer than the task's; instead of a weight penalty use AdamW's weight_decay",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL, Symptom.INPUT_LOST),
)
LOSS_SCALED_TO_NOTHING = Fault(
    "loss_scaled_to_nothing",
    Rank.LOSS + 300,
    "the loss is scaled down to almost zero",
    cause="the loss is multiplied or divided down (a mean taken twice, a weight, a loss scale that is never undone)",
    remedy="remove the factor: eps, clipping and rounding outweigh so small a gradient",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL),
    confidence="certain",
)
HEAD_LEFT_RANDOM = Fault(
    "head_left_random",
    Rank.LOSS + 137,
    "the head is frozen at its start while other parameters are trained",
    cause="PEFT trains its adapters and what modules_to_save names; {head} is neither, and the features cannot make up for a random head",
    remedy="give the adapters' config task_type (SEQ_CLS, TOKEN_CLS, ...) or modules_to_save=[{names}]",
    explains=(Symptom.LOSS_WRONG, "logits_unbounded"),
)
#: The same without adapters.
HEAD_FROZEN_AT_RANDOM = replace(
    HEAD_LEFT_RANDOM,
    cause="the code that freezes parameters also freezes {head}, and the features cannot make up for a random head",
    remedy="call requires_grad_(True) on {head}, before the optimizer is built; if it should stay frozen, declare Intent(frozen='head')",
)
LOGITS_BOUNDED = Fault(
    "logits_bounded",
    Rank.LOSS + 310,
    "the logits are bounded, so the loss cannot fall below a floor",
    cause="an activation (tanh, sigmoid, softmax), a clamp or a normalisation follows the last layer",
    remedy="remove what comes after {layer}, or multiply the bounded logits by 10 to 30",
    explains=("initial_loss", "grads_reach_depth", "head_init"),
    confidence="certain",
)
LOGITS_ONE_SIGNED = Fault(
    "logits_one_signed",
    Rank.LOSS + 320,
    "the logits cannot change sign",
    cause="a ReLU (or softplus, GELU) follows the last layer: outputs below zero get no gradient, and rows can die",
    remedy="remove the activation after {layer}",
    explains=("initial_loss", Symptom.INPUT_LOST),
    confidence="certain",
)
OUTPUTS_CANNOT_REACH_LABELS = Fault(
    "outputs_cannot_reach_labels",
    Rank.LOSS + 330,
    "the outputs cannot reach the labels",
    cause="an activation (sigmoid, tanh, ReLU) follows the last layer",
    remedy="remove what comes after {layer}, or scale the labels into its range",
    explains=("initial_loss",),
    confidence="certain",
)
#: The same where no single layer gives the output.
OUTPUTS_BOUNDED_BY_DESIGN = replace(
    OUTPUTS_CANNOT_REACH_LABELS,
    cause="the output is bounded whatever the weights are: a cosine lies between -1 and 1, a norm or a distance has one sign",
    remedy="bring the labels into the output's range (similarities of 0 to 5: label / 5), or scale the output",
)
TARGETS_UNSCALED = Fault(
    "targets_unscaled",
    Rank.LOSS + 335,
    "the labels are so large that the outputs do not come near them",
    cause="the numbers to predict are not scaled: a new head starts near 0, and a step moves its output by little more than the learning "
    "rate times its inputs",
    remedy="standardise the labels with the training rows' mean and standard deviation, and undo it in the predictions; or set the last "
    "layer's bias to the mean",
    explains=(Symptom.BLOWS_UP, Symptom.STANDS_STILL),
)
CLASSES_AS_NUMBERS = Fault(
    "classes_as_numbers",
    Rank.OUTCOME + 197,
    "class numbers are predicted as if they were measurements",
    cause="the loss is that of a regression, and the labels are the whole numbers from 0 to {last}: classes without an order have no "
    "middle, and transformers takes num_labels=1 for a regression",
    remedy="num_labels={classes} and whole-number labels (cross_entropy), unless the numbers are grades",
    confidence="possible",
)
INITIAL_LOSS_NOT_FINITE = Fault(
    "initial_loss_not_finite",
    Rank.LOSS + 350,
    "the first loss is not finite",
    cause="the logits are not finite: inputs, pretrained weights or the head's initialisation",
    remedy="look at the first batch's logits",
    explains=(Symptom.BLOWS_UP,),
)
BATCHNORM_TINY_BATCH = Fault(
    "batchnorm_tiny_batch",
    Rank.INPUTS + 320,
    "batch normalisation over too few rows",
    cause="the batches are too small for BatchNorm: the model computes another function in training than in evaluation",
    remedy="use LayerNorm or GroupNorm, larger batches, or put the BatchNorm into eval mode",
    explains=("output_depends_on_input",),
)
DIVERGED = Fault(
    "diverged",
    Rank.OUTCOME + 50,
    "the training diverges",
    cause="the learning rate is too high ({learning_rate})",
    remedy="try a tenth of the learning rate, a warm-up, or gradient clipping (max_norm=1)",
    explains=(Symptom.BLOWS_UP,),
)
LOSS_NOT_FINITE = Fault(
    "loss_not_finite",
    Rank.OUTCOME + 60,
    "the loss becomes NaN or infinite",
    cause="overflow, log(0) or division by zero; assert_all_finite names the first bad tensor",
    remedy="see assert_all_finite",
    explains=(Symptom.BLOWS_UP,),
)
INITIAL_LOSS_TOO_HIGH = Fault(
    "initial_loss_too_high",
    Rank.OUTCOME + 120,
    "the first loss is far above that of a uniform prediction",
    cause="the head starts with large logits: its weights are initialised far too large, the features are not normalised, "
    "or the head was trained for other labels",
    remedy="initialise the head's last layer with std 0.02 (or zeros), biases 0; look at the scale of the features",
)
COLLAPSED = Fault(
    "collapsed",
    Rank.OUTCOME + 140,
    "the model collapses to one output for all inputs",
    cause="the learning rate is too high for this network ({learning_rate}): units saturated or died",
    remedy="try a hundredth of the learning rate, with a warm-up",
    explains=(Symptom.INPUT_LOST,),
)
TERM_WITHOUT_GRADIENT = Fault(
    "term_without_gradient",
    Rank.ADVICE + 18,
    "a term of the loss has no gradient: the model does not learn from it",
    cause="the term was cut off from the weights: detach(), .item(), .data, torch.tensor(...), numpy or no_grad() on the way to it",
    remedy="compute the term from the outputs or the weights with operations of torch; leave it out where it is only meant for the log",
)
