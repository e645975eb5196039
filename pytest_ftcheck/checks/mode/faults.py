"""The faults that the checks of mode find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

_TRAIN = "call model.train() right before the loop and after every evaluation, or declare Intent(dropout=False)"
MODEL_IN_EVALUATION_MODE = Fault(
    "model_in_evaluation_mode",
    Rank.INPUTS + 10,
    "the model trains in evaluation mode",
    cause="model.train() was not called: from_pretrained returns the model in evaluation mode",
    remedy=_TRAIN,
    explains=("eval_deterministic",),
    confidence="certain",
)
PART_IN_EVALUATION_MODE = Fault(
    "part_in_evaluation_mode",
    Rank.INPUTS + 20,
    "part of the model trains in evaluation mode",
    cause="train() was not called on a part of the model: from_pretrained returns it in evaluation mode",
    remedy=_TRAIN,
    confidence="certain",
)
LEFT_IN_EVALUATION_MODE = Fault(
    "left_in_evaluation_mode",
    Rank.INPUTS + 30,
    "the model stays in evaluation mode after an evaluation",
    cause="an evaluation during training leaves the model in evaluation mode",
    remedy="call model.train() after every evaluation",
    confidence="certain",
)
DROPOUT_RATE_EXTREME = Fault(
    "dropout_rate_extreme",
    Rank.INPUTS + 40,
    "dropout drops nearly everything",
    cause="the rate is the share that is dropped, not the share that is kept",
    remedy="nn.Dropout({rate:g}), or declare Intent(dropout=...) if the rate is intended",
    explains=(
        Symptom.INPUT_LOST,
        "grads_match_reference",
    ),
    confidence="certain",
)
DROPOUT_ON_LOGITS = Fault(
    "dropout_on_logits",
    Rank.ADVICE + 20,
    "dropout is applied to the logits",
    cause="{module} comes after the last layer: it sets logits to zero, which is a score like any other, and enlarges the rest",
    remedy="put the dropout before the last layer: features, dropout, linear layer",
    confidence="certain",
)
DROPOUT_MISSING = Fault(
    "dropout_missing",
    Rank.INPUTS + 50,
    "dropout is declared, but the model has none",
    cause="no module drops anything in training mode",
    remedy="set the rates in the model's config, add nn.Dropout to the head, or declare Intent(dropout=False)",
    confidence="certain",
)
DROPOUT_NOT_MEANT = Fault(
    "dropout_not_meant",
    Rank.INPUTS + 60,
    "dropout is on, but was declared off",
    cause="the model's config, or its head, sets a dropout rate above 0",
    remedy="set the rates in the model's config to 0, or declare Intent(dropout=True)",
    confidence="certain",
)
DROPOUT_RATE_DIFFERS = Fault(
    "dropout_rate_differs",
    Rank.INPUTS + 70,
    "dropout has another rate than declared",
    cause="the model was built with another dropout rate",
    remedy="set the rate in the config that the model is built from: changing config.dropout afterwards changes no module",
    confidence="certain",
)
RANDOM_IN_EVALUATION = Fault(
    "random_in_evaluation",
    Rank.INPUTS + 260,
    "the model is random in evaluation mode",
    cause="something {where} is random in evaluation mode, such as F.dropout(x, p) without training=self.training",
    remedy="F.dropout(x, p, training=self.training), or an nn.Dropout module",
    explains=(
        "rows_independent",
        "padding_ignored",
        "metric_matches_reference",
    ),
    confidence="certain",
)
LAYERS_MADE_IN_FORWARD = Fault(
    "layers_made_in_forward",
    Rank.START + 155,
    "forward makes layers of its own: new, random and untrained at every pass",
    cause="a layer (nn.Linear(...), nn.Parameter(...)) is created inside forward: the optimizer has never seen it, and the next pass "
    "has another",
    remedy="create the layer in __init__ (self.dense = nn.Linear(...)), and call it in forward",
    explains=(
        Symptom.STANDS_STILL,
        "rows_independent",
        "padding_ignored",
        "metric_matches_reference",
    ),
    confidence="certain",
)
STATE_CARRIED = Fault(
    "state_carried",
    Rank.INPUTS + 165,
    "the model carries state from one batch to the next",
    cause="forward keeps something between calls (the hidden state of a recurrent layer, a cache, a running mean, a random generator "
    "of its own), and rows of the next batch are computed from it",
    remedy="start every forward pass from the same state: pass no hidden state to the recurrent layer, or reset it before each batch",
    explains=(
        "rows_independent",
        "padding_ignored",
        "metric_matches_reference",
    ),
    confidence="certain",
)
EVALUATION_CHANGES_MODEL = Fault(
    "evaluation_changes_model",
    Rank.INPUTS + 270,
    "the evaluation changes the model",
    cause="evaluate() trains the model, writes averaged or stored weights into it, or re-initialises it",
    remedy="evaluate under torch.no_grad() without an optimizer; keep averaged weights in a separate model, or restore the others",
    explains=("metric_matches_reference",),
    confidence="certain",
)
STATISTICS_NEVER_UPDATED = Fault(
    "statistics_never_updated",
    Rank.INPUTS + 280,
    "the running statistics of a batch normalisation are never updated",
    cause="something restores the running statistics, or the layer never saw a batch in training mode",
    remedy="momentum=0.1, torch's default, for {layer}",
    explains=(
        Symptom.INPUT_LOST,
        "metric_matches_reference",
    ),
    confidence="certain",
)
SEEDED_EVERY_STEP = Fault(
    "seeded_every_step",
    Rank.INPUTS + 290,
    "the random seed is reset at every step: dropout drops the same values each time",
    cause="the seed is reset in every step (torch.manual_seed in the step, the data set, the collate function or forward)",
    remedy="set the seed once, before the training",
    confidence="certain",
)
EVALUATES_IN_TRAINING_MODE = Fault(
    "evaluates_in_training_mode",
    Rank.INPUTS + 300,
    "the evaluation runs in training mode",
    cause="evaluate() does not switch the model to evaluation mode: the metric is computed with dropout on",
    remedy="call model.eval() at its start and model.train() at its end",
    explains=("metric_matches_reference",),
    confidence="certain",
)
