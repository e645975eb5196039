"""The modes probe: what it measures on small real models and loops, and that it leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Intent,
    Trace,
    check_batches_sound,
    check_dropout_active,
    check_eval_deterministic,
    check_grads_nonzero,
    diagnose,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.mode.probe.dropout_sites import find_sites
from pytest_ftcheck.checks.mode.record import Modes


class Net(nn.Module):
    """Two layers with dropout in each; one more that is applied by hand."""

    def __init__(self, base=0.1, head=0.2, by_hand=0.0, always=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(base))
        self.classifier = nn.Sequential(nn.Dropout(head), nn.Linear(16, 2))
        self.by_hand, self.always = by_hand, always

    def forward(self, x):
        hidden = F.dropout(self.base(x), self.by_hand, self.training)
        return self.classifier(F.dropout(hidden, self.always))


def standard_step(model, batch, optimizer, scheduler):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def traced(model, rows, steps=12, step=standard_step, **settings):
    """One run, through the user's own step unless ``step=None``."""
    if step is not None:
        settings.update(step=step, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    settings.setdefault("probes", ("modes",))
    trace = finetune(model, rows, steps=steps, **settings)
    assert Trace.from_json(trace.to_json()) == trace
    return trace


def faults(trace):
    return check_dropout_active(trace).fault, check_eval_deterministic(trace).fault


@pytest.mark.parametrize("step", [standard_step, None])
def test_a_healthy_model(rows, step):
    trace = traced(Net().train(), rows, step=step)
    modes = trace.measured(Modes)
    assert faults(trace) == ("", "")
    assert check_dropout_active(trace).status == check_eval_deterministic(trace).status == "pass"
    assert modes.observed == (0, 1, 2, 6, 7, 8, 9, 10, 11)
    assert [(s.name, s.rate, s.part, s.observed, s.off_at) for s in modes.sites] == [
        ("base.2", 0.1, "base", 9, ()),
        ("classifier.0", 0.2, "head", 9, ()),
    ]
    assert modes.training.change > 0
    assert modes.evaluation.change == 0
    assert modes.passes is None


def test_a_part_left_in_evaluation_mode(rows):
    model = Net().train()
    model.base.eval()
    trace = traced(model, rows)
    assert faults(trace) == ("part_in_evaluation_mode", "")
    assert "base.2 was in evaluation mode" in check_dropout_active(trace).headline
    # the recipe's loop switches it to training mode
    assert faults(traced(model, rows, step=None)) == ("", "")


def test_an_evaluation_that_calls_train_does_not_cure_it(rows):
    model = Net().train()
    model.base.eval()

    def evaluate(model):
        model.eval()
        value = float(model(rows[0][0]).detach().sum())
        model.train()
        return value

    assert faults(traced(model, rows, evaluate=evaluate)) == ("part_in_evaluation_mode", "")


def test_the_whole_model_left_in_evaluation_mode(rows):
    trace = traced(Net().eval(), rows)
    assert faults(trace) == ("model_in_evaluation_mode", "")
    assert faults(traced(Net().eval(), rows, intent=Intent(dropout=False))) == ("", "")


def test_frozen_parts_may_be_in_evaluation_mode(rows):
    model = Net().train()
    model.base.eval().requires_grad_(False)
    trace = traced(model, rows)
    assert faults(trace) == ("", "")
    assert trace.measured(Modes).sites[0].observed == 0


def test_a_part_without_gradients_may_be_in_evaluation_mode(rows):
    """A teacher with requires_grad, under no_grad."""
    model = Net().train()
    model.teacher = Net().eval()
    assert faults(traced(model, rows)) == ("", "")


def test_an_evaluation_during_training_without_train_afterwards(rows):
    def step(model, batch, optimizer, scheduler, calls=iter(range(99))):  # noqa: B008
        loss = standard_step(model, batch, optimizer, scheduler)
        if next(calls) == 5:
            model.eval()
        return loss

    trace = traced(Net().train(), rows, step=step)
    assert faults(trace) == ("left_in_evaluation_mode", "")
    assert "From iteration 6 on" in check_dropout_active(trace).headline


def test_a_step_that_switches_both_ways_is_healthy(rows):
    def step(model, batch, optimizer, scheduler):
        model.train()
        loss = standard_step(model, batch, optimizer, scheduler)
        model.eval()
        return loss

    assert faults(traced(Net().eval(), rows, step=step)) == ("", "")


def test_accumulation_is_observed_where_a_step_is_taken(rows):
    def step(model, batch, optimizer, scheduler, calls=iter(range(99))):  # noqa: B008
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        if next(calls) % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()

    modes = traced(Net().train(), rows, step=step).measured(Modes)
    assert modes.observed == (3, 7, 11)
    assert all(s.observed == 3 for s in modes.sites)


def test_dropout_that_never_ends(rows):
    trace = traced(Net(always=0.2).train(), rows)
    assert faults(trace) == ("", "random_in_evaluation")


@pytest.mark.parametrize(("last", "rate", "name"), [(True, 0.2, "classifier.1"), (False, 0.2, None), (True, 0.0, None)])
def test_dropout_after_the_last_layer(rows, last, rate, name):
    model = Net()
    layers = [nn.Linear(16, 2), nn.Dropout(rate)]
    model.classifier = nn.Sequential(*(layers if last else reversed(layers)))
    trace = traced(model, rows)
    assert trace.measured(Modes).dropped_logits == name
    assert check_dropout_active(trace).status == ("advice" if name else "pass")


class Functional(Net):
    """A functional dropout after the last layer."""

    def __init__(self, rate, at=F.dropout):
        super().__init__()
        self.rate, self.at = rate, at

    def forward(self, x):
        return self.at(super().forward(x), self.rate, self.training).unsqueeze(1).squeeze(1)


@pytest.mark.parametrize("at", [F.dropout, torch.dropout, F.alpha_dropout])
@pytest.mark.parametrize(("rate", "status"), [(0.2, "advice"), (0.0, "pass")])
def test_functional_dropout_after_the_last_layer(rows, at, rate, status):
    trace = traced(Functional(rate, at).train(), rows)
    verdict = check_dropout_active(trace)
    assert (trace.measured(Modes).dropped_logits_rate, verdict.status) == (rate or None, status)
    assert ("a functional dropout, which sets 20 % of them to zero" in verdict.headline) == (status == "advice")


def test_functional_dropout_before_the_last_layer_is_healthy(rows):
    trace = traced(Net(by_hand=0.2).train(), rows)
    assert (trace.measured(Modes).dropped_logits_rate, check_dropout_active(trace).status) == (None, "pass")


class ByHand(Net):
    """Values of the logits, or of the features, are multiplied by a random mask in training mode."""

    def __init__(self, what, last=lambda logits: logits):
        super().__init__()
        self.what, self.last = what, last
        self.classifier = nn.Linear(16, 4)

    def forward(self, x):
        features = self.base(x)
        if self.training and self.what == "features":
            features = features * (torch.rand_like(features) > 0.3)
        logits = self.last(self.classifier(features))
        if self.training and self.what == "logits":
            logits = logits * torch.bernoulli(torch.full_like(logits, 0.6)) / 0.6
        if self.training and self.what == "rows":
            logits = logits * (torch.rand(len(logits), 1) > 0.4)
        return logits


def test_dropout_by_hand_after_the_last_layer(rows):
    verdict = check_dropout_active(traced(ByHand("logits").train(), rows))
    assert (verdict.status, verdict.fault) == ("advice", "dropout_on_logits")
    assert "of the logits are exactly zero, others at each pass" in verdict.headline


@pytest.mark.parametrize(
    ("what", "last"),
    [("features", lambda z: z), ("rows", lambda z: z), ("features", F.relu), ("features", F.hardshrink)],
)
def test_zeros_in_logits_of_other_origin_are_healthy(rows, what, last):
    trace = traced(ByHand(what, last).train(), rows)
    assert (trace.measured(Modes).zeroed_logits, check_dropout_active(trace).status) == (None, "pass")


def test_what_is_dropped_by_hand_counts_as_dropout(rows):
    declared = Intent(dropout=True)
    assert faults(traced(Net(0.0, 0.0, by_hand=0.1).train(), rows, intent=declared))[0] == ""
    assert faults(traced(Net(0.0, 0.0).train(), rows, intent=declared))[0] == "dropout_missing"
    assert faults(traced(Net(0.0, 0.0).train(), rows))[0] == ""


@pytest.mark.parametrize(("calls_eval", "fault"), [(True, ""), (False, "evaluates_in_training_mode")])
def test_the_users_evaluation(rows, calls_eval, fault):
    def evaluate(model):
        if calls_eval:
            model.eval()
        with torch.no_grad():
            return float((model(rows[0][0]).argmax(-1) == rows[0][1]).float().mean())

    trace = traced(Net().train(), rows, step=None, evaluate=evaluate)
    assert faults(trace) == ("", fault)
    assert trace.measured(Modes).passes == 1
    assert trace.measured(Modes).leaves_evaluation_mode == calls_eval
    assert faults(traced(Net(0.0, 0.0).train(), rows, step=None, evaluate=evaluate)) == ("", "")


def test_a_watched_loop(rows):
    def run(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with watch(model, optimizer, probe_batch=rows[0]) as watched:
            for batch in rows:
                standard_step(model, batch, optimizer, None)
        return watched.trace

    assert faults(run(Net().train())) == ("", "")
    assert faults(run(Net().eval()))[0] == "model_in_evaluation_mode"


def test_a_model_that_refuses_one_mode(rows):
    class Refusing(Net):
        def forward(self, x):
            if not self.training and len(x) == 4:
                raise RuntimeError("not in evaluation mode")
            return super().forward(x)

    trace = traced(Refusing().train(), rows)
    assert trace.measured(Modes).unmeasured == {"evaluation": "RuntimeError: not in evaluation mode"}
    assert check_eval_deterministic(trace).headline == "Not measured: RuntimeError: not in evaluation mode."
    assert check_dropout_active(trace).status == "pass"


def test_places_of_dropout():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_dropout = 0.3
            self.linear = nn.Linear(2, 2)

    model = nn.Sequential(
        Attention(), nn.LSTM(2, 2, dropout=0.4, num_layers=2), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1, dropout=0.5)
    )
    assert [(s.name, s.kind, s.rate, s.owner_name) for s in find_sites(model)] == [
        ("0", "Attention.attention_dropout", 0.3, "0"),
        ("1", "LSTM.dropout", 0.4, "1"),
        ("3", "MultiheadAttention.dropout", 0.5, "3"),
    ]
    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))
    assert [(s.name, s.owner_name) for s in find_sites(nested)] == [("1.1", "")]


def test_nothing_is_left_behind(rows):
    def run(probes):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 2)).train()
        model[1].eval()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        seen = []

        def step(model, batch, optimizer, scheduler):
            standard_step(model, batch, optimizer, scheduler)
            buffers = [b.clone() for b in model.buffers()]
            seen.append(
                ([p.detach().clone() for p in model.parameters()], buffers, [m.training for m in model.modules()])
            )

        finetune(
            model,
            rows,
            step=step,
            optimizer=optimizer,
            head="3",
            steps=6,
            probes=probes,
            evaluate=lambda m: float(m(rows[0][0]).detach().sum()),
        )
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return seen, hooks, torch.rand(1).item(), [m.training for m in model.modules()]

    (one, hooks, *rest), (two, _, *others) = run(("modes",)), run(())
    assert hooks == 0
    assert rest == others
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[0] + a[1], b[0] + b[1], strict=True))
        assert a[2] == b[2]


class Dropping(nn.Module):
    """Tokens are dropped before a library's base, in evaluation as well."""

    def __init__(self):
        super().__init__()
        tiny = tiny_distilbert(seed=0)
        self.base_model, self.classifier = tiny.base_model, tiny.classifier

    def forward(self, input_ids, attention_mask):
        dropped = (torch.rand(input_ids.shape) < 0.3) & (input_ids > 4)
        return self.classifier(
            self.base_model(input_ids.masked_fill(dropped, 1), attention_mask=attention_mask)[0][:, 0]
        )


def test_tokens_dropped_before_a_library_are_not_its_randomness():
    batches = [{"input_ids": i, "attention_mask": m, "labels": y} for (i, _, m), y in toy_batches(2, 8, seed=3)]
    trace = finetune(Dropping(), batches, steps=2, lr=1e-3, probes=("modes",))
    assert (trace.measured(Modes).base, trace.measured(Modes).base_library) == ("base_model", True)
    assert trace.measured(Modes).base_evaluation.change == 0
    assert check_eval_deterministic(trace).fault == "random_in_evaluation"


@pytest.mark.parametrize(
    ("evaluated_at", "back", "fault"), [(4, False, "left_in_evaluation_mode"), (4, True, ""), (10, False, "")]
)
def test_a_watched_loop_that_evaluates(rows, evaluated_at, back, fault):
    model = Net().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, probe_batch=rows[0]) as watched:
        for i in range(12):
            if i == evaluated_at:
                model.eval()
                model(rows[0][0])
                model.train(back)
            standard_step(model, rows[0], optimizer, None)
    verdict = check_dropout_active(watched.trace)
    assert verdict.fault == fault
    assert ("From step 4 on" in verdict.headline) == bool(fault)
    assert ("at 10 of 12 steps" in verdict.headline) == (evaluated_at == 10)


class MakesLayers(nn.Module):
    """A part of the head is made in __init__, in forward, or kept in a list that torch does not see."""

    def __init__(self, where):
        super().__init__()
        self.where, self.features, self.out = where, nn.Linear(6, 8), nn.Linear(8, 2)
        self.noise = nn.Dropout(0.5) if where == "list" else None
        if where == "init":
            self.dense = nn.Linear(8, 8)
        self.parts = [nn.Linear(8, 8)]

    def forward(self, x):
        dense = {"init": lambda: self.dense, "forward": lambda: nn.Linear(8, 8), "list": lambda: self.parts[0]}[
            self.where
        ]()
        hidden = torch.relu(dense(torch.relu(self.features(x))))
        return self.out(F.dropout(hidden) if self.noise is not None else hidden)


@pytest.mark.parametrize(
    ("where", "fault"), [("init", ""), ("forward", "layers_made_in_forward"), ("list", "random_in_evaluation")]
)
def test_layers_made_in_forward(rows, where, fault):
    trace = traced(MakesLayers(where), rows, head="out")
    assert check_eval_deterministic(trace).fault == fault


def seeded(every):
    count = [0]

    def step(model, batch, optimizer, scheduler):
        if count[0] % every == 0:
            torch.manual_seed(0)
        count[0] += 1
        return standard_step(model, batch, optimizer, scheduler)

    return step


@pytest.mark.parametrize(("every", "fault"), [(1, "seeded_every_step"), (100, "")])
@pytest.mark.parametrize("probes", [("modes",), None])
def test_a_seed_reset_at_every_step(rows, every, fault, probes):
    model = Net().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trace = finetune(model, rows, steps=12, step=seeded(every), optimizer=optimizer, probes=probes)
    assert check_dropout_active(trace).fault == fault
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_seed_reset_where_nothing_is_random(rows):
    model = Net(0.0, 0.0).train()
    trace = traced(model, rows, step=seeded(1))
    assert trace.measured(Modes).random_states_before == ()
    assert check_dropout_active(trace).status == "pass"


def leaves_gradients_off(model):
    torch.set_grad_enabled(False)
    model(torch.zeros(2, 6))
    return 0.5


def writes_weights(model):
    with torch.no_grad():
        model.classifier[1].weight.mul_(0.5)
    return 0.5


def freezes(model):
    model.requires_grad_(False)
    return 0.5


def swaps_and_restores(model):
    weight = model.classifier[1].weight
    with torch.no_grad():
        kept = weight.clone()
        weight.mul_(0.5)
        weight.copy_(kept)
    return 0.5


@pytest.mark.parametrize(
    ("evaluate", "fault"),
    [
        (leaves_gradients_off, "gradients_switched_off"),
        (writes_weights, "evaluation_changes_model"),
        (freezes, "evaluation_changes_model"),
        (swaps_and_restores, ""),
    ],
)
def test_what_an_evaluation_leaves_behind(rows, evaluate, fault):
    model = Net().train()
    trace = traced(model, rows, evaluate=evaluate)
    assert check_eval_deterministic(trace).fault == fault
    assert torch.is_grad_enabled()
    assert all(p.requires_grad for p in model.parameters())


class Normalised(nn.Module):
    def __init__(self, used=True, **how):
        super().__init__()
        torch.manual_seed(0)
        self.base, self.norm, self.classifier = nn.Linear(6, 16), nn.BatchNorm1d(16, **how), nn.Linear(16, 2)
        self.used = used

    def forward(self, x):
        x = self.base(x)
        return self.classifier(self.norm(x) if self.used else x)


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ({"momentum": 0.0}, "statistics_never_updated"),
        ({"momentum": 0.01}, ""),
        ({"momentum": None}, ""),
        ({"track_running_stats": False}, ""),
        ({"momentum": 0.0, "used": False}, ""),
    ],
)
def test_running_statistics(rows, how, fault):
    assert check_eval_deterministic(traced(Normalised(**how).train(), rows)).fault == fault


def test_a_frozen_batch_norm_in_evaluation_mode_is_not_judged(rows):
    model = Normalised(momentum=0.0).train()
    model.norm.eval()
    assert check_eval_deterministic(traced(model, rows)).fault == ""


@pytest.mark.parametrize("when", [0, 5])
def test_gradients_left_switched_off_in_the_loop(rows, when):
    count = [0]

    def step(model, batch, optimizer, scheduler):
        loss = standard_step(model, batch, optimizer, scheduler) if count[0] != when or when else None
        if count[0] == when:
            torch.set_grad_enabled(False)
            loss = loss if loss is not None else standard_step(model, batch, optimizer, scheduler)
        count[0] += 1
        return loss

    trace = traced(Net().train(), rows, step=step)
    assert check_grads_nonzero(trace).fault == "gradients_switched_off"
    assert torch.is_grad_enabled()
    if when:
        assert check_grads_nonzero(trace).headline.startswith(
            "After 6 steps backward cannot run any more: gradients are"
        )


class Seeds(Net):
    def forward(self, x):
        torch.manual_seed(1)
        return super().forward(x)


def test_a_model_that_seeds(rows):
    assert check_dropout_active(traced(Seeds(0.5, 0.5).train(), rows)).fault == "seeded_every_step"


def test_a_step_that_keeps_one_batch(rows):
    batches = list(rows)

    def step(model, batch, optimizer, scheduler):
        return standard_step(model, batches[0], optimizer, scheduler)

    model = Net().train()
    modes = traced(model, rows, step=step).measured(Modes)
    assert len(set(modes.inputs_used)) == 1 < len(set(modes.inputs_given))
    assert modes.inputs_used[0] == modes.inputs_given[0]
    assert check_batches_sound(traced(Net().train(), rows, step=step, probes=("modes", "data"))).fault == "same_batch"
    modes = traced(Net().train(), rows).measured(Modes)
    assert modes.inputs_used == modes.inputs_given


def replays_before(model, batch, fixed):
    return F.cross_entropy(model(fixed[0]), fixed[1]) + F.cross_entropy(model(batch[0]), batch[1])


def replays_after(model, batch, fixed):
    return F.cross_entropy(model(batch[0]), batch[1]) + F.cross_entropy(model(fixed[0]), fixed[1])


def logs_after(model, batch, fixed):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    with torch.no_grad():
        model(fixed[0])
    return loss


@pytest.mark.parametrize("loss_of", [replays_before, replays_after, logs_after])
def test_a_step_that_adds_the_same_rows_to_each_batch_has_another_batch_each_time(loss_of, rows):
    fixed = rows[0]

    def step(model, batch, optimizer, scheduler):
        loss = loss_of(model, batch, fixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    trace = traced(Net().train(), rows, step=step, probes=("modes", "data"))
    assert check_batches_sound(trace).status != "fail"
    modes = trace.measured(Modes)
    assert len(set(modes.inputs_used)) == len(set(modes.inputs_given)) > 1


def test_a_batch_norm_that_stays_in_evaluation_mode(rows):
    model = Normalised().train()
    model.classifier = nn.Sequential(nn.Dropout(0.2), model.classifier)
    model.norm.eval()
    model.norm.train = lambda mode=True: model.norm

    def evaluate(net):
        net.eval()
        with torch.no_grad():
            net(torch.zeros(3, 6))
        net.train()
        return 0.5

    trace = traced(model, rows, evaluate=evaluate)
    assert (trace.measured(Modes).passes, trace.measured(Modes).passes_random) == (1, 0)
    assert check_eval_deterministic(trace).fault == ""


# ---------------------------------------------------------------------------------------- over the budget
def over_budget(model, rows, **options):
    """A run whose evaluation costs more rows than the budget has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytest_ftcheck.instruments.work.FREE", 0.0)
        options = {"steps": 3, "lr": 1e-2, "evaluate": lambda m: 0.5, "eval_batches": rows * 4, **options}
        trace = finetune(model, rows, head="classifier", **options)
    assert trace.measured(Modes).reduced
    return trace


@pytest.mark.parametrize(
    ("rate", "declared", "fault"),
    [(0.2, 0.2, ""), (0.2, 0.1, "dropout_rate_differs"), (0.2, False, "dropout_not_meant"), (0.2, None, "")],
)
def test_declared_dropout_is_judged_outside_the_budget(rows, rate, declared, fault):
    for options in ({}, {"step": standard_step}):
        model = Net(rate, rate).train()
        trace = over_budget(model, rows, intent=Intent(dropout=declared), **options)
        assert check_dropout_active(trace).fault == fault
        assert trace.measured(Modes).observed


def test_a_part_left_in_evaluation_mode_is_found_outside_the_budget(rows):
    model = Net().train()
    model.classifier.eval()
    assert check_dropout_active(over_budget(model, rows, step=standard_step)).fault == "part_in_evaluation_mode"


def test_declared_dropout_without_a_module_needs_the_passes(rows):
    trace = over_budget(Net(0.0, 0.0).train(), rows, intent=Intent(dropout=True))
    (verdict,) = [v for v in diagnose(trace).verdicts if v.check == "dropout_active"]
    assert (verdict.status, verdict.unmeasured) == ("inconclusive", "modes")
    assert "of the budget" in verdict.headline
    assert check_dropout_active(trace).fault == "dropout_missing"  # it runs again
    by_hand = over_budget(Net(0.0, 0.0, by_hand=0.3).train(), rows, intent=Intent(dropout=True))
    assert check_dropout_active(by_hand).status == "pass"


def test_passes_over_the_budget_are_no_pass(rows):
    trace = over_budget(Net().train(), rows)
    (verdict,) = [v for v in diagnose(trace).verdicts if v.check == "eval_deterministic"]
    assert (verdict.status, verdict.unmeasured) == ("skipped", "modes")
    assert check_eval_deterministic(trace).status == "pass"  # it runs again


class Recurrent(nn.Module):
    """A recurrent layer over six numbers; ``keeps`` its hidden state for the next batch, as a language model does."""

    def __init__(self, keeps):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.classifier = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 2)
        self.keeps, self.hidden = keeps, None

    def forward(self, x):
        start = self.hidden if self.keeps and self.hidden is not None and self.hidden.shape[1] == len(x) else None
        _, hidden = self.rnn(x[..., None], start)
        self.hidden = hidden.detach()
        return self.classifier(hidden[0])


@pytest.mark.parametrize(("keeps", "fault"), [(True, "state_carried"), (False, "")])
def test_a_hidden_state_that_the_next_batch_goes_on_from(keeps, fault, rows):
    assert check_eval_deterministic(traced(Recurrent(keeps), rows)).fault == fault
