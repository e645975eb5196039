"""What is recorded of one rank: in one process, with torch's fake process group, whose collectives do nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from pytest_ftcheck import Trace, check_ranks_agree, finetune, tiny_distilbert, toy_batches, watch
from pytest_ftcheck.checks.ranks.probe.chosen import followed, replicated
from pytest_ftcheck.checks.ranks.probe.loss_weight import LossWeights
from pytest_ftcheck.checks.ranks.probe.rows import RowChecksums
from pytest_ftcheck.checks.ranks.probe.sketches import Sketches
from pytest_ftcheck.checks.ranks.record import BARE, NO_SYNC, WRAPPED, Ranks
from pytest_ftcheck.training.merge_ranks import merge_ranks

fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")


@pytest.fixture
def group():
    """Rank 0 of two."""
    distributed.init_process_group("fake", store=fake_pg.FakeStore(), rank=0, world_size=2)
    yield
    distributed.destroy_process_group()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def train(model, batches, *, accumulation=1, called=None, before_step=None, **options):
    """A loop of the user's; the trace."""
    called = model if called is None else called
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(called, **options) as w:
        for i, (x, y) in enumerate(batches):
            (F.cross_entropy(called(x), y) / accumulation).backward()
            if i % accumulation == accumulation - 1:
                if before_step:
                    before_step(model)
                optimizer.step()
                optimizer.zero_grad()
    return w.trace


def record(trace):
    return trace.measured(Ranks).ranks[0]


def test_one_process_records_nothing(rows):
    trace = train(net(), rows)
    assert trace.measured(Ranks) is None
    assert "ranks" in trace.not_applicable
    assert check_ranks_agree(trace).unmeasured == ""


def test_a_rank_records_its_steps_calls_and_rows(group, rows):
    trace = train(net(), rows)
    found = trace.measured(Ranks)
    rank = record(trace)
    assert (found.size, found.gathered, rank.rank) == (2, False, 0)
    assert [step.step for step in rank.steps] == list(range(8))
    assert {step.call for step in rank.steps} == {BARE}
    assert len(rank.rows) == len(set(rank.rows)) == rank.calls == 8
    assert [w.name for w in rank.weights] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(w.first != w.last for w in rank.weights)
    assert rank.first_nonfinite_local is None
    assert not rank.wrapped
    assert all(step.loss_weight == pytest.approx(1.0) for step in rank.steps)
    assert Trace.from_json(trace.to_json()) == trace


def test_it_is_the_same_training_to_the_bit(group, rows):
    watched, unwatched = net(), net()
    train(watched, rows)
    optimizer = torch.optim.AdamW(unwatched.parameters(), lr=1e-2)
    for x, y in rows:
        F.cross_entropy(unwatched(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), unwatched.parameters(), strict=True))


def test_no_hook_is_left(group, rows):
    model = net()
    train(model, rows)
    assert not model._forward_pre_hooks
    assert all(not p._backward_hooks for p in model.parameters())


def test_no_hook_is_left_after_an_error(group, rows):
    model = net()

    def broken(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(model, rows, before_step=broken)
    assert not model._forward_pre_hooks
    assert all(not p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_local_gradients_are_those_since_zero_grad(group, rows, set_to_none):
    """Also where a step was skipped, as a GradScaler does: what came before it does not count."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model) as w:
        for i, (x, y) in enumerate(rows[:6]):
            x = torch.full_like(x, torch.inf) if i == 1 else x
            F.cross_entropy(model(x), y).backward()
            if i % 2 == 0:
                F.cross_entropy(model(2 * x), y).backward()
            if i != 1:
                optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    rank = record(w.trace)
    assert len(rank.steps) == 5
    assert rank.first_nonfinite_local is None
    for step in rank.steps:
        assert step.local == pytest.approx(step.gradients, rel=1e-4, abs=1e-6)


def test_the_first_local_gradient_that_is_not_finite(group, rows):
    model = net()
    train(model, [(torch.full_like(x, torch.nan) if i == 3 else x, y) for i, (x, y) in enumerate(rows)])
    trace = train(net(), [(torch.full_like(x, torch.nan) if i == 3 else x, y) for i, (x, y) in enumerate(rows)])
    assert record(trace).first_nonfinite_local == 3


class Inside(nn.Module):
    """A model that is not a container of torch's: these are traced with their hooks."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return self.body(x)


def test_a_compiled_model(group, rows):
    model = Inside()
    rank = record(train(model, rows, called=torch.compile(model, backend="aot_eager")))
    assert rank.calls == len(rank.rows) == 8
    for step in rank.steps:
        assert step.local == pytest.approx(step.gradients, rel=1e-4, abs=1e-6)


def test_what_is_done_between_backward_and_step_does_not_change_the_local_gradient(group, rows):
    def halve(model):
        for p in model.parameters():
            p.grad /= 2

    rank = record(train(net(), rows, before_step=halve))
    for step in rank.steps:
        assert [2 * g for g in step.gradients] == pytest.approx(step.local, rel=1e-4, abs=1e-6)


def test_clipping_is_noted(group, rows):
    rank = record(train(net(), rows, before_step=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.05)))
    for step in rank.steps:
        assert 0 < step.clipped < 1
        assert [g / step.clipped for g in step.gradients] == pytest.approx(step.local, rel=1e-3, abs=1e-6)


def test_how_the_model_was_called(group, rows):
    model = net()
    ddp = nn.parallel.DistributedDataParallel(model)
    past = record(train(model, rows))
    assert {step.call for step in past.steps} == {BARE}
    assert past.wrapped
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(ddp) as w, ddp.no_sync():
        for x, y in rows[:2]:
            F.cross_entropy(ddp(x), y).backward()
            optimizer.step()
    assert {step.call for step in record(w.trace).steps} == {NO_SYNC}
    with watch(ddp) as w:
        ddp(rows[0][0])
        for p in model.parameters():  # the fake group cannot average
            p.grad = torch.ones_like(p)
        optimizer.step()
    rank = record(w.trace)
    assert {step.call for step in rank.steps} == {WRAPPED}
    assert rank.wrapped


def test_evaluation_is_no_training_call(group, rows):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model) as w:
        for x, y in rows[:2]:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            model.eval()
            model(x)
            model.train()
            with torch.no_grad():
                model(x)
    assert record(w.trace).calls == 2


def test_probes_of_ours_do_not_count(group):
    model, batches = tiny_distilbert(), toy_batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, probe_batch=batches[0]) as w:
        for inputs, labels in batches[:2]:
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    rank = record(w.trace)
    assert rank.calls == 2
    assert len(rank.steps) == 2


def test_finetune_records_its_rank_too(group):
    rank = record(finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=4, probes=()))
    assert len(rank.steps) == rank.calls == 4


def test_samplers_and_schedulers(group, rows):
    model = net()
    x, y = torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])
    data = TensorDataset(x, y)
    loader = DataLoader(data, 8, sampler=DistributedSampler(data, 2, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net().parameters(), lr=1.0), 1)
    with watch(model) as w:
        for _ in range(2):
            for a, b in loader:
                F.cross_entropy(model(a), b).backward()
                optimizer.step()
                scheduler.step()
                scheduler.step()
                optimizer.zero_grad()
    assert other.last_epoch == 0
    rank = record(w.trace)
    assert rank.epoch_never_set
    assert rank.rows_in_order[:8] == rank.rows_in_order[8:]
    assert [(s.name, s.pace) for s in rank.schedulers] == [("LinearLR", 2.0)]
    loader.sampler.set_epoch(1)
    assert not record(train(model, loader)).epoch_never_set


def test_long_runs_are_thinned(group, rows):
    rank = record(train(net(), rows * 40))
    assert len(rank.steps) <= 128
    assert [step.step for step in rank.steps[:3]] == [0, 4, 8]
    assert rank.calls == 320


# ---------------------------------------------------------------------- the parts
def test_equal_tensors_have_equal_sketches_and_means_mean_ones():
    a, b = net(), net()
    with torch.no_grad():
        for p in b.parameters():
            p += torch.randn_like(p)
    middle = copy.deepcopy(a)
    with torch.no_grad():
        for m, p, q in zip(middle.parameters(), a.parameters(), b.parameters(), strict=True):
            m.copy_((p + q) / 2)
    sketches = [Sketches(list(m.parameters()), 16).of_weights() for m in (a, net(), b, middle)]
    assert torch.equal(sketches[0], sketches[1])
    assert not torch.isclose(sketches[0], sketches[2]).any()
    assert torch.allclose((sketches[0] + sketches[2]) / 2, sketches[3], atol=1e-6)


def test_followed_tensors_are_spread_and_small():
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(20)))
    assert len(followed(model)) == 8
    assert all(name.endswith("bias") for name in followed(model))
    assert {name.partition(".")[0] for name in followed(model)} >= {"0", "17"}
    model[:19].requires_grad_(False)
    assert list(followed(model)) == ["19.weight", "19.bias"]
    assert followed(nn.ReLU()) == {}


def test_tensors_that_ddp_ignores_are_not_compared():
    model = net()
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.weight"])
    assert list(replicated(model)) == ["0.bias", "2.weight", "2.bias"]


def checksums(*batches):
    found = RowChecksums()
    for batch in batches:
        found.add(batch)
    return found.record()


def test_checksums_of_rows():
    x = torch.randn(8, 700)
    ids = torch.randint(100, (8, 12))
    content, order = checksums(x, x.clone(), x.flip(0), x + 1, {"ids": ids}, {"ids": ids.flip(0)}, {"ids": ids, "y": x})
    assert content[0] == content[1] == content[2]
    assert order[0] == order[1] != order[2]
    assert content[3] != content[0]
    assert content[4] == content[5]
    assert len({*content[3:5], content[0], content[6]}) == 4
    assert all(0 <= v < 2**53 for v in (*content, *order))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.uint8])
def test_checksums_of_each_dtype(dtype):
    x = torch.arange(24).reshape(4, 6).to(dtype)
    content, _ = checksums(x, x.clone(), torch.zeros_like(x))
    assert content[0] == content[1] != content[2]


def test_batches_without_tensors_have_no_checksum():
    assert checksums(["a text"], {"n": 3}, torch.zeros(0, 4)) == ((), ())
    assert len(checksums(torch.tensor(3.0))[0]) == 1


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, 1.0),
        ({"reduction": "sum"}, 1.0),
        ({"reduction": "none"}, 1.0),
        ({"weight": torch.ones(2)}, None),
    ],
)
def test_weight_of_a_loss(keywords, expected):
    logits, labels = torch.randn(6, 2), torch.tensor([0, 1, 0, -100, 1, 0])
    listener = LossWeights()
    loss = F.cross_entropy(logits, labels, **keywords)
    listener.loss_called("cross_entropy", loss, (logits, labels), keywords)
    listener.backward_called(F.cross_entropy(logits, labels))
    if expected is None:
        assert listener.known is None
    elif keywords.get("reduction") == "none":
        assert float(listener.known) == pytest.approx(expected)
    else:
        assert float(listener.known) == pytest.approx(expected)


def test_weight_of_a_loss_over_the_rows_of_all_ranks():
    logits, labels = torch.randn(6, 2), torch.randint(2, (6,))
    listener = LossWeights()
    for _ in range(2):  # two micro-batches
        loss = F.cross_entropy(logits, labels)
        listener.loss_called("cross_entropy", loss, (logits, labels), {})
        listener.backward_called(loss / 4)
    assert float(listener.known) == pytest.approx(0.5)
    listener.reset()
    listener.loss_called("cross_entropy", loss, (logits, labels), {})
    listener.loss_called("mse_loss", loss, (logits, logits), {})
    listener.backward_called(loss)
    assert listener.known is None  # two losses


def test_merging_needs_a_record(rows):
    trace = train(net(), rows)
    with pytest.raises(ValueError, match=r"traces\[0\] has no record"):
        merge_ranks([trace, trace])
