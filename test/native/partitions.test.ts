/**
 * Partitions on the stub driver: the calls, and when they are made.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaPartition from "effect-cuda/CudaPartition"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, nothingHeld } from "../support/assertions.ts"
import { settled } from "../support/fibers.ts"
import { program, signatures } from "../support/kernels.ts"
import { copyStub, nothingLive, onStub, openStub } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"

const stub = openStub()
const { callsOf, opened } = tracing(stub)

describe("partitions", () => {
  it.live("are green contexts of whole groups, and of the rest", () =>
    opened(() =>
      Effect.gen(function*() {
        const { calls, lines } = yield* callsOf(CudaPartition.make({ multiprocessors: 9 }))
        const resultOf = (name: string, at: number) => Number(calls.find((call) => call.name === name)!.args.at(at))
        const descriptor = resultOf("cuDevResourceGenerateDesc", -1)
        const green = resultOf("cuGreenCtxCreate", 0)
        assert.deepStrictEqual(lines.filter(([name]) => name !== "cuStreamQuery"), [
          ["cuDeviceGetDevResource", 40, 1],
          ["cuDevSmResourceSplitByCount", 17, 0, 1],
          ["cuDevResourceGenerateDesc", 1, 2, descriptor],
          ["cuGreenCtxCreate", green, descriptor, 40, 1],
          ["cuCtxFromGreenCtx", resultOf("cuCtxFromGreenCtx", 0), green]
        ])
        const next = yield* callsOf(CudaPartition.split(["rest", 100]))
        assert.deepStrictEqual(
          next.lines.filter(([name]) => name === "cuDevResourceGenerateDesc").map((line) => line.slice(1, -1)),
          [[32768], Array.from({ length: 13 }, (_, index) => 2 ** (index + 2))]
        )
        const [rest, hundred] = next.result
        assert.deepStrictEqual([rest.multiprocessors, hundred.multiprocessors], [12, 104])
      })
    ))

  it.live("have streams of their own", () =>
    opened(() =>
      Effect.gen(function*() {
        const partition = yield* CudaPartition.make({ multiprocessors: 16 })
        const { lines, result: stream } = yield* callsOf(CudaStream.make({ partition, priority: -3 }))
        const green = Number(stub.calls("cuGreenCtxStreamCreate")[0]?.args[1] ?? lines[0]![2])
        assert.deepStrictEqual(lines, [
          ["cuGreenCtxStreamCreate", stream.handle, green, 1, -3],
          ["cuStreamGetId", stream.handle, stream.id]
        ])
        const event = yield* CudaEvent.make({ timing: true })
        yield* CudaEvent.record(event, stream)
        yield* CudaStream.synchronize(stream)
      })
    ))

  it.live("are made in a turn that finds the device idle", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        const making = yield* Effect.forkChild(CudaPartition.make({ multiprocessors: 16 }))
        yield* settled
        assert.lengthOf(stub.calls("cuGreenCtxCreate"), 0)
        stub.finish(stream)
        yield* Fiber.join(making)
        assert.strictEqual(stub.blocked, 0)
      })
    ))

  it.live("use a green context again, without waiting for an idle device", () =>
    opened(() =>
      Effect.gen(function*() {
        yield* Effect.scoped(CudaPartition.split([16, 8]))
        const stream = yield* CudaStream.make()
        stub.work(stream)
        const { lines } = yield* callsOf(CudaPartition.split([16, 8]))
        assert.deepStrictEqual(lines, [])
        stub.finish(stream)
      })
    ))

  it.live("drain and destroy their streams, also pooled ones, before they end", () =>
    opened(() =>
      Effect.gen(function*() {
        const own = yield* Scope.make()
        const partition = yield* Scope.provide(CudaPartition.make({ multiprocessors: 16 }), own)
        const stream = yield* CudaStream.make({ partition })
        yield* Effect.void.pipe(CudaPartition.within(partition))
        stub.work(stream)
        const closing = yield* Effect.forkChild(Scope.close(own, Exit.void))
        yield* settled
        assert.deepStrictEqual([partition.ref.state, stub.live.streams], ["closing", 4])
        yield* failsWith(CudaStream.make({ partition }), "ResourceReleased")
        stub.finish(stream)
        yield* Fiber.join(closing)
        assert.deepStrictEqual([partition.ref.state, stub.live.streams], ["released", 2])
      })
    ))

  it.live("decide the context of kernels in graphs, of captures and of occupancy", () =>
    opened(() =>
      Effect.gen(function*() {
        const partition = yield* CudaPartition.make({ multiprocessors: 16 })
        const buffer = yield* CudaMemory.allocate(64)
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const nothing = yield* CudaKernel.get(module, "nothing", signatures.nothing)
        const suggestion = yield* callsOf(CudaKernel.bestBlock(nothing, { partition }))
        assert.deepStrictEqual(
          suggestion.lines.map(([name]) => name),
          within(partition.handle, ["cuOccupancyMaxPotentialBlockSize"]).map(([name]) => name)
        )
        assert.strictEqual(suggestion.lines[0]![1], partition.handle)
        assert.strictEqual(suggestion.result.minGrid, 32)
        const captured = CudaGraph.capture((stream) => Effect.sync(() => stub.nativeFill(stream, buffer, 1)))
        const graph = yield* CudaGraph.record(
          Effect.andThen(CudaKernel.launch(nothing, { grid: 1, block: 1 }, []), captured)
        ).pipe(CudaPartition.within(partition))
        stub.clear()
        const exec = yield* CudaGraph.instantiate(graph)
        const stream = yield* CudaStream.make()
        yield* CudaGraph.launch(exec, stream)
        yield* CudaStream.synchronize(stream)
      })
    ))

  it.live("that are still there when the runtime ends are destroyed", () =>
    Effect.gen(function*() {
      const leaked = yield* Scope.make()
      yield* onStub(stub, Scope.provide(CudaPartition.split([16, "rest"]), leaked))
      assert.deepStrictEqual(stub.live, nothingLive)
      yield* Scope.close(leaked, Exit.void)
    }))

  it.live("keep a limited number of green contexts", () =>
    opened(() =>
      Effect.gen(function*() {
        for (let held = 0; held < 8; held++) {
          yield* Effect.scoped(Effect.gen(function*() {
            if (held > 0) yield* CudaPartition.make({ multiprocessors: 8 * held })
            for (let size = 1; size <= 6; size++) {
              yield* Effect.scoped(CudaPartition.make({ multiprocessors: 8 * size }))
            }
          }))
        }
        assert.isAtMost(stub.live.greenContexts, 32)
        assert.isAbove(stub.calls("cuGreenCtxDestroy").length, 0)
      })
    ))

  it.live("that were made before one of them fails are undone", () =>
    opened(() =>
      Effect.gen(function*() {
        stub.fail("cuGreenCtxCreate", 2, { after: 1 })
        yield* failsWith(CudaPartition.split([16, 16]), "OutOfMemory")
        assert.deepStrictEqual((yield* (yield* CudaRuntime).liveResources).partitions, 0)
        yield* CudaPartition.make({ multiprocessors: 132 })
      })
    ))

  it.live("are not supported by a driver without the functions", () =>
    onStub(
      copyStub(["cuGreenCtxStreamCreate=stub_hidden"]),
      Effect.gen(function*() {
        yield* failsWith(CudaPartition.make({ multiprocessors: 8 }), "NotSupported")
        assert.deepStrictEqual(yield* (yield* CudaRuntime).liveResources, nothingHeld)
      })
    ))
})
