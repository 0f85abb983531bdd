"""The tables of the run store's arrays, made from the schema, for docs/store.md."""

from daskcurate.schema import SCHEMA, ArraySpec

MARK = "<!-- schema -->"


def schema_tables() -> str:
    """Return a table (Markdown) for every kind of stage; kinds with the same arrays share one."""
    kinds: dict[tuple[ArraySpec, ...], list[str]] = {}
    for kind, specs in SCHEMA.items():
        kinds.setdefault(specs, []).append(f"`{kind}`")
    lines: list[str] = []
    for specs, names in kinds.items():
        lines += [
            f"### {', '.join(names)}",
            "",
            "| array | type | dimensions | meaning |",
            "|---|---|---|---|",
        ]
        for spec in specs:
            meaning = spec.meaning.replace("|", "\\|")
            lines.append(f"| `{spec.name}` | {spec.dtype} | {' x '.join(spec.dims)} | {meaning} |")
        lines.append("")
    return "\n".join(lines)
