"""
Bytes on their way to a child, without ever making the loop wait.
"""

from __future__ import annotations

import asyncio
import socket


class Outgoing:
    """Into one socket. What does not fit in at once is kept and follows."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = loop
        self._left = bytearray()
        self._closed = False

    def write(self, data: bytes) -> None:
        if self._closed:
            return
        if not self._left:
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                return  # the child has ended, which is told elsewhere
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.add_writer(self.sock.fileno(), self._write_more)
        self._left += data

    def _write_more(self) -> None:
        try:
            del self._left[: self.sock.send(self._left)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._left.clear()
        if not self._left:
            self._loop.remove_writer(self.sock.fileno())

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self.sock.fileno())
            self.sock.close()
