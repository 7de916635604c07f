"""One worker and its queue: jobs are done one after another, report their steps and can be stopped.

Nothing is written to disk. Finished jobs are forgotten when newer ones need their place.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from vton.errors import UserError

State = Literal["queued", "running", "done", "failed", "cancelled"]

WAITING = 8  # jobs that may wait
KEPT = 24  # finished jobs whose results can still be fetched
MOST_BYTES = 400 * 2**20  # of their results together; the newest is kept whatever it takes


class Cancelled(Exception):
    """Raised inside a job that was cancelled."""


class QueueFull(UserError):
    """Too many jobs wait."""


@dataclass
class Job:
    """One piece of work.

    work: called with the job by the worker; returns the result. It reports by `report`, which
    raises Cancelled once the job is cancelled. Afterwards it is None, with the pictures it held.
    size: bytes that the result takes, as far as `work` says so.
    """

    work: Callable[[Job], Any] | None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "queued"
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    result: Any = None
    size: int = 0
    error: Exception | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)

    def report(self, done: int, total: int) -> None:
        """So many steps are done. Raises Cancelled."""
        if self.cancelled.is_set():
            raise Cancelled
        self.done, self.total = done, total

    def cancel(self) -> None:
        """Stop before the next step; a job that waits never starts."""
        self.cancelled.set()
        if self.state == "queued":
            self.state = "cancelled"
            self.finished.set()


class Worker:
    """Does jobs in a thread of its own, in the order in which they came."""

    def __init__(self):
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="vton-worker", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Job], Any]) -> Job:
        """Put a job into the queue. Raises QueueFull."""
        job = Job(work)
        with self._lock:
            waiting = sum(other.state == "queued" for other in self._jobs.values())
            if waiting >= WAITING:
                raise QueueFull(f"{waiting} requests are waiting already. Try again in a minute.")
            self._forget_old()
            self._jobs[job.id] = job
        self._queue.put(job)
        return job

    def forget(self, job: Job) -> None:
        """Drop a finished job whose result nobody will fetch."""
        with self._lock:
            self._jobs.pop(job.id, None)

    def _forget_old(self) -> None:
        """Drop finished jobs beyond KEPT and MOST_BYTES, the oldest first. Needs the lock."""
        size = 0
        finished = [job for job in self._jobs.values() if job.finished.is_set()]
        for newer, job in enumerate(reversed(finished)):
            size += job.size
            if newer >= KEPT - 1 or (newer and size > MOST_BYTES):
                del self._jobs[job.id]

    def find(self, id_: str) -> Job | None:
        return self._jobs.get(id_)

    def place(self, job: Job) -> int:
        """How many jobs come before a waiting one."""
        with self._lock:
            before = 0
            for other in self._jobs.values():
                if other is job:
                    return before
                before += other.state in ("queued", "running")
        return 0

    def stop(self) -> None:
        """Cancel everything, and let the thread end."""
        for job in list(self._jobs.values()):
            job.cancel()
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Wait for a job and do it; False at the end. No variable holds it while the next is
        waited for.
        """
        job = self._queue.get()
        if job is None:
            return False
        work, job.work = job.work, None
        if job.cancelled.is_set():
            return True
        job.state = "running"
        started = time.perf_counter()
        try:
            job.result = work(job)
            job.report(job.done, job.total)
            job.state = "done"
        except Cancelled:
            job.result = None
            job.state = "cancelled"
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()  # for whoever runs the server; the page gets one line
            error.__context__ = None  # it and the traceback hold every variable on their way
            job.error = error.with_traceback(None)
            job.state = "failed"
        job.seconds = time.perf_counter() - started
        job.finished.set()
        return True
