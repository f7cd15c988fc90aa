"""The socket between paho and the network: reads and writes in bulk, and takes the PUBLISH packets out.

paho reads each packet by three `recv` calls and spends some twenty objects and six locks on a message;
that, not the network, bounds a consumer. So the reactor fills a buffer here, PUBLISH packets at QoS 0
and 1 are parsed straight out of it, and every other packet is handed on to paho, one at a time.
"""

from __future__ import annotations

import socket
import ssl
import time
from enum import Enum

from sentinel.records import Message

READ_SIZE = 65536
UNSENT_LIMIT = 1 << 22
TOPICS_CACHED = 200_000
LONGEST_CACHED = 512  # bytes: a longer topic is no device's
GIANT = 1 << 21  # bytes kept of a longer packet: twice what a decoder takes
SHORT = 127  # a variable byte integer up to here is one byte (MQTT 3.1.1, 2.2.3)
PUBLISH = 0x30  # at QoS 0 or 1, without the bits of DUP, QoS 1 and RETAIN (mask 0xF4)
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Next(Enum):
    """What `Wire.take` asks its caller to do."""

    FILL = "all is taken: fill"
    HAND_ON = "a packet is paho's: let it read"
    FULL = "enough messages: go on later"


class Wire:
    """An open socket, as paho and as the reactor see it. Never blocks, except `close` for `linger` seconds.

    paho calls `recv`, `send`, `close`, `fileno`, `setblocking`; the reactor `fill`, `take`, `flush`.

    Attributes:
        epoch: stamped on the messages.
        lost: why the connection cannot be used any more; None: it can.
        linger: seconds that `close` may take to send the rest.
    """

    def __init__(self, sock: socket.socket, *, version5: bool) -> None:
        sock.setblocking(False)
        self.epoch = 0
        self.lost: OSError | None = None
        self.linger = 0.0
        self._sock = sock
        self._version5 = version5
        self._data = b""
        self._at = 0
        self._gate = 0  # paho may read up to here
        self._rest = bytearray()  # the beginning of a packet, until `_need` bytes of it are there
        self._need = 0
        self._giant = 0  # bytes of a giant PUBLISH that are still to come
        self._received = self._arrived = 0.0
        self._out = bytearray()
        self._topics: dict[bytes, str] = {}

    def recv(self, buffer_size: int) -> bytes:
        """For paho: bytes of the packet that was handed on; BlockingIOError after it; the error if lost."""
        at = self._at
        if at < self._gate:
            self._at = min(at + buffer_size, self._gate)
            return self._data[at : self._at]
        if self.lost is not None:
            raise self.lost
        raise BlockingIOError

    def send(self, buffer: bytes | bytearray) -> int:
        """For paho: take a whole packet, or raise BlockingIOError if too much waits."""
        if len(self._out) > UNSENT_LIMIT:
            raise BlockingIOError
        self._out += buffer
        return len(buffer)

    def queue(self, packets: bytes) -> None:
        """Take whole packets, whatever waits."""
        self._out += packets

    def close(self) -> None:
        """Close the socket; first send what is left if `linger` allows."""
        if self.linger > 0 and self._out and self.lost is None:
            try:
                self._sock.settimeout(self.linger)
                self._sock.sendall(self._out)
            except OSError as error:
                self.lost = error
        self._sock.close()

    def fileno(self) -> int:
        """File descriptor to wait on."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """For paho; the socket stays non-blocking."""

    @property
    def unsent(self) -> int:
        """Bytes that wait for `flush`."""
        return len(self._out)

    @property
    def unread(self) -> int:
        """Bytes that `fill` read and `take` has not looked at."""
        return len(self._data) - self._at

    def flush(self) -> None:
        """Send what the socket takes."""
        while self._out and self.lost is None:
            try:
                sent = self._sock.send(self._out)
            except WOULD_BLOCK:
                return
            except OSError as error:
                self.lost = error
                return
            del self._out[:sent]

    def fill(self) -> int:
        """Read once what is there, at most `READ_SIZE` bytes. Call when `take` said FILL.

        Returns: bytes read; 0: nothing there, or `lost`.
        """
        if self.lost is not None:
            return 0
        try:
            data = self._sock.recv(READ_SIZE)
        except WOULD_BLOCK:
            return 0
        except OSError as error:
            self.lost = error
            return 0
        if not data:
            self.lost = ConnectionResetError("closed by the broker")
            return 0
        self._received = time.time()
        self._arrived = time.perf_counter()
        size = len(data)
        if self._giant:
            data = self._shorten(data)
            if self._giant:
                return size
        elif self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return size
            data = bytes(self._rest)
            self._rest.clear()
        self._data = data
        self._at = self._gate = 0
        return size

    def take(self, into: list[Message], limit: int) -> Next:
        """Append the messages that are complete, until `into` holds `limit`; other packets are handed on even then."""
        data, at, end = self._data, self._at, len(self._data)
        topics, version5, epoch = self._topics, self._version5, self.epoch
        received, arrived = self._received, self._arrived
        append, make = into.append, Message._make
        left = limit - len(into)
        need = 0
        while at + 1 < end:
            head, size = data[at], data[at + 1]
            body = at + 2
            if size > SHORT:
                size, body = self._long_size(data, at + 1)
            stop = body + size
            if stop > end:
                need = stop - at
                break
            if head & 0xF4 != PUBLISH:
                self._at, self._gate = at, stop
                return Next.HAND_ON
            if left <= 0:
                self._at = self._gate = at
                return Next.FULL
            left -= 1
            text = body + 2
            mid = 0
            try:
                rest = payload = text + (data[body] << 8 | data[body + 1])
                if head & 2:
                    mid = data[rest] << 8 | data[rest + 1]
                    payload += 2
                if version5:
                    size = data[payload]
                    payload += 1
                    if size > SHORT:
                        size, payload = self._long_size(data, payload - 1)
                    payload += size
            except IndexError:
                payload = end + 1
            if payload > stop and stop - at == GIANT:
                payload = stop  # its properties alone are longer than what was kept
            if payload > stop:
                self.lost = ConnectionAbortedError("malformed PUBLISH")
                break
            name = data[text:rest]
            topic = topics.get(name) or self._decode(name)
            append(make((topic, data[payload:stop], head >> 1 & 1, head & 1 == 1, received, arrived, mid, epoch)))
            at = stop
        if at < end:
            self._rest += data[at:]
            self._need = need
            if need > GIANT + 8 and data[at] & 0xF4 == PUBLISH:
                self._giant = need - (end - at)
        self._data = b""
        self._at = self._gate = 0
        return Next.FILL

    def _shorten(self, data: bytes) -> bytes:
        """Keep the first `GIANT` bytes of a giant packet, and make a whole packet of them when it has come to its end."""
        tail, rest = data[: self._giant], data[self._giant :]
        self._giant -= len(tail)
        self._rest += tail[: GIANT - len(self._rest)]
        if self._giant:
            return b""
        size = GIANT - 5
        self._rest[1:5] = bytes((size >> 7 * place & SHORT) | 128 * (place < 3) for place in range(4))
        packet = bytes(self._rest)
        self._rest.clear()
        return packet + rest

    def _decode(self, name: bytes) -> str:
        topic = name.decode(errors="replace")
        if len(name) <= LONGEST_CACHED:
            if len(self._topics) >= TOPICS_CACHED:
                self._topics.clear()
            self._topics[name] = topic
        return topic

    def _long_size(self, data: bytes, at: int) -> tuple[int, int]:
        """Decode a variable byte integer. Returns it and where it ends; what is cut off counts as far away."""
        size = 0
        for place in range(4):
            if at + place >= len(data):
                return 0, len(data) + 1
            byte = data[at + place]
            size |= (byte & SHORT) << 7 * place
            if byte <= SHORT:
                return size, at + place + 1
        self.lost = ConnectionAbortedError("malformed length")
        return 0, len(data) + 1
