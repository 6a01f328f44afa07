"""The Python peer of the benchmark of copies between devices.

Arguments: `devices.py PTX LIBRARY`, where LIBRARY is `torch`. Answers `version` with the library's version, and
`copy BYTES one|both COUNT BATCHES` with the nanoseconds of each batch, from the first call to the end of the last copy.
"""

import sys
from time import perf_counter_ns

import torch

LARGEST = 1 << 30


class Copies:
    def __init__(self):
        devices = ("cuda:0", "cuda:1")
        self.outgoing = [torch.zeros(LARGEST, dtype=torch.uint8, device=device) for device in devices]
        self.incoming = [torch.zeros(LARGEST, dtype=torch.uint8, device=device) for device in devices]
        self.streams = [torch.cuda.Stream(device) for device in devices]

    def send(self, index, count):
        with torch.cuda.stream(self.streams[index]):
            self.incoming[1 - index][:count].copy_(self.outgoing[index][:count], non_blocking=True)

    def batch(self, count_of_bytes, both, count):
        begin = perf_counter_ns()
        for _ in range(count):
            self.send(0, count_of_bytes)
            if both:
                self.send(1, count_of_bytes)
        for stream in self.streams:
            stream.synchronize()
        return perf_counter_ns() - begin


def main():
    try:
        copies = Copies()
        for line in sys.stdin:
            if line.strip() == "version":
                print(torch.__version__, flush=True)
                continue
            _, size, way, count, batches = line.split()
            print(*[copies.batch(int(size), way == "both", int(count)) for _ in range(int(batches))], flush=True)
    except Exception as error:
        print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


main()
