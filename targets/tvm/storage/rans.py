"""A range coder for bytes of known frequencies: rANS, interleaved.

A number x holds the symbols coded so far. With frequencies f_s that add up to M = 2^12, and C_s the sum of those
before s (Duda, "Asymmetric numeral systems", 2014, arXiv:1311.2540, section 2.3):

    encode s:   x ← ⌊x / f_s⌋ M + C_s + x mod f_s
    decode:     s is the symbol whose interval [C_s, C_s + f_s) holds x mod M;   x ← f_s ⌊x / M⌋ + x mod M − C_s

so that a symbol takes log2(M / f_s) bits. x stays in [2^16, 2^32): the encoder moves its low 16 bits to the output
before it would leave, the decoder takes them back as soon as it has. Symbols are encoded from last to first, since
they come back in the opposite order.

Symbol i belongs to state i mod `lanes` (Giesen, "Interleaved entropy coders", 2014, arXiv:1402.3392): the states do not
wait for each other, which serves the processor that decodes and numpy that encodes. All states start from 2^16, where
the decoder must find them in the end.

A coded plane, little endian, as decode.h reads it:

    1 + log2(lanes), first and last symbol that occur    a byte each; a leading 0 instead: `count` bytes as they are
    frequencies of first … last                          a byte, or 0x80 + high part and a byte where it is above 127
    states                                               4 bytes each
    what the decoder takes back                          2 bytes each
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

PRECISION = 12  # bits; the decoder's table has an entry for each of 2^12
_TOTAL = 1 << PRECISION
_LOWEST = 1 << 16  # of a state
_HALF = np.uint32(16)  # bits of a word, half of a state
_MAX_LANES_LOG2 = 8
_BYTES_A_LANE = 512  # coded bytes for each state, which takes 4; more states are faster
_SYMBOLS_A_LANE = 2048  # or as many symbols, however few bytes they take


def encode(symbols: Array) -> bytes:
    """`symbols`, uint8[n] with n > 0, as a coded plane; raw where that is not longer."""
    raw = b"\0" + symbols.tobytes()
    counts = np.bincount(symbols, minlength=256)
    if estimate(counts) >= len(raw):
        return raw
    frequencies = _frequencies(counts)
    lanes_log2 = _lanes_log2(counts)
    states, words = _encode(symbols, frequencies, 1 << lanes_log2)
    header = bytes([1 + lanes_log2]) + _table(frequencies)
    coded = header + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
    return min(coded, raw, key=len)


def estimate(counts: Array) -> float:
    """Bytes of the coded plane of symbols that occur `counts`, int[256], times: by their entropy, so a little less."""
    used = np.flatnonzero(counts)
    known = counts[used].astype(np.float64)
    count = known.sum()
    table = 2 + int(used[-1]) - int(used[0]) + int((known * 32 >= count).sum())  # two bytes from M / 32 on
    return min(1 + table + (4 << _lanes_log2(counts)) + _entropy_bytes(counts), 1 + float(count))


def _entropy_bytes(counts: Array) -> float:
    known = counts[counts > 0].astype(np.float64)
    return float((known * np.log2(known.sum() / known)).sum()) / 8


def _lanes_log2(counts: Array) -> int:
    if np.count_nonzero(counts) == 1:
        return 0
    lanes = max(int(_entropy_bytes(counts)) // _BYTES_A_LANE, int(counts.sum()) // _SYMBOLS_A_LANE)
    return min(max(lanes.bit_length() - 1, 0), _MAX_LANES_LOG2)


def _frequencies(counts: Array) -> Array:
    """`counts` scaled to the sum M, 1 or more where a symbol occurs; rounded to cost the fewest bits."""
    used = np.flatnonzero(counts)
    known = counts[used].astype(np.float64)
    scaled = np.maximum(np.rint(known * _TOTAL / known.sum()), 1)
    while (excess := scaled.sum() - _TOTAL) != 0:
        if excess > 0:
            loss = np.where(scaled > 1, known * np.log2(scaled / np.maximum(scaled - 1, 0.5)), np.inf)
            scaled[np.argmin(loss)] -= 1
        else:
            scaled[np.argmax(known * np.log2((scaled + 1) / scaled))] += 1
    frequencies = np.zeros(256, np.int64)
    frequencies[used] = scaled
    return frequencies


def _table(frequencies: Array) -> bytes:
    used = np.flatnonzero(frequencies)
    first, last = int(used[0]), int(used[-1])
    numbers = (int(number) for number in frequencies[first : last + 1])
    return bytes([first, last]) + b"".join(
        bytes([number]) if number < 128 else bytes([128 + (number >> 8), number & 255]) for number in numbers
    )


def _encode(symbols: Array, frequencies: Array, lanes: int) -> tuple[Array, Array]:
    """The states at the end, uint32[lanes], and the words in the order in which the decoder takes them back."""
    widths = frequencies.astype(np.uint64)
    starts, highest = np.cumsum(widths) - widths, (widths << np.uint64(32 - PRECISION)) - 1
    # ⌊x / f⌋ M + x mod f = x + ⌊x / f⌋ (M − f)
    table = np.stack([starts, widths, highest, _TOTAL - widths]).astype(np.uint32)
    states = np.full(lanes, _LOWEST, np.uint32)
    if frequencies.max() == _TOTAL:  # one symbol takes no bits
        return states, np.empty(0, np.uint32)
    words: list[Array] = []
    for begin in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        start, width, high, spread = table[:, symbols[begin : begin + lanes]]
        x = states[: len(start)]
        full = x > high
        words.append(x[full])
        np.right_shift(x, _HALF, out=x, where=full)
        x += x // width * spread + start
    return states, np.concatenate(words[::-1]) & 0xFFFF
