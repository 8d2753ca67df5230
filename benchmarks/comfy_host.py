"""A ComfyUI server of our own on the CPU: started, asked over HTTP and websocket, stopped.

Used by the benchmarks of the node pack and by tests/host. Which host:

    COMFYUI_PATH     its folder, or several joined as in PATH
    COMFYUI_PYTHON   the Python of its environment
    COMFYUI_PINS     in the same order, folders of packages that it needs in other versions
    MORE4D_PACK      the pack to load, if not this checkout (an unpacked archive, say)
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACK_NAME = "more4d"
"""Of the folder in custom_nodes, and so of the Python module and the web path."""

_HOME = Path.home() / "comfy"
_FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user/default")
_ENDS = ("execution_success", "execution_error", "execution_interrupted")

Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A ComfyUI checkout and what runs it."""

    folder: Path
    """Has main.py."""

    python: Path
    """Of its environment."""

    pins: str = ""
    """Goes before its other packages; empty for none."""


def installations() -> list[Installation]:
    """Return the hosts that the environment names, or those of ~/comfy; none where none is."""
    python = Path(os.environ.get("COMFYUI_PYTHON", _HOME / "venv" / "bin" / "python"))
    folders = os.environ.get("COMFYUI_PATH", str(_HOME / "ComfyUI")).split(os.pathsep)
    pins = os.environ.get("COMFYUI_PINS", "").split(os.pathsep)
    pins += [""] * (len(folders) - len(pins))
    if not python.exists():
        python = Path(sys.executable)
    return [
        Installation(folder=Path(folder), python=python, pins=pin)
        for folder, pin in zip(folders, pins, strict=False)
        if (Path(folder) / "main.py").exists()
    ]


def link_pack(base: Path, weights: Path | None = None) -> Path:
    """Put the pack into a base folder, with other embedded weights if given; return its folder."""
    pack = Path(os.environ.get("MORE4D_PACK", ROOT))
    place = base / "custom_nodes" / PACK_NAME
    if weights is None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(pack, target_is_directory=True)
        return place
    _link_all_but(pack, place, "more4d_backend")
    _link_all_but(pack / "more4d_backend", place / "more4d_backend", "tiny")
    _link_all_but(pack / "more4d_backend/tiny", place / "more4d_backend/tiny", "weights")
    (place / "more4d_backend" / "tiny" / "weights").symlink_to(weights, target_is_directory=True)
    return place


def _link_all_but(folder: Path, place: Path, left_out: str) -> None:
    place.mkdir(parents=True)
    for entry in folder.iterdir():
        if entry.name not in (left_out, "__pycache__", ".git"):
            (place / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())


class RejectedError(Exception):
    """A prompt that the server did not take; `nodes` says what is wrong with which."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.nodes: dict[str, Any] = answer.get("node_errors") or {}
        super().__init__(json.dumps(answer)[:2000])


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What became of one prompt."""

    prompt_id: str
    """As the server calls it."""

    end: str
    """execution_success, execution_error or execution_interrupted."""

    detail: dict[str, Any]
    """Of that last event; of an error: node_id, exception_type, exception_message."""

    outputs: dict[str, Any]
    """Node -> what it shows, files among it."""

    events: list[tuple[str, Any]] = field(repr=False)
    """All that the server sent meanwhile; pictures as ("preview", bytes), what nodes say of
    themselves as ("text", {"node", "text"})."""

    seconds: float
    """From queue to end."""

    @property
    def executed(self) -> set[str]:
        """Nodes that ran."""
        ran = (data.get("node") for kind, data in self.events if kind == "executing")
        return {node for node in ran if node}

    @property
    def cached(self) -> set[str]:
        """Nodes whose result was there already."""
        events = (data["nodes"] for kind, data in self.events if kind == "execution_cached")
        return {node for nodes in events for node in nodes}


class Listener:
    """A websocket to the server; what it says, in order."""

    def __init__(self, connection: Any, client_id: str) -> None:
        self.client_id, self._connection = client_id, connection
        self.events: list[tuple[str, Any]] = []

    def next(self, timeout: float) -> tuple[str, Any]:
        """Wait for one event.

        Raises:
            TimeoutError: nothing was said.
        """
        message = self._connection.recv(timeout=timeout)
        if isinstance(message, bytes):
            event = _binary_event(message)
        else:
            content = json.loads(message)
            event = (content["type"], content["data"])
        self.events.append(event)
        return event

    def until(self, wanted: Callable[[str, Any], bool], timeout: float = 120) -> tuple[str, Any]:
        """Wait for the event that is wanted.

        Raises:
            TimeoutError: it did not come.
        """
        deadline = time.monotonic() + timeout
        while True:
            event = self.next(max(deadline - time.monotonic(), 0.01))
            if wanted(*event):
                return event

    def until_end(self, prompt_id: str, timeout: float = 300) -> tuple[str, Any]:
        """Wait until a prompt is over."""
        return self.until(
            lambda kind, data: kind in _ENDS and data["prompt_id"] == prompt_id, timeout
        )


_BINARY_TEXT = 3


def _binary_event(message: bytes) -> tuple[str, Any]:
    if int.from_bytes(message[:4], "big") != _BINARY_TEXT:
        return "preview", message[8:]
    start = 8 + int.from_bytes(message[4:8], "big")  # after the node's id
    return "text", {"node": message[8:start].decode(), "text": message[start:].decode()}


class ComfyHost:
    """A server with the pack in it; a context manager."""

    def __init__(
        self, installation: Installation, base: Path, *options: str, threads: int = 2
    ) -> None:
        """Prepare it: `base` is where its models, input, output and settings are."""
        self.installation, self.base, self.threads = installation, base, threads
        for name in _FOLDERS:
            (base / name).mkdir(parents=True, exist_ok=True)
        self.log = base / "server.log"
        self.options = options
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ComfyHost":
        """Start it, and wait until its nodes are loaded."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def start(self, timeout: float = 180) -> None:
        """Start the server.

        Raises:
            RuntimeError: it ended, or did not answer in time; with the end of its log.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = os.environ | {
            "PYTHONPATH": self.installation.pins, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1",
            # More than there are free cores wait for each other: ten times as long was seen.
            "OMP_NUM_THREADS": str(self.threads),
        }  # fmt: skip
        # Without compiled files every start takes twice as long.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.installation.python), "-u", "main.py", *self._arguments(port)],
                cwd=self.installation.folder, env=environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"The server did not start:\n{self.log_text()[-3000:]}")
            time.sleep(0.1)

    def _arguments(self, port: int) -> list[str]:
        return [
            "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{self.base}/user/comfyui.db",
            "--disable-auto-launch", "--disable-api-nodes", *self.options,
        ]  # fmt: skip

    def _is_ready(self) -> bool:
        try:
            return str(self.base) in self.get("/system_stats")["system"]["argv"]
        except OSError:
            return False

    def stop(self) -> None:
        """Ask it to end; end it where it does not."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_text(self) -> str:
        """Return what it logged so far."""
        return self.log.read_text(errors="replace")

    def resident_mb(self) -> float:
        """Return how much memory the server holds (Linux)."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def processor_seconds(self) -> float:
        """Return how long the server computed so far, on all cores together (Linux)."""
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def get_bytes(self, path: str) -> bytes:
        """Return what is at a path."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        return json.loads(self.get_bytes(path))

    def post(self, path: str, body: Any) -> Any:
        """Send JSON, and return the answer's.

        Raises:
            RejectedError: the server refuses it.
        """
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._send(urllib.request.Request(self.url + path, data, kind))

    def upload(self, content: bytes, name: str) -> str:
        """Put a picture into the input folder as the page does, and return its name there."""
        border = uuid.uuid4().hex
        parts = (
            f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        parts += content + f"\r\n--{border}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
        address = self.url + "/upload/image"
        return self._send(urllib.request.Request(address, parts, kind))["name"]

    def _send(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
        except urllib.error.HTTPError as e:
            raise RejectedError(json.loads(e.read())) from e
        return json.loads(content) if content else None

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Open a websocket."""
        from websockets.sync.client import connect

        client_id = uuid.uuid4().hex
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        with connect(address, max_size=None) as connection:
            yield Listener(connection, client_id)

    def queue(self, prompt: Prompt, listener: Listener) -> str:
        """Queue a prompt, whose events the listener gets, and return its id.

        Raises:
            RejectedError: an input is missing or not allowed.
        """
        answer = self.post("/prompt", {"prompt": prompt, "client_id": listener.client_id})
        return answer["prompt_id"]

    def run(self, prompt: Prompt, timeout: float = 300) -> Run:
        """Queue a prompt and wait for its end.

        Raises:
            RejectedError: it never ran.
        """
        with self.listen() as listener:
            start = time.monotonic()
            prompt_id = self.queue(prompt, listener)
            end, detail = listener.until_end(prompt_id, timeout)
            seconds = time.monotonic() - start
        return Run(
            prompt_id=prompt_id, end=end, detail=detail, outputs=self.outputs(prompt_id),
            events=listener.events, seconds=seconds,
        )  # fmt: skip

    def outputs(self, prompt_id: str) -> dict[str, Any]:
        """Return what the nodes of a finished prompt show."""
        # The last event is sent before the history has the entry.
        deadline = time.monotonic() + 10
        while not (history := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The history never got the prompt {prompt_id}.")
            time.sleep(0.05)
        return history[prompt_id]["outputs"]

    def file(self, saved: dict[str, str]) -> bytes:
        """Return a file that a node says it saved."""
        keys = ("filename", "subfolder", "type")
        return self.get_bytes("/view?" + urllib.parse.urlencode({k: saved[k] for k in keys}))
