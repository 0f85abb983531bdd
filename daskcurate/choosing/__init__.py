"""What to run: eps and the number of clusters, estimated from a sample of the rows."""

from daskcurate.choosing.clusters import KChoice, choose_k
from daskcurate.choosing.eps import EpsChoice, choose_eps

__all__ = ["EpsChoice", "KChoice", "choose_eps", "choose_k"]
