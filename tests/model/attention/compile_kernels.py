"""A program: compile every kernel of the table of tiles for GPUs that need not be there.

It prints a JSON line for each: kernel, bytes of a number, head size, dropout, compute capability,
shared memory in bytes and the estimate of ``blocks.py``. Triton brings the assembler.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from glm_dist.model.attention.blocks import blocks_for, padded_head, shared_bytes
from glm_dist.model.attention.kernels import forward_kernel
from glm_dist.model.attention.kernels_backward import keys_kernel, prepare_kernel, queries_kernel
from glm_dist.model.attention.launch import PREPARED

KERNELS = {"forward": forward_kernel, "keys": keys_kernel, "queries": queries_kernel}
SHARED_MEMORY = {80: 166912, 90: 232448}
FP32 = {"Lse", "Delta"}
INT32 = {"Segments", "Seed", "Keys", "Origin", "Words"}
FLOATS = {"scale", "keep_scale", "key_factor", "value_factor", "keep"}
LENGTHS = {"strides": 4, "grad_strides": 3}


def source(kernel, dtype: str, constants: dict[str, object], num_strides: int = 4) -> ASTSource:
    """The kernel for contiguous tensors whose strides and addresses are multiples of 16."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in LENGTHS:
            count = num_strides if name == "strides" else LENGTHS[name]
            signature[name] = (("i32",) * 3,) * count
            paths = [(place, i, j) for i in range(count) for j in range(3)]
        elif name[0].isupper():
            kind = "fp32" if name in FP32 else "i32" if name in INT32 else dtype
            signature[name], paths = f"*{kind}", [(place,)]
        else:
            signature[name], paths = "fp32" if name in FLOATS else "i32", []
        attributes |= {path: [["tt.divisibility", 16]] for path in paths}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return ASTSource(kernel, signature, constexprs=places, attrs=attributes)


def main(dtypes: list[str], head_sizes: list[int]) -> None:
    for capability, memory in SHARED_MEMORY.items():
        target = GPUTarget("cuda", capability, 32)
        for dtype in dtypes:
            itemsize = 4 if dtype == "fp32" else 2
            for d in head_sizes:
                shape = {"HEAD": d, "D": padded_head(d)}
                for drops in (False, True):
                    constants = shape | {"M": PREPARED, "DROP": drops}
                    triton.compile(source(prepare_kernel, dtype, constants, 2), target=target)
                    for name, kernel in KERNELS.items():
                        blocks = blocks_for(
                            name, head_size=d, itemsize=itemsize, shared_memory=memory
                        )
                        constants |= {"M": blocks.queries, "N": blocks.keys}
                        options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
                        done = triton.compile(
                            source(kernel, dtype, constants), target=target, options=options
                        )
                        found = {
                            "kernel": name,
                            "dtype": dtype,
                            "head_size": d,
                            "drops": drops,
                            "capability": capability,
                            "shared": done.metadata.shared,
                            "estimate": shared_bytes(name, blocks, d, itemsize),
                            "allowed": memory,
                        }
                        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1].split(","), [int(size) for size in sys.argv[2].split(",")])
