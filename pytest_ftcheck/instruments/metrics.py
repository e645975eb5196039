"""Metrics before and after a run, with their majority-class baseline and permutation p-values."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..core.arguments import as_called
from ..core.formatting import as_given
from ..core.observations import Metric, Ranking
from .ranking import ranking
from .task_readers.class_probabilities import most_probable
from .task_readers.registered import standard_loss

MetricFn = Callable[[torch.Tensor, torch.Tensor], float]
#: Label permutations for the default metrics, and seconds that those of a user's metric may take.
PERMUTATIONS = 499
SECONDS = 0.3
#: Numbers that are processed at once: 16 MB.
CELLS = 2_000_000
#: Permutations of a user's metric, at least: fewer cannot reach p = 0.01.
LEAST = 99


def predictions(task: str | None, logits: torch.Tensor, cut: float = 0.0) -> torch.Tensor:
    """Predicted class of each row (``single_label``), tags on or off (``multi_label``), the classes' probabilities
    (``class_probabilities``), or values (``regression``).

    :param cut: an output above it means yes: 0 for logits, see `cut_of`.
    """
    if task == "multi_label":
        return (logits > cut).long()
    if task == "class_probabilities":
        return logits.double().softmax(-1)
    if task == "regression":
        return logits.reshape(logits.shape[0], -1).squeeze(-1)
    return (logits.reshape(-1) > cut).long() if logits.shape[-1] == 1 or logits.dim() == 1 else logits.argmax(-1)


def cut_of(*outputs: torch.Tensor) -> float:
    """The output above which a single one means yes: 0.5 for probabilities (a model with a sigmoid, for ``BCELoss``), 0 for logits.

    Outputs count as probabilities if they are between 0 and 1 every time, and the last ones are on both sides of 0.5. Logits
    between 0 and 1 over the whole run would predict yes for every row, before and after.

    >>> cut_of(torch.tensor([0.45, 0.55]), torch.tensor([0.1, 0.9])), cut_of(torch.tensor([0.1, 0.2]), torch.tensor([-3.0, 2.0]))
    (0.5, 0.0)
    """
    if not outputs or not all(x.numel() and bool(((x >= 0) & (x <= 1)).all()) for x in outputs):
        return 0.0
    return 0.5 if bool((outputs[-1] < 0.5).any() and (outputs[-1] > 0.5).any()) else 0.0


def accuracy(guess: np.ndarray, truth: np.ndarray) -> float:
    """Share of correct predictions (of rows, or of tags)."""
    return float((guess == truth).mean())


def _confusion(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    classes = int(max(guess.max(initial=0), truth.max(initial=0))) + 1
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


def macro_precision(guess: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision of the classes that occur; 0 for a class that is never predicted."""
    return _macro(guess, truth, axis=0)


def macro_recall(guess: np.ndarray, truth: np.ndarray) -> float:
    """Mean recall of the classes that occur."""
    return _macro(guess, truth, axis=1)


def _macro(guess: np.ndarray, truth: np.ndarray, axis: int) -> float:
    if truth.ndim == 2:  # tags: the "on" class of each column
        return float(np.mean([_share(g, t, axis) for g, t in zip(guess.T, truth.T, strict=True) if t.any()] or [0.0]))
    hits, predicted, actual = _counts(guess, truth)
    totals = predicted if axis == 0 else actual
    shares = np.divide(hits, totals, out=np.zeros(len(hits)), where=totals > 0)
    return float(shares[actual > 0].mean())


def _counts(guess: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class the right predictions, all predictions, and the rows; a table of classes by classes may not fit into memory."""
    classes = int(max(guess.max(initial=0), truth.max(initial=0))) + 1
    hits, predicted, actual = (np.bincount(x, minlength=classes) for x in (truth[guess == truth], guess, truth))
    return hits, predicted, actual


def _share(guess: np.ndarray, truth: np.ndarray, axis: int) -> float:
    base = guess if axis == 0 else truth
    return float((guess & truth).sum() / base.sum()) if base.sum() else 0.0


def r_squared(guess: np.ndarray, truth: np.ndarray) -> float:
    """Share of the variance explained; 0 for predicting the mean."""
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((guess - truth) ** 2).sum()) / spread if spread > 0 else float("nan")


def correlation(guess: np.ndarray, truth: np.ndarray) -> float:
    """Pearson's correlation of predicted and true probabilities, each class around its mean; 0 for any constant prediction.

    A temperature in the loss, or in what made the labels, does little to it.
    """
    g, t = guess - guess.mean(0), truth - truth.mean(0)
    size = float(np.sqrt((g**2).sum() * (t**2).sum()))
    return float((g * t).sum()) / size if size > 1e-12 else 0.0 * size


def top_accuracy(guess: np.ndarray, truth: np.ndarray) -> float:
    """Share of rows whose most probable class is predicted to be that."""
    return float((guess.argmax(-1) == truth.argmax(-1)).mean())


#: Metrics of single classes are computed of so many classes at most, and what each is taken for.
MOST_CLASSES, MOST_TAKEN = 10, 50


def references(task: str, logits: torch.Tensor, labels: torch.Tensor, cut: float = 0.0) -> dict[str, float]:
    """Common metrics, for comparison with one whose formula is unknown. Rows labelled -100 are left out.

    :param cut: as for `predictions`.
    """
    logits = logits.float()
    out = {"loss": float(standard_loss(task, logits, labels))}
    hard, labels = most_probable(task, labels)
    task = hard or task
    if task == "single_label":
        keep = labels.reshape(-1) != -100
        flat = logits.reshape(-1, logits.shape[-1]) if logits.dim() > 1 else logits[:, None]
        guess = predictions(task, flat, cut)[keep].numpy()
        truth = labels.reshape(-1)[keep].long().numpy()
    elif task == "multi_label":
        guess, truth = predictions(task, logits, cut).numpy(), labels.long().numpy()
        out["exact match"] = float((guess == truth).all(1).mean())
    else:
        truth = labels.reshape(len(labels), -1).squeeze(-1).double().numpy()
        guess = predictions(task, logits).double().numpy().reshape(truth.shape)
        squares = float(((guess - truth) ** 2).mean())
        out |= {"MSE": squares, "RMSE": squares**0.5, "MAE": float(abs(guess - truth).mean())}
        out["R squared"] = r_squared(guess, truth)
        if truth.ndim == 1 and guess.std() > 0 and truth.std() > 0:
            out["correlation"] = float(np.corrcoef(guess, truth)[0, 1])
        return out
    if not len(truth):
        return {}
    precision, recall = macro_precision(guess, truth), macro_recall(guess, truth)
    out |= {"accuracy": accuracy(guess, truth), "macro precision": precision, "macro recall": recall}
    out |= _f1(guess, truth)
    return out


def _f1(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Macro, weighted and micro F1; of a few classes also each one's F1, precision and recall."""
    if truth.ndim == 2:
        hits, predicted, actual = (guess & truth).sum(0), guess.sum(0), truth.sum(0)
    else:
        hits, predicted, actual = _counts(guess, truth)
    total = predicted + actual
    each = np.divide(2 * hits, total, out=np.zeros(len(hits)), where=total > 0)
    out = {"macro F1": float(each[total > 0].mean()) if (total > 0).any() else 0.0}
    if actual.sum():
        out["weighted F1"] = float((each * actual).sum() / actual.sum())
    if truth.ndim == 2:
        out["micro F1"] = float(2 * hits.sum() / max(1, total.sum()))
    elif len(hits) <= MOST_CLASSES:
        for c in range(len(hits) - 1, -1, -1):  # of two classes, class 1 is usually the one of interest
            out[f"F1 of class {c}"] = float(each[c])
            out[f"recall of class {c}"] = float(hits[c] / max(1, actual[c]))
            out[f"precision of class {c}"] = float(hits[c] / max(1, predicted[c]))
    return out


_CLASSIFICATION = {"accuracy": accuracy, "precision": macro_precision, "recall": macro_recall}
_PROBABILITIES = {"correlation": correlation, "accuracy": top_accuracy}
_REGRESSION = {"r_squared": r_squared}
#: Tasks whose predictions are classes, and no numbers.
_OF_CLASSES = ("single_label", "multi_label")


def _default_metrics(task: str) -> Mapping[str, Callable[[np.ndarray, np.ndarray], float]]:
    """The default metrics of a task."""
    if task == "class_probabilities":
        return _PROBABILITIES
    return _REGRESSION if task == "regression" else _CLASSIFICATION


def measure(
    task: str | None,
    first: torch.Tensor,
    last: torch.Tensor,
    labels: torch.Tensor,
    source: str,
    custom: Mapping[str, MetricFn] | None = None,
) -> tuple[Metric, ...]:
    """Metrics of the logits before and after the run on the same rows.

    :param first: logits before, ``(rows, ...)``.  :param last: logits after.  :param labels: as in the batches.
    :param custom: the user's metrics, ``(logits, labels) -> float``, greater is better; None: the default ones.
    """
    if task == "class_probabilities":  # of a row, or of a token
        first, last, labels = (x.reshape(-1, x.shape[-1]) for x in (first, last, labels))
    keep = (
        labels != -100
        if task == "single_label"
        else torch.ones(labels.shape[:1], dtype=torch.bool, device=labels.device)
    )
    if task == "single_label" and labels.dim() > 1 and first.dim() > labels.dim():  # one label a token
        first, last, labels = (x.reshape(-1, *x.shape[labels.dim() :])[keep.reshape(-1)] for x in (first, last, labels))
    elif task == "single_label":
        first, last, labels = (x[keep.reshape(-1)] for x in (first, last, labels.reshape(-1)))
    if not len(labels):
        return ()
    out = [_user_metric(name, fn, task, first, last, labels, source) for name, fn in (custom or {}).items()]
    if any(_unmoved(m) for m in out) and (ranked := _ranking_where_blind(task, first, last, labels)) is not None:
        out = [dataclasses.replace(m, ranking=ranked) if _unmoved(m) else m for m in out]
    if task is not None and custom is None:
        out += _standard_metrics(task, first, last, labels, source)
    return tuple(out)


def _unmoved(metric: Metric) -> bool:
    """Whether a metric is the same whatever the labels' order: it sees no more than how often each class is predicted."""
    return metric.p_value == 1.0 and metric.deviations is None


def _ranking_where_blind(
    task: str | None, first: torch.Tensor, last: torch.Tensor, labels: torch.Tensor
) -> Ranking | None:
    """How the outputs rank the rows, where every row has the same prediction."""
    if task not in _OF_CLASSES:
        return None
    after = predictions(task, last, cut_of(first, last)).numpy()
    return ranking(task, first, last, labels.long().numpy()) if bool((after == after[:1]).all()) else None


def _standard_metrics(
    task: str, first: torch.Tensor, last: torch.Tensor, labels: torch.Tensor, source: str
) -> list[Metric]:
    truth = _truth(task, labels)
    cut = cut_of(first, last)
    before, after = predictions(task, first, cut).numpy(), predictions(task, last, cut).numpy()
    majority = _majority(task, truth)
    permuted = _permuted_scores(task, after, truth)
    classes = int(max(truth.max(), after.max())) + 1 if task == "single_label" else 0
    taken = taken_for(after, truth) if 0 < classes <= MOST_TAKEN else ()
    predicted, actual = (tuple(np.bincount(x, minlength=classes).tolist()) if classes else () for x in (after, truth))
    blind = task in _OF_CLASSES and bool((after == after[:1]).all())
    ranked = ranking(task, first, last, truth) if blind else None
    out = []
    for name, fn in _default_metrics(task).items():
        score = fn(after, truth)
        out.append(
            Metric(
                name=name,
                first=fn(before, truth),
                last=score,
                rows=len(truth),
                source=source,
                baseline=fn(majority, truth),
                p_value=_p_value(score, permuted[name]),
                predicted=predicted,
                actual=actual,
                taken_for=taken,
                deviations=_deviations(score, permuted[name]),
                ranking=ranked,
            )
        )
    return out


def _truth(task: str, labels: torch.Tensor) -> np.ndarray:
    """Labels as they are compared with `predictions`."""
    if task == "class_probabilities":
        return labels.double().numpy()
    return (labels.reshape(len(labels), -1).squeeze(-1).double() if task == "regression" else labels.long()).numpy()


def taken_for(guess: np.ndarray, truth: np.ndarray) -> tuple[tuple[int, float], ...]:
    """For each class, the one that most of its rows are predicted as, and their share."""
    table = _confusion(guess, truth)
    return tuple((int(row.argmax()), round(float(row.max() / max(1, row.sum())), 4)) for row in table)


def _permuted_scores(task: str, guess: np.ndarray, truth: np.ndarray) -> dict[str, list[float]]:
    """The scores of each default metric for `PERMUTATIONS` permutations of the labels."""
    rng = np.random.default_rng(0)
    out: dict[str, list[float]] = {name: [] for name in _default_metrics(task)}
    if task != "single_label":
        for _ in range(PERMUTATIONS):
            shuffled = rng.permutation(truth)
            for name, fn in _default_metrics(task).items():
                out[name].append(fn(guess, shuffled))
        return out
    # only classes that have rows count; how often each is predicted is the same for all permutations
    present, actual = np.unique(truth, return_counts=True)
    predicted = np.bincount(guess, minlength=int(present[-1]) + 1)[present]
    place = np.searchsorted(present, guess)
    at_once = max(1, CELLS // len(truth))
    for begin in range(0, PERMUTATIONS, at_once):
        count = min(at_once, PERMUTATIONS - begin)
        right = np.stack([rng.permutation(truth) for _ in range(count)]) == guess
        cells = (np.arange(count)[:, None] * len(present) + place)[right]
        hits = np.bincount(cells, minlength=count * len(present)).reshape(count, len(present))
        out["accuracy"] += (hits.sum(1) / len(truth)).tolist()
        for name, totals in (("precision", predicted), ("recall", actual)):
            out[name] += (hits / np.maximum(totals, 1)).mean(1).tolist()
    return out


def _majority(task: str, truth: np.ndarray) -> np.ndarray:
    """The best constant prediction: the majority class, each tag's majority, the mean distribution, or the mean."""
    if task == "class_probabilities":
        return np.broadcast_to(truth.mean(0), truth.shape)
    if task == "regression":
        return np.full_like(truth, truth.mean())
    if task == "multi_label":
        return np.broadcast_to((truth.mean(0) > 0.5).astype(truth.dtype), truth.shape)
    return np.full_like(truth, np.bincount(truth).argmax())


def _user_metric(
    name: str,
    fn: MetricFn,
    task: str | None,
    first: torch.Tensor,
    last: torch.Tensor,
    labels: torch.Tensor,
    source: str,
) -> Metric:
    before, began = _value(name, fn, first, labels), time.perf_counter()
    after = _value(name, fn, last, labels)
    each = max(time.perf_counter() - began, 1e-6)
    baseline = None
    if task in (*_OF_CLASSES, "class_probabilities", "regression"):
        baseline = _value(name, fn, _majority_logits(task, last, labels), labels)
    p = deviations = None
    if (count := min(PERMUTATIONS, int(SECONDS / each))) >= LEAST:
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(labels), generator=generator, device="cpu") for _ in range(count)]
        permuted = [_value(name, fn, last, labels[order]) for order in orders]
        p, deviations = _p_value(after, permuted), _deviations(after, permuted)
    return Metric(
        name, before, after, len(labels), source, baseline, p, deviations=deviations, outputs_finite=_finite(last)
    )


def _finite(outputs: torch.Tensor) -> bool:
    """No NaN and no infinity; negative infinity stands for classes that cannot be chosen."""
    return not bool((outputs.isnan() | (outputs == torch.inf)).any())


def _majority_logits(task: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # a copy: of tags it cannot be written to
    majority = torch.from_numpy(np.array(_majority(task, _truth(task, labels))))
    if task == "class_probabilities":
        majority = majority.clamp_min(1e-12).log()
    if task in ("class_probabilities", "regression"):
        return majority.to(logits.dtype).reshape(logits.shape)
    if task == "multi_label" or logits.shape[-1] == 1 or logits.dim() == 1:
        return (2.0 * majority - 1).to(logits.dtype).reshape(logits.shape)
    return torch.nn.functional.one_hot(majority, logits.shape[-1]).to(logits.dtype)


def _value(name: str, fn: MetricFn, logits: torch.Tensor, labels: torch.Tensor) -> float:
    of = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
    argument = f"metrics[{name!r}]"
    try:
        value = fn(logits, labels)
    except Exception as error:
        raise ValueError(as_called(argument, fn, error, of, "(logits, labels) -> float")) from error
    try:
        return float(value)
    except Exception as error:
        raise ValueError(f"{argument} returned {as_given(value)} for {of}: expected a number") from error


def _deviations(score: float, permuted: list[float]) -> float | None:
    """Score minus the permutations' mean, over their standard deviation; None where they are all equal, or not finite."""
    spread = float(np.std(permuted))
    value = (score - float(np.mean(permuted))) / spread if spread > 1e-12 else math.nan
    return value if math.isfinite(value) else None


def _p_value(score: float, permuted: list[float]) -> float:
    """Share of the permutations that score at least as high, the observed one included (Phipson and Smyth 2010)."""
    return (1 + sum(value >= score - 1e-12 for value in permuted)) / (1 + len(permuted))
