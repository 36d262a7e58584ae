"""WebSocket conformance (RFC 6455), after the sections of the Autobahn test suite, 1 to 7, that
are about the protocol itself. `websocket_cases.py serve <port>` is an echo with the package
`websockets`; `websocket_cases.py call <address> <host> <address> <host>` sends every case to both
addresses, prints `ok <case>` or `FAIL <case>: <what>` for what the second one answers, and says
so when the first one answers otherwise. The client is raw: what comes back is compared frame by
frame, with the code of the close."""

import asyncio
import logging
import os
import socket
import struct
import sys

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode, payload=b"", fin=True, rsv=0, mask=True):
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack(">H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", len(payload))
    if not mask:
        return head + payload
    key = os.urandom(4)
    stretched = key * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(stretched[: len(payload)], "big")
    return head + key + number.to_bytes(len(payload), "big")


def close(code=None, reason=b""):
    return frame(CLOSE, b"" if code is None else struct.pack(">H", code) + reason)


def cases():
    """Name, bytes to send, length of the writes, what comes back: frames and how it ends. Whoever
    is to be told `normal` goodbye says goodbye when all else has come back."""
    normal = [("close", 1000)]
    for kind, opcode in (("text", TEXT), ("binary", BINARY)):
        for size in (0, 125, 126, 127, 128, 65535, 65536, 1 << 20):
            payload = (b"*" if opcode == TEXT else b"\xfe") * size
            for chop in (0, 997):
                if chop or size < 1 << 20:
                    name = f"1 {kind} {size} in writes of {chop or 'all'}"
                    yield name, frame(opcode, payload), chop, [(opcode, payload)] + normal
    for payload in (b"", b"Hello", bytes([0, 255, 254, 253]), b"\xfe" * 125):
        yield f"2 ping {len(payload)}", frame(PING, payload), 0, [(PONG, payload)] + normal
    yield "2 ping byte by byte", frame(PING, b"\xfe" * 125), 1, [(PONG, b"\xfe" * 125)] + normal
    yield "2 ping too long", frame(PING, b"x" * 126), 0, [("close", 1002)]
    yield "2 pong unasked", frame(PONG, b"x"), 0, normal
    pings = [b"%d" % i for i in range(10)]
    sent = b"".join(frame(PING, ping) for ping in pings)
    yield "2 ten pings", sent, 0, [(PONG, ping) for ping in pings] + normal
    for rsv in range(1, 8):
        yield f"3 reserved bits {rsv}", frame(TEXT, b"x", rsv=rsv), 0, [("close", 1002)]
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield f"4 reserved opcode {opcode}", frame(opcode, b"x"), 0, [("close", 1002)]
    yield "5 ping in two frames", frame(PING, b"a", fin=False) + frame(0, b"b"), 0, [("close", 1002)]
    two = frame(TEXT, b"frag", fin=False) + frame(0, b"ment")
    for chop in (0, 1):
        yield f"5 text in two frames, writes of {chop}", two, chop, [(TEXT, b"fragment")] + normal
    between = frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(0, b"b")
    for chop in (0, 1):
        expect = [(PONG, b"p"), (TEXT, b"ab")] + normal
        yield f"5 ping between fragments, writes of {chop}", between, chop, expect
    yield "5 continuation of nothing", frame(0, b"x"), 0, [("close", 1002)]
    yield "5 text between fragments", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 0, [("close", 1002)]
    many = frame(BINARY, b"x" * 100, fin=False)
    many += b"".join(frame(0, b"x" * 100, fin=False) for _ in range(998)) + frame(0, b"x" * 100)
    yield "5 a thousand fragments", many, 0, [(BINARY, b"x" * 100_000)] + normal
    good = "\u03ba\u1f79\u03c3\u03bc\u03b5 \U0001f600".encode()
    yield "6 UTF-8", frame(TEXT, good), 0, [(TEXT, good)] + normal
    split = frame(TEXT, good[:1], fin=False) + frame(0, good[1:])
    yield "6 UTF-8, a character in two frames", split, 1, [(TEXT, good)] + normal
    for bad in (b"\xce\xba\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xe2\x82", b"\x80"):
        yield f"6 not UTF-8 {bad.hex()}", frame(TEXT, bad), 0, [("close", 1007)]
    yield "7 close", close(1000), 0, normal
    yield "7 close without a code", close(), 0, [("close", None)]
    yield "7 close with a reason", close(1000, b"r" * 123), 0, normal
    yield "7 close of one byte", frame(CLOSE, b"x"), 0, [("close", 1002)]
    yield "7 close too long", close(1000, b"r" * 124), 0, [("close", 1002)]
    yield "7 close with no UTF-8", close(1000, b"\xff"), 0, [("close", 1007)]
    yield "7 nothing after close", close(1000) + frame(TEXT, b"x") + frame(PING), 0, normal
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield f"7 close {code}", close(code), 0, [("close", code)]
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999):
        yield f"7 close {code}, which nobody may send", close(code), 0, [("close", 1002)]
    yield "7 no mask", frame(TEXT, b"x", mask=False), 0, [("close", 1002)]


class Connection:
    def __init__(self, address, host):
        name, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((name, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.socket.sendall(
            f"GET /chat HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.buffer:
            self.fill()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode().lower().split("\r\n")
        assert lines[0].startswith("http/1.1 101"), lines[0]
        assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in lines, lines

    def fill(self):
        bytes_ = self.socket.recv(1 << 16)
        if not bytes_:
            raise EOFError
        self.buffer += bytes_

    def take(self, length):
        while len(self.buffer) < length:
            self.fill()
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def frame(self):
        first, second = self.take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.take(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.take(8))
        return first, self.take(length)

    def answers(self, before_goodbye):
        """Frames up to the end of the connection; parts of a message are joined."""
        seen, message = [], None
        try:
            while True:
                if len(seen) == before_goodbye:
                    self.socket.sendall(close(1000))
                    before_goodbye = None
                first, payload = self.frame()
                opcode, fin = first & 0x0F, first & 0x80
                if opcode == CLOSE:
                    code = struct.unpack(">H", payload[:2])[0] if payload else None
                    seen.append(("close", code))
                elif opcode >= 8:
                    seen.append((opcode, payload))
                else:
                    opcode, payload = (opcode, payload) if opcode else (message[0], message[1] + payload)
                    message = (opcode, payload)
                    if fin:
                        seen.append(message)
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return seen
        except TimeoutError:
            return seen + ["no end"]


def attempt(address, host, sent, chop, expect):
    before_goodbye = len(expect) - 1 if sent[0] != 0x88 and expect[-1] == ("close", 1000) else None
    connection = Connection(address, host)
    try:
        for at in range(0, len(sent), chop or len(sent) or 1):
            connection.socket.sendall(sent[at : at + chop] if chop else sent)
    except (BrokenPipeError, ConnectionResetError):
        pass
    answers = connection.answers(before_goodbye)
    connection.socket.close()
    return answers


def short(answers):
    return [
        (kind, what if len(what) < 20 else f"{len(what)} bytes") if isinstance(what, bytes) else (kind, what)
        for kind, what in (one if isinstance(one, tuple) else (one, "") for one in answers)
    ]


def call(direct, direct_host, meshed, meshed_host):
    count = 0
    for name, sent, chop, expect in cases():
        count += 1
        try:
            seen = attempt(meshed, meshed_host, sent, chop, expect)
        except Exception as error:  # every case is to have its line
            seen = [(type(error).__name__, str(error))]
        if seen == expect:
            print("ok", name)
        else:
            alone = attempt(direct, direct_host, sent, chop, expect)
            beside = "the same without the mesh" if alone == seen else f"without the mesh {short(alone)}"
            kind = "note" if alone == seen else "FAIL"
            print(f"{kind} {name}: {short(seen)}, expected {short(expect)}; {beside}")
    import websockets

    print(f"done {count} websockets {websockets.__version__}")


async def serve(port):
    from websockets.asyncio.server import serve as listen

    # It tells of every wrong client.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    options = {"max_size": None, "compression": None, "ping_interval": None, "max_queue": None}
    async with listen(echo, "127.0.0.1", port, **options):
        print("ready", flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2])))
    else:
        call(*sys.argv[2:6])
