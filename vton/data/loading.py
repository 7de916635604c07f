"""Processes that load, check and render data: they work until their parent ends them, and never
outlive it.

A cluster that stops a job signals the whole process group. The trainer then finishes its step and
writes a checkpoint, for which it needs batches; so loader processes ignore the signal. But
multiprocessing ends what is left at exit by the same SIGTERM, and would wait for ever for processes
that ignore it. Importing this module therefore registers a handler that kills them at exit.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def ignore_stop_signals(worker: int) -> None:
    """DataLoader's `worker_init_fn`: leave the signals that stop a run to the trainer."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def start_process_server() -> None:
    """Start multiprocessing's fork server with the signals that stop a job blocked.

    Python 3.14 starts processes through it by default on Linux. The server would end at such a
    signal, and a trainer that has lost it takes the loaders for dead while they are at work.
    Nothing is done where processes are started otherwise.
    """
    if multiprocessing.get_start_method() != "forkserver":
        return
    resource_tracker.ensure_running()  # first: it ends with SIGTERM unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()  # it inherits what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """ProcessPoolExecutor's `initializer`: where the parent is killed, its processes end too, which
    would wait for work for ever.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@atexit.register
def kill_loaders() -> None:
    """Kill the loader processes that an error has left at work."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler calls a killed loader an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
