"""base_computes_its_class: a base beside its fresh twin; what changes a base, and what must not count as a change."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertModel

from pytest_ftcheck import (
    check_base_computes_its_class,
    diagnose,
    example_trace,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.checks.head.base_twin_record import BaseTwin, Difference, RaisedDropout, TwinComparison
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import keyword_batches

SAME = TwinComparison("bert", "BertModel", 2, 40, 40, 0.0, 7.6e-6, "sdpa")
HOOKED = replace(
    SAME,
    agreed=11,
    relative=0.02,
    first=Difference("encoder.layer.1", "BertLayer", "output", 0.5, ("a forward hook, halve",)),
)


def judge(*bases, left_out=(), **changes):
    return check_base_computes_its_class(
        example_trace(measurements={"base_twin": BaseTwin(bases, left_out)}, **changes)
    )


def measure(model, batches=None, steps=1, **settings):
    batches = toy_batches(4, 8) if batches is None else batches
    return finetune(model, batches, steps=steps, lr=1e-3, probes=["base_twin", "loss"], **settings)


def verdict(model, batches=None, **settings):
    return check_base_computes_its_class(measure(model, batches, **settings))


# ---------------------------------------------------------------- the judgement
def test_the_run_decides_between_advice_and_failure():
    trace = example_trace()
    assert judge(HOOKED).status == "advice"  # it learns
    points = tuple(replace(p, reference=0.7) for p in trace.probe_loss.points)
    bad = {
        "metrics": (replace(trace.metrics[0], last=0.5, baseline=0.5),),
        "probe_loss": replace(trace.probe_loss, points=points),
    }
    failed = judge(HOOKED, **bad)
    assert (failed.status, failed.fault) == ("fail", "base_altered")
    assert judge(SAME, **bad).status == "pass"
    unknown = judge(HOOKED, metrics=(), probe_loss=None)
    assert unknown.status == "advice"
    assert "whether the run learns is not known" in unknown.notes[-1]


def test_raised_dropout_is_judged_by_the_run():
    raised = replace(SAME, raised_dropout=(RaisedDropout("embeddings.dropout", 0.75, 0.1),))
    points = tuple(replace(p, reference=0.7) for p in example_trace().probe_loss.points)
    bad = {
        "metrics": (replace(example_trace().metrics[0], last=0.5, baseline=0.5),),
        "probe_loss": replace(example_trace().probe_loss, points=points),
    }
    failed = judge(raised, **bad)
    assert (failed.status, failed.fault) == ("fail", "base_altered")
    assert "embeddings.dropout has a dropout rate of 0.750, in the twin 0.100" in failed.causes[0]
    assert judge(raised).status == "advice"  # it learns
    for rate in (0.49, 0.3):
        mild = replace(SAME, raised_dropout=(RaisedDropout("embeddings.dropout", rate, 0.1),))
        assert judge(mild, **bad).status == "pass"


def test_rates_of_the_config_and_lower_ones_are_not_raised():
    def raised(model, batches=None):
        return measure(model, batches).measurements["base_twin"].bases[0].raised_dropout

    assert raised(tiny_distilbert(seed=0)) == ()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("bert", vocab_size=200, hidden_dropout_prob=0.75, **sizes)
    high = AutoModelForSequenceClassification.from_config(config)
    rows = keyword_batches(config)
    assert raised(high, rows) == ()
    for module in high.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert raised(high, rows) == ()
    high.bert.embeddings.dropout.p = 0.8
    assert [(d.module, d.rate, d.of_class) for d in raised(high, rows)] == [("embeddings.dropout", 0.8, 0.75)]


def test_wording():
    assert str(judge(SAME, left_out=("BertModel is quantised",))).splitlines()[0] == (
        "base_computes_its_class: pass. bert computes what BertModel computes: 40 of 40 submodules agree with a fresh twin."
    )
    assert str(judge(SAME, HOOKED)).splitlines() == [
        "base_computes_its_class: advice. bert does not compute what BertModel computes: the first difference from a fresh twin is the "
        "output of encoder.layer.1 (BertLayer), by 50 % of the largest value. The output of the whole base differs by 2.0 %; 11 of 40 "
        "submodules agree.",
        "  cause: the base was changed after it was made: a forward hook, halve",
        "  do: remove what changes it: hooks, replaced functions, exchanged submodules, attributes and config fields set after the model "
        "was made; a change that is wanted belongs in a class of your own",
        "  limit: at most 7.60e-06 of the largest value: rounding",
        "  measured: evaluation mode, 2 rows, initial weights, attention implementation 'sdpa' in both",
        "  note: whether the alteration makes the features worse for this task was not measured",
    ]
    infinite = replace(HOOKED, relative=float("inf"), first=Difference("encoder", "BertEncoder", "call", float("inf")))
    assert "its class calls encoder (BertEncoder), this one does not" in judge(infinite).headline


# ---------------------------------------------------------------- faults
def halve(_module, _args, out):
    return out * 0.5


def hooked(base):
    base.transformer.layer[0].ffn.register_forward_hook(halve)


def activation(base):
    base.transformer.layer[1].ffn.activation = nn.Identity()


def one_activation_for_all(base):
    shared = nn.ReLU()
    for layer in base.transformer.layer:
        layer.ffn.activation = shared


def epsilon(base):
    for layer in base.transformer.layer:
        layer.sa_layer_norm.eps = 0.1


def layer_patched(base):
    layer, outputs = base.transformer.layer[1], []
    handle = layer.register_forward_hook(lambda _module, _args, out: outputs.append(out))
    ids = torch.ones(1, 2, dtype=torch.long)
    base(input_ids=ids, attention_mask=ids)
    handle.remove()
    if isinstance(outputs[0], tuple):  # as in older versions
        layer.forward = lambda hidden, *_args, **_kwargs: (hidden,)
    else:
        layer.forward = lambda hidden, *_args, **_kwargs: hidden


def base_patched(base):
    forward = base.forward

    def without_mask(*args, **kwargs):
        return forward(*args, **{**kwargs, "attention_mask": None})

    base.forward = without_mask


def attention_scale(base):
    for layer in base.transformer.layer:
        layer.attention.n_heads = 2
        layer.attention.attention_head_size = 32
        layer.attention.scaling = 1.0


def config_changed(base):
    base.config.n_heads = 2


def noise(base):
    base.embeddings.register_forward_hook(lambda _module, _args, out: out + 0.1 * torch.randn_like(out))


def input_changed(base):
    base.transformer.layer[1].register_forward_pre_hook(lambda _module, args: (args[0] * 2, *args[1:]))


def no_positions(base):
    e = base.embeddings
    e.forward = lambda input_ids=None, *_args, **_kwargs: e.dropout(e.LayerNorm(e.word_embeddings(input_ids)))


@pytest.mark.trains
@pytest.mark.parametrize(
    ("change", "where", "cause"),
    [
        (hooked, "output of transformer.layer.0.ffn (", "transformer.layer.0.ffn has a forward hook, halve"),
        (
            activation,
            "output of transformer.layer.1.ffn.activation (",
            "transformer.layer.1.ffn.activation is of class Identity, in the twin of class GELUActivation",
        ),
        (
            one_activation_for_all,
            "input of transformer.layer.0.ffn.lin2 (",
            "transformer.layer.0.ffn.activation is of class ReLU, in the twin of class GELUActivation",
        ),
        (epsilon, "output of transformer.layer.0.sa_layer_norm (", ".eps is 0.1, in the twin 1e-12"),
        (
            layer_patched,
            "calls transformer.layer.1",
            "transformer.layer.1.forward is replaced by the function <lambda>",
        ),
        (
            base_patched,
            "input of transformer.layer.0.attention",
            "DistilBertModel.forward is replaced by the function without_mask",
        ),
        (attention_scale, "transformer.layer.0.attention", "transformer.layer.0.attention."),
        (config_changed, "transformer.layer.0.attention", ".n_heads is 4, in the twin 2"),
        (noise, "output of embeddings (", "embeddings has a forward hook, <lambda>"),
        (input_changed, "input of transformer.layer.1", "transformer.layer.1 has a forward pre-hook, <lambda>"),
        (
            no_positions,
            "calls embeddings.position_embeddings",
            "embeddings.forward is replaced by the function <lambda>",
        ),
    ],
)
def test_a_changed_base_is_found_and_the_change_named(change, where, cause):
    model = tiny_distilbert(seed=0)
    change(model.base_model)
    trace = measure(model)
    found = check_base_computes_its_class(trace)
    assert (found.status, found.fault) == ("fail", "base_altered"), found  # one step learns nothing
    assert where in found.headline
    assert cause in found.causes[0]
    assert diagnose(trace).causes[0].fault == "base_altered"


@pytest.mark.trains
def test_a_change_that_does_not_keep_the_run_from_learning_is_advice():
    model = tiny_distilbert(seed=0)
    hooked(model.base_model)
    trace = finetune(model, toy_batches(), lr=3e-3, steps=60, probes=["base_twin", "loss", "metrics"])
    assert check_base_computes_its_class(trace).status == "advice"


# ---------------------------------------------------------------- healthy twins
SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}


def classifier(kind, **settings):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **SMALL), **settings)


def checkpointed(model):
    # its name in transformers 5.23 and later
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def resized(model):
    model.resize_token_embeddings(231)


def other_attention(model):
    model.set_attn_implementation("eager")


@pytest.mark.trains
@pytest.mark.parametrize(
    "kind", ["bert", "electra", "distilbert", "gpt2", "t5", "opt", "roberta", "albert", "reformer", "llama"]
)
def test_an_unchanged_base_agrees_in_every_submodule(kind):
    torch.manual_seed(0)
    model = tiny(kind)
    found = verdict(model, keyword_batches(model.config))
    assert found.status == "pass", found
    agreed, _, all_of_them = found.headline.split(": ")[1].split(" submodule")[0].partition(" of ")
    assert agreed == all_of_them
    assert int(agreed) > 10


@pytest.mark.trains
@pytest.mark.parametrize("change", [checkpointed, resized, nn.Module.half, nn.Module.bfloat16, nn.Module.double, None])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_leaves_the_computation_as_it_is(change, attention):
    model = classifier("bert", attn_implementation=attention)
    if change is not None:
        change(model)
    found = verdict(model, keyword_batches(model.config), loss_fn=lambda model, batch: model(**batch).loss.float())
    assert found.status == "pass", found
    assert f"attention implementation {attention!r}" in found.measured


@pytest.mark.trains
def test_without_pooling_layer_with_dropout_set_and_with_autocast_inside():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = BertModel(AutoConfig.for_model("bert", **SMALL), add_pooling_layer=False)
            self.head = nn.Linear(32, 2)

        def forward(self, batch):
            ids, _, mask = batch
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self.base(ids, attention_mask=mask).last_hidden_state
            return self.head(hidden[:, 0].float())

    torch.manual_seed(0)
    model = Tagger()
    model.base.config.hidden_dropout_prob = 0.0
    assert verdict(model).status == "pass"


@pytest.mark.trains
@pytest.mark.parametrize("mode", ["block_sparse", "original_full"])
@pytest.mark.parametrize(("length", "padding"), [(160, 0), (16, 0), (16, 144)])
def test_big_bird_exchanges_its_own_attention_where_rows_are_short(mode, length, padding):
    """As its config ships it, also where only a probe makes rows short: by cutting off their padding."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "big_bird",
        **{**SMALL, "max_position_embeddings": 256},
        block_size=8,
        num_random_blocks=2,
        attention_type=mode,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    batches = keyword_batches(config)
    batches = [{k: v.repeat(1, length // 16) if v.dim() == 2 else v for k, v in b.items()} for b in batches]
    batches = [{k: nn.functional.pad(v, (0, padding)) if v.dim() == 2 else v for k, v in b.items()} for b in batches]
    attention = [type(layer.attention.self) for layer in model.bert.encoder.layer]
    trace = finetune(model, batches, steps=3, lr=1e-3)
    assert check_base_computes_its_class(trace).status == "pass", trace.skipped
    assert not [why for why in trace.skipped.values() if "raised" in why]
    assert model.bert.attention_type == mode
    assert [type(layer.attention.self) for layer in model.bert.encoder.layer] == attention


@pytest.mark.trains
def test_a_large_base_is_built_without_memory_for_its_weights(monkeypatch):
    monkeypatch.setattr("pytest_ftcheck.checks.head.probe.base_twin.twin.BUILT_WHOLE", 1000)
    assert verdict(tiny_distilbert(seed=0)).status == "pass"
    model = tiny_distilbert(seed=0)
    hooked(model.base_model)
    assert verdict(model).fault == "base_altered"


@pytest.mark.trains
def test_tied_layers_and_two_towers_agree():
    model = tiny_distilbert(seed=0)
    model.base_model.transformer.layer[1] = model.base_model.transformer.layer[0]
    assert verdict(model).status == "pass"

    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = tiny_distilbert(seed=1), tiny_distilbert(seed=2)

        def forward(self, batch):
            return self.left(batch) + self.right(batch)

    towers = Towers()
    assert "right.base_model computes" in verdict(towers).headline
    hooked(towers.right.base_model)
    assert "right.base_model does not compute" in verdict(towers).headline


# ---------------------------------------------------------------- told, and not judged
class WithoutPositions(BertModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **{**kwargs, "position_ids": torch.zeros(1, 1, dtype=torch.long)})


def subclassed(base):
    return WithoutPositions(AutoConfig.for_model("bert", **SMALL))


def with_adapters(base):
    import peft

    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_lin"]), base)


def parametrised(base):
    nn.utils.parametrizations.weight_norm(base.transformer.layer[0].ffn.lin1)
    return base


def pruned(base):
    base.transformer.layer = base.transformer.layer[:1]
    return base


def compiled(base):
    base.compile(backend="eager")
    return base


def own_attention(base):
    base.config._attn_implementation_internal = "my_attention"
    return base


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (subclassed, "WithoutPositions is no class of the library's"),
        (with_adapters, "adapted by PEFT"),
        (parametrised, "parametrised"),
        (pruned, "has other parameters than its config makes (first: transformer.layer.1."),
        (compiled, "compiled by torch.compile"),
        (own_attention, "'my_attention', is not one of the library's"),
    ],
)
def test_a_base_that_is_not_to_be_its_class_is_told_as_such(change, reason):
    from pytest_ftcheck.checks.head.probe.base_twin.twin import Twin, not_comparable
    from pytest_ftcheck.instruments.probe import LeftOut

    base = change(tiny_distilbert(seed=0).base_model)
    told = not_comparable(base)
    if not told:
        with pytest.raises(LeftOut) as left_out:
            Twin(base)
        told = str(left_out.value)
    assert reason in told


@pytest.mark.trains
def test_such_a_base_is_skipped_for_its_reason():
    model = tiny_distilbert(seed=0)
    model.base_model = pruned(model.base_model)
    found = verdict(model)
    assert (found.status, found.unmeasured) == ("skipped", "")
    assert "other parameters than its config makes" in found.headline


@pytest.mark.trains
def test_a_model_without_a_base_is_skipped():
    data = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(2)]
    found = verdict(nn.Linear(4, 2), data, head="weight")
    assert found.status == "skipped", found.headline


# ---------------------------------------------------------------- nothing of the user's changes
def hooks_of(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("failing", [None, ValueError, KeyboardInterrupt])
def test_hooks_are_removed_and_random_states_kept(failing):
    from pytest_ftcheck.checks.head.probe.base_twin.bases import find_bases
    from pytest_ftcheck.checks.head.probe.base_twin.comparison import Comparison
    from pytest_ftcheck.checks.head.probe.base_twin.twin import Twin

    model = tiny_distilbert(seed=0).eval()
    noise(model.base_model)
    hooks, weights = hooks_of(model), copy.deepcopy(model.state_dict())
    comparison = Comparison(find_bases(model)[0], Twin(model.base_model))
    ids = toy_batches(1, 4)[0][0]
    torch.manual_seed(7)
    expected, state = model(ids), torch.get_rng_state()
    if failing is not None:

        def fail(*_args):
            raise failing

        model.base_model.transformer.register_forward_hook(fail)
        hooks = hooks_of(model)
    torch.manual_seed(7)
    with torch.no_grad(), comparison.watched():
        if failing is None:
            assert torch.equal(model(ids), expected)
            assert torch.equal(torch.get_rng_state(), state)
            assert comparison.found.first.module == "embeddings"
        else:
            with pytest.raises(failing):
                model(ids)
    assert hooks_of(model) == hooks
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.trains
def test_the_training_is_the_same_with_and_without_it():
    traces = [
        finetune(tiny_distilbert(seed=0), toy_batches(4, 8), steps=3, lr=1e-3, probes=probes)
        for probes in (["base_twin", "loss"], ["loss"])
    ]
    assert traces[0].probe_loss.points == traces[1].probe_loss.points
