"""Prefix attention as Triton kernels, forward: softmax over tiles of keys, in one pass.

Query i of a segment with prefix p sees key j iff j <= i or j < p. Segments are rows of an int32
table on the device, so the launch is the same for every micro-batch. Tensors are [s, b, a, d] views
with any strides but d's, which is 1; the log-sum-exp is [b, a, s] in fp32, in units of log 2.

Why it is written this way:

- Each program owns its output, so there are no atomics and two runs agree to the bit.
- Tiles that every query sees take a loop without a mask; only the tiles around the diagonal and the
  end of a segment are masked. Keys behind the last visible one are not read.
- The scale and log2(e) are one factor inside the exponent, so a score costs one multiply-add and
  one exp2.
- Offsets within a tile are 32-bit; only the scalar that advances from tile to tile is a 64-bit
  pointer, so tensors may have more than 2^31 elements at no cost.
- Dropout compares the product of an odd word of the query and an odd word of the key: one multiply
  a pair (``dropout.py``). The kept weights are scaled once, at the end.

Letters: M queries and N keys of a tile, D head size padded to a power of two.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

import triton
import triton.language as tl

SEGMENT_COLUMNS = tl.constexpr(4)
PRECISION = tl.constexpr("ieee")  # of products in fp32; 16-bit products do not depend on it


@triton.jit
def mix(x):
    """Mix the bits of 32-bit words: every input bit changes half of the output's."""
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def stream_word(word, layer, head, row):
    """Derive the word of one head of one layer in one row from a word of the micro-batch."""
    word = mix(word + layer * tl.full((), 0x9E3779B1, tl.uint32))
    word = mix(word + head * tl.full((), 0x85EBCA77, tl.uint32))
    return mix(word + row * tl.full((), 0xC2B2AE3D, tl.uint32))


@triton.jit
def query_words(Seed, Origin, head, row, positions):
    """Compute the odd word of each query; see ``dropout.py``."""
    layer = tl.load(Origin).to(tl.uint32)
    first_head = tl.load(Origin + 1)
    head = (first_head + head).to(tl.uint32)
    row = row.to(tl.uint32)
    first = stream_word(tl.load(Seed).to(tl.uint32, bitcast=True), layer, head, row)
    second = stream_word(tl.load(Seed + 1).to(tl.uint32, bitcast=True), layer, head, row)
    word = mix(first + positions.to(tl.uint32) * tl.full((), 0x9E3779B1, tl.uint32))
    return (mix(word ^ second) | 1).to(tl.int32, bitcast=True)


@triton.jit
def zero_of(scale):
    """Return a zero that the compiler does not know.

    It would otherwise round each weight before choosing it instead of two in one instruction after,
    which costs more than all else that dropout does.
    """
    return scale * 0.0


@triton.jit
def segment_of(Segments, index):
    """Load row, first position, length and prefix of a segment."""
    at = Segments + index * SEGMENT_COLUMNS
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def origin(X, strides, row, head, position):
    """Point to d = 0 of a position of a row and head."""
    place = position.to(tl.int64) * strides[0] + row.to(tl.int64) * strides[1]
    return X + place + head.to(tl.int64) * strides[2]


@triton.jit
def load_rows(at, offsets, rows, length, dims, HEAD: tl.constexpr, D: tl.constexpr):
    """Load the positions of a tile [rows, D] that lie inside the segment, zeros elsewhere."""
    inside = rows[:, None] < length
    if HEAD < D:
        inside = inside & (dims[None, :] < HEAD)
    return tl.load(at + offsets, mask=inside, other=0.0)


@triton.jit
def load_full(at, offsets, dims, HEAD: tl.constexpr, D: tl.constexpr):
    """Load a tile [rows, D] of which all positions exist."""
    if HEAD < D:
        return tl.load(at + offsets, mask=dims[None, :] < HEAD, other=0.0)
    return tl.load(at + offsets)


@triton.jit
def load_words(at, places, length, MASKED: tl.constexpr):
    """Load the dropout words of keys, which all exist unless the tile is masked."""
    if MASKED:
        return tl.load(at + places, mask=places < length, other=1)
    return tl.load(at + places)


@triton.jit
def store_rows(at, offsets, values, rows, length, dims, HEAD: tl.constexpr, D: tl.constexpr):
    """Store the positions of a tile [rows, D] that lie inside the segment."""
    inside = rows[:, None] < length
    if HEAD < D:
        inside = inside & (dims[None, :] < HEAD)
    tl.store(at + offsets, values.to(at.dtype.element_ty), mask=inside)


@triton.jit
def _attend(top, total, out, q, k, v, scale, js, limits, words, keys_at, length,
            threshold, DROP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Add a tile of keys and values to the running maximum, sum and output of the queries."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [M, N]
    if MASKED:
        scores = tl.where(js[None, :] <= limits[:, None], scores, -float("inf"))
    peak = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores * scale - (peak * scale)[:, None])
    shrink = tl.exp2((top - peak) * scale)
    total = total * shrink + tl.sum(weights, 1)
    if DROP:
        pairs = words[:, None] * load_words(keys_at, js, length, MASKED)[None, :]
        weights = tl.where(pairs >= threshold, weights, zero_of(scale))
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    return peak, total, out


@triton.jit(do_not_specialize=["threshold"])
def forward_kernel(
    Q, K, V, Out, Lse, Segments, Seed, Keys, Origin, strides, scale, threshold, keep_scale,
    row_length, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Compute the outputs of M queries; grid: tiles of a row, heads, segments."""
    head = tl.program_id(1)
    row, start, length, prefix = segment_of(Segments, tl.program_id(2))
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M  # late queries see most: they go first
    if first >= length:
        return
    ii = first + tl.arange(0, M)
    cols = tl.arange(0, N)
    dims = tl.arange(0, D)
    q_at = origin(Q, strides[0], row, head, start + first)
    q_offsets = tl.arange(0, M)[:, None] * strides[0][0] + dims[None, :]
    q = load_rows(q_at, q_offsets, ii, length, dims, HEAD, D)
    k_at = origin(K, strides[1], row, head, start)
    v_at = origin(V, strides[2], row, head, start)
    k_offsets = cols[:, None] * strides[1][0] + dims[None, :]
    v_offsets = cols[:, None] * strides[2][0] + dims[None, :]
    keys_at = Keys + row.to(tl.int64) * row_length + start
    limits = tl.minimum(tl.maximum(ii, prefix - 1), length - 1)  # last visible key
    words = query_words(Seed, Origin, head, row, start + ii) if DROP else ii
    top = tl.full((M,), -float("inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    out = tl.zeros((M, D), tl.float32)
    stop = tl.maximum(prefix, tl.minimum(first + M, length))
    clear = tl.minimum(tl.maximum(prefix, first + 1), length) // N * N  # all queries see these
    for begin in range(0, clear, N):
        k = load_full(k_at, k_offsets, dims, HEAD, D)
        v = load_full(v_at, v_offsets, dims, HEAD, D)
        top, total, out = _attend(top, total, out, q, k, v, scale, begin + cols, limits, words,
                                  keys_at, length, threshold, DROP, False)  # fmt: skip
        k_at += N * strides[1][0]
        v_at += N * strides[2][0]
    for begin in range(clear, stop, N):
        k = load_rows(k_at, k_offsets, begin + cols, length, dims, HEAD, D)
        v = load_rows(v_at, v_offsets, begin + cols, length, dims, HEAD, D)
        top, total, out = _attend(top, total, out, q, k, v, scale, begin + cols, limits, words,
                                  keys_at, length, threshold, DROP, True)  # fmt: skip
        k_at += N * strides[1][0]
        v_at += N * strides[2][0]
    out_at = origin(Out, strides[3], row, head, start + first)
    out_offsets = tl.arange(0, M)[:, None] * strides[3][0] + dims[None, :]
    out = out * (keep_scale / total)[:, None]
    store_rows(out_at, out_offsets, out, ii, length, dims, HEAD, D)
    lse_at = Lse + (row.to(tl.int64) * tl.num_programs(1) + head) * row_length + start
    tl.store(lse_at + ii, top * scale + tl.log2(total), mask=ii < length)
