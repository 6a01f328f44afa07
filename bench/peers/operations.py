"""The Python peers of the operations benchmark.

Arguments: `operations.py PTX LIBRARY`, where LIBRARY is `cuda.core`, `cupy` or `torch`. Answers `version` with the library's
version, and `OPERATION COUNT BATCHES` with the nanoseconds of each batch of COUNT operations, or with nothing if the library does
not have the operation. The streams are drained before every batch, outside the measurement. Events are created without timing and
streams are non-blocking, as in C.

The class of a library returns a function without arguments for each operation, which is called in a plain loop. Operations that
this version of the library lacks are omitted, and the reason is written to standard error.
"""

import sys
from time import perf_counter_ns

COPY_BYTES = 4096
BUSY_NANOS = 20_000_000


class CudaCore:
    def __init__(self, path):
        import cuda.core
        import numpy

        core = cuda.core
        if not hasattr(core, "Device"):
            from cuda.core import experimental as core
        self.core, self.numpy = core, numpy
        self.version = cuda.core.__version__
        self.device = core.Device(0)
        self.device.set_current()
        self.stream = self.device.create_stream()
        self.other = self.device.create_stream()
        self.event = self.device.create_event()
        self.buffer = self.device.allocate(COPY_BYTES, stream=self.stream)
        with open(path, "rb") as file:
            self.module = core.ObjectCode.from_ptx(file.read())
        self.one = core.LaunchConfig(grid=1, block=1)
        self.spin_kernel = self.module.get_kernel("spin")

    def drain(self):
        self.stream.sync()
        self.other.sync()

    def spin(self):
        self.core.launch(self.stream, self.one, self.spin_kernel, self.numpy.uint64(BUSY_NANOS))

    def record(self):
        stream, event = self.stream, self.event
        return lambda: stream.record(event)

    def wait_event(self):
        other, event = self.other, self.event
        return lambda: other.wait(event)

    def wait_stream(self):
        other, stream = self.other, self.stream
        return lambda: other.wait(stream)

    def query(self):
        event = self.event
        return lambda: event.is_done

    def make_timed_event(self):
        # The option has been renamed.
        try:
            options = self.core.EventOptions(timing_enabled=True)
        except TypeError:
            options = self.core.EventOptions(enable_timing=True)
        return self.device.create_event(options)

    def elapsed(self):
        start, end = self.make_timed_event(), self.make_timed_event()
        self.stream.record(start)
        self.stream.record(end)
        self.drain()
        return lambda: end - start

    def create_destroy(self):
        device = self.device
        return lambda: device.create_event().close()

    def create_destroy_stream(self):
        device = self.device
        return lambda: device.create_stream().close()

    def allocate_free(self):
        device, stream = self.device, self.stream
        return lambda: device.allocate(COPY_BYTES, stream=stream).close(stream)

    def copy(self):
        host = self.core.LegacyPinnedMemoryResource().allocate(COPY_BYTES)
        buffer, stream = self.buffer, self.stream
        return lambda: buffer.copy_from(host, stream=stream)

    def fill(self):
        buffer, stream = self.buffer, self.stream
        return lambda: buffer.fill(0, stream=stream)

    def sequence(self):
        buffer, event, stream, other = self.buffer, self.event, self.stream, self.other

        def run():
            stream.record(event)
            other.wait(event)
            buffer.fill(0, stream=other)

        return run

    def launch(self, name, arguments):
        launch, stream, one = self.core.launch, self.stream, self.one
        kernel = self.module.get_kernel(name)
        return lambda: launch(stream, one, kernel, *arguments)


class CuPy:
    def __init__(self, path):
        import cupy
        import numpy

        self.cupy, self.numpy = cupy, numpy
        self.version = cupy.__version__
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.other = cupy.cuda.Stream(non_blocking=True)
        self.event = cupy.cuda.Event(disable_timing=True)
        self.buffer = cupy.empty(COPY_BYTES, dtype=cupy.uint8)
        self.module = cupy.RawModule(path=path)
        self.spin_kernel = self.module.get_function("spin")
        # Kernels run on the current stream.
        self.stream.use()

    def drain(self):
        self.stream.synchronize()
        self.other.synchronize()

    def spin(self):
        self.spin_kernel((1,), (1,), (self.numpy.uint64(BUSY_NANOS),))

    def record(self):
        stream, event = self.stream, self.event
        return lambda: stream.record(event)

    def wait_event(self):
        other, event = self.other, self.event
        return lambda: other.wait_event(event)

    def query(self):
        event = self.event
        return lambda: event.done

    def elapsed(self):
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        self.stream.record(start)
        self.stream.record(end)
        self.drain()
        elapsed_time = self.cupy.cuda.get_elapsed_time
        return lambda: elapsed_time(start, end)

    def create_destroy(self):
        make = self.cupy.cuda.Event
        return lambda: make(disable_timing=True)

    def create_destroy_stream(self):
        make = self.cupy.cuda.Stream
        return lambda: make(non_blocking=True)

    def copy(self):
        host = self.cupy.cuda.alloc_pinned_memory(COPY_BYTES)
        self.kept = host
        data, pointer, stream = self.buffer.data, host.ptr, self.stream
        return lambda: data.copy_from_host_async(pointer, COPY_BYTES, stream)

    def fill(self):
        data, stream = self.buffer.data, self.stream
        return lambda: data.memset_async(0, COPY_BYTES, stream)

    def sequence(self):
        data, event, stream, other = self.buffer.data, self.event, self.stream, self.other

        def run():
            stream.record(event)
            other.wait_event(event)
            data.memset_async(0, COPY_BYTES, other)

        return run

    def launch(self, name, arguments):
        kernel = self.module.get_function(name)
        return lambda: kernel((1,), (1,), arguments)


class PyTorch:
    """Creates events when they are first recorded, takes streams from a pool, and cannot launch foreign kernels."""

    def __init__(self, _path):
        import torch

        self.torch = torch
        self.version = torch.__version__
        torch.cuda.init()
        self.stream = torch.cuda.Stream()
        self.other = torch.cuda.Stream()
        self.event = torch.cuda.Event()
        self.buffer = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
        # Tensor operations run on the current stream.
        torch.cuda.set_stream(self.stream)

    def drain(self):
        self.stream.synchronize()
        self.other.synchronize()

    def spin(self):
        # About 20 milliseconds at the clock rates of current GPUs.
        self.torch.cuda._sleep(40_000_000)

    def record(self):
        stream, event = self.stream, self.event
        return lambda: event.record(stream)

    def wait_event(self):
        other, event = self.other, self.event
        return lambda: other.wait_event(event)

    def wait_stream(self):
        other, stream = self.other, self.stream
        return lambda: other.wait_stream(stream)

    def query(self):
        return self.event.query

    def elapsed(self):
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self.stream)
        end.record(self.stream)
        self.drain()
        return lambda: start.elapsed_time(end)

    def pooled_stream(self):
        return self.torch.cuda.Stream

    def copy(self):
        host = self.torch.empty(COPY_BYTES, dtype=self.torch.uint8, pin_memory=True)
        buffer = self.buffer
        return lambda: buffer.copy_(host, non_blocking=True)

    def fill(self):
        return self.buffer.zero_


METHODS = {
    "record": "record",
    "waitEvent": "wait_event",
    "waitStream": "wait_stream",
    "queryFinished": "query",
    "queryUnfinished": "query",
    "elapsed": "elapsed",
    "createDestroy": "create_destroy",
    "createDestroyStream": "create_destroy_stream",
    "pooledStream": "pooled_stream",
    "allocateFree": "allocate_free",
    "copy": "copy",
    "fill": "fill",
    "sequence": "sequence",
}


def makers_of(peer):
    """Maps each operation that the library has to a function that makes it."""
    makers = {name: getattr(peer, method) for name, method in METHODS.items() if hasattr(peer, method)}
    if hasattr(peer, "launch"):
        buffer, np = peer.buffer, peer.numpy
        four = (buffer, np.uint32(1), np.float32(0.5), np.uint64(7))
        makers["launchNone"] = lambda: peer.launch("none", ())
        makers["launchThree"] = lambda: peer.launch("three", (buffer, buffer, np.uint32(512)))
        makers["launchMany"] = lambda: peer.launch("many", four * 8)
    return makers


def make_operations(peer):
    """Makes the operations, and runs each once. Omits those that fail."""
    made = {}
    for name, make in makers_of(peer).items():
        try:
            operation = make()
            operation()
            peer.drain()
            made[name] = operation
        except Exception as error:
            print(f"{type(peer).__name__} cannot {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return made


def measure(peer, record, run, is_busy, count, batches):
    times = []
    for _ in range(batches):
        peer.drain()
        if is_busy:
            peer.spin()
        record()
        if not is_busy:
            peer.drain()
        repeats = range(count)
        start = perf_counter_ns()
        for _ in repeats:
            run()
        times.append(perf_counter_ns() - start)
    peer.drain()
    return times


def answer(peer, operations, line):
    if line.strip() == "version":
        return [peer.version]
    name, count, batches = line.split()
    run = operations.get(name)
    if run is None:
        return []
    return measure(peer, operations["record"], run, name == "queryUnfinished", int(count), int(batches))


def main():
    libraries = {"cuda.core": CudaCore, "cupy": CuPy, "torch": PyTorch}
    try:
        peer = libraries[sys.argv[2]](sys.argv[1])
        operations = make_operations(peer)
        for line in sys.stdin:
            print(*answer(peer, operations, line), flush=True)
    except Exception as error:
        print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


main()
