"""What a worker process does with freed memory around its tasks."""

import threading
from types import SimpleNamespace

import pytest
from distributed import Status

from daskcurate import tasks


def test_a_user_s_own_threshold_of_malloc_is_left_alone(monkeypatch):
    for value in (None, "131072"):
        tasks.keep_freed_memory.cache_clear()
        if value is None:
            monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
        else:
            monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", value)
        assert tasks.keep_freed_memory() is False
    tasks.keep_freed_memory.cache_clear()


class Worker:
    """What is asked of a worker: its limits, what its process holds, whether it runs."""

    def __init__(self, held, limit=1000):
        self.memory_manager = SimpleNamespace(
            memory_limit=limit, memory_target_fraction=0.6, memory_pause_fraction=0.8
        )
        self.monitor = SimpleNamespace(get_process_memory=lambda: 10 * held)
        self.status = Status.running


@pytest.mark.parametrize(("held", "gives"), [(40, False), (60, False), (75, True), (95, True)])
def test_memory_is_given_back_before_dask_pauses_the_worker(monkeypatch, held, gives):
    trimmed = []
    monkeypatch.setattr(tasks, "_trim", lambda: trimmed.append)
    assert tasks.give_back_memory(Worker(held)) is gives
    assert trimmed == ([0] if gives else [])
    assert tasks.give_back_memory(Worker(held, limit=None)) is False  # without a limit nothing is paused


def test_one_thread_watches_a_worker_until_it_closes(monkeypatch):
    worker, looked = Worker(40), threading.Event()
    monkeypatch.setattr(tasks, "get_worker", lambda: worker)
    monkeypatch.setattr(tasks, "give_back_memory", lambda _: looked.set())
    monkeypatch.setattr(tasks, "WATCH_SECONDS", 0.001)
    before = set(threading.enumerate())
    for _ in range(3):
        assert tasks.call(tasks.Work(lambda x: x + 1, [tasks.Open(None)]), 2) == 3
    (thread,) = set(threading.enumerate()) - before
    assert looked.wait(10)
    worker.status = Status.closed
    thread.join(10)
    assert not thread.is_alive()


def test_outside_of_tasks_nothing_is_watched():
    before = threading.active_count()
    tasks.watch_memory()
    assert threading.active_count() == before
