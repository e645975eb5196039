"""Reset parts to their initial values, or replace the head by one linear layer: how much does the training of a part matter?

Rewinding and shuffling one part at a time is the method of Zhang, Bengio and Singer, "Are All Layers Created Equal?", JMLR 23 (2022).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ....core.formatting import block_of
from ....instruments.batches import row_count, split, take_rows, to_device
from ....instruments.global_state import seed_everything
from ....instruments.parameter_roles import in_part
from ....instruments.probe import Probe, ProbeContext
from ....instruments.reader import Reader
from ....instruments.task_readers.class_probabilities import ONE_CLASS, most_probable
from ....instruments.tasks import IGNORED
from ....instruments.uncompiled import compiled
from ....instruments.undisturbed import perturbed, quiet
from ....instruments.work import FREE
from ..ablation_record import Counterfactuals, Outcome, Rewound, SimplerHead
from .head import first_rows, rows_of
from .layers import linear_layers
from .unit_flow import flow

#: Rows measured, rows that the linear head is fitted on, and blocks of the base that are reset, of a small model.
ROWS, FITTED, BLOCKS = 64, 128, 6
#: Rows of a large one; where the base's values are recalled, `ROWS` of those held out, and so many to fit on.
FEW_ROWS, FEW_FITTED = 16, 64
#: Parts of the head that are reset one by one, at most.
HEAD_PARTS = 4
#: Parameters of the base above which it is not copied, and so not reset.
COPIED = 100_000_000
#: Share of the operations that are free to all probes, and of the training, that these may take on a small model.
SHARE_FREE, SHARE_TRAINING = 0.25, 0.05
#: Widest features that a linear head is fitted on.
WIDEST = 2048


class AblationProbe(Probe):
    """Reset parts to their initial values, or replace the head by a linear layer, and measure loss and accuracy."""

    name = "counterfactuals"
    order = 70

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        rows = row_count(split(context.fixed_batches[0])[0]) or 1
        budget = SHARE_FREE * FREE / context.row_work + SHARE_TRAINING * 3 * rows * context.steps
        source = context.held_out or context.fixed_batches
        self.source = "held-out rows" if context.held_out else "training rows"
        full = min(ROWS, sum(rows_of(b) for b in source))
        self.rich = budget >= full * (4 + HEAD_PARTS + BLOCKS) + 2 * FITTED
        #: The metrics are taken on these rows just before, so that all parts of the head cost next to nothing.
        self.recalled = context.head_costs_little
        many = self.rich or (self.recalled and context.held_out is not None)
        self.fitted = FITTED if self.rich else FEW_FITTED if many else 0
        self.batches = [to_device(b, context.device) for b in first_rows(source, ROWS if many else FEW_ROWS)]
        self.rows = sum(rows_of(b) for b in self.batches)
        # where the head costs next to nothing, a large base is left as it is: no check judges that, and it costs more than all else
        self.parts = parts_of(
            context.model,
            context.head,
            layers=self.rich or self.recalled,
            blocks=self.rich,
            base=self.rich or not self.recalled,
        )
        self.initial: dict[str, torch.Tensor] = {}
        self.found: Counterfactuals | None = None

    def cost(self) -> float:
        """One pass for the trained model, one for each reset part, and one for the shuffled head; the features of a linear layer."""
        of_base = len(self.parts) - len(self._of_head())
        fitted = min(self.fitted, sum(rows_of(b) for b in self.context.batches.known))
        if self.recalled:
            known = sum(rows_of(b) for b in self.context.fixed_batches)
            of_head = (
                (1 + len(self._of_head()) + ("head" in self.parts)) * self.rows + fitted + self.rows * (fitted > 0)
            )
            of_fit = max(0, fitted - known) + (2 if fitted else 0)
            return of_base * self.rows + of_fit + self.context.head_share * of_head
        passes = 1 + len(self.parts) + ("head" in self.parts)
        return passes * self.rows + (2 * fitted + 2 * self.rows + 2 if fitted else 0)

    def reduce(self, reason: str) -> bool:  # noqa: ARG002
        """The head alone, whose parts cost next to nothing where the base's values are recalled; at last without the linear layer."""
        of_head = self._of_head()
        if not self.recalled or not of_head:
            return False
        if len(self.parts) > len(of_head):
            self.parts = of_head
            return True
        reducible, self.fitted = self.fitted > 0, 0
        return reducible

    def _of_head(self) -> dict[str, tuple[str, ...]]:
        head = self.context.head
        return {part: names for part, names in self.parts.items() if all(in_part(n, head) for n in names)}

    def before(self) -> None:
        """Keep the initial values of trainable parts."""
        wanted = {n for names in self.parts.values() for n in names}
        self.initial = {
            n: p.detach().clone() for n, p in self.context.model.named_parameters() if p.requires_grad and n in wanted
        }

    def after(self) -> None:
        """Reset parts, one at a time."""
        model, now = self.context.model, dict(self.context.model.named_parameters())
        with self.context.recalling():
            trained = self._outcome()
        rewound, of_head = [], self._of_head()
        for part, names in self.parts.items():
            chosen = {
                n: now[n] for n in names if n in now and n in self.initial and now[n].shape == self.initial[n].shape
            }
            if not chosen or all(torch.equal(p, self.initial[n]) for n, p in chosen.items()):
                continue
            with self.context.recalling() if part in of_head else contextlib.nullcontext():
                reset = self._with(chosen, shuffled=False)
                other = self._with(chosen, shuffled=True) if part == "head" else None
            rewound.append(Rewound(part, sum(p.numel() for p in chosen.values()), reset, other))
        self.initial = {}
        self.found = Counterfactuals(
            rows=self.rows,
            source=self.source,
            trained=trained,
            baseline=self._baseline(),
            parts=tuple(rewound),
            simpler=self._simpler() if self.fitted and not compiled(model) else None,
        )

    def _with(self, chosen: Mapping[str, torch.Tensor], *, shuffled: bool) -> Outcome:
        g = torch.Generator().manual_seed(0)
        with perturbed(chosen.values()), torch.no_grad():
            for name, p in chosen.items():
                start = self.initial[name]
                if shuffled:
                    order = torch.randperm(start.numel(), generator=g, device="cpu").to(start.device)
                    start = start.reshape(-1)[order].reshape(start.shape)
                p.data.copy_(start)
            return self._outcome()

    def _outcome(self) -> Outcome:
        """Loss and accuracy on the rows, dropout off."""
        reader, total, right, count, rows = self.context.reader, 0.0, 0, 0, 0
        with quiet(self.context.model):
            for batch in self.batches:
                seed_everything(0)
                labels, size = split(batch)[1], rows_of(batch)
                logits = reader.logits(batch)
                readable = logits is not None and reader.task is not None and isinstance(labels, torch.Tensor)
                if readable and logits is not None:
                    total += float(reader.reference(logits.float(), labels)) * size
                    hits = correct(reader.task, logits, reader.targets(labels))
                    if hits is not None:
                        right, count = right + int(hits.sum()), count + hits.numel()
                else:
                    total += float(reader.loss(batch)[0]) * size
                rows += size
        return Outcome(total / max(1, rows), right / count if count else None)

    def _baseline(self) -> float | None:
        if self.context.reader.task not in ONE_CLASS:
            return None
        flat = _labels(self.batches, self.context.reader.task).cpu()
        counts = torch.bincount(flat[flat != IGNORED])
        return float(counts.max() / counts.sum()) if len(counts) else None

    # ------------------------------------------------------------------ a simpler head
    def _simpler(self) -> SimplerHead | None:
        """One linear layer on the head's input, in closed form."""
        context = self.context
        layers = linear_layers(context.model, context.head)
        if context.reader.task not in ONE_CLASS or len(layers) < 2:
            return None
        fitted = [to_device(b, context.device) for b in first_rows(context.batches.known, self.fitted)]
        with context.recalling():
            train, test = (flow(context.model, context.reader, b, layers) for b in (fitted, self.batches))
        if train.logits is None or test.logits is None or not train.order or train.logits.dim() != 2:
            return None
        first = train.order[0]
        x, held = train.inputs[first].double(), test.inputs.get(first)
        y, answers = (_labels(batches, context.reader.task) for batches in (fitted, self.batches))
        if held is None or len(x) != len(y) or len(held) != len(answers) or x.shape[1] > WIDEST:
            return None
        classes = max(2, train.logits.shape[1])
        guess = ridge(x, y, held.double(), classes)
        own = test.logits.argmax(1) if test.logits.shape[1] > 1 else (test.logits[:, 0] > 0).long()
        # a least-squares fit gives scores, not probabilities: only its predictions are comparable
        return SimplerHead(
            features=x.shape[1],
            outputs=train.logits.shape[1],
            rows=len(x),
            layers=len(train.order),
            accuracy=float((guess == answers).double().mean()),
            agreement=float((guess == own).double().mean()),
            replaces=replaceable(context.model, context.reader, take_rows(self.batches[0], [0, 1]), first),
            first=first,
        )

    def record(self) -> Counterfactuals | None:
        """What was measured."""
        return self.found


def replaceable(model: nn.Module, reader: Reader, batch: Any, first: str) -> str:
    """Name of the outermost module that takes nothing but the input of the layer ``first`` and returns the logits; empty: there is none.

    Another layer with as many inputs and outputs can stand in its place. The one layer of a head that has no other is none to replace.
    """
    around = {n: m for n, m in model.named_modules() if n and (n == first or first.startswith(f"{n}."))}
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in around}

    def hook(name: str) -> Any:
        def remember(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            alone = (
                len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and isinstance(out, torch.Tensor)
            )
            calls[name].append((args[0].detach().clone(), out.detach().clone()) if alone else (None, None))

        return remember

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in around.items()]
    try:
        with quiet(model):
            logits = reader.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
    if logits is None or len(calls.get(first, [])) != 1 or calls[first][0][0] is None:
        return ""
    features = calls[first][0][0]
    for name, found in calls.items():
        if name != first and len(found) == 1 and found[0][0] is not None:
            given, out = found[0]
            whole = out.numel() == logits.numel() and torch.equal(out.reshape(-1).float(), logits.reshape(-1).float())
            if whole and given.shape == features.shape and torch.equal(given, features):
                return name
    return ""


def parts_of(
    model: nn.Module, head: Sequence[str], *, layers: bool, blocks: bool, base: bool = True
) -> dict[str, tuple[str, ...]]:
    """Part -> names of its trainable parameters: of each layer of the head (``layers``), of the head, of each block of the base
    (``blocks``), of the base (``base``, or where no head is trained)."""
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    names = list(sizes)
    of_head = [n for n in names if in_part(n, head)]
    of_base = [n for n in names if not in_part(n, head)]
    parts: dict[str, tuple[str, ...]] = {}
    if layers:
        by_layer = _grouped(of_head, lambda n: n.rsplit(".", 1)[0])
        if 1 < len(by_layer) <= HEAD_PARTS:
            parts.update(by_layer)
    if of_head:
        parts["head"] = tuple(of_head)
    if blocks:
        by_block = _grouped(of_base, _block)
        chosen = list(by_block)
        if len(chosen) > BLOCKS:  # the first, the last, and some in between
            chosen = [chosen[round(i * (len(chosen) - 1) / (BLOCKS - 1))] for i in range(BLOCKS)]
        if len(by_block) > 1:
            parts.update({b: by_block[b] for b in chosen})
    if of_base and (base or not of_head) and sum(sizes[n] for n in of_base) <= COPIED:
        parts["base"] = tuple(of_base)
    return parts


def _grouped(names: Sequence[str], key: Any) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return {k: tuple(v) for k, v in groups.items()}


def _block(name: str) -> str:
    """As `block_of`, but parameters outside numbered blocks are grouped: all embeddings are one block."""
    parts = name.split(".")
    return block_of(name) if any(p.isdigit() for p in parts) else ".".join(parts[:2] if len(parts) > 2 else parts[:1])


def correct(task: str | None, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    """Which predictions are correct; None for tasks without correct and wrong. Of class probabilities the most probable class counts."""
    task, labels = most_probable(task, labels)
    if task == "multi_label":
        return (logits > 0) == (labels > 0.5)
    if task != "single_label":
        return None
    if logits.numel() == labels.numel():
        return (logits.reshape(labels.shape) > 0).long() == labels.long()
    flat = labels.reshape(-1)
    return (logits.reshape(-1, logits.shape[-1]).argmax(-1) == flat)[flat != IGNORED]


def _labels(batches: Sequence[Any], task: str | None) -> torch.Tensor:
    """One class for each label."""
    return torch.cat([most_probable(task, split(b)[1])[1].reshape(-1) for b in batches]).long()


def ridge(x: torch.Tensor, y: torch.Tensor, held: torch.Tensor, classes: int, strength: float = 0.01) -> torch.Tensor:
    """Classes that ridge regression on one-hot labels predicts for ``held``, in its dual form.

    The penalty is ``strength`` times the mean squared length of a centred row: a hundredth is enough where there are fewer rows than
    features.
    """
    mean = x.mean(0)
    centred = x - mean
    targets = nn.functional.one_hot(y, classes).double()
    gram = centred @ centred.t()
    penalty = strength * float(gram.diagonal().mean()) + 1e-12
    dual = torch.linalg.solve(
        gram + penalty * torch.eye(len(x), dtype=gram.dtype, device=x.device), targets - targets.mean(0)
    )
    scores: torch.Tensor = (held - mean) @ centred.t() @ dual + targets.mean(0)
    return scores.argmax(1)
