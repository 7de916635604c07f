"""Leaving in time: a checkpoint at Ctrl-C and when the machine is taken away, and back into SLURM's
queue.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading

from lightning import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment

from vton.processes import from_every_process
from vton.training.checkpoint import Checkpoints


class Preemption(Callback):
    """SIGTERM, Ctrl-C (SIGINT) and, under SLURM, its signal before the time limit (SIGUSR1) end the
    run after the step under way.

    last.ckpt is written and the process exits with 143, after Ctrl-C with 130; a second Ctrl-C ends
    it at once. After SIGUSR1 the job is put back into the queue first, where the same command
    continues it. Lightning's own handlers would save at whatever line the signal arrives, so
    between weights and their average too, and to another file; these only note the signal, and
    between two steps the processes agree on it. The job's place in SLURM (ranks, nodes) stays the
    business of Lightning's plugin.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.received: set[int] = set()

    def on_train_start(self, trainer, module) -> None:
        if (
            threading.current_thread() is not threading.main_thread()
        ):  # Python handles signals there alone
            return
        numbers = [signal.SIGTERM, signal.SIGINT]
        if SLURMEnvironment.detect():
            numbers.append(signal.SIGUSR1)
        for number in numbers:
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # a shell's background job, which its Ctrl-C does not mean
            signal.signal(number, self.note)  # the trainer puts back what was there when it is done

    def note(self, number: int, frame) -> None:
        self.received.add(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if (
            batch_idx + 1
        ) % trainer.accumulate_grad_batches or trainer.global_step == trainer.max_steps:
            return
        if not trainer.strategy.reduce_boolean_decision(bool(self.received), all=False):
            return
        received = set().union(*from_every_process(self.received))
        self.checkpoints.save_last(trainer, module)
        self.checkpoints.finish_pending(trainer)
        if trainer.is_global_zero:
            print(
                f"Stopped by a signal at step {trainer.global_step}; the same command continues.",
                flush=True,
            )
            if signal.SIGUSR1 in received:
                requeue()
        number = signal.SIGINT if received == {signal.SIGINT} else signal.SIGTERM
        # Lightning's launcher kills the first process when another of its processes ends with an
        # error.
        raise SystemExit(128 + number if trainer.is_global_zero else 0)


def requeue() -> None:
    """Ask SLURM to run this job, or this task of an array, again."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"SLURM job {job} could not be requeued ({error}); submit it again.", flush=True)
