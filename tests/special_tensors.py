"""Frozen tables whose memory may not be written to, or is not the model's own: in the models of every test of restoration."""

from __future__ import annotations

import functools
import tempfile
import uuid
import warnings
from pathlib import Path

import numpy
import torch
from torch import nn

ROWS, WIDTH = 16, 6


def add_tables(model, cells=0.0):
    """Tables of a file that is read-only, of one shared with other processes, expanded, and made under inference mode.

    :param cells: the value of each number in them.
    """
    path = Path(_folder().name)
    if not (path / "table.npy").exists():
        numpy.save(path / "table.npy", numpy.zeros((ROWS, WIDTH), dtype="float32"))
    shared_file = path / f"{uuid.uuid4().hex}.bin"
    numpy.full(ROWS * WIDTH, cells, dtype="float32").tofile(shared_file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the array is not writable
        read_only = torch.from_numpy(numpy.load(path / "table.npy", mmap_mode="r"))
    shared = torch.from_file(str(shared_file), shared=True, size=ROWS * WIDTH).reshape(ROWS, WIDTH)
    shared_file.unlink()  # its memory stays
    tables = nn.Module()
    tables.read_only = nn.Parameter(read_only, requires_grad=False)
    tables.expanded = nn.Parameter(torch.full((1, WIDTH), cells).expand(ROWS, WIDTH), requires_grad=False)
    tables.register_buffer("read_only_buffer", read_only)
    tables.register_buffer("expanded_buffer", torch.full((1, WIDTH), cells).expand(ROWS, WIDTH))
    tables.register_buffer("shared", shared)
    with torch.inference_mode():
        tables.register_buffer("of_inference", torch.full((ROWS, WIDTH), cells))
    model.tables = tables
    return model


@functools.cache
def _folder():
    """Removed at the end of the process."""
    return tempfile.TemporaryDirectory()
