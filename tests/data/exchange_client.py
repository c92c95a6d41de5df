"""One client, three protocols: HTTP/1.1 on a socket, HTTP/2 by the h2 library, HTTP/3 by aioquic.

Reads one JSON object from standard input: where to connect and as whom, and the requests, which are
made one after the other on one connection. Writes one JSON array: what came of each.

For HTTP/3 `until_closed` stays after the last request until the server closes, and a request may go
out `from_another_port`.

A request: method, path, fields [[name, value]], body_bytes (of "u"), length (announce it), trailers,
expect (wait for 100 before the body), pause_after_bytes (then wait for the answer, and leave the rest
unsent), give_up_after_bytes (of the answer or of the body, then abandon), pieces (size of a DATA frame).
An answer: status, fields, interim (statuses), body_bytes, body (its beginning), digest (SHA-256),
trailers, complete, error.
"""

import asyncio
import hashlib
import json
import socket
import ssl
import sys

PIECE_BYTES = 16 * 1024
KEPT_BYTES = 64 * 1024
LIMIT_S = 120


class Answer:
    def __init__(self):
        self.status = 0
        self.fields = []
        self.interim = []
        self.trailers = []
        self.body = bytearray()
        self.body_bytes = 0
        self.digest = hashlib.sha256()
        self.complete = False
        self.error = ""

    def head(self, fields):
        fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in fields]
        if self.status:
            self.trailers += fields
            return
        status = int(next(value for name, value in fields if name == ":status"))
        if status < 200:
            self.interim.append(status)
            return
        self.status = status
        self.fields = [field for field in fields if not field[0].startswith(":")]

    def data(self, data):
        self.body_bytes += len(data)
        self.digest.update(data)
        if len(self.body) < KEPT_BYTES:
            self.body += data[: KEPT_BYTES - len(self.body)]

    def told(self):
        return {
            "status": self.status,
            "fields": self.fields,
            "interim": self.interim,
            "trailers": self.trailers,
            "body": self.body.decode("latin-1"),
            "body_bytes": self.body_bytes,
            "digest": self.digest.hexdigest(),
            "complete": self.complete,
            "error": self.error,
        }


def pieces(request):
    """The body in pieces, as many as are to be sent."""
    left = request.get("body_bytes", 0)
    for stop in ("pause_after_bytes", "give_up_sending_after_bytes"):
        if stop in request:
            left = min(left, request[stop])
    size = request.get("pieces", PIECE_BYTES)
    while left:
        piece = b"u" * min(left, size)
        left -= len(piece)
        yield piece


def has_body(request):
    return "body_bytes" in request or "trailers" in request


def stops(request):
    return "pause_after_bytes" in request or "give_up_sending_after_bytes" in request


def fields_of(case, request):
    fields = [
        (b":method", request["method"].encode()),
        (b":scheme", b"https"),
        (b":authority", request.get("authority", case["authority"]).encode()),
        (b":path", request["path"].encode()),
    ]
    fields += [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in request.get("fields", [])
    ]
    if request.get("length"):
        announced = request.get("announce_bytes", request.get("body_bytes", 0))
        fields.append((b"content-length", str(announced).encode()))
    if request.get("expect"):
        fields.append((b"expect", b"100-continue"))
    return fields


def tls(case, protocol):
    context = ssl.create_default_context(cafile=case["authority_file"])
    if case.get("certificate"):
        context.load_cert_chain(case["certificate"], case["key"])
    context.set_alpn_protocols([protocol])
    raw = socket.create_connection((case["address"], case["port"]), timeout=LIMIT_S)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(raw, server_hostname=case["host"])


class Http1:
    """By hand, so that everything can be sent."""

    def __init__(self, case):
        self.case = case
        self.stream = None

    def request(self, request):
        if self.stream is None:
            self.stream = tls(self.case, "http/1.1")
            self.reader = self.stream.makefile("rb")
        answer = Answer()
        try:
            self.exchange(request, answer)
        except Exception as error:
            answer.error = f"{type(error).__name__}: {error}"
            if self.used and not (answer.status or answer.interim):
                # Closed while it was idle: asked again on another (RFC 9112 section 9.3.1).
                self.close()
                return self.request(request)
        self.used = True
        if not answer.complete or self.closing:
            self.close()
        return answer

    closing = False
    used = False

    def exchange(self, request, answer):
        head = [f"{request['method']} {request['path']} HTTP/1.1"]
        head.append(f"Host: {request.get('authority', self.case['authority'])}")
        head += [f"{name}: {value}" for name, value in request.get("fields", [])]
        chunked = has_body(request) and not request.get("length")
        if chunked:
            head.append("Transfer-Encoding: chunked")
        if request.get("length"):
            announced = request.get("announce_bytes", request.get("body_bytes", 0))
            head.append(f"Content-Length: {announced}")
        if request.get("expect"):
            head.append("Expect: 100-continue")
        self.stream.sendall(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        if request.get("expect"):
            self.read_head(answer)
            if answer.status:
                self.closing = True
                self.read_body(request, answer)
                return
        try:
            for piece in pieces(request):
                if chunked:
                    piece = b"%x\r\n%s\r\n" % (len(piece), piece)
                self.stream.sendall(piece)
            if chunked and not stops(request):
                trailers = "".join(f"{name}: {value}\r\n" for name, value in request.get("trailers", []))
                self.stream.sendall(b"0\r\n" + trailers.encode("latin-1") + b"\r\n")
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            pass  # answered before the end; the answer may still be read
        if "give_up_sending_after_bytes" in request:
            answer.error = "given up"
            return
        while not answer.status:
            self.read_head(answer)
        if "pause_after_bytes" in request:
            self.closing = True
        self.read_body(request, answer)

    def read_head(self, answer):
        line = self.reader.readline()
        if not line:
            raise EOFError("no answer")
        fields = [(b":status", line.split()[1])]
        while (line := self.reader.readline().strip()):
            name, value = line.split(b":", 1)
            fields.append((name.lower(), value.strip()))
        answer.head(fields)

    def read_body(self, request, answer):
        fields = dict((name, value) for name, value in answer.fields)
        self.closing = self.closing or fields.get("connection", "").lower() == "close"
        if request["method"] == "HEAD" or answer.status in (204, 304):
            answer.complete = True
        elif "chunked" in fields.get("transfer-encoding", ""):
            while size := int(self.reader.readline().split(b";")[0], 16):
                self.read(request, answer, size)
                if answer.error:
                    return
                self.reader.readline()
            while (line := self.reader.readline().strip()):
                name, value = line.split(b":", 1)
                answer.trailers.append([name.decode().lower(), value.strip().decode("latin-1")])
            answer.complete = True
        elif "content-length" in fields:
            self.read(request, answer, int(fields["content-length"]))
            answer.complete = not answer.error
        else:
            self.closing = True
            while data := self.reader.read(PIECE_BYTES):
                answer.data(data)
            answer.complete = True

    def read(self, request, answer, left):
        while left:
            data = self.reader.read1(min(left, PIECE_BYTES))
            if not data:
                raise EOFError("torn")
            left -= len(data)
            answer.data(data)
            if answer.body_bytes >= request.get("give_up_after_bytes", 1 << 60):
                answer.error = "given up"
                return

    def close(self):
        self.closing = self.used = False
        if self.stream is not None:
            self.reader.close()
            self.stream.close()
        self.stream = None


class Http2:
    def __init__(self, case):
        self.case = case
        self.stream = None

    def connect(self):
        import h2.config
        import h2.connection

        self.stream = tls(self.case, "h2")
        settings = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.h2 = h2.connection.H2Connection(settings)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(16 << 20)
        self.flush()

    def flush(self):
        self.stream.sendall(self.h2.data_to_send())

    def request(self, request):
        answer = Answer()
        try:
            if self.stream is None:
                self.connect()
            self.exchange(request, answer)
        except Exception as error:
            answer.error = f"{type(error).__name__}: {error}"
            self.close()
        return answer

    def exchange(self, request, answer):
        number = self.h2.get_next_available_stream_id()
        body, ended = has_body(request), [False]
        self.h2.send_headers(number, fields_of(self.case, request), end_stream=not body)
        self.h2.increment_flow_control_window(4 << 20, number)
        self.flush()
        if body:
            if request.get("expect"):
                self.stream.settimeout(2)
                try:
                    while not (answer.interim or answer.status or answer.error):
                        self.events(number, request, answer, ended)
                except TimeoutError:
                    pass  # a client need not wait for ever (RFC 9110 section 10.1.1)
                self.stream.settimeout(LIMIT_S)
            self.send(number, request, answer, ended)
        if "give_up_sending_after_bytes" in request:
            answer.error = "given up"
            self.reset(number)
            return
        while not (answer.complete or answer.error):
            self.events(number, request, answer, ended)
        if not ended[0] and body and answer.complete and stops(request):
            self.reset(number)

    def reset(self, number):
        import h2.exceptions

        try:
            self.h2.reset_stream(number, 8)
            self.flush()
        except (h2.exceptions.ProtocolError, KeyError):
            pass  # reset or ended by the other side already

    def send(self, number, request, answer, ended):
        import h2.exceptions

        try:
            for piece in pieces(request):
                while piece:
                    room = min(
                        self.h2.local_flow_control_window(number),
                        self.h2.max_outbound_frame_size,
                        len(piece),
                    )
                    if not room:
                        self.events(number, request, answer, ended)
                        if answer.complete or answer.error:
                            return
                        continue
                    self.h2.send_data(number, piece[:room])
                    piece = piece[room:]
                    self.flush()
            if stops(request):
                return
            if request.get("trailers"):
                trailers = [(n.encode(), v.encode()) for n, v in request["trailers"]]
                self.h2.send_headers(number, trailers, end_stream=True)
            else:
                self.h2.end_stream(number)
            ended[0] = True
            self.flush()
        except h2.exceptions.StreamClosedError:
            pass  # answered before the end

    def events(self, number, request, answer, ended):
        import h2.events

        data = self.stream.recv(65536)
        if not data:
            answer.error = answer.error or "connection closed"
            return
        for event in self.h2.receive_data(data):
            if getattr(event, "stream_id", number) != number:
                continue
            if isinstance(event, h2.events.DataReceived):
                answer.data(event.data)
                self.h2.acknowledge_received_data(event.flow_controlled_length, number)
                if answer.body_bytes >= request.get("give_up_after_bytes", 1 << 60):
                    answer.error = "given up"
                    self.reset(number)
                    return
            elif isinstance(
                event,
                (
                    h2.events.ResponseReceived,
                    h2.events.InformationalResponseReceived,
                    h2.events.TrailersReceived,
                ),
            ):
                answer.head(event.headers)
            elif isinstance(event, h2.events.StreamEnded):
                answer.complete = True
            elif isinstance(event, h2.events.StreamReset):
                # After a whole answer it only spares the rest of the body.
                if not answer.complete:
                    answer.error = f"reset {int(event.error_code)}"
            elif isinstance(event, h2.events.ConnectionTerminated):
                answer.error = answer.error or f"goaway {int(event.error_code)}"
        self.flush()

    def close(self):
        if self.stream is not None:
            self.stream.close()
        self.stream = None


async def http3(case):
    from aioquic.asyncio import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamReset

    class Http(H3Connection):
        """aioquic does not know that an answer to HEAD has a length and no body, and so has 304."""

        bodiless = set()

        def _check_content_length(self, stream):
            if stream.stream_id not in self.bodiless:
                super()._check_content_length(stream)

    class Client(QuicConnectionProtocol):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.http = Http(self._quic)
            self.streams = {}
            self.stopped = set()
            self.changed = asyncio.Event()
            self.terminated = None

        def quic_event_received(self, event):
            if isinstance(event, StreamReset) and event.stream_id in self.streams:
                answer = self.streams[event.stream_id]
                if not answer.complete:
                    answer.error = answer.error or f"reset {event.error_code}"
            elif isinstance(event, StopSendingReceived):
                self.stopped.add(event.stream_id)
            elif isinstance(event, ConnectionTerminated):
                self.terminated = f"closed {event.error_code} {event.reason_phrase}"
                for answer in self.streams.values():
                    if not answer.complete:
                        answer.error = answer.error or self.terminated
            for http in self.http.handle_event(event):
                answer = self.streams.get(http.stream_id)
                if answer is None:
                    continue
                if isinstance(http, HeadersReceived):
                    answer.head(http.headers)
                elif isinstance(http, DataReceived):
                    answer.data(http.data)
                answer.complete = answer.complete or http.stream_ended
            self.changed.set()

        async def until(self, condition, limit_s=LIMIT_S):
            async with asyncio.timeout(limit_s):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()

        async def exchange(self, request):
            answer = Answer()
            if self.terminated:
                answer.error = self.terminated
                return answer
            number = self._quic.get_next_available_stream_id()
            self.streams[number] = answer
            if request["method"] == "HEAD" or request["path"].endswith("/304"):
                self.http.bodiless.add(number)
            body = has_body(request)
            self.http.send_headers(number, fields_of(case, request), end_stream=not body)
            self.transmit()
            over = lambda: answer.complete or answer.error
            if body and request.get("expect"):
                try:
                    await self.until(lambda: answer.interim or over(), 2)
                except TimeoutError:
                    pass  # a client need not wait for ever (RFC 9110 section 10.1.1)
            if body and over():
                self._quic.reset_stream(number, 0x100)  # answered: the body is not wanted
                self.transmit()
            elif body:
                await self.send(number, request, over)
            if "give_up_sending_after_bytes" in request:
                answer.error = "given up"
                self.abandon(number)
                return answer
            kept = request.get("give_up_after_bytes", 1 << 60)
            await self.until(lambda: over() or answer.body_bytes >= kept)
            if not over():
                answer.error = "given up"
                self.abandon(number)
            elif "pause_after_bytes" in request and number not in self.stopped:
                self.abandon(number)
            return answer

        async def rebind(self):
            """What a client behind another address does: the same connection from a new socket."""
            fresh = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            fresh.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            fresh.bind(("::", 0))
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(lambda: self, sock=fresh)

        def abandon(self, number):
            for end in (self._quic.reset_stream, self._quic.stop_stream):
                try:
                    end(number, 0x10C)
                except (AssertionError, ValueError):
                    pass  # ended already
            self.transmit()

        async def send(self, number, request, over):
            stream = self._quic._streams[number]
            try:
                for piece in pieces(request):
                    # aioquic forgets a stream whose answer is whole.
                    if over() or number in self.stopped:
                        return
                    self.http.send_data(number, piece, end_stream=False)
                    self.transmit()
                    # aioquic keeps what it is given; as much as two windows is enough.
                    while len(stream.sender._buffer) > 1 << 21:
                        await asyncio.sleep(0.002)
                        if over() or number in self.stopped:
                            return
                    await asyncio.sleep(0)
                if stops(request) or over():
                    return
                if request.get("trailers"):
                    trailers = [(n.encode(), v.encode()) for n, v in request["trailers"]]
                    self.http.send_headers(number, trailers, end_stream=True)
                else:
                    self.http.send_data(number, b"", end_stream=True)
                self.transmit()
            except AssertionError:
                pass  # stopped by the other side: answered before the end

    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        server_name=case["host"],
        max_data=8 << 20,
        max_stream_data=4 << 20,
    )
    configuration.load_verify_locations(case["authority_file"])
    if case.get("certificate"):
        configuration.load_cert_chain(case["certificate"], case["key"])
    answers = []
    try:
        async with connect(
            case["address"],
            case["port"],
            configuration=configuration,
            create_protocol=Client,
        ) as client:
            for request in case["requests"]:
                try:
                    if request.get("from_another_port"):
                        await client.rebind()
                    answer = await client.exchange(request)
                except Exception as error:
                    answer = Answer()
                    answer.error = f"{type(error).__name__}: {error}"
                answers.append(answer)
            if case.get("until_closed"):
                await client.until(lambda: client.terminated)
                answers[-1].error = client.terminated
    except Exception as error:
        while len(answers) < len(case["requests"]):
            answer = Answer()
            answer.error = f"{type(error).__name__}: {error}"
            answers.append(answer)
    return answers


case = json.load(sys.stdin)
if case["protocol"] == "h3":
    answers = asyncio.run(http3(case))
else:
    client = {"h1": Http1, "h2": Http2}[case["protocol"]](case)
    answers = [client.request(request) for request in case["requests"]]
    client.close()
json.dump([answer.told() for answer in answers], sys.stdout)
