"""Frozen tables whose memory may not be written to, or is not the model's own: among the models of every test of restoration."""

from __future__ import annotations

import warnings

import numpy
import torch
from torch import nn

ROWS = 4


def add_tables(model, path):
    """Tables of a file that is read-only, of one shared with other processes, expanded, and made under inference mode.

    :param path: a folder for the files.
    """
    width = 6
    numpy.save(path / "table.npy", numpy.zeros((ROWS, width), dtype="float32"))
    numpy.full(ROWS * width, 0.25, dtype="float32").tofile(path / "table.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the array is not writable
        read_only = torch.from_numpy(numpy.load(path / "table.npy", mmap_mode="r"))
    shared = torch.from_file(str(path / "table.bin"), shared=True, size=ROWS * width).reshape(ROWS, width)
    tables = nn.Module()
    tables.read_only = nn.Parameter(read_only, requires_grad=False)
    tables.expanded = nn.Parameter(torch.zeros(1, width).expand(ROWS, width), requires_grad=False)
    tables.register_buffer("read_only_buffer", read_only)
    tables.register_buffer("expanded_buffer", torch.zeros(1, width).expand(ROWS, width))
    tables.register_buffer("shared", shared)
    with torch.inference_mode():
        tables.register_buffer("of_inference", torch.zeros(ROWS, width))
    tables.sum = lambda: sum(t.sum() for t in (*tables.parameters(), *tables.buffers()))
    model.tables = tables
    return model
