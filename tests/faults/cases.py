"""What a case is, the toy language, small models and the standard loop; the families take these and break one thing.

Nothing in this package imports pytest_ftcheck but for `Intent`, so that a case can be run by any other tool, or by none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Intent

Batch = dict[str, Any]
LossFn = Callable[[Any, Any], Any]
FAMILIES = (
    "wiring",
    "gradient flow",
    "motion",
    "loss",
    "schedule",
    "inputs",
    "mode",
    "head",
    "data",
    "numerics",
    "peft",
    "evaluation",
    "accumulation",
    "tokens",
    "embedding",
    "stopping",
)


# ------------------------------------------------------------------------------------------ records
@dataclass
class Run:
    """One fine-tune, ready to go: what the author hands over, and what only the self-check may see (``clean``)."""

    model: nn.Module
    batches: Any
    optimizer: Any
    scheduler: Any = None
    step: Callable[[Any, Any, Any, Any], Any] | None = None
    loss_fn: LossFn | None = None
    forward: Callable[[Any, Any], Any] | None = None
    evaluate: Callable[[Any], float] | None = None
    eval_batches: Any = None
    head: Any = "head"
    steps: int = 40
    intent: Intent | None = None
    #: Fields of the recipe, for the runs that leave the loop to `finetune`.
    recipe: dict[str, Any] = field(default_factory=dict)
    #: Held-out batches prepared correctly, whatever the author's look like; for the self-check only.
    clean: list[Any] = field(default_factory=list)
    #: Model -> share of right answers on clean held-out rows, where logits and labels do not give it; for the self-check only.
    score: Callable[[Any], float] | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `pytest_ftcheck.finetune`."""
        named = {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "step": self.step,
            "loss_fn": self.loss_fn,
            "forward": self.forward,
            "evaluate": self.evaluate,
            "eval_batches": self.eval_batches,
            "head": self.head,
            "intent": self.intent,
        }
        given = {k: v for k, v in named.items() if v is not None}
        return {"model": self.model, "batches": self.batches, "steps": self.steps, **given, **self.recipe}


@dataclass(frozen=True)
class Seen:
    """What a run without any testing tool shows: the self-check's evidence that a case is what it says."""

    losses: tuple[float, ...]
    #: Share of right answers on clean held-out rows (regression: minus the mean squared error) before and after.
    before: float
    after: float
    #: Parameter name -> largest change of an element; those that are not finite are ``inf``.
    changed: dict[str, float]
    #: What the author's own metric said before and after.
    told: tuple[float, float] | None = None
    #: Learning rates of the first group, one an iteration.
    rates: tuple[float, ...] = ()
    #: The run ended in this exception.
    error: str = ""

    def most(self, part: str) -> float:
        """Largest change of any element in the parameters whose name has ``part`` in it."""
        return max((v for k, v in self.changed.items() if part in k), default=0.0)

    def still(self, part: str, most: float = 0.0) -> bool:
        """Whether no parameter with ``part`` in its name changed by more than ``most``."""
        return any(part in k for k in self.changed) and self.most(part) <= most


@dataclass(frozen=True)
class Case:
    """A fine-tune with one known fault, or a healthy one."""

    name: str
    family: str
    healthy: bool
    #: What is wrong, or what looks wrong and is not, in one line.
    story: str
    #: Where it comes from: issue, pull request, thread, paper, documentation.
    source: str
    build: Callable[[int], Run]
    #: Checks any of which must fail.
    expected: tuple[str, ...] = ()
    #: Fault ids, or words of the title, one of which the first cause must have.
    cause: tuple[str, ...] = ()
    #: Empty, or why a short run cannot show it.
    uncatchable: str = ""
    #: Whether `Seen` bears the story out; None: the code is the proof.
    shows: Callable[[Seen], bool] | None = None
    #: Nothing is broken, and yet a run this short learns next to nothing.
    slow: bool = False
    #: A fault that this run learns in spite of: one of the expected checks gives advice, and nothing fails.
    advised: bool = False

    @property
    def held_out(self) -> bool:
        """In the third that nobody looks at while thresholds are chosen; decided by the name alone."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 3 == 0

    def holds(self, seen: Seen) -> bool:
        """Whether a run without any tool bears out what the case says of itself."""
        if self.shows is not None:
            return self.shows(seen)
        if not self.healthy or self.slow:
            return bool(seen.losses) and (not self.healthy or all(v > 0 for v in seen.changed.values() if v))
        return seen.after > seen.before + 0.15 or seen.after > 0.8

    @property
    def catchable(self) -> bool:
        """Whether a short run can show it, so that a check should fail."""
        return not self.uncatchable and not self.advised


CASES: dict[str, Case] = {}


def _register(case: Case) -> None:
    if case.name in CASES:
        raise ValueError(f"two cases are called {case.name}")
    if case.family not in FAMILIES and not case.healthy:
        raise ValueError(f"{case.name}: no family {case.family!r}")
    CASES[case.name] = case


def fault(
    family: str,
    story: str,
    source: str,
    expected: Sequence[str],
    cause: Sequence[str] = (),
    **more: Any,
) -> Callable[[Callable[[int], Run]], Callable[[int], Run]]:
    """Register the decorated builder as a fault; its name is the function's."""

    def wrap(build: Callable[[int], Run]) -> Callable[[int], Run]:
        _register(Case(build.__name__, family, False, story, source, build, tuple(expected), tuple(cause), **more))
        return build

    return wrap


def control(
    family: str, story: str, source: str, **more: Any
) -> Callable[[Callable[[int], Run]], Callable[[int], Run]]:
    """Register the decorated builder as a healthy control; its name is the function's."""

    def wrap(build: Callable[[int], Run]) -> Callable[[int], Run]:
        _register(Case(build.__name__, family, True, story, source, build, **more))
        return build

    return wrap


# ------------------------------------------------------------------------------------------ toy language
PAD, CLS, SEP, UNK = 0, 1, 2, 3
CUES, PER_CLASS, FILLER, WORDS = 20, 10, 70, 160

Row = tuple[list[int], Any]


def cue(g: torch.Generator, kind: int) -> int:
    """A word that speaks for class ``kind``."""
    return CUES + PER_CLASS * kind + int(torch.randint(PER_CLASS, (1,), generator=g))


def filler(g: torch.Generator, n: int) -> list[int]:
    """``n`` words that say nothing."""
    return torch.randint(FILLER, WORDS, (n,), generator=g).tolist()


def shuffled(g: torch.Generator, words: list[int]) -> list[int]:
    return [words[i] for i in torch.randperm(len(words), generator=g).tolist()]


def reviews(seed: int, n: int, classes: int = 3, weights: Sequence[float] | None = None) -> list[Row]:
    """``n`` texts of 5 to 12 words, of which 2 to 5 speak for the text's class."""
    g = torch.Generator().manual_seed(seed)
    share = torch.tensor(list(weights) if weights else [1.0] * classes)
    kinds = torch.multinomial(share, n, replacement=True, generator=g).tolist()
    rows: list[Row] = []
    for kind in kinds:
        length = int(torch.randint(5, 13, (1,), generator=g))
        told = int(torch.randint(2, min(length, 6), (1,), generator=g))
        words = [cue(g, kind) for _ in range(told)] + filler(g, length - told)
        rows.append((shuffled(g, words), kind))
    return rows


def topics(seed: int, n: int, tags: int = 3) -> list[Row]:
    """Multi-label: each tag is on for a third of the texts, and then one to three of its words are there."""
    g = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for _ in range(n):
        on = (torch.rand(tags, generator=g) < 0.35).float()
        words = [cue(g, t) for t in range(tags) if on[t] for _ in range(int(torch.randint(1, 4, (1,), generator=g)))]
        rows.append((shuffled(g, words + filler(g, 4)), on))
    return rows


def grades(seed: int, n: int, scale: float = 1.0, offset: float = 0.0) -> list[Row]:
    """Regression: the share of praise among five words that judge, about mean 0 and standard deviation 1."""
    g = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for _ in range(n):
        good = int(torch.randint(0, 6, (1,), generator=g))
        words = [cue(g, 0) for _ in range(good)] + [cue(g, 1) for _ in range(5 - good)]
        mark = (good - 2.5) / 1.7
        rows.append(
            (shuffled(g, words + filler(g, int(torch.randint(1, 5, (1,), generator=g)))), mark * scale + offset)
        )
    return rows


def pack(rows: Sequence[Row], *, side: str = "right", room: int = 0) -> Batch:
    """[CLS] words [SEP], padded to the longest row and ``room`` more."""
    texts = [[CLS, *words, SEP] for words, _ in rows]
    width = max(len(t) for t in texts) + room
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, text in enumerate(texts):
        at = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[i, at], mask[i, at] = torch.tensor(text), 1
    first = rows[0][1]
    labels = (
        torch.stack([y for _, y in rows]) if isinstance(first, torch.Tensor) else torch.tensor([y for _, y in rows])
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def packed(rows: Sequence[Row], size: int = 16, **how: Any) -> list[Batch]:
    return [pack(rows[i : i + size], **how) for i in range(0, len(rows) - size + 1, size)]


# ------------------------------------------------------------------------------------------ models
def bert(width: int = 32, layers: int = 2, dropout: float = 0.1, **settings: Any) -> nn.Module:
    """A small BERT without pooler, random weights of a standard deviation at which it can learn within seconds."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=48,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.05,
        **settings,
    )
    return BertModel(config, add_pooling_layer=False)


class WordVectors(nn.Module):
    """Word vectors through one layer: plain SGD can train this within 40 steps, which it cannot with a transformer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width, padding_idx=PAD)
        self.mix = nn.Linear(width, width)
        nn.init.normal_(self.words.weight, std=0.5)

    def forward(self, input_ids, attention_mask):
        return (torch.tanh(self.mix(self.words(input_ids))),)


def light(outputs: int = 3) -> nn.Module:
    """The classifier on plain word vectors."""
    return Classifier(outputs, encoder=WordVectors())


def two_layers(width: int, outputs: int, dropout: float = 0.1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, outputs))


class Classifier(nn.Module):
    """An encoder, the mean over the real words, a head; every step of it can be overridden."""

    def __init__(self, outputs: int = 3, *, encoder: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = bert() if encoder is None else encoder
        self.width = self.encoder.config.hidden_size if hasattr(self.encoder, "config") else 32
        self.head = two_layers(self.width, outputs) if head is None else head

    def encode(self, input_ids, attention_mask):
        return self.encoder(input_ids, attention_mask=attention_mask)[0]

    def pool(self, hidden, attention_mask):
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids, attention_mask):
        return self.head(self.pool(self.encode(input_ids, attention_mask), attention_mask))


def logits_of(model: Any, batch: Any) -> Any:
    """Logits for a batch of either kind."""
    if isinstance(batch, dict):
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        out = model(**inputs)
    else:
        out = model(batch[0])
    return out if isinstance(out, torch.Tensor) else out.logits


def labels_of(batch: Any) -> torch.Tensor:
    return batch["labels"] if isinstance(batch, dict) else batch[-1]


# ------------------------------------------------------------------------------------------ losses, metric, loop
def cross_entropy(model: Any, batch: Any) -> Any:
    return F.cross_entropy(logits_of(model, batch), labels_of(batch))


def tag_loss(model: Any, batch: Any) -> Any:
    return F.binary_cross_entropy_with_logits(logits_of(model, batch), labels_of(batch))


def squared_error(model: Any, batch: Any) -> Any:
    return F.mse_loss(logits_of(model, batch).squeeze(-1), labels_of(batch))


def own_loss(model: Any, batch: Any) -> Any:
    """The loss that a transformers model computes itself."""
    return model(**batch).loss


def right(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers; for float labels of one dimension minus the mean squared error."""
    logits = logits.float()
    if (
        labels.is_floating_point()
        and labels.dim() == 1
        and logits.shape[-1] == 1
        and not bool(((labels == 0) | (labels == 1)).all())
    ):
        return -float(((logits.squeeze(-1) - labels) ** 2).mean())
    if labels.is_floating_point() and labels.shape == logits.shape:
        return float(((logits > 0) == (labels > 0.5)).float().mean())
    if logits.shape[-1] == 1 and labels.dim() == 1:
        return float(((logits.squeeze(-1) > 0).long() == labels.long()).float().mean())
    kept = labels != -100
    return float((logits.argmax(-1) == labels)[kept].float().mean())


def accuracy(batches: Sequence[Any], forward: Callable[[Any, Any], Any] = logits_of) -> Callable[[Any], float]:
    """The standard evaluation: eval mode, no gradients, back to the mode it was in."""

    def evaluate(model: Any) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            value = sum(right(forward(model, b), labels_of(b)) for b in batches) / len(batches)
        model.train(training)
        return value

    return evaluate


def standard_step(loss_fn: LossFn = cross_entropy, clip: float | None = None) -> Callable[[Any, Any, Any, Any], Any]:
    """The loop body of every tutorial."""

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> float:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        return loss.item()

    return step


def linear_decay(optimizer: Any, warmup: int, total: int) -> Any:
    """Linear warm-up, then linear decay to zero."""

    def share(i: int) -> float:
        return i / max(1, warmup) if i < warmup else max(0.0, (total - i) / max(1, total - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def adamw(params: Any, lr: float = 2e-3, weight_decay: float = 0.01, **more: Any) -> Any:
    if isinstance(params, nn.Module):
        params = params.parameters()
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, **more)


def sgd(model: nn.Module, lr: float = 0.3, momentum: float = 0.9) -> Any:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


BELIEFS: dict[str, Any] = {
    "task": "single_label",
    "trained": "",
    "optimizer": "AdamW",
    "peak_lr": 2e-3,
    "schedule": "constant",
    "total_steps": 40,
    "warmup_steps": 0,
    "accumulation": 1,
    "weight_decay": 0.01,
    "dropout": True,
    "pad_token_id": PAD,
}
#: For SGD with momentum on `light`.
SGD_BELIEFS = {"optimizer": "SGD", "peak_lr": 0.3, "weight_decay": 0.0, "dropout": True}


def textual(
    seed: int,
    model: Callable[[], nn.Module] = Classifier,
    *,
    rows: Callable[[int, int], list[Row]] = reviews,
    count: int = 20,
    size: int = 16,
    how: dict[str, Any] | None = None,
    optimizer: Callable[[nn.Module], Any] = adamw,
    loss_fn: LossFn | None = cross_entropy,
    step: Callable[[Any, Any, Any, Any], Any] | None = None,
    clip: float | None = None,
    beliefs: dict[str, Any] | None = None,
    **more: Any,
) -> Run:
    """The healthy fine-tune on texts that most cases start from: what is not named is as it should be."""
    torch.manual_seed(seed)
    net = model()
    net.train()
    batches = packed(rows(100 + seed, count * size), size, **(how or {}))
    held_out = packed(rows(50_000 + seed, 96), 16, **(how or {}))
    told = {**BELIEFS, "max_grad_norm": clip, **(beliefs or {})}
    run = Run(
        model=net,
        batches=batches,
        optimizer=optimizer(net),
        loss_fn=loss_fn,
        step=step or standard_step(loss_fn or cross_entropy, clip),
        eval_batches=held_out,
        clean=held_out,
        intent=Intent(**{k: v for k, v in told.items() if v is not None}),
    )
    for name, value in more.items():
        setattr(run, name, value)
    if run.evaluate is None:
        run.evaluate = accuracy(run.eval_batches, run.forward or logits_of)
    return run


# ------------------------------------------------------------------------------------------ the run without any tool
def observe(run: Run, seed: int = 0) -> Seen:
    """Run the case as its author would, without any testing tool, and look at what came of it."""
    torch.manual_seed(seed)
    model = run.model
    forward = run.forward or logits_of
    before_values = {n: p.detach().clone() for n, p in model.named_parameters()}
    clean = run.clean or run.eval_batches
    score = run.score or accuracy(clean, forward)
    random_state = torch.get_rng_state()
    before = score(model)
    told = [run.evaluate(model)] if run.evaluate else []
    torch.set_rng_state(random_state)
    step = run.step or standard_step(run.loss_fn or _default_loss, 1.0)
    optimizer = run.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(model) if callable(optimizer) else adamw(model, run.recipe.get("lr", 5e-5))
    losses, rates, error = [], [], ""
    source = run.batches
    feed = iter(source)
    try:
        for _ in range(run.steps):
            try:
                batch = next(feed)
            except StopIteration:
                feed = iter(source)
                batch = next(feed)
            rates.append(float(optimizer.param_groups[0]["lr"]))
            losses.append(float(step(model, batch, optimizer, run.scheduler)))
    except RuntimeError as problem:
        error = str(problem)
    finally:
        torch.set_grad_enabled(True)
    changed = {}
    for name, p in model.named_parameters():
        if name in before_values and before_values[name].shape == p.shape:
            delta = (p.detach().float() - before_values[name].float()).abs().max()
            changed[name] = float(delta) if bool(torch.isfinite(delta)) else float("inf")
    after = score(model)
    if run.evaluate:
        told.append(run.evaluate(model))
    return Seen(
        tuple(losses), before, after, changed, (told[0], told[1]) if len(told) == 2 else None, tuple(rates), error
    )


def _default_loss(model: Any, batch: Any) -> Any:
    if isinstance(batch, dict):
        out = model(**batch) if _takes_labels(model) else model(**{k: v for k, v in batch.items() if k != "labels"})
        if not isinstance(out, torch.Tensor) and getattr(out, "loss", None) is not None:
            return out.loss
        return F.cross_entropy(out if isinstance(out, torch.Tensor) else out.logits, batch["labels"])
    return cross_entropy(model, batch)


def _takes_labels(model: Any) -> bool:
    import inspect

    return "labels" in inspect.signature(model.forward).parameters
