"""The half of `FtcheckCallback` that a ``lightning.Trainer`` calls."""

from __future__ import annotations

import sys
from typing import Any

from ..integrations.lightning import PACKAGES


class LightningEvents:
    """Lightning's hooks around a training. Lightning asks for an instance of its own ``Callback``: an object made after Lightning was
    imported is one, under each of its two names."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """An object whose class derives from Lightning's, where that is imported."""
        bases = tuple(sys.modules[name].Callback for name in PACKAGES if name in sys.modules)
        new = [base for base in bases if not issubclass(cls, base)]
        made = type(cls.__name__, (cls, *new), {"__doc__": cls.__doc__, "__module__": cls.__module__}) if new else cls
        return object.__new__(made)

    _open = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning: `watch` puts a callback of its own in front, which is told when the training begins."""
        if not self._open:
            self._begin(trainer, module=pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Called by Lightning when the training, or a validation during it, raised."""
        self._close(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Called by Lightning at the end, also of a ``fit`` that had nothing to train."""
        self._close()

    def _begin(self, subject: Any, **options: Any) -> None:
        raise NotImplementedError

    def _close(self, error: BaseException | None = None) -> None:
        raise NotImplementedError
