"""Products of low precision on the host, for tests: what tensor cores compute, by rounding in NumPy."""

import numpy as np


class HalfOnHost:
    """float16, added up in float32."""

    name, unit, output = "float16", 2.0**-11, 0.0

    def rounded(self, x):
        held = x.astype(np.float16).astype(np.float32)
        return held, held

    def multiply(self, a, b):
        return a @ b.T


class Bfloat16OnHost:
    """bfloat16, added up in float32, and the result rounded to bfloat16, as torch does on CPUs."""

    name, unit, output = "bfloat16", 2.0**-8, 2.0**-8

    @staticmethod
    def _round(x):
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
        even = ((bits >> 16) & 1) + np.uint32(0x7FFF)
        return ((bits + even) & np.uint32(0xFFFF0000)).view(np.float32)

    def rounded(self, x):
        held = self._round(x)
        return held, held

    def multiply(self, a, b):
        return self._round(a @ b.T)


class CoarseOnHost:
    """Three bits: nearly every row is left to the exact paths."""

    name, unit, output = "three bits", 1.0, 0.0

    def rounded(self, x):
        held = np.round(x * 8).astype(np.float32) / 8
        return held, held

    def multiply(self, a, b):
        return a @ b.T
