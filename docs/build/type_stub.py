"""Writes ``pytest_ftcheck/__init__.pyi``: the public names as editors and type checkers see them, from the registered checks.

The package finds its checks by their files, so that nothing has to be told of a new one; a type checker cannot. Building or installing the
package runs this (see ``[tool.hatch.build.hooks.custom]``), as do ``make types`` and ``make docs``; the file is not under version control.

    python docs/build/type_stub.py
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "pytest_ftcheck" / "__init__.pyi"
_HEAD = '''"""{doc}"""

# Made by docs/build/type_stub.py from the registered checks; do not edit.
from collections.abc import Sequence

{imports}
from .core.version import __version__ as __version__

__all__ = [
{names}
]
'''


def stub() -> str:
    """The text of the stub."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    package = importlib.import_module("pytest_ftcheck")
    catalogue = importlib.import_module("pytest_ftcheck.checks.catalogue")
    assertions = importlib.import_module("pytest_ftcheck.checks.assertions")
    homes = importlib.import_module("pytest_ftcheck.core.public_names").HOMES
    imports = [f"from .{home} import {name} as {name}" for home, names in sorted(homes.items()) for name in names]
    functions = [_function(found, name) for name, found in sorted(_of_checks(catalogue, assertions).items())]
    names = "\n".join(f'    "{name}",' for name in package.__all__)
    doc = (package.__doc__ or "").strip()
    return _HEAD.format(doc=doc, imports="\n".join(imports), names=names) + "\n" + "\n".join(functions)


def _of_checks(catalogue: Any, assertions: Any) -> dict[str, Any]:
    checks = {f"check_{name}": found for name, found in catalogue.CHECKS.items()}
    return checks | {f"assert_{name}": found for name, found in assertions.ASSERTIONS.items()}


def _function(found: Any, name: str) -> str:
    signature = inspect.signature(found)
    parameters = [p.replace(annotation=_annotation(p.name, str(p.annotation))) for p in signature.parameters.values()]
    told = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    doc = textwrap.indent(inspect.cleandoc(found.__doc__ or ""), "    ").strip()
    return f'def {name}{told} -> Verdict:\n    """{doc}\n    """\n'


class _Bare(str):
    """An annotation that is written as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _annotation(name: str, told: str) -> _Bare:
    return _Bare("Trace | Runs" if name == "trace" else told)


def write() -> None:
    """Writes the stub, unless it is as it should be."""
    text = stub()
    if not STUB.exists() or STUB.read_text(encoding="utf-8") != text:
        STUB.write_text(text, encoding="utf-8")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    pass
else:

    class StubHook(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
        """Makes the stub before the package is built or installed."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
            """Called by hatchling."""
            write()


if __name__ == "__main__":
    write()
