/**
 * Graphs on the driver: the nodes that are made, the structs they are made from, and the calls of an executable graph.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaEvent,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaMemoryPool,
  CudaModule,
  CudaParameter,
  CudaStream
} from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { Address } from "effect-cuda/CudaRuntime"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { statuses, success } from "../../src/cuda/status.ts"
import type { NativeBackend } from "../../src/layers/native/Backend.ts"
import { Bindings, devicePlaceholder, hostPlaceholder } from "../../src/layers/shared/graphNodes.ts"
import { DeviceMemoryResource, ownEvent, ownMemory, ownStream } from "../../src/layers/shared/resources.ts"
import { failsWith, nothingHeld, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { program, signatures } from "../support/kernels.ts"
import {
  bind,
  copy,
  deviceMemory,
  fill,
  graphOf,
  instanceOf,
  launch,
  nativeBackend,
  record
} from "../support/nodeGraphs.ts"
import type { NodeRow } from "../support/nodeGraphs.ts"
import { makeRandom } from "../support/random.ts"
import { assertQuiet, assertReleased, copyStub, logged, onStub, openStub, until } from "../support/stubDriver.ts"
import type { StubDriver, StubFunctionName, StubOptions } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"

const stub = openStub()
const segment = 16 * 1024 * 1024

interface Given {
  readonly context: number
  readonly stream: CudaStream.CudaStream
  readonly backend: NativeBackend
}

const withGraphs = <A, E>(
  run: (given: Given) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>,
  options: StubOptions = {},
  on: StubDriver = stub
) =>
  onStub(
    on,
    Effect.gen(function*() {
      const { context } = yield* tracing(on).openDevice()
      const stream = yield* CudaStream.make()
      return yield* run({ context, stream, backend: nativeBackend(stream) })
    }),
    options
  )

const argumentsOf = (name: StubFunctionName) => stub.calls(name).map(({ args }) => args)

/** A placeholder's owner, and what is bound to it. */
const slotOf = (backend: NativeBackend) => ({
  recording: { state: "ended", owner: backend } as const,
  index: 0,
  name: "parameter"
})

const kernels = Effect.gen(function*() {
  const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
  return {
    nothing: yield* CudaKernel.get(module, "nothing", signatures.nothing),
    put: yield* CudaKernel.get(module, "put", signatures.put)
  }
})

const hex = (buffer: ArrayBufferView): string =>
  Buffer.from(buffer.buffer, buffer.byteOffset, buffer.byteLength).toString("hex")

describe("the nodes", () => {
  it.live("of a launch have its sizes, its arguments and the device's context", () =>
    withGraphs(({ backend, context }) =>
      Effect.gen(function*() {
        const { nothing, put } = yield* kernels
        const buffer = yield* CudaMemory.allocate(64)
        const config = { grid: [2, 3, 4], block: [5, 6, 7], sharedBytes: 1024 } as const
        const graph = graphOf(backend, [
          [launch(put, config, [CudaMemory.slice(buffer, 8, 8), 77])],
          [launch(nothing, { grid: 1, block: 1 }, []), 0]
        ])
        yield* instanceOf(backend, graph)
        const [first, second] = argumentsOf("cuGraphAddKernelNode_v2")
        const [made] = argumentsOf("cuGraphCreate")
        const handle = Number(made![0])
        const node = Number(first!.at(-1))
        const pointer = hex(BigUint64Array.of(BigInt(buffer.address + 8)))
        const value = hex(Uint32Array.of(77))
        const kernel = put.ref
        assert.strictEqual(kernel.name, "put")
        assert.deepStrictEqual(first!.slice(1), [2, 3, 4, 5, 6, 7, 1024, context, pointer, value, handle, "", node])
        assert.deepStrictEqual(second!.slice(1, -1), [1, 1, 1, 1, 1, 1, 0, context, handle, `${node}`])
        const [instantiate] = stub.calls("cuGraphInstantiateWithParams")
        assert.deepStrictEqual([instantiate!.args.slice(0, 2), instantiate!.context], [[handle, 0], context])
      })
    ))

  it.live("of a launch have its attributes", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const { nothing } = yield* kernels
        const config = { grid: 8, block: 1, cluster: [2, 1, 1], cooperative: true } as const
        yield* instanceOf(backend, graphOf(backend, [[launch(nothing, config, [], { priority: -3 })]]))
        const [added] = argumentsOf("cuGraphAddKernelNode_v2")
        const node = added!.at(-1)!
        assert.deepStrictEqual(argumentsOf("cuGraphKernelNodeSetAttribute"), [
          [node, 2, 1],
          [node, 4, 2, 1, 1],
          [node, 8, -3]
        ])
        // The graph uses the priorities of its nodes.
        assert.strictEqual(argumentsOf("cuGraphInstantiateWithParams")[0]![1], 8)
      })
    ))

  const early = (backend: NativeBackend) =>
    Effect.gen(function*() {
      const { nothing } = yield* kernels
      const one = { grid: 1, block: 1, programmatic: true }
      yield* instanceOf(
        backend,
        graphOf(backend, [
          [launch(nothing, one, [])],
          [launch(nothing, one, [], { startsEarly: true }), 0]
        ])
      )
    })

  it.live("of a launch that may start early have a programmatic edge instead of a plain one", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        yield* early(backend)
        const [first, second] = argumentsOf("cuGraphAddKernelNode_v2").map((args) => args.at(-1)!)
        assert.strictEqual(argumentsOf("cuGraphAddKernelNode_v2")[1]!.at(-2), "")
        const [handle] = argumentsOf("cuGraphCreate")[0]!
        assert.deepStrictEqual(argumentsOf("cuGraphAddDependencies_v2"), [[handle, first, second, "0100010000000000"]])
      })
    ))

  it.live("of a launch that may start early have a plain edge on older drivers", () => {
    const old = copyStub(["cuGraphAddDependencies_v2=stub_hidden"])
    return withGraphs(
      ({ backend }) =>
        Effect.gen(function*() {
          yield* early(backend)
          const [first, second] = old.calls("cuGraphAddKernelNode_v2").map(({ args }) => args)
          assert.strictEqual(second!.at(-2), String(first!.at(-1)))
        }),
      {},
      old
    )
  })

  for (const [bits, value] of [[8, 0xff], [16, 0xfedc], [32, 0xfedcba98]] as const) {
    it.live(`of a fill count elements of ${bits} bits`, () =>
      withGraphs(({ backend, context }) =>
        Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64)
          const work = fill(deviceMemory(buffer), value, { bits, count: 5, offset: 16 })
          yield* instanceOf(backend, graphOf(backend, [[work]]))
          const [args] = argumentsOf("cuGraphAddMemsetNode")
          assert.deepStrictEqual(args!.slice(0, 6), [buffer.address + 16, value, bits / 8, 5, 1, context])
        })
      ))
  }

  it.live("of a copy name each end by its kind of memory", () =>
    withGraphs(({ backend, context }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        const host = yield* CudaMemory.allocateHost(64)
        const managed = yield* CudaMemory.allocateManaged(64)
        yield* instanceOf(
          backend,
          graphOf(backend, [
            [copy(buffer, host, 20, { toOffset: 4, fromOffset: 8 })],
            [copy(host, managed, 20)]
          ])
        )
        assert.deepStrictEqual(argumentsOf("cuGraphAddMemcpyNode").map((args) => args.slice(0, 9)), [
          [2, buffer.address + 4, 0, 1, host.address + 8, 0, 20, 1, context],
          [1, host.address, 0, 2, managed.address, 0, 20, 1, context]
        ])
      })
    ))

  it.live("of a copy are one per segment of pinned memory, and what follows depends on all", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const bytes = 2 * segment
        const buffer = yield* CudaMemory.allocate(bytes)
        const host = yield* CudaMemory.allocateHost(3 * segment)
        const graph = graphOf(backend, [
          [fill(deviceMemory(buffer), 1)],
          [copy(buffer, host, bytes, { fromOffset: 100 }), 0],
          [fill(deviceMemory(buffer), 2), 1]
        ])
        yield* instanceOf(backend, graph)
        const pieces = argumentsOf("cuGraphAddMemcpyNode")
        assert.deepStrictEqual(pieces.map((args) => [args[1], args[4], args[6]]), [
          [buffer.address, host.address + 100, segment - 100],
          [buffer.address + segment - 100, host.address + segment, segment],
          [buffer.address + 2 * segment - 100, host.address + 2 * segment, 100]
        ])
        const [before, after] = argumentsOf("cuGraphAddMemsetNode")
        assert.isTrue(pieces.every((args) => args.at(-2) === String(before!.at(-1))))
        assert.strictEqual(after!.at(-2), pieces.map((args) => args.at(-1)).join(","))
        assert.lengthOf(stub.calls("cuGraphAddEmptyNode"), 0)
      })
    ))

  it.live("of a copy of many pieces are joined by an empty node", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(5 * segment)
        const host = yield* CudaMemory.allocateHost(5 * segment)
        const graph = graphOf(backend, [
          [copy(buffer, host, 5 * segment)],
          [fill(deviceMemory(buffer), 2), 0]
        ])
        yield* instanceOf(backend, graph)
        const [join] = argumentsOf("cuGraphAddEmptyNode")
        assert.strictEqual(join!.at(-2), argumentsOf("cuGraphAddMemcpyNode").map((args) => args.at(-1)).join(","))
        assert.strictEqual(argumentsOf("cuGraphAddMemsetNode")[0]!.at(-2), String(join!.at(-1)))
      })
    ))

  it.live("of a 2D copy are runs of rows, and rows that cross a segment are split", () =>
    withGraphs(({ backend, context }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(4096)
        const host = yield* CudaMemory.allocateHost(2 * segment)
        // The third row begins 50 bytes before the end of the first segment.
        const fromOffset = segment - 50 - 2 * 200
        const transfer = {
          to: ownMemory(buffer.ref),
          toOffset: 8,
          toPitch: 128,
          from: ownMemory(host.ref),
          fromOffset,
          fromPitch: 200,
          width: 100,
          height: 5
        }
        yield* instanceOf(backend, graphOf(backend, [[{ kind: "copy2D", transfer }]]))
        const [to, from] = [buffer.address + 8, host.address + fromOffset]
        assert.deepStrictEqual(argumentsOf("cuGraphAddMemcpyNode").map((args) => args.slice(0, 9)), [
          [2, to, 128, 1, from, 200, 100, 2, context],
          [2, to + 256, 0, 1, from + 400, 0, 50, 1, context],
          [2, to + 256 + 50, 0, 1, from + 450, 0, 50, 1, context],
          [2, to + 384, 128, 1, from + 600, 200, 100, 2, context]
        ])
      })
    ))
})

describe("a launch", () => {
  it.live("runs the nodes in the order of their dependencies", () =>
    withGraphs(({ backend, stream }) =>
      Effect.gen(function*() {
        const bytes = segment + 1000
        const buffer = yield* CudaMemory.allocate(bytes)
        const [from, to] = [yield* CudaMemory.allocateHost(bytes), yield* CudaMemory.allocateHost(bytes)]
        from.bytes.forEach((_, index) => from.bytes[index] = index % 251)
        const memory = deviceMemory(buffer)
        const graph = graphOf(backend, [
          [copy(buffer, from, bytes)],
          [fill(memory, 7, { count: 10, offset: 20 }), 0],
          [fill(memory, 0x0908, { bits: 16, count: 2, offset: 22 }), 1],
          [copy(to, buffer, bytes), 2]
        ])
        const instance = yield* instanceOf(backend, graph)
        assert.strictEqual(backend.graphs.upload(instance, ownStream(stream.ref)), success)
        assert.strictEqual(backend.graphs.launch(instance, graph, ownStream(stream.ref)), success)
        yield* CudaStream.synchronize(stream)
        const expected = from.bytes.slice()
        expected.set([7, 7, 8, 9, 8, 9, 7, 7, 7, 7], 20)
        assert.isTrue(Buffer.from(to.bytes).equals(Buffer.from(expected)))
        assert.deepStrictEqual(stub.calls("cuGraphLaunch")[0]!.args.slice(1), [stream.handle])
        assert.strictEqual(stub.calls("cuGraphLaunch")[0]!.context, 0)
      })
    ))

  it.live("on a default stream is made in its context", () =>
    withGraphs(({ backend, context }) =>
      Effect.gen(function*() {
        const stream = ownStream((yield* CudaStream.defaultStream()).ref)
        const graph = graphOf(backend, [])
        const instance = yield* instanceOf(backend, graph)
        assert.strictEqual(backend.graphs.upload(instance, stream), success)
        assert.strictEqual(backend.graphs.launch(instance, graph, stream), success)
        assert.strictEqual(stub.calls("cuGraphUpload")[0]!.context, context)
        assert.strictEqual(stub.calls("cuGraphLaunch")[0]!.context, context)
      })
    ))

  it.live("records its events, and earlier waits for them go on", () =>
    withGraphs(({ backend, stream }) =>
      Effect.gen(function*() {
        const other = yield* CudaStream.make()
        const events = [yield* CudaEvent.make(), yield* CudaEvent.make()]
        const buffer = deviceMemory(yield* CudaMemory.allocate(8))
        const resources = events.map(({ ref }) => ownEvent(ref))
        const graph = graphOf(
          backend,
          [[record(resources[0]!)], [fill(buffer, 1), 0], [record(resources[1]!), 1]],
          { events: resources }
        )
        const instance = yield* instanceOf(backend, graph)
        stub.work(other)
        yield* CudaEvent.record(events[1]!, other)
        let isOver = false
        const earlier = yield* Effect.forkChild(
          Effect.andThen(CudaEvent.synchronize(events[1]!), Effect.sync(() => isOver = true)),
          { startImmediately: true }
        )
        stub.pending = "copies"
        assert.strictEqual(backend.graphs.launch(instance, graph, ownStream(stream.ref)), success)
        // Only the first has finished, although both are of one stream.
        const second = yield* Effect.forkChild(CudaEvent.synchronize(events[1]!), { startImmediately: true })
        yield* CudaEvent.synchronize(events[0]!)
        assert.isFalse(yield* CudaEvent.query(events[1]!))
        stub.finish(stream)
        yield* Fiber.join(second)
        assert.isFalse(isOver)
        stub.finish(other)
        yield* Fiber.join(earlier)
      })
    ))

  it.live("whose events end in another order than they are recorded in ends only the waits for those", () =>
    withGraphs(({ backend, stream }) =>
      Effect.gen(function*() {
        const events = [yield* CudaEvent.make(), yield* CudaEvent.make()]
        const resources = events.map(({ ref }) => ownEvent(ref))
        const buffer = deviceMemory(yield* CudaMemory.allocate(8))
        const graph = graphOf(
          backend,
          [[fill(buffer, 1)], [record(resources[0]!), 0], [record(resources[1]!)]],
          { events: resources }
        )
        const instance = yield* instanceOf(backend, graph)
        stub.pending = "copies"
        assert.strictEqual(backend.graphs.launch(instance, graph, ownStream(stream.ref)), success)
        const first = yield* Effect.forkChild(CudaEvent.synchronize(events[0]!), { startImmediately: true })
        yield* CudaEvent.synchronize(events[1]!)
        assert.isUndefined(first.pollUnsafe())
        stub.finish(stream)
        yield* Fiber.join(first)
      })
    ))

  it.live("that fails names its call", () =>
    withGraphs(({ backend, stream }) =>
      Effect.gen(function*() {
        const graph = graphOf(backend, [])
        const instance = yield* instanceOf(backend, graph)
        stub.fail("cuGraphLaunch", 2)
        assert.strictEqual(backend.graphs.launch(instance, graph, ownStream(stream.ref)), 2)
        assert.strictEqual(backend.call, "cuGraphLaunch")
      })
    ))
})

describe("binding", () => {
  it.live("writes the addresses and values of a launch, and then those that changed", () =>
    withGraphs(({ backend, context }) =>
      Effect.gen(function*() {
        const { put } = yield* kernels
        const memory = devicePlaceholder(slotOf(backend), 64, 0)
        const work = launch(put, { grid: 2, block: 3 }, [yield* CudaMemory.allocate(4), 5], {
          scalars: [{ index: 1, scalar: "u32", at: 8 }]
        })
        if (work.kind !== "kernel") return
        const pointers = work.pointers.map((pointer) => ({ ...pointer, memory, offset: 4 }))
        const graph = graphOf(backend, [[{ ...work, pointers }]], {
          slots: 1,
          parameters: [["to", { parameter: "device", element: undefined, byteLength: 64 }], [
            "value",
            CudaParameter.u32
          ]]
        })
        const instance = yield* instanceOf(backend, graph)
        const buffer = yield* CudaMemory.allocate(64)
        instance.bindings.set(0, { memory: deviceMemory(buffer), offset: 16 })
        instance.bindings.scalars[1] = 99
        assert.strictEqual(bind(backend, instance, graph), success)
        const far = new DeviceMemoryResource(backend, 0x7f12_3456_7000 as Address, 64, 0)
        instance.bindings.set(0, { memory: far, offset: 24 })
        instance.bindings.scalars[1] = 100
        assert.strictEqual(bind(backend, instance, graph), success)
        const [set, again] = argumentsOf("cuGraphExecKernelNodeSetParams_v2")
        const [added] = argumentsOf("cuGraphAddKernelNode_v2")
        const [exec] = argumentsOf("cuGraphInstantiateWithParams").map((args) => args.at(-1))
        assert.deepStrictEqual(set, [
          exec!,
          added!.at(-1)!,
          added![0]!,
          2,
          1,
          1,
          3,
          1,
          1,
          0,
          context,
          hex(BigUint64Array.of(BigInt(buffer.address + 20))),
          hex(Uint32Array.of(99))
        ])
        assert.deepStrictEqual(again, [
          ...set!.slice(0, -2),
          hex(BigUint64Array.of(BigInt(far.address + 28))),
          hex(Uint32Array.of(100))
        ])
      })
    ))

  it.live("changes the launches whose parameters changed, and only those, in any sequence", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const { put } = yield* kernels
        const { u32 } = CudaParameter
        const config = { grid: 1, block: 1 }
        const graph = yield* CudaGraph.recordWith(
          { a: CudaGraph.buffer(64), b: CudaGraph.buffer(64), x: u32, y: u32 },
          ({ a, b, x, y }) =>
            Effect.gen(function*() {
              yield* CudaKernel.launch(put, config, [a, x])
              yield* CudaKernel.launch(put, config, [b, 7])
              yield* CudaKernel.launch(put, config, [CudaMemory.slice(a, 8), y])
            })
        )
        const exec = yield* CudaGraph.instantiate(graph)
        const nodes = argumentsOf("cuGraphAddKernelNode_v2").map((args) => args.at(-1))
        const buffers = yield* Effect.forEach([0, 1, 2], () => CudaMemory.allocate(64))
        const random = makeRandom(1)
        let before: ReadonlyArray<string> = []
        for (let launch = 0; launch < 200; launch++) {
          const [a, b] = [buffers[random(3)]!, buffers[random(3)]!]
          const [x, y] = [random(2), random(2)]
          stub.clear()
          yield* CudaGraph.launch(exec, { a, b, x, y }, stream)
          const launches = [[a.address, x], [b.address, 7], [a.address + 8, y]].map(([to, value]) =>
            [hex(BigUint64Array.of(BigInt(to!))), hex(Uint32Array.of(value!))].join(" ")
          )
          const expected = launches.flatMap((own, index) => own === before[index] ? [] : [`${nodes[index]} ${own}`])
          const calls = argumentsOf("cuGraphExecKernelNodeSetParams_v2")
          const set = calls.map((args) => [args[1], args.at(-2), args.at(-1)].join(" "))
          assert.deepStrictEqual(set.toSorted(), expected.toSorted(), `launch ${launch}`)
          before = launches
        }
      })
    ))

  it.live("moves fills and copies, whose contents then change", () =>
    withGraphs(({ backend, stream }) =>
      Effect.gen(function*() {
        const slot = slotOf(backend)
        const placeholder = devicePlaceholder(slot, 64, 0)
        const host = yield* CudaMemory.allocateHost(64)
        const transfer = {
          to: ownMemory(host.ref),
          toOffset: 0,
          from: placeholder,
          fromOffset: 8,
          byteLength: 16
        }
        const graph = graphOf(backend, [[fill(placeholder, 3, { count: 16, offset: 8 })], [
          { kind: "copy", transfer },
          0
        ]], {
          slots: 1
        })
        const buffers = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(128)]
        const bindings = new Bindings(graph)
        bindings.set(0, { memory: deviceMemory(buffers[0]!), offset: 0 })
        const instance = yield* instanceOf(backend, graph, bindings)
        yield* CudaMemory.fill(buffers[0]!, 0, stream)
        bindings.set(0, { memory: deviceMemory(buffers[1]!), offset: 64 })
        assert.strictEqual(bind(backend, instance, graph), success)
        assert.strictEqual(backend.graphs.launch(instance, graph, ownStream(stream.ref)), success)
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual(Array.from(host.bytes.subarray(0, 16)), Array<number>(16).fill(3))
        assert.strictEqual(argumentsOf("cuGraphExecMemsetNodeSetParams")[0]![2], buffers[1]!.address + 72)
        assert.strictEqual(argumentsOf("cuGraphExecMemcpyNodeSetParams")[0]![6], buffers[1]!.address + 72)
      })
    ))

  it.live("makes no call for a copy that is now split in another way, or of rows", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const placeholder = hostPlaceholder(slotOf(backend), 200)
        const host = yield* CudaMemory.allocateHost(2 * segment)
        const buffer = deviceMemory(yield* CudaMemory.allocate(400))
        const ends = { to: buffer, toOffset: 0, from: placeholder, fromOffset: 0 }
        const rows: ReadonlyArray<NodeRow> = [
          [{ kind: "copy", transfer: { ...ends, byteLength: 200 } }],
          [{ kind: "copy2D", transfer: { ...ends, toPitch: 50, fromPitch: 40, width: 30, height: 5 } }]
        ]
        const graph = graphOf(backend, rows, { slots: 1 })
        const instance = yield* instanceOf(backend, graph)
        instance.bindings.set(0, { memory: ownMemory(host.ref), offset: segment - 100 })
        for (const node of graph.nodes) {
          assert.strictEqual(bind(backend, instance, graph, [node]), statuses.GraphExecUpdateFailure.code)
          assert.strictEqual(backend.call, "cuGraphExecMemcpyNodeSetParams")
        }
        assert.lengthOf(stub.calls("cuGraphExecMemcpyNodeSetParams"), 0)
      })
    ))

  it.live("does nothing for a record", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const event = ownEvent((yield* CudaEvent.make()).ref)
        const graph = graphOf(backend, [[record(event)]], { events: [event] })
        const instance = yield* instanceOf(backend, graph)
        stub.clear()
        assert.strictEqual(bind(backend, instance, graph), success)
        assert.lengthOf(stub.calls(), 0)
      })
    ))
})

describe("updating", () => {
  it.live("applies another graph, and later bindings name the first one's nodes", () =>
    withGraphs(({ backend, stream }) =>
      Effect.gen(function*() {
        const placeholder = devicePlaceholder(slotOf(backend), 64, 0)
        const host = yield* CudaMemory.allocateHost(4)
        const [one, two] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
        const made = (value: number) =>
          graphOf(backend, [
            [fill(placeholder, value, { count: 4 })],
            [{
              kind: "copy",
              transfer: { to: ownMemory(host.ref), toOffset: 0, from: placeholder, fromOffset: 0, byteLength: 4 }
            }, 0]
          ], { slots: 1 })
        const first = made(1)
        const bindings = new Bindings(first)
        bindings.set(0, { memory: deviceMemory(one), offset: 0 })
        const instance = yield* instanceOf(backend, first, bindings)
        const second = made(2)
        const others = new Bindings(second)
        others.set(0, { memory: deviceMemory(one), offset: 0 })
        assert.strictEqual(backend.graphs.update(instance, second, others), success)
        assert.strictEqual(instance.bindings, others)
        assert.strictEqual(stub.live.graphs, 1)
        others.set(0, { memory: deviceMemory(two), offset: 0 })
        assert.strictEqual(bind(backend, instance, second), success)
        assert.strictEqual(backend.graphs.launch(instance, second, ownStream(stream.ref)), success)
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual(Array.from(host.bytes), [2, 2, 2, 2])
      })
    ))

  it.live("is refused for other nodes or edges, with the node", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const memory = deviceMemory(yield* CudaMemory.allocate(64))
        const event = ownEvent((yield* CudaEvent.make()).ref)
        const instance = yield* instanceOf(backend, graphOf(backend, [[fill(memory, 1)], [fill(memory, 2), 0]]))
        const refused = (rows: ReadonlyArray<NodeRow>) => {
          const graph = graphOf(backend, rows)
          assert.strictEqual(backend.graphs.update(instance, graph, new Bindings(graph)), 910)
          assert.strictEqual(backend.call, "cuGraphExecUpdate")
          return backend.graphs.refusal
        }
        assert.deepStrictEqual(refused([[fill(memory, 1)], [fill(memory, 2)]]), {
          why: "its nodes are connected in another way",
          node: 1
        })
        assert.deepStrictEqual(refused([[record(event)], [fill(memory, 2), 0]]), {
          why: "a node is of another kind",
          node: 0
        })
        assert.deepStrictEqual(refused([[fill(memory, 1)], [fill(memory, 2), 0], [fill(memory, 3), 1]]), {
          why: "it has more nodes",
          node: 2
        })
        assert.deepStrictEqual(refused([[fill(memory, 1)]]), {
          why: "its nodes are connected in another way",
          node: undefined
        })
        stub.refuseGraph(7, 1)
        stub.fail("cuGraphExecUpdate_v2", 910)
        assert.deepStrictEqual(refused([[fill(memory, 1)], [fill(memory, 2), 0]]), {
          why: "a node has another kernel, which an update cannot apply",
          node: 1
        })
        assert.strictEqual(stub.live.graphs, 1)
      })
    ))
})

describe("updating without a call", () => {
  const refusedWithoutCall = (
    backend: NativeBackend,
    rows: readonly [before: ReadonlyArray<NodeRow>, after: ReadonlyArray<NodeRow>]
  ) =>
    Effect.gen(function*() {
      const [before, after] = rows.map((nodes) => graphOf(backend, nodes))
      const instance = yield* instanceOf(backend, before!)
      assert.strictEqual(backend.graphs.update(instance, after!, new Bindings(after!)), 910)
      assert.lengthOf(stub.calls("cuGraphExecUpdate_v2"), 0)
      assert.strictEqual(stub.live.graphs, 1)
      return backend.graphs.refusal
    })

  it.live("is refused for a copy that is split in another way", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        const host = yield* CudaMemory.allocateHost(2 * segment)
        const from = (fromOffset: number): NodeRow => [copy(buffer, host, 64, { fromOffset })]
        assert.deepStrictEqual(yield* refusedWithoutCall(backend, [[from(0)], [from(segment - 10)]]), {
          why: "a copy is split in another way",
          node: 0
        })
      })
    ))

  it.live("is refused if only one graph has launches with priorities", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        const { nothing } = yield* kernels
        const at = (priority: number): NodeRow => [launch(nothing, { grid: 1, block: 1 }, [], { priority })]
        assert.deepStrictEqual(yield* refusedWithoutCall(backend, [[at(0)], [at(-1)]]), {
          why: "only one of the graphs has launches with priorities",
          node: undefined
        })
      })
    ))
})

describe("enabling", () => {
  it.live("is set for every piece of a node, and refused for a record", () =>
    withGraphs(({ backend, stream }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(2 * segment)
        const host = yield* CudaMemory.allocateHost(2 * segment)
        const event = ownEvent((yield* CudaEvent.make()).ref)
        const graph = graphOf(
          backend,
          [[fill(deviceMemory(buffer), 5, { count: 4 })], [copy(host, buffer, 2 * segment), 0], [record(event)]],
          { events: [event] }
        )
        const instance = yield* instanceOf(backend, graph)
        const set = (index: number, enabled: boolean) =>
          backend.graphs.setEnabled(instance, graph.nodes[index]!, enabled)
        const launched = Effect.andThen(
          Effect.sync(() => assert.strictEqual(backend.graphs.launch(instance, graph, ownStream(stream.ref)), success)),
          CudaStream.synchronize(stream)
        )
        assert.strictEqual(set(1, false), success)
        const pieces = argumentsOf("cuGraphAddMemcpyNode").map((args) => args.at(-1))
        assert.deepStrictEqual(argumentsOf("cuGraphNodeSetEnabled").map((args) => args.slice(1)), [
          [pieces[0], 0],
          [pieces[1], 0]
        ])
        yield* launched
        assert.strictEqual(host.bytes[0], 0)
        assert.strictEqual(set(1, true), success)
        yield* launched
        assert.strictEqual(host.bytes[0], 5)
        assert.strictEqual(set(2, false), statuses.InvalidValue.code)
        assert.strictEqual(backend.call, "cuGraphNodeSetEnabled")
      })
    ))
})

describe("instantiating", () => {
  const failing = (backend: NativeBackend, name: StubFunctionName, status: number) =>
    Effect.gen(function*() {
      const { nothing } = yield* kernels
      const memory = deviceMemory(yield* CudaMemory.allocate(8))
      const host = yield* CudaMemory.allocateHost(8)
      const buffer = yield* CudaMemory.allocate(8)
      const event = ownEvent((yield* CudaEvent.make()).ref)
      const one = { grid: 1, block: 1 }
      const graph = graphOf(backend, [
        [launch(nothing, { ...one, cooperative: true }, [])],
        [launch(nothing, one, [], { startsEarly: true }), 0],
        [fill(memory, 1), 1],
        [copy(buffer, host, 8), 2],
        [record(event), 3]
      ])
      stub.fail(name, status)
      assert.strictEqual(backend.graphs.instantiate(graph, new Bindings(graph)), status)
      assert.strictEqual(backend.call, name.replace(/(WithParams|_v2)$/, ""))
      assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [0, 0])
      return backend.graphs.refusal
    })

  const nodeOf: ReadonlyArray<readonly [StubFunctionName, number]> = [
    ["cuGraphAddKernelNode_v2", 0],
    ["cuGraphKernelNodeSetAttribute", 0],
    ["cuGraphAddDependencies_v2", 1],
    ["cuGraphAddMemsetNode", 2],
    ["cuGraphAddMemcpyNode", 3],
    ["cuGraphAddEventRecordNode", 4]
  ]
  for (const [name, node] of nodeOf) {
    it.live(`destroys the graph if ${name} fails, and names the node`, () =>
      withGraphs(({ backend }) =>
        Effect.gen(function*() {
          assert.deepStrictEqual(yield* failing(backend, name, 1), { why: "the driver did not accept a node", node })
          assert.isUndefined(yield* failing(backend, name, 2))
        })
      ))
  }

  it.live("destroys nothing if cuGraphCreate fails", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        assert.isUndefined(yield* failing(backend, "cuGraphCreate", 2))
        assert.lengthOf(stub.calls("cuGraphDestroy"), 0)
      })
    ))

  it.live("destroys the graph if cuGraphInstantiateWithParams fails, and says why", () =>
    withGraphs(({ backend }) =>
      Effect.gen(function*() {
        stub.refuseGraph(3, 2)
        assert.deepStrictEqual(yield* failing(backend, "cuGraphInstantiateWithParams", 801), {
          why: "it contains an operation that graphs do not support",
          node: 2
        })
        stub.refuseGraph(1, -1)
        assert.isUndefined(yield* failing(backend, "cuGraphInstantiateWithParams", 2))
      })
    ))
})

describe("destroying", () => {
  for (
    const [name, call] of [["cuGraphExecDestroy", "cuGraphExecDestroy"], ["cuGraphDestroy", "cuGraphDestroy"]] as const
  ) {
    it.live(`makes both calls, and reports that ${name} failed`, () =>
      withGraphs(
        ({ backend }) =>
          Effect.gen(function*() {
            const graph = graphOf(backend, [])
            yield* Effect.sync(() =>
              assert.strictEqual(backend.graphs.instantiate(graph, new Bindings(graph)), success)
            )
            stub.fail(name, 1)
            assert.strictEqual(backend.graphs.destroy(backend.graphs.made!), 1)
            assert.strictEqual(backend.call, call)
            assert.lengthOf(stub.calls("cuGraphDestroy"), 1)
            assert.lengthOf(stub.calls("cuGraphExecDestroy"), 1)
          }),
        { left: name === "cuGraphDestroy" ? { graphs: 1 } : { graphExecs: 1 } }
      ))
  }
})

const one = { grid: 1, block: 1 }

/** The first byte of a buffer, once the work of a stream is done. */
const firstByte = (buffer: CudaMemory.Slice<DeviceBuffer>, stream: CudaStream.CudaStream) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(1)
    return Effect.map(CudaMemory.download(bytes, CudaMemory.slice(buffer, 0, 1), stream), () => bytes[0]!)
  })

const recordNow = (event: CudaEvent.CudaEvent) =>
  Effect.flatMap(CudaStream.current(), (stream) => CudaEvent.record(event, stream))

/** Device buffers that hold a byte each. */
const filled = (stream: CudaStream.CudaStream, ...values: ReadonlyArray<number>) =>
  Effect.forEach(values, (value) => Effect.tap(CudaMemory.allocate(8), (made) => CudaMemory.fill(made, value, stream)))

describe("a condition", () => {
  it.live("is a kernel that reads the value, a conditional node, and a body that ends with the kernel for a loop", () =>
    withGraphs(({ context }) =>
      Effect.gen(function*() {
        const value = yield* CudaMemory.allocate(8)
        const part = CudaMemory.slice(value, 4, 4)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          yield* CudaMemory.fill(value, 1)
          yield* CudaGraph.whileLoop(part, CudaMemory.fill(value, 0))
          yield* CudaMemory.fill(value, 2)
        }))
        stub.clear()
        yield* CudaGraph.instantiate(graph)
        const whole = argumentsOf("cuGraphCreate")[0]![0]!
        const [create] = argumentsOf("cuGraphConditionalHandleCreate")
        const condition = String(create![0])
        assert.isAbove(Number(condition), Number.MAX_SAFE_INTEGER)
        assert.deepStrictEqual(create!.slice(1), [whole, context, 0, 0])
        const [before, inside, after] = argumentsOf("cuGraphAddMemsetNode").map((args) => args.slice(6))
        const [first, again] = argumentsOf("cuGraphAddKernelNode_v2").map((args) => args.slice(7))
        const [added] = argumentsOf("cuGraphAddNode_v2")
        const body = inside![0]!
        const passed = [
          context,
          hex(BigUint64Array.of(BigInt(condition))),
          hex(BigUint64Array.of(BigInt(value.address + 4))),
          hex(Uint32Array.of(0)),
          hex(Uint32Array.of(1))
        ]
        assert.deepStrictEqual(first!.slice(1, -1), [...passed, whole, String(before!.at(-1))])
        assert.deepStrictEqual(added!.slice(0, -1), [13, condition, 1, 1, context, whole, String(first!.at(-1))])
        assert.notStrictEqual(body, whole)
        assert.strictEqual(inside![1], "")
        assert.deepStrictEqual(again!.slice(1, -1), [...passed, body, String(inside!.at(-1))])
        assert.deepStrictEqual(after!.slice(0, -1), [whole, String(added!.at(-1))])
      })
    ))

  it.live("of several bodies passes the value to all of them before the first runs", () =>
    withGraphs(() =>
      Effect.gen(function*() {
        const value = yield* CudaMemory.allocate(8)
        const bodies = Array.from({ length: 5 }, (_, byte) => CudaMemory.fill(value, byte))
        const graph = yield* CudaGraph.record(
          Effect.andThen(CudaGraph.match(value, bodies), CudaMemory.fill(value, 9))
        )
        yield* CudaGraph.instantiate(graph)
        const setters = argumentsOf("cuGraphAddKernelNode_v2")
        const branches = argumentsOf("cuGraphAddNode_v2")
        assert.deepStrictEqual(
          setters.map((args) => args.slice(11, 13)),
          [0, 1, 2, 3, 4].map((index) => [
            hex(Uint32Array.of(index)),
            hex(Uint32Array.of(0))
          ])
        )
        const all = setters.map((args) => args.at(-1)).join(",")
        assert.isTrue(branches.every((args) => args.at(-2) === all && args[2] === 0))
        // What follows comes after all of them, through an empty node.
        const [join] = argumentsOf("cuGraphAddEmptyNode")
        assert.strictEqual(join!.at(-2), branches.map((args) => args.at(-1)).join(","))
        assert.strictEqual(argumentsOf("cuGraphAddMemsetNode").at(-1)!.at(-2), String(join!.at(-1)))
      })
    ))

  it.live("chooses what runs at each launch, also in bodies of others and with values given at a launch", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const [yes, no, results] = yield* filled(stream, 1, 0, 0)
        const result = (index: number) => CudaMemory.slice(results!, index, 1)
        const graph = yield* CudaGraph.recordWith(
          { outer: CudaGraph.buffer(8), inner: CudaGraph.buffer(8), seen: CudaGraph.buffer(8) },
          ({ inner, outer, seen }) =>
            Effect.gen(function*() {
              const left = yield* CudaMemory.allocate(8)
              yield* CudaMemory.fill(results!, 0)
              yield* CudaMemory.copy(left, outer)
              yield* CudaGraph.whileLoop(
                left,
                Effect.gen(function*() {
                  yield* CudaMemory.copy(seen, left)
                  yield* CudaGraph.when(inner, CudaMemory.fill(result(0), 1), CudaMemory.fill(result(0), 2))
                  yield* CudaMemory.fill(left, 0)
                })
              )
              yield* CudaGraph.when(left, CudaMemory.fill(result(1), 1), CudaMemory.fill(result(1), 2))
            })
        )
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        const [seen, unseen] = yield* filled(stream, 7, 7)
        const launched = (outer: DeviceBuffer, inner: DeviceBuffer, seen: DeviceBuffer) =>
          Effect.andThen(
            CudaGraph.launch(exec, { outer, inner, seen }, stream),
            Effect.all([firstByte(result(0), stream), firstByte(result(1), stream), firstByte(seen, stream)])
          )
        assert.deepStrictEqual(yield* launched(no!, yes!, unseen!), [0, 2, 7])
        assert.deepStrictEqual(yield* launched(yes!, yes!, seen!), [1, 2, 1])
        assert.deepStrictEqual(yield* launched(yes!, no!, unseen!), [2, 2, 1])
        assert.strictEqual(stub.live.graphs, 2)
        assert.lengthOf(stub.calls("cuGraphInstantiateWithParams"), 2)
      })
    ))

  it.live("is replaced, not updated, and makes an instance anew with another graph", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const [value, result] = yield* filled(stream, 1, 0)
        const graph = yield* CudaGraph.recordWith(
          { value: CudaGraph.buffer(8) },
          ({ value }) => CudaGraph.when(value, CudaMemory.fill(result!, 3))
        )
        const exec = yield* CudaGraph.instantiate(graph)
        yield* failsWith(CudaGraph.update(exec, graph), "GraphRefused")
        assert.lengthOf(stub.calls("cuGraphExecUpdate_v2"), 0)
        yield* CudaGraph.updateOrReplace(exec, graph)
        stub.fail("cuGraphExecKernelNodeSetParams_v2", 1)
        yield* CudaGraph.launch(exec, { value: value! }, stream)
        assert.strictEqual(yield* firstByte(result!, stream), 3)
        assert.lengthOf(stub.calls("cuGraphInstantiateWithParams"), 3)
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [1, 1])
      })
    ))

  it.live("needs an aligned value, also if it is a parameter", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(16)
        const graph = yield* CudaGraph.recordWith(
          { value: CudaGraph.buffer(4) },
          ({ value }) => CudaGraph.when(value, Effect.void)
        )
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaGraph.launch(exec, { value: CudaMemory.slice(buffer, 4, 4) }, stream)
        const value = CudaMemory.slice(buffer, 2, 4)
        yield* refuses(CudaGraph.launch(exec, { value }, stream), "values.value.offset")
        yield* refuses(CudaGraph.record(CudaGraph.embed(graph, { value })), "values.value.offset")
      })
    ))

  for (const missing of ["cuGraphConditionalHandleCreate", "cuGraphAddNode_v2"] as const) {
    it.live(`is refused by a driver without ${missing}`, () => {
      const old = copyStub([`${missing}=stub_hidden`])
      return withGraphs(
        ({ stream }) =>
          Effect.gen(function*() {
            const value = yield* CudaMemory.allocate(4)
            const loop = CudaGraph.whileLoop(value, CudaMemory.fill(value, 0))
            const error = yield* Effect.flip(CudaGraph.record(loop))
            assert.deepStrictEqual(error.reason, { _tag: "FunctionMissing", functionName: missing })
            assert.strictEqual(error.operation, "CudaGraph.whileLoop")
            assert.lengthOf(old.calls("cuLibraryLoadData"), 0)
            // Run directly, it needs neither, and nothing is being recorded any more.
            yield* CudaMemory.fill(value, 1, stream)
            yield* CudaStream.withStream(loop, stream)
            yield* CudaStream.synchronize(stream)
          }),
        {},
        old
      )
    })
  }

  it.live("loads its kernel once, and tries again after a failure", () =>
    withGraphs(() =>
      Effect.gen(function*() {
        const value = yield* CudaMemory.allocate(4)
        const both = CudaGraph.record(
          Effect.andThen(CudaGraph.when(value, CudaMemory.fill(value, 0)), CudaGraph.whileLoop(value, Effect.void))
        )
        // The loader asks for a kernel that cannot exist, and then for the one that is needed.
        for (const after of [0, 1]) {
          stub.fail("cuLibraryGetKernel", 2, { after })
          const error = yield* Effect.flip(both)
          assert.deepStrictEqual([error.operation, error.call], ["CudaGraph.when", "cuLibraryGetKernel"])
        }
        yield* both
        yield* both
        const loads = stub.calls("cuLibraryLoadData").length
        yield* CudaGraph.instantiate(yield* both)
        assert.lengthOf(stub.calls("cuLibraryLoadData"), loads)
        // Libraries are unloaded in a later turn of the event loop.
        yield* until("one library is left", () => stub.live.libraries === 1)
      })
    ))
})

describe("a launch with other values", () => {
  /** A graph that copies one parameter to the other, and fills a buffer. */
  const copying = (other: DeviceBuffer) =>
    CudaGraph.recordWith(
      { to: CudaGraph.buffer(8), from: CudaGraph.buffer(8) },
      ({ from, to }) =>
        Effect.gen(function*() {
          yield* CudaMemory.copy(to, from)
          yield* CudaMemory.fill(other, 5)
        })
    )

  const prepared = (stream: CudaStream.CudaStream) =>
    Effect.gen(function*() {
      const [a, b, to, other] = yield* filled(stream, 1, 2, 0, 0)
      const exec = yield* CudaGraph.instantiate(yield* copying(other!))
      yield* CudaGraph.setEnabled(exec, 1, false)
      const launched = (from: DeviceBuffer) => CudaGraph.launch(exec, { to: to!, from }, stream)
      yield* launched(a!)
      return { b: b!, to: to!, other: other!, exec, launched }
    })

  for (const status of [1, statuses.GraphExecUpdateFailure.code]) {
    it.live(`makes the instance anew if the driver answers ${status}, with its disabled nodes`, () =>
      withGraphs(({ stream }) =>
        Effect.gen(function*() {
          const { b, launched, other, to } = yield* prepared(stream)
          stub.fail("cuGraphExecMemcpyNodeSetParams", status)
          yield* launched(b)
          assert.deepStrictEqual([yield* firstByte(to, stream), yield* firstByte(other, stream)], [2, 0])
          assert.lengthOf(stub.calls("cuGraphInstantiateWithParams"), 2)
          assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [1, 1])
        })
      ))
  }

  const steps: ReadonlyArray<StubFunctionName> = [
    "cuCtxPushCurrent_v2",
    "cuGraphCreate",
    "cuGraphAddMemcpyNode",
    "cuGraphInstantiateWithParams",
    "cuGraphNodeSetEnabled"
  ]
  for (const fails of steps) {
    it.live(`keeps the instance usable if it cannot be made anew because of ${fails}`, () =>
      withGraphs(({ stream }) =>
        Effect.gen(function*() {
          const { b, launched, other, to } = yield* prepared(stream)
          stub.fail("cuGraphExecMemcpyNodeSetParams", 1)
          stub.fail(fails, 2)
          const error = yield* Effect.flip(launched(b))
          assert.deepStrictEqual(
            [error.operation, error.reason._tag, error.call],
            ["CudaGraph.launch", "OutOfMemory", fails.replace(/(WithParams|_v2)$/, "")]
          )
          assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [1, 1])
          assert.strictEqual(yield* firstByte(to, stream), 1)
          yield* launched(b)
          assert.deepStrictEqual([yield* firstByte(to, stream), yield* firstByte(other, stream)], [2, 0])
        })
      ))
  }

  it.live("that fails for another reason is not a refusal because an update was refused before", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const { b, exec, launched, to } = yield* prepared(stream)
        const other = yield* CudaGraph.recordWith(
          { to: CudaGraph.buffer(8), from: CudaGraph.buffer(8) },
          ({ from, to }) => CudaMemory.copy(to, from)
        )
        yield* failsWith(CudaGraph.update(exec, other), "GraphRefused")
        stub.fail("cuGraphExecMemcpyNodeSetParams", 2)
        yield* failsWith(launched(b), "OutOfMemory")
        yield* launched(b)
        assert.strictEqual(yield* firstByte(to, stream), 2)
      })
    ))
})

describe("a copy between devices", () => {
  const twoDevices = { prepare: () => void (stub.devices = 2) }

  it.live("makes each pool of the other device accessible, whenever a graph is instantiated or updated", () =>
    withGraphs(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ device: 1 })
        const [to, beside] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
        const from = yield* CudaMemory.allocate(64, { device: 1 })
        const own = yield* CudaMemory.allocate(64, { device: 1, pool })
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const stream = yield* CudaStream.current()
          yield* CudaMemory.copy(to, from, stream)
          yield* CudaMemory.copy(own, beside, stream)
        }))
        assert.lengthOf(argumentsOf("cuMemPoolSetAccess"), 0)
        const exec = yield* CudaGraph.instantiate(graph)
        const pools = argumentsOf("cuMemAllocFromPoolAsync").slice(-2).map((args) => args[2])
        const expected = pools.map((pool) => [pool, 0, 3])
        assert.deepStrictEqual(argumentsOf("cuMemPoolSetAccess").toSorted(), expected.toSorted())
        yield* CudaGraph.update(exec, graph)
        assert.lengthOf(argumentsOf("cuMemPoolSetAccess"), 4)
      }), twoDevices))
})

describe("several instances", () => {
  const filling = (buffer: DeviceBuffer, value: number) => CudaGraph.record(CudaMemory.fill(buffer, value))

  it.live("are all updated, or none if one is refused", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const [buffer] = yield* filled(stream, 0)
        const exec = yield* CudaGraph.instantiate(yield* filling(buffer!, 1), { instances: 3 })
        const other = yield* filling(buffer!, 2)
        const results = Effect.forEach(
          [0, 1, 2],
          () => Effect.andThen(CudaGraph.launch(exec, stream), firstByte(buffer!, stream))
        )
        stub.refuseGraph(5, 0)
        stub.fail("cuGraphExecUpdate_v2", statuses.GraphExecUpdateFailure.code, { after: 2 })
        const reason = yield* failsWith(CudaGraph.update(exec, other), "GraphRefused")
        assert.deepInclude(reason, {
          because: "the parameters of a node changed in a way that an update cannot apply",
          nodeIndex: 0
        })
        const updated = argumentsOf("cuGraphExecUpdate_v2").map(([exec]) => exec)
        assert.lengthOf(updated, 5)
        assert.deepStrictEqual(updated.slice(3), updated.slice(0, 2))
        assert.deepStrictEqual(yield* results, [1, 1, 1])
        yield* CudaGraph.update(exec, other)
        assert.deepStrictEqual(yield* results, [2, 2, 2])
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [3, 3])
      })
    ))

  it.live("stay as they are if one of their replacements cannot be made", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const [buffer] = yield* filled(stream, 0)
        const exec = yield* CudaGraph.instantiate(yield* filling(buffer!, 1), { instances: 3 })
        const other = yield* CudaGraph.record(
          Effect.andThen(CudaMemory.fill(buffer!, 2), CudaMemory.fill(buffer!, 3))
        )
        stub.fail("cuGraphInstantiateWithParams", 2, { after: 1 })
        const error = yield* Effect.flip(CudaGraph.updateOrReplace(exec, other))
        assert.deepStrictEqual([error.operation, error.call], ["CudaGraph.updateOrReplace", "cuGraphInstantiate"])
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs, exec.nodes.length], [3, 3, 1])
        yield* CudaGraph.launch(exec, stream)
        assert.strictEqual(yield* firstByte(buffer!, stream), 1)
        yield* CudaGraph.updateOrReplace(exec, other)
        yield* CudaGraph.launch(exec, stream)
        assert.strictEqual(yield* firstByte(buffer!, stream), 3)
      })
    ))

  it.live("are made anew if an update of one fails and the others cannot go back, and end if that fails too", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const [buffer] = yield* filled(stream, 0)
        const [first, second] = [yield* filling(buffer!, 1), yield* filling(buffer!, 2)]
        const exec = yield* CudaGraph.instantiate(first, { instances: 3 })
        const ran = Effect.forEach([0, 1, 2], () =>
          Effect.andThen(CudaGraph.launch(exec, stream), firstByte(buffer!, stream)))
        // The third instance is refused, and then the first one, on its way back.
        stub.fail("cuGraphExecUpdate_v2", 910, { after: 2, times: 2 })
        yield* failsWith(CudaGraph.update(exec, second), "GraphExecUpdateFailure")
        assert.deepStrictEqual(yield* ran, [1, 1, 1])
        assert.strictEqual(stub.live.graphExecs, 3)
        stub.fail("cuGraphExecUpdate_v2", 910, { after: 2, times: 2 })
        stub.fail("cuGraphInstantiateWithParams", 2)
        const { lines } = yield* logged(failsWith(CudaGraph.update(exec, second), "GraphExecUpdateFailure"))
        assert.lengthOf(lines, 1)
        assert.strictEqual(stub.live.graphExecs, 0)
        yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
      })
    ))

  it.live("are all disabled, or none if one fails", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const [buffer] = yield* filled(stream, 0)
        const exec = yield* CudaGraph.instantiate(yield* filling(buffer!, 1), { instances: 3 })
        const ran = Effect.forEach([0, 1, 2], () =>
          Effect.gen(function*() {
            yield* CudaMemory.fill(buffer!, 0, stream)
            yield* CudaGraph.launch(exec, stream)
            return yield* firstByte(buffer!, stream)
          }))
        stub.fail("cuGraphNodeSetEnabled", 2, { after: 2 })
        yield* failsWith(CudaGraph.setEnabled(exec, 0, false), "OutOfMemory")
        assert.deepStrictEqual(yield* ran, [1, 1, 1])
        yield* CudaGraph.setEnabled(exec, 0, false)
        assert.deepStrictEqual(yield* ran, [0, 0, 0])
      })
    ))

  it.live("that are being made when the runtime is released are destroyed before its contexts", () =>
    Effect.gen(function*() {
      stub.reset()
      const ofRuntime = yield* Scope.make()
      const runtime = yield* Scope.provide(NativeRuntime.make({ libraryPath: stub.path }), ofRuntime)
      const graph = yield* Effect.provideService(
        CudaGraph.record(Effect.flatMap(CudaMemory.allocate(8), (scratch) => CudaMemory.fill(scratch, 1))),
        CudaRuntime,
        runtime
      )
      stub.pending = "memory"
      const making = yield* started(Effect.exit(Effect.scoped(CudaGraph.instantiate(graph, { instances: 2 }))))
      stub.finishAll()
      yield* until("the first is made", () => stub.live.graphExecs === 1)
      const closing = yield* started(Scope.close(ofRuntime, Exit.void))
      stub.letGo()
      yield* Fiber.join(closing)
      yield* Fiber.join(making)
      assertReleased(stub)
    }))

  it.live("log a failing release of the memory that stands in for parameters", () =>
    withGraphs(
      () =>
        Effect.gen(function*() {
          const graph = yield* CudaGraph.recordWith({ to: CudaGraph.buffer(8) }, ({ to }) => CudaMemory.fill(to, 1))
          stub.fail("cuMemFreeAsync", 1)
          const { lines } = yield* logged(Effect.scoped(CudaGraph.instantiate(graph, { instances: 3 })))
          assert.strictEqual(lines.length, 1)
          assert.include(lines[0], "cuMemFreeAsync")
          assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [0, 0])
        }),
      { left: { allocations: 1, pools: 1 } }
    ))

  it.live("free the memory that stands in for parameters after it was allocated", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { releases } = yield* tracing(stub).openDevice()
        const graph = yield* CudaGraph.recordWith({ to: CudaGraph.buffer(8) }, ({ to }) => CudaMemory.fill(to, 1))
        stub.pending = "memory"
        const making = yield* started(CudaGraph.instantiate(graph))
        stub.finishAll()
        yield* Fiber.join(making)
        stub.finish({ handle: releases, deviceIndex: 0 })
        stub.letGo()
      })
    ))
})

describe("executable graphs", () => {
  it.live("free their memory after the launches in flight", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const [from, to, flag] = yield* filled(stream, 3, 0, 1)
        const through = Effect.gen(function*() {
          const scratch = yield* CudaMemory.allocate(8)
          yield* CudaMemory.copy(scratch, from!)
          yield* CudaGraph.when(flag!, CudaMemory.copy(to!, scratch))
        })
        const graph = yield* CudaGraph.record(through)
        const scope = yield* Scope.make()
        const exec = yield* Scope.provide(CudaGraph.instantiate(graph, { instances: 2 }), scope)
        const before = stub.live.allocations
        stub.pending = "copies"
        yield* CudaGraph.launch(exec, stream)
        yield* CudaGraph.launch(exec, stream)
        yield* Scope.close(scope, Exit.void)
        assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [0, 0])
        assert.strictEqual(stub.live.allocations, before)
        yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
        stub.pending = "nothing"
        stub.finish(stream)
        assert.strictEqual(yield* firstByte(to!, stream), 3)
        assert.strictEqual(stub.live.allocations, before - 2)
      })
    ))

  it.live("are released with the runtime, and cannot be used after it", () =>
    Effect.gen(function*() {
      stub.reset()
      const [scope, ofRuntime] = [yield* Scope.make(), yield* Scope.make()]
      const runtime = yield* Scope.provide(NativeRuntime.make({ libraryPath: stub.path }), ofRuntime)
      const { exec, graph, stream } = yield* Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [flag] = yield* filled(stream, 1)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const scratch = yield* CudaMemory.allocate(8)
          yield* CudaMemory.fill(scratch, 1)
          yield* CudaGraph.whileLoop(flag!, CudaMemory.fill(flag!, 0))
        }))
        const exec = yield* CudaGraph.instantiate(graph, { instances: 3 })
        yield* CudaGraph.launch(exec, stream)
        return { exec, graph, stream }
      }).pipe(Effect.provideService(CudaRuntime, runtime), Effect.provideService(Scope.Scope, scope))
      const { lines } = yield* logged(Scope.close(ofRuntime, Exit.void))
      assert.deepStrictEqual(lines, [])
      assertReleased(stub)
      assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld)
      const uses = [
        CudaGraph.launch(exec, stream),
        CudaGraph.upload(exec, stream),
        CudaGraph.setEnabled(exec, 0, false),
        CudaGraph.update(exec, graph),
        CudaGraph.updateOrReplace(exec, graph),
        Effect.scoped(CudaGraph.instantiate(graph)),
        Effect.asVoid(Effect.provideService(CudaGraph.record(Effect.void), CudaRuntime, runtime))
      ]
      for (const use of uses) yield* failsWith(Effect.asVoid(use), "ResourceReleased")
      const closed = yield* logged(Scope.close(scope, Exit.void))
      assert.deepStrictEqual(closed.lines, [])
      yield* assertQuiet(stub)
    }))

  it.live("are lost with their context, and what follows names the launch", () =>
    logged(withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const { nothing } = yield* kernels
        const graph = yield* CudaGraph.record(CudaKernel.launch(nothing, one, []))
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        yield* CudaGraph.launch(exec, stream)
        stub.fault = 700
        const first = yield* Effect.flip(CudaGraph.launch(exec, stream))
        assert.deepStrictEqual(
          [first.operation, first.call, first.reason._tag, first.isSticky, first.origin],
          ["CudaGraph.launch", "cuGraphLaunch", "IllegalAddress", true, undefined]
        )
        const later = [
          CudaGraph.launch(exec, stream),
          CudaGraph.upload(exec, stream),
          CudaGraph.setEnabled(exec, 0, false),
          CudaGraph.update(exec, graph),
          CudaGraph.updateOrReplace(exec, graph),
          Effect.scoped(CudaGraph.instantiate(graph)),
          CudaStream.synchronize(stream)
        ]
        for (const use of later) {
          const error = yield* Effect.flip(Effect.asVoid(use))
          assert.deepStrictEqual(
            [error.reason._tag, error.origin?.operation, error.origin?.status.code],
            ["IllegalAddress", "CudaGraph.launch", 700],
            error.message
          )
        }
      })
    )))
})

describe("an event that a graph records", () => {
  it.live("counts as recorded from the first launch on, and orders other streams after it", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const other = yield* CudaStream.make()
        const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
        const [from, to] = yield* filled(stream, 4, 0)
        const buffer = yield* CudaMemory.allocate(8)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          yield* recordNow(start)
          yield* CudaMemory.copy(buffer, from!)
          yield* recordNow(end)
        }))
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        assert.isFalse(ownEvent(end.ref).recorded)
        stub.pending = "copies"
        yield* CudaGraph.launch(exec, stream)
        assert.isTrue(ownEvent(end.ref).recorded)
        assert.isFalse(yield* CudaEvent.query(end))
        yield* CudaStream.waitEvent(other, end)
        yield* CudaMemory.copy(to!, buffer, other)
        stub.finish(other)
        assert.isFalse(yield* CudaStream.query(other))
        stub.letGo()
        yield* CudaEvent.synchronize(end)
        assert.isAbove(Duration.toMillis(yield* CudaEvent.elapsedTime(start, end)), 0)
        assert.strictEqual(yield* firstByte(to!, other), 4)
      })
    ))

  it.live("is not recorded by a launch that fails", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const event = yield* CudaEvent.make({ timing: true })
        const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(recordNow(event)))
        stub.fail("cuGraphLaunch", 2)
        yield* failsWith(CudaGraph.launch(exec, stream), "OutOfMemory")
        assert.isFalse(ownEvent(event.ref).recorded)
        yield* CudaGraph.launch(exec, stream)
        yield* CudaEvent.synchronize(event)
      })
    ))

  it.live("keeps the waits for its earlier records, of streams and of launches", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        const other = yield* CudaStream.make()
        const event = yield* CudaEvent.make({ timing: true })
        const buffer = yield* CudaMemory.allocate(8)
        const graph = yield* CudaGraph.record(Effect.andThen(CudaMemory.fill(buffer, 1), recordNow(event)))
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        stub.work(other)
        yield* CudaEvent.record(event, other)
        const ofStream = yield* started(CudaEvent.synchronize(event))
        stub.pending = "copies"
        yield* CudaGraph.launch(exec, stream)
        const ofFirst = yield* started(CudaEvent.synchronize(event))
        yield* CudaGraph.launch(exec, stream)
        const ofSecond = yield* started(CudaEvent.synchronize(event))
        stub.finish(stream, 1)
        yield* Fiber.join(ofFirst)
        assert.deepStrictEqual([ofStream.pollUnsafe(), ofSecond.pollUnsafe()], [undefined, undefined])
        assert.isFalse(yield* CudaEvent.query(event))
        stub.finish(stream)
        yield* Fiber.join(ofSecond)
        assert.isUndefined(ofStream.pollUnsafe())
        stub.finish(other)
        yield* Fiber.join(ofStream)
      })
    ))

  it.live("ends its waits when the graph and the event are released during a launch", () =>
    withGraphs(({ stream }) =>
      Effect.gen(function*() {
        stub.pending = "copies"
        const waiting = yield* Effect.scoped(Effect.gen(function*() {
          const event = yield* CudaEvent.make({ timing: true })
          const buffer = yield* CudaMemory.allocate(8)
          const graph = yield* CudaGraph.record(Effect.andThen(CudaMemory.fill(buffer, 1), recordNow(event)))
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), stream)
          return yield* Effect.forkDetach(CudaEvent.synchronize(event), { startImmediately: true })
        }))
        assert.isUndefined(waiting.pollUnsafe())
        stub.finish(stream)
        yield* Fiber.join(waiting)
      })
    ))
})

describe("kernels of a recorded program that may start early", () => {
  const early = (driver: StubDriver) =>
    Effect.gen(function*() {
      const { nothing } = yield* kernels
      const next = CudaKernel.launch(nothing, { ...one, programmatic: true }, [])
      yield* CudaGraph.instantiate(yield* CudaGraph.record(Effect.andThen(next, next)))
      const [first, second] = driver.calls("cuGraphAddKernelNode_v2").map(({ args }) => args)
      return [second!.at(-2), String(first!.at(-1))]
    })

  it.live("are connected by a programmatic edge", () =>
    withGraphs(() =>
      Effect.gen(function*() {
        assert.strictEqual((yield* early(stub))[0], "")
        assert.lengthOf(stub.calls("cuGraphAddDependencies_v2"), 1)
      })
    ))

  it.live("are connected by a plain edge by a driver without such edges", () => {
    const old = copyStub(["cuGraphAddDependencies_v2=stub_hidden"])
    return withGraphs(
      () => Effect.map(early(old), ([before, first]) => assert.strictEqual(before, first)),
      {},
      old
    )
  })
})
