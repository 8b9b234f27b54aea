"""Random numbers by counting: Philox4x32-10, the same bits in NumPy, CuPy and CUDA.

A counter-based generator has no state. Word i of stream (seed, step, layer) is a function of
those four numbers alone, so a dropout mask need not be stored: backward computes it again.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from operator import index

LOW = 0xFFFFFFFF


def philox(counter, key):
    """Ten rounds over a counter of four 32-bit words with a key of two.

    Parameters
    ----------
    counter : four uint64 arrays (or arrays and ints) with values below 2^32
    key : two ints below 2^32

    Returns
    -------
    four uint64 arrays with values below 2^32
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & LOW, p0 >> 32 ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def random_uint16(start: int, stop: int, key: tuple[int, int, int], xp):
    """(stop − start,) uniform 16-bit integers; number i is half-word i % 8 of counter i // 8.

    Parameters
    ----------
    start, stop : numbers of the first and the one after the last
    key : (seed, step, layer), seed below 2^64, step and layer below 2^32; the step may be an array
        of no dimension
    xp : numpy or cupy, where the result is made

    Raises
    ------
    ValueError : the key is not as above
    """
    try:
        seed, step, layer = (index(n.item() if hasattr(n, "item") else n) for n in key)
    except (TypeError, ValueError):
        raise ValueError(f"key must be three integers (seed, step, layer), got {key}") from None
    if not (0 <= seed <= LOW << 32 | LOW and 0 <= step <= LOW and 0 <= layer <= LOW):
        raise ValueError(f"key must be (seed < 2^64, step < 2^32, layer < 2^32), got {key}")
    block = xp.arange(start // 8, -(-stop // 8), dtype=xp.uint64)
    counter = (block & LOW, block >> 32, layer, step)  # ints spare the first rounds half the work
    values = xp.empty((len(block), 4), xp.uint32)
    for i, word in enumerate(philox(counter, (seed & LOW, seed >> 32))):
        values[:, i] = word
    return values.view(xp.uint16).ravel()[start % 8 :][: stop - start]
