"""Stage configurations: frozen, keyword-only, checked once, and fingerprinted.

A parameter is declared, documented and checked here and nowhere else; stages receive the whole config.
Checks raise ``TypeError`` (wrong kind of value) or ``ValueError`` (wrong value), and quote what was given
and what is allowed.
"""

import dataclasses
import json
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import xxhash

METRICS = ("l2", "cosine")
ALGORITHMS = ("lloyd", "fast", "two-level")
INITS = ("k-means++", "k-means||", "random")
SAMPLE_STRATEGIES = ("closest", "random")
PICK_STRATEGIES = ("random", "closest", "furthest")
KEEPS = ("hard", "easy", "random")
RULES = ("earlier", "greedy", "connected")
SCOPES = ("cluster", "global")
DENSITIES = ("intra*inter", "size", "uniform")
LARGEST_TARGET = 2**58
"""Rows that can be shared out without an overflow of int64."""
MOST_FITS = 10_000
"""Restarts, and resampling steps of a level: plans go through them one by one, and more would not end."""
LARGEST_COUNT = 2**31 - 1
"""How often a row can be picked: counts are int32."""


def check_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number within the bounds."""
    allowed = f"an integer >= {minimum}" + ("" if maximum is None else f" and <= {maximum}")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} is not allowed: give {allowed}")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"{name}={value!r} is not allowed: give {allowed}")
    return number


def check_number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """Return ``value`` as a float if it is finite and within [low, high] (or (low, high])."""
    left = "(" if open_low else "["
    right = ")" if math.isinf(high) else "]"
    allowed = f"a number in {left}{low:g}, {high:g}{right}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} is not allowed: give {allowed}")
    number = float(value)
    if not math.isfinite(number) or number < low or number > high or (open_low and number == low):
        raise ValueError(f"{name}={value!r} is not allowed: give {allowed}")
    return number


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of the ``allowed`` strings; suggest the nearest otherwise."""
    allowed = tuple(allowed)
    listed = ", ".join(repr(item) for item in allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is not allowed: give one of {listed}")
    if value not in allowed:
        near = get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r} is not allowed: give one of {listed}{hint}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False: of anything else the truth is a guess."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not allowed: give True or False")
    return value


def is_list(value: Any) -> bool:
    """Tell whether ``value`` is a sequence of items, and no text; an array without dimensions is none."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def digest(*parts: Any) -> str:
    """Return a 32-digit hexadecimal digest of JSON-able parts, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the stage configurations."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON-able values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class KMeansConfig(Config):
    """One level of (hierarchical) k-means."""

    n_clusters: int
    """Clusters to make; before the split, where there is one."""
    metric: str = "l2"
    """``l2``, or ``cosine`` for spherical k-means."""
    init: str = "k-means++"
    """``k-means++`` (greedy), ``k-means||``, ``random``, or ``array`` (centroids passed as an input)."""
    algorithm: str = "lloyd"
    """``lloyd`` (every row against every centroid), ``fast`` or ``two-level``; see :func:`daskcurate.kmeans`."""
    n_iters: int = 50
    """Lloyd updates; fewer only where one changes nothing, or ``tol`` is reached."""
    tol: float | None = None
    """Stop when the objective falls by less than this fraction of itself; None: never."""
    n_init: int = 1
    """Restarts; the one with the lowest objective is kept."""
    sample_size: int = 1
    """Rows taken from each cluster in a resampling step; 1 means no resampling."""
    n_resamples: int = 0
    """Resampling steps after the initial k-means."""
    n_splits: int = 1
    """Parts into which each cluster is then split; 1 means no split."""
    sample_strategy: str = "closest"
    """Which rows a resampling step takes from a cluster: ``closest`` to the centroid, or ``random``."""
    seed: int = 0

    def __post_init__(self):
        self._set("n_clusters", check_int("n_clusters", self.n_clusters, 1))
        check_choice("metric", self.metric, METRICS)
        if self.init != "array":
            check_choice("init", self.init, INITS)
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        self._set("n_iters", check_int("n_iters", self.n_iters, 0))
        if self.tol is not None:
            self._set("tol", check_number("tol", self.tol, 0, math.inf))
        self._set("n_init", check_int("n_init", self.n_init, 1, MOST_FITS))
        self._set("sample_size", check_int("sample_size", self.sample_size, 1))
        self._set("n_resamples", check_int("n_resamples", self.n_resamples, 0, MOST_FITS))
        self._set("n_splits", check_int("n_splits", self.n_splits, 1))
        check_choice("sample_strategy", self.sample_strategy, SAMPLE_STRATEGIES)
        self._set("seed", check_int("seed", self.seed, 0, 2**63 - 1))
        if self.init == "array" and self.n_init > 1:
            raise ValueError(f"n_init={self.n_init} is not allowed with an array of centroids: give n_init=1")
        if self.n_splits > 1 and self.sample_size > 1 and self.n_resamples > 0:
            raise ValueError(
                f"n_splits={self.n_splits} with sample_size={self.sample_size} is not allowed: a level is "
                "either split or resampled; give n_splits=1 or sample_size=1 for it"
            )

    @property
    def resamples(self) -> int:
        """Resampling steps that will really run."""
        return self.n_resamples if self.sample_size > 1 else 0


@dataclass(frozen=True, kw_only=True)
class DedupConfig(Config):
    """SemDeDup: which rows of a cluster, or of the pool, repeat an earlier one."""

    eps: float
    """Row j is a duplicate if an earlier row has cosine similarity to it above 1 - eps (strictly)."""
    keep: str = "hard"
    """Order within a cluster: ``hard`` (far from the centroid first), ``easy``, ``random``, ``score``."""
    rule: str = "earlier"
    """``earlier`` (the paper's), ``greedy`` (only kept rows block), ``connected`` (one row a component)."""
    scope: str = "cluster"
    """Which pairs are found: those within a ``cluster``, or, ``global``, all of the pool."""
    seed: int = 0

    def __post_init__(self):
        self._set("eps", check_number("eps", self.eps, 0, 2))
        if self.keep != "score":
            check_choice("keep", self.keep, KEEPS)
        check_choice("rule", self.rule, RULES)
        check_choice("scope", self.scope, SCOPES)
        self._set("seed", check_int("seed", self.seed, 0, 2**63 - 1))


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Config):
    """How many rows a pruning stage keeps: exactly one of a fraction and a number."""

    keep_fraction: float | None = None
    target_size: int | None = None
    seed: int = 0

    def __post_init__(self):
        if (self.keep_fraction is None) == (self.target_size is None):
            raise ValueError(
                f"keep_fraction={self.keep_fraction!r} with target_size={self.target_size!r} is not allowed: "
                "give exactly one of them"
            )
        if self.keep_fraction is not None:
            self._set("keep_fraction", check_number("keep_fraction", self.keep_fraction, 0, 1, open_low=True))
        if self.target_size is not None:
            self._set("target_size", check_int("target_size", self.target_size, 1))
        self._set("seed", check_int("seed", self.seed, 0, 2**63 - 1))

    def rows_kept(self, n_rows: int) -> int:
        """Return how many of ``n_rows`` are kept, half rows rounded up, never more than there are."""
        if self.target_size is not None:
            return min(self.target_size, n_rows)
        assert self.keep_fraction is not None  # one of the two is given
        return min(n_rows, math.floor(self.keep_fraction * n_rows + 0.5))


@dataclass(frozen=True, kw_only=True)
class DensityPruneConfig(BudgetConfig):
    """Density-based pruning: rows per cluster by its complexity."""

    temperature: float = 0.1
    """tau of the softmax over complexities; smaller favours complex clusters more."""
    n_neighbors: int = 20
    """Nearest other centroids over which the distance between clusters is averaged."""
    balance: float = 0.0
    """Lower bound of rows per cluster, as a fraction of an equal share."""
    density: str = "intra*inter"
    """What a cluster's share follows: ``intra*inter``, ``size`` or ``uniform``."""
    keep: str = "hard"
    """Rows kept of a cluster: ``hard`` (far from the centroid first), ``easy`` or ``random``."""

    def __post_init__(self):
        super().__post_init__()
        self._set("temperature", check_number("temperature", self.temperature, 0, math.inf, open_low=True))
        self._set("n_neighbors", check_int("n_neighbors", self.n_neighbors, 1))
        self._set("balance", check_number("balance", self.balance, 0, 1))
        check_choice("density", self.density, DENSITIES)
        check_choice("keep", self.keep, KEEPS)


@dataclass(frozen=True, kw_only=True)
class PrototypePruneConfig(BudgetConfig):
    """SSP (Sorscher et al. 2022): one ranking of all rows by distance to the nearest centroid."""

    keep: str = "hard"
    """``hard`` keeps the farthest rows, ``easy`` the closest."""
    class_balance: float = 0.0
    """Fraction of an equal share that every cluster keeps at least (of its own extreme rows)."""

    def __post_init__(self):
        super().__post_init__()
        check_choice("keep", self.keep, ("hard", "easy"))
        self._set("class_balance", check_number("class_balance", self.class_balance, 0, 1))


@dataclass(frozen=True, kw_only=True)
class RandomPruneConfig(BudgetConfig):
    """A uniform random subset: the baseline of every pruning method."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """Balanced hierarchical sampling."""

    target_size: int
    """Rows to pick, repeats counted."""
    multiplier: int = 1
    """How often a row may be picked at most."""
    strategy: str = "random"
    """Rows picked within a level-1 cluster: ``random``, ``closest`` or ``furthest``."""
    seed: int = 0

    def __post_init__(self):
        self._set("target_size", check_int("target_size", self.target_size, 1, LARGEST_TARGET))
        self._set("multiplier", check_int("multiplier", self.multiplier, 1, LARGEST_COUNT))
        check_choice("strategy", self.strategy, PICK_STRATEGIES)
        self._set("seed", check_int("seed", self.seed, 0, 2**63 - 1))
