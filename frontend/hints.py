"""What to do in place of operators that no graph of Whet can hold."""

from __future__ import annotations

import re
from typing import Final

_HINTS: Final = (
    (r"cond|while_loop|map_impl|scan", "control flow: compute all branches and choose with torch.where"),
    (
        r"aten\.(nonzero|masked_select|unique|_unique).*",
        "its shape depends on the data: use torch.where or topk",
    ),
    (r"aten\.(lstm|gru|rnn_tanh|rnn_relu)\.data", "packed sequences: pass the padded tensor"),
    (r"aten\._?(pack_padded|pad_packed)_sequence.*", "packed sequences: pass the padded tensor"),
    (
        r"aten\.(rand|bernoulli|normal|multinomial|native_dropout|uniform|exponential).*",
        "random: make it an input",
    ),
    (r"aten\._upsample_\w+_aa\..*", "antialiasing: resize before the model, or with antialias=False"),
    (
        r"aten\.(_?fft|complex|polar|view_as_complex|real|imag|stft|istft).*",
        "complex numbers: use real and imaginary parts",
    ),
)
"""(pattern of an operator's name, what it is and the way out)."""


def described(operator: str) -> str:
    """The operator's name, with the way out where there is a known one."""
    for pattern, hint in _HINTS:
        if re.fullmatch(pattern, operator):
            return f"{operator} ({hint})"
    return operator
