/**
 * Regions of graphs on the driver: instances without events for ordinary launches, others with events for launches that are measured.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaGraph, CudaKernel, CudaMemory, CudaModule, CudaStream, CudaTiming } from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { program, signatures } from "../support/kernels.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"

const stub = openStub()
const size = 64

const withBuffer = <A, E>(
  run: (buffer: DeviceBuffer, stream: CudaStream.CudaStream) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>
) =>
  onStub(
    stub,
    Effect.gen(function*() {
      yield* tracing(stub).openDevice()
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(size)
      return yield* CudaStream.withStream(run(buffer, stream), stream)
    })
  )

const firstByte = (buffer: DeviceBuffer) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(size)
    return Effect.map(CudaMemory.download(bytes, buffer), () => bytes[0])
  })

/** Two nested regions around a fill. */
const nested = (buffer: DeviceBuffer, value: number) =>
  CudaGraph.record(
    CudaMemory.fill(buffer, value).pipe(CudaTiming.region("inner"), CudaTiming.region("outer"))
  )

/** A timeline's regions, by name, and how many were dropped. */
const measured = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(CudaTiming.timeline(effect), ([{ dropped, regions }]) => ({
    names: regions.map(({ name }) => name).toSorted(),
    dropped
  }))

const events = () => stub.calls("cuGraphAddEventRecordNode")

describe("regions of graphs", () => {
  it.live("cost an ordinary instance nothing, and a measured one two events each, made once", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const exec = yield* CudaGraph.instantiate(yield* nested(buffer, 1), { instances: 2 })
        yield* CudaGraph.launch(exec)
        assert.lengthOf(events(), 0)
        const launches = Effect.repeat(CudaGraph.launch(exec), { times: 4 })
        const result = yield* measured(launches)
        assert.deepStrictEqual(result, { names: [...Array(5).fill("inner"), ...Array(5).fill("outer")], dropped: 0 })
        assert.lengthOf(events(), 8)
        assert.lengthOf(stub.calls("cuGraphInstantiateWithParams"), 4)
        assert.lengthOf(stub.calls("cuGraphExecEventRecordNodeSetEvent"), 12)
        const plain = stub.calls("cuGraphLaunch").length
        yield* CudaGraph.launch(exec)
        assert.lengthOf(stub.calls("cuGraphLaunch"), plain + 1)
        assert.lengthOf(stub.calls("cuGraphExecEventRecordNodeSetEvent"), 12)
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [4, 4])
      })
    ))

  it.live("give each launch the events that it records, begin and end", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const exec = yield* CudaGraph.instantiate(yield* nested(buffer, 1))
        yield* measured(Effect.repeat(CudaGraph.launch(exec), { times: 1 }))
        const added = events().map(({ args }) => args.at(-1))
        const set = stub.calls("cuGraphExecEventRecordNodeSetEvent").map(({ args }) => args)
        // Marks are added from the outside in, and regions are in the order in which they end.
        assert.deepStrictEqual(set.map(([, node]) => node), [added[1], added[2], added[0], added[3]])
        assert.strictEqual(new Set(set.map(([, , event]) => event)).size, 4)
        assert.strictEqual(new Set(set.map(([handle]) => handle)).size, 1)
      })
    ))

  const makings = ["cuGraphCreate", "cuGraphAddEventRecordNode", "cuGraphInstantiateWithParams"] as const
  for (const fails of makings) {
    it.live(`are dropped if ${fails} fails, and the launch goes ahead`, () =>
      withBuffer((buffer) =>
        Effect.gen(function*() {
          const exec = yield* CudaGraph.instantiate(yield* nested(buffer, 7))
          const launched = Effect.suspend(() => {
            stub.fail(fails, 2)
            return CudaGraph.launch(exec)
          })
          assert.deepStrictEqual(yield* measured(launched), { names: [], dropped: 2 })
          assert.strictEqual(yield* firstByte(buffer), 7)
          assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [1, 1])
          assert.deepStrictEqual((yield* measured(CudaGraph.launch(exec))).names, ["inner", "outer"])
        })
      ))
  }

  it.live("are dropped if the events cannot be set, and the launch goes ahead", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const exec = yield* CudaGraph.instantiate(yield* nested(buffer, 7))
        yield* measured(CudaGraph.launch(exec))
        yield* CudaMemory.fill(buffer, 0)
        const launched = Effect.suspend(() => {
          stub.fail("cuGraphExecEventRecordNodeSetEvent", 2, { after: 1 })
          return CudaGraph.launch(exec)
        })
        assert.deepStrictEqual(yield* measured(launched), { names: [], dropped: 2 })
        assert.strictEqual(yield* firstByte(buffer), 7)
        assert.deepStrictEqual((yield* measured(CudaGraph.launch(exec))).names, ["inner", "outer"])
      })
    ))

  it.live("are dropped if there are no events for them, and the launch goes ahead", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const exec = yield* CudaGraph.instantiate(yield* nested(buffer, 7))
        const launched = Effect.suspend(() => {
          stub.fail("cuEventCreate", 2, { after: 3 })
          return CudaGraph.launch(exec)
        })
        assert.deepStrictEqual(yield* measured(launched), { names: [], dropped: 2 })
        assert.strictEqual(yield* firstByte(buffer), 7)
      })
    ))

  it.live("let a kernel start early, unless an event is recorded before it", () =>
    withBuffer(() =>
      Effect.gen(function*() {
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const nothing = yield* CudaKernel.get(module, "nothing", signatures.nothing)
        const next = CudaKernel.launch(nothing, { grid: 1, block: 1, programmatic: true }, [])
        const exec = yield* CudaGraph.instantiate(
          yield* CudaGraph.record(Effect.andThen(next, CudaTiming.region(next, "second")))
        )
        assert.lengthOf(stub.calls("cuGraphAddDependencies_v2"), 1)
        yield* measured(CudaGraph.launch(exec))
        assert.lengthOf(stub.calls("cuGraphAddDependencies_v2"), 1)
      })
    ))

  it.live("join many nodes with one empty node", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const copies = Array.from({ length: 6 }, (_, index) => ({
          destination: CudaMemory.slice(buffer, 8 * index, 4),
          source: CudaMemory.slice(buffer, 8 * index + 4, 4)
        }))
        const graph = yield* CudaGraph.record(
          Effect.andThen(CudaMemory.copyBatch(copies), CudaTiming.region(CudaMemory.copyBatch(copies), "again"))
        )
        yield* CudaGraph.instantiate(graph)
        assert.lengthOf(stub.calls("cuGraphAddEmptyNode"), 2)
      })
    ))

  it.live("order launches of an instance that is made anew after those before", () =>
    withBuffer((buffer, stream) =>
      Effect.gen(function*() {
        const from = yield* CudaMemory.allocate(size)
        const graph = yield* CudaGraph.recordWith(
          { from: CudaGraph.buffer(size) },
          ({ from }) =>
            CudaMemory.copy2D(CudaMemory.rows(buffer, 16), CudaMemory.rows(from, 16), { width: 8, height: 2 })
        )
        const exec = yield* CudaGraph.instantiate(graph)
        const other = yield* CudaStream.make()
        yield* CudaGraph.launch(exec, { from }, stream)
        stub.clear()
        const second = yield* CudaMemory.allocate(size)
        yield* CudaGraph.launch(exec, { from: second }, other)
        const [marker] = stub.calls("cuEventRecord").filter(({ args }) => args[1] === stream.handle)
          .map(({ args }) => args[0])
        assert.isDefined(marker)
        assert.isTrue(
          stub.calls("cuStreamWaitEvent").some(({ args }) => args[0] === other.handle && args[1] === marker)
        )
      })
    ))
})
