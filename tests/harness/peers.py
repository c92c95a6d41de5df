"""Servers and clients that are not ours: HTTP/2 by h2, WebSocket by websockets, gRPC by grpcio.

    peers.py http2 PORT [--tls CERT KEY] [--client-ca CA]
    peers.py websocket PORT
    peers.py grpc PORT
    peers.py websocket-client URL HOST:PORT CA CERT KEY COUNT [--token TOKEN]
    peers.py websocket-http2-client PATH HOST:PORT CA CERT KEY
    peers.py grpc-client HOST:PORT CA CERT KEY

Each writes one JSON object a line: {"ready": true} when it takes connections, what it saw, what it got.
"""

import asyncio
import json
import socket
import ssl
import sys

NAME = "gateway.test"


def say(**fields):
    print(json.dumps(fields), flush=True)


def option(words, name, count):
    if name not in words:
        return None
    at = words.index(name)
    return words[at + 1 : at + 1 + count]


# HTTP/2


def serve_http2(words):
    import h2.config
    import h2.connection
    import h2.errors
    import h2.events

    context = None
    tls = option(words, "--tls", 2)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        context.set_alpn_protocols(["h2"])
        authority = option(words, "--client-ca", 1)
        if authority:
            context.load_verify_locations(authority[0])
            context.verify_mode = ssl.CERT_REQUIRED
    seen = {}

    async def connection(reader, writer):
        peer = writer.get_extra_info("peercert") or {}
        names = [value for field in peer.get("subject", ()) for key, value in field if key == "commonName"]
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        conn = h2.connection.H2Connection(config)
        conn.initiate_connection()
        writer.write(conn.data_to_send())
        requests = {}

        def answer(stream):
            fields = requests.pop(stream)
            path = fields[":path"]
            seen[path] = seen.get(path, 0) + 1
            first = seen[path] == 1
            last = path.rsplit("/", 1)[-1]
            say(path=path, fields=fields, client=names)
            if last == "refuse" and first:
                conn.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
                return True
            if last == "goaway" and first:
                # Everything before this stream was looked at; this one was not.
                conn.close_connection(last_stream_id=max(stream - 2, 0))
                return False
            if last == "die" and first:
                return False
            conn.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
            if last == "cut":
                conn.send_data(stream, b"begun")
                conn.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
                return True
            conn.send_data(stream, json.dumps({"headers": list(fields.items())}).encode())
            conn.send_headers(stream, [("x-trailer", "end")], end_stream=True)
            return True

        go_on = True
        while go_on:
            data = await reader.read(65536)
            if not data:
                break
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    requests[event.stream_id] = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    go_on = answer(event.stream_id) and go_on
            writer.write(conn.data_to_send())
            await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(connection, "127.0.0.1", int(words[0]), ssl=context)
        say(ready=True)
        async with server:
            await server.serve_forever()

    asyncio.run(main())


# WebSocket


def serve_websocket(words):
    from websockets.asyncio.server import serve

    async def echo(websocket):
        fields = websocket.request.headers
        say(path=websocket.request.path, user=fields.get("X-User-ID"), method=fields.get("X-Auth-Method"))
        async for message in websocket:
            await websocket.send(message)

    async def main():
        async with serve(echo, "127.0.0.1", int(words[0]), max_size=1 << 24, subprotocols=["echo"]) as server:
            say(ready=True)
            await server.serve_forever()

    asyncio.run(main())


def client_context(authority, certificate, key):
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    return context


def websocket_client(words):
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    url, address, authority, certificate, key, count = words[:6]
    host, port = address.rsplit(":", 1)
    token = option(words, "--token", 1)
    fields = {"Authorization": "Bearer " + token[0]} if token else {}

    async def main():
        context = client_context(authority, certificate, key)
        try:
            async with connect(
                url,
                host=host,
                port=int(port),
                ssl=context,
                additional_headers=fields,
                subprotocols=["echo"],
                max_size=1 << 24,
                open_timeout=30,
                proxy=None,
            ) as websocket:
                for number in range(int(count)):
                    for message in ("text %d" % number, bytes([number % 256]) * (1 << (number % 20))):
                        await websocket.send(message)
                        back = await websocket.recv()
                        if back != message:
                            say(error="another message came back")
                            return
                say(echoed=int(count), subprotocol=websocket.subprotocol)
                if "--stay" in words:
                    try:
                        await websocket.recv()
                    except ConnectionClosed as closed:
                        say(closed=str(closed))
                    return
            say(closed="by us")
        except InvalidStatus as refused:
            say(status=refused.response.status_code)

    asyncio.run(main())


def websocket_http2_client(words):
    """RFC 8441 with h2: frames are made by hand, masked, one text message back and forth."""
    import h2.config
    import h2.connection
    import h2.events
    import h2.settings

    path, address, authority, certificate, key = words[:5]
    protocol = (option(words, "--protocol", 1) or ["websocket"])[0]
    host, port = address.rsplit(":", 1)
    context = client_context(authority, certificate, key)
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection((host, int(port)), timeout=30)
    line = context.wrap_socket(raw, server_hostname=NAME)
    conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    conn.initiate_connection()
    line.sendall(conn.data_to_send())

    def events():
        data = line.recv(65536)
        if not data:
            raise EOFError
        got = conn.receive_data(data)
        line.sendall(conn.data_to_send())
        return got

    enabled = False
    while not enabled:
        for event in events():
            if isinstance(event, h2.events.RemoteSettingsChanged):
                enabled = True
    offered = conn.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL, 0)
    say(offered=offered)
    stream = conn.get_next_available_stream_id()
    conn.send_headers(
        stream,
        [
            (":method", "CONNECT"),
            (":protocol", protocol),
            (":scheme", "https"),
            (":path", path),
            (":authority", NAME),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "echo"),
        ],
    )
    line.sendall(conn.data_to_send())
    text = b"over http/2"
    mask = b"\x01\x02\x03\x04"
    frame = bytes([0x81, 0x80 | len(text)]) + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
    received = b""
    try:
        while True:
            for event in events():
                if isinstance(event, h2.events.ResponseReceived):
                    fields = dict(event.headers)
                    say(status=int(fields[":status"]), subprotocol=fields.get("sec-websocket-protocol"))
                    if fields[":status"] != "200":
                        return
                    conn.send_data(stream, frame)
                elif isinstance(event, h2.events.DataReceived):
                    conn.acknowledge_received_data(event.flow_controlled_length, stream)
                    received += event.data
                    if len(received) >= 2 and len(received) >= 2 + received[1]:
                        say(echoed=received[2 : 2 + received[1]].decode())
                        received = b""
                        if "--stay" not in words:
                            close = bytes([0x88, 0x80]) + mask
                            conn.send_data(stream, close, end_stream=True)
                            line.sendall(conn.data_to_send())
                            return
                elif isinstance(event, (h2.events.StreamReset, h2.events.StreamEnded)):
                    say(closed=type(event).__name__)
                    return
            line.sendall(conn.data_to_send())
    except (EOFError, OSError) as ended:
        say(closed=type(ended).__name__)


# gRPC


def serve_grpc(words):
    from concurrent import futures

    import grpc

    def unary(request, context):
        fields = dict(context.invocation_metadata())
        say(path="/public.Echo/Unary", method=fields.get("x-auth-method"))
        context.set_trailing_metadata((("x-sum", str(len(request))),))
        if request == b"fail":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
        return request

    def count(request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def collect(requests, context):
        return b"".join(requests)

    def chat(requests, context):
        for request in requests:
            yield request.upper()

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("public.Echo", handlers),))
    server.add_insecure_port("127.0.0.1:" + words[0])
    server.start()
    say(ready=True)
    server.wait_for_termination()


def grpc_client(words):
    import grpc

    address, authority, certificate, key = words[:4]

    def read(path):
        with open(path, "rb") as file:
            return file.read()

    credentials = grpc.ssl_channel_credentials(read(authority), read(key), read(certificate))
    options = [("grpc.ssl_target_name_override", NAME), ("grpc.default_authority", NAME)]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        limit = 60

        def method(kind, name):
            return getattr(channel, kind)("/public.Echo/" + name)

        got, call = method("unary_unary", "Unary").with_call(b"hello", timeout=limit)
        say(unary=got.decode(), trailers=dict(call.trailing_metadata()).get("x-sum"))
        try:
            method("unary_unary", "Unary")(b"fail", timeout=limit)
        except grpc.RpcError as error:
            say(code=error.code().name, details=error.details())
        numbers = [int(number) for number in method("unary_stream", "Count")(b"1000", timeout=limit)]
        say(counted=numbers == list(range(1000)))
        parts = (bytes([number]) * 1000 for number in range(200))
        whole = method("stream_unary", "Collect")(parts, timeout=limit)
        say(collected=len(whole))
        import queue

        sent = queue.Queue()
        back = method("stream_stream", "Chat")(iter(sent.get, None), timeout=limit)
        # Each answer comes before the next request is made: both directions stream.
        chat = []
        for word in (b"one", b"two", b"three"):
            sent.put(word)
            chat.append(next(back).decode())
        sent.put(None)
        say(chat=chat, rest=len(list(back)))


roles = {
    "http2": serve_http2,
    "websocket": serve_websocket,
    "grpc": serve_grpc,
    "websocket-client": websocket_client,
    "websocket-http2-client": websocket_http2_client,
    "grpc-client": grpc_client,
}
roles[sys.argv[1]](sys.argv[2:])
