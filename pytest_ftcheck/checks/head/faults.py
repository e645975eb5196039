"""The faults that the checks of the head find, the most fundamental first."""

from __future__ import annotations

from dataclasses import replace

from ..spec import Fault, Rank, Symptom

_LOAD_LAST = (
    "load the checkpoint last, and check that load_state_dict(strict=True) or from_pretrained() reports no missing keys"
)
_INITIALISE_LAST = "initialise the head last, after the model is made and loaded: {code}"

# ---------------------------------------------------------------------- the start
HEAD_UNINITIALISED = Fault(
    "head_uninitialised",
    Rank.BROKEN_START + 20,
    "the head was never initialised",
    cause="{layer} was never initialised (torch.empty, to_empty, or a layer left out of the initialisation)",
    remedy="initialise it: InitScheme.normal(std=0.02).apply(model)",
    explains=(Symptom.BLOWS_UP, Symptom.LOSS_WRONG),
    confidence="certain",
)
#: Of `check_init` alone.
BASE_CLOBBERED = Fault(
    "base_clobbered",
    Rank.START + 5,
    "the initialisation of the head overwrote the base, too",
    cause="the initialisation overwrote the base, too: model.apply(init) visits every module",
    remedy="load the base again, and initialise the head alone: scheme.apply(model) or model.classifier.apply(init)",
)
PRETRAINED_NOT_LOADED = Fault(
    "pretrained_not_loaded",
    Rank.START + 10,
    "the pretrained weights are not loaded",
    cause="re-initialised after loading, or never loaded: {where}{drawn_as}",
    remedy=_LOAD_LAST + "; initialise only the head: model.{head}.apply(init), not model.apply(init)",
    confidence="certain",
)
PRETRAINED_PARTLY_LOST = Fault(
    "pretrained_partly_lost",
    Rank.START + 20,
    "a part of the pretrained weights is not loaded",
    cause="re-initialised after loading, or never loaded: {where}{drawn_as}; apply(init) visited the whole model, or names did not match",
    remedy=PRETRAINED_NOT_LOADED.remedy,
    confidence="certain",
)
PRETRAINED_OTHER_SHAPE = Fault(
    "pretrained_other_shape",
    Rank.START + 30,
    "pretrained tensors have another shape than the model's",
    cause="another shape than in the checkpoint, from another config or a changed vocabulary: {where}",
    remedy="build the model from the checkpoint's own config, or resize with resize_token_embeddings()",
    confidence="certain",
)
PRETRAINED_SCALED = Fault(
    "pretrained_scaled",
    Rank.START + 40,
    "the pretrained weights were scaled",
    cause="multiplied by a factor after loading: {where}",
    remedy=_LOAD_LAST,
    confidence="certain",
)
PRETRAINED_SHIFTED = Fault(
    "pretrained_shifted",
    Rank.START + 45,
    "a constant was added to the pretrained weights",
    cause="a constant was added after loading: {where}",
    remedy=_LOAD_LAST,
    confidence="certain",
)
PRETRAINED_SHUFFLED = Fault(
    "pretrained_shuffled",
    Rank.START + 50,
    "pretrained values are in another order, or in other tensors",
    cause="the checkpoint's values in another order, transposed or with permuted rows (another vocabulary order): {where}",
    remedy="copy weight.t() where the layouts differ, and use the checkpoint's own tokenizer",
    confidence="certain",
)
#: The same for whole tensors.
PRETRAINED_MISPLACED = replace(
    PRETRAINED_SHUFFLED,
    cause="the checkpoint's values for other layers, numbered from another start, reversed or assigned out of order: {where}",
    remedy="map the names of the checkpoint one by one, and compare a tensor of each layer with it after loading",
)
PRETRAINED_CHANGED = Fault(
    "pretrained_changed",
    Rank.START + 60,
    "the pretrained weights were changed before training",
    cause="changed after loading (trained, averaged or noised), or taken from another version of the checkpoint: {where}",
    remedy=_LOAD_LAST,
    confidence="certain",
)
#: The same along a line.
PRETRAINED_SCALED_AND_SHIFTED = replace(
    PRETRAINED_CHANGED, cause="multiplied by a factor after loading, and a constant was added: {where}"
)
#: The same where the declared values are one constant, and the model's another: a factor and a sum look alike.
PRETRAINED_REFILLED = replace(
    PRETRAINED_CHANGED, cause="filled with another constant after loading, multiplied by a factor or added to: {where}"
)
#: The same where whole tensors of a checkpoint that was loaded have one value: no initialiser gives that to a matrix.
PRETRAINED_FILLED = replace(
    PRETRAINED_CHANGED, cause="filled with one value after loading, zero for example, or pruned away: {where}"
)
#: The same where whole rows were set to zero: of an embedding table, words.
PRETRAINED_ROWS_ZEROED = replace(
    PRETRAINED_CHANGED, cause="whole rows were set to zero after loading, and the rest is the checkpoint's: {where}"
)
HEAD_ALL_ZERO = Fault(
    "head_all_zero",
    Rank.START + 70,
    "hidden weights of the head start at zero",
    cause="zero weights in a hidden layer: no signal passes, and no gradient comes back",
    remedy="only the last layer may start at zero: InitScheme.normal(std=0.02).with_last(InitScheme.zeros())",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
HEAD_INIT_CONSTANT = Fault(
    "head_init_constant",
    Rank.START + 80,
    "the head starts with constant weights",
    cause="all weights of a layer are the same: {layers}",
    remedy=_INITIALISE_LAST,
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
HEAD_SYMMETRIC = Fault(
    "head_symmetric",
    Rank.START + 90,
    "hidden units of the head start identical and stay identical",
    cause="nothing makes the units of {layer} differ: {kind} weights",
    remedy="draw the weights at random: InitScheme.normal(std=0.02).apply(model)",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
HEAD_INIT_HUGE = Fault(
    "head_init_huge",
    Rank.START + 100,
    "the head's initial weights are too large",
    cause="the initial weights are too large: {layer} has std {std} for {fan_in} inputs (He: {he})",
    remedy="use a smaller standard deviation: InitScheme.normal(std=0.02).apply(model); check the scale of the features, too",
    explains=("initial_loss", Symptom.BLOWS_UP, "logits_unbounded"),
    confidence="certain",
)
HEAD_BIAS_NOT_ZERO = Fault(
    "head_bias_not_zero",
    Rank.START + 110,
    "a hidden layer of the head starts with a bias that is not zero",
    cause="the hidden layer {layer} has a bias that is not zero (a class prior belongs on the last layer)",
    remedy="torch.nn.init.zeros_({layer}.bias)",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
#: The same by a scheme that declares the bias.
HEAD_BIAS_NOT_DECLARED = replace(
    HEAD_BIAS_NOT_ZERO, cause="the bias is not the declared one: {tensor} is {found}", remedy=_INITIALISE_LAST
)
HEAD_INIT_TORCH_DEFAULT = Fault(
    "head_init_torch_default",
    Rank.START + 120,
    "the initialisation did not reach the head: it has torch's default",
    cause="the initialisation did not reach {layers}: torch's default, uniform up to 1/sqrt(fan-in), is left (children() in place of "
    "modules(), or a head replaced later)",
    remedy=_INITIALISE_LAST,
    confidence="certain",
)
HEAD_INIT_INITIALIZER_RANGE = Fault(
    "head_init_initializer_range",
    Rank.START + 130,
    "the head was initialised again with the model's own range",
    cause="transformers initialised {layers} with config.initializer_range = {initializer_range}, before or over your own initialisation "
    "(post_init)",
    remedy="set config.initializer_range, or initialise the head after from_pretrained(): {code}",
    confidence="certain",
)
HEAD_INIT_NOT_DECLARED = Fault(
    "head_init_not_declared",
    Rank.START + 140,
    "the head does not start as declared",
    cause="the weights of {layer} are {ratio} times as large as declared",
    remedy=_INITIALISE_LAST,
    confidence="certain",
)
HEAD_INIT_NOT_CENTRED = replace(
    HEAD_INIT_NOT_DECLARED,
    cause="the weights of {layer} are not centred at zero (rand() in place of randn(), or mean and std swapped)",
)
HEAD_INIT_OTHER_SCHEME = replace(HEAD_INIT_NOT_DECLARED, cause="the weights match {recognised}")
#: Of `check_init` alone.
INIT_SIGNAL_VANISHES = Fault(
    "init_signal_vanishes",
    Rank.START + 145,
    "the head's initial weights are too small: hardly any gradient comes back",
    cause="the weights behind {layer} are too small for a gradient to come back",
    remedy="use a larger standard deviation, 1/sqrt(fan-in) keeps a signal's size: InitScheme.kaiming_normal().apply(model)",
)
OUTSIDE_THE_MODEL = Fault(
    "outside_the_model",
    Rank.START + 150,
    "trained tensors are not part of the model",
    cause="layers are kept in a plain python list or dict, in a closure, or as bare tensors: torch does not register them",
    remedy="use nn.ModuleList, nn.ModuleDict or nn.Parameter, or assign the layer to an attribute of the module",
    explains=(Symptom.STANDS_STILL, "optimizer_covers_model"),
    confidence="certain",
)

# ---------------------------------------------------------------------- its units
UNITS_DEAD_BIAS = Fault(
    "units_dead_bias",
    Rank.HEAD + 10,
    "the head's hidden units are dead: their bias is far below zero",
    cause="the bias of {layer} starts at {bias} on average, too low for any input to make up for: a class prior or an offset for another "
    "layer (the last one)",
    remedy="torch.nn.init.zeros_({layer}.bias); a class prior belongs on the last layer's bias",
    explains=(Symptom.INPUT_LOST,),
)
UNITS_DEAD_FROM_START = Fault(
    "units_dead_from_start",
    Rank.HEAD + 20,
    "the head's hidden units are dead from the start",
    cause="a bias or a mean far below zero keeps the units of {layer} at zero, or its input does not vary",
    remedy="initialise {layer} with weights around zero and zero biases",
    explains=(Symptom.INPUT_LOST,),
)
UNITS_DEAD = Fault("units_dead", Rank.HEAD + 30, "hidden units of the head are dead", explains=(Symptom.INPUT_LOST,))
UNITS_DIED = Fault(
    "units_died",
    Rank.HEAD + 40,
    "the head's hidden units died in training",
    cause="the units of {layer} died in training ({share} were dead before): too large a step pushed them below zero",
    remedy="lower the learning rate, or clip the gradient; GELU and LeakyReLU units do not die like this",
    explains=(Symptom.INPUT_LOST,),
)
UNITS_SATURATED = Fault(
    "units_saturated",
    Rank.HEAD + 50,
    "the head's hidden units are saturated",
    cause="the input of the {activation} after {layer} is too large: large weights, or features that are not normalised",
    remedy="start {layer} with smaller weights (std 0.02), or put a LayerNorm before the {activation}",
    explains=(Symptom.INPUT_LOST,),
)
SIGNAL_LOST_IN_HEAD = Fault(
    "signal_lost_in_head",
    Rank.HEAD + 70,
    "the head loses the differences between rows",
    cause="{layers} in a row with small weights shrink the signal, and the gradient with it",
    remedy="use fewer layers in the head, GELU or ReLU, and weights of std 1/sqrt(fan-in) or more",
    explains=(Symptom.INPUT_LOST,),
)

# ---------------------------------------------------------------------- its first loss, in `check_init`
INIT_LOSS_TOO_LOW = Fault(
    "init_loss_too_low",
    Rank.OUTCOME + 125,
    "the first loss is below that of a class-prior prediction",
    cause="the head was trained on these rows before, or the labels are in the inputs",
    remedy="re-initialise the head: InitScheme.normal(std=0.02).apply(model)",
)

# ---------------------------------------------------------------------- saving it
NOT_SAVED = Fault(
    "not_saved",
    Rank.EVALUATION + 40,
    "trained tensors are not in the state dict",
    cause="the saved state leaves out trained parameters (a custom state_dict(), _keys_to_ignore_on_save, or adapters without "
    "modules_to_save)",
    remedy='name the head in modules_to_save=["classifier"] of the adapter config, or save the whole state_dict',
    confidence="certain",
)
BUFFER_NOT_SAVED = Fault(
    "buffer_not_saved",
    Rank.EVALUATION + 50,
    "a buffer that the logits depend on is not saved",
    cause="they are registered with persistent=False, or kept as plain attributes",
    remedy="register_buffer(..., persistent=True)",
    confidence="certain",
)
#: The same for tensors that were drawn at random.
RANDOM_TENSOR_NOT_SAVED = replace(
    BUFFER_NOT_SAVED,
    cause="drawn when the model is built, and registered with persistent=False or kept as a plain attribute: a new model that loads the "
    "state draws others",
    remedy="register_buffer(name, tensor) without persistent=False, or nn.Parameter(tensor, requires_grad=False)",
)
RELOAD_CHANGES_LOGITS = Fault(
    "reload_changes_logits",
    Rank.EVALUATION + 60,
    "the logits differ after saving and loading",
    cause="state_dict() or load_state_dict() leaves out, or changes, something that the logits depend on",
    remedy="register every tensor with the module (nn.Parameter, register_buffer) under one name, and load what was saved",
    confidence="certain",
)
DOES_NOT_LOAD = Fault(
    "does_not_load",
    Rank.EVALUATION + 70,
    "the saved state does not load",
    cause="names in state_dict() and load_state_dict() differ: one of them is overridden or hooked",
    remedy="make load_state_dict() accept the result of state_dict()",
    confidence="certain",
)

# ---------------------------------------------------------------------- what belongs to it
HEAD_INCOMPLETE = Fault(
    "head_incomplete",
    Rank.ADVICE + 5,
    "modules outside the pretrained base are not part of the head",
    cause="the argument head= names only some of the new modules: the others are judged as parts of the base",
    remedy="name all of them: head={prefixes}",
    confidence="certain",
)

# ---------------------------------------------------------------------- whether it is needed
LINEAR_AFTER_LINEAR = Fault(
    "linear_after_linear",
    Rank.ADVICE + 10,
    "two linear layers of the head follow each other without an activation",
    cause="the activation was forgotten or removed",
    remedy="put an activation (nn.ReLU()) after {layer}, or use one linear layer",
)
HEAD_REDUNDANT = Fault(
    "head_redundant",
    Rank.ADVICE + 11,
    "a simpler head is as good",
    cause="the base is expressive enough for a linear head",
    remedy="try {code}",
)
HEAD_WASTES_FEATURES = Fault(
    "head_wastes_features",
    Rank.ADVICE + 12,
    "a linear layer on the same features is better than the head",
    cause="the head is undertrained, or something in it is wrong: a linear layer separates the classes",
    remedy="try {code}",
)
