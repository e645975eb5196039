"""What a rank's process is given: its environment, and the session's options less those that concern the whole session."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import Any

import pytest

#: Options that choose among tests, run them in another way, or debug: the starting process has obeyed them.
_CHOOSING = (
    "file_or_dir",
    "keyword",
    "markexpr",
    "deselect",
    "lf",
    "failedfirst",
    "newfirst",
    "cacheclear",
    "stepwise",
    "stepwise_skip",
    "stepwise_reset",
    "maxfail",
    "usepdb",
    "trace",
    "numprocesses",
    "maxprocesses",
    "dist",
    "distload",
    "tx",
    "px",
    "looponfail",
    "reruns",
    "reruns_delay",
)
#: Options of files that a whole session writes. Ranks would write the same ones.
_WRITING = (
    "xmlpath",
    "pastebin",
    "report_log",
    "htmlpath",
    "json_report",
    "json_report_file",
    "allure_report_dir",
    "cov_source",
    "cov_report",
)
#: Loopback interfaces: Linux, macOS.
_LOOPBACKS = ("lo", "lo0")


def environment(config: pytest.Config, number: int, world: int) -> dict[str, str]:
    """As ``torchrun`` makes it, for one rank. The port follows, once rank 0 has one.

    Torch has the cores of the machine divided by the number of ranks as threads, or fewer if ``OMP_NUM_THREADS`` says so.
    """
    found = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    found.pop("MASTER_PORT", None)
    found |= {name: str(number) for name in ("RANK", "LOCAL_RANK")}
    found |= {name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    found |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    found |= {"OMP_NUM_THREADS": str(_threads(world))}
    found["COLUMNS"] = str(_columns(config))
    with suppress(OSError, AttributeError):  # gloo itself chooses the network interface of the machine's name
        names = {name for _, name in socket.if_nameindex()}
        loopback = next((name for name in _LOOPBACKS if name in names), None)
        if loopback is not None:
            found.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return found


def _threads(world: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // world)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdecimal() and int(given) else share


def _columns(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return 80 if reporter is None else int(config.get_terminal_writer().fullwidth)


def options(config: pytest.Config, number: int) -> dict[str, Any]:
    """The session's options for one rank. What JSON cannot carry is left at its default."""
    found: dict[str, Any] = {}
    for name, value in vars(config.option).items():
        if name not in (*_CHOOSING, *_WRITING):
            with suppress(TypeError, ValueError):
                found[name] = json.loads(json.dumps(value))
    found |= {
        "capture": "no",  # both streams are files already
        "log_file": os.devnull,
        "rootdir": str(config.rootpath),
        "inifilename": None if config.inipath is None else str(config.inipath),
        "basetemp": _basetemp(config, number),
    }
    return found


def _basetemp(config: pytest.Config, number: int) -> str | None:
    """Each rank has temporary files of its own, below those of the session."""
    factory = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else str(factory.mktemp(f"rank{number}-"))
