"""The probe on inputs: its measurements of small real models, and that it restores everything."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from pytest_ftcheck import (
    Intent,
    Trace,
    check_output_depends_on_input,
    check_padding_ignored,
    check_rows_independent,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.checks.inputs.probe.inputs import NOISE
from pytest_ftcheck.checks.inputs.probe.padding import hardly_differ
from pytest_ftcheck.checks.inputs.record import Inputs
from pytest_ftcheck.core.effect import Effect

BATCHES = toy_batches(4, 12, seed=3)
KEYWORDS = [{"input_ids": ids, "attention_mask": mask, "labels": y} for (ids, _, mask), y in BATCHES]


class Wrapped(nn.Module):
    """The tiny base with a call and a pooling of one's own."""

    def __init__(self, call=None, pool=None):
        super().__init__()
        torch.manual_seed(0)
        tiny = tiny_distilbert()
        self.base_model, self.classifier = tiny.base_model, tiny.classifier
        self.call = call or (lambda base, ids, mask: base(ids, attention_mask=mask)[0])
        self.pool = pool or (lambda hidden, mask: hidden[:, 0])

    def forward(self, input_ids, attention_mask):
        return self.classifier(self.pool(self.call(self.base_model, input_ids, attention_mask), attention_mask))


def traced(model, batches=KEYWORDS, steps=2, **settings):
    trace = finetune(model, batches, steps=steps, lr=1e-3, probes=("inputs",), **settings)
    assert Trace.from_json(trace.to_json()) == trace
    return trace


def statuses(trace):
    return [c(trace).status for c in (check_padding_ignored, check_rows_independent, check_output_depends_on_input)]


@pytest.mark.parametrize("batches", [BATCHES, KEYWORDS], ids=["tuples", "keywords"])
def test_a_healthy_model(batches):
    trace = traced(tiny_distilbert(seed=0) if batches is BATCHES else Wrapped(), batches)
    found = trace.measured(Inputs)
    assert statuses(trace) == ["pass"] * 3
    assert found.padding.side == "right"
    assert found.padding.pad_id == 0
    assert found.padding.columns > 0
    assert found.padding.mask_in_batch
    assert found.padding.less_padding.ulps < 64
    assert found.batch_mates.output.ulps < 64
    assert found.batch_mates.base == "base_model"
    assert [w.when for w in found.words] == ["before", "after"]
    assert found.words[0].other_words.ulps > 1000
    assert found.words[1].other_order.ulps > 64
    assert found.unmeasured == {}
    assert found.repeat is None


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda base, ids, mask: base(ids)[0], "mask_not_passed"),
        (lambda base, ids, mask: base(ids, mask=mask)[0], "mask_misspelt"),
        (lambda base, ids, mask: base(ids, attention_mask=1 - mask)[0], "mask_inverted"),
        (lambda base, ids, mask: base(ids, attention_mask=torch.ones_like(mask))[0], "mask_all_ones"),
    ],
)
def test_masks_that_go_wrong(call, fault):
    verdict = check_padding_ignored(traced(Wrapped(call)))
    assert (verdict.status, verdict.fault) == ("fail", fault)


@pytest.mark.parametrize(
    "pool",
    [lambda h, m: h.mean(1), lambda h, m: h.amax(1), lambda h, m: h[:, -1]],
    ids=["mean", "max", "last"],
)
def test_padding_that_is_pooled(pool):
    verdict = check_padding_ignored(traced(Wrapped(pool=pool)))
    assert (verdict.status, verdict.fault) == ("fail", "padding_pooled")


def test_a_masked_mean_is_healthy():
    trace = traced(Wrapped(pool=lambda h, m: (h * m[..., None]).sum(1) / m.sum(1, keepdim=True)))
    assert statuses(trace) == ["pass"] * 3


def test_left_padding_is_measured_with_other_ids():
    left = []
    for batch in KEYWORDS:
        order = batch["attention_mask"].argsort(stable=True)
        moved = {k: batch[k].gather(1, order) for k in ("input_ids", "attention_mask")}
        left.append({**moved, "labels": batch["labels"]})
    trace = traced(Wrapped(), left)
    assert trace.measured(Inputs).padding.side == "left"
    assert trace.measured(Inputs).padding.less_padding is None
    assert check_padding_ignored(trace).fault == "padding_pooled"
    assert statuses(traced(Wrapped(pool=lambda h, m: h[:, -1]), left)) == ["pass"] * 3


def test_a_mask_that_the_batches_lack():
    bare = [{"input_ids": b["input_ids"], "labels": b["labels"]} for b in KEYWORDS]

    class Bare(Wrapped):
        def forward(self, input_ids):
            return super().forward(input_ids, None)

    trace = traced(Bare(lambda base, ids, mask: base(ids)[0]), bare, intent=Intent(pad_token_id=0))
    verdict = check_padding_ignored(trace)
    assert verdict.fault == "mask_not_passed"
    assert not trace.measured(Inputs).padding.mask_in_batch
    assert "into the batches" in verdict.remedy


def test_rows_that_are_mixed():
    trace = traced(Wrapped(pool=lambda h, m: h.reshape(h.shape[1], h.shape[0], -1)[0]))
    verdict = check_rows_independent(trace)
    assert verdict.fault == "rows_mixed"
    assert "behind base_model" in verdict.causes[0]
    assert check_padding_ignored(trace).status == "skipped"


def test_permutation_of_rows_alone_is_not_enough():
    """A mean over the batch does not change when rows change places: they must get other batch mates."""
    trace = traced(Wrapped(pool=lambda h, m: h[:, 0] - h[:, 0].mean(0)))
    assert check_rows_independent(trace).fault == "rows_mixed"


def by_length(h, m, back):
    """As for pack_padded_sequence with enforce_sorted."""
    order = m.sum(1).argsort(descending=True, stable=True)
    sorted_by_length = h[order, 0]
    return sorted_by_length[order.argsort()] if back else sorted_by_length


@pytest.mark.parametrize(("back", "fault"), [(False, "rows_reordered"), (True, "")])
def test_rows_that_are_sorted_by_length(back, fault):
    verdict = check_rows_independent(traced(Wrapped(pool=lambda h, m: by_length(h, m, back))))
    assert verdict.fault == fault
    assert ("at the places of other rows" in verdict.headline) == bool(fault)


@pytest.mark.parametrize(("pool", "fault"), [(lambda h, m: h[0], "outputs_not_rows"), (lambda h, m: h[:, 0], "")])
def test_outputs_that_are_the_tokens_of_the_first_row(pool, fault):
    square = []
    for batch in KEYWORDS:
        n = len(batch["labels"])
        wide = {k: F.pad(batch[k], (0, n))[:, :n] for k in ("input_ids", "attention_mask")}
        square.append({**wide, "labels": batch["labels"]})
    trace = traced(Wrapped(pool=pool), square)
    verdict = check_rows_independent(trace)
    assert verdict.fault == fault
    if fault:
        assert verdict.headline.startswith("12 rows give 12 outputs, but 8 rows of them give 12")
        assert statuses(trace) == ["skipped", "fail", "skipped"]
        assert "one output a row" in check_padding_ignored(trace).headline


@pytest.mark.parametrize(("tracked", "fault"), [(False, "batch_statistics_in_evaluation"), (True, "")])
def test_batch_norm(tracked, fault):
    model = Wrapped()
    model.classifier = nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16, track_running_stats=tracked), nn.ReLU(), nn.Linear(16, 2)
    )
    assert check_rows_independent(traced(model)).fault == fault


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda b, i, m: b(i, attention_mask=m, output_hidden_states=True).hidden_states[0], "pools_blind_layer"),
        (lambda b, i, m: b(i * 0, attention_mask=m)[0], "words_ignored"),
    ],
)
def test_words_that_change_nothing(call, fault):
    verdict = check_output_depends_on_input(traced(Wrapped(call)))
    assert (verdict.status, verdict.fault) == ("fail", fault)


def test_the_first_token_of_a_causal_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=200,
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=32,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Wrapped()
    torch.manual_seed(0)
    model.base_model = transformers.GPT2Model(config)
    model.classifier = nn.Linear(32, 2)
    verdict = check_output_depends_on_input(traced(model))
    assert (verdict.status, verdict.fault) == ("fail", "pools_first_token_of_causal_model")
    model.pool = lambda h, m: h[torch.arange(len(h)), m.sum(1) - 1]
    assert statuses(traced(model)) == ["pass"] * 3


def test_a_last_layer_at_zero_is_measured_again_afterwards():
    model = Wrapped()
    nn.init.zeros_(model.classifier[3].weight)
    trace = traced(model, steps=4)
    assert statuses(trace) == ["pass"] * 3
    assert trace.measured(Inputs).words[0].other_words.change == 0
    assert trace.measured(Inputs).batch_mates is not None
    for check in (check_padding_ignored, check_rows_independent):
        assert "weights after the training" in check(trace).measured
        assert "initial weights" in check(traced(Wrapped())).measured


def test_a_base_that_is_kept_from_mixing_tokens_is_no_librarys_fault():
    """A mask of one's own that hides all tokens from each other; with the right one the base does mix them."""

    def call(base, ids, mask):
        alone = torch.eye(ids.shape[1], dtype=torch.bool).expand(len(ids), 1, -1, -1)
        return base(ids, attention_mask=alone)[0]

    trace = traced(Wrapped(call))
    assert trace.measured(Inputs).words[-1].base_last_token.ulps > 64
    assert check_output_depends_on_input(trace).status == "fail"


def test_a_dead_head_is_not_taken_for_blind_features():
    model = Wrapped()
    nn.init.constant_(model.classifier[0].bias, -100.0)
    assert check_output_depends_on_input(traced(model)).fault == "head_constant"


class NothingButRounding(Wrapped):
    """What enters the head is what rounding leaves of x (a n) - (x a) n, n being the width of the batch: so on every machine."""

    def __init__(self):
        super().__init__(pool=self.left_over)
        self.a = nn.Parameter(torch.tensor(1 / 3))
        nn.init.zeros_(self.classifier[0].bias)
        nn.init.zeros_(self.classifier[3].bias)

    def left_over(self, hidden, mask):
        x, n = hidden[:, 0], mask.shape[1]
        return x * (self.a * n) - (x * self.a) * n


@pytest.mark.parametrize(("noise", "expected"), [(0, "fail"), (NOISE, "skipped")])
def test_outputs_that_are_rounding_skip_the_padding(noise, expected, monkeypatch):
    monkeypatch.setattr("pytest_ftcheck.checks.inputs.probe.inputs.NOISE", noise)
    model = NothingButRounding()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    trace = traced(model)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    verdict = check_padding_ignored(trace)
    assert verdict.status == expected
    assert trace.measured(Inputs).rounding.relative > 0.05
    assert check_rows_independent(trace).status == "pass"
    if expected == "skipped":
        assert "beside rounding" in verdict.headline


@pytest.mark.parametrize("value", [0.01, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_constant_head_is_not_blamed_on_the_padding(seed, value):
    model = tiny_distilbert(seed=seed)
    for layer in (model.classifier[0], model.classifier[3]):
        nn.init.constant_(layer.weight, value)
    assert "fail" not in statuses(traced(model, toy_batches(seed=seed)))[:2]


def test_weights_that_cannot_be_rounded_are_left_alone(monkeypatch):
    """Not every dtype can be multiplied: then effects count as they are."""

    @contextlib.contextmanager
    def refused(_model, _precision):
        raise NotImplementedError("mul for this type")
        yield

    monkeypatch.setattr("pytest_ftcheck.checks.inputs.probe.inputs.rounded", refused)
    trace = traced(Wrapped(pool=lambda h, m: h.mean(1)))
    assert trace.measured(Inputs).rounding is None
    assert check_padding_ignored(trace).fault == "padding_pooled"


def test_a_random_output_is_left_to_another_check():
    trace = traced(Wrapped(pool=lambda h, m: nn.functional.dropout(h[:, 0], 0.5)))
    assert statuses(trace) == ["skipped"] * 3
    assert trace.measured(Inputs).repeat.relative > 0.05


def test_plain_features(rows):
    """No tokens: no padding and no words, but rows all the same."""
    torch.manual_seed(0)
    trace = traced(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), rows, head="2")
    assert statuses(trace) == ["skipped", "pass", "pass"]
    assert trace.measured(Inputs).unmeasured == {"padding": "no token ids were found in the batches"}
    assert trace.measured(Inputs).words[0].other_words is None


def test_one_row_is_too_few(rows):
    trace = traced(nn.Linear(6, 2), [(x[:1], y[:1]) for x, y in rows], head="weight")
    assert statuses(trace) == ["skipped"] * 3
    assert "fewer than two rows" in check_rows_independent(trace).headline


def test_a_model_that_refuses_is_skipped():
    class Refusing(Wrapped):
        def forward(self, input_ids, attention_mask):
            if not self.training and len(input_ids) == 8:
                raise RuntimeError("not like this")
            return super().forward(input_ids, attention_mask)

    trace = traced(Refusing())
    assert trace.measured(Inputs) is None
    assert trace.skipped["inputs"] == "it raised RuntimeError: not like this"
    assert "not like this" in check_rows_independent(trace).headline


def test_a_model_of_one_width_skips_the_padding():
    class Fixed(Wrapped):
        def forward(self, input_ids, attention_mask):
            assert len({*self.widths, input_ids.shape[1]}) == 1
            return super().forward(input_ids, attention_mask)

    model = Fixed()
    batches = [KEYWORDS[0]]
    model.widths = {KEYWORDS[0]["input_ids"].shape[1]}
    trace = traced(model, batches)
    assert statuses(trace) == ["skipped", "pass", "pass"]
    assert trace.measured(Inputs).unmeasured["padding"].startswith("AssertionError")


def test_nothing_is_left_behind():
    seen = []

    def step(model, batch, optimizer, scheduler):
        seen.append(
            (
                torch.rand(1).item(),
                random.random(),
                [m.training for m in model.modules()],
                [p.grad for p in model.parameters()].count(None),
                sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
                [p.detach().clone() for p in model.parameters()],
            )
        )
        return 0.0

    def run(probes):
        seen.clear()
        torch.manual_seed(1)
        random.seed(1)
        model = Wrapped(pool=lambda h, m: h.mean(1))  # with a fault, so that everything is measured
        model.base_model.eval()
        finetune(model, KEYWORDS, steps=2, step=step, optimizer=torch.optim.SGD(model.parameters(), 0.1), probes=probes)
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return list(seen), hooks, torch.rand(1).item()

    (with_it, left, after), (without, _, after_without) = run(("inputs",)), run(())
    assert left == 0
    assert after == after_without
    for one, two in zip(with_it, without, strict=True):
        assert one[:5] == two[:5]
        assert all(torch.equal(a, b) for a, b in zip(one[5], two[5], strict=True))


class UserModel(nn.Module):
    """Word vectors, then the given kind of layer: no library class."""

    def __init__(self, kind, mask="right", pool="masked"):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(200, 16, padding_idx=0)
        layer = {
            "gru": lambda: nn.GRU(16, 16, batch_first=True),
            "both ways": lambda: nn.GRU(16, 8, batch_first=True, bidirectional=True),
            "conv": lambda: nn.Conv1d(16, 16, 3, padding=1),
            "scores": lambda: nn.Linear(16, 16),
            "attention": lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
            ),
        }
        self.layer, self.kind, self.mask, self.pool = layer[kind](), kind, mask, pool
        self.classifier = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        if self.kind == "conv":
            h = self.layer(x.transpose(1, 2)).transpose(1, 2)
        elif self.kind == "scores":
            scores = (self.layer(x) @ x.transpose(1, 2)).masked_fill(attention_mask[:, None] == 1, float("-inf"))
            h = x + scores.softmax(-1) @ x
        elif self.kind == "attention":
            made = {
                "right": attention_mask == 0,
                "inverted": attention_mask.bool(),
                "none": None,
                "of another id": input_ids == 1,
            }
            h = self.layer(x, src_key_padding_mask=made[self.mask])
        else:
            h = self.layer(x)[0]
        if self.pool == "last":
            return self.classifier(h[:, -1])
        if self.pool == "first":
            return self.classifier(h[:, 0])
        if self.pool == "max":
            return self.classifier(h.amax(1))
        if self.pool == "mean":
            return self.classifier(h.mean(1))
        m = attention_mask.unsqueeze(-1).float()
        return self.classifier((h * m).sum(1) / m.sum(1))


def _wider(columns=3):
    def wide(t):
        return torch.cat([t, t.new_zeros(len(t), columns)], 1)

    return [
        {"input_ids": wide(b["input_ids"]), "attention_mask": wide(b["attention_mask"]), "labels": b["labels"]}
        for b in KEYWORDS
    ]


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        (("gru", "right", "last"), "padding_read"),
        (("conv", "right", "mean"), "padding_read"),
        (("attention", "none", "masked"), "padding_read"),
        (("attention", "none", "first"), "mask_ignored"),
        (("attention", "of another id"), "padding_read"),
        (("attention", "right", "last"), "padding_read"),
        (("attention", "inverted", "masked"), "mask_inverted"),
        (("attention", "inverted", "first"), "mask_inverted"),
    ],
)
def test_padding_in_a_model_of_ones_own(how, fault):
    verdict = check_padding_ignored(traced(UserModel(*how), _wider(), intent=Intent(pad_token_id=0)))
    assert (verdict.status, verdict.fault) == ("fail", fault), verdict


@pytest.mark.parametrize("pool", ["masked", "first"])
def test_a_mask_that_hides_all_of_a_row_without_padding(pool):
    batches = [{k: v[:4] for k, v in b.items()} for b in KEYWORDS]
    for b in batches:  # no padding in the longest row
        cut = int(b["attention_mask"].sum(1).max())
        b["input_ids"], b["attention_mask"] = b["input_ids"][:, :cut], b["attention_mask"][:, :cut]
    trace = finetune(UserModel("scores", "inverted", pool), batches, steps=2, lr=1e-3, probes=("inputs",))
    verdict = check_padding_ignored(trace)
    assert (verdict.status, verdict.fault) == ("fail", "mask_inverted")
    assert verdict.headline == "The outputs are not finite in exactly those rows that have no padding."


@pytest.mark.parametrize(
    ("change", "hardly"),
    [
        (1.5e-5, True),  # measured with norms that pass on a hundredth: what is left of a row is its length
        (3.9e-5, False),
        (1e-8, True),
        (0.0, True),
    ],
)
def test_what_is_left_of_a_dying_signal_shows_no_inverted_mask(change, hardly):
    assert hardly_differ(Effect(change, change / 4, scale=0.0385)) is hardly


@pytest.mark.parametrize(
    "how",
    [
        ("gru", "right", "masked"),
        ("both ways", "right", "masked"),
        ("conv", "right", "max"),
        ("conv", "right", "masked"),
        ("attention", "right", "masked"),
        ("attention", "right", "first"),
    ],
)
def test_a_healthy_model_of_ones_own(how):
    assert check_padding_ignored(traced(UserModel(*how), _wider(), intent=Intent(pad_token_id=0))).status == "pass"


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (lambda: Wrapped(pool=lambda hidden, mask: hidden[:1, 0].expand(len(hidden), -1)), "one_row_for_all"),
        (
            lambda: Wrapped(pool=lambda hidden, mask: hidden[:, 0].mean(0, keepdim=True).expand(len(hidden), -1)),
            "one_row_for_all",
        ),
        (
            lambda: Wrapped(call=lambda base, ids, mask: base(ids[:, :3], attention_mask=mask[:, :3])[0]),
            "texts_cut_inside",
        ),
    ],
)
def test_words_that_matter_in_part(model, fault):
    verdict = check_output_depends_on_input(traced(model()))
    assert (verdict.status, verdict.fault) == ("fail", fault), verdict


class PositionsAndTypes(nn.Module):
    """A BERT that receives positions and types, or not."""

    def __init__(self, positions=None, types=True):
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        self.encoder, self.classifier = BertModel(config, add_pooling_layer=False), nn.Linear(16, 2)
        self.positions, self.types = positions, types

    def forward(self, input_ids, attention_mask, token_type_ids):
        more = {"token_type_ids": token_type_ids} if self.types else {}
        if self.positions is not None:
            more["position_ids"] = self.positions(input_ids, attention_mask)
        return self.classifier(self.encoder(input_ids, attention_mask=attention_mask, **more)[0][:, 0])


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ({}, ""),
        ({"types": False}, "type_ids_lost"),
        ({"positions": lambda ids, mask: torch.zeros_like(ids)}, "positions_constant"),
        ({"positions": lambda ids, mask: mask}, "positions_constant"),
        ({"positions": lambda ids, mask: torch.arange(ids.shape[1])[None]}, ""),
        ({"positions": lambda ids, mask: (mask.cumsum(1) - 1).clamp(min=0)}, ""),
    ],
)
def test_positions_and_types_that_reach_the_base(how, fault):
    batches = [
        {**b, "token_type_ids": (b["attention_mask"].cumsum(1) > 4).long() * b["attention_mask"]} for b in KEYWORDS
    ]
    verdict = check_output_depends_on_input(traced(PositionsAndTypes(**how), batches))
    assert verdict.fault == fault, verdict


def test_types_of_one_text_need_not_be_passed_on():
    batches = [{**b, "token_type_ids": torch.zeros_like(b["input_ids"])} for b in KEYWORDS]
    assert check_output_depends_on_input(traced(PositionsAndTypes(types=False), batches)).status == "pass"


def test_a_mask_made_with_another_padding_id():
    batches = [{**b, "attention_mask": (b["input_ids"] != 2).long()} for b in _wider()]
    verdict = check_padding_ignored(traced(Wrapped(), batches, intent=Intent(pad_token_id=0)))
    assert (verdict.status, verdict.fault) == ("fail", "mask_wrong"), verdict


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("mask", "fault"), [("right", ""), ("none", "mask_not_passed"), ("ones", "mask_all_ones")])
def test_a_mask_that_is_left_out_shows_in_a_base_with_fresh_weights_too(seed, mask, fault):
    """The effect is small there, and the numbers that the check's page gives are these."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(seed)
    size = {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=500, num_labels=4, **size))
    batches = []
    for _ in range(8):
        lengths = torch.randint(6, 25, (16, 1))
        ids = torch.randint(10, 500, (16, int(lengths.max())))
        real = torch.arange(ids.shape[1]) < lengths
        given = {"right": {"attention_mask": real.long()}, "ones": {"attention_mask": torch.ones_like(ids)}, "none": {}}
        batches.append({"input_ids": ids * real, "labels": torch.randint(0, 4, (16,)), **given[mask]})
    trace = finetune(model, batches, lr=1e-3, steps=2, probes=["inputs"])
    verdict = check_padding_ignored(trace)
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault)
    share = trace.measured(Inputs).padding.less_padding.relative
    assert 0.01 < share < 0.1 if fault else share < 1e-4
