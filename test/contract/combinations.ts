/**
 * The contract of capabilities that meet: partitions with work over devices and collectives, growable buffers with graphs, devices and
 * processes.
 */
import { assert, layer } from "@effect/vitest"
import {
  CudaBranch,
  CudaDevice,
  CudaGraph,
  CudaInterprocess,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaNccl,
  CudaPartition,
  CudaStream,
  CudaTaskGraph
} from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { program, signatures } from "../support/kernels.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const mebi = 2 ** 20
const words = 256
const size = 4 * words

const partitionOf = Effect.map(CudaStream.current(), ({ ref }) => ref.partition)

const floatsOf = (buffer: DeviceBuffer, stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const floats = new Float32Array(buffer.byteLength / 4)
    yield* CudaMemory.download(floats, buffer, stream)
    return floats
  })

const kernelOf = <const Name extends "add" | "put">(name: Name) =>
  Effect.flatMap(
    Effect.flatMap(program, (made) => CudaModule.load(made)),
    (module) => CudaKernel.get(module, name, signatures[name])
  )

export const combinationContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("together", (it) => {
    const two = it.effect.skipIf(rig.deviceCount < 2)

    two(
      "branches and tasks over devices stay in the partition of the current stream",
      () =>
        Effect.scoped(Effect.gen(function*() {
          const partition = yield* CudaPartition.make({ multiprocessors: 16 })
          const stream = yield* CudaStream.make({ partition })
          const expected = [partition.ref, undefined, partition.ref]
          const branches = CudaBranch.all([partitionOf, partitionOf, partitionOf], { devices: [0, 1] })
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("here", partitionOf),
            CudaTaskGraph.add("there", partitionOf),
            CudaTaskGraph.add("also", partitionOf)
          )
          const tasks = Effect.map(
            CudaTaskGraph.run(graph, { devices: { there: 1 } }),
            ({ also, here, there }) => [here, there, also]
          )
          for (const work of [branches, tasks]) {
            assert.deepStrictEqual(yield* CudaStream.withStream(work, stream), expected)
            assert.deepStrictEqual(yield* CudaPartition.within(work, partition), expected)
          }
        })),
      30_000
    )

    it.effect(
      "a graph of a partition uses a growable buffer, also embedded, until either is gone",
      () =>
        leavesNothing(Effect.gen(function*() {
          const put = yield* kernelOf("put")
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.growable({ maxBytes: 64 * mebi, initial: 6 * mebi })
          const last = CudaMemory.slice(buffer, 4 * mebi, 4)
          const own = yield* Scope.make()
          const partition = yield* Scope.provide(CudaPartition.make({ multiprocessors: 16 }), own)
          const inner = yield* CudaGraph.record(CudaKernel.launch(put, { grid: 1, block: 1 }, [last, 7])).pipe(
            CudaPartition.within(partition)
          )
          const outer = yield* CudaGraph.record(CudaGraph.embed(inner))
          const execs = yield* Effect.forEach([inner, outer], (graph) => CudaGraph.instantiate(graph))
          for (const exec of execs) {
            yield* CudaMemory.fill(buffer, 0, stream)
            yield* CudaGraph.launch(exec, stream)
            const result = new Uint32Array(1)
            yield* CudaMemory.download(result, last, stream)
            assert.strictEqual(result[0], 7)
          }
          yield* CudaMemory.shrink(buffer, 2 * mebi)
          for (const exec of execs) yield* refuses(CudaGraph.launch(exec, stream), "graph.offset")
          yield* refuses(CudaGraph.record(CudaGraph.embed(inner)), "graph.offset")
          yield* CudaMemory.grow(buffer, 6 * mebi)
          for (const exec of execs) yield* CudaGraph.launch(exec, stream)
          yield* Scope.close(own, Exit.void)
          for (const exec of execs) yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
          yield* failsWith(CudaGraph.record(CudaGraph.embed(inner)), "ResourceReleased")
        })),
      30_000
    )

    it.effect("a growable buffer is not shared with other processes", () =>
      leavesNothing(Effect.gen(function*() {
        const buffer = yield* CudaMemory.growable({ maxBytes: mebi, initial: size })
        yield* refuses(CudaInterprocess.share(buffer), "buffer")
        yield* refuses(CudaInterprocess.lend(buffer, () => Effect.void), "buffer")
      })))

    two(
      "a growable buffer is copied between devices, but no kernel or graph of another device uses it",
      () =>
        leavesNothing(
          Effect.gen(function*() {
            const [near, far] = [yield* CudaStream.make(), yield* CudaStream.make({ device: 1 })]
            const add = yield* kernelOf("add")
            const buffer = yield* CudaMemory.growable({ maxBytes: 64 * mebi, initial: size })
            const other = yield* CudaMemory.allocate(size, { device: 1 })
            yield* CudaMemory.upload(other, new Float32Array(words).fill(3), far)
            yield* CudaMemory.copy(buffer, other, far)
            yield* CudaStream.waitStream(near, far)
            assert.isTrue((yield* floatsOf(buffer, near)).every((value) => value === 3))
            yield* CudaDevice.enablePeerAccess(1, 0)
            const launch = CudaKernel.launch(add, { grid: 1, block: words }, [other, buffer, words], far)
            for (const use of [launch, CudaMemory.fill(buffer, 0, far)]) {
              const { advice } = yield* failsWith(use, "DeviceMismatch")
              assert.include(advice, "no other device can access it")
            }
            const copying = Effect.flatMap(CudaStream.current(1), (stream) => CudaMemory.copy(other, buffer, stream))
            yield* failsWith(CudaGraph.record(copying).pipe(CudaDevice.withDevice(1)), "CannotRecord")
          }).pipe(Effect.ensuring(Effect.orDie(CudaDevice.disablePeerAccess(1, 0))))
        )
    )

    two("memory for other processes is within reach of the devices that have access to its device", () =>
      leavesNothing(
        Effect.gen(function*() {
          const far = yield* CudaStream.make({ device: 1 })
          const buffer = yield* CudaInterprocess.allocate(size)
          yield* failsWith(CudaMemory.fill(buffer, 1, far), "DeviceMismatch")
          yield* CudaDevice.enablePeerAccess(1, 0)
          yield* CudaMemory.fill32(buffer, 0x3f800000, far)
          assert.isTrue((yield* floatsOf(buffer, far)).every((value) => value === 1))
        }).pipe(Effect.ensuring(Effect.orDie(CudaDevice.disablePeerAccess(1, 0))))
      ))

    two("collectives run in partitions, which end after them", () =>
      leavesNothing(
        Effect.gen(function*() {
          const partition = yield* CudaPartition.make({ multiprocessors: 16 })
          const own = yield* Scope.make()
          const other = yield* Scope.provide(CudaPartition.make({ multiprocessors: 16, device: 1 }), own)
          const streams = [
            yield* CudaStream.make({ partition }),
            yield* Scope.provide(CudaStream.make({ partition: other }), own)
          ] as const
          const buffers = yield* Effect.forEach(
            [0, 1],
            (device) => CudaMemory.allocate(size, { device, ordered: true })
          )
          for (const [index, buffer] of buffers.entries()) {
            yield* CudaMemory.upload(buffer, new Float32Array(words).fill(index + 1), streams[index])
          }
          const communicators = yield* CudaNccl.local([0, 1])
          yield* (yield* Busy).enqueue(streams[0], 30)
          yield* CudaNccl.run(
            ...communicators.map((communicator, index) =>
              CudaNccl.allReduce(communicator, { from: buffers[index]!, type: "f32" }, streams[index])
            )
          )
          yield* Scope.close(own, Exit.void)
          const outside = yield* CudaStream.make({ device: 1 })
          assert.isTrue((yield* floatsOf(buffers[1]!, outside)).every((value) => value === 3))
          const late = CudaNccl.allReduce(communicators[1]!, { from: buffers[1]!, type: "f32" }, streams[1])
          yield* failsWith(CudaNccl.run(late), "ResourceReleased")
          yield* CudaStream.synchronize(streams[0])
        }).pipe(Effect.scoped, Effect.provide(CudaNccl.layer()))
      ), 30_000)

    it.effect("shrinking waits for the work in partitions, and for branches that use the buffer", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const partition = yield* CudaPartition.make({ multiprocessors: 16 })
        const buffer = yield* CudaMemory.growable({ maxBytes: 8 * mebi, initial: 4 * mebi })
        yield* CudaBranch.all(
          [0, 1].map((index) =>
            Effect.gen(function*() {
              const stream = yield* CudaStream.current()
              yield* busy.enqueue(stream, 200)
              yield* CudaMemory.fill(CudaMemory.slice(buffer, 2 * index * mebi, 2 * mebi), 1, stream)
            })
          )
        ).pipe(CudaPartition.within(partition))
        const shrinking = yield* started(CudaMemory.shrink(buffer, 0))
        assert.isUndefined(shrinking.pollUnsafe())
        yield* Fiber.join(shrinking)
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [0, 0])
      })))
  })
