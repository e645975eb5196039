"""The faults that the checks of data find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

INPUTS_NAN = Fault(
    "inputs_nan",
    Rank.BROKEN_START + 30,
    "inputs contain NaN or infinity",
    cause="missing or overflowing values in the features: 0/0 in a normalisation, log of 0, float16 overflow, a gap in the table",
    remedy="drop or fill such rows before batching: torch.isfinite(inputs).all()",
    explains=(
        Symptom.BLOWS_UP,
        Symptom.LOSS_WRONG,
        "no_leak",
    ),
    confidence="certain",
)
LABELS_NAN = Fault(
    "labels_nan",
    Rank.BROKEN_START + 40,
    "labels contain NaN or infinity",
    cause="missing values in the label column were kept",
    remedy="drop or fill the rows without a label before batching",
    explains=(
        Symptom.BLOWS_UP,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
LABELS_ALL_IGNORED = Fault(
    "labels_all_ignored",
    Rank.LOSS_DISCONNECTED + 60,
    "the loss ignores every label",
    cause="every label is masked as if it were padding or a prompt",
    remedy="check the code that writes -100 into the labels",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
        "all_finite",  # the mean of no losses
    ),
    confidence="certain",
)
ONE_CLASS_ONLY = Fault(
    "one_class_only",
    Rank.DATA + 10,
    "all training labels are of one class",
    cause="the data are sorted by class and only the first part is read, or the wrong label column is read",
    remedy="shuffle the rows before batching (DataLoader(shuffle=True)); print ten labels",
    explains=(
        "initial_loss",
        "loss_matches_task",
    ),
    confidence="certain",
)
LABELS_CONSTANT = Fault(
    "labels_constant",
    Rank.DATA + 20,
    "all labels have the same value",
    cause="the wrong label column is read, or a default value overwrote it",
    remedy="print ten labels beside their inputs",
    explains=(
        "initial_loss",
        "loss_matches_task",
    ),
    confidence="certain",
)
MASK_EMPTY = Fault(
    "mask_empty",
    Rank.DATA + 30,
    "the attention mask hides every token",
    cause="the mask is not computed from the token ids, or with a wrong padding id or a wrong comparison",
    remedy="attention_mask = (input_ids != pad_token_id)",
    explains=(
        Symptom.INPUT_LOST,
        "padding_ignored",
    ),
    confidence="certain",
)
TEXTS_CUT_OFF = Fault(
    "texts_cut_off",
    Rank.DATA + 40,
    "texts are truncated to almost nothing",
    cause="texts are truncated to almost nothing: max_length leaves room for little more than the special tokens",
    remedy="raise max_length (truncation=True cuts to it); decode one batch and read it",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
IDS_CLAMPED = Fault(
    "ids_clamped",
    Rank.DATA + 50,
    "token ids are clamped to the end of the vocabulary",
    cause="the tokenizer has more ids than the model's embedding table, and ids beyond its end are clamped",
    remedy="use the tokenizer that belongs to the model, or model.resize_token_embeddings(len(tokenizer)); do not clamp ids",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
WORDS_UNKNOWN = Fault(
    "words_unknown",
    Rank.DATA + 60,
    "nearly all words are one and the same token",
    cause="the tokenizer does not know these words (letter case, language, another vocabulary): they all become the unknown token",
    remedy="decode one batch and read it: tokenizer.decode(batch['input_ids'][0])",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
INPUTS_ALIKE = Fault(
    "inputs_alike",
    Rank.DATA + 70,
    "nearly all rows have the same inputs",
    cause="what distinguishes the rows is lost on the way into the batch (one row again and again, a wrong column)",
    remedy="print a batch: do its rows differ from each other?",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
ONE_ROW_REPEATED = Fault(
    "one_row_repeated",
    Rank.DATA + 80,
    "each batch repeats a single row",
    cause="one row is repeated to fill the batch (a list multiplied, an index that never changes)",
    remedy="check the collate function and __getitem__: is the index used?",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
SAME_BATCH = Fault(
    "same_batch",
    Rank.DATA + 90,
    "every step trains on the same batch",
    cause="the step trains on a batch that it keeps (a variable of another scope, next(iter(loader)))",
    remedy="pass the step's own batch to the model",
    explains=("no_leak",),
    confidence="certain",
)
FEW_ROWS_DRAWN = Fault(
    "few_rows_drawn",
    Rank.DATA + 95,
    "the same few rows are drawn again and again",
    cause="the sampler draws a few indices of the data set again and again",
    remedy="print the indices of one epoch: list(loader.sampler); draw them without replacement (DataLoader(shuffle=True))",
    explains=("no_leak",),
)
CLASS_MISSING = Fault(
    "class_missing",
    Rank.DATA + 100,
    "a class that is evaluated is missing from the training data",
    cause="training and held-out labels are numbered differently, or a filter removed the class",
    remedy="print the label counts of both sets",
    confidence="certain",
)
_SHUFFLE = "shuffle the rows before batching: DataLoader(..., shuffle=True), or random.shuffle(rows)"
SORTED_BY_CLASS = Fault(
    "sorted_by_class",
    Rank.DATA + 110,
    "the data are sorted by class and not shuffled",
    cause="the data are sorted by label and not shuffled: each step unlearns the previous class",
    remedy=_SHUFFLE,
    explains=("initial_loss",),
    confidence="certain",
)
BATCHES_OF_ONE_CLASS = Fault(
    "batches_of_one_class",
    Rank.DATA + 120,
    "each batch holds one class",
    cause="rows are grouped into batches by class: each step pulls all predictions towards one class",
    remedy=_SHUFFLE,
    explains=("initial_loss",),
    confidence="certain",
)
LABELS_CHANGE = Fault(
    "labels_change",
    Rank.DATA + 125,
    "a row's label changes from one visit to the next",
    cause="labels are drawn or shuffled anew in each epoch, apart from their rows (a second iterator, a random number in __getitem__)",
    remedy="store each label beside its input, and let one index select both; print the same row in two epochs",
    explains=("initial_loss",),
)
LABELS_CONTRADICT = Fault(
    "labels_contradict",
    Rank.DATA + 130,
    "the same input has different labels",
    cause="copies of a text have different labels (augmented copies, rows repeated for each annotator or tag)",
    remedy="group the rows by text and read the labels of one group",
    confidence="certain",
)
LABEL_IN_INPUTS = Fault(
    "label_in_inputs",
    Rank.DATA + 140,
    "the inputs leak the label",
    cause="the label is among the inputs: {input}",
    remedy="remove it from the inputs and train again: the scores so far are meaningless",
    confidence="certain",
)
HELD_OUT_IS_TRAINING = Fault(
    "held_out_is_training",
    Rank.DATA + 150,
    "the held-out rows are training rows",
    cause="training and held-out rows were not split, or were split after rows had been copied",
    remedy="split first, then copy or augment; evaluate on rows that were not trained on",
    confidence="certain",
)
LABELS_SHIFTED = Fault(
    "labels_shifted",
    Rank.DATA + 160,
    "labels are misaligned with their rows",
    cause="inputs and labels are misaligned: each label is paired with another row's input ({shift})",
    remedy="join inputs and labels before sorting, filtering or batching; print ten rows with their labels",
)
BATCHNORM_ON_FEW = Fault(
    "batchnorm_on_few",
    Rank.INPUTS + 310,
    "batch normalisation over too few values",
    cause="batch normalisation with tiny batches",
    remedy="use larger batches (drop_last=True for the last one), or LayerNorm/GroupNorm, which do not depend on the batch",
    explains=("output_depends_on_input",),
    confidence="certain",
)
LABELS_UNRELATED = Fault(
    "labels_unrelated",
    Rank.OUTCOME + 200,
    "the labels look unrelated to the inputs",
    cause="inputs and labels were shuffled, sorted or filtered separately, or the rule takes far more data to show",
    remedy="print ten rows with their labels; join inputs and labels before shuffling",
    confidence="possible",
)
CLASSES_EXCHANGED = Fault(
    "classes_exchanged",
    Rank.EVALUATION + 5,
    "training and held-out rows number the classes differently",
    cause="the label map was built anew for the held-out rows (set(), unique() or the order of a file), so one class has two numbers",
    remedy="build the label map once, from the training labels, store it (config.label2id), and use it for every split",
    explains=("metric_improves", "metric_matches_reference"),
    confidence="certain",
)
TOKENS_APART = Fault(
    "tokens_apart",
    Rank.EVALUATION + 6,
    "held-out texts are unlike the training texts",
    cause="the held-out texts were tokenised or cleaned otherwise, or come from another source or language",
    remedy="tokenise both parts with one function, and decode one row of either; where they differ on purpose, judge on held-out rows of "
    "either kind",
    explains=("metric_improves",),
    confidence="possible",
)
LABELS_APART = Fault(
    "labels_apart",
    Rank.EVALUATION + 7,
    "training and held-out labels are distributed differently",
    cause="the rows were split in the order of the file, or one part was filtered or sampled by class",
    remedy="shuffle before splitting, and split by class: train_test_split(rows, stratify=labels)",
    explains=("metric_improves",),
    confidence="possible",
)
NUMBERS_APART = Fault(
    "numbers_apart",
    Rank.EVALUATION + 8,
    "held-out inputs are on another scale than the training inputs",
    cause="one part was scaled or standardised (divided by 255, say), and the other was not, or by other numbers",
    remedy="pass both parts through one function, whose numbers come from the training rows",
    explains=("metric_improves",),
    confidence="possible",
)
METRIC_WRONG = Fault(
    "metric_wrong",
    Rank.EVALUATION + 10,
    "the metric is computed wrongly",
    cause="evaluate() compares the wrong things (a wrong axis, rows in another order, other labels)",
    remedy="print ten predictions and labels inside evaluate()",
    confidence="certain",
)
METRIC_BLIND = Fault(
    "metric_blind",
    Rank.EVALUATION + 20,
    "the metric does not depend on the trained model",
    cause="evaluate() does not score the trained model: it uses a copy made before training, or a constant prediction",
    remedy="evaluate(model) must use the model that it receives; argmax and thresholds must fit its outputs",
)
METRIC_SCALED = Fault(
    "metric_scaled",
    Rank.EVALUATION + 30,
    "the metric is the accuracy times the batch size",
    cause="correct predictions are divided by the number of batches instead of rows",
    remedy="divide by the number of rows: total += len(labels)",
)
CLASSES_IMBALANCED = Fault(
    "classes_imbalanced",
    Rank.ADVICE + 15,
    "most batches hold rows of one class alone, because the others are rare",
    cause="one class has nearly all rows, and neither the sampler nor the loss makes up for it: most steps only raise that class",
    remedy="weight the classes (weight=, pos_weight=), draw rare rows more often (WeightedRandomSampler), or use larger batches; judge by "
    "macro recall or the area under the ROC curve",
)
OUTPUT_NEVER_A_LABEL = Fault(
    "output_never_a_label",
    Rank.ADVICE + 16,
    "an output of the head is never a label",
    cause="classes are numbered from 1 in place of 0, num_labels counts too many, or a filter removed the class",
    remedy="number the labels from 0 without gaps, and set num_labels to their number; no change, where the class is expected later",
)
ROWS_REPEATED = Fault(
    "rows_repeated",
    Rank.ADVICE + 17,
    "many training rows are copies of others",
    cause="a file was read or concatenated several times, a join multiplied the rows, or templates give the same text",
    remedy="drop copies before splitting (drop_duplicates); copies that fall on both sides of a split make its scores too good",
)
