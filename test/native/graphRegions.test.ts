/**
 * Regions of graphs on the driver: instances without events for ordinary launches, others with events for launches that are measured.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaBranch,
  CudaEvent,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaStream,
  CudaTiming
} from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { MaxOpsBeforeYield } from "effect/References"
import * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
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

describe("an event that a graph records", () => {
  const recording = (event: CudaEvent.CudaEvent) =>
    CudaGraph.record(Effect.flatMap(CudaStream.current(), (stream) => CudaEvent.record(event, stream)))

  it.live("is destroyed after the executable graphs that record it", () =>
    withBuffer(() =>
      Effect.gen(function*() {
        const [scope, other] = [yield* Scope.make(), yield* Scope.make()]
        const event = yield* Scope.provide(CudaEvent.make({ timing: true }), scope)
        // An event whose handle was read is not kept for reuse.
        assert.isAbove(event.handle, 0)
        const graph = yield* recording(event)
        yield* Scope.provide(CudaGraph.instantiate(graph, { instances: 2 }), other)
        const later = yield* Scope.provide(CudaGraph.instantiate(graph), other)
        const live = stub.live.events
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(CudaGraph.launch(later), "ResourceReleased")
        assert.strictEqual(stub.live.events, live)
        yield* Scope.close(other, Exit.void)
        assert.strictEqual(stub.live.events, live - 1)
      })
    ))

  it.live("is destroyed when its graph is updated to another", () =>
    withBuffer(() =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const event = yield* Scope.provide(CudaEvent.make({ timing: true }), scope)
        // An event whose handle was read is not kept for reuse.
        assert.isAbove(event.handle, 0)
        const exec = yield* CudaGraph.instantiate(yield* recording(event))
        const next = yield* CudaEvent.make({ timing: true })
        const live = stub.live.events
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual(stub.live.events, live)
        yield* CudaGraph.update(exec, yield* recording(next))
        assert.strictEqual(stub.live.events, live - 1)
        yield* CudaGraph.launch(exec)
        yield* CudaEvent.synchronize(next)
      })
    ))
})

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
        assert.lengthOf(stub.calls("cuGraphExecEventRecordNodeSetEvent"), 40)
        const plain = stub.calls("cuGraphLaunch").length
        yield* CudaGraph.launch(exec)
        assert.lengthOf(stub.calls("cuGraphLaunch"), plain + 1)
        assert.lengthOf(stub.calls("cuGraphExecEventRecordNodeSetEvent"), 40)
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [4, 4])
      })
    ))

  it.live("give each launch the events that it records, begin and end, and take them away", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const exec = yield* CudaGraph.instantiate(yield* nested(buffer, 1))
        yield* measured(CudaGraph.launch(exec))
        const added = events().map(({ args }) => args)
        const [idle] = added.map((args) => args[0])
        assert.isTrue(added.every((args) => args[0] === idle))
        const nodes = added.map((args) => args.at(-1))
        const set = stub.calls("cuGraphExecEventRecordNodeSetEvent").map(({ args }) => args)
        // Marks are added from the outside in, and regions are in the order in which they end.
        const inOrder = [nodes[1], nodes[2], nodes[0], nodes[3]]
        assert.deepStrictEqual(set.map(([, node]) => node), [...inOrder, ...inOrder])
        const given = set.map(([, , event]) => event)
        assert.strictEqual(new Set(given.slice(0, 4)).size, 4)
        assert.deepStrictEqual(given.slice(4), [idle, idle, idle, idle])
        assert.strictEqual(new Set(set.map(([handle]) => handle)).size, 1)
      })
    ))

  it.live("do not measure with an instance that could keep the events of a launch", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const exec = yield* CudaGraph.instantiate(yield* nested(buffer, 7))
        yield* measured(CudaGraph.launch(exec))
        const launched = Effect.suspend(() => {
          stub.fail("cuGraphExecEventRecordNodeSetEvent", 2, { after: 6 })
          return CudaGraph.launch(exec)
        })
        assert.deepStrictEqual(yield* measured(launched), { names: ["inner", "outer"], dropped: 0 })
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [1, 1])
        assert.deepStrictEqual((yield* measured(CudaGraph.launch(exec))).names, ["inner", "outer"])
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [2, 2])
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

/** A region around a fill. */
const one = (buffer: DeviceBuffer) => CudaGraph.record(CudaTiming.region(CudaMemory.fill(buffer, 1), "one"))

describe("regions that are measured while other fibers run", () => {
  /** Fibers that yield after this many operations, so that they do at every place. */
  const yields = Array.from({ length: 21 }, (_, index) => 3 + index)
  const yielding = (operations: number) => Effect.provideService(MaxOpsBeforeYield, operations)
  const turns = (count: number) => Effect.repeat(Effect.yieldNow, { times: count })

  it.live.each(yields)(
    "do not let the next launch of another fiber overlap, yielding every %i operations",
    (operations) =>
      withBuffer((buffer, stream) =>
        Effect.gen(function*() {
          const exec = yield* CudaGraph.instantiate(yield* one(buffer))
          const other = yield* CudaStream.make()
          const launched = () => stub.calls("cuGraphLaunch").length > 0
          const next = Effect.andThen(
            Effect.whileLoop({ while: () => !launched(), body: () => Effect.yieldNow, step: () => {} }),
            CudaGraph.launch(exec, other)
          )
          stub.clear()
          const fiber = yield* Effect.forkChild(next, { startImmediately: true })
          yield* yielding(operations)(measured(CudaGraph.launch(exec, stream)))
          yield* Fiber.join(fiber)
          const calls = stub.calls()
          const [first, second] = calls.flatMap(({ name }, at) => name === "cuGraphLaunch" ? [at] : [])
          const waits = calls.slice(first, second).filter(({ args, name }) =>
            name === "cuStreamWaitEvent" && args[0] === other.handle
          )
          assert.lengthOf(waits, 1)
        })
      )
  )

  it.live.each(yields)(
    "are dropped if the timeline ends first, yielding every %i operations",
    (operations) =>
      withBuffer((buffer, stream) =>
        Effect.gen(function*() {
          const exec = yield* CudaGraph.instantiate(yield* one(buffer))
          for (let count = 0; count < 30; count++) {
            const launch = Effect.forkDetach(yielding(operations)(CudaGraph.launch(exec, stream)))
            const [, fiber] = yield* CudaTiming.timeline(Effect.tap(launch, () => turns(count)))
            yield* Fiber.join(fiber)
          }
        })
      )
  )

  it.live.each(yields)(
    "are dropped if the graph is replaced first, yielding every %i operations",
    (operations) =>
      withBuffer((buffer, stream) =>
        Effect.gen(function*() {
          const graphs = [yield* one(buffer), yield* nested(buffer, 1)] as const
          for (let count = 0; count < 20; count++) {
            const exec = yield* CudaGraph.instantiate(graphs[0])
            yield* CudaTiming.timeline(Effect.gen(function*() {
              const fiber = yield* Effect.forkDetach(yielding(operations)(CudaGraph.launch(exec, stream)))
              yield* turns(count)
              yield* CudaGraph.updateOrReplace(exec, graphs[1])
              yield* Fiber.join(fiber)
            }))
          }
        })
      )
  )
})

describe("regions add no failures", () => {
  const makings = [
    ["cuGraphInstantiateWithParams", 0],
    ["cuGraphCreate", 0],
    ["cuGraphAddMemcpyNode", 0],
    ["cuGraphExecEventRecordNodeSetEvent", 0],
    ["cuGraphExecEventRecordNodeSetEvent", 2]
  ] as const
  for (const [fails, after] of makings) {
    it.live(`if ${fails} fails after ${after} calls while the measuring instance is made anew`, () =>
      withBuffer((buffer) =>
        Effect.gen(function*() {
          const graph = yield* CudaGraph.recordWith({ from: CudaGraph.buffer(size) }, ({ from }) =>
            CudaMemory.copy2D(CudaMemory.rows(buffer, 16), CudaMemory.rows(from, 16), { width: 16, height: 4 }).pipe(
              CudaTiming.region("rows")
            ))
          const exec = yield* CudaGraph.instantiate(graph)
          const [a, b] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
          yield* CudaMemory.fill(b, 9)
          yield* measured(CudaGraph.launch(exec, { from: a }))
          yield* CudaGraph.launch(exec, { from: b })
          yield* CudaMemory.fill(buffer, 0)
          yield* measured(Effect.suspend(() => {
            stub.fail(fails, 2, { after })
            return CudaGraph.launch(exec, { from: b })
          }))
          assert.strictEqual(yield* firstByte(buffer), 9)
          assert.deepStrictEqual((yield* measured(CudaGraph.launch(exec, { from: b }))).names, ["rows"])
        })
      ))
  }

  it.live("to a recording, if they end after their stream was joined", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const main = yield* CudaStream.current()
          const side = yield* CudaStream.make()
          yield* CudaStream.waitStream(side, main)
          const work = Effect.andThen(CudaMemory.fill(buffer, 1, side), CudaStream.waitStream(main, side))
          yield* CudaTiming.region(work, "side", { stream: side })
        }))
        const exec = yield* CudaGraph.instantiate(graph)
        assert.deepStrictEqual(yield* measured(CudaGraph.launch(exec)), { names: ["side"], dropped: 0 })
      })
    ))

  it.live("to a recording, if they end in a fiber that outlives its branch", () =>
    withBuffer((buffer) =>
      CudaGraph.record(Effect.gen(function*() {
        const latch = yield* Deferred.make<void>()
        const waiting = CudaTiming.region(Deferred.await(latch), "waiting")
        const [fiber] = yield* CudaBranch.all([
          Effect.tap(Effect.forkDetach(waiting, { startImmediately: true }), () => CudaMemory.fill(buffer, 1)),
          Effect.void
        ])
        yield* Deferred.succeed(latch, undefined)
        yield* Fiber.join(fiber)
        yield* CudaMemory.fill(buffer, 2)
      }))
    ))

  it.live("to an instance: nodes depend on none twice", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const both = CudaBranch.all([CudaTiming.region(Effect.void, "a"), CudaTiming.region(Effect.void, "b")])
        const around = Effect.andThen(CudaMemory.fill(buffer, 0), both)
        yield* CudaGraph.instantiate(yield* CudaGraph.record(Effect.andThen(around, CudaMemory.fill(buffer, 2))))
        yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaGraph.whileLoop(buffer, around)))
      })
    ))

  it.live("to enabling nodes by name", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const work = CudaMemory.fill(buffer, 1).pipe(CudaTiming.region("region"), CudaGraph.named("work"))
        const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(work))
        yield* CudaGraph.setEnabled(exec, "work", false)
        assert.deepStrictEqual(exec.nodes.map(({ name }) => name), ["region begins", "work", "region ends"])
      })
    ))

  it.live("to a kernel that may start early, after a region that never ends", () =>
    withBuffer(() =>
      Effect.gen(function*() {
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const nothing = yield* CudaKernel.get(module, "nothing", signatures.nothing)
        const next = CudaKernel.launch(nothing, { grid: 1, block: 1, programmatic: true }, [])
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          yield* next
          const never = Effect.forkDetach(CudaTiming.region(Effect.never, "never"), { startImmediately: true })
          yield* CudaTiming.region(Effect.tap(never, () => next), "around")
        }))
        const exec = yield* CudaGraph.instantiate(graph)
        assert.deepStrictEqual(yield* measured(CudaGraph.launch(exec)), { names: ["around"], dropped: 1 })
      })
    ))
})
