"""The same fine-tune under several seeds: what varies with the seed, and what stays the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from ..core.events import repeating
from ..core.formatting import as_given, describe_type, plural
from ..core.recipe import Recipe
from ..core.trace import Trace
from ..instruments.batches import spent
from ..seeds.executors import ExecutorOrFactory
from ..seeds.runs import Runs
from ..seeds.sprt import Seeds, check_seeds
from .data_order import reordered
from .finetune_arguments import OwnArguments
from .seeds_on_executor import SeedsOnExecutor


def finetune_seeds(
    finetune: Callable[..., Trace],
    seeds: Seeds,
    model: Any,
    batches: Any,
    recipe: Recipe,
    own: OwnArguments,
    executor: ExecutorOrFactory | None = None,
) -> Runs:
    """`Runs` of a fine-tune. The first seed is trained at once, so that errors in the input are raised at once.

    The first seed is the very run that ``finetune`` makes without ``seeds=``. For the others

    * a list or tuple of batches is read in another order (drawn from the seed), a DataLoader's own generator is re-seeded;
    * a function that makes the model is called under the seed; a module starts from the weights it has;
    * dropout, a shuffling DataLoader and all else that draws from torch, numpy or random follows the seed.

    :param executor: trains them, some ahead of the one that is judged; None: they are trained here, one after the other.
    :raises ValueError: batches that can be read only once.
    """
    check_seeds(seeds)
    for name, source in (("batches", batches), ("eval_batches", own.get("eval_batches"))):
        if read_once(source):
            raise ValueError(
                f"{name} is {describe_type(source)}, which can be read only once, but seeds={as_given(seeds)} reads it for every seed: "
                "pass a list, a DataLoader, or another iterable that starts anew"
            )

    def run(seed: int, steps: int) -> Trace:
        of_seed = dataclasses.replace(recipe, seed=seed, steps=steps)
        first = (seed, steps) == (recipe.seed, recipe.steps)
        with repeating(not first), reordered(batches, seed, recipe.seed) as source:
            trace = finetune(model, source, of_seed, **own)
        again = trace.remeasure
        if again is not None and not first:
            object.__setattr__(trace, "remeasure", lambda probe: in_order(again, probe, seed))
        return trace

    def in_order(again: Callable[[str], Trace], probe: str, seed: int) -> Trace:
        with reordered(batches, seed, recipe.seed):  # a loader's generator, when a probe is measured later
            return again(probe)

    elsewhere = None
    if executor is not None:
        elsewhere = SeedsOnExecutor(finetune, finetune_seeds, executor, seeds, model, batches, recipe, own)
    from_factory = not isinstance(model, nn.Module)
    own_scheduler = own.get("scheduler") is not None
    runs = Runs(
        elsewhere or run,
        recipe,
        seeds,
        varies=_varies(batches, from_factory),
        no_longer="the scheduler is yours, and made for this number of steps" if own_scheduler else None,
        same_start=not from_factory,
        cancel=None if elsewhere is None else elsewhere.cancel,
    )
    try:
        _ = runs[0]
    except BaseException:
        runs.cancel()
        raise
    return runs


def read_once(source: Any) -> bool:
    """Whether it can be read only once; what is no iterable at all is refused elsewhere."""
    if isinstance(source, (list, tuple)) or not isinstance(source, Iterable):
        return False
    return isinstance(source, Iterator) or spent(source)


def _varies(batches: Any, from_factory: bool) -> tuple[str, ...]:
    varying = ["initial weights"] if from_factory else []
    if isinstance(batches, (list, tuple)) and len(batches) > 1:
        varying.append(f"order of the {plural(len(batches), 'batch', 'batches')}")
    return (*varying, "dropout and whatever else draws from torch, numpy or random")
