"""How `taas` finds the admin API, and what it says when it does not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.cli.connection import find_address
from loadtest import plain_http
from tests.deploy.cli.conftest import ADMIN_KEY, run
from tests.fixtures.valkey import free_port


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; nothing of this machine's environment."""
    for name in ("TAAS_ADMIN_URL", "TAAS_ADMIN_KEY", "TAAS_ENGINE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TAAS_HOME", str(tmp_path))
    return tmp_path


def test_without_any_key_it_says_what_to_set(home: Path):
    message = run("tenant", "list", exit_code=1).stderr
    for word in ("TAAS_ADMIN_URL", "TAAS_ADMIN_KEY", "taas up", str(home / "demo.env")):
        assert word in message


def test_it_reads_what_up_has_written(home: Path, admin_url: str):
    (home / "demo.env").write_text(
        f"# demo\nexport TAAS_ADMIN_URL={admin_url}\nTAAS_ADMIN_KEY='{ADMIN_KEY}'\nOTHER=1\n"
    )
    run("tenant", "list")


def test_the_environment_wins_over_the_file(home: Path, admin_url: str, monkeypatch: pytest.MonkeyPatch):
    (home / "demo.env").write_text(f"TAAS_ADMIN_URL=http://127.0.0.1:{free_port()}\nTAAS_ADMIN_KEY=other\n")
    monkeypatch.setenv("TAAS_ADMIN_URL", admin_url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", ADMIN_KEY)
    run("tenant", "list")


def test_the_key_of_the_file_is_not_sent_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch):
    (home / "demo.env").write_text("TAAS_ADMIN_URL=http://127.0.0.1:8001\nTAAS_ADMIN_KEY=local\n")
    assert find_address().key == "local"
    monkeypatch.setenv("TAAS_ADMIN_URL", "http://elsewhere.example")
    assert "no admin key for http://elsewhere.example" in run("tenant", "list", exit_code=1).stderr


def test_billing_not_running_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("TAAS_ADMIN_KEY", "x")
    message = run("tenant", "list", exit_code=1).stderr
    assert "taas up" in message
    assert "taas billing" in message


def test_a_wrong_key_is_told_as_such(admin_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_URL", admin_url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", "wrong")
    message = run("tenant", "list", exit_code=1).stderr
    assert "does not know this admin key" in message
    assert "wrong" not in message


@pytest.mark.parametrize("url", ["not a url", "http://[", "ftp://h", "http://127.0.0.1:1:1"])
def test_a_url_that_is_none_is_an_error_not_a_traceback(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_URL", url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", "x")
    assert run("tenant", "list", exit_code=1).stderr.startswith("Error: ")


@pytest.fixture
def lossy_url(admin_url: str) -> Iterator[str]:
    """A way to the admin API that loses the answer to the first POST that is carried out."""

    class Lossy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {
                name: self.headers[name] for name in ("authorization", "content-type", "idempotency-key")
            }
            answer = plain_http.post(admin_url + self.path, content=body, headers=headers)
            if not answer.headers.get("idempotent-replayed"):
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Lossy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_lost_answer_is_asked_for_again_and_nothing_is_done_twice(
    admin_url: str, lossy_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TAAS_ADMIN_URL", lossy_url)
    monkeypatch.setenv("TAAS_ADMIN_KEY", ADMIN_KEY)
    assert "tenant acme (external) is ten_" in run("tenant", "create", "acme").stdout
    message = run("key", "create", "--tenant", "acme", exit_code=1).stderr
    assert "make another" in message
    monkeypatch.setenv("TAAS_ADMIN_URL", admin_url)
    listed = json.loads(run("key", "list", "--json").stdout)["data"]
    assert [key["key_id"] in message for key in listed] == [True]
