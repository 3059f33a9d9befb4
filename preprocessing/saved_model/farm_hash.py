"""FarmHash's Fingerprint64, by which TensorFlow assigns words to buckets (`StringToHashBucketFast`).

The function is fixed for all time (github.com/google/farmhash, `farmhashna`). Numbers wrap at 64 bits.
"""

from __future__ import annotations

_MASK = 2**64 - 1
_K0 = 0xC3A5C85C97CB3127
_K1 = 0xB492B66FBE98F273
_K2 = 0x9AE16A3B2F90404F


def fingerprint64(data: bytes) -> int:
    """An unsigned 64-bit number."""
    length = len(data)
    if length <= 16:
        return _up_to_16(data)
    if length <= 32:
        return _up_to_32(data)
    return _up_to_64(data) if length <= 64 else _longer(data)


def _up_to_16(data: bytes) -> int:
    length = len(data)
    if length >= 8:
        multiplier = _K2 + length * 2
        first = _add(_u64(data, 0), _K2)
        last = _u64(data, length - 8)
        c = _add(_multiply(_rotate(last, 37), multiplier), first)
        d = _multiply(_add(_rotate(first, 25), last), multiplier)
        return _mix(c, d, multiplier)
    if length >= 4:
        return _mix(length + (_u32(data, 0) << 3), _u32(data, length - 4), _K2 + length * 2)
    if not length:
        return _K2
    y = data[0] + (data[length >> 1] << 8)
    z = length + (data[length - 1] << 2)
    return _multiply(_shift_mix(_multiply(y, _K2) ^ _multiply(z, _K0)), _K2)


def _up_to_32(data: bytes) -> int:
    length = len(data)
    multiplier = _K2 + length * 2
    a = _multiply(_u64(data, 0), _K1)
    b = _u64(data, 8)
    c = _multiply(_u64(data, length - 8), multiplier)
    d = _multiply(_u64(data, length - 16), _K2)
    return _mix(_add(_rotate(_add(a, b), 43), _rotate(c, 30), d), _add(a, _rotate(_add(b, _K2), 18), c), multiplier)


def _up_to_64(data: bytes) -> int:
    length = len(data)
    multiplier = _K2 + length * 2
    a = _multiply(_u64(data, 0), _K2)
    b = _u64(data, 8)
    c = _multiply(_u64(data, length - 8), multiplier)
    d = _multiply(_u64(data, length - 16), _K2)
    y = _add(_rotate(_add(a, b), 43), _rotate(c, 30), d)
    z = _mix(y, _add(a, _rotate(_add(b, _K2), 18), c), multiplier)
    e = _multiply(_u64(data, 16), multiplier)
    f = _u64(data, 24)
    g = _multiply(_add(y, _u64(data, length - 32)), multiplier)
    h = _multiply(_add(z, _u64(data, length - 24)), multiplier)
    return _mix(_add(_rotate(_add(e, f), 43), _rotate(g, 30), h), _add(e, _rotate(_add(f, a), 18), g), multiplier)


def _longer(data: bytes) -> int:
    """Whole blocks of 64 bytes into a state of seven numbers, then the last 64 bytes once more."""
    seed = 81
    x = seed
    y = _add(_multiply(seed, _K1), 113)
    z = _multiply(_shift_mix(_add(_multiply(y, _K2), 113)), _K2)
    v, w = (0, 0), (0, 0)
    x = _add(_multiply(x, _K2), _u64(data, 0))
    last_block = (len(data) - 1) // 64 * 64
    for place in range(0, last_block, 64):
        x = _multiply(_rotate(_add(x, y, v[0], _u64(data, place + 8)), 37), _K1)
        y = _multiply(_rotate(_add(y, v[1], _u64(data, place + 48)), 42), _K1)
        x ^= w[1]
        y = _add(y, v[0], _u64(data, place + 40))
        z = _multiply(_rotate(_add(z, w[0]), 33), _K1)
        v = _of_32(data, place, _multiply(v[1], _K1), _add(x, w[0]))
        w = _of_32(data, place + 32, _add(z, w[1]), _add(y, _u64(data, place + 16)))
        z, x = x, z
    multiplier = _add(_K1, (z & 0xFF) << 1)
    place = len(data) - 64
    w = (_add(w[0], (len(data) - 1) & 63), w[1])
    v = (_add(v[0], w[0]), v[1])
    w = (_add(w[0], v[0]), w[1])
    x = _multiply(_rotate(_add(x, y, v[0], _u64(data, place + 8)), 37), multiplier)
    y = _multiply(_rotate(_add(y, v[1], _u64(data, place + 48)), 42), multiplier)
    x ^= _multiply(w[1], 9)
    y = _add(y, _multiply(v[0], 9), _u64(data, place + 40))
    z = _multiply(_rotate(_add(z, w[0]), 33), multiplier)
    v = _of_32(data, place, _multiply(v[1], multiplier), _add(x, w[0]))
    w = _of_32(data, place + 32, _add(z, w[1]), _add(y, _u64(data, place + 16)))
    z, x = x, z
    return _mix(
        _add(_mix(v[0], w[0], multiplier), _multiply(_shift_mix(y), _K0), z),
        _add(_mix(v[1], w[1], multiplier), x),
        multiplier,
    )


def _of_32(data: bytes, place: int, a: int, b: int) -> tuple[int, int]:
    """Two weak hashes of 32 bytes with two seeds."""
    w, x, y, z = (_u64(data, place + 8 * number) for number in range(4))
    a = _add(a, w)
    b = _rotate(_add(b, a, z), 21)
    c = a
    a = _add(a, x, y)
    b = _add(b, _rotate(a, 44))
    return _add(a, z), _add(b, c)


def _mix(u: int, v: int, multiplier: int) -> int:
    a = _multiply(u ^ v, multiplier)
    a ^= a >> 47
    b = _multiply(v ^ a, multiplier)
    b ^= b >> 47
    return _multiply(b, multiplier)


def _shift_mix(value: int) -> int:
    return value ^ (value >> 47)


def _rotate(value: int, bits: int) -> int:
    return ((value >> bits) | (value << (64 - bits))) & _MASK


def _add(*values: int) -> int:
    return sum(values) & _MASK


def _multiply(a: int, b: int) -> int:
    return a * b & _MASK


def _u64(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 8], "little")


def _u32(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "little")
