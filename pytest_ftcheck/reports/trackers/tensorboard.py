"""A trace as TensorBoard event files: the useful charts first, under *Custom Scalars*; all runs in one table, under *HParams*.

The horizontal axis counts optimizer steps from 1; 0 is before the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import arguments
from ...core.formatting import as_given
from ...core.trace_writer import Setting

if TYPE_CHECKING:
    from os import PathLike

    from ...core.observations import Histogram

#: Charts under *Custom Scalars*, the most informative first; the same in all runs, for TensorBoard joins them by their titles.
LAYOUT: dict[str, dict[str, list[Any]]] = {
    "ftcheck": {
        "loss: training, probe (dropout off), class prior": ["Multiline", [r"^loss/(train|probe|class_prior)$"]],
        "motion: displacement / sum of learning rates": ["Multiline", [r"^motion/"]],
        "gradient norm by block": ["Multiline", [r"^gradient_by_block/"]],
        "learning rate": ["Multiline", [r"^lr/"]],
        "gradient norm, before and after clipping": ["Multiline", [r"^gradient/"]],
        "displacement of the head (rms); compare its histograms": ["Multiline", [r"^head/.*/displacement_rms$"]],
        "metrics and their majority baselines": ["Multiline", [r"^metric/"]],
    }
}


#: Hyper-parameters that come first: TensorBoard sorts them by name, and shows the first five.
FIRST = ("status", "cause", "lr", "optimizer", "steps")


class TensorBoardWriter:
    """Writes event files through torch's own ``SummaryWriter``.

    :param directory: one a run; created if missing.
    :raises ImportError: the package ``tensorboard`` is missing.  :raises ValueError: it is a file.
    """

    def __init__(self, directory: str | PathLike[str]) -> None:
        self._directory = arguments.path("directory", directory)
        if Path(self._directory).exists() and not Path(self._directory).is_dir():
            raise ValueError(
                f"directory={as_given(self._directory)} is a file: expected a directory for the event files of one run"
            )
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "writing event files needs the package tensorboard: pip install 'pytest-ftcheck[tensorboard]'"
            ) from error
        self._made_by: Any = SummaryWriter
        #: None: not begun. What is begun is closed, whatever interrupts it.
        self._writer: Any = None

    def settings(self, settings: Mapping[str, Setting], results: Mapping[str, float]) -> None:
        """As hyper-parameters; the results become their metrics."""
        from torch.utils.tensorboard.summary import hparams

        self._writer = self._made_by(log_dir=self._directory)
        self._writer.add_custom_scalars(LAYOUT)
        # not `add_hparams`, which would write a second run into a folder of its own
        named = {f"{FIRST.index(key) + 1}_{key}" if key in FIRST else key: value for key, value in settings.items()}
        for summary in hparams(named, dict(results)):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As scalars."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def histogram(self, tag: str, step: int, histogram: Histogram) -> None:
        """As a histogram of the same bins."""
        low, high, counts = histogram.low, histogram.high, histogram.counts
        width = (high - low) / len(counts)
        # TensorBoard drops empty bins at the ends, and takes min and max as the outer edges of the others
        first = next(i for i, c in enumerate(counts) if c)
        last = next(i for i in reversed(range(len(counts))) if counts[i])
        middles = [low + (i + 0.5) * width for i in range(len(counts))]
        self._writer.add_histogram_raw(
            tag,
            min=low + first * width,
            max=high if last == len(counts) - 1 else low + (last + 1) * width,
            num=sum(counts),
            sum=math.fsum(c * m for c, m in zip(counts, middles, strict=True)),
            # values spread evenly over a bin have a mean square of middle^2 + width^2 / 12
            sum_squares=math.fsum(c * (m * m + width * width / 12) for c, m in zip(counts, middles, strict=True)),
            bucket_limits=[*(low + (i + 1) * width for i in range(len(counts) - 1)), high],
            bucket_counts=list(counts),
            global_step=step,
        )

    def text(self, name: str, text: str) -> None:
        """As text, in a block that keeps the columns."""
        self._writer.add_text(name, f"```\n{text}\n```", 0)

    def close(self, failed: bool) -> None:  # noqa: ARG002 - what is written is written
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
