/**
 * Every fault that small programs can meet that use several capabilities together: nothing is left, nothing hangs, nothing dies.
 */
import { describe, it } from "@effect/vitest"
import {
  CheckedRuntime,
  CudaBranch,
  CudaDevice,
  CudaFaults,
  CudaGraph,
  CudaInterprocess,
  CudaLibrary,
  CudaMemory,
  CudaMemoryPool,
  CudaNccl,
  CudaPartition,
  CudaPlacement,
  CudaStream,
  CudaTaskGraph,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { demo } from "./support/stubLibrary.ts"

const mebi = 2 ** 20
const size = 64

type Program = Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>

const filling = (buffer: CudaMemory.DeviceBuffer) =>
  Effect.flatMap(CudaStream.current(), (stream) => CudaMemory.fill(buffer, 1, stream))

const programs: Readonly<Record<string, Program>> = {
  "access that is given and taken, to pools and devices": Effect.gen(function*() {
    const far = yield* CudaStream.make({ device: 1 })
    const pool = yield* CudaMemoryPool.make({ peers: [1] })
    const [pooled, own] = [yield* CudaMemory.allocate(size, { pool }), yield* CudaMemory.allocate(size)]
    yield* CudaDevice.enablePeerAccess(1, 0)
    yield* CudaMemory.fill(pooled, 1, far)
    yield* CudaMemory.fill(own, 1, far)
    yield* CudaMemory.download(new Uint8Array(size), own, far)
    yield* CudaMemoryPool.denyAccess(pool, 1)
    yield* CudaMemoryPool.allowAccess(pool, 1)
    yield* CudaDevice.disablePeerAccess(1, 0)
  }),
  "branches and tasks over devices in a partition, with a growable buffer": Effect.gen(function*() {
    const partition = yield* CudaPartition.make({ multiprocessors: 16 })
    const buffer = yield* CudaMemory.growable({ maxBytes: 64 * mebi, initial: mebi })
    const far = yield* CudaMemory.allocate(size, { device: 1 })
    const graph = CudaTaskGraph.empty.pipe(
      CudaTaskGraph.add("near", filling(buffer)),
      CudaTaskGraph.add("far", filling(far)),
      CudaTaskGraph.add("grow", CudaMemory.grow(buffer, 3 * mebi))
    )
    yield* Effect.gen(function*() {
      yield* CudaBranch.all([filling(buffer), filling(far)], { devices: [0, 1] })
      yield* CudaTaskGraph.run(graph, { devices: { far: 1 } })
      yield* CudaStream.synchronize(yield* CudaStream.current())
    }).pipe(CudaPartition.within(partition))
    yield* CudaMemory.shrink(buffer, 0)
  }),
  "a graph of a partition, with a growable buffer": Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const partition = yield* CudaPartition.make({ multiprocessors: 16 })
    const buffer = yield* CudaMemory.growable({ maxBytes: 64 * mebi, initial: 4 * mebi, ordered: true })
    const inner = yield* CudaGraph.record(filling(buffer)).pipe(CudaPartition.within(partition))
    const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaGraph.embed(inner)))
    yield* CudaGraph.launch(exec, stream)
    yield* CudaMemory.shrink(buffer, mebi)
    yield* Effect.exit(CudaGraph.launch(exec, stream))
  }),
  "collectives in partitions, on ordered buffers": Effect.gen(function*() {
    const devices = [0, 1]
    const streams = yield* Effect.forEach(devices, (device) =>
      Effect.flatMap(
        CudaPartition.make({ multiprocessors: 16, device }),
        (partition) => CudaStream.make({ partition })
      ))
    const communicators = yield* CudaNccl.local(devices, { timeout: "1 second", closeTimeout: "1 second" })
    const buffers = yield* Effect.forEach(devices, (device) => CudaMemory.allocate(size, { device, ordered: true }))
    for (const [index, buffer] of buffers.entries()) yield* CudaMemory.fill(buffer, 1, streams[index])
    const all = communicators.map((communicator, index) =>
      CudaNccl.allReduce(communicator, { from: buffers[index]!, type: "u8" }, streams[index])
    )
    yield* CudaNccl.guard(
      Effect.andThen(CudaNccl.run(...all), Effect.forEach(streams, (stream) => CudaStream.synchronize(stream))),
      communicators
    )
  }).pipe(Effect.scoped, Effect.provide(CudaNccl.layer())),
  "handles of a library in a partition": Effect.gen(function*() {
    const partition = yield* CudaPartition.make({ multiprocessors: 16 })
    const library = yield* CudaLibrary.load(demo)
    const buffers = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)] as const
    const make = { create: "demoCreate", destroy: "demoDestroy", setStream: "demoSetStream" } as const
    const shared = yield* CudaLibrary.handle(library, { ...make, ordered: true })
    const perStream = yield* CudaLibrary.handle(library, { ...make, perStream: true })
    yield* CudaBranch.all([
      CudaLibrary.call(library, "demoFillOf", [shared, buffers[0], 1, size]),
      CudaLibrary.call(library, "demoFillOf", [perStream, buffers[1], 1, size])
    ]).pipe(CudaPartition.within(partition))
  }),
  "memory for other processes, within reach of another device": Effect.gen(function*() {
    const far = yield* CudaStream.make({ device: 1 })
    yield* CudaDevice.enablePeerAccess(1, 0)
    const pool = yield* CudaMemoryPool.make({ shareable: true })
    for (const buffer of [yield* CudaMemory.allocate(size, { pool }), yield* CudaInterprocess.allocate(size)]) {
      yield* CudaMemory.fill(buffer, 1, far)
      yield* CudaInterprocess.share(buffer)
    }
  }),
  "a leased device, with a partition of it": CudaPlacement.withLease(Effect.gen(function*() {
    const partition = yield* CudaPartition.make({ multiprocessors: "rest" })
    const buffer = yield* CudaMemory.growable({ maxBytes: mebi, initial: size })
    yield* CudaPartition.within(filling(buffer), partition)
  }))
}

const machine = SimulatedRuntime.layer({ devices: 2 })
const checked = Layer.provideMerge(CheckedRuntime.layer({ mode: "fail", hostWrites: true }), machine)

describe.each([["plain", machine], ["checked", checked]] as const)("%s", (_, runtime) => {
  for (const [name, program] of Object.entries(programs)) {
    it.effect(
      name,
      () => Effect.flatMap(CudaFaults.everyCall(Effect.scoped(program), { runtime }), CudaFaults.expectNone),
      60_000
    )
  }
})
