"""The reference gradient on small real loops: faults are named, healthy loops pass, and nothing is changed."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optim_module

from pytest_ftcheck import Intent, check_grads_match_reference, check_grads_nonzero, finetune, watch
from pytest_ftcheck.checks.catalogue import SPECS
from pytest_ftcheck.checks.gradients.probe.finite_difference import slopes
from pytest_ftcheck.checks.gradients.record import ReferenceGradient
from pytest_ftcheck.core.trace import Trace


class Net(nn.Module):
    """Dropout, and a batch norm in training mode: random masks and buffers that a second pass must not disturb."""

    def __init__(self, out=2, dropout=0.3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16)
        )
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(16, out))

    def forward(self, x):
        return self.classifier(self.body(x))


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def loop(between=lambda model: None, *, loss=cross_entropy, sign=1.0):
    """The standard step, with something of the test's own between backward() and step()."""

    def step(model, batch, optimizer, scheduler):
        value = loss(model, batch)
        optimizer.zero_grad()
        (sign * value).backward()
        between(model)
        optimizer.step()
        return value

    return step


def accumulating(k, *, divide=True, zero_each=False):
    state = {"i": 0}

    def step(model, batch, optimizer, scheduler):
        state["i"] += 1
        if zero_each:
            optimizer.zero_grad()
        value = cross_entropy(model, batch)
        (value / k if divide else value).backward()
        if state["i"] % k == 0:
            optimizer.step()
            optimizer.zero_grad()
        return value

    return step


def run(step, rows, *, model=None, net=Net, optimizer=adam, steps=12, loss_fn=cross_entropy, **options):
    torch.manual_seed(0)
    model = model or net()
    model.train()
    return finetune(
        model, rows, step=step, optimizer=optimizer, loss_fn=loss_fn, steps=steps, probes=["reference"], **options
    )


def verdict(step, rows, **options):
    return check_grads_match_reference(run(step, rows, **options))


# ---------------------------------------------------------------------- healthy
def test_the_standard_loop_has_the_gradient_of_its_loss_to_the_last_digit(rows):
    trace = run(loop(), rows)
    record = trace.measured(ReferenceGradient)
    assert [s.step for s in record.steps] == [0, 1, 2, 6, 11]
    for step in record.steps:
        loss = trace.iterations[step.iterations[0]].loss
        assert step.losses[0] == pytest.approx(loss, rel=1e-6)
        assert step.part("all").cosine > 0.999999
        assert step.part("all").actual == pytest.approx(trace.steps[step.step].grad_norm, rel=1e-3)
        assert not step.missing
        assert not step.wrong_direction
    assert [s.ratio for s in record.slopes] == pytest.approx([1.0, 1.0], abs=0.05)
    assert check_grads_match_reference(trace).status == "pass"
    assert Trace.from_json(trace.to_json()).measured(ReferenceGradient) == record


@pytest.mark.parametrize("k", [2, 4])
def test_accumulation_done_right_passes(rows, k):
    trace = run(accumulating(k), rows, steps=6 * k, intent=Intent(accumulation=k))
    assert all(len(s.iterations) == k for s in trace.measured(ReferenceGradient).steps)
    assert all(s.part("all").cosine > 0.999 for s in trace.measured(ReferenceGradient).steps)
    assert check_grads_match_reference(trace).status == "pass"


def test_accumulation_whose_loss_is_divided_passes_under_sgd(rows):
    def step(model, batch, optimizer, scheduler, state={"i": 0}):  # noqa: B006 - the loop's own counter
        state["i"] += 1
        value = cross_entropy(model, batch) / 4
        value.backward()
        if state["i"] % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return value

    assert verdict(step, rows, steps=24, optimizer=sgd).status == "pass"


def noisy(model):
    for p in model.parameters():
        p.grad += 0.3 * p.grad.norm() * torch.randn_like(p)


def smoothed(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def augmented(model, batch):
    return F.cross_entropy(model(batch[0] + 0.3 * torch.randn_like(batch[0])), batch[1])


def mixed_up(model, batch):
    x, y = batch
    other = torch.randperm(len(y))
    share = torch.distributions.Beta(0.4, 0.4).sample()
    out = model(share * x + (1 - share) * x[other])
    return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[other])


@pytest.mark.parametrize(
    "step",
    [
        loop(noisy),
        loop(loss=smoothed),
        loop(loss=augmented),
        loop(loss=mixed_up),
        loop(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1)),
        loop(lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01)),
        loop(lambda m: [p.grad.sign_() for p in m.parameters()]),
    ],
    ids=["noise", "smoothing", "augmented", "mix-up", "clipped", "clipped by value", "signs"],
)
@pytest.mark.parametrize("optimizer", [adam, sgd])
def test_legitimate_changes_of_gradients_pass(rows, step, optimizer):
    assert verdict(step, rows, optimizer=optimizer).status == "pass"


def test_a_sharpness_aware_step_passes(rows):
    def step(model, batch, optimizer, scheduler):
        value = cross_entropy(model, batch)
        optimizer.zero_grad()
        value.backward()
        with torch.no_grad():
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
            moves = [0.05 * p.grad / norm for p in model.parameters()]
            for p, move in zip(model.parameters(), moves, strict=True):
                p += move
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p -= move
        optimizer.step()
        return value

    assert verdict(step, rows).status == "pass"


def test_a_scaler_that_skips_steps_passes(rows):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def step(model, batch, optimizer, scheduler, state={"i": 0}):  # noqa: B006
        state["i"] += 1
        optimizer.zero_grad()
        value = cross_entropy(model, batch)
        scaler.scale(value).backward()
        if state["i"] in (1, 2, 7):
            next(model.parameters()).grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        return value

    trace = run(step, rows, optimizer=sgd)
    assert len(trace.steps) == 9
    assert check_grads_match_reference(trace).status == "pass"


def test_our_own_loop_passes(rows):
    torch.manual_seed(0)
    trace = finetune(Net(), rows, steps=6, lr=1e-3, probes=["reference"])
    assert [s.step for s in trace.measured(ReferenceGradient).steps] == [0, 3]
    assert check_grads_match_reference(trace).status == "pass"


def test_two_optimizers_on_one_model_pass(rows):
    def step(model, batch, optimizer, scheduler, other=[]):  # noqa: B006
        other = other or [torch.optim.SGD(model.body.parameters(), lr=0.01)]
        value = cross_entropy(model, batch)
        model.zero_grad()
        value.backward()
        optimizer.step()
        other[0].step()
        return value

    trace = run(step, rows, optimizer=lambda m: torch.optim.AdamW(m.classifier.parameters(), lr=1e-3))
    assert {p.name for p in trace.measured(ReferenceGradient).steps[0].parts} == {"head", "base", "all"}
    assert check_grads_match_reference(trace).status == "pass"


@pytest.mark.parametrize(
    "between",
    [
        lambda m: [p.grad.add_(p.detach(), alpha=0.1) for p in m.parameters()],
        lambda m: [p.grad.sub_(p.grad.mean()) for p in m.parameters()],
        lambda m: [p.grad.mul_(torch.rand_like(p) < 0.5) for p in m.parameters()],
        lambda m: noisy(m.body),
    ],
    ids=["weight decay by hand", "centred", "masked at random", "noise in a part"],
)
@pytest.mark.parametrize("net", ["Deep", "Wide"])
def test_changed_gradients_of_layers_of_one_shape_are_no_exchange(rows, between, net):
    trace = run(loop(between), rows, net=globals()[net])
    assert not [e for s in trace.measured(ReferenceGradient).steps for e in s.exchanged]
    assert check_grads_match_reference(trace).status == "pass"


# ---------------------------------------------------------------------- faulty loops
def turn_one(model):
    model.body[4].weight.grad.neg_()


class Deep(nn.Module):
    """Layers of one shape, so that their gradients can be mixed up without an error."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), *[m for _ in range(4) for m in (nn.Tanh(), nn.Linear(16, 16))])
        self.classifier = nn.Linear(16, 2)

    def forward(self, x):
        return self.classifier(self.body(x))


def reversed_layers(model):
    layers = [m.weight for m in model.body if isinstance(m, nn.Linear)][1:]
    for p, grad in zip(layers, [p.grad.clone() for p in reversed(layers)], strict=True):
        p.grad = grad


def swapped_biases(model):
    one, two = model.body[2].bias, model.body[4].bias
    one.grad, two.grad = two.grad, one.grad


def swapped_slices(model):
    """Large tensors, of which only a sample of elements is compared."""
    one, two = model.wide[0].weight, model.wide[2].weight
    one.grad, two.grad = two.grad, one.grad


class Wide(Deep):
    """Two layers with more elements than are compared."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 300))

    def forward(self, x):
        wide = self.wide(F.pad(self.body(x), (0, 284)))
        return self.classifier(wide[:, :16])


def forget(model, batch, optimizer, scheduler):
    value = cross_entropy(model, batch)
    value.backward()
    optimizer.step()
    return value


def too_early(model, batch, optimizer, scheduler):
    optimizer.step()
    optimizer.zero_grad()
    value = cross_entropy(model, batch)
    value.backward()
    return value


def emptied(model, batch, optimizer, scheduler):
    value = cross_entropy(model, batch)
    value.backward()
    optimizer.zero_grad()
    optimizer.step()
    return value


def unscaled(model, batch, optimizer, scheduler):
    value = cross_entropy(model, batch)
    optimizer.zero_grad()
    (value * 65536).backward()
    optimizer.step()
    return value


def clipped_while_scaled(model, batch, optimizer, scheduler):
    value = cross_entropy(model, batch)
    optimizer.zero_grad()
    (value * 65536).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for p in model.parameters():
        p.grad /= 65536
    optimizer.step()
    return value


def made_anew(model, batch, optimizer, scheduler):
    optimizer.zero_grad()
    value = torch.tensor(cross_entropy(model, batch).item(), requires_grad=True)
    value.backward()
    optimizer.step()
    return value


def never_called(model, batch, optimizer, scheduler):
    optimizer.zero_grad()
    optimizer.step()
    return cross_entropy(model, batch)


def flip_body(model):
    for p in model.body.parameters():
        p.grad.neg_()


def drop_body(model):
    for p in model.body[0].parameters():
        p.grad.zero_()


@pytest.mark.parametrize(
    ("fault", "step", "options"),
    [
        ("grads_negated", loop(sign=-1.0), {}),
        ("grads_negated", loop(flip_body), {}),
        ("grads_never_zeroed", forget, {}),
        ("grads_one_step_late", too_early, {}),
        ("grads_gone_before_step", emptied, {}),
        ("backward_reaches_nothing", made_anew, {}),
        ("backward_reaches_nothing", never_called, {}),
        ("micro_batches_lost", accumulating(4, zero_each=True), {"steps": 24}),
        ("micro_batches_lost", accumulating(2, zero_each=True), {"steps": 12, "intent": Intent(accumulation=2)}),
        ("accumulation_not_averaged", accumulating(4, divide=False), {"steps": 24, "optimizer": sgd}),
        ("grads_still_scaled", unscaled, {"optimizer": sgd}),
        ("clipped_to_nothing", clipped_while_scaled, {"intent": Intent(max_grad_norm=1.0)}),
        ("clipped_to_nothing", loop(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-9)), {}),
        ("grads_removed", loop(drop_body), {"intent": Intent(trained="body")}),
        ("grads_of_another", loop(turn_one), {}),
        ("grads_of_another", loop(reversed_layers), {"net": Deep}),
        ("grads_of_another", loop(swapped_biases), {"net": Deep}),
        ("grads_of_another", loop(swapped_slices), {"net": Wide}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_fault_is_named(rows, fault, step, options):
    found = verdict(step, rows, **options)
    assert (found.status, found.fault) == ("fail", fault), str(found)
    assert found.remedy
    assert found.causes


def test_a_sum_of_micro_batches_is_only_advice_under_adam(rows):
    found = verdict(accumulating(4, divide=False), rows, steps=24)
    assert (found.status, found.fault) == ("advice", "accumulation_not_averaged")
    assert "4.00 times the mean" in found.headline


def test_the_missing_unscale_is_named(rows):
    found = verdict(clipped_while_scaled, rows, intent=Intent(max_grad_norm=1.0))
    assert "unscale_" in found.causes[0]
    assert "65,536" in found.causes[0]


def test_gradients_set_to_zero_on_purpose_pass(rows):
    assert verdict(loop(drop_body), rows).status == "pass"
    assert verdict(loop(drop_body), rows, intent=Intent(frozen="body.0")).status == "pass"


def test_nan_that_is_replaced_is_named(rows):
    class Root(Net):
        def forward(self, x):
            return super().forward(x) + 0 * (self.body[0].weight * 0).pow(2).sum().sqrt()

    def cleaned(model):
        for p in model.parameters():
            p.grad.nan_to_num_(nan=0.0)

    trace = run(loop(cleaned), rows, model=Root())
    assert trace.measured(ReferenceGradient).steps[0].nonfinite == 1
    found = check_grads_match_reference(trace)
    assert (found.status, found.fault) == ("fail", "nan_gradients_replaced")


def test_a_loss_without_a_path_to_the_weights_is_named_and_where_it_is_cut(rows):
    def cut(model, batch):
        loss = F.cross_entropy(model(batch[0]).detach(), batch[1])
        return loss.requires_grad_(True)

    trace = run(loop(loss=cut), rows, loss_fn=cut)
    assert (trace.measured(ReferenceGradient).loss_connected, trace.measured(ReferenceGradient).logits_connected) == (
        False,
        True,
    )
    for check in (check_grads_match_reference, check_grads_nonzero):
        found = check(trace)
        assert (found.status, found.fault) == ("fail", "loss_cut_off")
    assert "though the logits do" in check_grads_match_reference(trace).headline

    class Cut(Net):
        def forward(self, x):
            return super().forward(x).detach()

    trace = run(loop(loss=cut), rows, model=Cut(), loss_fn=cut)
    assert trace.measured(ReferenceGradient).logits_connected is False
    assert "inside the model" in check_grads_match_reference(trace).headline


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


def test_a_backward_of_the_wrong_sign_shows_in_the_slope(rows):
    class Turned(Net):
        def forward(self, x):
            return self.classifier(Reversed.apply(self.body(x)))

    trace = run(loop(), rows, model=Turned())
    found = {s.part: s.ratio for s in trace.measured(ReferenceGradient).slopes}
    assert found["head"] == pytest.approx(1, abs=0.05)
    assert found["base"] == pytest.approx(-1, abs=0.05)
    assert check_grads_match_reference(trace).fault == "gradient_reversed"


# ---------------------------------------------------------------------- left as it was, and left out
def state_of(model):
    return [(n, v.clone()) for n, v in model.state_dict().items()]


def test_a_run_with_the_probe_is_the_run_without_it(rows):
    results = []
    for probes in (["reference"], ["data"]):
        torch.manual_seed(0)
        model = Net().train()
        records = []

        def step(model, batch, optimizer, scheduler, records=records):
            value = loop()(model, batch, optimizer, scheduler)
            records.append((float(value.detach()), random.random(), torch.rand(1).item(), state_of(model)))
            return value

        before = state_of(model)
        trace = finetune(model, rows, step=step, optimizer=adam, loss_fn=cross_entropy, steps=8, probes=probes)
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, state_of(model), strict=True))
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        assert (trace.measured(ReferenceGradient) is None) == (probes == ["data"])
        results.append(records)
    for (loss, a, b, weights), (other, c, d, others) in zip(*results, strict=True):
        assert (loss, a, b) == (other, c, d)
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(weights, others, strict=True))


def hooks():
    return len(optim_module._global_optimizer_pre_hooks), len(optim_module._global_optimizer_post_hooks)


def test_no_hook_is_left_even_if_the_loop_or_the_loss_raises(rows):
    before = hooks()
    run(loop(), rows)
    assert hooks() == before

    def raising(model, batch, optimizer, scheduler):
        raise KeyError("the user's own mistake")

    with pytest.raises(KeyError):
        run(raising, rows)
    assert hooks() == before

    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == 9:
            raise OSError("no more")
        return cross_entropy(model, batch)

    trace = run(loop(), rows, loss_fn=loss_fn)
    assert len(trace.steps) == 12
    assert "OSError: no more" in trace.skipped["reference"]
    assert hooks() == before
    found = SPECS["grads_match_reference"].judge(trace)
    assert found.status == "skipped"
    assert "OSError" in found.headline
    assert check_grads_match_reference(trace).status == "pass"  # asked by name, it is measured anew, and nothing raises


def test_an_optimizer_with_a_closure_is_not_compared(rows):
    torch.manual_seed(0)
    trace = finetune(
        Net(dropout=0.0), rows[:1], optimizer=lambda m: torch.optim.LBFGS(m.parameters()), steps=3, probes=["reference"]
    )
    assert trace.measured(ReferenceGradient).steps == ()
    assert "closure" in trace.measured(ReferenceGradient).reason
    assert check_grads_match_reference(trace).status == "pass"  # the slopes were taken


def test_a_closure_that_the_optimizer_could_do_without_is_compared_after_the_step(rows):
    def step(model, batch, optimizer, scheduler):
        def closure():
            optimizer.zero_grad()
            value = cross_entropy(model, batch)
            value.backward()
            return value

        return optimizer.step(closure)

    trace = run(step, rows)
    assert all(p.cosine > 0.999 for s in trace.measured(ReferenceGradient).steps for p in s.parts)
    assert check_grads_match_reference(trace).status == "pass"


def test_too_many_batches_for_a_step_stop_the_probe(rows):
    trace = run(accumulating(20), rows, steps=40)
    assert trace.measured(ReferenceGradient).steps == ()
    assert "more than 16 batches" in trace.measured(ReferenceGradient).reason


def test_a_model_in_a_wrapper_is_not_measured(rows):
    class DistributedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.classifier = module

        def forward(self, x):
            return self.classifier(x)

    trace = run(loop(), rows, model=DistributedDataParallel(Net()), head="classifier.classifier")
    assert "DistributedDataParallel" in trace.skipped["reference"]


def test_watch_measures_the_slopes(rows):
    torch.manual_seed(0)
    model = Net().train()
    optimizer = adam(model)
    with watch(model, optimizer, probe_batch=rows[0], probes=["reference"]) as w:
        for batch in rows:
            optimizer.zero_grad()
            w.loss(cross_entropy(model, batch)).backward()
            optimizer.step()
    assert w.trace.measured(ReferenceGradient).steps == ()
    assert {s.part for s in w.trace.measured(ReferenceGradient).slopes} == {"head", "base"}
    assert check_grads_match_reference(w.trace).status == "pass"


def test_the_slope_of_a_part_below_a_zero_layer_is_measured_after_the_run(rows):
    model = Net()
    nn.init.zeros_(model.classifier[1].weight)
    trace = run(loop(), rows, model=model)
    assert [s.part for s in trace.measured(ReferenceGradient).slopes] == ["head", "base"]
    assert trace.measured(ReferenceGradient).steps[0].part("base").cosine is None
    assert check_grads_match_reference(trace).status == "pass"


def test_nan_travels_as_json(rows):
    class Root(Net):
        def forward(self, x):
            return super().forward(x) + 0 * (self.body[0].weight * 0).pow(2).sum().sqrt()

    trace = run(loop(lambda m: [p.grad.nan_to_num_() for p in m.parameters()]), rows, model=Root())
    back = Trace.from_json(trace.to_json())
    first = back.measured(ReferenceGradient).steps[0]
    assert first.nonfinite == 1
    assert math.isnan(first.part("base").reference)
    assert check_grads_match_reference(back).fault == "nan_gradients_replaced"


def test_slopes_change_no_bit_and_are_not_measured_in_low_precision(rows):
    from pytest_ftcheck.instruments.reader import Reader

    torch.manual_seed(0)
    model = Net().train()
    reader = Reader(model, rows[0])
    before = state_of(model)
    assert len(slopes(model, reader, ["classifier"], rows[0])) == 2
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, state_of(model), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    half = Net().to(torch.bfloat16)
    batch = (rows[0][0].to(torch.bfloat16), rows[0][1])
    assert slopes(half, Reader(half, batch), ["classifier"], batch) == []


@pytest.mark.parametrize(("reverse", "moved"), [(False, 2), (True, 7)])
def test_only_a_part_that_does_not_follow_its_gradient_is_moved_both_ways(rows, reverse, moved):
    from pytest_ftcheck.instruments.reader import Reader

    passes = []

    class Counted(Net):
        def forward(self, x):
            passes.append(x)
            features = self.body(x)
            return self.classifier(Reversed.apply(features) if reverse else features)

    torch.manual_seed(0)
    model = Counted().train()
    reader = Reader(model, rows[0])
    passes.clear()
    ratios = {s.part: s.ratio for s in slopes(model, reader, ["classifier"], rows[0])}
    assert ratios["head"] == pytest.approx(1, abs=0.1)
    assert ratios["base"] == pytest.approx(-1 if reverse else 1, abs=0.1)
    # the gradient; the head and the base once; reversed, the base the other way, too, and both ways with two shorter strides
    assert len(passes) == 1 + moved
