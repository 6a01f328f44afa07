/**
 * Whole programs with their verdicts, besides those of `pytorchSanitizer.test.ts` and `cusan.test.ts`, and what reports say.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import * as CudaBranch from "effect-cuda/CudaBranch"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaMemory from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
import { expectReports, reportsOf, simulated } from "./support.ts"

const size = 64

const make = Effect.gen(function*() {
  const streams = [yield* CudaStream.make(), yield* CudaStream.make(), yield* CudaStream.make()] as const
  const [a, b] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
  const host = yield* CudaMemory.allocateHost(size)
  return { a, b, host, one: streams[0], two: streams[1], three: streams[2] }
})

type Made = Effect.Success<typeof make>
type Body = (made: Made) => Effect.Effect<unknown, Effect.Error<typeof make>, Needs>
type Needs = CudaRuntime | CheckedRuntime.Checker | Scope.Scope

const { fill } = CudaMemory
const copy = CudaMemory.copy

const filled = "CudaMemory.fill writes"
const writesTwice = `${filled}, ${filled}`
const readsAfter = `${filled}, CudaMemory.copy reads`

const event = (on: CudaStream.CudaStream) => CudaStream.recordEvent(on)
const wait = CudaStream.waitEvent

const scenarios: Record<string, readonly [expected: ReadonlyArray<string>, body: Body]> = {
  "work on one stream": [
    [],
    ({ a, b, one }) => Effect.andThen(fill(a, 1, one), Effect.andThen(copy(b, a, one), fill(a, 2, one)))
  ],
  "a write, then a write on another stream": [
    [writesTwice],
    ({ a, one, two }) => Effect.andThen(fill(a, 1, one), fill(a, 2, two))
  ],
  "two races of one operation": [
    [readsAfter, `${filled}, CudaMemory.copy writes`],
    ({ a, b, one, three, two }) =>
      Effect.gen(function*() {
        yield* fill(a, 1, one)
        yield* fill(b, 1, three)
        yield* copy(b, a, two)
      })
  ],
  "the default stream and one that does not block": [
    [writesTwice],
    ({ a, one }) => Effect.andThen(fill(a, 1), fill(a, 2, one))
  ],
  "the default stream and one that blocks": [[], ({ a }) =>
    Effect.gen(function*() {
      const blocking = yield* CudaStream.make({ nonBlocking: false })
      yield* fill(a, 1)
      yield* fill(a, 2, blocking)
      yield* fill(a, 3)
    })],
  "two blocking streams": [[writesTwice], ({ a }) =>
    Effect.gen(function*() {
      const [one, two] = [
        yield* CudaStream.make({ nonBlocking: false }),
        yield* CudaStream.make({ nonBlocking: false })
      ]
      yield* fill(a, 1, one)
      yield* fill(a, 2, two)
    })],
  "two blocking streams with work on the default stream in between": [[], ({ a, b }) =>
    Effect.gen(function*() {
      const [one, two] = [
        yield* CudaStream.make({ nonBlocking: false }),
        yield* CudaStream.make({ nonBlocking: false })
      ]
      yield* fill(a, 1, one)
      yield* fill(b, 1)
      yield* fill(a, 2, two)
    })],
  "the per-thread default stream and the legacy one": [[], ({ a }) =>
    Effect.gen(function*() {
      yield* fill(a, 1)
      yield* fill(a, 2, yield* CudaStream.defaultStream({ mode: "perThread" }))
    })],
  "a wait by another stream": [[readsAfter], ({ a, b, one, three, two }) =>
    Effect.gen(function*() {
      yield* fill(a, 1, one)
      yield* wait(three, yield* event(one))
      yield* copy(b, a, two)
    })],
  "a wait before the event is recorded again": [[readsAfter], ({ a, b, one, two }) =>
    Effect.gen(function*() {
      const again = yield* event(one)
      yield* wait(two, again)
      yield* fill(a, 1, one)
      yield* CudaEvent.record(again, one)
      yield* copy(b, a, two)
    })],
  "a chain with the records in the wrong order": [[readsAfter], ({ a, b, one, three, two }) =>
    Effect.gen(function*() {
      yield* fill(a, 1, one)
      yield* wait(three, yield* event(two))
      yield* wait(two, yield* event(one))
      yield* copy(b, a, three)
    })],
  "a synchronized stream that waits for the first": [[], ({ a, b, one, three, two }) =>
    Effect.gen(function*() {
      yield* fill(a, 1, one)
      yield* CudaStream.waitStream(three, one)
      yield* CudaStream.synchronize(three)
      yield* copy(b, a, two)
    })],
  "work after the synchronization": [[readsAfter], ({ a, b, one, two }) =>
    Effect.gen(function*() {
      yield* CudaStream.synchronize(one)
      yield* fill(a, 1, one)
      yield* copy(b, a, two)
    })],
  "memory released and allocated again": [[], ({ one, two }) =>
    Effect.gen(function*() {
      yield* Effect.scoped(Effect.flatMap(CudaMemory.allocate(size), (buffer) => fill(buffer, 1, one)))
      yield* Effect.scoped(Effect.flatMap(CudaMemory.allocate(size), (buffer) => fill(buffer, 1, two)))
    })],
  "an allocation in stream order, used on another stream": [
    [],
    ({ one, two }) => Effect.flatMap(CudaMemory.allocate(size, { stream: one }), (buffer) => fill(buffer, 1, two))
  ],
  "memory released while another buffer is over it": [["UsedAfterRelease"], ({ one }) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const owner = yield* CudaMemory.allocate(size).pipe(Scope.provide(scope))
      const part = yield* CudaMemory.fromAddress(owner.address + 16, 16)
      yield* fill(part, 1, one)
      yield* CudaStream.synchronize(one)
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      yield* fill(part, 2, one)
    })],
  "branches that use the same buffer": [[writesTwice], ({ a }) => CudaBranch.all([fill(a, 1), fill(a, 2)])],
  "branches that use parts": [[], ({ a }) =>
    Effect.andThen(
      CudaBranch.all([fill(CudaMemory.slice(a, 0, 32), 1), fill(CudaMemory.slice(a, 32), 2)]),
      fill(a, 3)
    )],
  "branches by hand, with one missing wait": [
    [`${filled}, CudaMemory.copy reads`],
    ({ a, b, one, three, two }) =>
      Effect.gen(function*() {
        yield* CudaStream.waitStream(two, one)
        yield* CudaStream.waitStream(three, one)
        yield* fill(CudaMemory.slice(a, 0, 32), 1, two)
        yield* fill(CudaMemory.slice(a, 32), 1, three)
        yield* CudaStream.waitStream(one, two)
        yield* copy(b, a, one)
      })
  ],
  "an event never recorded": [
    ["neverRecorded"],
    ({ one }) => Effect.flatMap(CudaEvent.make(), (made) => wait(one, made))
  ],
  "an event recorded again in the same order": [[], ({ one }) =>
    Effect.gen(function*() {
      const made = yield* event(one)
      yield* CudaEvent.record(made, one)
      yield* CudaEvent.synchronize(made)
    })],
  "an event recorded elsewhere after somebody waited": [[], ({ one, three, two }) =>
    Effect.gen(function*() {
      const made = yield* event(one)
      yield* wait(three, made)
      yield* CudaEvent.record(made, two)
    })],
  "the host taking bytes that are written": [
    ["CudaMemory.copy writes, bytes reads"],
    ({ a, host, one }) => Effect.andThen(copy(host, a, one), Effect.sync(() => host.bytes))
  ],
  "the host taking a view of bytes that are written": [["CudaMemory.copy writes, CudaMemory.view reads"], (
    { a, host, one }
  ) =>
    Effect.andThen(
      copy(CudaMemory.slice(host, 0, 32), CudaMemory.slice(a, 0, 32), one),
      Effect.sync(() => CudaMemory.view(CudaMemory.slice(host, 0, 16), Uint8Array))
    )],
  "the host taking bytes of which some are written": [[], ({ a, host, one }) =>
    Effect.andThen(
      copy(CudaMemory.slice(host, 0, 32), CudaMemory.slice(a, 0, 32), one),
      Effect.sync(() => host.bytes)
    )],
  "downloads and uploads": [[], ({ a, one }) =>
    Effect.gen(function*() {
      yield* CudaMemory.upload(a, new Uint8Array(size), one)
      yield* CudaMemory.download(new Uint8Array(size), a, one)
      yield* fill(a, 1)
    })],
  "an access in which others wait": [[], ({ a, one, two }) =>
    Effect.gen(function*() {
      const made = yield* CudaEvent.make()
      yield* CudaMemory.access(
        Effect.andThen(CudaEvent.record(made, one), Effect.andThen(wait(two, made), fill(a, 1, two))),
        { writes: [a], stream: one }
      )
    })],
  "a race inside a graph": [
    ["CudaMemory.fill writes, CudaMemory.fill writes"],
    ({ a }) => CudaGraph.record(CudaBranch.all([fill(a, 1), fill(a, 2)]))
  ],
  "branches inside a graph": [
    [],
    ({ a }) => CudaGraph.record(CudaBranch.all([fill(CudaMemory.slice(a, 0, 32), 1), fill(CudaMemory.slice(a, 32), 2)]))
  ],
  "launches of one instance on two streams": [[], ({ a, one, two }) =>
    Effect.gen(function*() {
      const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(fill(a, 1)))
      yield* CudaGraph.launch(exec, one)
      yield* CudaGraph.launch(exec, two)
    })],
  "launches of two instances on two streams": [["CudaGraph.launch writes, CudaGraph.launch writes"], (
    { a, one, two }
  ) =>
    Effect.gen(function*() {
      const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(fill(a, 1)), { instances: 2 })
      yield* CudaGraph.launch(exec, one)
      yield* CudaGraph.launch(exec, two)
    })],
  "a disabled node": [[], ({ a, b, one, two }) =>
    Effect.gen(function*() {
      const graph = yield* CudaGraph.record(Effect.andThen(fill(a, 1), fill(b, 1)))
      const exec = yield* CudaGraph.instantiate(graph)
      yield* CudaGraph.setEnabled(exec, 0, false)
      yield* CudaGraph.launch(exec, one)
      yield* fill(a, 2, two)
    })]
}

describe("verdicts", () => {
  it.live.each(Object.keys(scenarios))("%s", (name) => {
    const [expected, body] = scenarios[name]!
    return expectReports(Effect.flatMap(make, body), expected)
  })
})

describe("reports", () => {
  it.live("name both uses, where they are, and the call that is missing", () =>
    Effect.gen(function*() {
      const [report] = yield* reportsOf(Effect.gen(function*() {
        const { a, b, one, two } = yield* make
        yield* Effect.withSpan(fill(a, 1, one), "produce")
        yield* Effect.withSpan(copy(b, a, two), "consume")
      }))
      assert(report?._tag === "Race")
      assert.deepStrictEqual(
        [report.first.operation, report.first.kind, report.first.argument],
        ["CudaMemory.fill", "writes", "destination"]
      )
      assert.deepStrictEqual([report.second.argument, report.bytes.offset, report.bytes.byteLength], [
        "source",
        0,
        size
      ])
      assert.match(report.first.frame ?? "", /^produce \(.*scenarios\.test\.ts:\d+:\d+/)
      assert.match(report.second.frame ?? "", /^consume/)
      assert.include(report.fix, `CudaStream.waitStream(${report.second.stream}, ${report.first.stream})`)
      assert.include(report.message, "bytes 0 to 63")
    }))

  it.live("name the event that nobody waits for", () =>
    Effect.gen(function*() {
      const [report] = yield* reportsOf(Effect.gen(function*() {
        const { a, b, one, two } = yield* make
        yield* fill(a, 1, one)
        yield* event(one)
        yield* copy(b, a, two)
      }))
      assert(report?._tag === "Race")
      assert.match(report.fix, /CudaStream\.waitEvent\(stream \d+ of device 0, event 0x/)
    }))

  it.live("name the line of the call, on request", () =>
    Effect.gen(function*() {
      const racing = Effect.gen(function*() {
        const { a, one, two } = yield* make
        yield* fill(a, 1, one)
        yield* fill(a, 2, two)
      })
      const [report] = yield* reportsOf(racing, { stacks: true })
      assert(report?._tag === "Race")
      assert.match(report.first.frame ?? "", /scenarios\.test\.ts:\d+:\d+/)
      assert.notStrictEqual(report.first.frame, report.second.frame)
    }))

  it.live("fail the operation before it is enqueued", () =>
    Effect.gen(function*() {
      const racing = Effect.gen(function*() {
        const { a, host, one, two } = yield* make
        yield* fill(a, 1, one)
        const reason = yield* failsWith(fill(a, 2, two), "RaceDetected")
        assert.lengthOf(reason.accesses, 2)
        assert.include(reason.fix, "waitStream")
        yield* copy(host, a, one)
        yield* CudaStream.synchronize(one)
        yield* CudaStream.synchronize(two)
        assert.deepStrictEqual(host.bytes, new Uint8Array(size).fill(1))
        const { expectNone, summary } = yield* CheckedRuntime.Checker
        yield* failsWith(expectNone, "RaceDetected")
        assert.strictEqual((yield* summary).reports, 1)
      })
      yield* reportsOf(racing, { mode: "fail" })
    }))

  it.live("name what is left when the runtime ends", () =>
    Effect.gen(function*() {
      const outer = yield* Scope.make()
      const reports: Array<CheckedRuntime.Report> = []
      const layer = CheckedRuntime.layer({ mode: "collect", onReport: (report) => reports.push(report) })
      const leaving = Effect.gen(function*() {
        yield* CudaStream.make().pipe(Scope.provide(outer), Effect.withSpan("forgotten"))
        yield* CudaStream.fromPool()
        yield* CudaMemory.allocate(size)
      })
      yield* Effect.scoped(leaving).pipe(Effect.provide(layer.pipe(Layer.provide(simulated))))
      assert.lengthOf(reports, 1)
      assert(reports[0]?._tag === "Leftover")
      assert.strictEqual(reports[0].operation, "CudaStream.make")
      assert.match(reports[0].frame ?? "", /^forgotten/)
      yield* Scope.close(outer, yield* Effect.exit(Effect.void))
    }))
})
