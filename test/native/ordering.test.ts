/**
 * The driver calls of ordered buffers: the exact calls, how each fails, and that markers are returned.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaStream from "effect-cuda/CudaStream"
import type { CudaStream as Stream } from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import type { DriverFunctionName } from "../../src/cuda/functions.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { begin, failureOf, isPending, succeeds } from "../support/waits.ts"

const stub = openStub()
const ordered = { ordered: true } as const
const segment = 16 * 1024 * 1024

/** The calls of an effect except event creation, as name and stream. */
const callsOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    stub.clear()
    yield* effect
    const calls = stub.calls().flatMap(({ args, name, times }) => Array.from({ length: times }, () => [name, ...args]))
    stub.clear()
    return calls.filter(([name]) => !/Ctx|cuEventCreate/.test(String(name)))
  })

/** The names of calls, and the stream of each. */
const onStreams = (calls: ReadonlyArray<ReadonlyArray<number | string>>, streams: ReadonlyArray<Stream>) => {
  const nameOf = (handle: number | string | undefined) => streams.findIndex((stream) => stream.handle === handle)
  return calls.map(([name, ...args]) => {
    if (name === "cuEventRecord") return `record ${nameOf(args[1])}`
    if (name === "cuStreamWaitEvent") return `${nameOf(args[0])} waits`
    if (name === "cuMemsetD8Async") return `fill ${nameOf(args[3])}`
    return String(name).startsWith("cuMemcpy") ? `copy ${nameOf(args[3])}` : String(name)
  })
}

const setting = Effect.gen(function*() {
  const streams = yield* Effect.all([CudaStream.make(), CudaStream.make(), CudaStream.make()])
  const buffer = yield* CudaMemory.allocate(1024, ordered)
  const plain = yield* CudaMemory.allocate(1024)
  const host = yield* CudaMemory.allocateHost(1024)
  const calls = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.map(callsOf(effect), (made) => onStreams(made, streams))
  return { buffer, calls, host, plain, streams }
})

const fill = (buffer: CudaMemory.Slice<CudaMemory.DeviceBuffer>, stream: Stream) => CudaMemory.fill(buffer, 1, stream)

describe("the calls", () => {
  it.live("of unordered buffers are unchanged", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { calls, host, plain, streams: [first, second] } = yield* setting
        const made = yield* calls(Effect.gen(function*() {
          yield* CudaMemory.copy(plain, host, first)
          yield* fill(plain, second)
          yield* CudaMemory.copy(host, plain, first)
        }))
        assert.deepStrictEqual(made, ["copy 0", "fill 1", "copy 0"])
      })
    ))

  it.live("are one record per use, and one wait per stream to wait for", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, host, plain, streams: [first, second, third] } = yield* setting
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["fill 0", "record 0"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["fill 0", "record 0"])
        const read = CudaMemory.copy(host, buffer, second)
        assert.deepStrictEqual(yield* calls(read), ["1 waits", "copy 1", "record 1"])
        assert.deepStrictEqual(yield* calls(read), ["copy 1", "record 1"])
        const other = CudaMemory.copy(plain, buffer, third)
        assert.deepStrictEqual(yield* calls(other), ["2 waits", "copy 2", "record 2"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["0 waits", "0 waits", "fill 0", "record 0"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["fill 0", "record 0"])
      })
    ))

  it.live("omit waits that another wait implies", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, host, streams: [first, second, third] } = yield* setting
        yield* fill(buffer, first)
        yield* CudaMemory.copy(host, buffer, second)
        const whole = fill(CudaMemory.slice(buffer, 0, 512), third)
        assert.deepStrictEqual(yield* calls(whole), ["2 waits", "fill 2", "record 2"])
      })
    ))

  it.live("mark two ordered buffers of one use with one record", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, streams: [first, second] } = yield* setting
        const other = yield* CudaMemory.allocate(1024, ordered)
        assert.deepStrictEqual(yield* calls(CudaMemory.copy(other, buffer, first)), ["copy 0", "record 0"])
        assert.deepStrictEqual(yield* calls(CudaMemory.copy(buffer, other, second)), ["1 waits", "copy 1", "record 1"])
      })
    ))

  it.live("are none for empty uses", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, host, streams: [first] } = yield* setting
        const empty = CudaMemory.slice(buffer, 1024)
        const made = yield* calls(Effect.gen(function*() {
          yield* fill(empty, first)
          yield* CudaMemory.copy(empty, CudaMemory.slice(host, 0, 0), first)
          yield* CudaMemory.access(Effect.void, { writes: [empty], stream: first })
          yield* CudaMemory.synchronize(buffer)
        }))
        assert.deepStrictEqual(made, [])
      })
    ))

  it.live("never wait between two handles of one stream", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, streams: [first] } = yield* setting
        const wrapped = yield* CudaStream.fromHandle(first.handle)
        yield* fill(buffer, wrapped)
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["fill 0", "record 0"])
        assert.deepStrictEqual(yield* calls(fill(buffer, wrapped)), ["fill 0", "record 0"])
      })
    ))

  it.live("enter the context of default streams", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, streams: [first] } = yield* setting
        yield* fill(buffer, first)
        yield* calls(CudaMemory.fill(buffer, 1))
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["0 waits", "fill 0", "record 0"])
      })
    ))

  it.live("of an access surround its effect's calls", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, plain, streams: [first, second] } = yield* setting
        yield* fill(buffer, first)
        const access = CudaMemory.access(fill(plain, second), { reads: [buffer], writes: [plain], stream: second })
        assert.deepStrictEqual(yield* calls(access), ["1 waits", "fill 1", "record 1"])
        const between = CudaMemory.access(fill(buffer, second), { writes: [buffer], stream: first })
        assert.deepStrictEqual(yield* calls(between), [
          "0 waits",
          "record 0",
          "1 waits",
          "fill 1",
          "record 1",
          "0 waits",
          "record 0"
        ])
      })
    ))
})

describe("markers", () => {
  it.live("stay few for any number of uses", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, host, streams } = yield* setting
        stub.clear()
        for (let round = 0; round < 2500; round++) {
          const [first, second] = [streams[round % 3]!, streams[(round + 1) % 3]!]
          yield* fill(buffer, first)
          yield* CudaMemory.copy(
            CudaMemory.slice(host, round % 1024, 1),
            CudaMemory.slice(buffer, round % 1024, 1),
            second
          )
          yield* fill(CudaMemory.slice(buffer, round % 1000, 24), second)
          yield* CudaMemory.copy(CudaMemory.slice(buffer, 0, 8), CudaMemory.slice(host, 0, 8), first)
        }
        assert.isAtMost(stub.calls("cuEventCreate").length, 48)
      })
    ), 30_000)

  it.live("of short-lived streams stay few too", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer } = yield* setting
        stub.clear()
        for (let round = 0; round < 500; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const stream = yield* CudaStream.make()
            yield* fill(CudaMemory.slice(buffer, 2 * round, 1), stream)
          }))
        }
        assert.isAtMost(stub.calls("cuEventCreate").length, 48)
      })
    ))

  it.live("are returned when their buffer is released, and reused by the next one", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const [first, second] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        const use = Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64, ordered)
          for (let at = 0; at < 16; at++) yield* fill(CudaMemory.slice(buffer, at, 1), at % 2 === 0 ? first : second)
        }))
        yield* use
        const { events } = stub.live
        for (let round = 0; round < 20; round++) yield* use
        assert.strictEqual(stub.live.events, events)
      })
    ))

  it.live("are not reused while synchronize waits for them", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, streams: [first, second] } = yield* setting
        stub.work(first)
        yield* fill(buffer, first)
        const waiting = yield* begin(CudaMemory.synchronize(buffer))
        yield* fill(buffer, first)
        stub.work(second)
        yield* Effect.forEach(Array.from({ length: 8 }), () => CudaStream.waitStream(second, second))
        stub.finish(second)
        assert.isTrue(isPending(waiting))
        stub.finish(first)
        yield* succeeds(waiting)
      })
    ))
})

describe("synchronize", () => {
  it.live("of a buffer that is released meanwhile still ends", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { streams: [first] } = yield* setting
        stub.work(first)
        const waiting = yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64, ordered)
          yield* fill(buffer, first)
          const fiber = yield* Effect.forkDetach(CudaMemory.synchronize(buffer))
          yield* begin(Effect.void)
          return fiber
        }))
        assert.isTrue(isPending(waiting))
        stub.finish(first)
        yield* succeeds(waiting)
      })
    ))

  it.live("fails with the fault that ends the work", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, streams: [first, second] } = yield* setting
        stub.work(first)
        yield* fill(buffer, first)
        yield* CudaMemory.access(Effect.void, { reads: [CudaMemory.slice(buffer, 0, 8)], stream: second })
        stub.fail("cuEventQuery", 700, { after: 2 })
        const waiting = yield* begin(CudaMemory.synchronize(buffer))
        const error = yield* failureOf(waiting)
        assert.deepStrictEqual([error.operation, error.call, error.reason._tag], [
          "CudaMemory.synchronize",
          "cuEventQuery",
          "IllegalAddress"
        ])
        stub.finish(first)
      })
    ))
})

describe("a failing call", () => {
  /** The failure of a use, and the calls it made before. */
  const failing = (name: DriverFunctionName, after = 0) =>
    Effect.gen(function*() {
      const made = yield* setting
      const { buffer, calls, host, streams: [first, second] } = made
      yield* fill(buffer, first)
      stub.fail(name, 1, { after })
      const lines = yield* calls(Effect.gen(function*() {
        const error = yield* Effect.flip(CudaMemory.copy(host, buffer, second))
        assert.deepStrictEqual([error.operation, error.call?.replace(/_v2$/, "")], [
          "CudaMemory.copy",
          name.replace(/_v2$/, "")
        ])
      }))
      return { ...made, lines }
    })

  it.live("a wait: the use is not enqueued, and the next one waits", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, host, lines, streams: [first, second] } = yield* failing("cuStreamWaitEvent")
        assert.deepStrictEqual(lines, ["1 waits"])
        assert.deepStrictEqual(yield* calls(CudaMemory.copy(host, buffer, second)), ["1 waits", "copy 1", "record 1"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["0 waits", "fill 0", "record 0"])
      })
    ))

  it.live("the use itself: it leaves no mark", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, lines, streams: [first] } = yield* failing("cuMemcpyDtoHAsync_v2")
        assert.deepStrictEqual(lines, ["1 waits", "copy 1"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["fill 0", "record 0"])
      })
    ))

  for (const name of ["cuEventRecord", "cuEventCreate", "cuCtxPushCurrent_v2"] as const) {
    it.live(`the mark (${name}): the next conflicting use waits for the whole stream`, () =>
      onStub(
        stub,
        Effect.gen(function*() {
          const { buffer, calls, plain, streams: [first, second, third] } = yield* failing(name)
          const read = CudaMemory.copy(plain, buffer, third)
          assert.deepStrictEqual(yield* calls(read), ["2 waits", "copy 2", "record 2"])
          assert.deepStrictEqual(yield* calls(CudaMemory.copy(plain, buffer, second)), ["copy 1", "record 1"])
          assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["0 waits", "0 waits", "fill 0", "record 0"])
        })
      ))
  }

  it.live("the mark: the stream's whole work stands in until a later mark succeeds", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, streams: [first] } = yield* failing("cuEventRecord")
        stub.fail("cuEventRecord", 1)
        const refused = yield* calls(Effect.flip(fill(buffer, first)))
        assert.deepStrictEqual(refused, ["record 1"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["record 1", "0 waits", "fill 0", "record 0"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["fill 0", "record 0"])
      })
    ))

  it.live("the mark: a later one serves all later uses", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, streams: [first, , third] } = yield* failing("cuEventRecord")
        const [left, right] = [CudaMemory.slice(buffer, 0, 8), CudaMemory.slice(buffer, 8, 8)]
        assert.deepStrictEqual(yield* calls(fill(left, first)), ["record 1", "0 waits", "fill 0", "record 0"])
        assert.deepStrictEqual(yield* calls(fill(right, third)), ["2 waits", "fill 2", "record 2"])
      })
    ))

  it.live("a part of a copy: the enqueued parts are marked", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { calls, streams: [first, second] } = yield* setting
        const buffer = yield* CudaMemory.allocate(2 * segment, ordered)
        const host = yield* CudaMemory.allocateHost(2 * segment)
        stub.fail("cuMemcpyHtoDAsync_v2", 1, { after: 1 })
        const parts = yield* calls(Effect.flip(CudaMemory.copy(buffer, host, first)))
        assert.deepStrictEqual(parts, ["copy 0", "copy 0", "record 0"])
        assert.deepStrictEqual(yield* calls(fill(buffer, second)), ["1 waits", "fill 1", "record 1"])
      })
    ))

  it.live("the wait of an access for an interleaved use: later uses wait for both", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, host, streams: [first, second, third] } = yield* setting
        stub.fail("cuStreamWaitEvent", 1, { after: 1 })
        const between = CudaMemory.copy(host, buffer, second)
        const access = CudaMemory.access(Effect.flip(between), { writes: [buffer], stream: first })
        assert.deepStrictEqual(yield* calls(access), [
          "record 0",
          "1 waits",
          "copy 1",
          "record 1",
          "0 waits",
          "record 0"
        ])
        assert.deepStrictEqual(yield* calls(fill(buffer, third)), ["2 waits", "2 waits", "fill 2", "record 2"])
      })
    ))

  it.live("an access: it does not begin, or ends with the failure and stays ordered", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, calls, plain, streams: [first, second] } = yield* setting
        yield* fill(buffer, first)
        const access = CudaMemory.access(fill(plain, second), { writes: [buffer], stream: second })
        stub.fail("cuStreamWaitEvent", 1)
        assert.deepStrictEqual(yield* calls(Effect.flip(access)), ["1 waits"])
        stub.fail("cuEventRecord", 1)
        const error = yield* Effect.flip(access)
        assert.deepStrictEqual([error.operation, error.call], ["CudaMemory.access", "cuEventRecord"])
        assert.deepStrictEqual(yield* calls(fill(buffer, first)), ["record 1", "0 waits", "fill 0", "record 0"])
      })
    ))
})
