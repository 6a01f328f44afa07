/**
 * Every kind of access with every kind of edge: each access races with another one, unless an edge is between them. On the simulated
 * runtime, and for operations whose order the driver makes, on the native runtime with the stub driver.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import * as CudaBranch from "effect-cuda/CudaBranch"
import * as CudaChecker from "effect-cuda/CudaChecker"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaLibrary from "effect-cuda/CudaLibrary"
import * as CudaMemory from "effect-cuda/CudaMemory"
import type { DeviceBuffer, HostBuffer } from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { refuses } from "../support/assertions.ts"
import { program as kernels } from "../support/kernels.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { simulated } from "./support.ts"

const size = 64

interface Place {
  readonly buffer: DeviceBuffer
  readonly host: HostBuffer
  readonly stream: CudaStream.CudaStream
}

type Needs = CudaRuntime | Scope.Scope
type Access = (place: Place) => Effect.Effect<void, CudaError, Needs>

const { array, input, output, pointer, struct, u32 } = CudaParameter

const library = CudaLibrary.define({
  name: "checked",
  files: () => ["libchecked.so"],
  wheels: [],
  statuses: {},
  functions: {
    fill: CudaLibrary.func([output, u32, CudaLibrary.stream], { enqueues: true, simulate: () => 0 }),
    read: CudaLibrary.func([input, CudaLibrary.stream], { enqueues: true, simulate: () => 0 })
  }
})

const nothing = () => {}

/** Kernels that do nothing but have parameters that say they do. */
const declared = {
  inStruct: [struct({ count: u32, to: output })],
  inArray: [array(pointer, 1)],
  reads: [input]
} as const

const launch = <Name extends keyof typeof declared>(name: Name) =>
  Effect.gen(function*() {
    const module = yield* CudaModule.load(yield* kernels)
    return yield* CudaKernel.get(module, name, declared[name])
  })

const one = { grid: 1, block: 1 }

const writes: Record<string, Access> = {
  fill: ({ buffer, stream }) => CudaMemory.fill(buffer, 1, stream),
  "fill of a part": ({ buffer, stream }) => CudaMemory.fill32(CudaMemory.slice(buffer, 8, 4), 1, stream),
  "copy to": ({ buffer, host, stream }) => CudaMemory.copy(buffer, host, stream),
  "copy of rows": ({ buffer, host, stream }) =>
    CudaMemory.copy2D(CudaMemory.rows(buffer, 16), CudaMemory.rows(host, 16), { width: 12, height: 4 }, stream),
  "copy of a batch": ({ buffer, host, stream }) =>
    CudaMemory.copyBatch([
      { destination: CudaMemory.slice(buffer, 0, 16), source: CudaMemory.slice(host, 0, 16) },
      { destination: CudaMemory.slice(buffer, 32, 16), source: CudaMemory.slice(host, 32, 16) }
    ], stream),
  upload: ({ buffer, stream }) => CudaMemory.upload(buffer, new Uint8Array(size), stream),
  "launch, in a struct": ({ buffer, stream }) =>
    Effect.flatMap(launch("inStruct"), (kernel) => CudaKernel.launch(kernel, one, [{ count: 1, to: buffer }], stream)),
  "launch, in an array": ({ buffer, stream }) =>
    Effect.flatMap(launch("inArray"), (kernel) => CudaKernel.launch(kernel, one, [[buffer]], stream)),
  enqueue: ({ buffer, stream }) => CudaMemory.enqueue({ writes: [buffer], stream, simulate: nothing }, nothing),
  "call of a library": ({ buffer, stream }) =>
    Effect.flatMap(CudaLibrary.load(library), (loaded) => CudaLibrary.call(loaded, "fill", [buffer, 1], stream)),
  access: ({ buffer, stream }) => CudaMemory.access(Effect.void, { writes: [buffer], stream }),
  capture: ({ buffer, stream }) =>
    CudaStream.withStream(CudaGraph.capture(() => Effect.void, { writes: [buffer], simulate: nothing }), stream),
  "launch of a graph": ({ buffer, stream }) =>
    Effect.gen(function*() {
      const graph = yield* CudaGraph.record(CudaMemory.fill(buffer, 1))
      yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), stream)
    }),
  "launch of a graph, of its parameter": ({ buffer, stream }) =>
    Effect.gen(function*() {
      const graph = yield* CudaGraph.recordWith({ to: CudaGraph.buffer(size) }, ({ to }) => CudaMemory.fill(to, 1))
      yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), { to: buffer }, stream)
    }),
  "buffer over the same memory": ({ buffer, stream }) =>
    Effect.flatMap(
      CudaMemory.fromAddress(buffer.address + 16, 16),
      (part) => CudaMemory.fill(part, 1, stream)
    )
}

const reads: Record<string, Access> = {
  "copy from": ({ buffer, host, stream }) => CudaMemory.copy(host, buffer, stream),
  "launch with an input": ({ buffer, stream }) =>
    Effect.flatMap(launch("reads"), (kernel) => CudaKernel.launch(kernel, one, [buffer], stream)),
  "enqueue that reads": ({ buffer, stream }) =>
    CudaMemory.enqueue({ reads: [buffer], stream, simulate: nothing }, nothing),
  "call of a library that reads": ({ buffer, stream }) =>
    Effect.flatMap(CudaLibrary.load(library), (loaded) => CudaLibrary.call(loaded, "read", [buffer], stream)),
  "access that reads": ({ buffer, stream }) => CudaMemory.access(Effect.void, { reads: [buffer], stream })
}

type Streams = readonly [first: CudaStream.CudaStream, second: CudaStream.CudaStream]

const until = (query: Effect.Effect<boolean, CudaError>): Effect.Effect<void, CudaError> =>
  Effect.flatMap(query, (isDone) => isDone ? Effect.void : Effect.andThen(Effect.sleep(1), until(query)))

const edges: Record<string, (streams: Streams) => Effect.Effect<unknown, CudaError, Needs>> = {
  "an event": ([first, second]) =>
    Effect.gen(function*() {
      const event = yield* CudaEvent.make()
      yield* CudaEvent.record(event, first)
      yield* CudaStream.waitEvent(second, event)
    }),
  "waitStream": ([first, second]) => CudaStream.waitStream(second, first),
  "a third stream": ([first, second]) =>
    Effect.gen(function*() {
      const third = yield* CudaStream.make()
      yield* CudaStream.waitStream(third, first)
      yield* CudaStream.waitStream(second, third)
    }),
  "a fork": ([first, second]) => first.runtime.streamFork(first.ref, [second.ref]),
  "a join": ([first, second]) => first.runtime.streamJoin(second.ref, [first.ref]),
  "branches": ([first, second]) =>
    Effect.gen(function*() {
      yield* CudaStream.withStream(CudaBranch.all([Effect.void, Effect.void]), first)
      yield* CudaStream.waitStream(second, first)
    }),
  "synchronizing the stream": ([first]) => CudaStream.synchronize(first),
  "querying the stream": ([first]) => until(CudaStream.query(first)),
  "synchronizing an event": ([first]) =>
    Effect.flatMap(CudaStream.recordEvent(first), (event) => CudaEvent.synchronize(event)),
  "querying an event": ([first]) =>
    Effect.flatMap(CudaStream.recordEvent(first), (event) => until(CudaEvent.query(event))),
  "the time of an event": ([first]) =>
    Effect.gen(function*() {
      const event = yield* CudaEvent.make({ timing: true })
      yield* CudaEvent.record(event, first)
      yield* until(
        Effect.as(CudaEvent.elapsedTime(event, event), true).pipe(
          Effect.catchReason("CudaError", "NotFinished", () => Effect.succeed(false))
        )
      )
    }),
  "synchronizing the device": () => CudaDevice.synchronize(0),
  "a host function": ([first]) => Effect.flatMap(CudaStream.launchHostFunction(first, Effect.void), Fiber.join),
  "a foreign event": ([first, second]) =>
    Effect.gen(function*() {
      const event = yield* CudaEvent.make()
      yield* CudaEvent.record(event, first)
      yield* CudaStream.waitEvent(second, yield* CudaEvent.fromHandle(event.handle))
    })
}

/** The number of races of two accesses on two streams with an edge between them, or none. */
const racesOf = (first: Access, second: Access, edge?: (typeof edges)[string], ordered = false) =>
  Effect.gen(function*() {
    const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
    const buffer = yield* CudaMemory.allocate(size, { ordered })
    const [own, host] = [yield* CudaMemory.allocateHost(size), yield* CudaMemory.allocateHost(size)]
    yield* first({ buffer, host: own, stream: one })
    if (edge !== undefined) yield* edge([one, other])
    yield* second({ buffer, host, stream: other })
    const { reports } = yield* CheckedRuntime.Checker
    yield* CudaStream.synchronize(one)
    return (yield* reports).filter(({ _tag }) => _tag === "Race").length
  })

const kernelsOf = (name: keyof typeof declared) =>
  SimulatedRuntime.kernel({ parameters: declared[name], cost: 1, run: nothing })

const onSimulated = <A>(program: Effect.Effect<A, CudaError, Needs | CheckedRuntime.Checker>) => {
  const inner = SimulatedRuntime.layer({
    devices: [{ memory: 2 ** 26 }],
    kernels: { inStruct: kernelsOf("inStruct"), inArray: kernelsOf("inArray"), reads: kernelsOf("reads") }
  })
  return Effect.scoped(program).pipe(
    Effect.provide(CheckedRuntime.layer({ mode: "collect" }).pipe(Layer.provide(inner)))
  )
}

const all = { ...writes, ...reads }

describe("each access", () => {
  it.live.each(Object.keys(all))(
    "%s races with a write on another stream, both ways",
    (name) =>
      Effect.gen(function*() {
        assert.isAbove(yield* onSimulated(racesOf(writes["fill"]!, all[name]!)), 0)
        assert.isAbove(yield* onSimulated(racesOf(all[name]!, writes["fill"]!)), 0)
      })
  )

  it.live.each(Object.keys(writes))("%s races with a read on another stream", (name) =>
    Effect.gen(function*() {
      assert.isAbove(yield* onSimulated(racesOf(reads["copy from"]!, writes[name]!)), 0)
      assert.isAbove(yield* onSimulated(racesOf(writes[name]!, reads["copy from"]!)), 0)
    }))

  it.live.each(Object.keys(reads))("%s does not race with a read", (name) =>
    Effect.gen(function*() {
      assert.strictEqual(yield* onSimulated(racesOf(reads[name]!, reads["copy from"]!)), 0)
    }))

  it.live.each(Object.keys(all))("%s of an ordered buffer races with nothing", (name) =>
    Effect.gen(function*() {
      // The other buffer does not know of the order.
      const expected = name === "buffer over the same memory" ? 1 : 0
      assert.strictEqual(yield* onSimulated(racesOf(writes["fill"]!, all[name]!, undefined, true)), expected)
    }))

  it.live.each(Object.keys(edges))("does not race after %s", (edge) =>
    Effect.gen(function*() {
      for (const [name, access] of Object.entries(all)) {
        const after = yield* onSimulated(racesOf(writes["fill"]!, access, edges[edge]))
        assert.strictEqual(after, 0, `fill, then ${name}`)
        const before = yield* onSimulated(racesOf(access, writes["fill"]!, edges[edge]))
        assert.strictEqual(before, 0, `${name}, then fill`)
      }
    }))
})

describe("in other orders", () => {
  const machine = SimulatedRuntime.layer({
    devices: [{ memory: 2 ** 26 }],
    kernels: { inStruct: kernelsOf("inStruct"), inArray: kernelsOf("inArray"), reads: kernelsOf("reads") }
  })
  const explored = (first: Access, second: Access, edge?: (typeof edges)[string]) =>
    CudaChecker.explore(
      Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(size)
        const [own, host] = [yield* CudaMemory.allocateHost(size), yield* CudaMemory.allocateHost(size)]
        yield* first({ buffer, host: own, stream: one })
        if (edge !== undefined) yield* edge([one, other])
        yield* second({ buffer, host, stream: other })
      }),
      { runtime: machine, maxRuns: 10, schedules: edge === undefined ? 0 : 5 }
    )
  /** These enqueue nothing that could come later. */
  const fixed: Record<string, ReadonlyArray<string>> = {
    "access": ["access, then fill", "fill, then access"],
    "access that reads": ["access that reads, then fill", "fill, then access that reads"]
  }

  it.effect.each(Object.keys(all))("%s and a write on another stream run both ways", (name) =>
    Effect.gen(function*() {
      for (
        const [title, first, second] of [
          [`${name}, then fill`, all[name]!, writes["fill"]!],
          [`fill, then ${name}`, writes["fill"]!, all[name]!]
        ] as const
      ) {
        const report = yield* explored(first, second)
        const text = `${title}\n${CudaChecker.format(report)}`
        if (fixed[name]?.includes(title) === true) assert.deepStrictEqual(report.races, [], text)
        else assert.isAbove(report.races.length, 0, text)
        for (const { verdict } of report.races) assert.include(["changes", "harmless"], verdict, text)
      }
    }))

  it.effect.each(Object.keys(edges))(
    "nothing comes before what it comes after by %s",
    (edge) =>
      Effect.gen(function*() {
        for (const [name, access] of Object.entries(all)) {
          const report = yield* explored(writes["fill"]!, access, edges[edge])
          assert.deepStrictEqual([report.races, report.findings], [[], []], `${name}\n${CudaChecker.format(report)}`)
        }
      }),
    30_000
  )
})

const stub = openStub()

/** A program on a checked native runtime. */
const onNative = <A>(program: Effect.Effect<A, CudaError, Needs | CheckedRuntime.Checker>) =>
  onStub(stub, Effect.provide(Effect.scoped(program), CheckedRuntime.layer({ mode: "collect" })))

describe("on a native runtime", () => {
  const names = ["fill", "fill of a part", "copy to", "copy of rows", "copy of a batch", "enqueue", "access"]

  it.live.each(names)("%s races unless there is an edge", (name) =>
    Effect.gen(function*() {
      assert.isAbove(yield* onNative(racesOf(writes["fill"]!, writes[name]!)), 0)
      for (const edge of ["an event", "waitStream", "a fork", "synchronizing the stream", "synchronizing the device"]) {
        assert.strictEqual(yield* onNative(racesOf(writes["fill"]!, writes[name]!, edges[edge])), 0, edge)
      }
    }))
})

describe("what does not count", () => {
  it.live("operations that fail use nothing", () =>
    onSimulated(Effect.gen(function*() {
      const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
      const buffer = yield* CudaMemory.allocate(size)
      yield* refuses(CudaMemory.fill(buffer, 300, one), "value")
      yield* refuses(CudaMemory.fill(CudaMemory.slice(buffer, 0, 2 * size), 1, one), "destination.byteLength")
      yield* CudaMemory.fill(buffer, 1, other)
      assert.deepStrictEqual(yield* (yield* CheckedRuntime.Checker).reports, [])
    })))

  it.live("parts and rows that do not overlap", () =>
    onSimulated(Effect.gen(function*() {
      const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
      const buffer = yield* CudaMemory.allocate(size)
      const source = yield* CudaMemory.allocate(size)
      const rows = (offset: number, stream: CudaStream.CudaStream) =>
        CudaMemory.copy2D(
          CudaMemory.rows(CudaMemory.slice(buffer, offset), 16),
          CudaMemory.rows(source, 16),
          { width: 8, height: 4 },
          stream
        )
      yield* rows(0, one)
      yield* rows(8, other)
      const checker = yield* CheckedRuntime.Checker
      assert.deepStrictEqual(yield* checker.reports, [])
      yield* rows(4, other)
      assert.lengthOf(yield* checker.reports, 1)
    })))

  it.live("what is unchecked, and what is ignored", () =>
    Effect.gen(function*() {
      const race = Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(size)
        yield* CudaMemory.fill(buffer, 1, one)
        yield* CudaMemory.fill(buffer, 2, other)
      })
      const layer = CheckedRuntime.layer({ mode: "fail", ignore: (report) => report._tag === "Race" })
      yield* Effect.scoped(race).pipe(Effect.provide(layer.pipe(Layer.provide(simulated))))
      yield* Effect.scoped(CheckedRuntime.unchecked(race)).pipe(
        Effect.provide(CheckedRuntime.layer({ mode: "fail" }).pipe(Layer.provide(simulated)))
      )
    }))
})
