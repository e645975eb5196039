"""What a worker needs, in bytes: model, batches and functions by cloudpickle, tensors that share memory still sharing it."""

from __future__ import annotations

import contextlib
import io
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..core.formatting import describe_type, one_line

MISSING = "executor= needs cloudpickle: pip install 'pytest-ftcheck[executor]'"


def packed(arguments: Mapping[str, Any]) -> bytes:
    """The arguments of a call, for `unpacked` in another process; functions and classes of modules that are not installed go by value.

    :raises ImportError: cloudpickle is not installed.  :raises TypeError: names the argument that cannot be sent.

    >>> unpacked(packed({"loss_fn": lambda model, batch: 0.5, "steps": 3}))["loss_fn"](None, None)
    0.5
    >>> packed({"batches": [(row for row in range(3))]})
    Traceback (most recent call last):
    TypeError: batches cannot be sent to the executor's workers: it is a list, and cannot pickle 'generator' object
    """
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError(MISSING) from None
    try:
        with _by_value(cloudpickle):
            return _dumped(dict(arguments), cloudpickle)
    except Exception as error:  # noqa: BLE001 - the user's objects may raise anything
        # by name nothing that a module holds is packed, such as a lock; a worker with the same path can import it
        try:
            return _dumped(dict(arguments), cloudpickle)
        except Exception:  # noqa: BLE001
            with _by_value(cloudpickle):
                name, why = _culprit(arguments, cloudpickle, error)
        text = one_line(str(why), 300) or type(why).__name__
        kind = f"it is {describe_type(arguments[name])}, and " if name in arguments else ""
        raise TypeError(f"{name} cannot be sent to the executor's workers: {kind}{text}") from why


def unpacked(payload: bytes) -> dict[str, Any]:
    """The arguments, made anew."""
    found: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=False)
    return found


def _dumped(value: Any, cloudpickle: Any) -> bytes:
    # torch.save, because a plain pickle copies each tensor: weights that share memory would no longer
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=cloudpickle, pickle_protocol=cloudpickle.DEFAULT_PROTOCOL)
    return buffer.getvalue()


def _culprit(arguments: Mapping[str, Any], cloudpickle: Any, error: Exception) -> tuple[str, Exception]:
    for name, value in arguments.items():
        try:
            _dumped(value, cloudpickle)
        except Exception as why:  # noqa: BLE001
            return name, why
    return "what was given", error


# ---------------------------------------------------------------------- modules that a worker cannot import
@contextlib.contextmanager
def _by_value(cloudpickle: Any) -> Iterator[None]:
    """Inside the block, functions and classes of test files and scripts go by value; those of installed packages by name."""
    before = cloudpickle.list_registry_pickle_by_value()
    registered = [module for module in _not_installed() if module.__name__ not in before]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _not_installed() -> list[ModuleType]:
    """Loaded modules that a fresh interpreter would not find: test files, conftests, scripts, what lies beside them."""
    roots, ours = _roots(), __name__.partition(".")[0]
    found = []
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if not isinstance(file, str) or not file.endswith(".py") or vars(module).get("__name__") != name:
            continue
        if top not in ("__main__", ours) and not _found_below(roots, name, file) and not _editable(top):
            found.append(module)
    return found


def _found_below(roots: tuple[str, ...], name: str, file: str) -> bool:
    stem = name.replace(".", os.sep)
    candidates = [f"{root}{stem}{end}" for root in roots for end in (".py", f"{os.sep}__init__.py")]
    return file in candidates or os.path.realpath(file) in map(os.path.realpath, candidates)


def _editable(package: str) -> bool:
    """Whether it is installed as setuptools does it for a project that is edited in place: by a finder of its own."""
    finders = [f for f in sys.meta_path if str(getattr(f, "__module__", "")).startswith("__editable__")]
    return any(finder.find_spec(package, None) is not None for finder in finders)


def _roots() -> tuple[str, ...]:
    """Folders that every interpreter started here imports from: the library, site-packages, what their .pth files add, PYTHONPATH."""
    paths = sysconfig.get_paths()
    sites = [paths["purelib"], paths["platlib"], *getattr(site, "getsitepackages", list)()]
    with contextlib.suppress(Exception):  # there need not be a home
        sites.append(site.getusersitepackages())
    folders = [paths["stdlib"], paths["platstdlib"], *sites]
    folders += [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    for file in (f for folder in dict.fromkeys(sites) for f in sorted(Path(folder).glob("*.pth"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines = file.read_text(encoding="utf-8").splitlines()
            folders += [
                str(file.parent / line) for line in lines if line.strip() and not line.startswith(("#", "import"))
            ]
    return tuple(dict.fromkeys(str(folder).rstrip(os.sep) + os.sep for folder in folders))
