"""The cost of launching kernels with the Python peers, beside which the library's is measured.

Started as `launch.py PTX LIBRARY`, with LIBRARY `cuda.core` or `cupy`. Asked `KERNEL COUNT BATCHES`, answers the nanoseconds of
each batch of so many launches; to `ready 0 0` it answers nothing. The stream is drained before every batch, outside the
measurement. The kernels are those of launch.ptx, which is beside the PTX file that this is given.
"""

import os
import sys
from time import perf_counter_ns


def with_cuda_core(path):
    import numpy as np

    try:
        from cuda.core import Device, LaunchConfig, ObjectCode, launch
    except ImportError:
        from cuda.core.experimental import Device, LaunchConfig, ObjectCode, launch

    device = Device(0)
    device.set_current()
    stream = device.create_stream()
    with open(path, "rb") as file:
        module = ObjectCode.from_ptx(file.read())
    config = LaunchConfig(grid=1, block=1)
    buffer = device.allocate(4096, stream=stream)

    def launcher(name, arguments):
        kernel = module.get_kernel(name)

        def run(count):
            for _ in range(count):
                launch(stream, config, kernel, *arguments)

        return run

    return launcher, buffer, np, stream.sync


def with_cupy(path):
    import cupy
    import numpy as np

    stream = cupy.cuda.Stream(non_blocking=True)
    stream.use()
    module = cupy.RawModule(path=path)
    buffer = cupy.empty(4096, dtype=cupy.uint8)

    def launcher(name, arguments):
        kernel = module.get_function(name)

        def run(count):
            for _ in range(count):
                kernel((1,), (1,), arguments)

        return run

    return launcher, buffer, np, stream.synchronize


def measure(run, drain, count, batches):
    times = []
    for _ in range(batches):
        drain()
        start = perf_counter_ns()
        run(count)
        times.append(perf_counter_ns() - start)
    drain()
    return times


def main():
    path = os.path.join(os.path.dirname(sys.argv[1]), "launch.ptx")
    ways = {"cuda.core": with_cuda_core, "cupy": with_cupy}
    try:
        launcher, buffer, np, drain = ways[sys.argv[2]](path)
        four = (buffer, np.uint32(1), np.float32(0.5), np.uint64(7))
        kernels = {
            "none": launcher("none", ()),
            "three": launcher("three", (buffer, buffer, np.uint32(512))),
            "many": launcher("many", four * 8),
        }
        for line in sys.stdin:
            name, count, batches = line.split()
            known = kernels.get(name)
            times = [] if known is None else measure(known, drain, int(count), int(batches))
            print(*times, flush=True)
    except Exception as error:
        print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


main()
