"""Processes beside the one that was started end with it."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor

from vton.data.loading import end_with_parent


def work_until_killed(said) -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, context, end_with_parent) as pool:
        said.send(pool.submit(os.getpid).result())
        time.sleep(60)


def test_a_pool_ends_with_a_process_that_is_killed():
    heard, said = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=work_until_killed, args=(said,))
    process.start()
    said.close()
    worker = heard.recv()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    over = heard.poll(20)  # nobody is left who could say anything
    if not over:
        os.kill(worker, signal.SIGKILL)
    assert over
