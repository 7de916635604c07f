"""Processes beside the one that was started end with it."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver

from vton.data.loading import end_with_parent, start_process_server


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


def stopped_with_its_group(said) -> None:
    """A job that SIGTERM reaches with all its processes; it starts a process before and after."""
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: None)
    multiprocessing.set_start_method("forkserver", force=True)
    start_process_server()
    server = forkserver._forkserver._forkserver_pid
    at_work = multiprocessing.Process(target=time.sleep, args=(2,))
    at_work.start()
    os.killpg(os.getpid(), signal.SIGTERM)
    after = multiprocessing.Process(target=os.getpid)
    after.start()
    after.join()
    at_work.join()
    said.send((at_work.exitcode, after.exitcode, server == forkserver._forkserver._forkserver_pid))
    forkserver._forkserver._stop()


def test_the_server_of_processes_survives_what_stops_a_job():
    heard, said = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=stopped_with_its_group, args=(said,)
    )
    process.start()
    said.close()
    assert heard.poll(60)
    assert heard.recv() == (0, 0, True)
    process.join()
