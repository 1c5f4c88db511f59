"""Addresses, redirects, credentials, proxies and certificates, against a real server."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import CERTIFICATE, ScriptedServer, redirect, running, serve, trickling

from hardnet.utils.errors import WeightsError
from hardnet.weights.connection import Policy, TooSlowError, TransferError, open_url, redact, trusted_certificates

POLICY = Policy(connect_timeout=5, stall_timeout=5)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tls_server() -> Iterator[ScriptedServer]:
    with running(tls=True) as script:
        yield script


def get(url: str, policy: Policy = POLICY) -> bytes:
    with open_url(url, {}, policy) as answer:
        return answer.read()


def test_an_answer_comes_whatever_its_status(server: ScriptedServer) -> None:
    for status in (200, 404, 503):
        with open_url(server.on(f"/{status}", serve(b"words", status=status)), {}, POLICY) as answer:
            assert (answer.status, answer.read()) == (status, b"words")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_same_headers(server: ScriptedServer, status: int) -> None:
    url = server.on("/old", redirect("/new%20place", status))
    server.on("/new%20place", serve(b"found"))
    with open_url(url, {"Range": "bytes=5-"}, POLICY) as answer:
        assert answer.read() == b"found"
    assert server.requests("/new%20place")[0].headers["range"] == "bytes=5-"


def test_a_redirect_to_raw_characters_is_quoted(server: ScriptedServer) -> None:
    server.on("/caf%E9%20x", serve(b"found"))
    assert get(server.on("/old", redirect("/caf\xe9 x"))) == b"found"


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "https:///x", "http://[x", "http://a:b/"],
)
def test_redirects_elsewhere_are_refused(server: ScriptedServer, location: str) -> None:
    with pytest.raises(TransferError, match="redirect that is not followed") as caught:
        get(server.on("/old", redirect(location)))
    assert not caught.value.retry


def test_a_redirect_to_nowhere_is_refused(server: ScriptedServer) -> None:
    with pytest.raises(TransferError, match="does not say where"):
        get(server.on("/old", redirect(None)))


def test_ten_redirects_are_followed_and_no_more(server: ScriptedServer) -> None:
    for number in range(12):
        server.on(f"/{number}", redirect(f"/{number + 1}"))
    server.on("/12", serve(b"end"))
    assert get(server.url + "/2") == b"end"
    with pytest.raises(TransferError, match="more than 10 redirects"):
        get(server.url + "/1")
    with pytest.raises(TransferError, match="more than 10 redirects"):
        get(server.on("/loop", redirect("/loop")))
    assert server.hits("/loop") == 11


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "x.pth", "http:///x", "http://a:port/", "http://[x"]
)
def test_only_http_addresses_are_asked(url: str) -> None:
    with pytest.raises(TransferError, match=r"no http or https address|makes no sense"):
        get(url)


def test_credentials_stay_with_their_host(server: ScriptedServer) -> None:
    with running() as other:
        url = server.on("/a", redirect("/b"))
        server.on("/b", redirect(other.on("/c", serve(b"x"))))
        assert get(url.replace("http://", "http://user:p%40ss@")) == b"x"
        expected = "Basic " + base64.b64encode(b"user:p@ss").decode()
        assert [seen.headers.get("authorization") for seen in server.seen] == [expected, expected]
        assert "authorization" not in other.seen[0].headers


def test_messages_keep_credentials_to_themselves() -> None:
    assert redact("https://user:secret@host:1/x?y") == "https://host:1/x?y"
    assert redact("https://host/x") == "https://host/x"
    assert "secret" not in redact("http://user:secret@[x")
    with pytest.raises(TransferError) as caught:
        get("ftp://user:secret@host/x")
    assert "secret" not in str(caught.value)


def test_a_proxy_of_the_environment_is_asked(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.on("http://weights.invalid/x.pth", serve(b"by proxy"))
    assert get("http://weights.invalid/x.pth") == b"by proxy"


def test_a_proxy_without_end_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n")
            while True:
                connection.sendall(b"X-Pad: x\r\n" * 1000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(TransferError, match="without end"):
            get("https://weights.invalid/x.pth")


def test_headers_that_trickle_do_not_hang(server: ScriptedServer) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Pad: " + b"x" * 300 + b"\r\nContent-Length: 2\r\n\r\nok"
    url = server.on("/slow", trickling(answer))
    with pytest.raises(TooSlowError, match="fewer than 1000 per second"):
        get(url, Policy(stall_timeout=5, min_throughput=1000, throughput_window=0.2))


def test_a_pause_within_the_window_is_no_crawl(server: ScriptedServer) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nabcdefghijkl"
    url = server.on("/slow", trickling(answer, at_once=len(answer) - 10))
    assert get(url, Policy(stall_timeout=5, min_throughput=1e9, throughput_window=60)) == b"abcdefghijkl"


def test_an_unknown_certificate_is_not_trusted(tls_server: ScriptedServer) -> None:
    with pytest.raises(OSError, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        get(tls_server.on("/x", serve(b"x")))
    assert tls_server.hits("/x") == 0


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environment_names_trusted_certificates(
    tls_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(CERTIFICATE))
    assert get(tls_server.on("/x", serve(b"secure"))) == b"secure"


def test_the_host_must_be_the_certificates(tls_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    url = tls_server.on("/x", serve(b"x")).replace("127.0.0.1", "localhost")
    with pytest.raises(OSError, match="certificate verify failed") as caught:
        get(url)
    assert isinstance(getattr(caught.value, "reason", None), ssl.SSLCertVerificationError)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_missing_or_broken_bundle_is_named(
    tls_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    url = tls_server.on("/x", serve(b"x"))
    monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
    with pytest.raises(WeightsError, match=rf"{variable} names a certificate bundle that does not exist: .*none\.pem"):
        get(url)
    (tmp_path / "broken.pem").write_text("no certificate")
    monkeypatch.setenv(variable, str(tmp_path / "broken.pem"))
    with pytest.raises(WeightsError, match=rf"{variable} names a certificate bundle that cannot be loaded"):
        get(url)
    assert tls_server.hits("/x") == 0


def test_a_home_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "~nobody-of-this-name/bundle.pem")
    with pytest.raises(WeightsError, match="does not exist: ~nobody-of-this-name"):
        trusted_certificates()


def test_https_does_not_lead_back_to_http(
    server: ScriptedServer, tls_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    plain = server.on("/plain", serve(b"x"))
    with pytest.raises(TransferError, match="from https to http"):
        get(tls_server.on("/secure", redirect(plain)))
    assert server.hits("/plain") == 0
    tls_server.on("/there", serve(b"secure"))
    assert get(server.on("/up", redirect(tls_server.url + "/there"))) == b"secure"
