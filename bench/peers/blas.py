"""The Python peer of the matrix product benchmark: `torch.mm` of bf16 matrices, into a given result.

Arguments: `blas.py PTX LIBRARY`, where LIBRARY is `torch`. Answers `version` with the library's version, and
`product M N K host|gpu COUNT BATCHES` with the nanoseconds of each batch: those of the calls, or those of the GPU.
"""

import sys
from time import perf_counter_ns

import torch


def product(m, n, k, how, count, batches):
    x = torch.full((m, k), 0.0115, dtype=torch.bfloat16, device="cuda")
    w = torch.full((n, k), 0.0115, dtype=torch.bfloat16, device="cuda").t()
    y = torch.empty((m, n), dtype=torch.bfloat16, device="cuda")
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for batch in range(-1, batches):
        torch.cuda.synchronize()
        start.record()
        begin = perf_counter_ns()
        for _ in range(count):
            torch.mm(x, w, out=y)
        nanos = perf_counter_ns() - begin
        end.record()
        end.synchronize()
        # The first batch loads the kernel.
        if batch >= 0:
            times.append(nanos if how == "host" else int(start.elapsed_time(end) * 1e6))
    return times


def answer(line):
    if line.strip() == "version":
        return [torch.__version__]
    _, m, n, k, how, count, batches = line.split()
    with torch.inference_mode():
        return product(int(m), int(n), int(k), how, int(count), int(batches))


def main():
    try:
        torch.cuda.init()
        for line in sys.stdin:
            print(*answer(line), flush=True)
    except Exception as error:
        print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


main()
