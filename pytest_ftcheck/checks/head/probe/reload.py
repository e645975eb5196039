"""Writes the model as safetensors, overwrites it, reads it back and compares the logits; finds what is not saved."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ....instruments.global_state import seed_everything
from ....instruments.graph_leaves import leaves_of
from ....instruments.kept_attributes import refill
from ....instruments.parameter_roles import in_part
from ....instruments.reader import Reader
from ....instruments.undisturbed import modules_of, named_tensors_of, perturbed, quiet
from ....instruments.undo import Undo
from ..record import Outside, Reload

#: Parameters of a model above which only its head is written and read; and tensors, for `load_state_dict` looks through all names once
#: for each child of a module: 5,000 tensors in one list took as long to load as four training steps.
LARGE, MANY_TENSORS = 5_000_000, 2_000
#: Every value is overwritten with this before reading back: unlike trained weights, and safe for norms and roots.
GARBAGE = 0.1
#: Fewer numbers cannot be recognised as random.
LEAST_NUMBERS = 32
#: Libraries that rebuild what they do not save from their settings.
LIBRARIES = ("torch", "transformers", "peft", "timm", "torchvision", "sentence_transformers")


def reload(
    model: nn.Module,
    reader: Reader,
    batch: Any,
    head: Sequence[str],
    optimizer: torch.optim.Optimizer,
    buffers: Mapping[str, torch.Tensor],
    recalling: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Reload:
    """Write and read the model (or, of a large one, its head), and find what that leaves out.

    :param buffers: values before the run of the buffers and of the other tensors that are not saved.
    :param recalling: inside, what stands before the head is not computed again; of a large model nothing else is written.
    :raises ValueError: no logits, or logits that differ from one pass to the next.
    """
    sizes = [p.numel() for p in model.parameters()]
    whole = sum(sizes) <= LARGE and len(sizes) <= MANY_TENSORS
    with contextlib.nullcontext() if whole else recalling():
        logits = _logits(model, reader, batch)
        steady = _steady(model, reader, batch, logits)
    size = float((logits.double() ** 2).mean()) ** 0.5
    if not steady:
        raise ValueError("the logits differ from one pass in eval mode to the next, or are not finite")
    everything = model.state_dict()
    state = {k: v for k, v in everything.items() if isinstance(v, torch.Tensor)}
    extra = {k: v for k, v in everything.items() if k not in state}  # get_extra_state() may return anything
    chosen = {k: v for k, v in state.items() if whole or in_part(k, head)}
    error, after = None, logits
    if any(not p.is_floating_point() for p in model.parameters()):
        raise ValueError("quantised parameters")
    if any(v.is_inference() for v in chosen.values()):
        raise ValueError("buffers made under torch.inference_mode() cannot be loaded into")
    data = _write(chosen)
    with Undo(_TensorTables(model)), perturbed(_tensors_of(model, None if whole else chosen)):
        _overwrite(model, chosen)
        try:
            model.load_state_dict({**extra, **_read(data)}, strict=whole)
        except RuntimeError as problem:
            error = str(problem).strip()[:300]
        else:
            with contextlib.nullcontext() if whole else recalling():
                after = _logits(model, reader, batch)
    lost, drawn = _lost(model, reader, batch, state, buffers)
    return Reload(
        scope="model" if whole else "head",
        tensors=len(chosen),
        difference=float((after - logits).abs().max()),
        size=size,
        missing=_missing(model, state),
        error=error,
        outside=_outside(model, reader, batch, optimizer),
        buffers=lost,
        drawn=drawn,
    )


def _logits(model: nn.Module, reader: Reader, batch: Any) -> torch.Tensor:
    with quiet(model):
        seed_everything(0)  # hashing attention draws numbers in eval mode, too
        found = reader.logits(batch)
    if found is None:
        raise ValueError("no logits")
    return found.detach().float().clone()


def _steady(model: nn.Module, reader: Reader, batch: Any, logits: torch.Tensor) -> bool:
    """Whether the next pass gives these logits again."""
    noise = float((logits - _logits(model, reader, batch)).abs().max())
    size = float((logits.double() ** 2).mean()) ** 0.5
    return bool(noise <= 1e-3 * size)


def _write(state: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    # tied weights are written twice: shared memory is a matter of the file format, not of the training
    return save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()})


def _read(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)


class _TensorTables:
    """The parameters and buffers of all modules: a custom load_state_dict() replaces them, and the optimizer holds the old ones."""

    def __init__(self, model: nn.Module) -> None:
        self.tables = [(t, dict(t)) for m in modules_of(model) for t in (m._parameters, m._buffers)]

    def restore(self) -> None:
        """The same objects as before."""
        for table, items in self.tables:
            refill(table, items)


def _tensors_of(model: nn.Module, chosen: Mapping[str, torch.Tensor] | None) -> list[torch.Tensor]:
    """The model's own parameters and buffers; only those whose memory is among the chosen tensors'."""
    own = [t for table in ("_parameters", "_buffers") for _, t in named_tensors_of(model, table)]
    if chosen is None:
        return own
    places = {_place(v) for v in chosen.values()} - {None}
    return [t for t in own if _place(t) in places]


def _place(tensor: torch.Tensor) -> int | None:
    return tensor.data_ptr() if tensor.layout is torch.strided and tensor.device.type != "meta" else None


@torch.no_grad()
def _overwrite(model: nn.Module, chosen: Mapping[str, torch.Tensor]) -> None:
    """Garbage in all that was written to the file. To be called in `perturbed`: a tensor that has no memory lent is left alone."""
    before = {_place(v) for v in chosen.values()}
    lent = {_place(t) for t in _tensors_of(model, None)} - before - {None}
    for name, value in model.state_dict().items():
        if name in chosen and value.is_floating_point() and _place(value) in lent:
            value.fill_(GARBAGE)


def _missing(model: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Trainable parameters that saving leaves out."""
    stored = {v.data_ptr() for v in _saved(model, state).values()}
    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_save", None) or ()]
    found = []
    for name, p in model.named_parameters():
        if p.requires_grad and p.numel():
            left_out = any(pattern.search(name) for pattern in ignored) and not _tied(model, name, p)
            if left_out or (p.data_ptr() not in stored and not _saved_as_another(model, state, p)):
                found.append(name)
    return tuple(found)


def _saved_as_another(model: nn.Module, state: Mapping[str, torch.Tensor], p: nn.Parameter) -> bool:
    """Whether what is saved is computed from a parameter (PEFT's prompts from their encoder): then it changes when the parameter does."""

    def saved() -> dict[str, torch.Tensor]:
        with quiet(model):
            return {k: v.detach().clone() for k, v in _saved(model, state).items()}

    before = saved()
    with perturbed([p]), torch.no_grad():
        p.add_(1)
        after = saved()
    return any(k not in after or not torch.equal(v, after[k]) for k, v in before.items())


def _tied(model: nn.Module, name: str, p: nn.Parameter) -> bool:
    return any(q is p and n != name for n, q in model.named_parameters(remove_duplicate=False))


def _saved(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The state that the library saves, if not all of it (PEFT: all adapters and their modules_to_save)."""
    if adapters := getattr(model, "peft_config", None):
        with contextlib.suppress(Exception):
            from peft import get_peft_model_state_dict  # type: ignore[import-not-found, unused-ignore]

            saved = {a: get_peft_model_state_dict(model, adapter_name=a) for a in adapters}
            return {f"{a}.{name}": value for a, found in saved.items() for name, value in found.items()}
    return state


def _outside(model: nn.Module, reader: Reader, batch: Any, optimizer: torch.optim.Optimizer) -> tuple[Outside, ...]:
    """Leaves of the logits' graph that persist between passes and are not parameters of the model."""
    own = {id(p) for p in model.parameters()} | {id(b) for b in model.buffers()} | set(_tensors(batch))
    first = {id(v): v for v in _leaves(model, reader, batch) if id(v) not in own}
    if not first:
        return ()
    # an activation with requires_grad_() is another tensor each time
    second = {id(v) for v in _leaves(model, reader, batch)}
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    return tuple(Outside(tuple(v.shape), i in held) for i, v in first.items() if i in second)


def _leaves(model: nn.Module, reader: Reader, batch: Any) -> list[torch.Tensor]:
    with quiet(model, grad=True):
        seed_everything(0)
        return leaves_of(reader.logits(batch))


def _tensors(value: Any) -> Iterator[int]:
    if isinstance(value, torch.Tensor):
        yield id(value)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)


def unsaved(model: nn.Module) -> dict[str, torch.Tensor]:
    """Floating-point tensors that modules keep and `state_dict` lacks: buffers with ``persistent=False`` and plain attributes.

    Those of library modules are left out: the library rebuilds them from its settings.
    """
    found: dict[str, torch.Tensor] = {}
    seen = {id(p) for p in model.parameters()}
    for prefix, module in model.named_modules():
        if type(module).__module__.split(".")[0] in LIBRARIES:
            continue
        kept = {n: b for n, b in module._buffers.items() if n in module._non_persistent_buffers_set}
        kept |= {n: v for n, v in vars(module).items() if isinstance(v, torch.Tensor) and v.is_leaf}
        for name, value in kept.items():
            if value is not None and value.is_floating_point() and not value.requires_grad and id(value) not in seen:
                seen.add(id(value))
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def _lost(
    model: nn.Module,
    reader: Reader,
    batch: Any,
    state: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensors outside the ``state_dict`` that the logits depend on: those that the run changed; those drawn at random."""
    now = {n: b for n, b in model.named_buffers() if n not in state and b.is_floating_point()} | unsaved(model)
    changed, drawn = [], []
    for name, value in now.items():
        if name not in before or before[name].shape != value.shape:
            continue
        if not torch.equal(before[name], value):
            changed.append((name, value, before[name]))
        elif name in unsaved(model) and looks_random(value):
            drawn.append((name, value, value.flatten().roll(1).reshape(value.shape)))
    if not changed and not drawn:
        return (), ()
    logits = _logits(model, reader, batch)
    # of a large model, what stands before the head was not computed twice so far
    if not _steady(model, reader, batch, logits):
        return (), ()
    return (
        tuple(n for n, _, _ in changed) if _change_logits(model, reader, batch, logits, changed) else (),
        tuple(n for n, value, other in drawn if _change_logits(model, reader, batch, logits, [(n, value, other)])),
    )


def _change_logits(
    model: nn.Module,
    reader: Reader,
    batch: Any,
    logits: torch.Tensor,
    swaps: Sequence[tuple[str, torch.Tensor, torch.Tensor]],
) -> bool:
    """Whether the logits change with other values in these tensors."""
    if not swaps:
        return False
    with perturbed(value for _, value, _ in swaps), torch.no_grad():
        for _, value, other in swaps:
            value.copy_(other)
        found = _logits(model, reader, batch)
    size = float((logits - logits.mean(0)).abs().max())
    return float((found - logits).abs().max()) > 0.01 * size


def looks_random(values: torch.Tensor) -> bool:
    """Whether the numbers look independent: all different, and neighbours uncorrelated along every dimension.

    Tables of positions, frequencies and masks are smooth or repeat themselves. The bound is four standard errors of a correlation.

    >>> looks_random(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    True
    >>> looks_random(torch.arange(96.0).reshape(3, 32)), looks_random(torch.ones(96))
    (False, False)
    """
    v = values.detach().double().cpu()
    if v.numel() < LEAST_NUMBERS or not bool(torch.isfinite(v).all()) or len(torch.unique(v)) < 0.99 * v.numel():
        return False
    for dim in range(v.dim()):
        if v.shape[dim] < 2:
            continue
        for lag in (1, 2):  # sine and cosine alternate in a table of positions
            if v.shape[dim] <= lag:
                continue
            first, second = v.narrow(dim, 0, v.shape[dim] - lag), v.narrow(dim, lag, v.shape[dim] - lag)
            a, b = (x.flatten() - v.mean() for x in (first, second))
            size = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
            if not size > 0 or abs(float(a @ b / size)) > 4 / len(a) ** 0.5:
                return False
    return True
