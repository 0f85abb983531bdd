"""The verbs of a run configuration: one table of what each takes, from which all checks follow."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daskcurate.config import (
    INITS,
    KEEPS,
    Config,
    DedupConfig,
    DensityPruneConfig,
    KMeansConfig,
    PrototypePruneConfig,
    RandomPruneConfig,
    SampleConfig,
    check_choice,
    check_int,
)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What a stage of one kind takes; parameters, defaults and checks are those of its configuration."""

    config: type[Config]
    makes: str
    """``clustering`` (flat or a hierarchy) or ``selection``."""
    reads_pool: bool = False
    """Whether the builder takes the embeddings."""
    clustering: str | None = None
    """The parameter that names a clustering."""
    hidden: frozenset[str] = frozenset()
    """Fields of the configuration that are not the user's."""
    per_level: Mapping[str, str] = field(default_factory=dict)
    """Parameters with a value for each level, and the field that each level's value is checked as."""
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Narrower choices than the configuration's, which has words that stand for an array."""

    @property
    def references(self) -> tuple[str, ...]:
        """Parameters that name other stages."""
        return ("within",) if self.clustering is None else (self.clustering, "within")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters."""
        renamed = {name: parameter for parameter, name in self.per_level.items()}
        names = [renamed.get(item.name, item.name) for item in dataclasses.fields(self.config)]
        return tuple(name for name in names if name not in self.hidden) + self.references

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the parameters without a default."""
        missing = [
            item.name for item in dataclasses.fields(self.config) if item.default is dataclasses.MISSING
        ]
        return tuple(missing) if self.clustering is None else (self.clustering, *missing)


VERBS: Mapping[str, Verb] = {
    "kmeans": Verb(
        config=KMeansConfig,
        makes="clustering",
        reads_pool=True,
        hidden=frozenset({"sample_size", "n_resamples", "n_splits", "sample_strategy"}),
        words={"init": INITS},
    ),
    "hierarchical_kmeans": Verb(
        config=KMeansConfig,
        makes="clustering",
        reads_pool=True,
        per_level={
            "n_clusters": "n_clusters",
            "sample_sizes": "sample_size",
            "n_resamples": "n_resamples",
            "n_splits": "n_splits",
        },
        words={"init": INITS},
    ),
    "semantic_dedup": Verb(
        config=DedupConfig, makes="selection", reads_pool=True, clustering="clustering", words={"keep": KEEPS}
    ),
    "density_prune": Verb(config=DensityPruneConfig, makes="selection", clustering="clustering"),
    "prototype_prune": Verb(config=PrototypePruneConfig, makes="selection", clustering="clustering"),
    "random_prune": Verb(config=RandomPruneConfig, makes="selection", reads_pool=True),
    "hierarchical_sample": Verb(config=SampleConfig, makes="selection", clustering="tree"),
}


def check_values(verb: Verb, values: Mapping[str, Any]) -> None:
    """Check the values given to a verb, other than the stages that it refers to.

    Raises
    ------
    TypeError, ValueError
        For a value that is not allowed; the message begins with the parameter's name.
    """
    for name, allowed in verb.words.items():
        if name in values:
            check_choice(name, values[name], allowed)
    if not verb.per_level:
        verb.config(**values)
        return
    levels = _levels(verb, values)
    shared = {name: value for name, value in values.items() if name not in verb.per_level}
    for number, level in enumerate(levels):
        # Whether a level resamples decides what it allows. The builder's own default is to resample.
        level = {"n_resamples": 1} | level
        try:
            verb.config(**level, **shared)
        except (TypeError, ValueError) as error:
            raise type(error)(_of_level(verb, number, str(error))) from error
    _check_sizes_fall(levels)


def _levels(verb: Verb, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the values of each level, by the names of the configuration's fields."""
    ks = values["n_clusters"]
    if not isinstance(ks, list) or not ks:
        kind = ValueError if ks == [] else TypeError
        raise kind(f"n_clusters={ks!r} is not allowed: give a list of integers, one a level")
    levels: list[dict[str, Any]] = [{} for _ in ks]
    for parameter, name in verb.per_level.items():
        value = values.get(parameter)
        if value is None:
            continue
        if not isinstance(value, list):
            check_int(parameter, value, 0)
            value = [value] * len(ks)
        if len(value) != len(ks):
            raise ValueError(
                f"{parameter}={value!r} is not allowed: it has {len(value)} entries, n_clusters {len(ks)}; "
                "give one a level"
            )
        for level, item in zip(levels, value, strict=True):
            level[name] = item
    return levels


def _of_level(verb: Verb, number: int, message: str) -> str:
    """Return a message about a field as one about an entry of the parameter that it came from."""
    for parameter, name in verb.per_level.items():
        message = re.sub(rf"\b{name}=", f"{parameter}[{number}]=", message)
    return message


def _check_sizes_fall(levels: Sequence[Mapping[str, Any]]) -> None:
    for number, (below, level) in enumerate(zip(levels, levels[1:], strict=False), 1):
        available = below["n_clusters"] * below.get("n_splits", 1)
        if level["n_clusters"] > available:
            raise ValueError(
                f"n_clusters[{number}]={level['n_clusters']} is not allowed: it clusters the {available} "
                "clusters of the level below; give at most as many"
            )
