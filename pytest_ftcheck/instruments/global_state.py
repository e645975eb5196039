"""What belongs to the whole process: random states, torch's switches, and hooks on all modules and optimizers."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._device
import torch.utils.deterministic

from ..core.seeding import reseed
from .inference import end_inference_modes, open_inference_modes
from .kept_attributes import refill
from .undo import Undo

_Get = Callable[[], Any]
_Set = Callable[[Any], Any]


def _attribute(owner: Any, name: str) -> tuple[_Get, _Set]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


def _print_options() -> tuple[_Get, _Set]:
    options = torch._tensor_str.PRINT_OPTS
    return (lambda: dict(vars(options))), (lambda was: vars(options).update(was))


def _of_numpy(get: str, set_: str) -> tuple[_Get, _Set]:
    """A switch of numpy's, by the names of its functions; nothing where numpy is not imported."""

    def read() -> Any:
        numpy = sys.modules.get("numpy")
        return getattr(numpy, get)() if numpy else None

    def write(was: Any) -> None:
        if was is not None:
            getattr(sys.modules["numpy"], set_)(**was)

    return read, write


def _called(owner: Any, get: str, set_: str) -> tuple[_Get, _Set]:
    """A switch by the names of its functions, which are looked up when they are called: not each version of torch has them."""
    return lambda: getattr(owner, get)(), lambda was: getattr(owner, set_)(was)


#: Half of it is a denormal number.
_SMALLEST_NORMAL = sys.float_info.min


def _flushes_denormals() -> bool:
    """torch has no getter. The switch is one of the processor, so python's own numbers show it."""
    return _SMALLEST_NORMAL / 2 == 0


def _autocast(device: str) -> tuple[_Get, _Set]:
    def get() -> Any:
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def set_(was: Any) -> None:
        torch.set_autocast_enabled(device, was[0])
        torch.set_autocast_dtype(device, was[1])

    return get, set_


def _deterministic() -> Any:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _switches() -> list[tuple[_Get, _Set]]:
    """How each of torch's switches is read and set; those that this version of torch has."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    found: list[tuple[_Get, _Set]] = [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (_deterministic, lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1])),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda was: torch.autograd.set_detect_anomaly(*was),
        ),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (lambda: torch.utils._device.CURRENT_DEVICE, torch.set_default_device),
        (torch.is_warn_always_enabled, torch.set_warn_always),
        *(_attribute(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
        _attribute(mkldnn, "enabled"),
        *(
            _attribute(cuda.matmul, name)
            for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
        ),
        (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        (cuda.math_sdp_enabled, cuda.enable_math_sdp),
        (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
        _autocast("cpu"),
        _autocast("cuda"),
        _print_options(),
        _of_numpy("geterr", "seterr"),
        # newer names of the precisions; torch refuses the older ones once these were used
        *(_attribute(owner, "fp32_precision") for owner in (torch.backends, cuda.matmul, cudnn, mkldnn)),
    ]
    return [pair for pair in (*found, *_rarer_switches()) if _read(pair[0]) is not _UNREADABLE]


def _rarer_switches() -> list[tuple[_Get, _Set]]:
    """Those that not each version of torch has are looked up when they are read."""
    distribution: Any = torch.distributions.Distribution
    invariants: Any = torch.sparse.check_sparse_tensor_invariants
    parts = [
        getattr(owner, part)
        for owner in (torch.backends.mkldnn, torch.backends.cudnn)
        for part in ("matmul", "conv", "rnn")
        if hasattr(owner, part)
    ]
    conversion = ("swap_module_params_on_conversion", "overwrite_module_params_on_conversion")
    return [
        (_flushes_denormals, torch.set_flush_denormal),
        _of_numpy("get_printoptions", "set_printoptions"),
        _called(torch.autograd, "is_multithreading_enabled", "set_multithreading_enabled"),
        _called(torch, "is_autocast_cache_enabled", "set_autocast_cache_enabled"),
        (lambda: distribution._validate_args, lambda was: distribution.set_default_validate_args(was)),
        *(_called(torch.__future__, f"get_{name}", f"set_{name}") for name in conversion),
        _called(torch._C, "_get_graph_executor_optimize", "_set_graph_executor_optimize"),
        _called(torch.backends.cuda, "cudnn_sdp_enabled", "enable_cudnn_sdp"),
        (lambda: invariants.is_enabled(), lambda was: invariants.enable() if was else invariants.disable()),
        *(_attribute(part, "fp32_precision") for part in parts),
    ]


_UNREADABLE = object()


def _read(get: _Get) -> Any:
    try:
        return get()
    except Exception:  # noqa: BLE001 - not in this version of torch, or not at present
        return _UNREADABLE


_known_switches: list[tuple[_Get, _Set]] = []


class GlobalState:
    """Random states (python, numpy if loaded, torch on every device) and torch's switches, as they are now."""

    def __init__(self) -> None:
        if not _known_switches:
            _known_switches.extend(_switches())
        self.python = random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy = numpy.random.get_state() if numpy else None
        self.cpu = torch.get_rng_state()
        ready = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self.cuda = torch.cuda.get_rng_state_all() if ready else None
        self.switches = [_read(get) for get, _ in _known_switches]
        self.inference_modes = open_inference_modes()

    def restore(self) -> None:
        """Everything as it was when it was kept."""
        end_inference_modes(self.inference_modes)
        for (get, set_), was in zip(_known_switches, self.switches, strict=True):
            now = _read(get)
            if now != was and was is not _UNREADABLE and now is not _UNREADABLE:
                set_(was)
        random.setstate(self.python)  # after the switches: under a default device that has no values, torch cannot
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


class GlobalHooks:
    """The hooks on all modules and on all optimizers, as they are now."""

    def __init__(self) -> None:
        found = [
            value
            for module in (torch.nn.modules.module, sys.modules["torch.optim.optimizer"])
            for name, value in vars(module).items()
            if name.startswith("_global_") and isinstance(value, dict)
        ]
        self.tables = [(value, dict(value)) for value in found]

    def restore(self) -> None:
        """Everything as it was when it was kept."""
        for table, items in self.tables:
            refill(table, items)


@contextlib.contextmanager
def preserved_globals() -> Iterator[None]:
    """Restores random states (python, numpy if loaded, torch on every device) and torch's switches, as `GlobalState` lists them."""
    with Undo(GlobalState()):
        yield


def seed_everything(seed: int) -> None:
    """Seed python, numpy (if loaded) and torch; use inside :func:`preserved_globals`."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    reseed(seed)
