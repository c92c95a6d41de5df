"""Sends octets as they are over TLS, and tells what comes back.

Reads one JSON object from standard input: where to connect, with which certificate, and the cases. A
case is what to send before the handshake, what after, and what after the first answer. Writes one JSON
array: for each case both answers, or why there is none.
"""

import json
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor

plan = json.load(sys.stdin)
# Long beside anything that is waited for, short beside a test.
LIMIT_S = plan.get("limit_s", 30)


def context():
    """Trusts the site's authority; shows the client's certificate where there is one."""
    made = ssl.create_default_context(cafile=plan["ca"])
    if plan.get("cert"):
        made.load_cert_chain(plan["cert"], plan["key"])
    made.set_alpn_protocols([plan.get("alpn", "http/1.1")])
    return made


TLS = context()


def answer(stream, kept):
    """One answer as text; what was read beyond it stays in `kept`."""
    while True:
        while b"\r\n\r\n" not in kept:
            more = stream.recv(65536)
            if not more:
                return None
            kept += more
        head, rest = bytes(kept).split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        length = 0
        for line in lines[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                length = int(value)
        while len(rest) < length:
            more = stream.recv(65536)
            if not more:
                return None
            rest += more
        kept[:] = rest[length:]
        if not lines[0].startswith("HTTP/1.1 1"):
            return head.decode("latin-1") + "\r\n\r\n" + rest[:length].decode("latin-1")


def run(case):
    """What comes back from one connection."""
    told = {"first": None, "second": None, "error": None}
    since = time.monotonic()
    try:
        with socket.create_connection((plan["address"], plan["port"]), LIMIT_S) as plain:
            # One octet a segment where the case says so, else all at once.
            before = bytes.fromhex(case.get("before", ""))
            if case.get("drip"):
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for octet in before:
                    plain.sendall(bytes([octet]))
                    time.sleep(0.002)
            elif before:
                plain.sendall(before)
            if case.get("wait_plain"):
                told["first"] = plain.recv(1).hex()
                return told
            with TLS.wrap_socket(plain, server_hostname=plan["name"]) as stream:
                kept = bytearray()
                stream.sendall(bytes.fromhex(case["send"]))
                told["first"] = answer(stream, kept)
                if case.get("then") and told["first"] is not None:
                    stream.sendall(bytes.fromhex(case["then"]))
                    told["second"] = answer(stream, kept)
                elif case.get("second"):
                    told["second"] = answer(stream, kept)
    except OSError as error:
        told["error"] = f"{type(error).__name__}: {error}"
    finally:
        told["seconds"] = time.monotonic() - since
    return told


with ThreadPoolExecutor(plan.get("threads", 1)) as pool:
    json.dump(list(pool.map(run, plan["cases"])), sys.stdout)
