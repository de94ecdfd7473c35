"""A hub on this machine: one model repository with commits and a branch, as far as `huggingface_hub` asks for it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "acme/tiny"


class Hub(ThreadingHTTPServer):
    """Serves `commits`, folders by commit; `main` is the one that the branch stands for.

    Attributes:
        status: what every request is answered with where it is not 200, such as 401.
        cut: whether files end after half of their bytes.
        requests: method and path of every request so far.
    """

    daemon_threads = True

    def __init__(self, commits: dict[str, Path], main: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.commits, self.main = commits, main
        self.status, self.cut = 200, False
        self.requests: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """For processes that shall use this hub."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        }  # fmt: skip


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        place, _, rest = path.removeprefix(f"/{REPOSITORY}/resolve/").partition("/")
        commit = hub.main if place == "main" else place
        file = hub.commits.get(commit, Path("nowhere")) / rest
        if hub.status != 200:
            self._send(hub.status, {})
        elif path.startswith(f"/{REPOSITORY}/resolve/") and file.is_file():
            data = file.read_bytes()
            tag = hashlib.sha256(data).hexdigest()
            self._send(200, {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Content-Length": str(len(data))})
            if with_body:
                self.wfile.write(data[: len(data) // 2] if hub.cut else data)
        else:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    def _send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def hub_of(commits: dict[str, Path]) -> Iterator[Hub]:
    """A running hub whose branch is at the first of `commits`."""
    with Hub(commits, next(iter(commits))) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
