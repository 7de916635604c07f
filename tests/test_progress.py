"""Progress in a log file and in a terminal."""

import io

import pytest

from vton import progress
from vton.progress import Progress, track


@pytest.fixture
def clock(monkeypatch):
    """Seconds since some moment; `clock.now` is set by the test."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_file_gets_a_line_every_half_minute(clock, capsys):
    with Progress("Scoring", 200, "pair") as scoring:
        for _ in range(10):
            clock.now += 10
            scoring.advance(8)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Scoring: pair 24/200, 3 min 40 s left",
        "Scoring: pair 48/200, 3 min 10 s left",
        "Scoring: pair 72/200, 2 min 40 s left",
    ]


def test_what_an_earlier_process_did_does_not_count_as_pace(clock, capsys):
    with Progress("Training", 100, "step", done=90, note=lambda: "loss 0.5000") as training:
        clock.now += 60
        training.advance(2)
        training.advance(8)
        training.show()
    assert capsys.readouterr().err.splitlines() == [
        "Training: step 92/100, loss 0.5000, 4 min 00 s left",
        "Training: step 100/100, loss 0.5000",
    ]


def test_it_never_passes_its_end(capsys):
    """The last batch of several processes may hold pairs twice."""
    with Progress("Drawing", 10, "pair") as drawing:
        drawing.advance(16)
        drawing.show()
    assert capsys.readouterr().err == "Drawing: pair 10/10\n"


def test_tracked_items_come_through_unchanged(clock, capsys):
    items = []
    for item in track("abc", "Fitting", 3, "step"):
        clock.now += 30
        items.append(item)
    assert items == ["a", "b", "c"]
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_other_processes_say_nothing(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Progress("Scoring", 4, "pair") as scoring:
        clock.now += 60
        scoring.advance()
        scoring.show()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("Training", 1500, "step", note=lambda: "loss 0.25") as training:
        training.advance(12)
        training.show()
        training.bar.refresh()
    shown = terminal.getvalue()
    assert "Training" in shown and "step 12/1500" in shown and "loss 0.25" in shown
