/**
 * The contract of regions in graphs: launches inside a timeline measure them, other launches do not notice them.
 */
import { assert, layer } from "@effect/vitest"
import { CudaBranch, CudaEvent, CudaGraph, CudaMemory, CudaStream, CudaTiming } from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const size = 64

const { toMillis } = Duration

const startOf = ({ start }: CudaTiming.Region) => toMillis(start)

const endOf = ({ duration, start }: CudaTiming.Region) => toMillis(start) + toMillis(duration)

/** Runs a test on a stream of its own, with buffers of zeros. The pooled streams already exist. */
const withBuffers = <A, E, R>(
  body: (one: DeviceBuffer, other: DeviceBuffer, stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function*() {
    yield* CudaBranch.all(Array.from({ length: 32 }, () => Effect.void), { device: 0, priority: "low" })
    return yield* leavesNothing(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const [one, other] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
      yield* CudaMemory.fill(one, 0, stream)
      yield* CudaMemory.fill(other, 0, stream)
      return yield* CudaStream.withStream(body(one, other, stream), stream)
    }))
  })

const holds = (buffer: DeviceBuffer, value: number, stream?: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const bytes = new Uint8Array(buffer.byteLength)
    yield* CudaMemory.download(bytes, buffer, stream)
    assert.deepStrictEqual(bytes, new Uint8Array(buffer.byteLength).fill(value))
  })

const namesOf = ({ regions }: CudaTiming.Timeline) => regions.map(({ name }) => name).toSorted()

/** Records a fill as a region, and makes it executable. */
const filling = (buffer: DeviceBuffer, value: number) =>
  Effect.flatMap(
    CudaGraph.record(CudaTiming.region(CudaMemory.fill(buffer, value), "fill")),
    (graph) => CudaGraph.instantiate(graph)
  )

export const graphRegionContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("regions of graphs", (it) => {
    it.effect("are measured at each launch, nested, on branches, with their attributes", () =>
      withBuffers((one, other, stream) =>
        Effect.gen(function*() {
          const graph = yield* CudaGraph.record(
            Effect.gen(function*() {
              yield* CudaMemory.fill(one, 1).pipe(
                CudaTiming.region("first", { attributes: { bytes: size, last: false } })
              )
              const branches = [one, other].map((buffer) =>
                CudaTiming.region(CudaMemory.fill(buffer, 2), "branch", { attributes: { address: buffer.address } })
              )
              yield* CudaBranch.all(branches)
            }).pipe(CudaTiming.region("all"))
          )
          assert.deepStrictEqual(graph.nodes.map(({ kind }) => kind).filter((kind) => kind !== "mark"), [
            "fill",
            "fill",
            "fill"
          ])
          assert.strictEqual(graph.nodes[0]!.name, "all begins")
          const exec = yield* CudaGraph.instantiate(graph)
          const [timeline] = yield* CudaTiming.timeline(Effect.gen(function*() {
            yield* CudaGraph.launch(exec)
            yield* CudaTiming.region(CudaMemory.fill(other, 3), "between")
            yield* CudaGraph.launch(exec)
          }))
          assert.deepStrictEqual(namesOf(timeline), [
            "all",
            "all",
            "between",
            "branch",
            "branch",
            "branch",
            "branch",
            "first",
            "first"
          ])
          assert.strictEqual(timeline.dropped, 0)
          const named = (name: string) => timeline.regions.filter((region) => region.name === name)
          const [[all, again], [between]] = [named("all"), named("between")]
          assert.isAtMost(endOf(all!), startOf(between!) + 0.001)
          assert.isAtMost(endOf(between!), startOf(again!) + 0.001)
          for (const name of ["first", "branch"]) {
            for (const region of named(name)) {
              const outer = startOf(region) < endOf(all!) ? all! : again!
              assert.isAtLeast(startOf(region), startOf(outer) - 0.001)
              assert.isAtMost(endOf(region), endOf(outer) + 0.001)
            }
          }
          for (const { deviceIndex, streamId } of timeline.regions) {
            assert.deepStrictEqual([deviceIndex, streamId], [0, stream.id])
          }
          assert.deepStrictEqual(named("first")[0]!.attributes, { bytes: size, last: false })
          assert.deepStrictEqual(new Set(named("branch").map(({ attributes }) => attributes["address"])).size, 2)
          yield* holds(other, 2)
        })
      ))

    it.effect("measure the work inside them", () =>
      withBuffers(() =>
        Effect.gen(function*() {
          const large = yield* CudaMemory.allocate(64 << 20)
          const exec = yield* CudaGraph.instantiate(
            yield* CudaGraph.record(Effect.gen(function*() {
              yield* CudaTiming.region(CudaMemory.fill(CudaMemory.slice(large, 0, 1), 1), "small")
              yield* CudaTiming.region(
                Effect.repeat(CudaMemory.fill(large, 2), { times: 19 }),
                "large"
              )
            }))
          )
          const [timeline] = yield* CudaTiming.timeline(CudaGraph.launch(exec))
          const lengthOf = (name: string) => toMillis(timeline.regions.find((region) => region.name === name)!.duration)
          assert.isAbove(lengthOf("large"), 0.2)
          assert.isBelow(lengthOf("small"), lengthOf("large") / 4)
        })
      ))

    it.effect("do not change what launches do, with or without a timeline, also with other values and scratch memory", () =>
      withBuffers((one, other) =>
        Effect.gen(function*() {
          const graph = yield* CudaGraph.recordWith({ from: CudaGraph.buffer(size), to: CudaGraph.buffer(size) }, ({
            from,
            to
          }) =>
            Effect.gen(function*() {
              const scratch = yield* CudaMemory.allocate(size)
              yield* CudaTiming.region(CudaMemory.copy(scratch, from), "in")
              yield* CudaTiming.region(CudaMemory.copy(to, scratch), "out")
            }))
          assert.isAbove(graph.scratchBytes, 0)
          const exec = yield* CudaGraph.instantiate(graph)
          const sources = yield* Effect.forEach([1, 2, 3, 4, 5, 6], (value) =>
            Effect.tap(CudaMemory.allocate(size), (buffer) => CudaMemory.fill(buffer, value)))
          for (const [index, from] of sources.entries()) {
            const to = index % 3 === 0 ? one : other
            const launched = CudaGraph.launch(exec, { from, to })
            if (index % 2 === 0) {
              const [timeline] = yield* CudaTiming.timeline(launched)
              assert.deepStrictEqual(namesOf(timeline), ["in", "out"])
            } else yield* launched
            yield* holds(to, index + 1)
          }
        })
      ))

    it.effect("are measured with copies that make an instance anew", () =>
      withBuffers((one, other) =>
        Effect.gen(function*() {
          const graph = yield* CudaGraph.recordWith(
            { from: CudaGraph.buffer(size) },
            ({ from }) =>
              CudaMemory.copy2D(CudaMemory.rows(other, 16), CudaMemory.rows(from, 16), { width: 16, height: 4 }).pipe(
                CudaTiming.region("rows")
              )
          )
          const exec = yield* CudaGraph.instantiate(graph)
          const second = yield* CudaMemory.allocate(size)
          yield* CudaMemory.fill(one, 1)
          yield* CudaMemory.fill(second, 2)
          for (const [from, value] of [[one, 1], [second, 2], [one, 1]] as const) {
            const [timeline] = yield* CudaTiming.timeline(CudaGraph.launch(exec, { from }))
            assert.deepStrictEqual([namesOf(timeline), timeline.dropped], [["rows"], 0])
            yield* holds(other, value)
          }
        })
      ))

    it.effect("leave disabled nodes disabled", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const exec = yield* filling(one, 1)
          const fill = exec.nodes.find(({ kind }) => kind === "fill")!
          yield* CudaGraph.setEnabled(exec, fill, false)
          yield* CudaTiming.timeline(CudaGraph.launch(exec))
          yield* holds(one, 0)
          yield* CudaGraph.setEnabled(exec, fill, true)
          yield* CudaTiming.timeline(CudaGraph.launch(exec))
          yield* holds(one, 1)
          yield* CudaMemory.fill(one, 0)
          yield* CudaGraph.setEnabled(exec, fill, false)
          yield* CudaTiming.timeline(CudaGraph.launch(exec))
          yield* holds(one, 0)
          yield* failsWith(CudaGraph.setEnabled(exec, exec.nodes[0]!, false), "InvalidArgument")
        })
      ))

    it.effect("can be updated and replaced, but not moved by an update", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const exec = yield* filling(one, 1)
          yield* CudaTiming.timeline(CudaGraph.launch(exec))
          yield* CudaGraph.update(exec, yield* CudaGraph.record(CudaTiming.region(CudaMemory.fill(one, 2), "other")))
          const [updated] = yield* CudaTiming.timeline(CudaGraph.launch(exec))
          assert.deepStrictEqual(namesOf(updated), ["other"])
          yield* holds(one, 2)
          const moved = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaMemory.fill(one, 3)
            yield* CudaTiming.region(Effect.void, "after")
          }))
          const reason = yield* failsWith(CudaGraph.update(exec, moved), "GraphRefused")
          assert.include(reason.because, "regions")
          yield* CudaGraph.updateOrReplace(exec, moved)
          const [replaced] = yield* CudaTiming.timeline(CudaGraph.launch(exec))
          assert.deepStrictEqual(namesOf(replaced), ["after"])
          yield* holds(one, 3)
        })
      ))

    it.effect("are not measured by a launch with events for others, which goes ahead", () =>
      withBuffers((one, _, stream) =>
        Effect.gen(function*() {
          const exec = yield* filling(one, 1)
          assert.isFalse(yield* exec.runtime.graphMeasure(exec.ref, [], [], stream.ref))
          yield* holds(one, 1)
          const scope = yield* Scope.make()
          const gone = yield* Scope.provide(CudaEvent.make({ timing: true }), scope)
          yield* Scope.close(scope, Exit.void)
          yield* CudaMemory.fill(one, 0)
          assert.isFalse(yield* exec.runtime.graphMeasure(exec.ref, [], [[gone.ref, gone.ref]], stream.ref))
          yield* holds(one, 1)
        })
      ))

    it.effect("of embedded graphs are measured wherever they are embedded", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const inner = yield* CudaGraph.record(CudaTiming.region(CudaMemory.fill(one, 1), "inner"))
          const twice = Effect.andThen(CudaGraph.embed(inner), CudaGraph.embed(inner))
          const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaTiming.region(twice, "outer")))
          const [timeline] = yield* CudaTiming.timeline(CudaGraph.launch(exec))
          assert.deepStrictEqual(namesOf(timeline), ["inner", "inner", "outer"])
          yield* holds(one, 1)
        })
      ))

    it.effect("in bodies of conditions are dropped, and the others are measured", () =>
      withBuffers((one, other) =>
        Effect.gen(function*() {
          const chosen = CudaTiming.region(CudaMemory.fill(other, 1), "inside")
          const graph = yield* CudaGraph.record(CudaTiming.region(CudaGraph.when(one, Effect.void, chosen), "around"))
          const exec = yield* CudaGraph.instantiate(graph)
          const [timeline] = yield* CudaTiming.timeline(CudaGraph.launch(exec))
          assert.deepStrictEqual([namesOf(timeline), timeline.dropped], [["around"], 1])
          yield* holds(other, 1)
          const onlyInside = yield* CudaGraph.instantiate(
            yield* CudaGraph.record(CudaGraph.when(one, Effect.void, chosen))
          )
          const [dropped] = yield* CudaTiming.timeline(CudaGraph.launch(onlyInside))
          assert.deepStrictEqual([namesOf(dropped), dropped.dropped], [[], 1])
        })
      ))

    it.effect("are not measured while they are recorded, and end when their effect fails", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const failing = Effect.andThen(CudaMemory.fill(one, 1), Effect.fail("no"))
          const [timeline, graph] = yield* CudaTiming.timeline(
            CudaGraph.record(Effect.ignore(CudaTiming.region(failing, "fails")))
          )
          assert.deepStrictEqual([namesOf(timeline), timeline.dropped], [[], 0])
          assert.lengthOf(graph.nodes, 3)
          const exec = yield* CudaGraph.instantiate(graph)
          const [launched] = yield* CudaTiming.timeline(CudaGraph.launch(exec))
          assert.deepStrictEqual(namesOf(launched), ["fails"])
        })
      ))

    it.effect("of launches that fail are not counted", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          const gone = yield* Scope.provide(CudaMemory.allocate(size), scope)
          const exec = yield* filling(gone, 1)
          yield* Scope.close(scope, Exit.void)
          const [timeline] = yield* CudaTiming.timeline(failsWith(CudaGraph.launch(exec), "ResourceReleased"))
          assert.deepStrictEqual([namesOf(timeline), timeline.dropped], [[], 0])
          yield* holds(one, 0)
        })
      ))

    it.effect("are measured after the graph was released in flight", () =>
      withBuffers((one, _, stream) =>
        Effect.gen(function*() {
          const [timeline] = yield* CudaTiming.timeline(Effect.gen(function*() {
            yield* (yield* Busy).enqueue(stream, 20)
            yield* Effect.scoped(Effect.flatMap(filling(one, 1), (exec) => CudaGraph.launch(exec)))
            assert.isFalse(yield* CudaStream.query(stream))
          }))
          assert.deepStrictEqual([namesOf(timeline), timeline.dropped], [["fill"], 0])
          yield* holds(one, 1)
        })
      ))

    it.effect("do not let launches of an instance overlap, measured or not", () =>
      withBuffers((one, _, stream) =>
        Effect.gen(function*() {
          const busy = yield* Busy
          const exec = yield* filling(one, 1)
          const other = yield* CudaStream.make()
          const isMeasured = yield* Deferred.make<void>()
          const plain = Effect.andThen(Deferred.await(isMeasured), CudaGraph.launch(exec, other))
          const later = yield* Effect.forkScoped(plain)
          yield* CudaTiming.timeline(Effect.gen(function*() {
            yield* busy.enqueue(stream, 30)
            yield* CudaGraph.launch(exec, stream)
            yield* Deferred.succeed(isMeasured, undefined)
            yield* Fiber.join(later)
            assert.isFalse(yield* CudaStream.query(stream))
            yield* CudaStream.synchronize(other)
            assert.isTrue(yield* CudaStream.query(stream))
          }))
          yield* busy.enqueue(stream, 30)
          yield* CudaGraph.launch(exec, stream)
          const [timeline] = yield* CudaTiming.timeline(CudaGraph.launch(exec, other))
          assert.isTrue(yield* CudaStream.query(stream))
          assert.deepStrictEqual(namesOf(timeline), ["fill"])
        })
      ))

    it.effect("do not let launches overlap when an instance is made anew", () =>
      withBuffers((one, target, stream) =>
        Effect.gen(function*() {
          const copy = (from: DeviceBuffer) =>
            CudaMemory.copy2D(CudaMemory.rows(target, 16), CudaMemory.rows(from, 16), { width: 16, height: 4 })
          const graph = yield* CudaGraph.recordWith({ from: CudaGraph.buffer(size) }, ({ from }) => copy(from))
          const exec = yield* CudaGraph.instantiate(graph)
          const [second, other] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
          yield* CudaMemory.fill(second, 2)
          yield* (yield* Busy).enqueue(stream, 30)
          yield* CudaGraph.launch(exec, { from: one }, stream)
          yield* CudaGraph.launch(exec, { from: second }, other)
          yield* CudaStream.synchronize(other)
          assert.isTrue(yield* CudaStream.query(stream))
          yield* holds(target, 2)
        })
      ))

    it.effect("are measured on many launches in flight, with events of their own", () =>
      withBuffers((one, _, stream) =>
        Effect.gen(function*() {
          const exec = yield* filling(one, 1)
          const [timeline] = yield* CudaTiming.timeline(Effect.gen(function*() {
            yield* (yield* Busy).enqueue(stream, 20)
            yield* Effect.repeat(CudaGraph.launch(exec), { times: 99 })
          }))
          assert.deepStrictEqual([timeline.regions.length, timeline.dropped], [100, 0])
          for (const [index, region] of timeline.regions.entries()) {
            if (index > 0) assert.isAtLeast(startOf(region), endOf(timeline.regions[index - 1]!) - 0.001)
          }
        })
      ))

    it.effect("stand beside events that the graph records", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            const current = yield* CudaStream.current()
            yield* CudaEvent.record(start, current)
            yield* CudaTiming.region(CudaMemory.fill(one, 1), "fill")
            yield* CudaEvent.record(end, current)
          }))
          const exec = yield* CudaGraph.instantiate(graph)
          const [timeline] = yield* CudaTiming.timeline(CudaGraph.launch(exec))
          const inside = toMillis(timeline.regions[0]!.duration)
          assert.isAtLeast(toMillis(yield* CudaEvent.elapsedTime(start, end)), inside - 0.001)
        })
      ))
  })
