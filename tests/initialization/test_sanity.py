"""`check_init`: every broken start is caught and named, healthy ones pass, nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_ftcheck import CheckFailed, InitScheme, assert_init_sane, check_init, tiny_distilbert, toy_batches

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import init_sanity as context

S = InitScheme
NAMED = {
    "torch's default where N(0, 0.02) was declared": "head_init_torch_default",
    "biases of torch where zero was declared": "head_bias_not_zero",
    "one bias not zero": "head_bias_not_zero",
    "never written": "head_uninitialised",
    "NaN in a bias": "head_uninitialised",
    "constant weights": "head_symmetric",
    "two units alike": "head_symmetric",
    "zero everywhere": "head_all_zero",
    "zero in the hidden layer": "head_all_zero",
    "N(0, 1)": "head_init_huge",
    "N(0, 1e-7)": "init_signal_vanishes",
    "hidden bias of -5": "units_dead_from_start",
    "class prior in reverse order": "initial_loss_too_high",
    "one class's bias at 10": "initial_loss_too_high",
}


@pytest.mark.parametrize("name", context.BROKEN)
@pytest.mark.parametrize("kind", context.FEATURES)
def test_every_broken_start_is_caught_and_named(name, kind):
    break_, declared = context.BROKEN[name]
    head = context.stack(384, 384, 3, dropout=0.2)
    S.torch_default().apply(head, 1)
    break_(head, 1)
    verdict = check_init(head, context.features(kind, 384, 1), declared)
    assert verdict.status == "fail"
    assert verdict.fault == NAMED.get(name, "head_init_not_declared")
    assert verdict.causes
    assert verdict.remedy


@pytest.mark.parametrize("scheme", list(context.HEALTHY.values()), ids=repr)
@pytest.mark.parametrize("shape", ["64 -> 3", "64 -> 64 -> 3, ReLU", "128 -> 128 -> 64 -> 3, tanh"])
def test_healthy_starts_pass(scheme, shape):
    head = context.HEADS[shape]()
    scheme.apply(head, 2)
    assert check_init(head, context.features("alike", head[0].in_features, 2), scheme).status == "pass"


def test_other_tasks():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=g)
    head = S.normal(0.02).apply(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)))
    assert check_init(head, [(x, (x[:, :3] > 0).float())]).status == "pass"
    one = S.normal(0.02).apply(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)))
    assert check_init(one, [(x, x[:, 0])]).status == "pass"
    S.normal(2.0).apply(one)
    assert check_init(one, [(x, x[:, 0])]).fault == "head_init_huge"
    assert check_init(S.normal(0.02).apply(one), [(x, (x[:, 0] > 0).float())]).ok


def test_a_whole_model_and_what_transformers_did_to_it():
    model = tiny_distilbert(seed=0)
    assert check_init(model, toy_batches()).status == "pass"
    S.hugging_face(0.02).apply(model)
    verdict = check_init(model, toy_batches(), S.normal(0.05))
    assert verdict.fault == "head_init_initializer_range"
    assert "post_init" in str(verdict)


def trained_base(seed=0):
    """As a checkpoint has it: biases, norms that have learnt, heavier tails than a normal distribution's."""
    model = tiny_distilbert(seed=seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("classifier"):
                continue
            if "LayerNorm" in name or "layer_norm" in name:
                p.add_(0.05 * torch.randn(p.shape, generator=g))
            elif p.dim() == 1:
                p.copy_(0.02 * torch.randn(p.shape, generator=g))
            else:
                p.mul_(1 + 0.5 * torch.randn(p.shape, generator=g).abs())
    return model


def test_a_base_that_was_initialised_along_with_the_head():
    model = trained_base()
    assert check_init(model, toy_batches()).ok
    given = {n: p.detach().clone() for n, p in model.named_parameters()}

    def init(module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    torch.manual_seed(0)
    model.apply(init)
    verdict = check_init(model, toy_batches())
    assert verdict.fault == "base_clobbered"
    assert "model.apply(init)" in str(verdict)
    exact = check_init(model, toy_batches(), pretrained=given)
    assert exact.fault == "base_clobbered"
    fresh = tiny_distilbert(seed=0)  # from a config: its norms are as they were made
    assert check_init(fresh, toy_batches()).ok


def test_the_assertion_raises_and_leaves_everything_as_it_was():
    head = S.zeros().apply(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, 2)))
    head[0].weight.requires_grad_(False)
    head[1].eval()
    batches = context.features("white", 64, 0)
    batches = [(batches[0][0], batches[0][1] % 2)]
    values = [p.detach().clone() for p in head.parameters()]
    rng = torch.random.get_rng_state()
    with pytest.raises(CheckFailed, match="starts at zero"):
        assert_init_sane(head, batches)
    assert torch.equal(rng, torch.random.get_rng_state())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(values, head.parameters(), strict=True))
    assert [p.requires_grad for p in head.parameters()] == [False, True, True, True]
    assert [m.training for m in head] == [True, False, True, True]
    assert not any(m._forward_hooks for m in head)


X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: check_init("head", [(X, Y)]), TypeError, "model is a str"),
        (lambda: check_init(nn.Linear(8, 2), []), ValueError, "batches: there is none"),
        (lambda: check_init(nn.Linear(8, 2), [(X.long(), Y)]), ValueError, "the features are torch.int64"),
        (lambda: check_init(nn.Linear(8, 2), [(X, Y * 0 + 1)]), ValueError, "all 16 labels read are 1"),
        (lambda: check_init(nn.Linear(4, 2), [(X, Y)]), ValueError, "could not be called"),
        (lambda: check_init(nn.Linear(8, 2), None), TypeError, "batches is a NoneType"),
        (lambda: check_init(nn.Linear(8, 2), X), TypeError, "batches is a Tensor"),
        (lambda: check_init(nn.Linear(8, 2), [(X[:0], Y[:0])]), ValueError, "batches: those read have no rows"),
        (lambda: check_init(nn.Linear(8, 2), [(X, Y * 5)]), ValueError, "label 5 of row"),
        (lambda: check_init(nn.Linear(8, 2), [(X, Y), (X, Y - 1)]), ValueError, r"batches\[1\]: label -1 of row"),
        (lambda: check_init(nn.Linear(8, 2), [(X, Y * 0 - 100)]), ValueError, "every label read is -100"),
        (lambda: check_init(nn.Linear(8, 2, device="meta"), [(X, Y)]), ValueError, "no values yet"),
        (lambda: check_init(nn.Linear(8, 2), [(X, Y)], head="zz"), ValueError, "head='zz'"),
        (lambda: check_init(nn.Linear(8, 2), [(X, Y)], "normal"), TypeError, "expected='normal'"),
        (lambda: check_init(nn.Linear(8, 2), [(X, Y)], pretrained=[1]), TypeError, "pretrained is a list"),
        (lambda: check_init(nn.Sequential(nn.ReLU()), [(X, Y)]), ValueError, "no linear layer"),
        (lambda: check_init(tiny_distilbert(), toy_batches(), head="clasifier"), ValueError, "clasifier"),
    ],
)
def test_bad_input_is_one_clear_error(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_features_are_batches_too():
    from pytest_ftcheck import toy_features

    head = S.normal(0.02).apply(nn.Linear(64, 2))
    assert check_init(head, toy_features(), S.normal(0.02)).status == "pass"


def _row(what):
    head = S.normal(0.02).apply(nn.Sequential(nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 2)), seed=3)
    with torch.no_grad():
        if what == "zero":
            head[0].weight[5] = 0
        elif what == "copied":
            head[0].weight[5] = head[0].weight[7]
        elif what == "zero class":
            head[2].weight[1] = 0
    return head


@pytest.mark.parametrize(
    ("what", "words"),
    [("zero", "1 row of 384 with one value"), ("copied", "2 of 384 rows"), ("zero class", "1 row of 2 with one value")],
)
def test_one_row_that_was_not_drawn(what, words):
    # among 147,456 values a test of their distribution cannot see 384
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(0))
    verdict = check_init(_row(what), [(x, torch.arange(64) % 2)], S.normal(0.02))
    assert verdict.fault == "head_init_not_declared"
    assert words in verdict.headline


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(384, 2), (4096, 2), (4096, 1), (2, 4096), (64, 8), (512, 3)])
@pytest.mark.parametrize(
    "scheme", [S.normal(0.02), S.normal(1e-5), S.uniform(0.05), S.truncated_normal(0.02)], ids=repr
)
def test_short_rows_that_are_alike_by_chance(dtype, shape, scheme):
    from pytest_ftcheck.initialization.goodness_of_fit import undrawn_rows

    for seed in range(5):
        layer = scheme.apply(nn.Linear(shape[1], shape[0], dtype=dtype), seed=seed)
        assert undrawn_rows(scheme.weight, layer.weight) == ""


def test_weights_too_small_are_no_dead_units():
    head = S.normal(1e-9).apply(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)))
    verdict = check_init(
        head, [(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2)]
    )
    assert verdict.fault == "init_signal_vanishes"


def test_wording():
    head = S.zeros().apply(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert str(check_init(head, [(X, Y)])) == (
        "init_sane: FAIL. layer 0 starts at zero and so does layer 2: no signal passes.\n"
        "  layer    shape  std  torch's default  mean  largest  bias up to  identical units\n"
        "  layer 0  4 x 8    0            0.204     0        0           0            100 %\n"
        "  layer 2  2 x 4    0            0.289     0        0           0                -\n"
        "  cause: zero weights in a hidden layer: no signal passes, and no gradient comes back\n"
        "  do: only the last layer may start at zero: InitScheme.normal(std=0.02).with_last(InitScheme.zeros())\n"
        "  limit: only the last layer may start at zero\n"
        "  measured: weights, one pass and one gradient, dropout off, 16 rows, before any training\n"
        "  note: also: 100 % of the 4 ReLU units of layer 0 are zero for all 16 rows.\n"
        "  note: also: The gradient of layer 2 has an rms of 0, where Adam's eps is 1e-08: it will hardly move."
    )
