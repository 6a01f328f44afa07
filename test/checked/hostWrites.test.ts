/**
 * Writes by the host to memory that work may still read: each is found, and nothing else is reported. On the simulated runtime, and on the
 * native runtime with the stub driver.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { failsWith } from "../support/assertions.ts"
import { program as kernels } from "../support/kernels.ts"
import { onStub, openStub } from "../support/stubDriver.ts"

const size = 4096

type Needs = CudaRuntime | CheckedRuntime.Checker | Scope.Scope
type Program<A = unknown> = Effect.Effect<A, CudaError, Needs>

const { input, output } = CudaParameter
const copies = SimulatedRuntime.kernel({
  parameters: [output, input],
  cost: 1,
  run: ({ args: [to, from] }) => to.store("u32", 0, from.load("u32", 0))
})

const inner = SimulatedRuntime.layer({ devices: [{ memory: 2 ** 28, copyLatency: "5 millis" }], kernels: { copies } })
const options = { mode: "collect", hostWrites: true } as const

const onSimulated = <A>(program: Program<A>, more: CheckedRuntime.CheckOptions = {}) =>
  Effect.scoped(program).pipe(
    Effect.provide(CheckedRuntime.layer({ ...options, ...more }).pipe(Layer.provide(inner)))
  )

const stub = openStub()

const onNative = <A>(program: Program<A>, more: CheckedRuntime.CheckOptions = {}) =>
  onStub(stub, Effect.provide(Effect.scoped(program), CheckedRuntime.layer({ ...options, ...more })))

const runtimes = { simulated: onSimulated, native: onNative }

const make = Effect.gen(function*() {
  const [stream, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
  const host = yield* CudaMemory.allocateHost(size)
  const back = yield* CudaMemory.allocateHost(size)
  const device = yield* CudaMemory.allocate(size)
  // A view that was taken long before.
  return { stream, other, host, back, device, view: host.bytes, backView: back.bytes }
})

const write = (bytes: Uint8Array, at = 100, length = 4) =>
  Effect.sync(() => {
    for (let index = at; index < at + length; index++) bytes[index]! ^= 0xff
  })

/** The races so far. */
const races = Effect.gen(function*() {
  const reports = yield* (yield* CheckedRuntime.Checker).reports
  return reports.filter((report) => report._tag === "Race")
})

const none = Effect.map(races, (found) => assert.deepStrictEqual(found.map(({ message }) => message), []))

const found = (from = 100, length = 4) =>
  Effect.map(races, (reports) => {
    assert.lengthOf(reports, 1)
    const { bytes, first, message, second } = reports[0]!
    assert.deepStrictEqual([bytes.offset, bytes.byteLength], [from, length], message)
    assert.strictEqual(first.kind, "reads")
    assert.strictEqual(second.stream, "the host")
    return reports[0]!
  })

for (const [name, run] of Object.entries(runtimes)) {
  describe(`on a ${name} runtime`, () => {
    it.live("finds a write before the copy is done", () =>
      run(Effect.gen(function*() {
        const { device, host, stream, view } = yield* make
        yield* CudaMemory.copy(device, host, stream).pipe(Effect.withSpan("send"))
        yield* write(view)
        yield* none
        yield* CudaStream.synchronize(stream).pipe(Effect.withSpan("wait"))
        const { first, fix, missing } = yield* found()
        assert.match(first.frame ?? "", /^send/)
        assert.match(missing, /seen in CudaStream\.synchronize, in wait/)
        assert.match(fix, /CudaStream\.synchronize\(stream/)
      })))

    it.live("finds a write when the next copy is enqueued", () =>
      run(Effect.gen(function*() {
        const { device, host, stream, view } = yield* make
        yield* CudaMemory.copy(device, host, stream)
        yield* write(view)
        yield* CudaMemory.copy(device, host, stream)
        yield* found()
        yield* CudaStream.synchronize(stream)
        yield* found()
      })))

    it.live("finds a write when other work is enqueued that writes the bytes", () =>
      run(Effect.gen(function*() {
        const { device, host, stream, view } = yield* make
        yield* CudaMemory.copy(device, host, stream)
        yield* write(view)
        yield* CudaMemory.copy(host, device, stream)
        yield* found()
      })))

    it.live("finds a write when the memory is released", () =>
      run(Effect.gen(function*() {
        yield* Effect.scoped(Effect.gen(function*() {
          const { device, host, stream, view } = yield* make
          yield* Effect.addFinalizer(() => Effect.orDie(found()))
          yield* CudaMemory.copy(device, host, stream)
          yield* write(view)
          yield* CudaStream.waitStream(stream, yield* CudaStream.make())
          yield* CudaEvent.synchronize(yield* CudaStream.recordEvent(stream))
        }))
        yield* found()
      })))

    it.live("finds writes to parts, and not next to them", () =>
      run(Effect.gen(function*() {
        const { device, host, stream, view } = yield* make
        yield* CudaMemory.copy(CudaMemory.slice(device, 0, 64), CudaMemory.slice(host, 128, 64), stream)
        yield* write(view, 0, 128)
        yield* write(view, 192, 500)
        yield* CudaStream.synchronize(stream)
        yield* none
        yield* CudaMemory.copy(CudaMemory.slice(device, 0, 64), CudaMemory.slice(host, 128, 64), stream)
        yield* write(view, 191, 1)
        yield* CudaStream.synchronize(stream)
        yield* found(191, 1)
      })))

    it.live("fails the wait, on request", () =>
      run(
        Effect.gen(function*() {
          const { device, host, stream, view } = yield* make
          yield* CudaMemory.copy(device, host, stream)
          yield* write(view)
          yield* failsWith(CudaStream.synchronize(stream), "RaceDetected")
          yield* CudaStream.synchronize(stream)
        }),
        { mode: "fail" }
      ))

    const waits: Record<string, (stream: CudaStream.CudaStream) => Program> = {
      "synchronizing the stream": CudaStream.synchronize,
      "synchronizing the device": () => CudaDevice.synchronize(0),
      "synchronizing an event": (stream) => Effect.flatMap(CudaStream.recordEvent(stream), CudaEvent.synchronize),
      "synchronizing an event that other code may record": (stream) =>
        Effect.gen(function*() {
          const event = yield* CudaEvent.make()
          assert.isAbove(event.handle, 0)
          yield* CudaEvent.record(event, stream)
          yield* CudaEvent.synchronize(event)
        }),
      "a later stream": (stream) =>
        Effect.gen(function*() {
          const later = yield* CudaStream.make()
          yield* CudaStream.waitStream(later, stream)
          yield* CudaStream.synchronize(later)
        }),
      "a host function": (stream) => Effect.flatMap(CudaStream.launchHostFunction(stream, Effect.void), Fiber.join)
    }

    it.live.each(Object.keys(waits))("reports nothing after %s", (wait) =>
      run(Effect.gen(function*() {
        const { backView, back, device, host, stream, view } = yield* make
        for (let round = 0; round < 3; round++) {
          yield* CudaMemory.copy(device, host, stream)
          yield* CudaMemory.copy(back, device, stream)
          yield* waits[wait]!(stream)
          yield* write(view)
          yield* write(backView)
        }
        yield* CudaMemory.copy(device, host, stream)
        yield* CudaStream.synchronize(stream)
        yield* none
      })))

    it.live("reports nothing for writes by work, in any order", () =>
      run(Effect.gen(function*() {
        const { device, host, other, stream } = yield* make
        yield* CudaMemory.fill(device, 7, stream)
        // Read, written, read again: all in the order of the streams.
        for (let round = 0; round < 3; round++) {
          yield* CudaMemory.copy(host, device, stream)
          yield* CudaMemory.copy(device, host, stream)
          yield* CudaStream.waitStream(other, stream)
          yield* CudaMemory.fill(device, 8 + round, other)
          yield* CudaMemory.copy(host, device, other)
          yield* CudaStream.waitStream(stream, other)
        }
        yield* CudaStream.synchronize(stream)
        yield* none
      })))

    it.live("reports nothing for two buffers over the same memory of the program", () =>
      run(Effect.gen(function*() {
        const { device, stream } = yield* make
        const memory = new Uint8Array(size)
        const [one, two] = [yield* CudaMemory.pin(memory), yield* CudaMemory.pin(memory)]
        yield* CudaMemory.fill(device, 3, stream)
        yield* CudaMemory.copy(CudaMemory.slice(device, 0, 64), CudaMemory.slice(one, 0, 64), stream)
        yield* CudaMemory.copy(CudaMemory.slice(two, 0, 64), CudaMemory.slice(device, 64, 64), stream)
        yield* CudaMemory.copy(CudaMemory.slice(device, 128, 64), CudaMemory.slice(one, 0, 64), stream)
        yield* CudaStream.synchronize(stream)
        yield* none
      })))

    it.live("reports nothing for memory whose address the program has, and counts it", () =>
      run(Effect.gen(function*() {
        const { device, host, stream, view } = yield* make
        yield* CudaMemory.copy(device, host, stream)
        assert.isAbove(host.address, 0)
        yield* write(view)
        yield* CudaMemory.copy(device, host, stream)
        yield* CudaStream.synchronize(stream)
        yield* none
        assert.strictEqual((yield* (yield* CheckedRuntime.Checker).summary).unknown.hostReads, 1)
      })))

    it.live("reports nothing for a buffer that is printed", () =>
      run(Effect.gen(function*() {
        const { device, host, stream, view } = yield* make
        assert.match(`${host} ${JSON.stringify(host)}`, /HostBuffer/)
        yield* CudaMemory.copy(device, host, stream)
        yield* write(view)
        yield* CudaStream.synchronize(stream)
        yield* found()
      })))

    it.live("reports nothing in unchecked regions", () =>
      run(Effect.gen(function*() {
        const { device, host, stream, view } = yield* make
        yield* CheckedRuntime.unchecked(CudaMemory.copy(device, host, stream))
        yield* write(view)
        // What unchecked work writes is not taken for a write by the host.
        yield* CudaStream.synchronize(stream)
        yield* CudaMemory.fill(device, 9, stream)
        yield* CudaMemory.copy(device, CudaMemory.slice(host, 0, size), stream)
        yield* CheckedRuntime.unchecked(CudaMemory.copy(host, device, stream))
        yield* CudaStream.synchronize(stream)
        yield* none
      })))

    it.live("samples large memory", () =>
      run(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(2 ** 22)
        const device = yield* CudaMemory.allocate(2 ** 22)
        const { bytes } = host
        yield* CudaMemory.copy(device, host, stream)
        yield* write(bytes, 0, bytes.length)
        yield* CudaStream.synchronize(stream)
        yield* found(0, bytes.length)
      })))
  })
}

describe("on a simulated runtime", () => {
  it.live("finds writes to memory that kernels and graphs read", () =>
    onSimulated(Effect.gen(function*() {
      const { back, device, host, stream, view } = yield* make
      const module = yield* CudaModule.load(yield* kernels)
      const kernel = yield* CudaKernel.get(module, "copies", [output, input])
      // A kernel that writes to pinned memory is not taken for the host.
      yield* CudaKernel.launch(kernel, { grid: 1, block: 1 }, [back, host], stream)
      yield* CudaKernel.launch(kernel, { grid: 1, block: 1 }, [device, back], stream)
      yield* CudaStream.synchronize(stream)
      yield* none
      const graph = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaMemory.copy(device, host)))
      yield* CudaGraph.launch(graph, stream)
      yield* write(view)
      yield* CudaStream.synchronize(stream)
      const { first } = yield* found()
      assert.strictEqual(first.operation, "CudaGraph.launch")
    })))

  it.live("finds writes to managed memory", () =>
    onSimulated(Effect.gen(function*() {
      const { device, stream } = yield* make
      const managed = yield* CudaMemory.allocateManaged(size)
      const { bytes } = managed
      yield* CudaMemory.copy(device, managed, stream)
      yield* write(bytes)
      yield* CudaStream.synchronize(stream)
      yield* found()
    })))

  it.live("orders the writes in an access, and finds those after it", () =>
    onSimulated(Effect.gen(function*() {
      const { device, host, stream, view } = yield* make
      const access = { reads: [host], writes: [device], stream }
      yield* CudaMemory.access(write(view), access)
      yield* CudaStream.synchronize(stream)
      yield* CudaMemory.access(Effect.andThen(write(view), CudaStream.synchronize(stream)), access)
      yield* write(view)
      yield* CudaStream.synchronize(stream)
      yield* none
      yield* CudaMemory.access(Effect.void, access)
      yield* write(view)
      yield* CudaStream.synchronize(stream)
      yield* found()
    })))

  // Virtual time stands still until it is adjusted, so the copies are in flight when the arrays change.
  it.effect("finds changes to an array that is uploaded in many pieces", () =>
    onSimulated(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const device = yield* CudaMemory.allocate(2 ** 26)
      const array = new Uint8Array(2 ** 26)
      const upload = yield* Effect.forkChild(CudaMemory.upload(device, array, stream), { startImmediately: true })
      yield* write(array, array.length - 4)
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(upload)
      const [report] = yield* races
      assert.strictEqual(report?.bytes.offset, array.length - 4)
      assert.match(report?.message ?? "", /CudaMemory\.upload reads source/)
    })))

  it.effect("finds changes to an array that is downloaded to", () =>
    onSimulated(changeWhileDownloading(TestClock.adjust("1 minute"))))
})

describe("on a native runtime", () => {
  // The download begins by pinning memory on another thread.
  it.live("finds changes to an array that is downloaded to", () => onNative(changeWhileDownloading(Effect.void)))
})

const changeWhileDownloading = (wait: Effect.Effect<void>): Program<void> =>
  Effect.gen(function*() {
    const { device, stream } = yield* make
    const array = new Uint8Array(size)
    const download = yield* Effect.forkChild(CudaMemory.download(array, device, stream), { startImmediately: true })
    yield* write(array)
    yield* wait
    yield* Fiber.join(download)
    const reports = yield* races
    assert.lengthOf(reports, 1)
    assert.match(reports[0]!.message, /CudaMemory\.download writes destination/)
  })
