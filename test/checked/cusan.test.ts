/**
 * The cases of CuSan (`test/runtime` and `test/multi_gpu` in tudasc/cusan), told anew: each has the name of its file there, and the same
 * verdicts, once without its synchronization and once with it.
 *
 * There, `cudaMemcpy` and `cudaMemset` make the host wait; here, copies and fills never do, so the cases wait for the default stream after
 * them where that matters. MPI there reads and writes device memory from the host; here, a copy on a stream of its own does.
 *
 * Different here, and why:
 * - 16_cuda_hostalloc_implicit_sync, 16_cuda_malloc_implicit_sync: CuSan expects allocations to make streams wait for each other (and is
 *   expected to fail). Allocations of this library are in stream order or cached, and order nothing, so both races remain.
 * - 11, 13: CuSan looks into kernels. Here, a kernel declares its parameters, so a pointer that a kernel leaves alone is declared as
 *   nullable and given as null.
 * - 19: copies between host memory are refused here, so a copy to the device stands in for them.
 * - 28: there is no fill of rows, so a fill of bytes stands in for it.
 *
 * Without a meaning here:
 * - 09_cudamemcpy_default: copies between host memory.
 * - 12_struct_ptr, 34_negative_array (expected to fail there): kernels that find pointers in memory. Nobody sees these addresses.
 * - 29_tsan_cuda_to_mpi, 30_tsan_annotate_cuda_to_mpi: 03_cuda_to_mpi with other instrumentation.
 * - test/pass, test/kernel_analysis: what is inserted into programs, and what their kernels do. test/hip_runtime: the same cases for HIP.
 */
import { describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import type { DeviceBuffer, HostBuffer, ManagedBuffer } from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { program } from "../support/kernels.ts"
import { expectReports, raceOf } from "./support.ts"

const { input, nullable, output, pointer, struct } = CudaParameter

const size = 64

const buffers = struct({ buff1: nullable(output), buff2: nullable(output) })

const signatures = {
  kernel: [output],
  increment: [pointer],
  reading_kernel: [output, input],
  kernel_functor: [struct({ d_data: output })],
  kernel_buffers: [buffers],
  kernel_nested: [struct({ buff1: struct({ buff: nullable(output) }), buff2: struct({ buff: nullable(output) }) })]
} as const

const simulate = <const Parameters extends ReadonlyArray<CudaParameter.ParameterKind>>(parameters: Parameters) =>
  SimulatedRuntime.kernel({ parameters, cost: "10 micros", run: () => {} })

const device = { memory: 2 ** 26 }

const runtime = SimulatedRuntime.layer({
  devices: [device, device],
  kernels: {
    kernel: simulate(signatures.kernel),
    increment: simulate(signatures.increment),
    reading_kernel: simulate(signatures.reading_kernel),
    kernel_functor: simulate(signatures.kernel_functor),
    kernel_buffers: simulate(signatures.kernel_buffers),
    kernel_nested: simulate(signatures.kernel_nested)
  }
})

const blocking = CudaStream.make({ nonBlocking: false })
const nonBlocking = CudaStream.make()

const make = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* program)
  const kernelOf = <Name extends keyof typeof signatures>(name: Name) => CudaKernel.get(module, name, signatures[name])
  const kernel = yield* kernelOf("kernel")
  const mpi = yield* nonBlocking
  const message = yield* CudaMemory.allocateHost(size)
  return {
    kernelOf,
    write: (to: DeviceBuffer | CudaMemory.Slice<DeviceBuffer>, stream?: CudaStream.CudaStream) =>
      CudaKernel.launch(kernel, one, [to], stream),
    /** The default stream, for which the host waits after its copies and fills. */
    main: yield* CudaStream.defaultStream(),
    d_data: yield* CudaMemory.allocate(size),
    d_data2: yield* CudaMemory.allocate(size),
    managed: yield* CudaMemory.allocateManaged(size),
    h_data: yield* CudaMemory.allocateHost(size),
    h_data2: yield* CudaMemory.allocateHost(size),
    /** `MPI_Send` and `MPI_Recv`. */
    send: (from: CudaMemory.Slice<DeviceBuffer>) =>
      Effect.andThen(
        CudaMemory.copy(CudaMemory.slice(message, 0, from.byteLength), from, mpi),
        CudaStream.synchronize(mpi)
      ),
    irecv: (to: DeviceBuffer) => CudaMemory.copy(to, message, mpi),
    waitForMpi: CudaStream.synchronize(mpi)
  }
})

const one = { grid: 1, block: 1 }

type Made = Effect.Success<typeof make>
type Step = Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>

/** The host looking at bytes. */
const look = (buffer: HostBuffer | ManagedBuffer) => Effect.sync(() => buffer.bytes)

const launchOf = (name: string) => `CudaKernel.launch of ${name}`
const write = launchOf("kernel")
const hostRace = raceOf(write, "writes", "bytes", "reads")
const sendRace = raceOf(write, "writes", "CudaMemory.copy", "reads")

interface Case {
  /** The reports without the synchronization. */
  readonly racy: ReadonlyArray<string>
  /** The reports with it. Default: none. */
  readonly synced?: ReadonlyArray<string>
  /** `sync` is the synchronization, or nothing. */
  readonly program: (made: Made, sync: (step: Step) => Step) => Step
}

const none: ReadonlyArray<string> = []

const cases: Record<string, Case> = {
  "02_event": {
    racy: [hostRace],
    program: ({ managed, write }, sync) =>
      Effect.gen(function*() {
        yield* CudaMemory.fill(managed, 0)
        yield* write(managed)
        const end = yield* CudaEvent.make()
        yield* CudaEvent.record(end)
        yield* sync(CudaEvent.synchronize(end))
        yield* look(managed)
      })
  },
  "03_cuda_to_mpi": {
    racy: [sendRace],
    program: ({ d_data, send, write }, sync) =>
      Effect.gen(function*() {
        yield* write(d_data)
        yield* sync(CudaDevice.synchronize(0))
        yield* send(d_data)
      })
  },
  "04_mpi_to_cuda": {
    racy: [raceOf("CudaMemory.copy", "writes", write, "writes")],
    program: ({ d_data, h_data, irecv, main, waitForMpi, write }, sync) =>
      Effect.gen(function*() {
        yield* write(d_data)
        yield* CudaDevice.synchronize(0)
        yield* irecv(d_data)
        yield* sync(waitForMpi)
        yield* write(d_data)
        yield* waitForMpi
        yield* CudaMemory.copy(h_data, d_data)
        yield* CudaStream.synchronize(main)
        yield* look(h_data)
      })
  },
  "05_cuda_to_mpi_stream": {
    racy: [sendRace],
    program: ({ d_data, send, write }, sync) =>
      Effect.gen(function*() {
        const stream = yield* blocking
        yield* write(d_data, stream)
        yield* sync(CudaStream.synchronize(stream))
        yield* send(d_data)
      })
  },
  "06_cuda_to_mpi_event": {
    racy: [sendRace],
    program: ({ d_data, main, send, write }, sync) =>
      Effect.gen(function*() {
        yield* write(d_data)
        const event = yield* CudaStream.recordEvent(main)
        yield* sync(CudaEvent.synchronize(event))
        yield* send(d_data)
      })
  },
  "07_cuda_to_mpi_read": {
    racy: none,
    program: ({ d_data, d_data2, kernelOf, send, write }) =>
      Effect.gen(function*() {
        yield* write(d_data)
        yield* CudaDevice.synchronize(0)
        yield* CudaKernel.launch(yield* kernelOf("reading_kernel"), one, [d_data2, d_data])
        yield* send(d_data)
      })
  },
  "08_cudamemcpy_to_mpi": {
    racy: none,
    program: ({ d_data, h_data, main, send }) =>
      Effect.gen(function*() {
        yield* CudaMemory.fill(d_data, 255)
        yield* CudaDevice.synchronize(0)
        yield* CudaMemory.copy(d_data, h_data)
        yield* CudaStream.synchronize(main)
        yield* send(d_data)
      })
  },
  "10_cudahostalloc": {
    racy: none,
    program: () => Effect.scoped(Effect.andThen(CudaMemory.allocateHost(size), CudaMemory.allocateHost(size)))
  },
  "11_struct_of_buff": {
    racy: [raceOf(launchOf("kernel_buffers"), "writes", launchOf("kernel_buffers"), "writes")],
    program: ({ d_data, d_data2, kernelOf }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        const kernel = yield* kernelOf("kernel_buffers")
        yield* CudaKernel.launch(kernel, one, [{ buff1: d_data, buff2: null }], stream1)
        yield* CudaKernel.launch(kernel, one, [{ buff1: null, buff2: d_data2 }], stream2)
        yield* CudaKernel.launch(kernel, one, [{ buff1: null, buff2: d_data2 }], stream2)
        yield* sync(CudaDevice.synchronize(0))
        yield* CudaKernel.launch(kernel, one, [{ buff1: null, buff2: d_data2 }], stream1)
      })
  },
  "11_cuda_to_mpi_struct_of_buff": {
    racy: [raceOf(launchOf("kernel_buffers"), "writes", "CudaMemory.copy", "reads")],
    program: ({ d_data, d_data2, kernelOf, send }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        const kernel = yield* kernelOf("kernel_buffers")
        yield* CudaKernel.launch(kernel, one, [{ buff1: d_data, buff2: null }], stream1)
        yield* CudaKernel.launch(kernel, one, [{ buff1: null, buff2: d_data2 }], stream2)
        yield* sync(CudaDevice.synchronize(0))
        yield* send(d_data2)
      })
  },
  "13_struct_recursion": {
    racy: [raceOf(launchOf("kernel_nested"), "writes", launchOf("kernel_nested"), "writes")],
    program: ({ d_data, d_data2, kernelOf }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        const kernel = yield* kernelOf("kernel_nested")
        const second = { buff1: { buff: null }, buff2: { buff: d_data2 } }
        yield* CudaKernel.launch(kernel, one, [{ buff1: { buff: d_data }, buff2: { buff: null } }], stream1)
        yield* CudaKernel.launch(kernel, one, [second], stream2)
        yield* CudaKernel.launch(kernel, one, [second], stream2)
        yield* sync(CudaDevice.synchronize(0))
        yield* CudaKernel.launch(kernel, one, [second], stream1)
      })
  },
  "14_cuda_functor": {
    racy: [raceOf(launchOf("kernel_functor"), "writes", "bytes", "reads")],
    program: ({ kernelOf, main, managed }, sync) =>
      Effect.gen(function*() {
        yield* CudaMemory.fill(managed, 0)
        yield* CudaDevice.synchronize(0)
        yield* CudaKernel.launch(yield* kernelOf("kernel_functor"), one, [{ d_data: managed }])
        const end = yield* CudaStream.recordEvent(main)
        yield* sync(CudaEvent.synchronize(end))
        yield* look(managed)
      })
  },
  "15_cuda_memset_sync": {
    racy: [hostRace],
    program: ({ d_data, d_data2, managed, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        yield* CudaMemory.fill(managed, 0)
        yield* write(managed, stream1)
        yield* sync(CudaMemory.fill(d_data, 0))
        yield* write(d_data2, stream2)
        yield* CudaStream.synchronize(stream2)
        yield* look(managed)
      })
  },
  // The fill of the first buffer is waited for, or it would race with the launch. There, `cudaMemset` waits.
  "15_cuda_memset_sync_nonblocking": {
    racy: [hostRace],
    program: ({ d_data, d_data2, main, managed, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* nonBlocking, yield* blocking]
        yield* CudaMemory.fill(managed, 0)
        yield* CudaStream.synchronize(main)
        yield* write(managed, stream1)
        yield* CudaMemory.fill(d_data, 0)
        yield* sync(CudaStream.synchronize(stream1))
        yield* write(d_data2, stream2)
        yield* CudaStream.synchronize(stream2)
        yield* look(managed)
      })
  },
  "16_cuda_hostalloc_implicit_sync": {
    racy: [sendRace],
    synced: [sendRace],
    program: ({ d_data, h_data, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        yield* write(d_data, stream1)
        yield* sync(CudaMemory.allocateManaged(size))
        yield* CudaMemory.copy(h_data, d_data, stream2)
        yield* CudaStream.synchronize(stream2)
      })
  },
  "16_cuda_malloc_implicit_sync": {
    racy: [sendRace],
    synced: [sendRace],
    program: ({ d_data, h_data, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        yield* write(d_data, stream1)
        yield* sync(CudaMemory.allocate(size))
        yield* CudaMemory.copy(h_data, d_data, stream2)
        yield* CudaStream.synchronize(stream2)
      })
  },
  "17_cuda_stream_query_busy_loop": {
    racy: [hostRace],
    program: ({ managed, write }, sync) =>
      Effect.gen(function*() {
        const stream1 = yield* blocking
        yield* CudaMemory.fill(managed, 0)
        yield* write(managed, stream1)
        yield* sync(until(CudaStream.query(stream1)))
        yield* look(managed)
      })
  },
  "18_cuda_event_query_busy_loop": {
    racy: [hostRace],
    program: ({ managed, write }, sync) =>
      Effect.gen(function*() {
        const stream1 = yield* blocking
        yield* write(managed, stream1)
        const event = yield* CudaStream.recordEvent(stream1)
        yield* sync(until(CudaEvent.query(event)))
        yield* look(managed)
      })
  },
  "18_cuda_event_with_flags_query_busy_loop": {
    racy: [hostRace],
    program: ({ managed, write }, sync) =>
      Effect.gen(function*() {
        const stream1 = yield* blocking
        const event = yield* CudaEvent.make({ blocking: true })
        yield* write(managed, stream1)
        yield* CudaEvent.record(event, stream1)
        yield* sync(until(CudaEvent.query(event)))
        yield* look(managed)
      })
  },
  "18_cuda_to_mpi_event_query_busy_loop": {
    racy: [sendRace],
    program: ({ managed, send, write }, sync) =>
      Effect.gen(function*() {
        const stream1 = yield* blocking
        yield* CudaMemory.fill(managed, 0)
        yield* write(managed, stream1)
        const event = yield* CudaStream.recordEvent(stream1)
        yield* sync(until(CudaEvent.query(event)))
        yield* send(managed)
      })
  },
  "19_cuda_cudaMemcpyAsyncH2H_implicit_sync": {
    racy: [sendRace],
    program: ({ d_data, d_data2, h_data, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        const h_data3 = yield* CudaMemory.allocateHost(size)
        yield* write(d_data, stream1)
        yield* sync(CudaMemory.copy(d_data2, h_data))
        yield* CudaMemory.copy(h_data3, d_data, stream2)
        yield* CudaStream.synchronize(stream2)
        yield* look(h_data3)
      })
  },
  "19_cuda_cudaMemcpyAsyncH2H_implicit_sync_nonblocking": {
    racy: [sendRace],
    program: ({ d_data, d_data2, h_data, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* nonBlocking, yield* nonBlocking]
        const h_data3 = yield* CudaMemory.allocateHost(size)
        yield* write(d_data, stream1)
        yield* CudaMemory.copy(d_data2, h_data)
        yield* sync(CudaStream.synchronize(stream1))
        yield* CudaMemory.copy(h_data3, d_data, stream2)
        yield* CudaStream.synchronize(stream2)
        yield* look(h_data3)
      })
  },
  "19_cuda_to_mpi_send_cudaMemcpyAsyncH2H_implicit_sync": {
    racy: [sendRace],
    program: ({ d_data, d_data2, h_data, main, send, write }, sync) =>
      Effect.gen(function*() {
        yield* write(d_data, yield* blocking)
        yield* sync(Effect.andThen(CudaMemory.copy(d_data2, h_data), CudaStream.synchronize(main)))
        yield* send(d_data)
      })
  },
  "20_cuda_default_stream_sync": {
    racy: [hostRace],
    program: ({ d_data2, main, managed, write }, sync) =>
      Effect.gen(function*() {
        yield* write(managed, yield* blocking)
        yield* write(d_data2)
        yield* sync(CudaStream.synchronize(main))
        yield* look(managed)
      })
  },
  "20_cuda_to_mpi_send_ds_sync_w_r": {
    racy: [sendRace],
    program: ({ d_data2, main, managed, send, write }, sync) =>
      Effect.gen(function*() {
        yield* write(managed, yield* blocking)
        yield* write(d_data2)
        yield* sync(CudaStream.synchronize(main))
        yield* send(managed)
      })
  },
  "21_chunked_streams_example": {
    racy: none,
    program: ({ d_data, h_data, write }) =>
      Effect.gen(function*() {
        const [kernelStream, ...streams] = yield* Effect.replicateEffect(blocking, 5)
        yield* write(d_data, kernelStream)
        yield* CudaStream.synchronize(kernelStream!)
        const chunk = size / streams.length
        for (const [index, stream] of streams.entries()) {
          const at = index * chunk
          yield* CudaMemory.copy(CudaMemory.slice(h_data, at, chunk), CudaMemory.slice(d_data, at, chunk), stream)
        }
        for (const [index, stream] of streams.entries()) {
          yield* CudaStream.synchronize(stream)
          yield* Effect.sync(() => CudaMemory.view(CudaMemory.slice(h_data, index * chunk, chunk), Uint8Array))
        }
      })
  },
  "22_cuda_to_mpi_partial_buff_write": {
    racy: none,
    program: ({ d_data, send, write }) =>
      Effect.gen(function*() {
        const stream = yield* blocking
        const [first, second] = [CudaMemory.slice(d_data, 0, size / 2), CudaMemory.slice(d_data, size / 2)]
        yield* write(first, stream)
        yield* CudaStream.synchronize(stream)
        yield* write(second, stream)
        yield* send(first)
        yield* CudaStream.synchronize(stream)
        yield* send(second)
      })
  },
  "23_cuda_default_stream_post_sync": {
    racy: [hostRace],
    program: ({ d_data2, managed, write }, sync) =>
      Effect.gen(function*() {
        const stream = yield* blocking
        yield* write(managed)
        yield* write(d_data2, stream)
        yield* sync(CudaStream.synchronize(stream))
        yield* look(managed)
      })
  },
  "23_cuda_default_stream_post_sync_nonblocking": {
    racy: [hostRace],
    program: ({ d_data2, managed, write }, sync) =>
      Effect.gen(function*() {
        const stream = yield* nonBlocking
        yield* write(managed)
        yield* write(d_data2, stream)
        yield* CudaStream.synchronize(stream)
        yield* sync(CudaDevice.synchronize(0))
        yield* look(managed)
      })
  },
  "25_cuda_default_stream_double_sync": {
    racy: [hostRace],
    program: ({ d_data2, managed, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        yield* write(managed, stream1)
        yield* write(d_data2)
        yield* write(d_data2, stream2)
        yield* sync(CudaStream.synchronize(stream2))
        yield* look(managed)
      })
  },
  "26_malloc_pitch": {
    racy: [sendRace],
    program: ({ send, write }, sync) =>
      Effect.gen(function*() {
        const pitched = yield* CudaMemory.allocate(8 * 8)
        yield* write(pitched)
        yield* sync(CudaDevice.synchronize(0))
        yield* send(pitched)
      })
  },
  "27_cuda_memcpy2d_implicit_syn": {
    racy: [raceOf(write, "writes", "CudaMemory.copy2D", "reads")],
    program: ({ d_data, h_data, h_data2, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        const rows = (to: HostBuffer, stream?: CudaStream.CudaStream) =>
          CudaMemory.copy2D(CudaMemory.rows(to, 4), CudaMemory.rows(d_data, 8), { width: 4, height: 8 }, stream)
        yield* write(d_data, stream1)
        yield* sync(rows(h_data2))
        yield* rows(h_data, stream2)
        yield* CudaStream.synchronize(stream2)
      })
  },
  "28_cuda_memset2d_implicit_syn": {
    racy: [raceOf(write, "writes", "CudaMemory.copy2D", "reads")],
    program: ({ d_data, d_data2, h_data, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* CudaStream.make({ nonBlocking: false, priority: -1 })]
        const size = { width: 4, height: 8 }
        yield* write(d_data, stream1)
        yield* sync(CudaMemory.fill(d_data2, 0))
        yield* CudaMemory.copy2D(CudaMemory.rows(h_data, 4), CudaMemory.rows(d_data, 8), size, stream2)
        yield* CudaStream.synchronize(stream2)
      })
  },
  "31_tsan_cuda_event": {
    racy: [raceOf(launchOf("increment"), "reads and writes", launchOf("increment"), "reads and writes")],
    program: ({ d_data, kernelOf }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        const kernel = yield* kernelOf("increment")
        yield* CudaKernel.launch(kernel, one, [d_data], stream1)
        const finished = yield* CudaStream.recordEvent(stream1)
        yield* sync(CudaEvent.synchronize(finished))
        yield* CudaKernel.launch(kernel, one, [d_data], stream2)
      })
  },
  "32_tsan_async_copy": {
    racy: [sendRace],
    program: ({ d_data, h_data, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        yield* write(d_data, stream1)
        yield* sync(CudaStream.synchronize(stream1))
        yield* CudaMemory.copy(h_data, d_data, stream2)
        yield* CudaStream.synchronize(stream2)
        yield* look(h_data)
      })
  },
  "33_tsan_wait_event": {
    racy: [raceOf(write, "writes", launchOf("reading_kernel"), "reads")],
    program: ({ d_data, d_data2, h_data, kernelOf, main, write }, sync) =>
      Effect.gen(function*() {
        const [stream1, stream2] = [yield* blocking, yield* blocking]
        yield* CudaMemory.copy(d_data, h_data)
        yield* CudaDevice.synchronize(0)
        yield* write(d_data, stream1)
        const written = yield* CudaStream.recordEvent(stream1)
        yield* sync(CudaStream.waitEvent(stream2, written))
        yield* CudaKernel.launch(yield* kernelOf("reading_kernel"), one, [d_data2, d_data], stream2)
        yield* CudaMemory.copy(h_data, d_data)
        yield* CudaStream.synchronize(main)
        yield* CudaStream.synchronize(stream2)
      })
  },
  "35_struct_null": {
    racy: [raceOf(launchOf("kernel_buffers"), "writes", "bytes", "reads")],
    program: ({ kernelOf, managed }, sync) =>
      Effect.gen(function*() {
        yield* CudaKernel.launch(yield* kernelOf("kernel_buffers"), one, [{ buff1: managed, buff2: null }])
        yield* sync(CudaDevice.synchronize(0))
        yield* look(managed)
      })
  },
  "multi_gpu/01_device_sync": {
    racy: [hostRace],
    program: ({ managed, write }, sync) =>
      Effect.gen(function*() {
        const other = yield* CudaStream.defaultStream({ device: 1 })
        const managed2 = yield* CudaMemory.allocateManaged(size, { device: 1 })
        yield* CudaMemory.fill(managed, 0)
        yield* CudaMemory.fill(managed2, 0, other)
        yield* write(managed)
        yield* sync(CudaDevice.synchronize(0))
        yield* write(managed2, other)
        yield* CudaDevice.synchronize(1)
        yield* look(managed)
        yield* look(managed2)
      })
  },
  "multi_gpu/02_device_sync_event": {
    racy: [hostRace],
    program: ({ main, managed, write }, sync) =>
      Effect.gen(function*() {
        yield* write(managed)
        const end = yield* CudaStream.recordEvent(main)
        yield* CudaDevice.withDevice(sync(CudaEvent.synchronize(end)), 1)
        yield* look(managed)
      })
  }
}

const until = (query: Effect.Effect<boolean, CudaError>): Effect.Effect<void, CudaError> =>
  Effect.flatMap(query, (isDone) => isDone ? Effect.void : Effect.andThen(Effect.sleep(1), until(query)))

const verdict = (program: Case["program"], sync: (step: Step) => Step, expected: ReadonlyArray<string>) =>
  expectReports(Effect.flatMap(make, (made) => program(made, sync)), expected, runtime)

describe("without the synchronization", () => {
  it.live.each(Object.keys(cases))("%s", (name) => {
    const { program, racy } = cases[name]!
    return verdict(program, () => Effect.void, racy)
  })

  it.live.each(["a stream that blocks", "a stream that does not"])(
    "24_cuda_sync_stream_default_nonblocking: %s",
    (kind) =>
      // The two variants there differ in the stream.
      verdict(
        ({ main, managed, write }) =>
          Effect.gen(function*() {
            yield* CudaMemory.fill(managed, 0)
            yield* CudaStream.synchronize(main)
            yield* write(managed, yield* kind === "a stream that blocks" ? blocking : nonBlocking)
            yield* CudaStream.synchronize(main)
            yield* look(managed)
          }),
        (step) => step,
        kind === "a stream that blocks" ? [] : [hostRace]
      )
  )
})

describe("with the synchronization", () => {
  it.live.each(Object.keys(cases))("%s", (name) => {
    const { program, synced } = cases[name]!
    return verdict(program, (step) => step, synced ?? [])
  })
})
