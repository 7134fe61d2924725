"""What speaks the interface of the vLLM plug-in over a bundle's own decoder: `... --registry R --port P --beam B`.

It takes the place of a vLLM server where only its absence matters.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.backends.vllm_format import Question, unpack_shared
from recsys.bundle import Registry, load_decoder
from recsys.decoding.eligibility import Eligibility
from serving.vllm_decoder import VllmDecoder

if TYPE_CHECKING:
    from recsys.bundle import Bundle

READY = "stand_in_listening"


class StandIn(ThreadingHTTPServer):
    """Answers `/pooling` for one bundle."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, bundle: Bundle) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        url = f"http://127.0.0.1:{port}"
        self.export_id = VllmDecoder.of(bundle, url, timeout=timedelta(seconds=1)).export_id
        self._decoder, self._items, self._lock = load_decoder(bundle), bundle.manifest.items, Lock()

    def answer(self, data: dict[str, Any]) -> dict[str, Any]:
        """To one question."""
        question = Question.parse(data, items=self._items)
        wanted = question.wanted
        shared = None if wanted.shared is None else unpack_shared(wanted.shared, self._items)
        with self._lock:
            found = self._decoder.decode(
                [question.history], k=wanted.k, beam=wanted.beam, eligibility=Eligibility(shared, [wanted.excluded])
            )
        ranked = found.ranked[0]
        whole = {"items": ranked.items.tolist(), "scores": ranked.scores.tolist(), "widened": found.spent.widened}
        return {"data": {**whole, "export_id": self.export_id}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StandIn

    def do_POST(self) -> None:
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["data"]
        body = json.dumps(self.server.answer(data)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Keep no access log."""


def main(
    registry: Annotated[Path, typer.Option(help="Directory of published bundles.")],
    port: Annotated[int, typer.Option(help="To listen on.")],
) -> None:
    """Serve until killed."""
    server = StandIn(port, Registry(registry).open_current(verify=False))
    sys.stderr.write(f"{READY}\n")
    sys.stderr.flush()
    server.serve_forever()


if __name__ == "__main__":
    typer.run(main)
