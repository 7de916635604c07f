"""`vton demo` as a process of its own."""

import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.running import command
from vton.commands.demo import in_url

pytest.importorskip("uvicorn")


def test_the_page_answers_at_once_and_ctrl_c_ends_it(try_on):
    run = str(try_on.stages[-1].run.path)
    arguments = [sys.executable, "-m", "vton", "demo", "--run", run, "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            address = line.split()[1]
            started = time.monotonic()
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert b"Try a garment on" in answer.read()
            # A second on a machine of its own; here others may be at work.
            assert time.monotonic() - started < 5
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def test_a_run_that_is_not_there_ends_the_command(tmp_path, capsys):
    assert command("demo", "--run", str(tmp_path / "none"), "--port", "0") == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_what_others_can_reach_is_said(tmp_path, capsys):
    arguments = ["demo", "--run", str(tmp_path / "none"), "--port", "0"]
    assert command(*arguments, "--host", "0.0.0.0") == 2
    assert "other machines can reach the page" in capsys.readouterr().err
    assert command(*arguments) == 2
    assert "other machines" not in capsys.readouterr().err


def test_addresses_stand_in_brackets():
    hosts = ("::1", "[::1]", "localhost", "name:80")
    assert [in_url(host) for host in hosts] == ["[::1]", "[::1]", "localhost", "name:80"]


def test_a_port_that_is_taken(capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("demo", "--port", str(port)) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--port", "99999"), "--port 99999: ports go from 0, which is any free one, to 65535"),
        (("--port", "-1"), "--port -1: ports go from 0"),
        (("--host", ""), "--host is empty"),
        (("--host", "192.0.2.1"), "--host 192.0.2.1 is no address of this machine"),
        (("--host", "a" * 70), "a is no address of this machine"),
    ],
)
def test_addresses_that_cannot_be(wrong, message, capsys):
    assert command("demo", *wrong) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
