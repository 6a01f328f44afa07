"""The Python peers of the graphs benchmark.

Arguments: `graphs.py PTX LIBRARY`, where LIBRARY is `cuda.core`, `cupy` or `torch`. Answers `version` with the library's version,
and `launch SIZE host|end COUNT BATCHES` with the nanoseconds of each batch of COUNT launches of a graph of SIZE empty kernels in a row,
or with nothing if the library has no graphs. Other operations are not measured. The stream is drained before every batch, outside the
measurement. With "end", the measurement includes waiting for the work at the end of the batch.

The class of a library returns a function without arguments that launches a graph, which is called in a plain loop. If it cannot, the
reason is written to standard error.
"""

import sys
from time import perf_counter_ns


class CudaCore:
    def __init__(self, path):
        import cuda.core

        core = cuda.core
        if not hasattr(core, "Device"):
            from cuda.core import experimental as core
        self.core = core
        self.version = cuda.core.__version__
        self.device = core.Device(0)
        self.device.set_current()
        self.stream = self.device.create_stream()
        with open(path, "rb") as file:
            module = core.ObjectCode.from_ptx(file.read())
        self.kernel = module.get_kernel("none")
        self.one = core.LaunchConfig(grid=1, block=1)
        core.launch(self.stream, self.one, self.kernel)

    def drain(self):
        self.stream.sync()

    def launch(self, size):
        builder = self.device.create_graph_builder().begin_building()
        for _ in range(size):
            self.core.launch(builder, self.one, self.kernel)
        graph, stream = builder.end_building().complete(), self.stream
        return lambda: graph.launch(stream)


class CuPy:
    def __init__(self, path):
        import cupy

        self.version = cupy.__version__
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.module = cupy.RawModule(path=path)
        self.kernel = self.module.get_function("none")
        # Kernels run on the current stream.
        self.stream.use()
        self.kernel((1,), (1,), ())

    def drain(self):
        self.stream.synchronize()

    def launch(self, size):
        stream = self.stream
        stream.begin_capture()
        for _ in range(size):
            self.kernel((1,), (1,), ())
        graph = stream.end_capture()
        return lambda: graph.launch(stream)


class PyTorch:
    """Cannot launch foreign kernels, so its graphs add one to a single number."""

    def __init__(self, _path):
        import torch

        self.torch = torch
        self.version = torch.__version__
        torch.cuda.init()
        self.stream = torch.cuda.Stream()
        # Tensor operations run on the current stream, and so do replays.
        torch.cuda.set_stream(self.stream)
        self.number = torch.zeros(1, device="cuda")
        self.number.add_(1)

    def drain(self):
        self.stream.synchronize()

    def launch(self, size):
        graph = self.torch.cuda.CUDAGraph()
        self.drain()
        with self.torch.cuda.graph(graph):
            for _ in range(size):
                self.number.add_(1)
        return graph.replay


def make_launch(peer, size):
    """Makes a graph and launches it once. Returns nothing if that fails."""
    try:
        run = peer.launch(size)
        run()
        peer.drain()
        return run
    except Exception as error:
        print(f"{type(peer).__name__} has no graph: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None


def measure(peer, run, to_the_end, count, batches):
    times = []
    for _ in range(batches):
        peer.drain()
        repeats = range(count)
        start = perf_counter_ns()
        for _ in repeats:
            run()
        if to_the_end:
            peer.drain()
        times.append(perf_counter_ns() - start)
    peer.drain()
    return times


def answer(peer, launches, line):
    if line.strip() == "version":
        return [peer.version]
    name, size, how, count, batches = line.split()
    if name != "launch":
        return []
    if size not in launches:
        launches[size] = make_launch(peer, int(size))
    run = launches[size]
    return [] if run is None else measure(peer, run, how == "end", int(count), int(batches))


def main():
    libraries = {"cuda.core": CudaCore, "cupy": CuPy, "torch": PyTorch}
    try:
        peer = libraries[sys.argv[2]](sys.argv[1])
        launches = {}
        for line in sys.stdin:
            print(*answer(peer, launches, line), flush=True)
    except Exception as error:
        print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


main()
