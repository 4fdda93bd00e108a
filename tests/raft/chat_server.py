"""An OpenAI-compatible server on loopback that answers as a test wants, and misbehaves on purpose."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT, BROKEN = "cut", "broken"


@dataclass
class Answer:
    """What comes back for a request."""

    text: str | None = "ok"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Before anything is sent."""
    finish_reason: str = "stop"
    refusal: str | None = None
    choices: bool = True
    fault: str | None = None
    """CUT: the connection ends in the middle of the body. BROKEN: the body is half a JSON object."""
    message: dict[str, Any] = field(default_factory=dict)
    """Other fields of the message."""


FAULTS = [
    Answer("slow down", status=429, headers={"Retry-After": "0.1"}),
    Answer("busy", status=503),
    Answer("broken", status=500),
    Answer(fault=CUT),
    Answer(fault=BROKEN),
    Answer(choices=False),
]


def drawn_fault(asked: str, n: int) -> Answer | None:
    """A fault for a third of all answers, None for the others; it follows from the prompt and how often that came."""
    draw = int.from_bytes(hashlib.blake2b(f"{asked} {n}".encode(), digest_size=4).digest(), "big")
    return FAULTS[draw // 3 % len(FAULTS)] if draw % 3 == 0 else None


@dataclass
class Server:
    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of all requests, in the order in which they came."""
    most_at_once: int = 0

    def name(self, model: str = "scripted") -> str:
        return f"{model}@{self.url}"


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Answer], at_once: int = 1000) -> Iterator[Server]:
    """answer(body, n): n counts how often the same messages came before. at_once: requests that are worked on together;
    others wait."""
    server: Server
    lock, gate = threading.Lock(), threading.Semaphore(at_once)
    seen: dict[str, int] = {}
    flying = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            nonlocal flying
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = json.dumps(body["messages"])
            with lock:
                server.bodies.append({**body, "authorization": self.headers.get("Authorization")})
                n = seen[key] = seen.get(key, -1) + 1
                flying += 1
                server.most_at_once = max(server.most_at_once, flying)
            try:
                with gate:
                    made = answer(body, n)
                    time.sleep(made.seconds)
            finally:
                with lock:  # before the client knows, which may then send another one
                    flying -= 1
            self._reply(made)

        def _reply(self, made: Answer) -> None:
            if made.status != 200:
                payload: dict[str, Any] = {"error": {"message": made.text, "type": "scripted", "code": made.status}}
            else:
                message = {"role": "assistant", "content": made.text, "refusal": made.refusal, **made.message}
                choice = {"index": 0, "message": message, "finish_reason": made.finish_reason}
                payload = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "scripted",
                    "choices": [choice] if made.choices else [],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
                }
            data = json.dumps(payload).encode()
            if made.fault == BROKEN:
                data = data[: len(data) // 2]
            self.send_response(made.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if made.fault == CUT else data)
            if made.fault == CUT:
                self.close_connection = True

    http = _Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
