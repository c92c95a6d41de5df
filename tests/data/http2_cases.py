"""Rules of HTTP/2 (RFC 9113) and HPACK (RFC 7541), each broken or kept in raw frames.

The cases are those that h2spec names, and some of what is lost when HTTP/2 becomes HTTP/1. Reads one
JSON object from standard input: where to connect. Writes one JSON array: for each case its name, what
is expected and what came.

What is expected: "conn" a connection error (GOAWAY, or the end), "stream" a stream error (RST_STREAM, or
more), "refused" a stream error or a status from 400, "ok" the answer 200, "alive" a PING's answer.
"""

import json
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

from raw_http2 import (
    CONT, DATA, GET, GOAWAY, HEADERS, NAME, PING, POST, PREFACE, PRIORITY, PUSH, RST, SETTINGS, WINDOW,
    block, connected, frame, literal, ping, pseudo, rst, settings, window,
)



def get(stream=1, more=b"", flags=5):
    return frame(HEADERS, flags, stream, GET + more)


def post(stream=1, more=b""):
    return frame(HEADERS, 4, stream, POST + more)


def fields(*pairs):
    """A GET with these fields after the usual four."""
    return frame(HEADERS, 5, 1, GET + block(pairs))


def only(*pairs):
    """A request of these fields alone."""
    return frame(HEADERS, 5, 1, block(pairs))


def raw(name, value):
    """A GET with one more field, octet by octet as given."""
    return frame(HEADERS, 5, 1, GET + literal(name, value))


PRIORITY_OF_NOBODY = struct.pack(">IB", 0, 15)
OK = "ok"
CASES = [
    # Frames (sections 4 and 5.5).
    ("a GET", OK, get()),
    ("a POST", OK, post() + frame(DATA, 1, 1, b"ab")),
    ("HEAD of nothing else", OK, get() + ping()),
    ("a frame of an unknown type", "alive", frame(0xEE, 0, 0, b"x") + ping()),
    ("an unknown frame on a stream", OK, frame(0xEE, 0xFF, 1, b"x") + get()),
    ("flags that mean nothing", "alive", frame(PING, 0x16, 0, b"probe...")),
    ("the reserved bit", "alive", frame(PING, 0, 0x80000000, b"probe...")),
    ("DATA of 2^14 octets", OK, post() + frame(DATA, 1, 1, b"x" * 16384)),
    ("DATA of one more", "stream", post() + frame(DATA, 1, 1, b"x" * 16385)),
    ("HEADERS of one more", "conn", frame(HEADERS, 5, 1, b"x" * 16385)),
    ("SETTINGS too long", "conn", frame(SETTINGS, 0, 0, b"\0" * 16386)),
    ("a broken field block", "conn", frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff")),
    ("PRIORITY within a field block", "conn", frame(HEADERS, 1, 1, GET) + frame(PRIORITY, 0, 1, PRIORITY_OF_NOBODY)),
    ("HEADERS within a field block", "conn", frame(HEADERS, 1, 1, GET) + get(3)),
    ("an unknown frame within a field block", "conn", frame(HEADERS, 1, 1, GET) + frame(0xEE, 0, 0, b"")),
    ("PING within a field block", "conn", frame(HEADERS, 1, 1, GET) + ping()),
    ("SETTINGS within a field block", "conn", frame(HEADERS, 1, 1, GET) + settings()),
    ("DATA within a field block", "conn", frame(HEADERS, 1, 1, GET) + frame(DATA, 1, 1, b"x")),
    # Streams (section 5.1).
    ("DATA of an idle stream", "conn", frame(DATA, 1, 1, b"x")),
    ("RST_STREAM of an idle stream", "conn", rst(1)),
    ("WINDOW_UPDATE of an idle stream", "conn", window(1, 100)),
    ("CONTINUATION of an idle stream", "conn", frame(CONT, 4, 1, GET)),
    ("DATA after the end", "stream", get() + frame(DATA, 1, 1, b"x")),
    ("HEADERS after the end", "stream", get() + get()),
    ("CONTINUATION after the end", "conn", get() + frame(CONT, 4, 1, GET)),
    ("DATA after RST_STREAM", "stream", post() + rst(1) + frame(DATA, 1, 1, b"x")),
    ("HEADERS after RST_STREAM", "stream", post() + rst(1) + get()),
    ("CONTINUATION after RST_STREAM", "conn", post() + rst(1) + frame(CONT, 4, 1, GET)),
    ("an even stream", "conn", get(2)),
    ("stream 0", "conn", get(0)),
    ("a lower stream", "conn", get(5) + get(3)),
    ("more streams than there may be", "stream", b"".join(post(1 + 2 * n) for n in range(140))),
    ("HEADERS that depend on themselves", "stream", frame(HEADERS, 37, 1, struct.pack(">IB", 1, 9) + GET)),
    ("PRIORITY that depends on itself", "stream", frame(PRIORITY, 0, 3, struct.pack(">IB", 3, 9))),
    ("PRIORITY of an idle stream", "alive", frame(PRIORITY, 0, 3, PRIORITY_OF_NOBODY) + ping()),
    ("HEADERS with a priority", OK, frame(HEADERS, 37, 1, PRIORITY_OF_NOBODY + GET)),
    ("HEADERS with padding", OK, frame(HEADERS, 13, 1, b"\x04" + GET + b"\0" * 4)),
    ("HEADERS with both", OK, frame(HEADERS, 45, 1, b"\x04" + PRIORITY_OF_NOBODY + GET + b"\0" * 4)),
    # DATA (section 6.1) and HEADERS (section 6.2).
    ("DATA of stream 0", "conn", post() + frame(DATA, 1, 0, b"x")),
    ("more padding than DATA", "conn", post() + frame(DATA, 9, 1, b"\x06ab")),
    ("DATA with padding", OK, post() + frame(DATA, 9, 1, b"\x02ab\0\0")),
    ("DATA with padding alone", OK, post() + frame(DATA, 9, 1, b"\x02\0\0")),
    ("padding of nothing", "conn", post() + frame(DATA, 9, 1, b"")),
    ("more padding than HEADERS", "conn", frame(HEADERS, 13, 1, b"\xf0" + GET)),
    ("HEADERS too short for a priority", "conn", frame(HEADERS, 37, 1, b"\0\0")),
    # PRIORITY, RST_STREAM (sections 6.3 and 6.4).
    ("PRIORITY of stream 0", "conn", frame(PRIORITY, 0, 0, PRIORITY_OF_NOBODY)),
    ("PRIORITY too short", "stream", frame(PRIORITY, 0, 1, b"\0" * 4)),
    ("PRIORITY too long", "stream", frame(PRIORITY, 0, 1, b"\0" * 6)),
    ("RST_STREAM of stream 0", "conn", rst(0)),
    ("RST_STREAM too short", "conn", post() + frame(RST, 0, 1, b"\0" * 3)),
    ("RST_STREAM too long", "conn", post() + frame(RST, 0, 1, b"\0" * 5)),
    ("RST_STREAM of an unknown code", "alive", post() + rst(1, 0xFFFF) + ping()),
    # SETTINGS (section 6.5).
    ("SETTINGS acknowledged with values", "conn", frame(SETTINGS, 1, 0, b"\0" * 6)),
    ("SETTINGS of a stream", "conn", frame(SETTINGS, 0, 1, b"")),
    ("SETTINGS of five octets", "conn", frame(SETTINGS, 0, 0, b"\0" * 5)),
    ("ENABLE_PUSH 2", "conn", settings((2, 2))),
    ("a window of 2^31", "conn", settings((4, 1 << 31))),
    ("frames of 2^14 - 1", "conn", settings((5, (1 << 14) - 1))),
    ("frames of 2^24", "conn", settings((5, 1 << 24))),
    ("an unknown setting", "alive", settings((0xFF, 1)) + ping()),
    ("a setting twice", OK, settings((4, 1), (4, 65535)) + get()),
    ("no dynamic table", OK, settings((1, 0)) + get()),
    ("a small list of fields", "alive", settings((6, 100)) + ping()),
    # PUSH_PROMISE, PING, GOAWAY (sections 6.6 to 6.8).
    ("a promise from a client", "conn", post() + frame(PUSH, 4, 1, struct.pack(">I", 2) + GET)),
    ("PING", "alive", ping()),
    ("PING acknowledged by nobody's asking", "alive", frame(PING, 1, 0, b"answered") + ping()),
    ("PING of a stream", "conn", frame(PING, 0, 1, b"probe...")),
    ("PING too short", "conn", frame(PING, 0, 0, b"probe")),
    ("PING too long", "conn", frame(PING, 0, 0, b"probe....")),
    ("GOAWAY of a stream", "conn", frame(GOAWAY, 0, 1, b"\0" * 8)),
    ("GOAWAY too short", "conn", frame(GOAWAY, 0, 0, b"\0" * 7)),
    # WINDOW_UPDATE (section 6.9).
    ("WINDOW_UPDATE of 0", "conn", window(0, 0)),
    ("WINDOW_UPDATE of 0 of a stream", "stream", post() + window(1, 0)),
    ("WINDOW_UPDATE too short", "conn", frame(WINDOW, 0, 0, b"\0" * 3)),
    ("WINDOW_UPDATE too long", "conn", frame(WINDOW, 0, 0, b"\0" * 5)),
    ("a window above 2^31 - 1", "conn", window(0, 0x7FFFFFFF) + window(0, 0x7FFFFFFF)),
    ("a stream's window above that", "stream", post() + window(1, 0x7FFFFFFF) + window(1, 0x7FFFFFFF)),
    ("a window of one octet", OK, settings((4, 1)) + get() + window(1, 60000)),
    ("a window changed later", OK, settings((4, 0)) + get() + settings((4, 65535))),
    ("a window below zero, then above", OK, settings((4, 9)) + get() + settings((4, 2)) + window(1, 60000)),
    ("a window too large by a setting", "conn", post() + window(1, 0x7FFF0000) + settings((4, 0x7FFFFFFF))),
    # CONTINUATION (section 6.10).
    ("a field block in three", OK, frame(HEADERS, 1, 1, GET[:3]) + frame(CONT, 0, 1, GET[3:7]) + frame(CONT, 4, 1, GET[7:])),
    ("CONTINUATION of stream 0", "conn", frame(HEADERS, 1, 1, GET) + frame(CONT, 4, 0, b"")),
    ("CONTINUATION of another stream", "conn", frame(HEADERS, 1, 1, GET) + frame(CONT, 4, 3, b"")),
    ("CONTINUATION after the block", "conn", post() + frame(CONT, 4, 1, GET)),
    ("CONTINUATION after the last", "conn", frame(HEADERS, 0, 1, POST) + frame(CONT, 4, 1, b"") + frame(CONT, 4, 1, b"")),
    ("CONTINUATION after DATA", "conn", post() + frame(DATA, 0, 1, b"x") + frame(CONT, 4, 1, GET)),
    # Messages (section 8).
    ("HEADERS twice without the end", "stream", post() + frame(HEADERS, 4, 1, block([("a", "b")]))),
    ("trailers", OK, post() + frame(DATA, 0, 1, b"ab") + frame(HEADERS, 5, 1, block([("a", "b")]))),
    ("a name in capitals", "stream", fields(("X-Capital", "a"))),
    ("an unknown pseudo-field", "stream", only(*pseudo(), (":test", "a"))),
    (":status of a request", "stream", only(*pseudo(), (":status", "200"))),
    ("a pseudo-field in trailers", "stream", post() + frame(HEADERS, 5, 1, block([(":method", "GET")]))),
    ("a pseudo-field after others", "stream", only(("a", "b"), *pseudo())),
    ("connection", "stream", fields(("connection", "keep-alive"))),
    ("keep-alive", "stream", fields(("keep-alive", "1"))),
    ("proxy-connection", "stream", fields(("proxy-connection", "close"))),
    ("upgrade", "stream", fields(("upgrade", "h2c"))),
    ("transfer-encoding", "stream", fields(("transfer-encoding", "chunked"))),
    ("te of gzip", "stream", fields(("te", "trailers, deflate"))),
    ("te of trailers", OK, fields(("te", "trailers"))),
    ("an empty path", "refused", only(*pseudo(path=""))),
    ("no method", "stream", only(*pseudo(method=None))),
    ("no scheme", "stream", only(*pseudo(scheme=None))),
    ("no path", "stream", only(*pseudo(path=None))),
    ("two methods", "stream", only((":method", "GET"), *pseudo())),
    ("two schemes", "stream", only((":scheme", "https"), *pseudo())),
    ("two paths", "stream", only((":path", "/public/h2"), *pseudo())),
    ("two authorities", "stream", only((":authority", NAME), *pseudo())),
    ("a length that is not the body's", "refused", post(1, block([("content-length", "1")])) + frame(DATA, 1, 1, b"test")),
    ("a length that is not the bodies'", "refused", post(1, block([("content-length", "1")])) + frame(DATA, 0, 1, b"test") + frame(DATA, 1, 1, b"test")),
    ("a length of more than comes", "refused", post(1, block([("content-length", "9")])) + frame(DATA, 1, 1, b"test")),
    ("a length of a GET without a body", "refused", fields(("content-length", "9"))),
    ("two lengths", "refused", post(1, block([("content-length", "4"), ("content-length", "9")])) + frame(DATA, 1, 1, b"test")),
    ("a length with a sign", "refused", post(1, block([("content-length", "+4")])) + frame(DATA, 1, 1, b"test")),
    ("a list of lengths", "refused", post(1, block([("content-length", "4, 4")])) + frame(DATA, 1, 1, b"test")),
    # What HTTP/1 would read another way.
    ("CR LF in a value", "refused", raw(b"x", b"a\r\ntransfer-encoding: chunked")),
    ("LF in a value", "refused", raw(b"x", b"a\nb")),
    ("CR in a value", "refused", raw(b"x", b"a\rb")),
    ("NUL in a value", "refused", raw(b"x", b"a\0b")),
    ("CR LF in a name", "refused", raw(b"x\r\ny", b"a")),
    ("a colon in a name", "refused", raw(b"x:y", b"a")),
    ("a blank in a name", "refused", raw(b"x y", b"a")),
    ("an empty name", "refused", raw(b"", b"a")),
    ("a NUL in a name", "refused", raw(b"x\0", b"a")),
    ("CR LF in the path", "refused", frame(HEADERS, 5, 1, block(pseudo(path=None)) + literal(b":path", b"/public HTTP/1.1\r\nX: y"))),
    ("a blank in the path", "refused", only(*pseudo(path="/public/h2 HTTP/1.1"))),
    ("a path without a slash", "refused", only(*pseudo(path="public"))),
    ("a path that is a URL", "refused", only(*pseudo(path="https://other.test/public"))),
    ("dots in the path", "refused", only(*pseudo(path="/public/../orders"))),
    ("CR LF in the method", "refused", frame(HEADERS, 5, 1, block(pseudo(method=None)) + literal(b":method", b"GET / HTTP/1.1\r\nX: y"))),
    ("a blank in the method", "refused", only(*pseudo(method="GET /x"))),
    ("an empty method", "refused", only(*pseudo(method=""))),
    ("a host that is not the authority", "refused", fields(("host", "other.test"))),
    ("two hosts", "refused", fields(("host", NAME), ("host", NAME))),
    ("an authority with a user", "refused", only(*pseudo(authority="x@" + NAME))),
    ("an authority with a path", "refused", only(*pseudo(authority=NAME + "/x"))),
    ("an empty authority", "refused", only(*pseudo(authority=""))),
    ("another authority than the handshake's", "refused", only(*pseudo(authority="other.test"))),
    ("CONNECT", "refused", only((":method", "CONNECT"), (":authority", NAME + ":443"))),
    ("CONNECT with a path", "refused", only(*pseudo("CONNECT"))),
    ("an extended CONNECT that was not offered", "refused", only(*pseudo("CONNECT"), (":protocol", "websocket"))),
    ("two tokens", "refused", fields(("authorization", "Bearer a"), ("authorization", "Bearer b"))),
    ("a list of fields of 64 KiB", "refused", frame(HEADERS, 1, 1, GET) + b"".join(frame(CONT, 4 * (n == 7), 1, block([("x%d" % n, "y" * 8100)])) for n in range(8))),
    ("too many fields", "refused", fields(*[("x%d" % n, "y") for n in range(200)])),
    # HPACK (RFC 7541).
    ("an index beyond both tables", "conn", frame(HEADERS, 5, 1, GET + b"\xc6")),
    ("a name's index beyond both tables", "conn", frame(HEADERS, 5, 1, GET + b"\x7f\x20\x01a")),
    ("index 0", "conn", frame(HEADERS, 5, 1, GET + b"\x80")),
    ("a table larger than allowed", "conn", frame(HEADERS, 5, 1, b"\x3f\xe2\x1f" + GET)),
    ("a table's size at the end", "conn", frame(HEADERS, 5, 1, GET + b"\x20")),
    ("a table's size at the beginning", OK, frame(HEADERS, 5, 1, b"\x20" + GET)),
    ("Huffman padding of more than 7 bits", "conn", frame(HEADERS, 5, 1, GET + b"\x00\x01x\x82\xff\xff")),
    ("Huffman padding of zeros", "conn", frame(HEADERS, 5, 1, GET + b"\x00\x01x\x81\x18")),
    ("Huffman with an end of string", "conn", frame(HEADERS, 5, 1, GET + b"\x00\x01x\x85\xff\xff\xff\xff\xff")),
    ("an endless integer", "conn", frame(HEADERS, 5, 1, GET + b"\x7f" + b"\xff" * 20)),
    ("a string longer than its block", "conn", frame(HEADERS, 5, 1, GET + b"\x00\x01x\x7e")),
]


def outcome(stream, expected):
    """What comes first of what decides the case."""
    kept = b""

    def need(count):
        nonlocal kept
        while len(kept) < count:
            more = stream.recv(65536)
            if not more:
                raise EOFError
            kept += more
        taken, kept = kept[:count], kept[count:]
        return taken

    seen_rst = None
    try:
        while True:
            head = need(9)
            payload = need(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            number = int.from_bytes(head[5:9], "big")
            if kind == SETTINGS and not flags & 1:
                stream.sendall(frame(SETTINGS, 1, 0))
            elif kind == GOAWAY:
                return f"goaway {int.from_bytes(payload[4:8], 'big')}"
            elif kind == RST:
                seen_rst = f"reset {int.from_bytes(payload, 'big')}"
                if expected not in ("conn", "alive"):
                    return seen_rst
            elif kind == HEADERS and expected in ("ok", "refused"):
                # :status is the first field: 200 and 400 have an index, others are literals.
                if payload[:1] == b"\x88":
                    return "status 200"
                return "status 400" if payload[:1] == b"\x8c" else f"status {payload[:6].hex()}"
            elif kind == PING and flags & 1 and payload == b"probe..." and expected == "alive":
                return "alive"
    except EOFError:
        return "closed"
    except TimeoutError:
        return seen_rst or "nothing"
    except OSError as error:
        return f"closed {type(error).__name__}"


def run(case):
    """One case on a connection of its own."""
    name, expected, octets = case
    with connected() as stream:
        try:
            stream.sendall(PREFACE + settings() + octets)
        except OSError:
            # Refused before all was sent; the reason is there to be read.
            pass
        came = outcome(stream, expected)
    ended = came.startswith(("goaway", "closed"))
    held = {
        "conn": ended,
        "stream": ended or came.startswith("reset"),
        "refused": ended or came.startswith("reset") or (came.startswith("status") and came != "status 200"),
        "ok": came == "status 200",
        "alive": came == "alive",
    }[expected]
    return {"name": name, "expected": expected, "came": came, "held": held}


def bad_preface():
    """What is not the preface ends the connection."""
    with connected() as stream:
        stream.sendall(b"INVALID CONNECTION PREFACE\r\n\r\n" + settings())
        came = outcome(stream, "conn")
    held = came.startswith(("goaway", "closed"))
    return {"name": "another preface", "expected": "conn", "came": came, "held": held}


with ThreadPoolExecutor(6) as pool:
    results = list(pool.map(run, CASES))
json.dump(results + [bad_preface()], sys.stdout)
