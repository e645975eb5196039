"""Which fault is at the root of what: one table, from the most fundamental fault to the mere symptom.

A fault at the root explains the failures of other checks: they are listed with it, not beside it. Verdicts whose fault is not in the
table come after those that are, in the order of the checks.
"""

from __future__ import annotations

from dataclasses import dataclass

from .checks import CHECKS
from .verdict import Verdict


@dataclass(frozen=True)
class Root:
    """One row of the table."""

    #: Short name, as in `Verdict.fault`.
    fault: str
    #: What is wrong, in one line, without numbers.
    title: str
    #: Checks that fail merely because of it.
    explains: frozenset[str]
    #: ``certain``, ``likely`` or ``possible``.
    confidence: str = "likely"


#: Checks of what came of a run: any fault at its root can make them fail.
OUTCOMES = (
    "loss_decreases",
    "metric_improves",
    "loss_stable",
    "labels_learnable",
    "overfits_one_batch",
    "beats_permuted_labels",
)
#: Checks that see what does not learn; what sees a run that blew up; what sees a head that lost its input.
STILL = ("weights_move", "grads_nonzero", "grads_match_reference", "grads_reach_depth")
BLOWN = (
    "all_finite",
    "grads_nonzero",
    "grads_reach_depth",
    "lr_sensible",
    "output_depends_on_input",
    "units_alive",
    "weights_move",
)
DEAF = (
    "output_depends_on_input",
    "units_alive",
    "grads_nonzero",
    "grads_reach_depth",
    "weights_move",
    "grads_match_reference",
)
LOSS = ("initial_loss", "loss_matches_task", "grads_match_reference")


def _root(fault: str, title: str, *explains: str, confidence: str = "likely") -> Root:
    return Root(fault, title, frozenset((*OUTCOMES, *explains)), confidence)


def _certain(fault: str, title: str, *explains: str) -> Root:
    return _root(fault, title, *explains, confidence="certain")


#: The most fundamental first: a row comes before the rows that it can bring about.
ROOTS: tuple[Root, ...] = (
    # ---- broken before the first step
    _certain(
        "nonfinite_start", "weights or buffers hold NaN or infinity before the first step", *BLOWN, *LOSS, "head_init"
    ),
    _certain("head_uninitialised", "the head was never initialised", *BLOWN, *LOSS),
    _certain("inputs_nan", "inputs hold NaN or infinity", *BLOWN, *LOSS, "no_leak"),
    _certain("labels_nan", "labels are NaN", *BLOWN, *LOSS),
    # ---- the loss is cut off from the model
    _certain("gradients_switched_off", "gradients are switched off and never on again", *STILL, *LOSS),
    _certain("loss_cut_off", "the loss is cut off from the logits", *STILL, *LOSS),
    _certain("loss_not_differentiable", "the loss has no gradient with respect to the logits", *STILL, *LOSS),
    _certain("softmax_over_one_output", "softmax over a single output is always 1", *STILL, *LOSS),
    _certain("loss_ignores_logits", "the loss does not depend on the logits", *STILL, *LOSS),
    _certain("labels_all_ignored", "every label is left out of the loss", *STILL, *LOSS),
    _certain("loss_is_flat", "the loss does not change with any weight", *STILL, *LOSS),
    # ---- the optimizer and the parameters
    _certain(
        "no_step_taken",
        "the optimizer never steps",
        *STILL,
        "lr_follows_schedule",
        "optimizer_covers_model",
        "optimizer_settings",
    ),
    _certain("stale_optimizer", "the optimizer holds other tensors than the model's", *STILL, "optimizer_settings"),
    _certain("replaced_in_loop", "a layer is replaced while it trains", *STILL, "weights_kept"),
    _certain(
        "not_in_optimizer",
        "parameters that should learn are in no group of the optimizer",
        *STILL,
        "optimizer_settings",
    ),
    _certain("never_thawed", "what was to be thawed stays frozen", *STILL, "optimizer_covers_model"),
    _certain(
        "frozen_by_mistake",
        "parameters that should learn are frozen",
        *STILL,
        "optimizer_covers_model",
        "optimizer_settings",
    ),
    _certain(
        "not_frozen",
        "parameters that should stay are trained",
        "optimizer_covers_model",
        "optimizer_settings",
        "weights_kept",
    ),
    _certain("untied", "tensors that were meant to be one are two", "optimizer_covers_model", "weights_move"),
    _certain("duplicated_parameters", "parameters are in the optimizer more than once", "optimizer_settings"),
    _certain("two_optimizers", "two optimizers step the same parameters", "optimizer_settings", "weights_kept"),
    _certain(
        "optimizer_rebuilt",
        "the optimizer is built anew in the loop",
        "optimizer_covers_model",
        "lr_follows_schedule",
        "weights_move",
    ),
    _certain("state_cleared", "the optimizer's state is cleared in the loop", "weights_move"),
    # ---- the start
    _certain("pretrained_not_loaded", "the pretrained weights are not loaded"),
    _certain("pretrained_partly_lost", "a part of the pretrained weights is not loaded"),
    _certain("pretrained_other_shape", "pretrained tensors have another shape than the model's"),
    _certain("pretrained_scaled", "the pretrained weights were scaled"),
    _certain("pretrained_shuffled", "pretrained tensors are in each other's place"),
    _certain("pretrained_changed", "the pretrained weights were changed before training"),
    _certain("head_all_zero", "the whole head starts at zero", *DEAF),
    _certain("head_init_constant", "the head starts with constant weights", *DEAF),
    _certain("head_symmetric", "hidden units of the head start alike and stay alike", *DEAF),
    _certain("head_init_huge", "the head's initial weights are too large", "initial_loss", *BLOWN, "logits_unbounded"),
    _certain("head_bias_not_zero", "a hidden layer of the head starts with a bias that is not zero", *DEAF),
    _certain("head_init_torch_default", "the initialisation matched nothing: the head has torch's default"),
    _certain("head_init_initializer_range", "the head was initialised again with the model's own range"),
    _certain("head_init_not_declared", "the head does not start as declared"),
    _certain("outside_the_model", "trained tensors are no part of the model", *STILL, "optimizer_covers_model"),
    # ---- the data
    _certain("one_class_only", "all labels are of one class", "initial_loss", "loss_matches_task"),
    _certain("labels_constant", "all labels are the same", "initial_loss", "loss_matches_task"),
    _certain("mask_empty", "the attention mask hides everything", *DEAF, "padding_ignored"),
    _certain("texts_cut_off", "the texts are cut to nothing", *DEAF),
    _certain("ids_clamped", "token ids are cut off at the end of the vocabulary", *DEAF),
    _certain("words_unknown", "nearly all words are the same token", *DEAF),
    _certain("inputs_alike", "all rows are the same", *DEAF),
    _certain("one_row_repeated", "one row is repeated", *DEAF),
    _certain("same_batch", "every step trains on the same batch", "no_leak"),
    _certain("class_missing", "a class that is evaluated is never trained"),
    _certain("sorted_by_class", "the data are sorted by class and not shuffled", "initial_loss"),
    _certain("batches_of_one_class", "each batch holds one class", "initial_loss"),
    _certain("labels_contradict", "the same row comes with different labels"),
    _certain("label_in_inputs", "the input gives the label away"),
    _certain("held_out_is_training", "the evaluation rows are training rows"),
    _root("labels_shifted", "labels belong to the rows beside them"),
    _certain(
        "one_row_for_all",
        "one row's features stand for all rows",
        "rows_independent",
        "logits_unbounded",
        "initial_loss",
        *DEAF,
    ),
    # ---- the loss
    _certain("wrong_task", "the loss is that of another task", *LOSS, "logits_unbounded"),
    _certain("nll_on_raw_logits", "NLL loss is given raw logits", *LOSS, *STILL),
    _certain("nll_on_probabilities", "NLL loss is given probabilities", *LOSS, *STILL),
    _certain("nll_on_sigmoid", "NLL loss is given sigmoid outputs", *LOSS, *STILL),
    _certain("double_softmax", "softmax is taken twice", *LOSS),
    _certain("double_softmax_over_batch", "softmax is taken over the batch before the cross-entropy", *LOSS),
    _certain("softmax_over_batch", "softmax is taken over the batch, not the classes", *LOSS),
    _certain("sigmoid_before_cross_entropy", "a sigmoid comes before the cross-entropy", *LOSS),
    _certain("sigmoid_before_bce", "a sigmoid comes before BCE-with-logits", *LOSS),
    _certain("softmax_before_bce", "a softmax comes before the binary cross-entropy", *LOSS),
    _certain("softmax_on_tags", "a softmax makes independent tags compete", *LOSS),
    _certain("cross_entropy_on_tags", "cross-entropy makes independent tags compete", *LOSS),
    _certain("loss_negated", "the sign of the loss is flipped", *LOSS, *BLOWN),
    _certain("own_predictions_as_targets", "the model's own predictions are the targets", *LOSS),
    _certain("labels_permuted", "the loss sees other classes than the labels name", *LOSS),
    _certain("labels_of_other_tokens", "labels meet the logits of other tokens (a reshape, not a transpose)", *LOSS),
    _certain("labels_of_other_rows", "the loss sees the labels of other rows", *LOSS, "rows_independent"),
    _certain("regression_broadcast", "predictions and labels are broadcast against each other", *LOSS),
    _certain("smoothing_too_strong", "label smoothing rewards the wrong classes", *LOSS),
    _certain("positives_ignored", "labels that are on count nothing: pos_weight is zero", *LOSS),
    _certain("negatives_ignored", "labels that are off count nothing in the loss", *LOSS),
    _certain("tags_not_read", "the loss does not read all tags of a row", *LOSS),
    _certain("mistakes_pay", "surely wrong answers cost less than not knowing", *LOSS),
    _certain("class_ignored", "a class counts nothing in the loss", *LOSS),
    _certain("rows_ignored", "some rows count nothing in the loss", *LOSS),
    _certain("loss_unbounded", "the loss can fall without end", *LOSS, *BLOWN),
    _certain("sum_reduction", "the loss is a sum over the rows, not their mean", *LOSS, *BLOWN),
    _root("temperature_extreme", "a temperature in the loss is far too high", *LOSS, *STILL, *BLOWN),
    _root(
        "other_terms_drown", "another term of the loss (a regulariser, a penalty) drowns the task", *LOSS, *STILL, *DEAF
    ),
    _certain("loss_scaled_to_nothing", "the loss is scaled to nothing", *LOSS, *STILL),
    _certain(
        "logits_bounded",
        "the logits are bounded (squashed, or cosines without a scale): the loss cannot fall below its floor",
        "initial_loss",
        "grads_reach_depth",
        "head_init",
    ),
    _certain("logits_one_signed", "the logits cannot change sign", "initial_loss", *DEAF),
    _certain("outputs_cannot_reach_labels", "the outputs cannot reach the labels", "initial_loss"),
    _certain(
        "mask_inverted",
        "the attention mask is inverted",
        "output_depends_on_input",
        "padding_ignored",
        "initial_loss",
        *BLOWN,
    ),
    _root("initial_loss_not_finite", "the very first loss is not finite", *BLOWN),
    # ---- inputs and mode
    _certain("model_in_evaluation_mode", "the model trains in evaluation mode", "eval_deterministic"),
    _certain("part_in_evaluation_mode", "a part of the model trains in evaluation mode"),
    _certain("left_in_evaluation_mode", "the model is left in evaluation mode after an evaluation"),
    _certain("dropout_rate_extreme", "dropout takes nearly everything", *DEAF, "grads_match_reference"),
    _certain("dropout_missing", "there is no dropout, though it was declared"),
    _certain("dropout_not_meant", "dropout is on, though none was declared"),
    _certain("dropout_rate_differs", "dropout has another rate than declared"),
    _certain("mask_not_passed", "the attention mask does not reach the base"),
    _certain("mask_misspelt", "the attention mask goes to the base under a name that it does not know"),
    _certain("mask_misplaced", "the attention mask arrives in another argument's place", "output_depends_on_input"),
    _certain("mask_all_ones", "the attention mask does not mark the padding"),
    _root("mask_ignored", "the attention mask has no effect"),
    _root("mask_wrong", "the attention mask does not fit the padding"),
    _certain("pad_id_wrong", "the padding has another id than the model takes for padding"),
    _certain("padding_read", "the padding is read like text, for want of a mask that fits"),
    _root("padding_pooled", "the padding is pooled with the words"),
    _certain("rows_mixed", "rows of a batch are mixed", "padding_ignored", "loss_matches_task"),
    _certain("pools_first_token_of_causal_model", "a causal model is pooled at its first token", *DEAF),
    _certain("texts_cut_inside", "the texts are cut off inside the model"),
    _certain("positions_constant", "positions do not reach the base: all tokens stand at the same place"),
    _certain("type_ids_lost", "the type ids do not reach the base"),
    _root("pools_blind_layer", "the head is fed with something that does not depend on the words", *DEAF),
    _root("tokens_not_mixed", "the tokens do not see each other", *DEAF),
    _root("words_ignored", "the output does not depend on the words", *DEAF),
    _certain("batch_statistics_in_evaluation", "rows depend on each other through batch statistics in evaluation"),
    _certain(
        "random_in_evaluation",
        "the model is random in evaluation mode",
        "rows_independent",
        "padding_ignored",
        "metric_matches_reference",
    ),
    _certain("evaluation_changes_model", "the evaluation changes the model", "metric_matches_reference"),
    _certain(
        "statistics_never_updated",
        "the running statistics of a batch normalisation are never updated",
        *DEAF,
        "metric_matches_reference",
    ),
    _certain("seeded_every_step", "the random seed is set anew at every step: dropout takes out the same each time"),
    _certain("evaluates_in_training_mode", "the evaluation runs in training mode", "metric_matches_reference"),
    _certain("batchnorm_on_few", "batch normalisation over too few rows", "output_depends_on_input"),
    _root("batchnorm_tiny_batch", "batch normalisation over too few rows", "output_depends_on_input"),
    # ---- the way of the gradients
    _certain(
        "backward_reaches_nothing",
        "the graph is cut: the loss that the loop calls backward() on does not reach the weights, or backward() is never called",
        *STILL,
    ),
    _certain("grads_gone_before_step", "gradients are cleared before the optimizer steps", *STILL),
    _certain("no_gradient_at_all", "no gradient reaches any parameter", *STILL),
    _root("nan_gradients_replaced", "NaN gradients are replaced by zeros", *STILL, "all_finite"),
    _certain("micro_batches_lost", "only the last of the accumulated batches counts", "optimizer_covers_model"),
    _certain("batches_not_accumulated", "batches that should be accumulated are not", "optimizer_covers_model"),
    _certain("grads_never_zeroed", "gradients are never zeroed and add up", *BLOWN, "optimizer_settings"),
    _certain(
        "accumulation_not_averaged", "accumulated gradients are summed, not averaged", *BLOWN, "optimizer_settings"
    ),
    _certain("accumulation_divided_twice", "accumulated gradients are divided twice"),
    _certain("grads_still_scaled", "gradients are still scaled when the optimizer steps", *BLOWN, "optimizer_settings"),
    _certain("clipped_to_nothing", "gradients are clipped to nothing", *STILL, "optimizer_settings"),
    _certain("clipping_without_effect", "gradient clipping has no effect", "optimizer_settings"),
    _certain("grads_negated", "gradients have the wrong sign", *BLOWN),
    _root("gradient_reversed", "gradients are reversed on the way", *BLOWN, "grads_match_reference"),
    _root("grads_removed", "gradients are removed on the way", *STILL),
    _root("grads_one_step_late", "gradients arrive one step late", "weights_move"),
    _root("grads_of_another", "gradients are those of something else"),
    _root("adapters_silent", "the adapters contribute nothing", *STILL),
    _root("gate_zero", "a branch is multiplied by zero: no gradient passes the gate", *STILL),
    _root(
        "gradient_blocked",
        "gradients are set to zero on the way: by a hook, a mask or a step function",
        *STILL,
        "units_alive",
    ),
    _root("graph_cut", "the graph is cut: the output depends on tensors that get no gradient", *STILL),
    _root("layers_not_used", "layers take no part in the loss", *STILL),
    _root("not_in_graph", "parameters take no part in the loss", *STILL),
    _root("cut_below_head", "the graph is cut between base and head", *STILL),
    # ---- optimizer settings and schedule
    _certain("maximizes", "the optimizer maximizes the loss", *LOSS, *BLOWN, "grads_match_reference"),
    _certain("momentum_too_large", "the momentum is one or more: the velocity never decays", "weights_move", *BLOWN),
    _certain("gradient_damped_away", "the dampening takes the gradient out of the steps", *STILL),
    _certain(
        "lr_zero",
        "the learning rate is zero",
        *STILL,
        "lr_follows_schedule",
        "optimizer_covers_model",
        "optimizer_settings",
    ),
    _certain(
        "scheduler_on_another_optimizer",
        "the scheduler drives another optimizer",
        "weights_move",
        "optimizer_covers_model",
    ),
    _certain("scheduler_before_optimizer", "the scheduler steps before the optimizer"),
    _certain("scheduler_too_often", "the scheduler steps too often", "weights_move"),
    _certain("scheduler_too_seldom", "the scheduler steps too seldom", "weights_move"),
    _certain("group_not_scheduled", "a parameter group is left out of the schedule", "weights_move"),
    _certain("lr_constant", "the learning rate stays constant, though a schedule was declared"),
    _certain(
        "peak_lr_differs",
        "the peak learning rate is not the declared one",
        "weights_move",
        "lr_sensible",
        "optimizer_settings",
        *BLOWN,
    ),
    _certain("warmup_differs", "the warm-up is not the declared one", "weights_move"),
    _certain(
        "lr_negative",
        "the learning rate is negative: the optimizer climbs",
        "lr_follows_schedule",
        "weights_move",
        *BLOWN,
    ),
    _certain("decays_too_early", "the learning rate decays before the end", "weights_move"),
    _certain("schedule_differs", "the learning rate does not follow the declared schedule"),
    _certain("layerwise_lr_inverted", "layer-wise learning rates are upside down", "weights_move"),
    _certain("betas_swapped", "the optimizer's betas are swapped or misplaced", "weights_move", *BLOWN),
    _certain("eps_underflows", "the optimizer's eps is zero in the parameters' dtype", *BLOWN),
    _certain("eps_underflow", "the optimizer's eps is zero in the parameters' dtype", *BLOWN),
    _certain("eps_dominates", "the optimizer's eps dominates its steps", "weights_move"),
    _certain("decay_dominates", "weight decay dominates", "weights_move", "all_finite", *DEAF),
    _certain("other_optimizer", "another optimizer than the declared one", "optimizer_covers_model"),
    _certain("weight_decay_differs", "weight decay is not the declared one"),
    _certain("decay_on_norms", "norms and biases have weight decay"),
    _certain("not_clipped", "gradients are not clipped, though it was declared", "grads_match_reference"),
    _certain("clipped_too_far", "gradients are clipped further than declared", "grads_match_reference"),
    _certain("steps_too_seldom", "the optimizer steps more seldom than declared", "grads_match_reference"),
    _certain("steps_too_often", "the optimizer steps more often than declared", "grads_match_reference"),
    _certain("lr_too_large", "the learning rate is too large", *BLOWN, "logits_unbounded"),
    _certain("lr_below_spacing", "the dtype cannot hold the updates", "weights_move"),
    _root("lr_too_small", "the learning rate is too small", "weights_move"),
    # behind the rates: steps that are far too large saturate everything
    _root("gradient_saturated", "a saturated function lets hardly any gradient through", *STILL, "units_alive"),
    # ---- the weights do not stay
    _certain(
        "weights_overwritten", "something overwrites the weights between steps", "weights_move", "frozen_stay_frozen"
    ),
    _certain("weights_reset", "something resets weights between steps", "weights_move", "frozen_stay_frozen"),
    _certain("frozen_written", "something writes into frozen parameters", "weights_kept"),
    _certain("frozen_statistics_drift", "running statistics of a frozen module drift"),
    # ---- inside the head
    _root("units_dead_bias", "the head's hidden units are dead: a bias silences them", *DEAF),
    _root("units_dead_from_start", "the head's hidden units are dead from the start", *DEAF),
    _root("units_dead", "hidden units of the head are dead", *DEAF),
    _root("units_died", "the head's hidden units died in training", *DEAF),
    _root("units_saturated", "the head's hidden units are saturated", *DEAF),
    _root("grads_vanish", "gradients vanish on their way down", *STILL, *DEAF),
    _root("signal_lost_in_head", "the head loses what tells rows apart", *DEAF),
    _root("layer_stays_zero", "a layer is zero and stays zero", *STILL),
    _root("head_constant", "the head gives every row the same output", *DEAF),
    # ---- what only shows at the end
    _root("nonfinite_forward", "the forward pass or the loss gives NaN or infinity", *BLOWN),
    _root("nonfinite_backward", "the backward pass gives NaN or infinity", *BLOWN),
    _root("nonfinite_update", "the optimizer's step gives NaN or infinity", *BLOWN),
    _root("nonfinite_buffer", "a running statistic holds NaN or infinity", *BLOWN),
    _root("diverged", "the training diverges", *BLOWN),
    _root("loss_not_finite", "the loss stops being finite", *BLOWN),
    _root("grads_explode", "gradients explode", *BLOWN),
    _root("nonfinite", "gradients are not finite", *BLOWN),
    _root("gradient_zero", "gradients are exactly zero", *STILL),
    _root("gradient_negligible", "gradients are negligible", *STILL),
    _root("weights_still", "the weights do not move", *STILL),
    _root("initial_loss_too_high", "the first loss is far above knowing nothing"),
    _root("output_collapsed", "the training makes the output the same for every input", *DEAF),
    _root("collapsed", "the training makes the output the same for every input", *DEAF),
    _root("batch_loss_still", "training on one batch alone does not change its loss", *STILL),
    _root("batch_rows_alike", "not one batch can be learnt by heart: all rows get the same output", *DEAF),
    _root("loss_misses_labels", "the loss does not ask for the labels of the rows", *LOSS),
    _root("cannot_overfit", "not one batch can be learnt by heart", confidence="possible"),
    _root("no_better_than_permuted", "permuted labels are learnt as well as the true ones"),
    _root("labels_unrelated", "the labels look unrelated to the inputs", confidence="possible"),
    # ---- evaluation and saving
    _certain("metric_wrong", "the metric is computed wrongly"),
    _root("metric_blind", "the metric does not see what the model learns"),
    _root("metric_scaled", "the metric is scaled"),
    _certain("not_saved", "trained tensors are not in the state dict"),
    _certain("buffer_not_saved", "a buffer that matters is not saved"),
    _certain("reload_changes_logits", "the model answers differently after saving and loading"),
    _certain("does_not_load", "the saved state does not load"),
)
_RANK = {root.fault: i for i, root in enumerate(ROOTS)}
_ORDER = {name: i for i, name in enumerate(CHECKS)}


def root_of(verdict: Verdict) -> Root | None:
    """The row of the verdict's fault; None: it has none."""
    index = _RANK.get(verdict.fault)
    return None if index is None else ROOTS[index]


def rank_of(verdict: Verdict) -> tuple[int, int]:
    """Sorts verdicts, the most fundamental fault first."""
    return _RANK.get(verdict.fault, len(ROOTS)), _ORDER.get(verdict.check, len(_ORDER))
