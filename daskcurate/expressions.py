"""Expressions of selections: names joined by ``&`` and ``|``, ``~`` before a name, and parentheses."""

import ast
from collections.abc import Mapping
from typing import Any

ALLOWED = "names of stages, joined by & (and) and | (or), with ~ (not) before a name, and parentheses"


def names_in(expression: str) -> list[str]:
    """Return the names in an expression, in order.

    Raises
    ------
    ValueError
        If there is anything in it but names, ``&``, ``|``, ``~`` and parentheses.
    """
    try:
        return _names(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r} is not allowed: give {ALLOWED}") from error


def evaluate(expression: str, values: Mapping[str, Any]) -> Any:
    """Return what an expression that :func:`names_in` accepts is, for these values of the names."""
    return _value(ast.parse(expression.strip(), mode="eval").body, values)


def _names(tree: ast.expr) -> list[str]:
    match tree:
        case ast.Name(id=name):
            return [name]
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return _names(operand)
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr(), left=left, right=right):
            return _names(left) + _names(right)
    raise ValueError(f"{type(tree).__name__} is not allowed")


def _value(tree: ast.expr, values: Mapping[str, Any]) -> Any:
    match tree:
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_value(operand, values)
        case ast.BinOp(op=ast.BitAnd(), left=left, right=right):
            return _value(left, values) & _value(right, values)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _value(left, values) | _value(right, values)
    raise ValueError(f"{type(tree).__name__} is not allowed")
