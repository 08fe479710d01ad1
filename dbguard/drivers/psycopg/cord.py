"""The line of a connection in our own hand: to cut it, and to see that it hangs loose.

psycopg's connections can be ended by nobody but who uses them: closing one that is in use frees what the other one still
works with. So each has a duplicate of its socket, taken at birth, which can be shut down from anywhere: who waits on the
connection, a thread or a task, is woken with the end of the stream.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

from dbguard.forked import dialled

__all__ = ["Cord"]

_GONE: int = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Cord:
    """A duplicate of the socket *fileno*, to be closed with the connection."""

    __slots__ = ("_lock", "_socket")

    def __init__(self, fileno: int) -> None:
        self._socket = socket.socket(fileno=os.dup(fileno))
        dialled(self._socket.fileno())  # a forked child that cut it would end its parent's stream
        self._lock = threading.Lock()  # a number of a socket that another thread closes soon is somebody else's

    def cut(self) -> None:
        """End the stream in both directions, at once; from any thread. Nothing happens to a line that is closed."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def hangs_loose(self) -> bool:
        """Whether the other side has ended the stream, as far as this machine knows; asks nobody, and does not wait.

        Where the system does not tell (other than Linux), only once everything before the end was read.
        """
        with self._lock:
            if self._socket.fileno() < 0:
                return True
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | _GONE)
            said = poll.poll(0)
            if not said:
                return False
            if said[0][1] & _GONE:
                return True
            try:
                return not self._socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                return True

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            self._socket.close()
