"""A worker that kills itself once, in the middle of a task: loaded by the workers."""

import os
import signal

from distributed.diagnostics.plugin import WorkerPlugin


class LostWorker(WorkerPlugin):
    """Kills its worker when the ``number``-th task starts whose key holds ``text``; once in a cluster's life."""

    name = "lost-worker"

    def __init__(self, text, number, flag):
        self.text, self.left, self.flag = text, number, str(flag)

    def transition(self, key, start, finish, **_):
        if finish != "executing" or self.text not in str(key):
            return
        self.left -= 1
        if self.left == 0:
            try:
                os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)
