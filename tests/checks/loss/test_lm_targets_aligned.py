"""lm_targets_aligned: which token each position of a language model is taught."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pytest_ftcheck import check_lm_targets_aligned, example_trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.loss.lm_record import LmTargets
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for


def judge(causal, shares):
    return check_lm_targets_aligned(example_trace(measurements={"lm_targets": LmTargets(300, causal, shares)}))


@pytest.mark.parametrize(
    ("causal", "shares", "fault"),
    [
        (True, {0: 0.02, 1: 1.0, 2: 0.03}, ""),
        (True, {0: 0.02, 1: 0.03, 2: 1.0}, "shifted_twice"),
        (True, {0: 1.0, 1: 0.03, 2: 0.02}, "not_shifted"),
        (True, {-1: 0.95, 0: 0.1, 1: 0.03}, "not_shifted"),
        (True, {0: 0.95, 1: 0.6, 2: 0.5}, ""),  # a text that repeats itself
        (True, {0: 0.8, 1: 0.1}, ""),  # something else is taught
        (False, {0: 0.2, 1: 0.02}, ""),
        (False, {0: 0.49}, ""),
        (False, {0: 0.5}, "labels_at_visible"),
    ],
)
def test_what_is_taught(causal, shares, fault):
    assert judge(causal, shares).fault == fault


@pytest.mark.parametrize(
    ("rows", "with_end", "labels", "causal", "fault"),
    [
        (100, 90, 0, True, "end_never_taught"),
        (100, 89, 0, True, ""),
        (100, 100, 1, True, ""),
        (31, 31, 0, True, ""),
        (100, 100, 0, False, ""),  # a masked language model chooses no special tokens
    ],
)
def test_the_end_of_a_text(rows, with_end, labels, causal, fault):
    targets = LmTargets(300, causal, {0: 0.0, 1: 1.0}, rows, with_end, labels)
    assert check_lm_targets_aligned(example_trace(measurements={"lm_targets": targets})).fault == fault


@pytest.mark.parametrize(
    ("commonest", "overall", "fault"),
    [
        ({-1: 1.0, 0: 0.1, 1: 0.1}, 0.15, "labels_beside_masked"),
        ({-1: 0.7, 0: 0.4}, 0.4, "labels_beside_masked"),
        ({-1: 0.69, 0: 0.1}, 0.15, ""),
        ({-1: 1.0, 0: 0.41}, 0.15, ""),  # labels at the masks of a template
        ({-1: 1.0, 0: 0.1}, 0.41, ""),  # an id that is everywhere
        ({-1: 0.2, 0: 0.8, 1: 0.2}, 0.15, ""),
        ({}, 0.15, ""),
    ],
)
def test_labels_beside_the_masked_tokens(commonest, overall, fault):
    targets = LmTargets(300, False, {0: 0.1}, commonest=commonest, commonest_overall=dict.fromkeys(commonest, overall))
    verdict = check_lm_targets_aligned(example_trace(measurements={"lm_targets": targets}))
    assert verdict.fault == fault
    if fault:
        assert "one and the same id 1 position before them" in verdict.headline
        assert "by 1 position:" in verdict.causes[0]


@pytest.mark.parametrize(
    ("mask", "overall", "following", "scattered", "fault"),
    [
        (0.8, 0.12, 0.1, 0.7, "masked_targets_of_causal"),
        (1.0, 0.12, 0.0, 0.7, "masked_targets_of_causal"),
        (0.69, 0.12, 0.1, 0.7, ""),
        (0.8, 0.41, 0.1, 0.7, ""),  # an id that is everywhere
        (0.8, 0.12, 0.51, 0.7, ""),  # the next token is that id
        (1.0, 0.12, 0.0, 0.0, ""),  # an answer that is not seen: a placeholder stands in its place
    ],
)
def test_masked_targets_of_a_causal_model(mask, overall, following, scattered, fault):
    targets = LmTargets(
        *(300, True, {1: following}, 100, 100, 0 if fault else 9),
        commonest={1: mask},
        commonest_overall={1: overall},
        scattered=scattered,
    )
    assert check_lm_targets_aligned(example_trace(measurements={"lm_targets": targets})).fault == fault


@pytest.mark.parametrize(
    ("rows", "moved", "paddings", "fault"),
    [(7, 7, 4, "labels_moved_by_padding"), (7, 7, 1, ""), (7, 6, 4, ""), (0, 0, 0, "")],
)
def test_labels_that_are_padded_on_the_other_side(rows, moved, paddings, fault):
    targets = LmTargets(300, True, {1: 0.1}, padded_rows=rows, moved_by_padding=moved, paddings=paddings)
    assert check_lm_targets_aligned(example_trace(measurements={"lm_targets": targets})).fault == fault


def of_walks(kind):
    """Texts of different lengths, padded on the left but ``right``, and their labels."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        ids, labels = torch.zeros(8, 14, dtype=torch.long), torch.full((8, 14), -100)
        for row, n in enumerate(torch.randint(6, 15, (8,), generator=g).tolist()):
            place = slice(0, n) if kind == "right" else slice(14 - n, 14)
            ids[row, place] = torch.randint(5, 55, (n,), generator=g)
            labels[row, slice(0, n) if kind == "other side" else place] = ids[row, place]
        mask = (ids > 0).long()
        if kind == "masked":
            chosen = (torch.rand(ids.shape, generator=g) < 0.2) & (ids > 0)
            labels, ids = ids.masked_fill(~chosen, -100), ids.masked_fill(chosen, 4)
        if kind == "placeholder":  # the answer is the last token, which is not seen
            labels = torch.full_like(ids, -100)
            labels[:, -1] = ids[:, -1]
            ids[:, -1] = 4
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


@pytest.mark.trains
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("other side", "labels_moved_by_padding"),
        ("masked", "masked_targets_of_causal"),
        ("left", ""),
        ("right", ""),
        ("placeholder", ""),
    ],
)
def test_texts_of_a_real_causal_model(kind, fault):
    trace = finetune(tiny("llama", "causal-lm"), of_walks(kind), steps=1, probes=["lm_targets"])
    verdict = check_lm_targets_aligned(trace)
    assert (verdict.status, verdict.fault) == (("fail", fault) if fault else ("pass", ""))


def test_a_decoder_that_is_given_its_answer():
    targets = LmTargets(300, True, {0: 1.0, 1: 0.1}, of_decoder=True)
    verdict = check_lm_targets_aligned(example_trace(measurements={"lm_targets": targets}))
    assert verdict.fault == "not_shifted"
    assert verdict.causes[0].startswith("decoder_input_ids are the labels themselves")
    assert verdict.remedy.startswith("leave decoder_input_ids out")


@pytest.mark.trains
@pytest.mark.parametrize(("fed", "fault"), [(False, ""), (True, "not_shifted")])
def test_a_real_decoder(fed, fault):
    model = tiny("t5", "seq2seq")
    batches = batches_for(model)[:2]
    for batch in batches if fed else ():
        batch["decoder_input_ids"] = batch["labels"].clamp(min=0)
    trace = finetune(model, batches, steps=1, probes=["lm_targets"])
    verdict = check_lm_targets_aligned(trace)
    assert (verdict.status, verdict.fault) == (("fail", fault) if fault else ("pass", ""))
    assert trace.measured(LmTargets).shares[0 if fed else 1] == 1.0


def test_wording():
    assert str(judge(True, {0: 0.02, 1: 0.03, 2: 1.0})).splitlines() == [
        "lm_targets_aligned: FAIL. 100 % of 300 positions are taught the token 2 positions later, 3.0 % the next token.",
        "  cause: the labels are shifted before the model or the loss shifts them again: position t is taught token t + 2",
        "  do: give the model labels=input_ids and let it shift them (models of transformers do), or shift once by yourself: "
        "logits[:, :-1] against labels[:, 1:]",
        "  limit: a causal language model is taught the next token",
        "  measured: the id whose logit the loss raises most, at each position with a gradient, before the first step",
    ]


def texts(labels):
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 60, (4, 12), generator=g) for _ in range(3)]
    return [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": labels(x, g)} for x in ids]


def causal_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=16))


def masked_model():
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16)
    return DistilBertForMaskedLM(config)


def some(x, g):
    """Labels at every fourth position; the ids there are visible in one of ten, as a masked language model's are."""
    chosen = torch.rand(x.shape, generator=g) < 0.25
    labels = torch.where(chosen, x.clone(), -100)
    x[chosen & (torch.rand(x.shape, generator=g) < 0.9)] = 4
    return labels


def compare_in_place(model, batch):
    logits = model(input_ids=batch["input_ids"]).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


@pytest.mark.trains
@pytest.mark.parametrize(
    ("model", "labels", "loss_fn", "fault"),
    [
        (causal_model, lambda x, g: x.clone(), None, ""),
        (causal_model, lambda x, g: F.pad(x[:, 1:], (0, 1), value=-100), None, "shifted_twice"),
        (causal_model, lambda x, g: x.clone(), compare_in_place, "not_shifted"),
        (causal_model, lambda x, g: F.pad(x[:, 1:], (0, 1), value=-100), compare_in_place, ""),
        (masked_model, some, None, ""),
        (masked_model, lambda x, g: x.clone(), None, "labels_at_visible"),
    ],
)
def test_real_language_models(model, labels, loss_fn, fault):
    trace = finetune(model, texts(labels), steps=1, probes=["lm_targets"], loss_fn=loss_fn)
    verdict = check_lm_targets_aligned(trace)
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault), verdict


@pytest.mark.trains
@pytest.mark.parametrize(("hidden", "fault"), [("ids", "end_never_taught"), ("mask", "")])
def test_the_padding_token_is_the_end_token(hidden, fault):
    g, batches = torch.Generator().manual_seed(0), []
    for _ in range(4):
        x = torch.randint(5, 60, (10, 12), generator=g)
        mask = (torch.arange(12)[None] < torch.randint(6, 13, (10, 1), generator=g)).long()
        x[mask == 0] = 2
        x[torch.arange(10), mask.sum(1) - 1] = 2
        labels = torch.where(x == 2 if hidden == "ids" else mask == 0, -100, x)
        batches.append({"input_ids": x, "attention_mask": mask, "labels": labels})
    assert check_lm_targets_aligned(finetune(causal_model, batches, steps=1, probes=["lm_targets"])).fault == fault


class ByItself(torch.nn.Module):
    """Each position is predicted from its own token, as by an encoder whose attention starts at zero."""

    def __init__(self):
        super().__init__()
        self.embedding, self.decoder = torch.nn.Embedding(60, 16), torch.nn.Linear(16, 60)

    def forward(self, input_ids, attention_mask):
        return self.decoder(self.embedding(input_ids))


def taught_at_masked(model, batch):
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]).transpose(1, 2), batch["labels"])


@pytest.mark.trains
def test_positions_that_follow_no_other_are_neither_causal_nor_masked():
    """The end of a text is no target of a masked language model, whatever its attention does at the start."""
    batches = texts(lambda x, g: some(x, g))
    for batch in batches:
        batch["input_ids"][:, -1], batch["labels"][:, -1] = 2, -100
    trace = finetune(ByItself, batches * 3, steps=1, probes=["lm_targets"], loss_fn=taught_at_masked, head="decoder")
    verdict = check_lm_targets_aligned(trace)
    assert (verdict.status, verdict.fault) == ("skipped", ""), verdict
    assert "no position follows another one as yet" in trace.skipped["lm_targets"]


@pytest.mark.parametrize(
    ("following", "sees_next", "fault"),
    [(1.0, 1.0, "next_token_visible"), (1.0, 0.0, ""), (0.8, 1.0, ""), (1.0, None, "")],
)
def test_the_next_token_that_is_seen(following, sees_next, fault):
    targets = LmTargets(300, False, {0: 0.05, 1: following}, sees_next=sees_next)
    verdict = check_lm_targets_aligned(example_trace(measurements={"lm_targets": targets}))
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault)


class PrefixModel(torch.nn.Module):
    """One layer of attention: a prefix sees all of itself, what follows it sees what is before; or all see all."""

    def __init__(self, prefix=6, width=12):
        super().__init__()
        self.embedding, self.decoder = torch.nn.Embedding(60, 16), torch.nn.Linear(16, 60)
        self.place = torch.nn.Parameter(torch.randn(width, 16))
        hidden = torch.ones(width, width, dtype=torch.bool).triu(1)
        hidden[:prefix, :prefix] = False
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self, input_ids, attention_mask):
        h = self.embedding(input_ids) + self.place
        scores = (h @ h.transpose(1, 2) / 4).masked_fill(self.hidden, -torch.inf)
        return self.decoder(h + scores.softmax(-1) @ h)


def answer_after_prefix(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])[:, 6:-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 7:])


@pytest.mark.trains
@pytest.mark.parametrize(("prefix", "fault"), [(8, ""), (12, "next_token_visible")])
def test_a_prefix_that_sees_itself_and_a_model_that_sees_all(prefix, fault):
    """The prefix ends behind the half of the row that `_causal` looks at: only positions that are taught count."""
    trace = finetune(
        lambda: PrefixModel(prefix), texts(lambda x, g: x.clone()), steps=1, probes=["lm_targets"],
        loss_fn=answer_after_prefix, head="decoder",
    )  # fmt: skip
    found = trace.measured(LmTargets)
    assert not found.causal
    assert check_lm_targets_aligned(trace).fault == fault, found


@pytest.mark.trains
@pytest.mark.parametrize(("hides", "fault"), [(True, ""), (False, "next_token_visible")])
def test_ids_and_labels_of_a_tuple(hides, fault):
    """Nothing but its shape says that the input is ids of tokens: one label a number, and a model with a table of embeddings."""
    model = PrefixModel(0 if hides else 12, 11)
    batches = [(b["input_ids"][:, :-1], b["input_ids"][:, 1:]) for b in texts(lambda x, g: x.clone())]
    trace = finetune(model, batches, steps=1, probes=["lm_targets"], forward=lambda m, b: m(b[0], None), head="decoder")
    assert check_lm_targets_aligned(trace).fault == fault, trace.measured(LmTargets)
    assert check_lm_targets_aligned(trace).status == ("fail" if fault else "pass")


@pytest.mark.trains
@pytest.mark.parametrize(("kind", "settings", "fault"), [
    ("bert", {}, ""), ("bert", {"is_decoder": False}, "next_token_visible"), ("xlnet", {}, ""),
])  # fmt: skip
def test_a_librarys_encoder_as_a_decoder(kind, settings, fault):
    torch.manual_seed(0)
    model = tiny(kind, "causal-lm", **settings)
    verdict = check_lm_targets_aligned(finetune(model, batches_for(model), steps=1, probes=["lm_targets"]))
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault), verdict


def beside_a_reference(model, batch):
    """A second pass, from which nothing is learnt, as of a penalty against the old model."""
    output = model(**batch)
    with torch.no_grad():
        model(**batch)
    return output.loss


def from_hidden_states(model, batch):
    """Logits that are only looked at, as with TRL's losses in chunks."""
    hidden = model.transformer(batch["input_ids"]).last_hidden_state
    with torch.no_grad():
        model(**batch)
    logits = hidden[:, :-1] @ model.lm_head.weight.T
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())


@pytest.mark.trains
def test_logits_that_nothing_is_learnt_from_are_left_alone():
    batches = texts(lambda x, g: x.clone())
    trace = finetune(causal_model, batches, steps=1, probes=["lm_targets"], loss_fn=beside_a_reference)
    assert check_lm_targets_aligned(trace).status == "pass"
    trace = finetune(causal_model, batches, steps=1, probes=["lm_targets"], loss_fn=from_hidden_states)
    assert trace.skipped["lm_targets"] == "the loss is not computed from the model's logits"


@pytest.mark.trains
def test_classes_are_no_vocabulary():
    trace = finetune(tiny_distilbert(), toy_batches(), steps=1, probes=["lm_targets"])
    assert check_lm_targets_aligned(trace).status == "skipped"
