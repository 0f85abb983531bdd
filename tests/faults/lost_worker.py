"""A worker that kills itself once, in the middle of a task: loaded by the workers."""

import os
import signal

from distributed.diagnostics.plugin import WorkerPlugin


class LostWorker(WorkerPlugin):
    """Kills the worker that starts the ``number``-th of the tasks, of all workers, whose keys hold ``text``."""

    name = "lost-worker"

    def __init__(self, text, number, flag):
        self.text, self.number, self.flag = text, number, str(flag)

    def transition(self, key, start, finish, **_):
        if finish != "executing" or self.text not in str(key):
            return
        if self._started() == self.number:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)

    def _started(self):
        """Return how many have started, with this one: workers count by files that only one of them can make."""
        count = 1
        while True:
            try:
                os.close(os.open(f"{self.flag}-{count}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                count += 1
            else:
                return count
