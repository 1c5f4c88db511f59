"""Models on the Hugging Face Hub: pushed, and loaded from a server on loopback that answers like the Hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hardnet import HarDNet, WeightsError, create_model

REPO = Path(__file__).parent.parent
NAME, LABELS = "hardnet39ds", ("cat", "dog")


@pytest.fixture(scope="module")
def model() -> HarDNet:
    return create_model(NAME, num_classes=2).eval()


def test_push_uploads_what_a_folder_holds(model: HarDNet, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[Any] = []

    def upload_folder(repo_id: str, folder_path: str, commit_message: str) -> str:
        calls.append(sorted(os.listdir(folder_path)))  # noqa: PTH208
        return f"https://hub/{repo_id}/commit/1"

    def create_repo(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(repo_id=options["repo_id"])

    api = SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert model.push_to_hub("me/model", labels=LABELS, private=True) == "https://hub/me/model/commit/1"
    options = {"repo_id": "me/model", "private": True, "exist_ok": True}
    assert calls == [options, ["README.md", "config.json", "model.safetensors"]]


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:model", "hf-hub:a/b/c", "hf-hub:../x/y"])
def test_a_name_that_is_no_repository(name: str) -> None:
    with pytest.raises(WeightsError, match="expected hf-hub:owner/name"):
        create_model(NAME, weights=name)


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that a download of a snapshot uses."""

    files: dict[str, dict[str, bytes]]  # by repository
    requests: list[str]
    commit = "0" * 39 + "1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requests.append(self.path)
        path = self.path.split("?")[0]
        for repo, files in self.files.items():
            if path.startswith(f"/api/models/{repo}/tree/"):
                listed = [{"type": "file", "path": k, "size": len(v), "oid": "0" * 40} for k, v in files.items()]
                return self.answer(json.dumps(listed).encode())
            if path.startswith(f"/api/models/{repo}"):
                listed = [{"rfilename": name} for name in files]
                return self.answer(json.dumps({"id": repo, "sha": self.commit, "siblings": listed}).encode())
            if path.startswith(f"/{repo}/resolve/"):
                return self.file(repo, path.rsplit("/", 1)[-1])
        return self.answer(b"{}", status=404, headers={"X-Error-Code": "RepoNotFound"})

    def file(self, repo: str, name: str) -> None:
        content = self.files[repo][name]
        digest = hashlib.sha256(b"other" if repo == "me/wrong" and name == "config.json" else content).hexdigest()
        size = len(content)
        if repo == "me/broken" and self.command == "GET":
            content = content[: size // 2]
        self.answer(content, {"ETag": f'"{digest}"', "X-Repo-Commit": self.commit}, size=size)

    def answer(
        self, content: bytes, headers: dict[str, str] | None = None, status: int = 200, size: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(model: HarDNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    model.save_pretrained(tmp_path / "saved", labels=LABELS)
    files = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    monkeypatch.setattr(Hub, "files", dict.fromkeys(("me/model", "me/wrong", "me/broken"), files), raising=False)
    monkeypatch.setattr(Hub, "requests", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


FROM_HUB = """
import sys, hardnet
from hardnet import WeightsError
for name in sys.argv[1:]:
    try:
        if name.startswith("timm "):
            import timm, hardnet.timm_registry
            model = timm.create_model(name[5:], pretrained=True)
        else:
            model = hardnet.from_pretrained(name)
        print(name, model.num_classes, *model.categories)
    except WeightsError as error:
        print(error)
"""


def from_hub(cache: Path, endpoint: str, *names: str, **variables: str) -> list[str]:
    """Run in a process of its own, as huggingface_hub reads its variables on import."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", FROM_HUB, *names]
    result = subprocess.run(command, env=environment | variables, cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_from_a_hub_on_loopback(endpoint: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    names = ("me/model", "hf-hub:me/model@main", "me/wrong", "me/broken", "me/absent")
    good, revision, wrong, broken, absent = from_hub(tmp_path, endpoint, *names)
    assert good == "me/model 2 cat dog"
    assert revision == "hf-hub:me/model@main 2 cat dog"
    assert wrong.startswith("hf-hub:me/wrong: config.json does not have the hash that the Hub states")
    assert broken.startswith("hf-hub:me/broken: could not be downloaded: ")
    assert absent.startswith("hf-hub:me/absent: could not be downloaded: ")
    count = len(Hub.requests)
    names = ("me/model", "timm hf-hub:me/model", "me/absent")
    cached, timm, missing = from_hub(tmp_path, endpoint, *names, HF_HUB_OFFLINE="1")
    assert (cached, timm) == ("me/model 2 cat dog", "timm hf-hub:me/model 2 cat dog")
    assert missing.startswith("hf-hub:me/absent: could not be downloaded: ")
    assert len(Hub.requests) == count
