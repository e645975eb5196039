"""Does what was trained survive saving? Written as safetensors, overwritten, read back, compared."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...records.head import Outside, Reload
from ..batches import Reader
from ..parts import in_part
from ..state import perturbed, quiet, seed_everything

#: Parameters of a model above which only its head is written and read.
LARGE = 5_000_000
#: What every value is overwritten with before reading back: far from any trained weight, and harmless to norms and roots.
GARBAGE = 0.1


def reload(
    model: nn.Module,
    reader: Reader,
    batch: Any,
    head: Sequence[str],
    optimizer: torch.optim.Optimizer,
    buffers: Mapping[str, torch.Tensor],
) -> Reload:
    """Write and read the model (or, of a large one, its head), and look for what that leaves out.

    :param buffers: what the buffers were before the run.
    :raises ValueError: no logits, or logits that differ from one pass to the next.
    """
    logits = _logits(model, reader, batch)
    size = float((logits.double() ** 2).mean()) ** 0.5
    noise = float((logits - _logits(model, reader, batch)).abs().max())
    if not noise <= 1e-3 * size:
        raise ValueError("the logits differ from one pass in eval mode to the next, or are not finite")
    whole = sum(p.numel() for p in model.parameters()) <= LARGE
    everything = model.state_dict()
    state = {k: v for k, v in everything.items() if isinstance(v, torch.Tensor)}
    extra = {k: v for k, v in everything.items() if k not in state}  # get_extra_state() may give anything
    chosen = {k: v for k, v in state.items() if whole or in_part(k, head)}
    error, after = None, logits
    if any(not p.is_floating_point() for p in model.parameters()):
        raise ValueError("quantised parameters")
    data = _write(chosen)
    floats = [v for v in chosen.values() if v.is_floating_point()]
    touched = [*model.parameters(), *floats] if whole else floats
    with _same_objects(model), perturbed(touched):
        with torch.no_grad():
            for value in floats:
                value.fill_(GARBAGE)
        try:
            model.load_state_dict({**extra, **_read(data)}, strict=whole)
        except RuntimeError as problem:
            error = str(problem).strip()[:300]
        else:
            after = _logits(model, reader, batch)
    return Reload(
        scope="model" if whole else "head",
        tensors=len(chosen),
        difference=float((after - logits).abs().max()),
        size=size,
        missing=_missing(model, state),
        error=error,
        outside=_outside(model, reader, batch, optimizer),
        buffers=_lost_buffers(model, reader, batch, logits, state, buffers),
    )


def _logits(model: nn.Module, reader: Reader, batch: Any) -> torch.Tensor:
    with quiet(model):
        seed_everything(0)  # hashing attention draws numbers in eval mode, too
        found = reader.logits(batch)
    if found is None:
        raise ValueError("no logits")
    return found.detach().float().clone()


def _write(state: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    # tied weights are written twice: sharing memory is a matter of the file format, not of the training
    return save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()})


def _read(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)


@contextlib.contextmanager
def _same_objects(model: nn.Module) -> Iterator[None]:
    """A load_state_dict of the user's may put new tensors in: the optimizer would hold the old ones."""
    kept = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        yield
    finally:
        for module, parameters, buffers in kept:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _missing(model: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Trainable parameters that saving leaves out."""
    stored = {v.data_ptr() for v in _saved(model, state).values()}
    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_save", None) or ()]
    found = []
    for name, p in model.named_parameters():
        if p.requires_grad and p.numel():
            left_out = any(pattern.search(name) for pattern in ignored) and not _tied(model, name, p)
            if p.data_ptr() not in stored or left_out:
                found.append(name)
    return tuple(found)


def _tied(model: nn.Module, name: str, p: nn.Parameter) -> bool:
    return any(q is p and n != name for n, q in model.named_parameters(remove_duplicate=False))


def _saved(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """What the library itself would save, if it saves less than everything (PEFT: adapters and modules_to_save)."""
    if getattr(model, "peft_config", None):
        with contextlib.suppress(Exception):
            from peft import get_peft_model_state_dict  # type: ignore[import-not-found, unused-ignore]

            saved: Mapping[str, torch.Tensor] = get_peft_model_state_dict(model)
            return saved
    return state


def _outside(model: nn.Module, reader: Reader, batch: Any, optimizer: torch.optim.Optimizer) -> tuple[Outside, ...]:
    """Leaves of the graph of the logits that live on between passes and are no parameters of the model."""
    own = {id(p) for p in model.parameters()} | {id(b) for b in model.buffers()} | set(_tensors(batch))
    first = {id(v): v for v in _leaves(model, reader, batch) if id(v) not in own}
    if not first:
        return ()
    # an activation that was told to want a gradient is another tensor each time
    second = {id(v) for v in _leaves(model, reader, batch)}
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    return tuple(Outside(tuple(v.shape), i in held) for i, v in first.items() if i in second)


def _leaves(model: nn.Module, reader: Reader, batch: Any) -> list[torch.Tensor]:
    with quiet(model, grad=True):
        seed_everything(0)
        logits = reader.logits(batch)
        todo = [logits.grad_fn] if logits is not None and logits.grad_fn is not None else []
        seen, found = set(todo), []
        while todo:
            node = todo.pop()
            variable = getattr(node, "variable", None)
            if isinstance(variable, torch.Tensor):
                found.append(variable)
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    todo.append(following)
    return found


def _tensors(value: Any) -> Iterator[int]:
    if isinstance(value, torch.Tensor):
        yield id(value)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)


def _lost_buffers(
    model: nn.Module,
    reader: Reader,
    batch: Any,
    logits: torch.Tensor,
    state: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor],
) -> tuple[str, ...]:
    """Buffers outside the ``state_dict`` that the run changed, and without which the logits are others."""
    changed = {
        name: b
        for name, b in model.named_buffers()
        if name not in state
        and b.is_floating_point()
        and name in before
        and before[name].shape == b.shape
        and not torch.equal(before[name], b)
    }
    if not changed:
        return ()
    with perturbed(changed.values()), torch.no_grad():
        for name, buffer in changed.items():
            buffer.copy_(before[name])
        other = _logits(model, reader, batch)
    size = float((logits - logits.mean(0)).abs().max())
    return tuple(changed) if float((other - logits).abs().max()) > 0.01 * size else ()
