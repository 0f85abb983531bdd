"""A page about a run, to judge it by: figures, pictures, and the user's own items."""

from daskcurate.report.build import write_report

__all__ = ["write_report"]
