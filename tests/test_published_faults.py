"""Each fault of `benchmarks/neutral` changes what it says it changes, on a tiny model; the benchmark itself trains real weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from neutral import databugs, deepcrime, deepfd, deform, matched, tables, traincheck
from neutral.task import LR, ROWS, Run, accuracy, fingerprint, make_batch

FAULTS = {
    f.name: f for f in (*deform.RECREATED, *traincheck.FAULTS, *deepcrime.FAULTS, *deepfd.FAULTS, *databugs.FAULTS)
}
CLASSES, WORDS = 3, 40


def small_run() -> Run:
    """The fine-tune of the benchmark, with a tiny BERT and random rows of 3 to 8 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    rows = [torch.randint(5, WORDS, (3 + k % 6,)).tolist() for k in range(6 * ROWS)]
    batches = [
        make_batch(rows[k : k + ROWS], [i % CLASSES for i in range(k, k + ROWS)]) for k in range(0, len(rows), ROWS)
    ]
    return Run(BertForSequenceClassification(config).train(), batches, batches[:1], seed=0)


def labels(run: Run) -> torch.Tensor:
    return torch.cat([b["labels"] for b in run.batches])


def optimizer(run: Run) -> torch.optim.Optimizer:
    return run.optimizer(run.model)


def logits(run: Run, **more: torch.Tensor) -> torch.Tensor:
    run.model.eval()
    inputs = {k: v for k, v in run.batches[0].items() if k != "labels"}
    with torch.no_grad():
        return run.model(**inputs, **more).logits


def loss(run: Run) -> float:
    run.model.eval()
    return float(run.loss_of(run.model, run.batches[0]).detach())


def gradients(run: Run, steps: int) -> torch.Tensor:
    """Of the head's weight after steps that move nothing, all on the first batch."""
    run.model.eval()
    still = torch.optim.SGD(run.model.parameters(), lr=0.0)
    for _ in range(steps):
        run.step(run.model, run.batches[0], still)
    return run.model.classifier.weight.grad


def gradient_norm(run: Run) -> float:
    run.model.classifier.weight.data.mul_(100)
    gradients(run, 1)
    return float(torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()]))


def moved(run: Run, steps: int) -> list[bool]:
    """Whether each of so many steps moved the head's weight."""
    chosen, found = torch.optim.SGD(run.model.parameters(), lr=0.1), []
    for _ in range(steps):
        before = run.model.classifier.weight.detach().clone()
        run.step(run.model, run.batches[0], chosen)
        found.append(not torch.equal(before, run.model.classifier.weight))
    return found


def activation(run: Run, x: torch.Tensor) -> torch.Tensor:
    return run.model.bert.encoder.layer[0].intermediate.intermediate_act_fn(x)


def future_matters(run: Run) -> bool:
    """Whether the first token's last hidden state depends on the last token."""
    run.model.eval()
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        one, other = (run.model.bert(i).last_hidden_state[0, 0] for i in (ids, torch.cat([ids[:, :-1], ids[:, :1]], 1)))
    return not torch.equal(one, other)


def probabilities_and_answers(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    return logits(run).softmax(1), torch.eye(CLASSES)[run.batches[0]["labels"]]


def behind_the_head(of: torch.nn.Module) -> object:
    return lambda clean, run: torch.allclose(logits(run), of(logits(clean)))


def uses(of: type[torch.optim.Optimizer]) -> object:
    return lambda clean, run: type(optimizer(run)) is of and optimizer(run).param_groups[0]["lr"] == LR


def share_kept(clean: Run, run: Run) -> float:
    """Of the tokens behind the first, without padding."""
    pairs = [
        (a["input_ids"], b["input_ids"], a["attention_mask"]) for a, b in zip(clean.batches, run.batches, strict=True)
    ]
    return float(torch.cat([(a == b)[:, 1:][m[:, 1:].bool()] for a, b, m in pairs]).float().mean())


def positions(run: Run, by: int) -> torch.Tensor:
    return torch.arange(run.batches[0]["input_ids"].shape[1])[None] + by


#: Fault -> what it changes, by the clean run and the faulty one.
CLAIMS = {
    "SDS*": lambda clean, run: all(layer.attention.self.scaling == 1 for layer in run.model.bert.encoder.layer),
    "PSI*": lambda clean, run: torch.equal(logits(run), logits(clean, position_ids=positions(clean, 4))),
    "VEC*": lambda clean, run: future_matters(clean) and not future_matters(run),
    "KMD*": lambda clean, run: (
        all(layer.attention.self.dropout.p == 0.5 for layer in run.model.bert.encoder.layer)
        and torch.equal(logits(run), logits(clean))
    ),
    "pytorch-forum-84911": lambda clean, run: all(
        p.requires_grad == ("LayerNorm" in name) for name, p in run.model.named_parameters()
    ),
    "stackoverflow-60335387": lambda clean, run: torch.allclose(gradients(run, 2), 2 * gradients(clean, 2)),
    "pytorch-115607": lambda clean, run: all(moved(clean, 5)) and moved(run, 5) == [True] * 3 + [False] * 2,
    "pytorch-51800": lambda clean, run: (
        {"weight_orig", "bias"} == {n for n, _ in run.model.classifier.named_parameters()}
    ),
    "transformers-33844": lambda clean, run: (
        torch.equal(logits(clean), logits(clean)) and not torch.equal(logits(run), logits(run))
    ),
    "stackoverflow-67180955": lambda clean, run: (
        len({tuple((b["input_ids"] == 1).any(0).tolist()[:6]) for b in run.batches}) == 1
        and any(bool((b["input_ids"] == 1).any()) for b in run.batches)
    ),
    "TCL": lambda clean, run: torch.equal(labels(run), labels(clean).clamp(min=1)),
    "TRD": lambda clean, run: len(run.batches) == 1,
    "TUD": lambda clean, run: (
        int((labels(run) == 0).sum()) == int((labels(clean) == 0).sum())
        and 0 < int((labels(run) > 0).sum()) <= int((labels(clean) > 0).sum()) / 9
    ),
    "TAN": lambda clean, run: all(
        torch.equal(a["input_ids"][:, 0], b["input_ids"][:, 0])
        and torch.equal(a["attention_mask"], (b["input_ids"] != 0).long())
        and float((a["input_ids"] == b["input_ids"])[:, 1:][a["attention_mask"][:, 1:].bool()].float().mean()) < 0.2
        for a, b in zip(clean.batches, run.batches, strict=True)
    ),
    "TCO": lambda clean, run: (
        int((labels(run) == 0).sum()) == int((labels(clean) == 0).sum())
        and len(labels(run)) == len(labels(clean)) + int((labels(clean) == 0).sum())
    ),
    "HBS": lambda clean, run: (
        {len(b["labels"]) for b in run.batches[:-1]} == {4 * ROWS} and run.steps == clean.steps // 4
    ),
    "HLR": lambda clean, run: optimizer(run).param_groups[0]["lr"] == pytest.approx(LR / 1000),
    "HNE": lambda clean, run: run.steps == clean.steps // 10,
    "HDB": lambda clean, run: len(run.batches) == 1 and len(labels(run)) == len(labels(clean)),
    "ACH": lambda clean, run: torch.equal(activation(run, torch.ones(3)), torch.ones(3).sigmoid()),
    "ARM": lambda clean, run: torch.equal(activation(run, -torch.ones(3)), -torch.ones(3)),
    "AAL": lambda clean, run: torch.equal(logits(run), logits(clean).relu()),
    "RAW": lambda clean, run: (
        loss(run) == pytest.approx(loss(clean) + 0.01 * float(clean.model.classifier.weight.detach().abs().sum()))
    ),
    "RCW": lambda clean, run: optimizer(run).param_groups[0]["weight_decay"] == 1.0,
    "RRW": lambda clean, run: optimizer(run).param_groups[0]["weight_decay"] == 0.0,
    "RCD": lambda clean, run: {m.p for m in run.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.75},
    "WCI": lambda clean, run: bool((run.model.classifier.weight == 1).all()),
    "WRB": lambda clean, run: (
        run.model.classifier.bias is None and torch.equal(run.model.classifier.weight, clean.model.classifier.weight)
    ),
    "LCH": lambda clean, run: (
        loss(run)
        == pytest.approx(
            float((logits(clean).softmax(1) - torch.eye(CLASSES)[clean.batches[0]["labels"]]).abs().mean())
        )
    ),
    "OCH": lambda clean, run: type(optimizer(run)) is torch.optim.SGD and optimizer(run).param_groups[0]["lr"] == 0.01,
    "loss-mse": lambda clean, run: (
        loss(run) == pytest.approx(float((torch.sub(*probabilities_and_answers(clean)) ** 2).mean()))
    ),
    "loss-mae": lambda clean, run: (
        loss(run) == pytest.approx(float(torch.sub(*probabilities_and_answers(clean)).abs().mean()))
    ),
    "loss-mape": lambda clean, run: loss(run) > 1e6,
    "lr-1": lambda clean, run: optimizer(run).param_groups[0]["lr"] == 1,
    "lr-1e-10": lambda clean, run: optimizer(run).param_groups[0]["lr"] == 1e-10,
    "epoch": lambda clean, run: run.steps == clean.steps // 20,
    "opt-SGD": uses(torch.optim.SGD),
    "opt-RMSprop": uses(torch.optim.RMSprop),
    "opt-Adadelta": uses(torch.optim.Adadelta),
    "opt-Adagrad": uses(torch.optim.Adagrad),
    "act-relu": behind_the_head(torch.nn.ReLU()),
    "act-sigmoid": behind_the_head(torch.nn.Sigmoid()),
    "act-softmax": behind_the_head(torch.nn.Softmax(1)),
    "act-softplus": behind_the_head(torch.nn.Softplus()),
    "act-softsign": behind_the_head(torch.nn.Softsign()),
    "act-tanh": behind_the_head(torch.nn.Tanh()),
    "act-elu": behind_the_head(torch.nn.ELU()),
    "label-noise": lambda clean, run: 0.1 < float((labels(run) != labels(clean)).float().mean()) < 0.45,
    "class-imbalance": lambda clean, run: (
        int((labels(run) == 0).sum()) == int((labels(clean) == 0).sum())
        and 0 < int((labels(run) > 0).sum()) <= int((labels(clean) == 0).sum()) / 9
    ),
    "concept-drift": lambda clean, run: torch.equal(labels(run), torch.tensor([1, 0, 2])[labels(clean)]),
    "no-preprocessing": lambda clean, run: 0.1 < share_kept(clean, run) < 0.5,
    "OCG": lambda clean, run: gradient_norm(clean) > 0.11 and gradient_norm(run) == pytest.approx(0.1, rel=1e-3),
}


def test_every_fault_has_a_claim_and_its_source() -> None:
    assert set(CLAIMS) == set(FAULTS)
    assert all(f.where.startswith("https://") and f.cause and f.story for f in FAULTS.values())


@pytest.mark.parametrize("name", FAULTS)
def test_it_changes_what_it_says(name: str) -> None:
    clean, run = small_run(), small_run()
    FAULTS[name].apply(run)
    assert CLAIMS[name](clean, run)


def test_killed_is_lower_at_every_seed_that_was_run() -> None:
    clean = [0.8] * matched.SEEDS
    assert matched.killed([0.79] * matched.SEEDS, clean) is True
    assert matched.killed([0.79] * (matched.SEEDS - 1), clean) is None
    assert matched.killed([0.79, 0.8], clean) is False


def test_two_clean_runs_are_the_same() -> None:
    assert fingerprint(small_run()) == fingerprint(small_run())
    assert 0 <= accuracy(small_run().model, small_run().held_out) <= 1


def test_deforms_operators_change_the_model() -> None:
    """Those that write weights do; some that wrap functions change nothing in recent versions of transformers, as the benchmark says."""
    pytest.importorskip(deform.PACKAGE)
    clean = fingerprint(small_run())
    found = {f.name: f for f in deform.faults()}
    assert len(found) == 40 + len(deform.RECREATED)
    for name in ("QZQ", "FSW", "NZG", "ETZ", "OZR"):
        run = small_run()
        found[name].apply(run)
        assert fingerprint(run) != clean, name


def line(source: str, name: str, accuracy: float, gated: bool = False, named: bool = False, **more: object) -> dict:
    return {
        "tool": tables.OURS, "source": source, "name": name, "seed": 0, "gated": gated, "named": named, "first": "x" * gated,
        "undecided": [], "advice": [], "advised": False, "story": "A story.", "accuracy": accuracy, **more,
    }  # fmt: skip


def test_the_table_counts_what_hurts_apart_from_what_does_not() -> None:
    clean = [line(tables.CLEAN, tables.CLEAN, a, seed=k) for k, a in enumerate((0.8, 0.81, 0.82, 0.83, 0.84))]
    faults = [
        line("A", "caught", 0.2, gated=True, named=True),
        line("A", "other", 0.2, gated=True),
        line("A", "missed", 0.3),
        line("A", "harmless", 0.8, gated=True),
        {**line("A", "none", 0.0), "accuracy": None, "no_effect": True},
    ]
    assert "| A | 3 | 2 | 1 | 0 | 0 | 1 | 1 | 1 |" in tables.summary([*clean, *faults])
    assert "| A | 2 of 3 | 1 of 3 |" in tables.short([*clean, *faults])
    told = "\n".join(tables.missed([*clean, *faults]))
    assert all(word in told for word in ("A missed", "first cause `x`"))
    assert not any(word in told for word in ("caught", "harmless"))
    assert tables.harm_limit(clean[:4]) is None


def test_tools_are_compared_on_the_runs_that_all_had_once_those_are_ten() -> None:
    clean = [line(tables.CLEAN, tables.CLEAN, a, seed=k) for k, a in enumerate((0.8, 0.81, 0.82, 0.83, 0.84))]
    mine = [*clean, *(line("A", f"f{k}", 0.2, gated=True) for k in range(12))]
    theirs = [{**line("A", f"f{k}", 0.2), "tool": "other"} for k in range(tables.LEAST_COMPARED)]
    assert tables.by_tool([*mine, *theirs[:-1]]) == []
    found = tables.by_tool([*mine, *theirs])
    assert "| pytest-ftcheck | 10 of 10 | - | - | 0 |" in found
    assert "| other | 0 of 10 | - | - | 0 |" in found
