"""HTTP/2 in raw frames, for clients that mean no good. The plan comes on standard input."""

import json
import socket
import ssl
import struct
import sys
from contextlib import contextmanager

from hpack import Encoder

PLAN = json.load(sys.stdin)
NAME = PLAN["name"]
LIMIT_S = PLAN.get("limit_s", 20)
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONT = range(10)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(fields):
    """A field block, without the dynamic table."""
    return Encoder().encode([(name, value, True) for name, value in fields], huffman=False)


def literal(name, value):
    """A field whose octets nobody looks at on the way."""

    def text(octets):
        assert len(octets) < 127
        return bytes([len(octets)]) + octets

    return b"\x10" + text(name) + text(value)


def pseudo(method="GET", path="/public/h2", scheme="https", authority=NAME):
    """The four that a request has."""
    fields = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]
    return [field for field in fields if field[1] is not None]


GET = block(pseudo())
POST = block(pseudo("POST"))


def settings(*pairs):
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def ping(payload=b"probe..."):
    return frame(PING, 0, 0, payload)


def window(stream, by):
    return frame(WINDOW, 0, stream, struct.pack(">I", by))


def rst(stream, code=8):
    return frame(RST, 0, stream, struct.pack(">I", code))


@contextmanager
def connected(protocol="h2", receive_bytes=None):
    """A TLS connection to the gateway, with the client's certificate."""
    made = ssl.create_default_context(cafile=PLAN["ca"])
    made.load_cert_chain(PLAN["cert"], PLAN["key"])
    made.set_alpn_protocols([protocol])
    with socket.socket() as plain:
        if receive_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        plain.settimeout(LIMIT_S)
        plain.connect((PLAN["address"], PLAN["port"]))
        with made.wrap_socket(plain, server_hostname=NAME) as stream:
            yield stream
