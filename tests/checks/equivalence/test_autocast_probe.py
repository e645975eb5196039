"""Autocast on small real models: rounding passes, and what is more than that is found in its module."""

from __future__ import annotations

import pytest
import torch
from equivalent_models import (
    Words,
    loss_of,
    run,
    same_state,
    state_of,
    t5,
    t5_batches,
    tagger,
    token_batches,
    with_layer,
)
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import check_autocast_matches_float32, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.equivalence.record import Autocast

pytestmark = pytest.mark.trains
LOW = (torch.bfloat16, torch.float16)


def judged(model, batches=None, **options):
    trace = run("autocast", model, batches, **options)
    return check_autocast_matches_float32(trace), trace.measured(Autocast)


# ------------------------------------------------------------------------------------------ healthy
@pytest.mark.parametrize(
    ("model", "batches"),
    [
        (lambda: tiny_distilbert(seed=0), None),
        (Words, None),
        (with_layer(lambda: nn.BatchNorm1d(32)), None),
        (tagger, token_batches),
        (t5, t5_batches),
    ],
    ids=["distilbert", "lstm", "batchnorm", "tagger", "t5"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_passes(model, batches, dtype):
    if model is Words:
        try:
            with torch.autocast("cpu", dtype=getattr(torch, dtype)), torch.no_grad():
                nn.LSTM(8, 8)(torch.zeros(2, 2, 8))
        except RuntimeError as error:
            pytest.skip(f"torch has no LSTM in {dtype} on this CPU: {str(error)[:60]}")
    v, found = judged(model, batches() if batches else None, autocast=dtype, steps=30)
    assert v.status == "pass", v
    assert found.dtype == dtype
    assert found.located is None


def test_a_head_that_has_not_learned_yet_is_judged_by_its_outputs():
    """Rows of two classes cancel in the gradient of the loss: there it is rounding."""
    v, found = judged(lambda: tiny_distilbert(seed=1), steps=1, lr=1e-6)
    assert v.status == "pass"
    assert found.rounding.gradient > 0.1
    assert found.errors.outputs_gradient < 0.0625
    assert "the gradient of the loss was not compared" in v.notes[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_rows_of_a_new_head_round_alike(seed):
    """Like rows round alike: weights that are moved for all of them do not show it, rounding does."""
    from transformers import BertConfig, BertForSequenceClassification

    batches = [{"input_ids": i, "attention_mask": m, "labels": y} for (i, _, m), y in toy_batches(4)]
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )
    v, found = judged(model, batches)
    assert v.status == "pass", v
    assert 0.1 < found.errors.gradient < 2 * found.rounding.gradient


def test_infinite_values_of_a_mask_are_no_fault():
    class Masked(nn.Module):
        def forward(self, x):
            return x.masked_fill(torch.arange(x.shape[-1]) == 0, float("-inf"))

    v, _ = judged(with_layer(Masked))
    assert v.status == "pass", v


def test_the_dtype_of_the_recipe_is_bfloat16_by_default():
    _, found = judged(lambda: tiny_distilbert(seed=0), steps=1)
    assert (found.dtype, found.unit, found.rows) == ("bfloat16", 2.0**-8, 16)


# ------------------------------------------------------------------------------------------ faults
class Times(nn.Module):
    """Another branch for low precision."""

    factor = 3.0

    def forward(self, x):
        return x * self.factor if x.dtype in LOW else x


class Third(Times):
    factor = 1 / 3


class Offset(nn.Module):
    """A difference of large numbers."""

    def forward(self, x):
        shifted = x + 3000.0
        return shifted - shifted.mean(-1, keepdim=True)


class Positions(nn.Module):
    """Positions above 256 in the dtype of the activations, as in rotary embeddings."""

    def forward(self, x):
        positions = torch.arange(600, 600 + x.shape[-1], device=x.device).to(x.dtype)
        return x * (positions - 600).cos()


@pytest.mark.parametrize("layer", [Times, Third, Offset, Positions])
def test_a_module_that_computes_something_else_is_named(layer):
    v, found = judged(with_layer(layer))
    assert (v.status, v.fault) == ("fail", "autocast_inaccurate"), v
    assert (found.located.name, found.located.kind) == ("classifier.1", layer.__name__)
    assert f"classifier.1 ({layer.__name__})" in v.headline


class Square(nn.Module):
    """In float16, whatever autocast's dtype is, as custom kernels do."""

    def forward(self, x):
        x = x * 1e4
        return ((x.half() if x.dtype in LOW else x) ** 2).float() * 1e-8


def test_an_overflow_is_named():
    v, found = judged(with_layer(Square))
    assert (v.status, v.fault) == ("fail", "autocast_not_finite")
    assert found.not_finite == "classifier.1"


class Scatter(nn.Module):
    """Writes activations into a tensor of float32."""

    def forward(self, x):
        out = torch.zeros(x.shape, device=x.device)
        return out.index_add(0, torch.arange(len(x)), x)


def test_what_raises_is_named():
    v, found = judged(with_layer(Scatter))
    assert (v.status, v.fault) == ("fail", "autocast_raises")
    assert found.raised_in == "classifier.1"
    assert "classifier.1 raises: RuntimeError" in v.headline


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.low = x.dtype in LOW
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient if ctx.low else gradient


class WrongBackward(nn.Module):
    def forward(self, x):
        return _Backward.apply(x)


def test_a_wrong_backward_pass_is_found_though_the_outputs_agree():
    v, found = judged(with_layer(WrongBackward))
    assert (v.status, v.fault) == ("fail", "autocast_gradient_inaccurate")
    assert found.errors.outputs < 0.0625
    assert found.tensor.startswith("classifier.0")


def test_a_loss_in_low_precision():
    def loss(z, y):
        shift = z + 300.0 if z.dtype in LOW else z  # a constant that changes no softmax, but takes all digits
        return F.nll_loss((shift - shift.logsumexp(-1, keepdim=True)).float(), y)

    v, _ = judged(lambda: tiny_distilbert(seed=0), loss_fn=loss_of(loss))
    assert (v.status, v.fault) == ("fail", "autocast_inaccurate")
    assert "the loss differs" in v.headline


# ------------------------------------------------------------------------------------------ what is left alone
def test_everything_is_as_before():
    model = with_layer(lambda: nn.BatchNorm1d(32))()
    before = state_of(model)
    run("autocast", model)
    assert same_state(before, state_of(model))


def test_the_training_is_the_same_with_and_without_it():
    losses = [run(probe, lambda: tiny_distilbert(seed=0)).losses for probe in ("loss", "autocast")]
    assert losses[0] == losses[1]


class Interrupted(nn.Module):
    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise KeyboardInterrupt
        return x


def test_everything_is_as_before_when_it_is_interrupted():
    model = with_layer(Interrupted)()
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        run("autocast", model)
    assert same_state(before, state_of(model))
    assert not torch.is_autocast_enabled("cpu")


def test_weights_that_are_not_float32():
    trace = run("autocast", lambda: tiny_distilbert(seed=0), toy_batches(), dtype="bfloat16")
    assert "no float32" in trace.skipped["autocast"]
    assert check_autocast_matches_float32(trace).status == "skipped"


def test_weights_that_are_nan_are_inconclusive():
    v, _ = judged(lambda: tiny_distilbert(seed=0), lr=1e30, steps=3)
    assert v.status == "inconclusive"
