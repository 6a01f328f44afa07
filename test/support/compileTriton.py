"""Compiles two Triton kernels ahead: `compileTriton.py FOLDER MAJOR MINOR` writes NAME.cubin and NAME.json, what a launch needs to know."""

import json
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def scaled_sum(x, y, out, count, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, tl.load(x + at, mask=inside) * factor + tl.load(y + at, mask=inside), mask=inside)


@triton.jit
def product(a, b, out, size, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    depth = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, size, BLOCK):
        left = tl.load(a + rows[:, None] * size + (start + depth)[None, :])
        right = tl.load(b + (start + depth)[:, None] * size + columns[None, :])
        sums += tl.dot(left, right)
    tl.store(out + rows[:, None] * size + columns[None, :], sums)


kernels = [
    (scaled_sum, {"x": "*fp32", "y": "*fp32", "out": "*fp32", "count": "i32", "factor": "fp32"}, {"BLOCK": 256}, 4),
    (product, {"a": "*fp16", "b": "*fp16", "out": "*fp32", "size": "i32"}, {"BLOCK": 64}, 8),
]

folder, capability = Path(sys.argv[1]), 10 * int(sys.argv[2]) + int(sys.argv[3])
for kernel, signature, constants, warps in kernels:
    source = ASTSource(fn=kernel, signature=signature | {name: "constexpr" for name in constants}, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    name, metadata = kernel.__name__, compiled.metadata
    (folder / f"{name}.cubin").write_bytes(compiled.asm["cubin"])
    known = {"name": metadata.name, "shared": metadata.shared, "warps": metadata.num_warps, "version": triton.__version__}
    known |= {"scratch": [getattr(metadata, "global_scratch_size", None), getattr(metadata, "profile_scratch_size", None)]}
    (folder / f"{name}.json").write_text(json.dumps(known))
