"""`InitScheme`: what it draws, where, and how it is written; `identify` recognises it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_ftcheck import InitScheme, Intent, identify, tiny_distilbert
from pytest_ftcheck.core.init_distributions import Draw, gain_of, truncated_std
from pytest_ftcheck.initialization.apply_scheme import head_layers
from pytest_ftcheck.initialization.goodness_of_fit import fit

S = InitScheme
EVERY = [
    S.normal(0.02),
    S.hugging_face(0.03),
    S.truncated_normal(0.02),
    S.truncated_normal(0.05, cut=1.0),
    S.uniform(0.1),
    S.xavier_normal(),
    S.xavier_uniform(gain=2.0),
    S.kaiming_normal(),
    S.kaiming_uniform("leaky_relu", "fan_out", 0.2),
    S.orthogonal(),
    S.orthogonal(gain=0.5),
    S.sparse(0.2, 0.05),
    S.zeros(),
    S.constant(0.1),
    S.eye(),
    S.torch_default(),
    S.mup(0.02, 32),
    S.normal(0.02).with_bias(0.1),
    S.normal(0.02).with_bias("torch"),
    S.torch_default().with_bias(0.0),
    S.normal(0.02).with_class_prior((0.9, 0.1)),
    S.kaiming_normal().with_last(S.zeros()),
    S.eye().with_first(S.orthogonal()).with_last(S.normal(0.01).with_bias(-1.0)),
]


def head(width=96, hidden=96, classes=2):
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, classes))


@pytest.mark.parametrize("scheme", EVERY, ids=repr)
def test_code_hash_size_and_fit(scheme):
    assert eval(repr(scheme), {"InitScheme": S}) == scheme
    assert hash(eval(repr(scheme), {"InitScheme": S})) == hash(scheme)
    assert scheme.name
    made = scheme.apply(head(), seed=1)
    w = made[0].weight.detach()
    expected = scheme.at(0, 2).weight.std_of(96, 96)
    assert float((w**2).mean().sqrt()) == pytest.approx(expected, rel=0.05, abs=1e-9)
    assert min(f.p for f in fit(scheme, head_layers(made))) > 1e-4
    bound = scheme.at(0, 2).weight.bound_of(96, 96)
    assert bound is None or float(w.abs().max()) <= bound * 1.0001


@pytest.mark.parametrize("scheme", EVERY, ids=repr)
def test_the_same_seed_gives_the_same_values_and_torchs_own_generator_is_not_touched(scheme):
    one, two, other = head(), head(), head()
    before = torch.random.get_rng_state()
    scheme.apply(one, seed=3)
    scheme.apply(two, seed=3)
    scheme.apply(other, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    if scheme.weight.family != "exact":
        assert not torch.equal(one[0].weight, other[0].weight)


#: Of no kind that is tried, or one scheme under two names.
AMBIGUOUS = [
    S.truncated_normal(0.05, cut=1.0),
    S.xavier_uniform(gain=2.0),
    S.kaiming_uniform("leaky_relu", "fan_out", 0.2),
    EVERY[-1],
]
ESTIMATED = [S.hugging_face(0.03), S.sparse(0.2, 0.05)]


@pytest.mark.parametrize("scheme", [s for s in EVERY if s not in AMBIGUOUS and s.weight.kind != "mup"], ids=repr)
@pytest.mark.parametrize("width", [64, 256])
def test_it_is_recognised(scheme, width):
    found = identify(scheme.apply(head(width, width, 2), seed=5))
    if scheme in ESTIMATED:
        assert found is not None
        assert found.weight.kind == scheme.weight.kind
        assert found.weight.std == pytest.approx(scheme.weight.std, rel=0.05)
    else:
        assert found == scheme


def test_what_torch_itself_makes_is_recognised():
    torch.manual_seed(0)
    assert identify(head(384, 384)) == S.torch_default()
    layer = nn.Linear(300, 200)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert identify(layer) == S.xavier_normal()
    nn.init.laplace = None
    with torch.no_grad():
        layer.weight.copy_(torch.distributions.Laplace(0, 0.05).sample(layer.weight.shape))
    assert identify(layer) is None
    del nn.init.laplace


@pytest.mark.parametrize("nonlinearity", ["linear", "sigmoid", "tanh", "relu", "selu"])
def test_gains_are_torchs(nonlinearity):
    assert gain_of(nonlinearity) == pytest.approx(nn.init.calculate_gain(nonlinearity))
    assert gain_of("leaky_relu", 0.3) == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.3))


def test_truncated_std_is_scipys():
    from scipy.stats import truncnorm

    assert truncated_std(1.5) == pytest.approx(truncnorm(-1.5, 1.5).std())


# ---------------------------------------------------------------------- where
def test_of_a_whole_model_only_the_head_is_initialised():
    model = tiny_distilbert(seed=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    S.constant(0.5).with_bias(0.25).apply(model)
    for name, p in model.named_parameters():
        if name.startswith("classifier"):
            assert bool((p == (0.25 if name.endswith("bias") else 0.5)).all())
        else:
            assert torch.equal(p, before[name])


def test_positions_norms_conv1d_and_tied_layers():
    from transformers.pytorch_utils import Conv1D

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Linear(8, 8), nn.LayerNorm(8), Conv1D(6, 8), nn.Linear(6, 3)

    net = S.constant(1.0).with_first(S.constant(2.0)).with_last(S.zeros()).apply(Net())
    assert float(net.a.weight.detach().mean()) == 2.0
    assert float(net.b.weight.detach().mean()) == 1.0
    assert float(net.c.weight.detach().abs().max()) == 0.0
    assert bool((net.norm.weight == 1).all())
    scaled = S.normal(0.02).apply(Net())
    assert float(scaled.b.weight.detach().std()) == pytest.approx(0.02, rel=0.4)
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    tied[2].weight = tied[0].weight
    S.constant(1.0).with_last(S.zeros()).apply(tied)
    assert float(tied[0].weight.detach().mean()) == 1.0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_a_huggingface_head_and_a_peft_head():
    from peft import LoraConfig, get_peft_model
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    model = DistilBertForSequenceClassification(config)
    S.constant(0.5).apply(model)
    assert {n.split(".")[0] for n, p in model.named_parameters() if bool((p == 0.5).all())} == {
        "pre_classifier",
        "classifier",
    }
    wrapped = get_peft_model(
        DistilBertForSequenceClassification(config),
        LoraConfig(r=2, target_modules=["q_lin"], modules_to_save=["pre_classifier", "classifier"]),
    )
    S.constant(0.5).apply(wrapped)
    touched = {n for n, p in wrapped.named_parameters() if bool((p == 0.5).all())}
    assert touched == {f"base_model.model.{n}.modules_to_save.default.weight" for n in ("pre_classifier", "classifier")}


def test_dtype_device_and_parametrized_weights():
    low = S.normal(0.02).apply(head().to(torch.bfloat16), seed=1)
    high = S.normal(0.02).apply(head(), seed=1)
    assert torch.equal(low[0].weight, high[0].weight.to(torch.bfloat16))
    assert min(f.p for f in fit(S.normal(0.02), head_layers(low))) > 1e-6
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(32, 16))
    S.normal(0.02).apply(layer)
    assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_class_priors():
    made = S.normal(0.02).with_class_prior((0.5, 0.3, 0.2)).apply(head(classes=3))
    assert made[3].bias.exp().tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert not made[0].bias.any()
    one = S.zeros().with_class_prior((0.75, 0.25)).apply(nn.Linear(8, 1))
    assert one.bias.detach().sigmoid().item() == pytest.approx(0.25)
    tags = S.zeros().with_class_prior((0.9, 0.2), tags=True).apply(nn.Linear(8, 2))
    assert tags.bias.sigmoid().tolist() == pytest.approx([0.9, 0.2])


def test_class_shares_as_they_are_counted():
    counted = torch.bincount(torch.tensor([0, 0, 0, 1])) / 4
    assert S.normal().with_class_prior(counted) == S.normal().with_class_prior((0.75, 0.25))
    assert S.normal().with_class_prior(counted.numpy()).prior == (0.75, 0.25)


def test_a_scheme_that_does_not_fit_changes_nothing():
    made = head()
    made[3].half()
    before = [p.detach().clone() for p in made.parameters()]
    with pytest.raises(ValueError, match="float16 cannot hold"):
        S.normal(1e6).apply(made)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_a_scheme_as_intent_travels_with_the_trace():
    from pytest_ftcheck import Trace, finetune, toy_batches

    scheme = S.kaiming_normal().with_last(S.zeros())
    model = scheme.apply(tiny_distilbert(seed=0))
    trace = finetune(model, toy_batches(), steps=2, lr=1e-3, intent=Intent(head_init=scheme))
    assert Trace.from_json(trace.to_json()).intent.head_init == scheme


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: S.normal(0.0), ValueError, r"std=0\.0: expected a finite number > 0"),
        (lambda: S.normal(-1), ValueError, "std=-1"),
        (lambda: S.normal(10**400), ValueError, "std=1000.*: expected a finite number"),
        (lambda: S.normal(1e300).scaled(1e300), ValueError, "factor=1e.300: std=1e.300 times that is inf"),
        (lambda: S.normal(1e-300).scaled(1e-300), ValueError, "times that is 0"),
        (lambda: S.normal(1e39).apply(head()), ValueError, "float32 cannot hold the scheme's values"),
        (lambda: S.normal(1e6).apply(head().half()), ValueError, "float16 cannot hold the scheme's values"),
        (lambda: S.normal().with_bias([0.0, 0.1]), TypeError, "value=.*: expected a number"),
        (lambda: S.normal().with_bias(torch.zeros(2)), TypeError, "value=.*: expected a number"),
        (lambda: S.normal().with_class_prior(None), TypeError, "shares=None: expected one number a class"),
        (lambda: S.normal().with_class_prior(0.5), TypeError, "shares=0.5: expected one number a class"),
        (lambda: S.normal().with_class_prior("ab"), TypeError, "shares='ab'"),
        (lambda: S.normal().apply(head(), seed=2**64), ValueError, "seed=.*: expected a whole number from 0 to"),
        (lambda: identify(nn.Linear(2, 2, device="meta")), ValueError, "no values yet"),
        (lambda: S.normal(math.nan), ValueError, "std=nan: expected a finite number"),
        (lambda: S.normal("0.02"), TypeError, "std='0.02'"),
        (lambda: S.xavier_normal(math.inf), ValueError, "gain=inf"),
        (lambda: S.orthogonal(0), ValueError, "gain=0"),
        (lambda: S.kaiming_normal("swish"), ValueError, "nonlinearity='swish': expected one of linear"),
        (lambda: S.kaiming_normal(fan="in"), ValueError, "fan='in'"),
        (lambda: S.sparse(1.0), ValueError, r"sparsity=1\.0"),
        (lambda: S.mup(0.02, 64.0), TypeError, "base_width=64.0"),
        (lambda: S.normal().with_bias(math.inf), ValueError, "value=inf"),
        (lambda: S.normal().with_last("zeros"), TypeError, "expected an InitScheme"),
        (lambda: S.normal().with_class_prior((0.5, 0.6)), ValueError, "sum to 1"),
        (lambda: S.normal().with_class_prior(()), ValueError, "one number a class"),
        (lambda: S.normal().with_class_prior((1.0, 0.0)), ValueError, "above 0"),
        (lambda: S.kaiming_normal().scaled(2), ValueError, "takes its scale from the shape"),
        (lambda: S.normal().scaled(0), ValueError, "factor=0"),
        (lambda: S.normal().apply(nn.ReLU()), ValueError, "no linear layer in ReLU"),
        (lambda: S.normal().apply(nn.Sequential(nn.Conv2d(3, 3, 3))), ValueError, "silently"),
        (lambda: S.normal().apply(head(), only="classifier"), ValueError, "only='classifier'"),
        (lambda: S.normal().apply(head(), seed=-1), ValueError, "seed=-1"),
        (lambda: S.normal().apply("head"), TypeError, "module is a str"),
        (lambda: S.normal().apply(nn.LazyLinear(2)), ValueError, "no linear layer|no values yet"),
        (lambda: S.normal().apply(nn.Linear(2, 2, device="meta")), ValueError, "no values yet"),
        (
            lambda: S.normal().with_class_prior((0.5, 0.3, 0.2)).apply(head()),
            ValueError,
            "3 shares, but the last layer 3 has 2",
        ),
        (lambda: identify(nn.ReLU()), ValueError, "no linear layer"),
        (lambda: Intent(head_init="normal"), TypeError, "head_init='normal'"),
    ],
)
def test_bad_input_is_one_clear_error(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_nothing_is_changed_where_a_scheme_does_not_fit():
    made = head()
    before = [p.detach().clone() for p in made.parameters()]
    with pytest.raises(ValueError, match="3 shares"):
        S.normal().with_class_prior((0.5, 0.3, 0.2)).apply(made)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_draws_describe_themselves():
    assert Draw("normal", std=0.5).name == "N(0, 0.5)"
    assert Draw("orthogonal", gain=2.0).bound_of(4, 4) == 2.0


def test_another_default_device_or_dtype_changes_nothing():
    # what a test under torch.set_default_device("cuda") asks for; "meta" stands for any other device
    expected = [S.sparse().with_bias("torch").apply(head(), seed=3), S.normal(0.02).apply(head(), seed=3)]
    made = [head(), head()]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            S.sparse().with_bias("torch").apply(made[0], seed=3)
            S.normal(0.02).apply(made[1], seed=3)
            assert identify(made[1]) == S.normal(0.02)
            assert min(f.p for f in fit(S.normal(0.02), head_layers(made[1]))) > 1e-6
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(expected, made, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
