"""Which parameters belong to the head, and the role of each parameter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..core import arguments
from ..core.formatting import as_given

#: Usual names of heads: in transformers, in torchvision, and in most people's own code.
KNOWN_HEADS = (
    "classifier",
    "pre_classifier",
    "score",
    "classification_head",
    "qa_outputs",
    "logits_proj",
    "lm_head",
    "cls",
    "head",
    "heads",
    "fc",
)


def find_head(model: nn.Module, head: str | Sequence[str] | None, argument: str = "head") -> tuple[str, ...]:
    """Prefixes of the head's parameter names: those given, else found by name, with all that is new beside a pretrained base, else what
    comes after the base model.

    :param argument: its name in errors.
    :raises ValueError: a prefix matches no parameter, or no head is given and none is found; lists the candidates.
    """
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    if head is not None:
        return _given(head, names, model, argument)
    # the shallowest occurrence: base_model.model.classifier.modules_to_save.default.weight under PEFT
    depths = {n: [i for i, s in enumerate(n.split(".")) if s in KNOWN_HEADS] for n in names}
    hits = {n: d[0] for n, d in depths.items() if d}
    if hits:
        top = min(hits.values())
        found = dict.fromkeys(".".join(n.split(".")[: d + 1]) for n, d in hits.items() if d == top)
        if not all(n.startswith(tuple(p + "." for p in found)) or n in found for n in names):
            together = (*found, *outside_head(model, tuple(found)))
            return tuple(dict.fromkeys(p for n in names for p in together if in_part(n, (p,))))
    base = _base_prefix(model)
    if base is not None:
        rest = dict.fromkeys(n.split(".")[0] for n in names if not n.startswith(base + "."))
        if rest:
            return tuple(rest)
    raise ValueError(
        f"head=None: no head found in {type(model).__name__} under any usual name "
        f"({', '.join(KNOWN_HEADS[:5])}, ...); pass head= with one or more of: {_candidates(model)}"
    )


def find_head_if_any(model: nn.Module, head: str | Sequence[str] | None) -> tuple[str, ...]:
    """The same of a model that may have no head, as one of embeddings: empty if none is given and none is found.

    :raises ValueError: a prefix matches no parameter.
    """
    if head is not None:
        return find_head(model, head)
    try:
        return find_head(model, None)
    except ValueError:
        return ()


def _given(head: str | Sequence[str], names: list[str], model: nn.Module, argument: str) -> tuple[str, ...]:
    expected = "a prefix of parameter names, or a list of prefixes"
    prefixes = arguments.texts(argument, head, expected)
    if not all(prefixes) or not prefixes:
        raise TypeError(f"{argument}={as_given(head)}: expected {expected}")
    prefixes = tuple(p.rstrip(".") for p in prefixes)
    for prefix in prefixes:
        if not any(in_part(n, (prefix,)) for n in names):
            raise ValueError(
                f"{argument}={as_given(prefix)}: no parameter of {type(model).__name__} starts with it; candidates: {_candidates(model)}"
            )
    return prefixes


def _candidates(model: nn.Module) -> str:
    tops = dict.fromkeys(n.split(".")[0] for n, _ in model.named_parameters())
    return ", ".join(list(tops)[:12]) or "none: the model has no parameters"


def _base_prefix(model: nn.Module) -> str | None:
    prefix = getattr(model, "base_model_prefix", "")
    if isinstance(prefix, str) and prefix and isinstance(getattr(model, prefix, None), nn.Module):
        return prefix
    for name, child in model.named_children():
        if _is_pretrained_model(child):
            return name
    return None


def outside_head(model: nn.Module, head: Sequence[str]) -> tuple[str, ...]:
    """Trainable modules with weight matrices that are neither in a pretrained base of transformers nor in the head.

    Embedding tables are left out (they come before the base), and so are adapters and PEFT's prompt encoders. Empty where there is no such
    base.
    """
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    in_head = [n for n in names if in_part(n, head)]
    library = [n for n, m in model.named_modules() if _is_pretrained_model(m)]
    bases = [n for n in library if n and not any(in_part(h, (n,)) for h in in_head)]
    if not bases:
        return ()
    kept = [n for n in names if in_part(n, (*head, *bases))]
    role = roles(model)
    found: dict[str, None] = {}
    for name, p in model.named_parameters():
        if name in kept or not p.requires_grad or role.get(name) != "matrix" or "." not in name:
            continue
        segments = name.split(".")[:-1]
        prefixes = (".".join(segments[:i]) for i in range(1, len(segments) + 1))
        found[next((m for m in prefixes if not any(in_part(k, (m,)) for k in kept)), ".".join(segments))] = None
    return tuple(n for n in found if not _is_prompt_encoder(model.get_submodule(n)))


def _is_prompt_encoder(module: nn.Module) -> bool:
    by_peft = any(type(m).__module__.startswith("peft.") for m in module.modules())
    return by_peft and not hasattr(module, "original_module")  # a wrapper of a module of the model's


def head_notes(model: nn.Module, head: Sequence[str]) -> tuple[str, ...]:
    """Notes for the trace on the head as given or found."""
    if not head:
        return (
            "no head was found under a usual name: all parameters are counted to the base; head= names a head's modules",
        )
    outside = outside_head(model, head)
    if not outside:
        return ()
    verb = "is" if len(outside) == 1 else "are"
    return (
        f"{', '.join(outside)} {verb} counted to the base, not to the head ({', '.join(head)}): head= names the head's modules",
    )


def _is_pretrained_model(module: nn.Module) -> bool:
    # by class name, so that transformers is not imported for other models
    return any(c.__name__ == "PreTrainedModel" for c in type(module).__mro__)


def in_part(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a parameter name lies under one of the prefixes."""
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def roles(model: nn.Module) -> dict[str, str]:
    """``matrix``, ``bias``, ``norm``, ``embedding`` or ``adapter`` for every parameter name."""
    found: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            segments = full.lower().split(".")
            if any(s.startswith(("lora_", "adapter")) for s in segments):
                found[full] = "adapter"
            elif "norm" in type(module).__name__.lower():
                found[full] = "norm"
            elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                found[full] = "embedding"
            else:
                # XLNet and Zamba have biases of two dimensions, one a head
                found[full] = "matrix" if p.dim() > 1 and not segments[-1].endswith("bias") else "bias"
    return found
