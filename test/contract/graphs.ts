/**
 * The contract of graphs: what is recorded, what launches do, parameters, what cannot be recorded, and lifetimes.
 */
import { assert, layer } from "@effect/vitest"
import {
  CudaBranch,
  CudaEvent,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaMemoryPool,
  CudaModule,
  CudaParameter,
  CudaStream,
  CudaTaskGraph,
  CudaTiming
} from "effect-cuda"
import { unchecked } from "effect-cuda/CheckedRuntime"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { program, signatures } from "../support/kernels.ts"
import { makeRandom } from "../support/random.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const size = 64

const kernel = <Name extends keyof typeof signatures>(name: Name) =>
  Effect.flatMap(
    Effect.flatMap(program, (made) => CudaModule.load(made)),
    (module) => CudaKernel.get(module, name, signatures[name])
  )

const one = { grid: 1, block: 1 }

/** Device buffers that hold a byte each. */
const buffers = (...values: ReadonlyArray<number>) =>
  Effect.gen(function*() {
    const made: Array<DeviceBuffer> = []
    for (const value of values) {
      const buffer = yield* CudaMemory.allocate(size)
      yield* CudaMemory.fill(buffer, value)
      made.push(buffer)
    }
    yield* CudaStream.synchronize(yield* CudaStream.current())
    return made
  })

/** The bytes of a buffer, once the work of a stream is done. */
const bytesOf = (buffer: CudaMemory.Slice<DeviceBuffer>, stream?: CudaStream.CudaStream) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(buffer.byteLength)
    return Effect.as(CudaMemory.download(bytes, buffer, stream), bytes)
  })

const holds = (buffer: CudaMemory.Slice<DeviceBuffer>, value: number, stream?: CudaStream.CudaStream) =>
  Effect.map(bytesOf(buffer, stream), (bytes) => {
    assert.isTrue(bytes.every((byte) => byte === value), `${bytes[0]} instead of ${value}`)
  })

const edges = (graph: { readonly nodes: ReadonlyArray<CudaGraph.GraphNode> }) =>
  graph.nodes.map(({ dependencies }) => [...dependencies])

const onStream = <A, E, R>(body: (stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>) =>
  leavesNothing(Effect.flatMap(CudaStream.make(), (stream) => CudaStream.withStream(body(stream), stream)))

export const graphContract = (rig: Rig): void => {
  recordingContract(rig)
  launchContract(rig)
  parameterContract(rig)
  refusalContract(rig)
  graphLifetimeContract(rig)
}

const recordingContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("recording graphs", (it) => {
    it.effect("makes a node of each operation, in order, and runs nothing", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(1, 2)
          const put = yield* kernel("put")
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaMemory.copy(b!, a!)
            yield* CudaMemory.fill16(CudaMemory.slice(a!, 2, 4), 3)
            yield* CudaKernel.launch(put, one, [b!, 7])
            return "done"
          }))
          assert.strictEqual(graph.value, "done")
          assert.deepStrictEqual(graph.nodes.map(({ kind }) => kind), ["copy", "fill", "kernel"])
          assert.deepStrictEqual(graph.nodes.map(({ name }) => name), ["CudaMemory.copy", "CudaMemory.fill16", "put"])
          assert.deepStrictEqual(edges(graph), [[], [0], [1]])
          const [copied, filled] = graph.nodes
          assert.deepStrictEqual(copied!.reads, [{ memory: a!.ref, offset: 0, byteLength: size }])
          assert.deepStrictEqual(filled!.writes, [{ memory: a!.ref, offset: 2, byteLength: 4 }])
          yield* holds(a!, 1)
          yield* holds(b!, 2)
        })
      ))

    it.effect("makes edges of events, waits, forks and joins, without those that follow from others", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b, c] = yield* buffers(1, 2, 3)
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            const origin = yield* CudaStream.current()
            const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make({ priority: "high" })]
            const event = yield* CudaEvent.make()
            yield* CudaMemory.fill(a!, 0) // 0
            yield* CudaEvent.record(event, origin)
            yield* CudaStream.waitEvent(left, event)
            yield* CudaMemory.copy(b!, a!, left) // 1
            yield* CudaMemory.fill(c!, 4) // 2, beside 1
            yield* CudaStream.waitStream(right, left)
            yield* CudaStream.waitEvent(right, event) // implied
            yield* CudaMemory.copy(a!, b!, right) // 3
            yield* CudaStream.waitStream(origin, left) // implied by the next
            yield* CudaStream.waitStream(origin, right)
            yield* CudaMemory.fill(a!, 5) // 4
          }))
          assert.deepStrictEqual(edges(graph), [[], [0], [0], [1], [2, 3]])
        })
      ))

    it.effect("records branches, pooled streams and forked branches, joined as usual", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b, c] = yield* buffers(1, 2, 3)
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaBranch.all([CudaMemory.fill(a!, 7), CudaMemory.fill(b!, 8)])
            yield* CudaBranch.fork(CudaMemory.copy(c!, a!))
            yield* CudaMemory.fill(CudaMemory.slice(b!, 0, 8), 9)
          }))
          assert.deepStrictEqual(edges(graph), [[], [], [0, 1], [0, 1]])
          const exec = yield* CudaGraph.instantiate(graph)
          yield* CudaGraph.launch(exec)
          yield* holds(c!, 7)
          yield* holds(CudaMemory.slice(b!, 0, 8), 9)
          yield* holds(CudaMemory.slice(b!, 8), 8)
        })
      ))

    it.effect("turns the dependencies of a task graph into edges", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b, c] = yield* buffers(1, 2, 3)
          const half = CudaMemory.slice(c!, 0, size / 2)
          const rest = CudaMemory.slice(c!, size / 2)
          const tasks = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("a", Effect.as(CudaMemory.fill(a!, 5), 1)),
            CudaTaskGraph.add("b", Effect.as(CudaMemory.fill(b!, 6), 2)),
            CudaTaskGraph.add("half", ["a"], CudaMemory.copy(half, CudaMemory.slice(a!, 0, size / 2))),
            CudaTaskGraph.add("both", ["a", "b"], ({ a, b }) => Effect.as(CudaMemory.fill(rest, a + b), a + b))
          )
          const graph = yield* CudaGraph.fromTasks(tasks)
          assert.deepStrictEqual(graph.nodes.map(({ name }) => name), ["a", "b", "half", "both"])
          assert.deepStrictEqual(edges(graph), [[], [], [0], [0, 1]])
          assert.deepStrictEqual(graph.value, { a: 1, b: 2, half: undefined, both: 3 })
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
          yield* holds(half, 5)
          yield* holds(rest, 3)
          const run = yield* CudaGraph.record(CudaTaskGraph.run(tasks))
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(run))
          yield* holds(rest, 3)
        })
      ))

    it.effect("orders ordered buffers inside, and the launch with what uses them outside", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const shared = yield* CudaMemory.allocate(size, { ordered: true })
          const [copy] = yield* buffers(0)
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
            yield* CudaMemory.fill(shared, 1, left)
            yield* CudaMemory.copy(copy!, shared, right)
            yield* CudaMemory.fill(shared, 2, left)
            yield* CudaStream.waitStream(yield* CudaStream.current(), left)
            yield* CudaStream.waitStream(yield* CudaStream.current(), right)
          }))
          assert.deepStrictEqual(edges(graph), [[], [0], [1]])
          const exec = yield* CudaGraph.instantiate(graph)
          const other = yield* CudaStream.make()
          yield* (yield* Busy).enqueue(other, 20)
          yield* CudaMemory.fill(shared, 9, other)
          yield* CudaGraph.launch(exec, stream) // waits for the fill
          yield* CudaMemory.copy(copy!, shared, other) // waits for the launch
          yield* holds(copy!, 2, other)
        })
      ))

    it.effect("splits batches, and copies rows", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(1, 2)
          const host = yield* CudaMemory.allocateHost(size)
          host.bytes.fill(8)
          const [first, second] = [CudaMemory.slice(a!, 0, 8), CudaMemory.slice(a!, 8, 8)]
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaMemory.copyBatch([
              { destination: first, source: CudaMemory.slice(host, 0, 8) },
              { destination: second, source: CudaMemory.slice(host, 8, 8) }
            ])
            yield* CudaMemory.copy2D(CudaMemory.rows(b!, 16), CudaMemory.rows(a!, 8), { width: 4, height: 2 })
          }))
          assert.deepStrictEqual(edges(graph), [[], [], [0, 1]])
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
          yield* holds(CudaMemory.slice(a!, 0, 16), 8)
          yield* holds(CudaMemory.slice(b!, 0, 4), 8)
          yield* holds(CudaMemory.slice(b!, 4, 12), 2)
          yield* holds(CudaMemory.slice(b!, 16, 4), 8)
        })
      ))

    it.effect("gives memory allocated inside to the graph, and shares it where the edges allow it", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(3, 4)
          const step = (from: DeviceBuffer, to: DeviceBuffer) =>
            Effect.scoped(Effect.gen(function*() {
              const scratch = yield* CudaMemory.allocate(size)
              yield* CudaMemory.copy(scratch, from)
              yield* CudaMemory.copy(to, scratch)
            }))
          const inTurn = yield* CudaGraph.record(Effect.andThen(step(a!, b!), step(b!, a!)))
          assert.strictEqual(inTurn.scratchBytes, size)
          const sideBySide = yield* unchecked(CudaGraph.record(CudaBranch.all([step(a!, b!), step(a!, b!)])))
          assert.isAbove(sideBySide.scratchBytes, size)
          const exec = yield* CudaGraph.instantiate(inTurn, { instances: 2 })
          yield* CudaGraph.launch(exec)
          yield* holds(b!, 3)
        })
      ))

    it.effect("embeds graphs, with values or parameters of its own", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(1, 2)
          const put = yield* kernel("put")
          const inner = yield* CudaGraph.recordWith(
            { target: CudaGraph.buffer(size), value: CudaParameter.u32 },
            ({ target, value }) =>
              Effect.gen(function*() {
                const scratch = yield* CudaMemory.allocate(size)
                yield* CudaMemory.fill(scratch, 6)
                yield* CudaMemory.copy(target, scratch)
                yield* CudaKernel.launch(put, one, [target, value])
              })
          )
          const outer = yield* CudaGraph.recordWith({ last: CudaParameter.u32 }, ({ last }) =>
            Effect.gen(function*() {
              yield* CudaGraph.embed(inner, { target: a!, value: 3 })
              yield* CudaGraph.embed(inner, { target: b!, value: last })
            }))
          assert.deepStrictEqual(edges(outer), [[], [0], [1], [2], [3], [4]])
          assert.strictEqual(outer.scratchBytes, size)
          const exec = yield* CudaGraph.instantiate(outer)
          yield* CudaGraph.launch(exec, { last: 4 })
          yield* holds(CudaMemory.slice(a!, 4), 6)
          assert.strictEqual((yield* bytesOf(a!))[0], 3)
          assert.strictEqual((yield* bytesOf(b!))[0], 4)
          yield* CudaGraph.launch(exec, { last: 5 })
          assert.strictEqual((yield* bytesOf(b!))[0], 5)
          yield* refuses(CudaGraph.embed(inner, { target: a!, value: 3 }), "stream")
        })
      ))
  })

const launchContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("launching graphs", (it) => {
    it.effect("runs after the earlier work of the stream and before the later, any number of times", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(0, 0)
          const bump = yield* kernel("bump")
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaKernel.launch(bump, one, [a!])
            yield* CudaMemory.copy(b!, a!)
          }))
          const exec = yield* CudaGraph.instantiate(graph)
          yield* CudaGraph.upload(exec)
          yield* (yield* Busy).enqueue(stream, 20)
          for (let launch = 0; launch < 5; launch++) yield* CudaGraph.launch(exec)
          assert.isFalse(yield* CudaStream.query(stream))
          const before = (yield* bytesOf(b!))[0]!
          yield* CudaGraph.launch(exec)
          assert.strictEqual((yield* bytesOf(b!))[0], before + 1)
        })
      ))

    it.effect.skipIf(rig.deviceCount < 2)("copies between devices, also memory of other pools, at every launch", () =>
      onStream(() =>
        Effect.gen(function*() {
          const pool = yield* CudaMemoryPool.make({ device: 1 })
          const [here, back, between] = yield* buffers(0, 0, 0)
          const there = yield* CudaMemory.allocate(size, { device: 1 })
          const beside = yield* CudaMemory.allocate(size, { device: 1, pool })
          const graph = yield* CudaGraph.recordWith({ from: CudaGraph.buffer(size) }, ({ from }) =>
            Effect.gen(function*() {
              yield* CudaMemory.copy(there, from, yield* CudaStream.current())
              const rows = [CudaMemory.rows(between!, 8), CudaMemory.rows(there, 8)] as const
              yield* CudaMemory.copy2D(...rows, { width: 8, height: size / 8 }, yield* CudaStream.current())
              const half = (offset: number) => ({
                destination: CudaMemory.slice(beside, offset, size / 2),
                source: CudaMemory.slice(between!, offset, size / 2)
              })
              yield* CudaMemory.copyBatch([half(0), half(size / 2)], yield* CudaStream.current())
              yield* CudaMemory.copy(back!, beside, yield* CudaStream.current())
            }))
          const exec = yield* CudaGraph.instantiate(graph)
          const other = yield* CudaMemory.allocate(size)
          for (const [from, value] of [[here!, 1], [other, 2], [here!, 3]] as const) {
            yield* CudaMemory.fill(from, value)
            yield* CudaGraph.launch(exec, { from })
            yield* holds(back!, value)
          }
          yield* CudaGraph.update(exec, graph)
          yield* CudaMemory.fill(other, 4)
          yield* CudaGraph.launch(exec, { from: other })
          yield* holds(back!, 4)
        })
      ))

    it.effect("an instance runs one launch after another, several instances at the same time", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a] = yield* buffers(0)
          const graph = yield* CudaGraph.record(CudaMemory.fill(a!, 1))
          const exec = yield* CudaGraph.instantiate(graph)
          const [slow, quick] = [yield* CudaStream.make(), yield* CudaStream.make()]
          const busy = yield* Busy
          yield* busy.enqueue(slow, 30)
          yield* CudaGraph.launch(exec, slow)
          yield* CudaGraph.launch(exec, quick)
          assert.isFalse(yield* CudaStream.query(quick))
          yield* CudaStream.synchronize(quick)
          assert.isTrue(yield* CudaStream.query(slow))
          const both = yield* CudaGraph.instantiate(graph, { instances: 2 })
          assert.strictEqual(both.instances, 2)
          yield* busy.enqueue(slow, 200)
          yield* CudaGraph.launch(both, slow)
          yield* unchecked(CudaGraph.launch(both, quick))
          yield* CudaStream.synchronize(quick)
          assert.isFalse(yield* CudaStream.query(slow))
        })
      ))

    it.effect("runs on default streams", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a] = yield* buffers(0)
          const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaMemory.fill(a!, 1)))
          for (const mode of ["legacy", "perThread"] as const) {
            yield* CudaMemory.fill(a!, 0)
            const stream = yield* CudaStream.current()
            yield* CudaStream.synchronize(stream)
            const own = yield* CudaStream.defaultStream({ mode })
            yield* CudaGraph.launch(exec, own)
            yield* CudaStream.synchronize(own)
            yield* holds(a!, 1)
          }
        })
      ))

    it.effect("records events with timing, which can be waited for and compared after each launch", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(1, 2)
          const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            const inside = yield* CudaStream.current()
            yield* CudaEvent.record(start, inside)
            yield* CudaMemory.copy(a!, b!)
            yield* CudaEvent.record(end, inside)
          }))
          assert.deepStrictEqual(edges(graph), [[], [0], [1]])
          yield* failsWith(CudaEvent.elapsedTime(start, end), "NotRecorded")
          const exec = yield* CudaGraph.instantiate(graph)
          yield* (yield* Busy).enqueue(stream, 20)
          yield* CudaGraph.launch(exec)
          assert.isFalse(yield* CudaEvent.query(end))
          yield* CudaEvent.synchronize(end)
          yield* CudaEvent.elapsedTime(start, end)
          yield* refuses(CudaGraph.setEnabled(exec, 0, false), "node")
        })
      ))

    it.effect("nodes can be disabled, by index, by node and by name", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b, c] = yield* buffers(0, 0, 0)
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaMemory.fill(a!, 1)
            yield* CudaMemory.copy(b!, a!)
            yield* CudaMemory.fill(c!, 1).pipe(CudaGraph.named("last"))
          }))
          const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
          const check = (...values: ReadonlyArray<number>) =>
            Effect.gen(function*() {
              for (const [index, buffer] of [a!, b!, c!].entries()) {
                yield* holds(buffer, values[index]!)
                yield* CudaMemory.fill(buffer, 0)
              }
            })
          yield* CudaGraph.setEnabled(exec, 1, false)
          yield* CudaGraph.setEnabled(exec, "last", false)
          for (let launch = 0; launch < 2; launch++) {
            yield* CudaGraph.launch(exec)
            yield* check(1, 0, 0)
          }
          yield* CudaGraph.setEnabled(exec, graph.nodes[1]!, true)
          yield* CudaGraph.setEnabled(exec, "last", true)
          yield* CudaGraph.launch(exec)
          yield* check(1, 1, 1)
          yield* refuses(CudaGraph.setEnabled(exec, 3, false), "node")
          yield* refuses(CudaGraph.setEnabled(exec, "first", false), "node")
        })
      ))

    it.effect("updates to a graph with the same nodes and edges, and replaces by any other", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(0, 0)
          const chain = (value: number) =>
            CudaGraph.record(Effect.andThen(CudaMemory.fill(a!, value), CudaMemory.copy(b!, a!)))
          const exec = yield* CudaGraph.instantiate(yield* chain(1), { instances: 2 })
          yield* CudaGraph.update(exec, yield* chain(2))
          for (let launch = 0; launch < 2; launch++) {
            yield* CudaGraph.launch(exec)
            yield* holds(b!, 2)
            yield* CudaMemory.fill(b!, 0)
          }
          const longer = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaMemory.fill(a!, 3)
            yield* CudaMemory.copy(b!, a!)
            yield* CudaMemory.fill(a!, 4)
          }))
          const refused = yield* failsWith(CudaGraph.update(exec, longer), "GraphRefused")
          assert.include(refused.resource, "graph of 3 nodes")
          yield* CudaGraph.launch(exec)
          yield* holds(b!, 2)
          yield* CudaGraph.updateOrReplace(exec, longer)
          yield* CudaGraph.launch(exec)
          yield* holds(b!, 3)
          yield* holds(a!, 4)
          yield* CudaGraph.updateOrReplace(exec, yield* chain(5))
          yield* CudaGraph.launch(exec)
          yield* holds(b!, 5)
          assert.strictEqual(exec.nodes.length, 2)
          const other = yield* CudaGraph.recordWith(
            { target: CudaGraph.buffer(size) },
            ({ target }) =>
              CudaMemory.fill(target, 1)
          )
          // @ts-expect-error: the parameters differ
          yield* refuses(CudaGraph.update(exec, other), "graph")
        })
      ))

    it.effect("operations can be piped, and handles print as one line", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a] = yield* buffers(0)
          const graph = yield* CudaMemory.fill(a!, 1).pipe(CudaGraph.named("fill"), CudaGraph.record())
          const exec = yield* graph.pipe(CudaGraph.instantiate({ instances: 2 }))
          yield* exec.pipe(CudaGraph.setEnabled("fill", false))
          yield* CudaGraph.launch(exec)
          yield* holds(a!, 0)
          yield* exec.pipe(CudaGraph.update(graph))
          yield* exec.pipe(CudaGraph.updateOrReplace(graph))
          yield* exec.pipe(CudaGraph.setEnabled(0, true))
          yield* CudaGraph.launch(exec)
          yield* holds(a!, 1)
          assert.strictEqual(String(graph), "CudaGraph(1 node, device 0)")
          assert.strictEqual(String(exec), "CudaGraphExec(1 node, device 0, 2 instances)")
          assert.isTrue(CudaGraph.isCudaGraph(graph) && !CudaGraph.isCudaGraph(exec))
          assert.isTrue(CudaGraph.isCudaGraphExec(exec) && !CudaGraph.isCudaGraphExec(graph))
          assert.include(CudaGraph.toMermaid(graph), "n0(\"fill\")")
          assert.include(CudaGraph.toDot(graph), "n0 [shape=ellipse, label=\"fill\"]")
          // @ts-expect-error: a graph is not executable
          yield* refuses(CudaGraph.launch(graph), "exec")
          // @ts-expect-error: an executable graph is not a graph
          yield* refuses(CudaGraph.instantiate(exec, {}), "graph")
          // @ts-expect-error: a number is not a graph
          yield* refuses(CudaGraph.update(exec, 1), "graph")
        })
      ))

    it.effect("a graph without nodes does nothing", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const graph = yield* CudaGraph.record(Effect.void)
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
          yield* CudaStream.synchronize(stream)
        })
      ))
  })

const parameterContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("parameters of graphs", (it) => {
    it.effect("memory and numbers are those of each launch, also while earlier launches are in flight", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const put = yield* kernel("put")
          const [scratch, a, b, c] = yield* buffers(0, 0, 0, 0)
          const input = yield* CudaMemory.allocateHost(2 * size)
          input.bytes.fill(1, 0, size).fill(2, size)
          const graph = yield* CudaGraph.recordWith(
            {
              from: CudaGraph.hostBuffer(size),
              to: CudaGraph.buffer(size),
              value: CudaParameter.u32
            },
            ({ from, to, value }) =>
              Effect.gen(function*() {
                yield* CudaMemory.fill(scratch!, 0)
                yield* CudaMemory.copy(CudaMemory.slice(to, 8), CudaMemory.slice(from, 8))
                yield* CudaMemory.fill32(CudaMemory.slice(to, 4, 4), 0)
                yield* CudaKernel.launch(put, one, [to, value])
              })
          )
          const exec = yield* CudaGraph.instantiate(graph)
          const [first, second] = [CudaMemory.slice(input, 0, size), CudaMemory.slice(input, size)]
          yield* (yield* Busy).enqueue(stream, 20)
          yield* CudaGraph.launch(exec, { from: first, to: a!, value: 11 })
          yield* CudaGraph.launch(exec, { from: second, to: b!, value: 12 })
          yield* CudaGraph.launch(exec, { from: second, to: c!, value: 12 })
          for (const [buffer, byte, value] of [[a!, 1, 11], [b!, 2, 12], [c!, 2, 12]] as const) {
            const bytes = yield* bytesOf(buffer)
            assert.strictEqual(bytes[0], value)
            assert.strictEqual(bytes[4], 0)
            assert.isTrue(bytes.subarray(8).every((own) => own === byte))
          }
        })
      ))

    it.effect("memory of 2D copies and of batches", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b, c] = yield* buffers(1, 2, 3)
          const graph = yield* CudaGraph.recordWith(
            { from: CudaGraph.buffer(size), to: CudaGraph.buffer(size) },
            ({ from, to }) =>
              CudaMemory.copy2D(CudaMemory.rows(to, 16), CudaMemory.rows(from, 8), { width: 8, height: 4 })
          )
          const exec = yield* CudaGraph.instantiate(graph)
          yield* CudaGraph.launch(exec, { from: a!, to: c! })
          yield* holds(CudaMemory.slice(c!, 48, 8), 1)
          yield* CudaGraph.launch(exec, { from: b!, to: c! })
          yield* holds(CudaMemory.slice(c!, 48, 8), 2)
          yield* holds(CudaMemory.slice(c!, 56, 8), 3)
        })
      ))

    it.effect("numbers in structs and arrays", () =>
      onStream(() =>
        Effect.gen(function*() {
          const { u32 } = CudaParameter
          const put = yield* kernel("put")
          const [a] = yield* buffers(0)
          const graph = yield* CudaGraph.recordWith({ value: u32 }, ({ value }) =>
            CudaKernel.launch(put, one, [a!, value]))
          const exec = yield* CudaGraph.instantiate(graph)
          for (const value of [1, 255, 70_000]) {
            yield* CudaGraph.launch(exec, { value })
            const bytes = yield* bytesOf(a!)
            assert.strictEqual(new DataView(bytes.buffer).getUint32(0, true), value)
          }
        })
      ))

    it.effect.each([1, 2])(
      "any of them change from launch to launch, with %i instances",
      (instances) =>
        onStream(() =>
          Effect.gen(function*() {
            const { u32 } = CudaParameter
            const put = yield* kernel("put")
            const graph = yield* CudaGraph.recordWith(
              { a: CudaGraph.buffer(size), b: CudaGraph.buffer(size), x: u32, y: u32 },
              ({ a, b, x, y }) =>
                Effect.gen(function*() {
                  yield* CudaKernel.launch(put, one, [a, x])
                  yield* CudaKernel.launch(put, one, [b, y])
                  yield* CudaKernel.launch(put, one, [CudaMemory.slice(a, 4), y])
                })
            )
            const exec = yield* CudaGraph.instantiate(graph, { instances })
            const all = yield* buffers(0, 0, 0, 0)
            const words = all.map(() => new Uint32Array(size / 4))
            const random = makeRandom(instances)
            const given = { a: 0, b: 2, x: 1, y: 1 }
            for (let launch = 0; launch < 64; launch++) {
              if (random(2) === 0) given.a = random(2)
              if (random(2) === 0) given.b = 2 + random(2)
              if (random(2) === 0) given.x = random(1000)
              if (random(2) === 0) given.y = random(1000)
              const values = { a: all[given.a]!, b: all[given.b]!, x: given.x, y: given.y }
              if (launch % 8 === 7) yield* refuses(CudaGraph.launch(exec, { ...values, x: -1 }), "values.x")
              yield* CudaGraph.launch(exec, values)
              words[given.a]!.set([given.x, given.y])
              words[given.b]!.set([given.y])
              for (const [index, buffer] of all.entries()) {
                const bytes = yield* bytesOf(buffer)
                assert.deepStrictEqual(new Uint32Array(bytes.buffer), words[index], `launch ${launch}, buffer ${index}`)
              }
            }
          })
        )
    )

    it.effect("values are checked like arguments", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a, b] = yield* buffers(0, 0)
          const host = yield* CudaMemory.allocateHost(size)
          const put = yield* kernel("put")
          const graph = yield* CudaGraph.recordWith(
            { from: CudaGraph.buffer(size), to: CudaGraph.buffer(size), value: CudaParameter.u32 },
            ({ from, to, value }) =>
              Effect.gen(function*() {
                yield* CudaMemory.copy(to, from)
                yield* CudaMemory.fill32(to, 0)
                yield* CudaKernel.launch(put, one, [to, value])
              })
          )
          const exec = yield* CudaGraph.instantiate(graph)
          const values = { from: a!, to: b!, value: 1 }
          yield* refuses(CudaGraph.launch(exec, { ...values, value: -1 }), "values.value")
          yield* refuses(CudaGraph.launch(exec, { ...values, to: CudaMemory.slice(b!, 0, 8) }), "values.to.byteLength")
          const wide = yield* CudaMemory.allocate(2 * size)
          yield* refuses(CudaGraph.launch(exec, { ...values, to: CudaMemory.slice(wide, 2) }), "values.to.offset")
          // @ts-expect-error: pinned memory
          yield* refuses(CudaGraph.launch(exec, { ...values, to: host }), "values.to")
          // @ts-expect-error: a value is missing
          yield* refuses(CudaGraph.launch(exec, { from: a!, to: b! }), "values.value")
          // @ts-expect-error: all values are missing
          yield* refuses(CudaGraph.launch(exec), "values.from")
          yield* refuses(CudaGraph.launch(exec, { ...values, from: b! }), "values")
          const scope = yield* Scope.make()
          const gone = yield* Scope.provide(CudaMemory.allocate(size), scope)
          yield* Scope.close(scope, Exit.void)
          yield* failsWith(CudaGraph.launch(exec, { ...values, from: gone }), "ResourceReleased")
          yield* CudaGraph.launch(exec, values)
          assert.strictEqual((yield* bytesOf(b!))[0], 1)
        })
      ))

    it.effect("parameters of the wrong kind are refused", () =>
      onStream(() =>
        Effect.gen(function*() {
          const record = (parameters: CudaGraph.GraphParameters) => CudaGraph.recordWith(parameters, () => Effect.void)
          yield* refuses(record({ a: CudaGraph.buffer(0) }), "parameters.a.byteLength")
          yield* refuses(record({ a: CudaGraph.buffer(1.5) }), "parameters.a.byteLength")
          // @ts-expect-error: no parameter of a graph
          yield* refuses(record({ a: CudaParameter.pointer }), "parameters.a")
          // @ts-expect-error: no parameter at all
          yield* refuses(record({ a: null }), "parameters.a")
        })
      ))
  })

const refusalContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("what cannot be recorded", (it) => {
    const refusesToRecord = <A, E, R>(
      program: Effect.Effect<A, E | Effect.Error<ReturnType<typeof CudaMemory.allocate>>, R>,
      text: string
    ) =>
      Effect.map(
        failsWith(CudaGraph.record(program as Effect.Effect<A, never, R>), "CannotRecord"),
        (reason) => assert.include(reason.because, text)
      )

    it.effect("reading the time between events", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
          yield* CudaEvent.record(start, stream)
          yield* CudaEvent.record(end, stream)
          yield* CudaStream.synchronize(stream)
          yield* refusesToRecord(CudaEvent.elapsedTime(start, end), "Read times after")
        })
      ))

    it.effect("waiting for the GPU, and queries", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const event = yield* CudaEvent.make()
          yield* CudaEvent.record(event, stream)
          const here = CudaStream.current()
          const runs = "nothing runs while a graph is recorded"
          yield* refusesToRecord(Effect.flatMap(here, CudaStream.synchronize), runs)
          yield* refusesToRecord(Effect.flatMap(here, CudaStream.query), runs)
          yield* refusesToRecord(CudaStream.synchronize(stream), runs)
          yield* refusesToRecord(CudaEvent.synchronize(event), runs)
          yield* refusesToRecord(CudaEvent.query(event), runs)
        })
      ))

    it.effect("streams and events that cross the border", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const [a] = yield* buffers(1)
          const event = yield* CudaEvent.make()
          yield* refusesToRecord(CudaMemory.fill(a!, 2, stream), "is not part of the recording")
          yield* refusesToRecord(
            Effect.flatMap(CudaStream.current(), (inside) => CudaStream.waitStream(inside, stream)),
            "crosses the border"
          )
          yield* refusesToRecord(
            Effect.flatMap(CudaStream.current(), (inside) => CudaStream.waitStream(stream, inside)),
            "crosses the border"
          )
          yield* CudaEvent.record(event, stream)
          yield* refusesToRecord(
            Effect.flatMap(CudaStream.current(), (inside) => CudaStream.waitEvent(inside, event)),
            "was recorded outside the recording"
          )
          yield* CudaGraph.record(Effect.flatMap(CudaStream.current(), (inside) => CudaEvent.record(event, inside)))
          const waited = yield* failsWith(CudaStream.waitEvent(stream, event), "CannotRecord")
          assert.include(waited.because, "was recorded inside a graph")
          yield* failsWith(CudaEvent.synchronize(event), "CannotRecord")
          yield* CudaEvent.record(event, stream)
          yield* CudaStream.waitEvent(stream, event)
          yield* CudaEvent.synchronize(event)
          yield* holds(a!, 1)
        })
      ))

    it.effect("default streams, host data, managed memory, launches, and streams of others", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a] = yield* buffers(1)
          const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaMemory.fill(a!, 1)))
          yield* refusesToRecord(CudaStream.defaultStream(), "default streams")
          yield* refusesToRecord(CudaStream.fromHandle(2), "default streams")
          yield* refusesToRecord(CudaMemory.upload(a!, new Uint8Array(size)), "stale at the second launch")
          yield* refusesToRecord(CudaMemory.allocateManaged(size), "managed memory")
          yield* refusesToRecord(CudaGraph.launch(exec), "CudaGraph.embed")
          const host = Effect.flatMap(CudaStream.current(), (stream) =>
            CudaStream.launchHostFunction(stream, Effect.void))
          yield* refusesToRecord(Effect.scoped(host), "graphs do not run effects")
          yield* refusesToRecord(CudaTiming.timed(CudaMemory.fill(a!, 1)), "CudaTiming.region")
          const pool = yield* CudaMemoryPool.make()
          yield* refusesToRecord(Effect.scoped(CudaMemory.allocate(size, { pool })), "comes from no pool")
          const own = yield* CudaStream.make()
          yield* refusesToRecord(Effect.scoped(CudaMemory.allocate(size, { stream: own })), "not part of the recording")
        })
      ))

    it.effect("unjoined streams, by name, and graphs that write their pinned input", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a] = yield* buffers(1)
          const host = yield* CudaMemory.allocateHost(size)
          yield* refusesToRecord(
            Effect.flatMap(CudaStream.make(), (stream) => CudaMemory.fill(a!, 1, stream)),
            "recording stream"
          )
          const thereAndBack = Effect.andThen(CudaMemory.copy(a!, host), CudaMemory.copy(host, a!))
          yield* refusesToRecord(thereAndBack, "overwriteInputs")
          const graph = yield* CudaGraph.record(thereAndBack, { overwriteInputs: true })
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
        })
      ))

    it.effect("names the function or span around the operation", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const sync = Effect.fn("sync")(function*() {
            yield* CudaStream.synchronize(stream)
          })
          const reason = yield* failsWith(CudaGraph.record(sync()), "CannotRecord")
          assert.include(reason.frame, "sync")
          assert.include(reason.frame, "graphs.ts")
          const [a] = yield* buffers(1)
          const fill = Effect.fn("clear")(function*() {
            yield* CudaMemory.fill(a!, 0)
          })
          const graph = yield* CudaGraph.record(fill())
          assert.include(graph.nodes[0]!.frame, "clear")
        })
      ))

    it.effect("a failing or interrupted program leaves no recording behind", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [a] = yield* buffers(1)
          const failed = yield* Effect.flip(CudaGraph.record(Effect.andThen(CudaMemory.fill(a!, 2), Effect.fail("no"))))
          assert.strictEqual(failed, "no")
          const exit = yield* Effect.exit(CudaGraph.record(Effect.andThen(CudaMemory.fill(a!, 2), Effect.interrupt)))
          assert.isTrue(Exit.hasInterrupts(exit))
          yield* holds(a!, 1)
        })
      ))

    it.effect("streams and memory of a recording are released at its end", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            return { stream: yield* CudaStream.current(), memory: yield* CudaMemory.allocate(size) }
          }))
          const { memory, stream: inside } = graph.value
          yield* failsWith(CudaMemory.fill(memory, 1, stream), "ResourceReleased")
          yield* failsWith(CudaStream.synchronize(inside), "ResourceReleased")
          assert.throws(() => inside.handle, "no handle")
        })
      ))
  })

const graphLifetimeContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("lifetimes of graphs", (it) => {
    it.effect("a launch fails with the name of a buffer, a kernel's module or an event that was released", () =>
      onStream(() =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          const memory = yield* Scope.provide(CudaMemory.allocate(size), scope)
          const put = yield* Scope.provide(kernel("put"), scope)
          const event = yield* Scope.provide(CudaEvent.make({ timing: true }), scope)
          const [a] = yield* buffers(1)
          const fill = yield* CudaGraph.record(CudaMemory.fill(memory, 1))
          const launch = yield* CudaGraph.record(CudaKernel.launch(put, one, [a!, 1]))
          const record = yield* CudaGraph.record(
            Effect.flatMap(CudaStream.current(), (stream) => CudaEvent.record(event, stream))
          )
          const execs = [
            yield* CudaGraph.instantiate(fill),
            yield* CudaGraph.instantiate(launch),
            yield* CudaGraph.instantiate(record)
          ]
          for (const exec of execs) yield* CudaGraph.launch(exec)
          yield* CudaStream.synchronize(yield* CudaStream.current())
          yield* Scope.close(scope, Exit.void)
          for (const [index, resource] of ["buffer of 64 bytes", "module", "event"].entries()) {
            const reason = yield* failsWith(CudaGraph.launch(execs[index]!), "ResourceReleased")
            assert.include(reason.resource, resource)
          }
          yield* failsWith(CudaGraph.instantiate(fill), "ResourceReleased")
        })
      ))

    it.effect("buffers and executable graphs can be released while launches are in flight", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const [out] = yield* buffers(0)
          const scope = yield* Scope.make()
          const memory = yield* Scope.provide(CudaMemory.allocate(size), scope)
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            const scratch = yield* CudaMemory.allocate(size)
            yield* CudaMemory.fill(memory, 5)
            yield* CudaMemory.copy(scratch, memory)
            yield* CudaMemory.copy(out!, scratch)
          }))
          const exec = yield* Scope.provide(CudaGraph.instantiate(graph), scope)
          yield* (yield* Busy).enqueue(stream, 20)
          yield* CudaGraph.launch(exec)
          yield* Scope.close(scope, Exit.void)
          assert.isFalse(yield* CudaStream.query(stream))
          const other = yield* CudaMemory.allocate(size)
          yield* CudaMemory.fill(other, 7, yield* CudaStream.make())
          yield* holds(out!, 5)
          yield* failsWith(CudaGraph.launch(exec), "ResourceReleased")
          yield* failsWith(CudaGraph.upload(exec), "ResourceReleased")
          yield* failsWith(CudaGraph.setEnabled(exec, 0, false), "ResourceReleased")
          yield* failsWith(CudaGraph.update(exec, graph), "ResourceReleased")
        })
      ))

    it.effect("executable graphs are counted, and their memory with them", () =>
      leavesNothing(Effect.gen(function*() {
        const [a] = yield* buffers(1)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const scratch = yield* CudaMemory.allocate(1000)
          yield* CudaMemory.fill(scratch, 1)
          yield* CudaMemory.copy(a!, CudaMemory.slice(scratch, 0, size))
        }))
        assert.strictEqual(graph.scratchBytes, 1000)
        const before = yield* graph.runtime.liveResources
        const exec = yield* CudaGraph.instantiate(graph, { instances: 3 })
        const during = yield* graph.runtime.liveResources
        assert.strictEqual(during.graphs, before.graphs + 1)
        assert.strictEqual(during.deviceBytes, before.deviceBytes + 3000)
        yield* refuses(CudaGraph.instantiate(graph, { instances: 0 }), "instances")
        yield* CudaGraph.launch(exec)
        yield* holds(a!, 1)
      })))
  })
