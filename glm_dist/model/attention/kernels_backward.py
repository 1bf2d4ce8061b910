"""Prefix attention as Triton kernels, backward: two passes over the scores instead of atomics.

One kernel sums the gradients of a tile of keys and values over the queries that see it, the other
those of a tile of queries over their keys. Computing the scores twice costs 7 products of a tile
instead of 5, but each program owns what it writes: the result is the same in every run, in 16 bits
directly, without an fp32 buffer for the queries' gradient.

With weights P, kept pairs R, keep probability k and dP = dO V^T:

    delta = sum_d O dO,   dS = P (R dP - k delta) / k,
    dV = (R P)^T dO / k,   dQ = dS K,   dK = dS^T Q

The factor 1 / k is applied once, to the sums; the first kernel stores k delta.

Letters as in ``kernels.py``.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

import triton
import triton.language as tl

from glm_dist.model.attention.kernels import (
    PRECISION,
    load_full,
    load_rows,
    load_words,
    origin,
    query_words,
    segment_of,
    store_rows,
    zero_of,
)


@triton.jit
def prepare_kernel(
    Out, Grad, Delta, Words, Seed, Origin, strides, keep, row_length,
    HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Store k delta and the dropout word of M queries; grid: tiles of a row, heads, rows."""
    head, row = tl.program_id(1), tl.program_id(2)
    first = tl.program_id(0) * M
    ii = first + tl.arange(0, M)
    dims = tl.arange(0, D)
    offsets = tl.arange(0, M)[:, None] * strides[0][0] + dims[None, :]
    out = load_rows(
        origin(Out, strides[0], row, head, first), offsets, ii, row_length, dims, HEAD, D
    )
    offsets = tl.arange(0, M)[:, None] * strides[1][0] + dims[None, :]
    grad = load_rows(
        origin(Grad, strides[1], row, head, first), offsets, ii, row_length, dims, HEAD, D
    )
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    at = (row.to(tl.int64) * tl.num_programs(1) + head) * row_length + ii
    tl.store(Delta + at, delta * keep, mask=ii < row_length)
    if DROP:
        words = query_words(Seed, Origin, head, row, ii)
        tl.store(Words + at, words, mask=ii < row_length)


@triton.jit
def _from_queries(dk, dv, k, v, keys, js, pointers, offsets, i, length, prefix, scale, threshold,
                  HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, DROP: tl.constexpr,
                  MASKED: tl.constexpr):  # fmt: skip
    """Add what the tile of queries at i contributes to the gradients of N keys and values."""
    ii = i + tl.arange(0, M)
    dims = tl.arange(0, D)
    q = load_rows(pointers[0], offsets[0], ii, length, dims, HEAD, D)
    grad = load_rows(pointers[1], offsets[1], ii, length, dims, HEAD, D)
    # Infinity makes the weights of queries behind the end zero.
    lse = tl.load(pointers[2] + ii, mask=ii < length, other=float("inf"))
    delta = tl.load(pointers[3] + ii, mask=ii < length, other=0.0)
    # Transposed scores [N, M]: the weights then enter both sums from registers.
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    if MASKED:
        limits = tl.maximum(ii, prefix - 1)  # last visible key
        scores = tl.where(js[:, None] <= limits[None, :], scores, -float("inf"))
    weights = tl.exp2(scores * scale - lse[None, :])
    grad_weights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
    kept = weights
    if DROP:
        words = tl.load(pointers[4] + ii, mask=ii < length, other=1)
        is_kept = keys[:, None] * words[None, :] >= threshold
        kept = tl.where(is_kept, weights, zero_of(scale))
        grad_weights = tl.where(is_kept, grad_weights, 0.0)
    dv = tl.dot(kept.to(grad.dtype), grad, dv, input_precision=PRECISION)
    grad_scores = weights * (grad_weights - delta[None, :])
    dk = tl.dot(grad_scores.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["threshold"])
def keys_kernel(
    Q, K, V, Grad, Lse, Delta, Words, DK, DV, Segments, Keys, strides, grad_strides, scale,
    threshold, key_factor, value_factor, row_length, HEAD: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of N keys and values; grid: tiles of a row, heads, segments."""
    head = tl.program_id(1)
    row, start, length, prefix = segment_of(Segments, tl.program_id(2))
    first = tl.program_id(0) * N  # early keys are seen by most queries: they go first
    if first >= length:
        return
    places = tl.arange(0, N)
    dims = tl.arange(0, D)[None, :]
    js = first + places
    k_at = origin(K, strides[1], row, head, start + first)
    k = load_rows(
        k_at, places[:, None] * strides[1][0] + dims, js, length, tl.arange(0, D), HEAD, D
    )
    v_at = origin(V, strides[2], row, head, start + first)
    v = load_rows(
        v_at, places[:, None] * strides[2][0] + dims, js, length, tl.arange(0, D), HEAD, D
    )
    keys = (
        load_words(Keys + row.to(tl.int64) * row_length + start, js, length, True) if DROP else js
    )
    # The first tile of queries that see a key, and the first of which all see all keys.
    begin = tl.where(first < prefix, 0, first // M * M)
    last = tl.minimum(first + N, length) - 1
    clear = tl.maximum(tl.where(last < prefix, 0, tl.cdiv(last, M) * M), begin)
    q_at = origin(Q, strides[0], row, head, start + begin)
    grad_at = origin(Grad, strides[3], row, head, start + begin)
    stats = (row.to(tl.int64) * tl.num_programs(1) + head) * row_length + start
    lse_at, delta_at, words_at = Lse + stats, Delta + stats, Words + stats
    q_offsets = tl.arange(0, M)[:, None] * strides[0][0] + dims
    grad_offsets = tl.arange(0, M)[:, None] * strides[3][0] + dims
    dk = tl.zeros((N, D), tl.float32)
    dv = tl.zeros((N, D), tl.float32)
    for i in range(begin, clear, M):
        dk, dv = _from_queries(
            dk, dv, k, v, keys, js, (q_at, grad_at, lse_at, delta_at, words_at),
            (q_offsets, grad_offsets), i, length, prefix, scale, threshold, HEAD, D, M, DROP, True,
        )  # fmt: skip
        q_at += M * strides[0][0]
        grad_at += M * strides[3][0]
    for i in range(clear, length, M):
        dk, dv = _from_queries(
            dk, dv, k, v, keys, js, (q_at, grad_at, lse_at, delta_at, words_at),
            (q_offsets, grad_offsets), i, length, prefix, scale, threshold, HEAD, D, M, DROP, False,
        )  # fmt: skip
        q_at += M * strides[0][0]
        grad_at += M * strides[3][0]
    _store_gradient(
        DK, grad_strides[1], dk * key_factor, row, head, start, first, length, HEAD, D, N
    )
    _store_gradient(
        DV, grad_strides[2], dv * value_factor, row, head, start, first, length, HEAD, D, N
    )


@triton.jit
def _store_gradient(X, strides, values, row, head, start, first, length, HEAD: tl.constexpr,
                    D: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Store a tile of a gradient [ROWS, D]."""
    places = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    at = origin(X, strides, row, head, start + first)
    offsets = places[:, None] * strides[0] + dims[None, :]
    store_rows(at, offsets, values, first + places, length, dims, HEAD, D)


@triton.jit
def _from_keys(dq, q, grad, lse, delta, words, k, v, js, limits, keys_at, length, scale,
               threshold, DROP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Add what a tile of keys contributes to the gradient of M queries."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [M, N]
    if MASKED:
        scores = tl.where(js[None, :] <= limits[:, None], scores, -float("inf"))
    weights = tl.exp2(scores * scale - lse[:, None])
    grad_weights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    if DROP:
        pairs = words[:, None] * load_words(keys_at, js, length, MASKED)[None, :]
        grad_weights = tl.where(pairs >= threshold, grad_weights, 0.0)
    grad_scores = weights * (grad_weights - delta[:, None])
    return tl.dot(grad_scores.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["threshold"])
def queries_kernel(
    Q, K, V, Grad, Lse, Delta, Words, DQ, Segments, Keys, strides, grad_strides, scale, threshold,
    key_factor, row_length, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of M queries; grid: tiles of a row, heads, segments."""
    head = tl.program_id(1)
    row, start, length, prefix = segment_of(Segments, tl.program_id(2))
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    if first >= length:
        return
    places = tl.arange(0, M)
    ii = first + places
    cols = tl.arange(0, N)
    dims = tl.arange(0, D)
    q_at = origin(Q, strides[0], row, head, start + first)
    q_offsets = places[:, None] * strides[0][0] + dims[None, :]
    q = load_rows(q_at, q_offsets, ii, length, dims, HEAD, D)
    grad_at = origin(Grad, strides[3], row, head, start + first)
    grad_offsets = places[:, None] * strides[3][0] + dims[None, :]
    grad = load_rows(grad_at, grad_offsets, ii, length, dims, HEAD, D)
    stats = (row.to(tl.int64) * tl.num_programs(1) + head) * row_length + start
    lse = tl.load(Lse + stats + ii, mask=ii < length, other=float("inf"))
    delta = tl.load(Delta + stats + ii, mask=ii < length, other=0.0)
    words = tl.load(Words + stats + ii, mask=ii < length, other=1) if DROP else ii
    limits = tl.minimum(tl.maximum(ii, prefix - 1), length - 1)
    k_at = origin(K, strides[1], row, head, start)
    v_at = origin(V, strides[2], row, head, start)
    k_offsets = cols[:, None] * strides[1][0] + dims[None, :]
    v_offsets = cols[:, None] * strides[2][0] + dims[None, :]
    keys_at = Keys + row.to(tl.int64) * row_length + start
    dq = tl.zeros((M, D), tl.float32)
    stop = tl.maximum(prefix, tl.minimum(first + M, length))
    clear = tl.minimum(tl.maximum(prefix, first + 1), length) // N * N
    for begin in range(0, clear, N):
        k = load_full(k_at, k_offsets, dims, HEAD, D)
        v = load_full(v_at, v_offsets, dims, HEAD, D)
        dq = _from_keys(dq, q, grad, lse, delta, words, k, v, begin + cols, limits, keys_at,
                        length, scale, threshold, DROP, False)  # fmt: skip
        k_at += N * strides[1][0]
        v_at += N * strides[2][0]
    for begin in range(clear, stop, N):
        k = load_rows(k_at, k_offsets, begin + cols, length, dims, HEAD, D)
        v = load_rows(v_at, v_offsets, begin + cols, length, dims, HEAD, D)
        dq = _from_keys(dq, q, grad, lse, delta, words, k, v, begin + cols, limits, keys_at,
                        length, scale, threshold, DROP, True)  # fmt: skip
        k_at += N * strides[1][0]
        v_at += N * strides[2][0]
    _store_gradient(
        DQ, grad_strides[0], dq * key_factor, row, head, start, first, length, HEAD, D, M
    )
