/**
 * Partitions of the multiprocessors of a device.
 */
import { assert, layer } from "@effect/vitest"
import {
  CudaBranch,
  CudaEvent,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaPartition,
  CudaStream
} from "effect-cuda"
import * as CudaDevice from "effect-cuda/CudaDevice"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { settled } from "../support/fibers.ts"
import { program, signatures } from "../support/kernels.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

export const partitionContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("partitions", (it) => {
    it.effect("have at least the multiprocessors that they were asked for, and share none", () =>
      leavesNothing(Effect.gen(function*() {
        const total = yield* CudaDevice.attribute("multiprocessorCount")
        const [one, other, rest] = yield* CudaPartition.split([9, 20, "rest"])
        assert.isAtLeast(one.multiprocessors, 9)
        assert.isAtLeast(other.multiprocessors, 20)
        assert.strictEqual(one.multiprocessors + other.multiprocessors + rest.multiprocessors, total)
        assert.isTrue(CudaPartition.isCudaPartition(one))
        assert.strictEqual(one.deviceIndex, 0)
        const reason = yield* failsWith(CudaPartition.make({ multiprocessors: 1 }), "InvalidArgument")
        assert.strictEqual(reason.argument, "multiprocessors")
        yield* refuses(CudaPartition.make({ multiprocessors: "rest" }), "multiprocessors")
      })))

    it.effect("give their multiprocessors back", () =>
      leavesNothing(Effect.gen(function*() {
        const total = yield* CudaDevice.attribute("multiprocessorCount")
        const sizes: Array<number> = []
        for (let round = 0; round < 3; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            sizes.push((yield* CudaPartition.make({ multiprocessors: 16 })).multiprocessors)
            yield* CudaPartition.make({ multiprocessors: "rest" })
          }))
        }
        assert.deepStrictEqual(sizes, [sizes[0], sizes[0], sizes[0]])
        const all = yield* CudaPartition.make({ multiprocessors: total })
        assert.strictEqual(all.multiprocessors, total)
      })))

    it.effect("are made all or none", () =>
      leavesNothing(Effect.gen(function*() {
        const total = yield* CudaDevice.attribute("multiprocessorCount")
        yield* refuses(CudaPartition.split([16, total]), "multiprocessors")
        yield* CudaPartition.make({ multiprocessors: total })
      })))

    it.effect("run copies, fills and kernels on their streams", () =>
      leavesNothing(Effect.gen(function*() {
        const partition = yield* CudaPartition.make({ multiprocessors: 16 })
        const stream = yield* CudaStream.make({ partition, priority: "high" })
        assert.deepStrictEqual([stream.deviceIndex, stream.isNonBlocking], [0, true])
        assert.strictEqual(stream.ref.partition, partition.ref)
        assert.isTrue(Equal.equals(yield* CudaStream.fromHandle(stream.handle), stream))
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const add = yield* CudaKernel.get(module, "add", signatures.add)
        const numbers = Float32Array.from({ length: 256 }, (_, index) => index)
        const [one, other] = [yield* CudaMemory.allocate(1024, { stream }), yield* CudaMemory.allocate(1024)]
        yield* CudaMemory.upload(one, numbers, stream)
        yield* CudaMemory.copy(other, one, stream)
        yield* CudaKernel.launch(add, { grid: 1, block: 256 }, [one, other, 256], stream)
        const result = new Float32Array(256)
        yield* CudaMemory.download(result, one, stream)
        assert.deepStrictEqual(result, numbers.map((number) => 2 * number))
        yield* CudaMemory.fill(one, 0, stream)
        yield* CudaStream.synchronize(stream)
        assert.isTrue(yield* CudaStream.query(stream))
      })))

    it.effect("wait for each other by events", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [one, other] = yield* CudaPartition.split([16, 16])
        const first = yield* CudaStream.make({ partition: one })
        const second = yield* CudaStream.make({ partition: other })
        const outside = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(64)
        const [begin, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
        yield* CudaEvent.record(begin, first)
        yield* busy.enqueue(first, 20)
        yield* CudaMemory.fill(buffer, 1, first)
        yield* CudaStream.waitStream(second, first)
        yield* CudaEvent.record(end, second)
        yield* CudaStream.waitEvent(outside, end)
        const bytes = new Uint8Array(64)
        yield* CudaMemory.download(bytes, buffer, outside)
        assert.isTrue(bytes.every((byte) => byte === 1))
        yield* CudaEvent.elapsedTime(begin, end)
      })))

    it.effect("are where the streams, branches and graphs of a region are", () =>
      leavesNothing(Effect.gen(function*() {
        const partition = yield* CudaPartition.make({ multiprocessors: 16 })
        const buffer = yield* CudaMemory.allocate(64)
        const partitionOf = Effect.map(CudaStream.current(), (stream) => stream.ref.partition)
        yield* Effect.gen(function*() {
          assert.strictEqual(yield* partitionOf, partition.ref)
          assert.strictEqual((yield* CudaStream.make()).ref.partition, partition.ref)
          assert.strictEqual((yield* CudaStream.fromPool()).ref.partition, partition.ref)
          const [one, other] = yield* CudaBranch.all([partitionOf, partitionOf])
          assert.deepStrictEqual([one, other], [partition.ref, partition.ref])
          const graph = yield* CudaGraph.record(Effect.andThen(CudaMemory.fill(buffer, 3), partitionOf))
          assert.strictEqual(graph.value, partition.ref)
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
        }).pipe(CudaPartition.within(partition))
        assert.isUndefined(yield* partitionOf)
        assert.isUndefined((yield* CudaStream.make()).ref.partition)
      })), 30_000)

    it.effect("keep the kernels of graphs, and end them", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const put = yield* CudaKernel.get(module, "put", signatures.put)
        const buffer = yield* CudaMemory.allocate(4)
        const own = yield* Scope.make()
        const partition = yield* Scope.provide(CudaPartition.make({ multiprocessors: 16 }), own)
        const graph = yield* CudaGraph.record(CudaKernel.launch(put, { grid: 1, block: 1 }, [buffer, 7])).pipe(
          CudaPartition.within(partition)
        )
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaGraph.launch(exec, stream)
        const result = new Uint32Array(1)
        yield* CudaMemory.download(result, buffer, stream)
        assert.strictEqual(result[0], 7)
        yield* Scope.close(own, Exit.void)
        yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
      })))

    it.effect("end after the work on their streams, which end with them", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const own = yield* Scope.make()
        const partition = yield* Scope.provide(CudaPartition.make({ multiprocessors: 16 }), own)
        const stream = yield* CudaStream.make({ partition })
        const event = yield* CudaEvent.make()
        yield* busy.enqueue(stream, 20)
        yield* CudaEvent.record(event, stream)
        yield* Scope.close(own, Exit.void)
        assert.isTrue(yield* CudaEvent.query(event))
        assert.strictEqual(partition.ref.state, "released")
        yield* failsWith(busyOn(stream), "ResourceReleased")
        yield* failsWith(CudaStream.make({ partition }), "ResourceReleased")
        yield* failsWith(CudaStream.fromPool({ partition }), "ResourceReleased")
        yield* failsWith(Effect.void.pipe(CudaPartition.within(partition)), "ResourceReleased")
      })))

    it.effect("count as live resources", () =>
      Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime
        const before = yield* liveResources
        yield* Effect.scoped(Effect.gen(function*() {
          yield* CudaPartition.split([16, 16])
          assert.strictEqual((yield* liveResources).partitions, before.partitions + 2)
        }))
        assert.deepStrictEqual(yield* liveResources, before)
      }))

    it.effect("can be interrupted while they wait for an idle device", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(CudaPartition.make({ multiprocessors: 24 }))
        yield* busy.enqueue(stream, 300)
        const making = yield* Effect.forkChild(Effect.scoped(CudaPartition.make({ multiprocessors: 56 })))
        yield* settled
        yield* Fiber.interrupt(making)
        yield* CudaStream.synchronize(stream)
        yield* CudaPartition.make({ multiprocessors: yield* CudaDevice.attribute("multiprocessorCount") })
      })))

    it.effect("limit what occupancy suggests, and cooperative launches", () =>
      leavesNothing(Effect.gen(function*() {
        const partition = yield* CudaPartition.make({ multiprocessors: 16 })
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const nothing = yield* CudaKernel.get(module, "nothing", signatures.nothing)
        const whole = yield* CudaKernel.bestBlock(nothing)
        const part = yield* CudaKernel.bestBlock(nothing, { partition })
        const total = yield* CudaDevice.attribute("multiprocessorCount")
        assert.strictEqual(part.minGrid, whole.minGrid * partition.multiprocessors / total)
        const inside = yield* CudaPartition.within(CudaKernel.bestBlock(nothing), partition)
        assert.deepStrictEqual(inside, part)
        const stream = yield* CudaStream.make({ partition })
        const config = { block: whole.block, cooperative: true }
        yield* CudaKernel.launch(nothing, { ...config, grid: part.minGrid }, [], stream)
        yield* failsWith(
          CudaKernel.launch(nothing, { ...config, grid: part.minGrid + 1 }, [], stream),
          "CooperativeLaunchTooLarge"
        )
      })))

    for (const size of [0, -1, 0.5, Number.NaN, "all" as never]) {
      it.effect(`of ${size} multiprocessors are rejected by name`, () =>
        leavesNothing(refuses(CudaPartition.make({ multiprocessors: size }), "multiprocessors")))
    }

    it.effect("are rejected by name if there are none, or two rests", () =>
      leavesNothing(Effect.gen(function*() {
        yield* refuses(CudaPartition.split([]), "sizes")
        yield* refuses(CudaPartition.split(["rest", "rest"]), "sizes")
        yield* refuses(CudaPartition.split(null as never), "sizes")
      })))

    it.effect("have no blocking streams, and are no other values", () =>
      leavesNothing(Effect.gen(function*() {
        const partition = yield* CudaPartition.make({ multiprocessors: 16 })
        yield* refuses(CudaStream.make({ partition, nonBlocking: false }), "nonBlocking")
        yield* refuses(CudaStream.make({ partition: {} as never }), "partition")
      })))

    it.effect("belong to no graph", () =>
      leavesNothing(failsWith(CudaGraph.record(CudaPartition.make({ multiprocessors: 16 })), "CannotRecord")))

    if (rig.deviceCount > 1) {
      it.effect("belong to one device", () =>
        leavesNothing(Effect.gen(function*() {
          const partition = yield* CudaPartition.make({ multiprocessors: 16, device: 1 })
          assert.strictEqual(partition.deviceIndex, 1)
          assert.strictEqual((yield* CudaStream.make({ partition })).deviceIndex, 1)
          yield* failsWith(CudaStream.make({ partition, device: 0 }), "DeviceMismatch")
          const here = CudaStream.make({ device: 0 })
          assert.isUndefined((yield* CudaPartition.within(here, partition)).ref.partition)
        })))
    }
  })

const busyOn = (stream: CudaStream.CudaStream) =>
  Effect.flatMap(CudaEvent.make(), (event) => CudaEvent.record(event, stream))
