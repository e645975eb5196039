"""The head probe on small real models: what it measures, and that it leaves everything as it was."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from pytest_ftcheck import (
    Intent,
    check_head_init,
    check_pretrained_kept,
    check_reload_keeps_head,
    check_units_alive,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.checks.head.probe.pretrained import compare
from pytest_ftcheck.checks.head.record import Head
from pytest_ftcheck.core.trace import Trace


class Net(nn.Module):
    """Six features, a body, and a head that the test gives."""

    def __init__(self, head, width=32):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.LayerNorm(width))
        self.classifier = head

    def forward(self, x):
        return self.classifier(self.body(x))


def mlp(activation=None, width=32, classes=2):
    return nn.Sequential(nn.Linear(width, width), activation or nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, classes))


def normal(head, std=0.02):
    for m in head.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=std)
            nn.init.zeros_(m.bias)
    return head


def run(model, rows, *, steps=6, intent=None, **options):
    torch.manual_seed(0)
    return finetune(
        model, rows, steps=steps, lr=1e-2, head="classifier", probes=["head_state"], intent=intent, **options
    )


def make(change, seed=0, **options):
    torch.manual_seed(seed)
    head = mlp(**options)
    change(head)
    return Net(head)


# ---------------------------------------------------------------------------------------- layers
def test_layers_are_described_in_the_order_in_which_they_are_called(rows):
    trace = run(make(normal), rows)
    state = trace.measured(Head)
    assert [la.name for la in state.layers] == ["classifier.0", "classifier.3"]
    assert [la.last for la in state.layers] == [False, True]
    first = state.layers[0]
    assert (first.units, first.fan_in, first.bias, first.twins) == (32, 32, 0.0, 0.0)
    assert first.std == pytest.approx(0.02, rel=0.1)
    assert 2.5 < first.kurtosis < 3.5
    assert state.rows == 32
    assert Trace.from_json(trace.to_json()) == trace


def test_the_declared_start_passes_and_torchs_default_is_named(rows):
    assert check_head_init(run(make(normal), rows, intent=Intent(head_init=0.02))).status == "pass"
    verdict = check_head_init(run(make(lambda h: None), rows, intent=Intent(head_init=0.02)))
    assert (verdict.status, verdict.fault) == ("fail", "head_init_torch_default")
    assert check_head_init(run(make(lambda h: None), rows)).status == "pass"  # nothing was declared


def test_units_that_nothing_tells_apart(rows):
    def constant(head):
        nn.init.constant_(head[0].weight, 0.05)
        nn.init.constant_(head[3].weight, 0.05)

    trace = run(make(lambda h: [nn.init.zeros_(h[0].bias), constant(h)]), rows)
    assert trace.measured(Head).layers[0].twins == 1.0
    assert check_head_init(trace).fault == "head_symmetric"


def test_constant_weights_below_random_ones_are_told_apart_by_the_last_layer(rows):
    trace = run(make(lambda h: nn.init.constant_(h[0].weight, 0.05)), rows)
    assert trace.measured(Head).layers[0].twins == 0.0
    assert check_head_init(trace).status == "pass"


def test_a_last_layer_of_zeros_is_healthy_and_two_layers_of_zeros_are_not(rows):
    def last(h):
        nn.init.zeros_(h[3].weight)
        nn.init.zeros_(h[3].bias)

    assert check_head_init(run(make(last), rows)).status == "pass"

    def both(h):
        last(h)
        nn.init.zeros_(h[0].weight)
        nn.init.zeros_(h[0].bias)

    assert check_head_init(run(make(both), rows)).fault == "head_all_zero"


def test_a_head_that_drowns_in_its_start(rows):
    trace = run(make(lambda h: normal(h, 5.0)), rows)
    assert check_head_init(trace).fault == "head_init_huge"
    assert trace.measured(Head).logit_spread > 15


def test_adapters_and_layers_that_take_no_part_are_left_out(rows):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.original = nn.Linear(32, 2)
            self.used = nn.Linear(32, 2)
            self.lora_B = nn.Linear(32, 2, bias=False)
            nn.init.zeros_(self.lora_B.weight)

        def forward(self, x):
            return self.used(x) + self.lora_B(x)

    state = run(Net(Branches()), rows).measured(Head)
    assert [la.name for la in state.layers] == ["classifier.used"]


# ---------------------------------------------------------------------------------------- units
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.Tanh(), "tanh"),
        (nn.GELU(), "gelu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Identity(), "identity"),
    ],
)
def test_the_activation_is_recognised_by_what_it_does(rows, module, name):
    (hidden,) = run(make(lambda h: None, activation=module), rows).measured(Head).hidden
    assert (hidden.name, hidden.following, hidden.activation) == ("classifier.0", "classifier.3", name)


def test_an_activation_that_is_no_module_is_seen_as_well(rows):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.out = nn.Linear(32, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.out(torch.relu(self.dense(x)))

    (hidden,) = run(Net(Functional()), rows).measured(Head).hidden
    assert hidden.activation == "relu"
    assert check_units_alive(run(Net(Functional()), rows)).status == "pass"


def test_dead_units_and_where_they_come_from(rows):
    trace = run(make(lambda h: nn.init.constant_(h[0].bias, -50.0)), rows)
    assert trace.measured(Head).hidden[0].first.dead == trace.measured(Head).hidden[0].last.dead == 1.0
    assert check_units_alive(trace).fault == "units_dead_bias"


def test_gelu_units_that_start_at_zero_are_asleep_not_dead(rows):
    def zero(h):
        nn.init.zeros_(h[0].weight)
        nn.init.zeros_(h[0].bias)

    trace = run(make(zero, activation=nn.GELU()), rows)
    assert trace.measured(Head).hidden[0].first.dead == 1.0
    assert check_units_alive(trace).status == "pass"


def test_saturated_tanh(rows):
    trace = run(make(lambda h: normal(h, 30.0), activation=nn.Tanh()), rows)
    assert check_units_alive(trace).fault == "units_saturated"
    healthy = run(make(normal, activation=nn.Tanh()), rows)
    assert healthy.measured(Head).hidden[0].last.saturated < 0.1


def test_six_sigmoids_lose_the_rows(rows):
    layers = []
    for _ in range(6):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    torch.manual_seed(0)
    trace = run(Net(normal(nn.Sequential(*layers, nn.Linear(32, 2)))), rows)
    assert check_units_alive(trace).fault == "signal_lost_in_head"


def test_two_linear_layers_in_a_row_are_an_advice(rows):
    verdict = check_units_alive(run(make(lambda h: None, activation=nn.Identity()), rows))
    assert (verdict.status, verdict.fault) == ("advice", "linear_after_linear")


def test_features_that_do_not_vary_are_no_fault_of_the_head(rows):
    model = make(lambda h: None)
    model.body.requires_grad_(False)
    nn.init.zeros_(model.body[0].weight)
    trace = run(model, rows)
    assert trace.measured(Head).features[0] < 1e-6
    assert check_units_alive(trace).status == "pass"


def test_a_head_without_linear_layers_says_so(rows):
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 2) * 0.02)

        def forward(self, x):
            return x @ self.weight

    trace = run(Net(Raw()), rows)
    assert check_head_init(trace).status == check_units_alive(trace).status == "skipped"
    assert "no linear layers" in check_head_init(trace).headline
    assert check_reload_keeps_head(trace).status == "pass"


# ---------------------------------------------------------------------------------------- saving
def test_saving_keeps_the_trained_head(rows):
    trace = run(make(normal), rows)
    assert trace.measured(Head).reload.scope == "model"
    assert trace.measured(Head).reload.difference == 0
    assert check_reload_keeps_head(trace).status == "pass"


def test_tied_weights_and_batch_norm_are_saved_like_any_other(rows):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(32, 32), nn.Linear(32, 32), nn.BatchNorm1d(32)
            self.b.weight = self.a.weight
            self.out = nn.Linear(32, 2)

        def forward(self, x):
            return self.out(torch.relu(self.norm(self.b(torch.relu(self.a(x))))))

    assert check_reload_keeps_head(run(Net(Tied()), rows)).status == "pass"


class InList(nn.Module):
    """Its layers are in a plain list: torch does not see them."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(32, 32), nn.Linear(32, 32)]
        self.out = nn.Linear(32, 2)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.out(x)


def test_layers_in_a_plain_list_are_found(rows):
    trace = run(Net(InList()), rows)
    verdict = check_reload_keeps_head(trace)
    assert (verdict.status, verdict.fault) == ("fail", "outside_the_model")
    assert len(trace.measured(Head).reload.outside) == 4


def test_a_tensor_outside_the_model_that_the_optimizer_trains_is_only_noted(rows):
    head = InList()
    model = Net(head)
    extra = [p for layer in head.layers for p in layer.parameters()]
    optimizer = torch.optim.SGD([*model.parameters(), *extra], lr=0.1)
    verdict = check_reload_keeps_head(
        finetune(model, rows, steps=4, optimizer=optimizer, head="classifier", probes=["head_state"])
    )
    assert verdict.status == "pass"
    assert "4 tensors outside the model" in verdict.notes[0]


def test_an_activation_that_was_told_to_want_a_gradient_is_no_parameter(rows):
    """As enable_input_require_grads() does for a frozen embedding."""
    model = make(normal)
    model.body.requires_grad_(False)
    handle = model.body.register_forward_hook(lambda m, i, out: out.requires_grad_(True))
    trace = run(model, rows)
    handle.remove()
    assert trace.measured(Head).reload.outside == ()


def test_a_state_dict_that_leaves_the_head_out(rows):
    class Forgets(Net):
        def state_dict(self, *args, **kwargs):
            full = super().state_dict(*args, **kwargs)
            return {k: v for k, v in full.items() if not k.startswith("classifier")}

    verdict = check_reload_keeps_head(run(Forgets(mlp()), rows))
    assert (verdict.status, verdict.fault) == ("fail", "not_saved")
    assert "classifier.0.weight" in verdict.headline


def test_a_load_that_ignores_the_head(rows):
    class Ignores(Net):
        def load_state_dict(self, state, strict=True, assign=False):
            kept = {k: v for k, v in state.items() if not k.startswith("classifier")}
            return super().load_state_dict(kept, strict=False)

    verdict = check_reload_keeps_head(run(Ignores(mlp()), rows))
    assert (verdict.status, verdict.fault) == ("fail", "reload_changes_logits")


def test_a_buffer_that_is_not_saved_and_matters(rows):
    class Scaled(nn.Module):
        def __init__(self, persistent):
            super().__init__()
            self.out = nn.Linear(32, 2)
            self.register_buffer("scale", torch.ones(1), persistent=persistent)

        def forward(self, x):
            if self.training:
                self.scale *= 1.5
            return self.out(x) * self.scale

    assert check_reload_keeps_head(run(Net(Scaled(False)), rows)).fault == "buffer_not_saved"
    assert check_reload_keeps_head(run(Net(Scaled(True)), rows)).status == "pass"


def test_extra_state_that_is_no_tensor_is_handed_back(rows):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            assert state == {"version": 3}

    assert check_reload_keeps_head(run(Net(Extra(32, 2)), rows)).status == "pass"


@pytest.mark.parametrize(("limit", "value"), [("LARGE", 100), ("MANY_TENSORS", 3)])
def test_of_a_large_model_the_head_alone_is_saved(rows, monkeypatch, limit, value):
    monkeypatch.setattr(f"pytest_ftcheck.checks.head.probe.reload.{limit}", value)
    reload = run(make(normal), rows).measured(Head).reload
    assert (reload.scope, reload.tensors, reload.difference) == ("head", 4, 0)


# ---------------------------------------------------------------------------------------- pretrained
def declared(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith("body")}


def kept(change, rows, **options):
    model = make(normal)
    state = declared(model)
    change(model, state)
    return check_pretrained_kept(run(model, rows, intent=Intent(pretrained=state), **options))


def test_values_that_were_loaded_are_kept(rows):
    verdict = kept(lambda m, s: None, rows)
    assert verdict.status == "pass"
    assert "4 of 4 declared tensors start with the declared values (4 bit for bit)" in verdict.headline


def scale(model, factor):
    with torch.no_grad():
        model.body[0].weight.mul_(factor)


def shuffle(model):
    with torch.no_grad():
        w = model.body[0].weight
        w.copy_(w.reshape(-1)[torch.randperm(w.numel())].reshape(w.shape))


def add(model, constant, factor=1.0):
    with torch.no_grad():
        model.body[0].bias.mul_(factor).add_(constant)


@pytest.mark.parametrize(
    ("change", "fault", "cause"),
    [
        (lambda m: scale(m, 3.0), "pretrained_scaled", "multiplied by a factor"),
        (lambda m: add(m, 0.5), "pretrained_shifted", "a constant was added"),
        (lambda m: add(m, 0.5, 2.0), "pretrained_changed", "multiplied by a factor after loading, and a constant was"),
        (lambda m: nn.init.constant_(m.body[1].weight, 3.0), "pretrained_changed", "filled with another constant"),
        (lambda m: nn.init.constant_(m.body[1].bias, 0.3), "pretrained_shifted", "a constant was added"),
        (lambda m: nn.init.zeros_(m.body[1].weight), "pretrained_partly_lost", "re-initialised"),
    ],
)
def test_a_sum_is_no_product(rows, change, fault, cause):
    verdict = kept(lambda m, s: change(m), rows)
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert verdict.causes[0].startswith(cause)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m.body[0].reset_parameters(), "pretrained_partly_lost"),
        (lambda m: scale(m, 3.0), "pretrained_scaled"),
        (lambda m: scale(m, 1.5), "pretrained_scaled"),
        (shuffle, "pretrained_shuffled"),
        (lambda m: nn.init.normal_(m.body[1].weight), "pretrained_partly_lost"),
    ],
)
def test_how_the_values_were_lost(rows, change, fault):
    verdict = kept(lambda m, s: change(m), rows)
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert "body." in verdict.headline


def test_a_base_that_was_never_loaded(rows):
    def other(model, state):
        for name, value in state.items():
            state[name] = torch.randn_like(value)

    assert kept(other, rows).fault == "pretrained_not_loaded"


def test_rounding_and_added_rows_are_harmless(rows):
    def round_off(model, state):
        with torch.no_grad():
            for n, p in model.named_parameters():
                if n in state:
                    p.copy_(p.bfloat16().float())

    verdict = kept(round_off, rows)
    assert verdict.status == "pass"
    assert any("rounded" in note for note in verdict.notes)

    def shorter(model, state):
        state["body.0.weight"] = state["body.0.weight"][:20]

    verdict = kept(shorter, rows)
    assert verdict.status == "pass"
    assert any("rows added" in note for note in verdict.notes)


def test_another_shape_is_named(rows):
    def other(model, state):
        state["body.0.weight"] = torch.randn(32, 9)

    assert kept(other, rows).fault == "pretrained_other_shape"


def test_a_matrix_with_the_declared_values_of_another_is_misplaced():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    declared = {n: v.clone() for n, v in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.copy_(declared["1.weight"])
        model[0].bias.copy_(declared["1.bias"])
        model[1].weight.mul_(3.0)
    kinds = {d.name: d.kind for d in compare(model, declared, ["2"]).differing}
    assert kinds.pop("0.bias") != "misplaced"  # vectors are too often all zeros or all ones
    assert kinds == {"0.weight": "misplaced", "1.weight": "scaled"}


def test_the_new_head_on_an_old_checkpoint_is_not_judged(rows):
    def whole(model, state):
        state["classifier.0.weight"] = torch.randn(32, 32)

    verdict = kept(whole, rows)
    assert verdict.status == "pass"
    assert any("of the head" in note for note in verdict.notes)


# ---------------------------------------------------------------------------------------- no trace of ourselves
def test_nothing_is_changed_by_looking(rows):
    """Weights, gradients, buffers, modes, hooks and random states, at each moment of the probe."""
    from pytest_ftcheck.checks.head.probe.head import HeadProbe
    from pytest_ftcheck.core.recipe import Recipe
    from pytest_ftcheck.instruments.batches import Batches
    from pytest_ftcheck.instruments.probe import ProbeContext, ProbeRunner
    from pytest_ftcheck.instruments.reader import Reader

    torch.manual_seed(1)
    model = Net(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2)))
    model.body.eval()
    x, y = rows[0]
    nn.functional.cross_entropy(model(x), y).backward()
    context = ProbeContext(
        model=model, reader=Reader(model, rows[0]), fixed_batches=rows[:2], batches=Batches(rows, 4), held_out=None, head=("classifier",),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1), scheduler=None, recipe=Recipe(steps=4),
        intent=Intent(pretrained=declared(model)), user_metric=None, recipe_loop=False, device=torch.device("cpu"), steps=4,
    )  # fmt: skip

    def photograph():
        return (
            [p.detach().clone() for p in model.parameters()],
            [p.grad.clone() for p in model.parameters()],
            [b.clone() for b in model.buffers()],
            [m.training for m in model.modules()],
            [len(m._forward_hooks) for m in model.modules()],
            [torch.get_rng_state()],
        ), (random.getstate(), [id(p) for p in model.parameters()])

    before = photograph()
    runner = ProbeRunner(context, [HeadProbe], 1e9)
    runner.before()
    runner.after()
    after = photograph()
    assert runner.skipped == {}
    assert runner.measurements()["head_state"].reload.difference == 0
    for a, b in zip(before[0], after[0], strict=True):
        assert all(torch.equal(torch.as_tensor(u), torch.as_tensor(v)) for u, v in zip(a, b, strict=True))
    assert before[1] == after[1]


def test_a_model_that_raises_in_eval_mode_costs_only_what_needs_it(rows):
    class Fussy(Net):
        calls = 0

        def forward(self, x):
            Fussy.calls += 1
            if not self.training and Fussy.calls > 1:
                raise RuntimeError("not in eval mode")
            return super().forward(x)

    trace = run(Fussy(mlp()), rows, intent=Intent(head_init=0.02))
    assert "not in eval mode" in trace.measured(Head).skipped["units"]
    assert "not in eval mode" in trace.measured(Head).skipped["reload"]
    assert check_units_alive(trace).status == check_reload_keeps_head(trace).status == "skipped"
    assert check_head_init(trace).fault == "head_init_torch_default"


def test_the_tiny_default_is_healthy_and_the_cost_is_honest():
    counted = []
    model = tiny_distilbert(seed=0)
    bare = finetune(tiny_distilbert(seed=0), toy_batches(4), steps=4, probes=[])
    assert bare.measured(Head) is None
    model.register_forward_hook(lambda m, args, out: counted.append(len(out)) if not m.training else None)
    trace = finetune(model, toy_batches(4), steps=4, probes=["head_state"], intent=Intent(head_init=0.02))
    for check in (check_head_init, check_units_alive, check_reload_keeps_head):
        assert check(trace).status == "pass"
    claimed = 2 * 32 + 5 * 8
    assert claimed - 16 <= sum(counted) - 16 <= claimed + 16  # the reader's first look is the other 16
