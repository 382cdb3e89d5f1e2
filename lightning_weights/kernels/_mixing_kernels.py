"""The mixing of `_mixing.py` inside Triton kernels."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mixed_words(word):
    """Return what `mixed` returns, of and as 32-bit integers."""
    word = word.to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    return word ^ (word >> 16)
