"""The faults that the checks of inputs find, the most fundamental first."""

from __future__ import annotations

from dataclasses import replace

from ..spec import Fault, Rank, Symptom

ONE_ROW_FOR_ALL = Fault(
    "one_row_for_all",
    Rank.DATA + 170,
    "one row's features are used for all rows",
    cause="dimension 0 is indexed or averaged over between the base and the head: out[0] is the first row of a tensor, hidden[:, 0] the "
    "first token of each row",
    remedy="check what is indexed between the base and the head: dimension 0 is the batch",
    explains=("rows_independent", "logits_unbounded", "initial_loss", Symptom.INPUT_LOST),
    confidence="certain",
)
MASK_INVERTED = Fault(
    "mask_inverted",
    Rank.LOSS + 340,
    "the attention mask is inverted",
    cause="the attention mask is inverted: {base} attends only to padding",
    remedy="attention_mask is 1 at real tokens and 0 at padding: pass 1 - mask (or ~mask) instead",
    explains=("output_depends_on_input", "padding_ignored", "initial_loss", Symptom.BLOWS_UP),
    confidence="certain",
)
#: The same in a model of the user's own.
MASK_INVERTED_INSIDE = replace(
    MASK_INVERTED,
    cause="the mask is inverted inside the model: it hides the words and shows the padding (torch's key_padding_mask is True at tokens to "
    "ignore, the tokenizer's attention_mask is 1 at real tokens)",
    remedy="key_padding_mask=(attention_mask == 0), or scores.masked_fill(attention_mask == 0, -inf)",
)
MASK_NOT_PASSED = Fault(
    "mask_not_passed",
    Rank.INPUTS + 80,
    "the attention mask does not reach the base",
    cause="the attention mask does not reach {base}: padding is attended to like text",
    remedy="pass it by name: {base}(input_ids=ids, attention_mask=mask)",
    confidence="certain",
)
#: The same where the batches hold none.
MASK_NOT_IN_BATCH = replace(
    MASK_NOT_PASSED,
    remedy=f"put an attention_mask into the batches (the tokenizer returns it), and {MASK_NOT_PASSED.remedy}",
)
MASK_MISSPELT = Fault(
    "mask_misspelt",
    Rank.INPUTS + 90,
    "the attention mask is passed to the base under a name that it does not know",
    cause="the mask is passed to {base} under a name that it does not know ({names}), and **kwargs swallows it",
    remedy="call it attention_mask=: {base}(input_ids=ids, attention_mask=mask)",
    confidence="certain",
)
MASK_MISPLACED = Fault(
    "mask_misplaced",
    Rank.INPUTS + 100,
    "the attention mask is passed to the base as another argument",
    cause="the mask is passed to {base} as {names}, not as attention_mask",
    remedy="pass it by name, not by position: {base}(input_ids=ids, attention_mask=mask)",
    explains=("output_depends_on_input",),
    confidence="certain",
)
MASK_ALL_ONES = Fault(
    "mask_all_ones",
    Rank.INPUTS + 110,
    "the attention mask does not mark the padding",
    cause="the mask that reaches {base} is 1 everywhere, at padding too",
    remedy="build it from the ids: attention_mask = (input_ids != pad_token_id).long()",
    confidence="certain",
)
MASK_IGNORED = Fault(
    "mask_ignored",
    Rank.INPUTS + 120,
    "the attention mask has no effect",
    cause="the model takes a mask, but its attention layers do not use it: padding is attended to like text",
    remedy="pass it to the attention layers: key_padding_mask=~mask.bool() (src_key_padding_mask= of a TransformerEncoder)",
)
MASK_WRONG = Fault(
    "mask_wrong",
    Rank.INPUTS + 130,
    "the attention mask does not match the padding",
    cause="the mask that reaches {base} is not the mask of this batch",
    remedy="pass the batch's own mask, of shape (rows, columns), 1 at real tokens",
)
PAD_ID_WRONG = Fault(
    "pad_id_wrong",
    Rank.INPUTS + 140,
    "the batches are padded with another id than config.pad_token_id",
    cause="the model finds the last real token by config.pad_token_id={config_pad_id}, but the batches are padded with {pad_id}: it pools "
    "padding",
    remedy="model.config.pad_token_id = tokenizer.pad_token_id, which is {pad_id} here",
    confidence="certain",
)
PADDING_READ = Fault(
    "padding_read",
    Rank.INPUTS + 150,
    "padding tokens influence the output",
    cause="padding tokens influence the output somewhere in the model: attention without a mask, or with one of the wrong sign, dtype or "
    "padding id (0 is added to the scores of padding, not -inf), or a mean or a last position that counts padding",
    remedy="mask padding in every attention layer (key_padding_mask=(ids == pad_token_id)), and pool over real tokens only: "
    "(hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
    confidence="certain",
)
#: The same in a model with recurrent layers.
PADDING_READ_BY_RNN = replace(
    PADDING_READ,
    cause="the recurrent layer runs on over the padding, and what it gives there is used (its last state, or a mean over all positions)",
    remedy="nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False), or take the output at lengths - 1",
)
PADDING_POOLED = Fault(
    "padding_pooled",
    Rank.INPUTS + 160,
    "the pooling includes padding",
    cause="{base} gets the right mask, but the pooling of its output includes padding: a mean, a maximum or a last position that counts "
    "padding as text, or a pad_token_id that is not the batch's",
    remedy="pool over real tokens only, e.g. (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), or take the vector at "
    "mask.sum(1) - 1; check model.config.pad_token_id",
)
ROWS_MIXED = Fault(
    "rows_mixed",
    Rank.INPUTS + 170,
    "rows of a batch are mixed",
    cause="rows are mixed {where}: view() or reshape() in place of transpose(), or a softmax, mean or norm over dim 0, the batch",
    remedy="check what reshapes, pools or normalises there: dimension 0 must stay the batch (hidden[:, 0], softmax(dim=-1), "
    "transpose(0, 1) to swap axes)",
    explains=("padding_ignored", "loss_matches_task"),
    confidence="certain",
)
ROWS_REORDERED = Fault(
    "rows_reordered",
    Rank.INPUTS + 164,
    "the outputs come back in another order than the rows",
    cause="rows are sorted in forward ({where}), by their length for pack_padded_sequence for example, and not put back: each label meets "
    "the output of another row",
    remedy="put them back before the output: with lengths, order = lengths.sort(descending=True), return output[order.argsort()]; or leave "
    "the rows as they are: pack_padded_sequence(..., enforce_sorted=False)",
    explains=("padding_ignored", "loss_matches_task", "labels_learnable", "output_depends_on_input"),
    confidence="certain",
)
OUTPUTS_NOT_ROWS = Fault(
    "outputs_not_rows",
    Rank.INPUTS + 162,
    "the model's outputs do not follow its rows",
    cause="the outputs are taken along another axis, which happens to be as long as the batch (hidden[0], the tokens of the first row, in "
    "place of hidden[:, 0], the first token of each row)",
    remedy="keep the batch in dimension 0: hidden[:, 0], view(len(hidden), -1), squeeze(-1)",
    explains=(
        "padding_ignored",
        "loss_matches_task",
        "labels_learnable",
        "output_depends_on_input",
        "grads_match_reference",
    ),
    confidence="certain",
)
POOLS_FIRST_TOKEN_OF_CAUSAL_MODEL = Fault(
    "pools_first_token_of_causal_model",
    Rank.INPUTS + 180,
    "a causal model is pooled at its first token",
    cause="the head gets the first token's vector, but in {base}, a causal model, the first token attends to none after it",
    remedy="pool where the whole text was read: the last real token, hidden[arange(rows), mask.sum(1) - 1], or a masked mean",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
TEXTS_CUT_INSIDE = Fault(
    "texts_cut_inside",
    Rank.INPUTS + 190,
    "the model cuts the texts to their first tokens",
    cause="the model cuts the texts, or uses only their first vectors: a slice, or a maximum length of a few tokens",
    remedy="follow the ids' width through forward(): ids[:, :n], max_length, a narrow() or a view() that drops the rest",
    confidence="certain",
)
POSITIONS_CONSTANT = Fault(
    "positions_constant",
    Rank.INPUTS + 200,
    "positions do not reach the base: all tokens have the same one",
    cause="{base} receives position_ids that are the same nearly everywhere: zeros, or the attention mask in their place",
    remedy="leave position_ids out, the base counts them itself; or pass torch.arange(columns)",
    confidence="certain",
)
TYPE_IDS_LOST = Fault(
    "type_ids_lost",
    Rank.INPUTS + 210,
    "token_type_ids do not reach the base",
    cause="token_type_ids are in the batch but do not reach {base}, which uses zeros in their place",
    remedy="pass them on: {base}(input_ids=..., attention_mask=..., token_type_ids=token_type_ids)",
    confidence="certain",
)
POOLS_BLIND_LAYER = Fault(
    "pools_blind_layer",
    Rank.INPUTS + 220,
    "the head's input does not depend on the words",
    cause="the head does not get {base}'s last hidden vectors: those depend on the words, its input does not (hidden_states[0] is the "
    "output of the embedding layer, with the same first vector for every text)",
    remedy="take last_hidden_state, or hidden_states[-1]",
    explains=(Symptom.INPUT_LOST,),
)
TOKENS_NOT_MIXED = Fault(
    "tokens_not_mixed",
    Rank.INPUTS + 230,
    "no token attends to another",
    cause="the attention of {base}, a library class, has no effect here: does it need a custom kernel that is not installed?",
    remedy="run it where its kernels are installed, or use another architecture: as it is, the output depends on one token of each row",
    explains=(Symptom.INPUT_LOST,),
)
WORDS_IGNORED = Fault(
    "words_ignored",
    Rank.INPUTS + 240,
    "the output does not depend on the words",
    cause="the words are lost before the head: a constant position or tensor is pooled, or a constant replaces something computed from "
    "the ids",
    remedy="follow one row's ids through forward(): from where on does the vector no longer depend on them?",
    explains=(Symptom.INPUT_LOST,),
)
BATCH_STATISTICS_IN_EVALUATION = Fault(
    "batch_statistics_in_evaluation",
    Rank.INPUTS + 250,
    "rows depend on each other through batch statistics in evaluation mode",
    cause="{layer} has no running statistics: it normalises over the batch in evaluation mode, too",
    remedy="set track_running_stats=True, or use LayerNorm, which normalises within a row",
    confidence="certain",
)
MASK_HIDES_TOKENS = Fault(
    "mask_hides_tokens",
    Rank.OUTCOME + 195,
    "the attention mask hides real tokens",
    cause="the mask was made from other ids, for another length, or for other rows: it is 0 at {share} of the tokens whose id is not that "
    "of the padding ({pad_id}, {source})",
    remedy="build it from the ids of the same batch: attention_mask = (input_ids != pad_token_id).long(); if tokens are hidden on purpose, "
    "do it in training rows alone",
)
FIRST_TOKEN_VARIES = Fault(
    "first_token_varies",
    Rank.OUTCOME + 196,
    "the head reads the first token, which is another word in each row",
    cause="the rows do not begin with the special token that {base} has for the whole text ([CLS], <s>): the head reads the vector of the "
    "text's first word in its place",
    remedy="tokenise with add_special_tokens=True, or average the vectors over the real tokens: "
    "(hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
)
INPUTS_UNSCALED = Fault(
    "inputs_unscaled",
    Rank.INPUTS + 330,
    "the inputs are not scaled: their numbers are far too large",
    cause="raw numbers (pixels of 0 to 255, amounts, counts) enter the first layer, whose initial weights are made for numbers around 1",
    remedy="standardise the inputs: pixels / 255 and the mean and standard deviation that the model was pretrained with (its image "
    "processor), (column - mean) / std for each column of a table; or a LayerNorm before the first layer",
    explains=("initial_loss", Symptom.BLOWS_UP, Symptom.STANDS_STILL),
)
INPUTS_HARDLY_VARY = Fault(
    "inputs_hardly_vary",
    Rank.INPUTS + 335,
    "the inputs hardly vary: their numbers are far too small",
    cause="the inputs were scaled twice (divided by 255, and rescaled again by the image processor), or are in too large a unit",
    remedy="scale them once (do_rescale=False where they lie between 0 and 1 already), so that their standard deviation is about 1",
    explains=(Symptom.STANDS_STILL,),
)
HEAD_CONSTANT = Fault(
    "head_constant",
    Rank.HEAD + 90,
    "the head gives every row the same output",
    cause="the head's input differs from row to row, its output does not: dead units, zero weights or saturation in the head",
    remedy="check the head's activations and initial weights (units_alive, head_init)",
    explains=(Symptom.INPUT_LOST,),
)
OUTPUT_COLLAPSED = Fault(
    "output_collapsed",
    Rank.OUTCOME + 130,
    "training makes the output the same for every input",
    cause="training made the output the same for every input: dead units, saturation or divergence",
    remedy="lower the learning rate; see what units_alive, loss_stable and all_finite report",
    explains=(Symptom.INPUT_LOST,),
)
