"""The Python peer of the benchmark of collectives: `torch.distributed` with NCCL, one process per device.

Arguments: `nccl.py PTX LIBRARY`, where LIBRARY is `torch`. Answers `version` with the library's version, and `reduce BYTES COUNT BATCHES`
with the nanoseconds of each batch of all-reduces of floats in a row, until the first device has done it; `wait ...` waits after each.
"""

import os
import socket
import sys
from time import perf_counter_ns

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def join(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=2, device_id=torch.device("cuda", rank))


def reduce(how, size, count, batches):
    x = torch.zeros(size // 4, dtype=torch.float32, device="cuda")
    times = []
    for batch in range(-1, batches):
        torch.cuda.synchronize()
        begin = perf_counter_ns()
        for _ in range(count):
            dist.all_reduce(x)
            if how == "wait":
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        # The first batch connects.
        if batch >= 0:
            times.append(perf_counter_ns() - begin)
    return times


def second(port, pipe):
    join(1, port)
    while True:
        how, size, count, batches = pipe.recv()
        reduce(how, size, count, batches)


def main():
    try:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        context.Process(target=second, args=(port, theirs), daemon=True).start()
        join(0, port)
        for line in sys.stdin:
            if line.strip() == "version":
                print(torch.__version__, flush=True)
                continue
            how, *numbers = line.split()
            values = [how, *map(int, numbers)]
            ours.send(values)
            print(*reduce(*values), flush=True)
    except Exception as error:
        print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
