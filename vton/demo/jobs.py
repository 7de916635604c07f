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


class Cancelled(Exception):
    """Raised inside a job that was cancelled."""


class QueueFull(UserError):
    """Too many jobs wait."""


@dataclass
class Job:
    """One piece of work.

    work: called with the job by the worker; returns the result. It reports by `report`, which
    raises Cancelled once the job is cancelled.
    """

    work: Callable[[Job], Any]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "queued"
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    result: Any = None
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
            finished = [id_ for id_, other in self._jobs.items() if other.finished.is_set()]
            for id_ in finished[: max(0, len(finished) - KEPT + 1)]:
                del self._jobs[id_]
            self._jobs[job.id] = job
        self._queue.put(job)
        return job

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
        while (job := self._queue.get()) is not None:
            if job.cancelled.is_set():
                continue
            job.state = "running"
            started = time.perf_counter()
            try:
                job.result = job.work(job)
                job.report(job.done, job.total)
                job.state = "done"
            except Cancelled:
                job.result = None
                job.state = "cancelled"
            except Exception as error:
                if not isinstance(error, UserError):
                    traceback.print_exc()  # for whoever runs the server; the page gets one line
                job.error = error
                job.state = "failed"
            job.seconds = time.perf_counter() - started
            job.finished.set()
