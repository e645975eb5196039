"""The command of `preloaded_python`: takes the arguments of ``python``, has a fork of the server run them, and ends as the fork ends.

``python -ISE ask_for_python.py SOCKET PYTHON ARGUMENTS...``; it imports little, for it starts often.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys

#: A length, an answer or an exit status.
NUMBER = struct.Struct("!q")
#: At most so many open files travel in one message.
FILES = 250
#: What the server answers.
FORKED, REFUSED = 0, 1
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def ask(path: str, python: str, arguments: list[str]) -> None:
    """Never comes back: the fork's exit status is this process's; what the server refuses is run by the real Python."""
    files = open_files()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = {"arguments": arguments, "environment": dict(os.environ), "files": files[:FILES]}
    request["folder"] = os.getcwd()  # noqa: PTH109 - pathlib takes longer to import than all of this
    body = json.dumps(request).encode()
    socket.send_fds(connection, [NUMBER.pack(len(body))], files[:FILES])
    connection.sendall(body)
    if received(connection) == REFUSED:
        connection.close()
        os.execv(python, [python, *arguments])
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    status = received(connection)
    if status < 0:  # by a signal
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def open_files() -> list[int]:
    """Of this process, and handed on to a program that it starts."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - as above
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:  # that of the listing
            pass
    return found


def received(connection: socket.socket) -> int:
    """A number."""
    return int(NUMBER.unpack(exactly(connection, NUMBER.size))[0])


def exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes.

    :raises EOFError: the other side has ended.
    """
    data = b""
    while len(data) < size:
        if not (part := connection.recv(size - len(data))):
            raise EOFError("the other side of the socket has ended")
        data += part
    return data


if __name__ == "__main__":
    ask(sys.argv[1], sys.argv[2], sys.argv[3:])
