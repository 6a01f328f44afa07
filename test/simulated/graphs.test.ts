import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { nullHandle } from "../../src/cuda/handles.ts"
import type { CUlibrary } from "../../src/cuda/handles.ts"
import type { ParameterKind } from "../../src/cuda/parameters.ts"
import { statuses, success } from "../../src/cuda/status.ts"
import * as CudaParameter from "../../src/CudaParameter.ts"
import { Arguments } from "../../src/layers/shared/arguments.ts"
import { Bindings, devicePlaceholder } from "../../src/layers/shared/graphNodes.ts"
import type { GraphResource, KernelWork, NodeWork } from "../../src/layers/shared/graphNodes.ts"
import { LaunchShape } from "../../src/layers/shared/launchShape.ts"
import { KernelResource, ModuleResource } from "../../src/layers/shared/moduleResources.ts"
import type { DeviceMemoryResource } from "../../src/layers/shared/resources.ts"
import { SimulatedBackend } from "../../src/layers/simulated/Backend.ts"
import { enqueueBranches, planBranches } from "../../src/layers/simulated/model/branches.ts"
import { becauseOf, Model } from "../../src/layers/simulated/model/Model.ts"
import type { Stream } from "../../src/layers/simulated/model/parts.ts"
import { World } from "../../src/layers/simulated/model/World.ts"
import { resolve } from "../../src/layers/simulated/options.ts"
import { kernel as define } from "../../src/layers/SimulatedRuntime.ts"
import type { SimulatedOptions } from "../../src/layers/SimulatedRuntime.ts"
import { graphOf } from "../support/nodeGraphs.ts"

/** One byte takes one nanosecond on every link, and nothing else takes time. */
const plain = {
  memory: 1e6,
  copyEngines: 2,
  concurrentKernels: 1e6,
  hostBandwidth: 1e9,
  deviceBandwidth: 1e9,
  peerBandwidth: 1e9,
  copyLatency: 0
}

interface Drawn {
  readonly duration: number
  readonly dependencies: ReadonlyArray<number>
}

/** Nodes whose dependencies are given as distances to earlier nodes. */
const Nodes = Schema.Array(Schema.Struct({
  duration: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 20 })),
  dependencies: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 6 })))
}))

const graphFrom = (drawn: ReadonlyArray<Drawn>): ReadonlyArray<Drawn> =>
  drawn.map(({ dependencies, duration }, index) => ({
    duration,
    dependencies: [...new Set(dependencies)].map((distance) => index - distance).filter((node) => node >= 0)
  }))

/** Launches a graph after work of 7 ns. Returns the order of ends, the end of each node, and of the launch. */
const launched = (nodes: ReadonlyArray<Drawn>, streamOf: (model: Model) => Stream, recordTimeline: boolean) => {
  const world = new World()
  const model = new Model(world, [plain], recordTimeline)
  const stream = streamOf(model)
  const ends: Array<number> = []
  model.work(stream, { duration: 7 })
  const works = nodes.map(({ duration }, index) => (on: Stream) =>
    model.work(on, { duration, act: () => void (ends[index] = world.now) })
  )
  const end = enqueueBranches(model, stream, planBranches(nodes.map((node) => node.dependencies)), works)!
  const later = world.record(stream, false)
  const sameOrder = world.record(model.devices[0]!.legacy, false)
  world.advance(1e6)
  return { model, world, ends, end, later, sameOrder, streams: model.devices[0]!.streams.size }
}

describe("branches", () => {
  const streams: ReadonlyArray<(model: Model) => Stream> = [
    (model) => model.createStream(model.devices[0]!, 0, true),
    (model) => model.createStream(model.devices[0]!, 0, false),
    (model) => model.devices[0]!.legacy
  ]
  it.prop("start each node when its dependencies end, and end with the last", [Nodes], ([drawn]) => {
    const nodes = graphFrom(drawn)
    const expected: Array<number> = []
    for (const { dependencies, duration } of nodes) {
      expected.push(Math.max(7, ...dependencies.map((node) => expected[node]!)) + duration)
    }
    for (const recordTimeline of [true, false]) {
      for (const [index, streamOf] of streams.entries()) {
        const result = launched(nodes, streamOf, recordTimeline)
        assert.deepStrictEqual(result.ends, expected)
        const end = Math.max(7, ...expected)
        assert.deepStrictEqual([result.end.time, result.later.time], [end, end])
        assert.strictEqual(result.sameOrder.time, index === 0 ? 0 : end)
        assert.strictEqual(result.world.pending, 0)
        assert.strictEqual(result.streams, index === 2 ? 3 : 4)
      }
    }
  }, { arbitrary: { runs: 200, size: 40 } })

  it("put a chain on the stream itself", () => {
    const { branches, forks } = planBranches([[], [0], [1]])
    assert.deepStrictEqual([branches, forks], [1, false])
  })
  it("are not in the timeline, and their work has the id of the stream", () => {
    const node = { duration: 5, dependencies: [] }
    const { model } = launched([node, node, { duration: 1, dependencies: [0, 1] }], streams[0]!, true)
    assert.deepStrictEqual(
      model.timeline!.map(({ end, kind, streamId }) => [kind, streamId, end]),
      [
        ["record", 0, 0],
        ["work", 16, 7],
        ["work", 16, 12],
        ["work", 16, 12],
        ["work", 16, 13],
        ["record", 16, 13]
      ]
    )
  })
  it("run nothing after a fault that takes no time", () => {
    const world = new World()
    const model = new Model(world, [plain])
    const stream = model.createStream(model.devices[0]!, 0, true)
    const plan = planBranches([[], [], [0, 1]])
    const works = plan.steps.map((_, index) => (on: Stream) =>
      model.work(on, index === 1 ? { duration: 0, fault: 700 } : { duration: 0 })
    )
    assert.isUndefined(enqueueBranches(model, stream, plan, works))
    assert.deepStrictEqual([model.devices[0]!.lost, world.pending], [700, 0])
  })
  it("are named by waits that never end", () => {
    const world = new World()
    const model = new Model(world, [plain])
    const stream = model.createStream(model.devices[0]!, 0, true)
    const works = [0, Infinity].map((duration) => (on: Stream) => model.work(on, { duration }))
    const end = enqueueBranches(model, stream, planBranches([[], []]), works)!
    assert.strictEqual(
      becauseOf(end),
      "stream 16 of device 0 waits for a branch of stream 16 of device 0, " +
        "and work on a branch of stream 16 of device 0 never ends"
    )
  })
  it("cost time linear in the nodes and edges", () => {
    const run = (width: number) => {
      const nodes = Array.from({ length: width }, (_, index) => ({
        duration: 1,
        dependencies: index < 2 ? [] : [index - 1, index - 2]
      }))
      const wide = [...nodes, ...nodes.map(() => ({ duration: 1, dependencies: [width - 1] }))]
      const started = performance.now()
      launched(wide, streams[0]!, false)
      return performance.now() - started
    }
    run(2000)
    const small = Math.min(run(2000), run(2000), run(2000))
    assert.isBelow(Math.min(run(16_000), run(16_000)), 8 * 6 * small)
  })
})

const backendOf = (options: SimulatedOptions) =>
  Effect.gen(function*() {
    const resolved = yield* resolve({ devices: [plain], recordTimeline: true, ...options })
    const clock = yield* Clock.clockWith(Effect.succeed)
    const backend = new SimulatedBackend(resolved, clock, yield* Effect.context<never>())
    const memory = (byteLength: number): DeviceMemoryResource => {
      assert.strictEqual(backend.memory.allocate(0, byteLength, undefined, undefined), success)
      return backend.memory.allocated!
    }
    const stream = () => {
      assert.strictEqual(backend.streams.create(0, 0, true, undefined), success)
      return backend.streams.created!
    }
    const event = () => {
      assert.strictEqual(backend.events.create(0, 0), success)
      return backend.events.created!
    }
    const kernel = (name: string, parameters: ReadonlyArray<ParameterKind>) => {
      const module = new ModuleResource(backend, nullHandle<CUlibrary>(), 0, { idleTimeout: Duration.zero })
      assert.strictEqual(backend.kernels.find(module, name), success)
      const args = new Arguments(parameters, { owner: backend, reachesHost: () => true })
      return new KernelResource(backend.kernels.code!, parameters, args, nullHandle())
    }
    const instance = (graph: GraphResource, bindings = new Bindings(graph)) => {
      assert.strictEqual(backend.graphs.instantiate(graph, bindings), success)
      return backend.graphs.made!
    }
    return { backend, memory, stream, event, kernel, instance }
  })

const fill = (memory: DeviceMemoryResource, value: number, offset = 0, count = 4): NodeWork => ({
  kind: "fill",
  memory,
  offset,
  value,
  bits: 8,
  count
})

const copy = (to: DeviceMemoryResource, from: DeviceMemoryResource): NodeWork => ({
  kind: "copy",
  transfer: { to, toOffset: 0, from, fromOffset: 0, byteLength: 4 }
})

const launchOf = (kernel: KernelResource, fields: Partial<KernelWork>): KernelWork => ({
  kind: "kernel",
  kernel,
  shape: new LaunchShape(),
  priority: 0,
  partition: undefined,
  bytes: new Uint8Array(kernel.arguments.tableOffset),
  pointers: [],
  scalars: [],
  startsEarly: false,
  ...fields
})

describe("launches", () => {
  it.effect("fill, copy and record, one launch of an instance at a time", () =>
    Effect.gen(function*() {
      const { backend, event, instance, memory, stream } = yield* backendOf({})
      const [from, to] = [memory(8), memory(8)]
      const [start, end] = [event(), event()]
      const rows = { to, toOffset: 4, toPitch: 2, from, fromOffset: 0, fromPitch: 4, width: 1, height: 2 }
      const graph = graphOf(backend, [
        [{ kind: "record", event: start }],
        [fill(from, 1), 0],
        [fill(from, 2, 4), 0],
        [copy(to, from), 1],
        [{ kind: "copy2D", transfer: rows }, 1, 2],
        [{ kind: "record", event: end }, 3, 4]
      ])
      const made = instance(graph)
      assert.strictEqual(backend.graphs.launch(made, graph, stream()), success)
      assert.strictEqual(backend.graphs.launch(made, graph, stream()), success)
      yield* TestClock.adjust("1 milli")
      assert.deepStrictEqual([...backend.bytesOf(to)!], [1, 1, 1, 1, 1, 0, 2, 0])
      assert.strictEqual(backend.events.elapsedTime(start, end), success)
      assert.approximately(backend.events.milliseconds, 8e-6, 1e-9)
      const { timeline } = backend.driver.model
      assert.deepStrictEqual(
        timeline!.map(({ end, kind, streamId }) => `${kind} ${streamId} ${end}`),
        [16, 17].flatMap((id, index) => [
          `record ${id} ${8 * index}`,
          `fill ${id} ${8 * index + 4}`,
          `fill ${id} ${8 * index + 4}`,
          `deviceToDevice ${id} ${8 * index + 6}`,
          `deviceToDevice ${id} ${8 * index + 8}`,
          `record ${id} ${8 * index + 8}`
        ])
      )
    }))

  it.effect("use the memory bound at the launch, and skip disabled nodes in order", () =>
    Effect.gen(function*() {
      const { backend, event, instance, memory, stream } = yield* backendOf({})
      const [one, two] = [memory(8), memory(8)]
      const slot = { recording: { state: "ended", owner: backend }, index: 0, name: "parameter" } as const
      const placeholder = devicePlaceholder(slot, 4, 0)
      const graph = graphOf(backend, [
        [fill(placeholder, 1)],
        [fill(placeholder, 2), 0],
        [{ kind: "record", event: event() }, 1]
      ], { slots: 1 })
      const made = instance(graph)
      const on = stream()
      made.bindings.set(0, { memory: one, offset: 0 })
      assert.strictEqual(backend.graphs.bind(made), success)
      assert.strictEqual(backend.graphs.launch(made, graph, on), success)
      made.bindings.set(0, { memory: two, offset: 4 })
      assert.strictEqual(backend.graphs.setEnabled(made, graph.nodes[1]!, false), success)
      assert.strictEqual(backend.graphs.setEnabled(made, graph.nodes[2]!, false), statuses.InvalidValue.code)
      assert.strictEqual(backend.graphs.launch(made, graph, on), success)
      assert.strictEqual(backend.graphs.destroy(made), success)
      yield* TestClock.adjust("1 milli")
      assert.deepStrictEqual([...backend.bytesOf(one)!], [2, 2, 2, 2, 0, 0, 0, 0])
      assert.deepStrictEqual([...backend.bytesOf(two)!], [0, 0, 0, 0, 1, 1, 1, 1])
      assert.deepStrictEqual(backend.driver.model.timeline!.map(({ end }) => end), [4, 8, 8, 12, 12])
    }))

  it.effect("give kernels the priorities of their nodes", () =>
    Effect.gen(function*() {
      const order: Array<number> = []
      const { backend, instance, kernel, stream } = yield* backendOf({
        devices: [{ ...plain, concurrentKernels: 1 }],
        kernels: { note: define({ parameters: [], run: ({ grid }) => void order.push(grid.x) }) }
      })
      const note = kernel("note", [])
      const named = (gridX: number, priority: number) =>
        launchOf(note, { priority, shape: Object.assign(new LaunchShape(), { gridX }) })
      const graph = graphOf(backend, [[named(1, 0)], [named(2, 0), 0], [named(3, -1), 0]])
      assert.strictEqual(backend.graphs.launch(instance(graph), graph, stream()), success)
      yield* TestClock.adjust("1 milli")
      backend.driver.now()
      assert.deepStrictEqual(order, [1, 3, 2])
    }))

  it.effect("run kernels with their arguments, and fail with a cost that cannot be computed", () =>
    Effect.gen(function*() {
      const parameters = [CudaParameter.pointer, CudaParameter.u32] as const
      const { backend, instance, kernel, memory, stream } = yield* backendOf({
        kernels: {
          put: define({
            parameters,
            cost: "100 nanos",
            run: ({ args: [to, value] }) => to.store("u32", 0, value)
          }),
          broken: {
            parameters: [],
            cost: () => {
              throw new Error("no cost")
            },
            run: () => {}
          }
        }
      })
      const [one, two] = [memory(8), memory(8)]
      const put = kernel("put", parameters)
      const bytes = new Uint8Array(put.arguments.tableOffset)
      bytes[put.arguments.offsets[1]!] = 9
      const pointer = (to: DeviceMemoryResource) => ({ memory: to, offset: 4, byteLength: 4, at: 0 })
      const on = stream()
      const graph = graphOf(backend, [
        [launchOf(put, { bytes, pointers: [pointer(one)] })],
        [launchOf(put, { bytes, pointers: [pointer(two)] })]
      ])
      assert.strictEqual(backend.graphs.launch(instance(graph), graph, on), success)
      yield* TestClock.adjust("1 milli")
      assert.deepStrictEqual([...backend.bytesOf(one)!], [0, 0, 0, 0, 9, 0, 0, 0])
      assert.deepStrictEqual([...backend.bytesOf(two)!], [0, 0, 0, 0, 9, 0, 0, 0])
      assert.deepStrictEqual(
        backend.driver.model.timeline!.map(({ end, kind }) => [kind, end]),
        [["work", 100], ["work", 100]]
      )
      const large = Object.assign(new LaunchShape(), { sharedBytes: 1e9 })
      const tooLarge = graphOf(backend, [[launchOf(put, { shape: large })]])
      assert.strictEqual(
        backend.graphs.instantiate(tooLarge, new Bindings(tooLarge)),
        statuses.LaunchOutOfResources.code
      )
      const failing = graphOf(backend, [[fill(one, 1)], [launchOf(kernel("broken", []), {})]])
      const made = instance(failing)
      assert.strictEqual(backend.graphs.launch(made, failing, on), statuses.LaunchFailed.code)
      assert.strictEqual(backend.graphs.upload(made, on), statuses.LaunchFailed.code)
      assert.include(backend.explain(statuses.LaunchFailed.code)?.detail, "The cost of kernel broken")
      assert.strictEqual(backend.driver.model.world.pending, 0)
    }))
})

describe("updates", () => {
  it.effect("accept other memory and values, and refuse other nodes, edges and kinds", () =>
    Effect.gen(function*() {
      const { backend, instance, memory, stream } = yield* backendOf({})
      const [one, two] = [memory(4), memory(4)]
      const graph = graphOf(backend, [[fill(one, 1)], [copy(two, one), 0]])
      const made = instance(graph)
      const update = (...works: Parameters<typeof graphOf>[1]) => {
        const other = graphOf(backend, works)
        return [backend.graphs.update(made, other), backend.graphs.refusal]
      }
      const refused = statuses.GraphExecUpdateFailure.code
      const topology = { why: "its nodes or edges differ", node: undefined }
      assert.deepStrictEqual(update([fill(one, 1)]), [refused, topology])
      assert.deepStrictEqual(update([fill(one, 1)], [copy(two, one)]), [refused, topology])
      assert.deepStrictEqual(
        update([fill(one, 1)], [fill(two, 1), 0]),
        [refused, { why: "the node was a copy and is a fill", node: 1 }]
      )
      assert.deepStrictEqual(update([fill(two, 3)], [copy(one, two), 0]), [success, undefined])
      assert.strictEqual(backend.graphs.launch(made, graph, stream()), success)
      yield* TestClock.adjust("1 milli")
      assert.deepStrictEqual([...backend.bytesOf(one)!], [3, 3, 3, 3])
    }))
})
