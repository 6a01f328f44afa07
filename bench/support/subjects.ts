/**
 * The operations that benchmarks measure on every runtime, their resources, and the raw calls behind them.
 */
import * as Effect from "effect/Effect"
import * as CudaEvent from "../../src/CudaEvent.ts"
import * as CudaMemory from "../../src/CudaMemory.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import type { Operation } from "./compare.ts"
import { check } from "./driver.ts"
import type { Driver } from "./driver.ts"

const bytes = 4096
/** `CU_EVENT_DISABLE_TIMING` and `CU_STREAM_NON_BLOCKING`, which the library uses too. */
const eventFlags = 2
const streamFlags = 1
const releaseThreshold = 4

/** The resources that the operations use. */
export const makeSubjects = Effect.gen(function*() {
  const runtime = yield* CudaRuntime
  const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
  const [start, end] = yield* Effect.all([CudaEvent.make({ timing: true }), CudaEvent.make({ timing: true })])
  yield* CudaEvent.record(start, stream)
  yield* CudaEvent.record(end, stream)
  yield* CudaEvent.synchronize(end)
  return {
    runtime,
    stream,
    other,
    start,
    end,
    event: yield* CudaEvent.make(),
    host: yield* CudaMemory.allocateHost(bytes),
    device: yield* CudaMemory.allocate(bytes)
  }
})

export type Subjects = Effect.Success<typeof makeSubjects>

/** The raw calls of each operation, by the name that peers use. */
export type RawCalls = Readonly<Record<string, () => void>>

export const makeRawCalls = (driver: Driver, subjects: Subjects): RawCalls => {
  const { calls, inContext, make } = driver
  const { device, end, event, host, other, start, stream } = subjects
  const marker = inContext(() => make("cuEventCreate", eventFlags))
  const pool = makePool(driver)
  const millis = new Float32Array(1)
  const record = (made: number) => check("cuEventRecord", calls.cuEventRecord(made, stream.handle))
  const wait = (made: number) => check("cuStreamWaitEvent", calls.cuStreamWaitEvent(other.handle, made, 0))
  const fill = (on: number) => check("cuMemsetD8Async", calls.cuMemsetD8Async(device.address, 0, bytes, on))
  return {
    record: () => record(event.handle),
    waitEvent: () => wait(event.handle),
    waitStream: () => {
      record(marker)
      wait(marker)
    },
    queryFinished: () => void calls.cuEventQuery(event.handle),
    queryUnfinished: () => void calls.cuEventQuery(event.handle),
    elapsed: () => check("cuEventElapsedTime", calls.cuEventElapsedTime(millis, start.handle, end.handle)),
    createDestroy: () => check("cuEventDestroy", calls.cuEventDestroy_v2(make("cuEventCreate", eventFlags))),
    createDestroyStream: () =>
      check("cuStreamDestroy", calls.cuStreamDestroy_v2(make("cuStreamCreateWithPriority", streamFlags, 0))),
    allocateFree: () => {
      const made = make("cuMemAllocFromPoolAsync", bytes, pool, stream.handle)
      check("cuMemFreeAsync", calls.cuMemFreeAsync(made, stream.handle))
    },
    copy: () => {
      const status = calls.cuMemcpyHtoDAsync_v2(device.address, host.address, bytes, stream.handle)
      check("cuMemcpyHtoDAsync", status)
    },
    fill: () => fill(stream.handle),
    sequence: () => {
      record(event.handle)
      wait(event.handle)
      fill(other.handle)
    }
  }
}

/** Allocates like the library: from a pool that keeps freed memory. */
const makePool = ({ calls, make }: Driver): number => {
  // `CUmemPoolProps`: pinned memory of device 0.
  const properties = new Uint8Array(88)
  properties[0] = 1
  properties[8] = 1
  const pool = make("cuMemPoolCreate", properties)
  const everything = BigUint64Array.of(0xffffffffffffffffn)
  check("cuMemPoolSetAttribute", calls.cuMemPoolSetAttribute(pool, releaseThreshold, everything))
  return pool
}

/** Single operations. Scoped ones are written as in programs; "service" calls two members of `CudaRuntime` directly. */
export const makeOperations = (subjects: Subjects): ReadonlyArray<Operation> => {
  const { runtime } = subjects
  const provided = <A, E>(effect: Effect.Effect<A, E, CudaRuntime>) =>
    Effect.provideService(effect, CudaRuntime, runtime)
  const event = provided(Effect.scoped(CudaEvent.make()))
  const stream = provided(Effect.scoped(CudaStream.make()))
  const memory = provided(Effect.scoped(CudaMemory.allocate(bytes)))
  const pooled = provided(CudaStream.fromPool())
  return [
    ...makeEnqueues(subjects),
    {
      name: "event create, destroy (service)",
      peer: "createDestroy",
      count: 2000,
      effect: () => Effect.flatMap(runtime.eventCreate(0, eventFlags), runtime.eventDestroy)
    },
    { name: "event create, destroy (scoped)", peer: "createDestroy", count: 1000, effect: () => event },
    { name: "stream create, destroy (scoped)", peer: "createDestroyStream", count: 50, effect: () => stream },
    { name: "stream from the pool", peer: "pooledStream", count: 1000, effect: () => pooled },
    { name: "device memory allocate, free (scoped)", peer: "allocateFree", count: 100, effect: () => memory }
  ]
}

const makeEnqueues = (subjects: Subjects): ReadonlyArray<Operation> => {
  const { device, end, event, host, other, start, stream } = subjects
  return [
    { name: "record", peer: "record", count: 500, effect: () => CudaEvent.record(event, stream) },
    { name: "waitEvent", peer: "waitEvent", count: 500, effect: () => CudaStream.waitEvent(other, event) },
    { name: "waitStream", peer: "waitStream", count: 250, effect: () => CudaStream.waitStream(other, stream) },
    { name: "query, finished", peer: "queryFinished", count: 5000, effect: () => CudaEvent.query(event) },
    {
      name: "query, unfinished",
      peer: "queryUnfinished",
      count: 5000,
      busy: true,
      effect: () => CudaEvent.query(event)
    },
    { name: "elapsedTime", peer: "elapsed", count: 2000, effect: () => CudaEvent.elapsedTime(start, end) },
    { name: "copy 4 KiB to the device", peer: "copy", count: 250, effect: () => CudaMemory.copy(device, host, stream) },
    { name: "fill 4 KiB", peer: "fill", count: 250, effect: () => CudaMemory.fill(device, 0, stream) }
  ]
}

/** Record, wait and fill, in the ways in which programs write a fixed sequence. */
export const makeSequences = ({ device, event, other, stream }: Subjects): ReadonlyArray<Operation> => {
  const record = () => CudaEvent.record(event, stream)
  const wait = () => CudaStream.waitEvent(other, event)
  const fill = () => CudaMemory.fill(device, 0, other)
  const chain = () => Effect.andThen(Effect.andThen(record(), wait()), fill())
  const made = chain()
  const common = { peer: "sequence", count: 200 }
  return [
    { ...common, name: "andThen, made once", effect: () => made },
    { ...common, name: "andThen, made each time", effect: () => Effect.suspend(chain) },
    {
      ...common,
      name: "Effect.gen",
      effect: () =>
        Effect.gen(function*() {
          yield* record()
          yield* wait()
          yield* fill()
        })
    }
  ]
}

/** Adds the raw calls to compare with, and the targets. */
export const withRawCalls = (
  operations: ReadonlyArray<Operation>,
  raw: RawCalls,
  target: Operation["target"]
): ReadonlyArray<Operation> =>
  operations.map((operation) => {
    const call = raw[operation.peer]
    return { ...operation, target, ...(call === undefined ? {} : { raw: call }) }
  })
