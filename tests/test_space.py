"""The demo as a Hugging Face Space: app.py from the documentation, started the way a Space starts it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


@pytest.mark.slow
def test_app_py_serves_the_page(tmp_path: Path) -> None:
    text = (REPO / "docs" / "demo.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "app.py").write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONPATH": str(REPO),
        "HARDNET_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "app.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | variables, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            assert process.stdout
            assert process.stdout.readline() == f"hardnet: {address} (Ctrl-C ends)\n"
            with urllib.request.urlopen(address, timeout=120) as response:
                assert b"HarDNet" in response.read()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
