"""Experiment trackers' packages, the real ones, offline and in a folder of the test."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # read when the package is imported
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    yield mlflow
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # read when the package is imported
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true"), ("DISABLE_CODE", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb.teardown()  # a test or page before this one may have set it up with the variables of then; it reads them once a process
    yield wandb
    wandb.teardown()


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import context_vars, sqlite_storage, utils

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # read when the package is imported, by each module for itself
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").split(".")[0] == "trackio":
            for name, folder in (("TRACKIO_DIR", tmp_path), ("MEDIA_DIR", tmp_path / "media")):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, folder)
    assert sqlite_storage
    assert utils
    yield trackio
    trackio.finish() if context_vars.current_run.get() is not None else None
