"""grpcio against grpcio. `grpc_interop.py serve <port>` serves; `grpc_interop.py call <target> <authority>` makes
every kind of call and prints a line for each: `ok <name>` or `FAIL <name>: <what>`."""

import sys
import threading
import time
from concurrent import futures

import grpc

NAME = "/bench.Interop/"
LARGE = 8 << 20
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Interop(grpc.GenericRpcHandler):
    """Bytes in, bytes out."""

    def __init__(self):
        self.cancelled = 0
        self.lock = threading.Lock()

    def service(self, details):
        kinds = {
            "Unary": (grpc.unary_unary_rpc_method_handler, self.unary),
            "Collect": (grpc.stream_unary_rpc_method_handler, self.collect),
            "Expand": (grpc.unary_stream_rpc_method_handler, self.expand),
            "Chat": (grpc.stream_stream_rpc_method_handler, self.chat),
            "Fail": (grpc.unary_unary_rpc_method_handler, self.fail),
            "FailLate": (grpc.unary_stream_rpc_method_handler, self.fail_late),
            "Metadata": (grpc.unary_unary_rpc_method_handler, self.metadata),
            "Hang": (grpc.unary_unary_rpc_method_handler, self.hang),
            "Cancelled": (grpc.unary_unary_rpc_method_handler, self.count),
            "TimeLeft": (grpc.unary_unary_rpc_method_handler, self.time_left),
        }
        known = kinds.get(details.method.removeprefix(NAME))
        return known and known[0](known[1])

    def unary(self, request, context):
        return request

    def collect(self, requests, context):
        return str(sum(len(request) for request in requests)).encode()

    def expand(self, request, context):
        for i in range(int(request)):
            yield str(i).encode()

    def chat(self, requests, context):
        yield from requests

    def fail(self, request, context):
        context.set_trailing_metadata((("x-why", "because"), ("x-why-bin", b"\0\xff")))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100 % \u00fc")

    def fail_late(self, request, context):
        yield b"first"
        context.abort(grpc.StatusCode.DATA_LOSS, "after the first")

    def metadata(self, request, context):
        sent = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-")]
        context.send_initial_metadata(sent)
        context.set_trailing_metadata([("t-" + k, v) for k, v in sent])
        return b""

    def hang(self, request, context):
        done = threading.Event()
        context.add_callback(done.set)
        done.wait(20)
        with self.lock:
            self.cancelled += 1
        return b""

    def count(self, request, context):
        with self.lock:
            return str(self.cancelled).encode()

    def time_left(self, request, context):
        left = context.time_remaining()
        return str(left if left is None else round(left, 3)).encode()


def serve(port):
    pool = futures.ThreadPoolExecutor(max_workers=32)
    server = grpc.server(pool, handlers=[Interop()], options=LIMITS)
    assert server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def expect_status(call, code):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}: {error.details()}"
        return error
    raise AssertionError(f"OK, where {code} is expected")


class Cases:
    def __init__(self, channel):
        self.channel = channel
        self.unary_method = channel.unary_unary(NAME + "Unary")

    def unary(self):
        assert self.unary_method(b"hello", timeout=10) == b"hello"

    def empty(self):
        assert self.unary_method(b"", timeout=10) == b""

    def large(self):
        message = bytes(range(256)) * (LARGE // 256)
        assert self.unary_method(message, timeout=30) == message

    def many(self):
        calls = [self.unary_method.future(str(i).encode(), timeout=30) for i in range(500)]
        for i, call in enumerate(calls):
            assert call.result() == str(i).encode()

    def client_stream(self):
        collect = self.channel.stream_unary(NAME + "Collect")
        assert collect((b"x" * i for i in range(1000)), timeout=10) == b"499500"

    def client_stream_empty(self):
        assert self.channel.stream_unary(NAME + "Collect")(iter(()), timeout=10) == b"0"

    def server_stream(self):
        expand = self.channel.unary_stream(NAME + "Expand")
        assert list(expand(b"1000", timeout=10)) == [str(i).encode() for i in range(1000)]

    def server_stream_empty(self):
        assert list(self.channel.unary_stream(NAME + "Expand")(b"0", timeout=10)) == []

    def bidi_stream(self):
        """Ping-pong: each message is answered before the next is sent."""
        turn = threading.Semaphore(1)

        def messages():
            for i in range(100):
                turn.acquire()
                yield str(i).encode()

        count = 0
        for answer in self.channel.stream_stream(NAME + "Chat")(messages(), timeout=20):
            assert answer == str(count).encode()
            count += 1
            turn.release()
        assert count == 100

    def bidi_stream_large(self):
        messages = [bytes([i]) * (1 << 20) for i in range(16)]
        answers = self.channel.stream_stream(NAME + "Chat")(iter(messages), timeout=30)
        assert list(answers) == messages

    def status(self):
        fail = self.channel.unary_unary(NAME + "Fail")
        code = grpc.StatusCode.FAILED_PRECONDITION
        error = expect_status(lambda: fail(b"", timeout=10), code)
        assert error.details() == "not now: 100 % \u00fc", error.details()
        trailers = dict(error.trailing_metadata())
        assert trailers["x-why"] == "because" and trailers["x-why-bin"] == b"\0\xff", trailers

    def status_after_message(self):
        call = self.channel.unary_stream(NAME + "FailLate")(b"", timeout=10)
        assert next(call) == b"first"
        error = expect_status(lambda: next(call), grpc.StatusCode.DATA_LOSS)
        assert error.details() == "after the first"

    def unimplemented(self):
        nothing = self.channel.unary_unary(NAME + "Nothing")
        expect_status(lambda: nothing(b"", timeout=10), grpc.StatusCode.UNIMPLEMENTED)

    def metadata(self):
        sent = [
            ("x-text", "a b,c"),
            ("x-twice", "1"),
            ("x-twice", "2"),
            ("x-raw-bin", bytes(range(256))),
            ("x-none-bin", b""),
        ]
        method = self.channel.unary_unary(NAME + "Metadata")
        _, call = method.with_call(b"", timeout=10, metadata=sent)
        heads = [pair for pair in map(tuple, call.initial_metadata()) if pair[0].startswith("x-")]
        trailers = [pair for pair in map(tuple, call.trailing_metadata()) if pair[0].startswith("t-")]
        # A proxy adds fields of its own.
        heads = [pair for pair in heads if pair[0] in dict(sent)]
        assert sorted(heads) == sorted(sent), heads
        assert [(k, v) for k, v in sorted(trailers) if k[2:] in dict(sent)] == sorted(
            ("t-" + k, v) for k, v in sent
        ), trailers

    def deadline(self):
        start = time.monotonic()
        hang = self.channel.unary_unary(NAME + "Hang")
        expect_status(lambda: hang(b"", timeout=0.5), grpc.StatusCode.DEADLINE_EXCEEDED)
        assert time.monotonic() - start < 3

    def deadline_is_passed_on(self):
        left = float(self.channel.unary_unary(NAME + "TimeLeft")(b"", timeout=7))
        assert 5 < left < 7.1, left

    def cancel(self):
        """The server learns of it."""
        cancelled = self.channel.unary_unary(NAME + "Cancelled")
        before = int(cancelled(b"", timeout=10))
        call = self.channel.unary_unary(NAME + "Hang").future(b"", timeout=30)
        time.sleep(0.3)
        call.cancel()
        assert call.code() == grpc.StatusCode.CANCELLED
        deadline = time.monotonic() + 5
        while int(cancelled(b"", timeout=10)) <= before:
            assert time.monotonic() < deadline, "the server does not know"
            time.sleep(0.05)

    def compression(self):
        message = b"a" * 100_000
        answer = self.unary_method(message, timeout=10, compression=grpc.Compression.Gzip)
        assert answer == message

    def wait_for_ready(self):
        assert self.unary_method(b"x", timeout=10, wait_for_ready=True) == b"x"


def call(target, authority):
    options = LIMITS + [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        cases = Cases(channel)
        names = [name for name in vars(Cases) if not name.startswith("_")]
        for name in names:
            try:
                getattr(cases, name)()
                print("ok", name)
            except Exception as error:  # every case is to have its line
                print(f"FAIL {name}: {type(error).__name__} {error}".replace("\n", " ")[:300])
    print(f"done {len(names)} grpcio {grpc.__version__}")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        call(sys.argv[2], sys.argv[3])
