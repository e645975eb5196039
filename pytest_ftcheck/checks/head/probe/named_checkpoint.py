"""The checkpoint that the config of a library's base names, read from this machine: what nobody has to declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....instruments.base_model import BaseModel
from ....instruments.configs import config_of
from ....instruments.probe import LeftOut
from ....instruments.sharded_tensors import is_sharded
from .base_twin.bases import find_bases, outermost

FILE = "model.safetensors"
#: Share of the base's tensors that the file must hold under their names: else it is another kind of checkpoint.
NAMED = 0.9
#: Share of them that must be in the base bit for bit: else it was trained on since, or made from the config alone.
LOADED = 0.5
#: Values above which the file is not read: it takes longer than the short fine-tune (2 GB of float32).
LARGEST = 500_000_000


class NamedCheckpoint(Mapping[str, torch.Tensor]):
    """Name in the model -> tensor of the file, each read when it is asked for."""

    def __init__(self, base: BaseModel) -> None:
        from safetensors import safe_open

        #: As the config has it: a folder, or a name on the Hub.
        self.named = name_of(base.module)
        opened: Any = safe_open
        self._file = opened(str(file_of(base.module)), "pt")
        stored = set(self._file.keys())
        inside = (
            base.module.base_model_prefix if isinstance(getattr(base.module, "base_model_prefix", None), str) else ""
        )
        own = [n for n, _ in base.module.named_parameters()]
        keys = max(
            ({n: prefix + n for n in own if prefix + n in stored} for prefix in ("", f"{inside}.")),
            key=lambda k: len(k),
        )
        if not own or len(keys) < NAMED * len(own):
            raise LeftOut(f"the checkpoint that the config of {base.name or 'the model'} names has other names")
        self._keys = {base.prefix + n: key for n, key in keys.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._file.get_tensor(self._keys[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def named_checkpoint(model: nn.Module) -> NamedCheckpoint:
    """Of the first base inside that has one, if the base holds most of its values.

    :raises LeftOut: there is none on this machine, or the base does not start from it.
    """
    bases = _bases(model)
    if not bases:
        raise LeftOut("no pretrained values were declared (Intent(pretrained=...))")
    if any(map(is_sharded, bases[0].module.parameters())):
        raise LeftOut("the parameters are sharded over the ranks: the checkpoint that the config names is not read")
    if sum(p.numel() for p in bases[0].module.parameters()) > LARGEST:
        raise LeftOut(f"the checkpoint that the config names has more than {LARGEST:,} values")
    now = dict(model.named_parameters(remove_duplicate=False))
    try:
        found = NamedCheckpoint(bases[0])
        equal = sum(_equal(now[n].detach(), value) for n, value in found.items())
    except LeftOut:
        raise
    except Exception as error:  # a file that cannot be read, tensors without values: nothing was declared
        raise LeftOut(f"the checkpoint that the config names cannot be read: {type(error).__name__}") from error
    if equal < LOADED * len(found):
        raise LeftOut(
            "most tensors differ from the checkpoint that the config names: trained since, or made from the config"
        )
    return found


def stored_values(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The values that the file has for parameters of these names, one at a time."""
    stored = NamedCheckpoint(_bases(model)[0])
    return ((name, stored[name]) for name in names)


def _bases(model: nn.Module) -> list[BaseModel]:
    return [b for b in outermost(find_bases(model)) if b.library and file_of(b.module) is not None]


def name_of(module: nn.Module) -> str:
    """``config._name_or_path``, or nothing."""
    named = getattr(config_of(module), "_name_or_path", None)
    return named if isinstance(named, str) else ""


def file_of(module: nn.Module) -> Path | None:
    """The file of weights that ``config._name_or_path`` leads to: in a folder, or in the Hub's cache. Nothing is downloaded."""
    named = name_of(module)
    if not named:
        return None
    if (Path(named) / FILE).is_file():
        return Path(named) / FILE
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(named, FILE)
    except (ImportError, ValueError):  # no name that a repository can have
        return None
    return Path(found) if isinstance(found, str) else None


def _equal(value: torch.Tensor, stored: torch.Tensor) -> bool:
    return value.shape == stored.shape and bool(torch.equal(value, stored.to(value.device, value.dtype)))
