/**
 * The driver calls of the native runtime: for every operation the exact calls, their arguments and their context. The last
 * test fails if a function of the table was never called.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaInterprocess from "effect-cuda/CudaInterprocess"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import * as CudaPartition from "effect-cuda/CudaPartition"
import * as CudaProfiler from "effect-cuda/CudaProfiler"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTiming from "effect-cuda/CudaTiming"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { deviceAttributes } from "../../src/cuda/flags.ts"
import type { DeviceAttribute } from "../../src/cuda/flags.ts"
import { driverFunctions, optionalDriverFunctions } from "../../src/cuda/functions.ts"
import type { DriverFunctionName } from "../../src/cuda/functions.ts"
import { success } from "../../src/cuda/status.ts"
import { ownEvent, ownStream } from "../../src/layers/shared/resources.ts"
import { failsWith } from "../support/assertions.ts"
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
import { assertReleased, copyStub, nothingLive, onStub, openStub, stubLayer, until } from "../support/stubDriver.ts"
import type { StubFunctionName } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"

const stub = openStub()

const gibibyte = 1024 ** 3
const segment = 16 * 1024 * 1024

/** The device handles of the stub are its ordinals plus 40. */
const deviceHandle = (ordinal: number): number => 40 + ordinal

const { callsOf, opened, openDevice } = tracing(stub)

describe("building the layer", () => {
  it.live("initializes the driver off the JS thread and reads every device", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const [init, ...rest] = stub.calls()
        assert.deepStrictEqual([init!.name, init!.args, init!.main], ["cuInit", [0], false])
        assert.isTrue(rest.every((call) => call.main))
        const ofDevice = (ordinal: number) => [
          ["cuDeviceGet", deviceHandle(ordinal), ordinal],
          ["cuDeviceGetName", 256, deviceHandle(ordinal)],
          ["cuDeviceGetUuid_v2", deviceHandle(ordinal)],
          ["cuDeviceGetPCIBusId", 64, deviceHandle(ordinal)],
          ["cuDeviceTotalMem_v2", 80 * gibibyte, deviceHandle(ordinal)],
          ["cuDeviceGetAttribute", 9, 75, deviceHandle(ordinal)],
          ["cuDeviceGetAttribute", 0, 76, deviceHandle(ordinal)]
        ]
        assert.deepStrictEqual(stub.lines().slice(1), [
          ["cuDriverGetVersion", 13000],
          ["cuDeviceGetCount", 2],
          ...ofDevice(0),
          ...ofDevice(1)
        ])
        assert.strictEqual(runtime.driverVersion, 13000)
        assert.deepStrictEqual(runtime.devices[1], {
          index: 1,
          name: "Stub GPU 1",
          uuid: "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1",
          computeCapability: { major: 9, minor: 0 },
          totalMemory: 80 * gibibyte,
          pciBusId: "0000:29:00.0"
        })
      }),
      {
        prepare: () => {
          stub.devices = 2
          stub.memory = 80 * gibibyte
        }
      }
    ))

  it.live("retains no context before a device is used", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* CudaDevice.count
        yield* CudaDevice.all
        assert.deepStrictEqual(stub.live, nothingLive)
      })
    ))
})

describe("opening and closing a device", () => {
  const poolProperties = (ordinal: number): string => {
    const bytes = Buffer.alloc(88)
    bytes.writeInt32LE(1, 0) // CU_MEM_ALLOCATION_TYPE_PINNED
    bytes.writeInt32LE(0, 4) // CU_MEM_HANDLE_TYPE_NONE
    bytes.writeInt32LE(1, 8) // CU_MEM_LOCATION_TYPE_DEVICE
    bytes.writeInt32LE(ordinal, 12)
    return bytes.toString("hex")
  }

  it.live("retains the primary context on another thread, then creates the pool and two streams in it", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const { calls, lines } = yield* callsOf(runtime.devicePriorityRange(1))
        const [retain] = calls
        assert.deepStrictEqual([retain!.name, retain!.main], ["cuDevicePrimaryCtxRetain", false])
        const context = Number(retain!.args[0])
        const [allocations, releases] = stubResults(calls, "cuStreamCreateWithPriority")
        const [pool] = stubResults(calls, "cuMemPoolCreate")
        assert.deepStrictEqual(lines, [
          ["cuDevicePrimaryCtxRetain", context, deviceHandle(1)],
          ...within(
            context,
            ["cuCtxGetStreamPriorityRange", 0, -5],
            ["cuStreamCreateWithPriority", allocations!, 1, 0],
            ["cuStreamCreateWithPriority", releases!, 1, 0],
            ["cuMemPoolCreate", pool!, poolProperties(1)],
            ["cuMemPoolSetAttribute", pool!, 4, "18446744073709551615"],
            ["cuMemPoolSetAttribute", pool!, 3, 0]
          )
        ])
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("opens a device once under concurrent first uses", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* Effect.all(Array.from({ length: 20 }, () => CudaStream.make()), { concurrency: "unbounded" })
        assert.lengthOf(stub.calls("cuDevicePrimaryCtxRetain"), 1)
        assert.strictEqual(stub.live.contexts, 1)
      })
    ))

  it.live("closes a device: markers, streams and pool in its context, then releases it on another thread", () =>
    Effect.gen(function*() {
      stub.reset()
      const device = yield* Effect.gen(function*() {
        const device = yield* openDevice()
        const [first, second] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        yield* CudaStream.waitStream(first, second)
        const marker = Number(stub.calls("cuEventCreate")[0]!.args[0])
        yield* Effect.addFinalizer(() => Effect.sync(() => stub.clear()))
        return { ...device, marker }
      }).pipe(Effect.scoped, Effect.provide(stubLayer(stub)))
      const { allocations, context, marker, pool, releases } = device
      const afterStreams = stub.lines().filter(([name]) => !["cuStreamQuery"].includes(String(name))).slice(-7)
      assert.deepStrictEqual(afterStreams, [
        ...within(
          context,
          ["cuEventDestroy_v2", marker],
          ["cuStreamDestroy_v2", allocations],
          ["cuStreamDestroy_v2", releases],
          ["cuMemPoolDestroy", pool]
        ),
        ["cuDevicePrimaryCtxRelease_v2", deviceHandle(0)]
      ])
      assert.isFalse(stub.calls("cuDevicePrimaryCtxRelease_v2")[0]!.main)
      assertReleased(stub)
    }))
})

const stubResults = (
  calls: ReadonlyArray<{ readonly name: string; readonly args: ReadonlyArray<number | string> }>,
  name: DriverFunctionName
) => calls.filter((call) => call.name === name).map((call) => Number(call.args[0]))

describe("devices", () => {
  it.live("reads every attribute by its number", () =>
    opened(() =>
      Effect.forEach(Object.entries(deviceAttributes), ([name, number]) =>
        Effect.gen(function*() {
          const { lines, result } = yield* callsOf(CudaDevice.attribute(name as DeviceAttribute))
          assert.deepStrictEqual(lines, [["cuDeviceGetAttribute", result, number, deviceHandle(0)]])
        }))
    ))

  it.live("reads free and total memory above 4 GiB", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        yield* CudaMemory.allocate(5 * gibibyte)
        const { lines, result } = yield* callsOf(CudaDevice.memoryInfo())
        assert.deepStrictEqual(result, { free: 3 * gibibyte, total: 8 * gibibyte })
        assert.deepStrictEqual(lines, within(context, ["cuMemGetInfo_v2", 3 * gibibyte, 8 * gibibyte]))
      })
    ))

  it.live("starts and stops profilers in its context", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const { lines } = yield* callsOf(CudaProfiler.capture(CudaDevice.attribute("warpSize")))
        const [start, stop] = [within(context, ["cuProfilerStart"]), within(context, ["cuProfilerStop"])]
        assert.deepStrictEqual(lines.filter(([name]) => name !== "cuDeviceGetAttribute"), [...start, ...stop])
        assert.deepStrictEqual(lines[start.length]?.[0], "cuDeviceGetAttribute")
      })
    ))

  it.live("returns the priority range read when it opened the device", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const { lines, result } = yield* callsOf(CudaDevice.priorityRange())
          assert.deepStrictEqual(result, { least: 2, greatest: -3 })
          assert.deepStrictEqual(lines, [])
        }),
      { prepare: () => void (stub.priorities = { least: 2, greatest: -3 }) }
    ))

  it.live("queries peer access by device handles", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const { lines, result } = yield* callsOf(CudaDevice.canAccessPeer(0, 1))
          assert.isTrue(result)
          assert.deepStrictEqual(lines, [["cuDeviceCanAccessPeer", 1, deviceHandle(0), deviceHandle(1)]])
          assert.isFalse(yield* CudaDevice.canAccessPeer(0, 0))
          const link = yield* callsOf(CudaDevice.peerAttribute(0, 1, "nativeAtomicSupported"))
          assert.strictEqual(link.result, 1)
          assert.deepStrictEqual(link.lines, [["cuDeviceGetP2PAttribute", 1, 3, deviceHandle(0), deviceHandle(1)]])
        }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("synchronizes with a marker on each stream, default ones in their context", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* CudaStream.defaultStream()
        stub.clear()
        yield* CudaDevice.synchronize()
        const records = stub.calls("cuEventRecord")
        assert.sameMembers(records.map((call) => Number(call.args[1])), [stream.handle, 1])
        assert.strictEqual(records.find((call) => call.args[1] === 1)!.context, context)
      })
    ))
})

describe("streams", () => {
  const creations: ReadonlyArray<readonly [CudaStream.MakeOptions, flags: number, priority: number]> = [
    [{}, 1, 0],
    [{ nonBlocking: false }, 0, 0],
    [{ priority: "high" }, 1, -5],
    [{ priority: -2 }, 1, -2],
    [{ priority: -100, outOfRange: "clamp" }, 1, -5],
    [{ priority: 100, outOfRange: "clamp" }, 1, 0]
  ]
  for (const [options, flags, priority] of creations) {
    it.live(`make ${JSON.stringify(options)} creates a stream with flags ${flags} and priority ${priority}`, () =>
      opened(({ context }) =>
        Effect.gen(function*() {
          const { lines, result: stream } = yield* callsOf(CudaStream.make(options))
          assert.deepStrictEqual(lines, [
            ...within(context, ["cuStreamCreateWithPriority", stream.handle, flags, priority]),
            ["cuStreamGetId", stream.handle, stream.id]
          ])
          assert.deepStrictEqual([stream.priority, stream.isNonBlocking, stream.deviceIndex], [
            priority,
            flags === 1,
            0
          ])
        })
      ))
  }

  it.live("the release queries the stream and destroys it", () =>
    opened(() =>
      Effect.gen(function*() {
        let handle = 0
        const { lines } = yield* callsOf(Effect.scoped(Effect.gen(function*() {
          handle = (yield* CudaStream.make()).handle
          stub.clear()
        })))
        assert.deepStrictEqual(lines, [["cuStreamQuery", handle], ["cuStreamDestroy_v2", handle]])
      })
    ))

  it.live("the pool creates 32 streams and hands them out round-robin", () =>
    opened(() =>
      Effect.gen(function*() {
        const streams = yield* Effect.forEach(Array.from({ length: 33 }), () => CudaStream.fromPool())
        assert.strictEqual(streams[32]!.handle, streams[0]!.handle)
        assert.lengthOf(stub.calls("cuStreamCreateWithPriority"), 32)
        assert.isTrue(stub.calls("cuStreamCreateWithPriority").every(({ args }) => args[1] === 1))
      })
    ))

  for (const [mode, handle, id] of [["legacy", 1, 0], ["perThread", 2, 15]] as const) {
    it.live(`the ${mode} default stream is handle ${handle}, used in its context and never destroyed`, () =>
      opened(({ context }) =>
        Effect.gen(function*() {
          const made = yield* callsOf(CudaStream.defaultStream({ mode }))
          assert.deepStrictEqual([made.result.handle, made.result.id], [handle, id])
          assert.deepStrictEqual(made.lines, within(context, ["cuStreamGetId", handle, mode === "legacy" ? 7 : 15]))
          const stream = made.result
          const query = yield* callsOf(CudaStream.query(stream))
          assert.deepStrictEqual(query.lines, within(context, ["cuStreamQuery", handle]))
          const event = yield* CudaEvent.make()
          const record = yield* callsOf(CudaEvent.record(event, stream))
          assert.deepStrictEqual(record.lines, within(context, ["cuEventRecord", event.handle, handle]))
          const wait = yield* callsOf(CudaStream.waitEvent(stream, event))
          assert.deepStrictEqual(wait.lines, within(context, ["cuStreamWaitEvent", handle, event.handle, 0]))
          const buffer = yield* CudaMemory.allocate(64)
          const fill = yield* callsOf(CudaMemory.fill(buffer, 7, stream))
          assert.deepStrictEqual(fill.lines, within(context, ["cuMemsetD8Async", buffer.address, 7, 64, handle]))
        })
      ))
  }

  it.live("copies on a default stream run in its context", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const host = yield* CudaMemory.allocateHost(64)
        const buffer = yield* CudaMemory.allocate(64)
        const stream = yield* CudaStream.defaultStream()
        const { lines } = yield* callsOf(CudaMemory.copy(buffer, host, stream))
        assert.deepStrictEqual(
          lines,
          within(context, ["cuMemcpyHtoDAsync_v2", buffer.address, host.address, 64, 1])
        )
      })
    ))

  it.live("wraps a foreign stream after querying it, and never destroys it", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const handle = stub.foreignStream(0, { flags: 1, priority: -4 })
        const { lines, result: stream } = yield* callsOf(Effect.scoped(CudaStream.fromHandle(handle)))
        assert.deepStrictEqual(lines, [
          ["cuStreamGetCtx", handle, context],
          ["cuStreamGetId", handle, stream.id],
          ["cuStreamGetPriority", handle, -4],
          ["cuStreamGetFlags", handle, 1]
        ])
        assert.deepStrictEqual(
          [stream.handle, stream.priority, stream.isNonBlocking, stream.origin],
          [handle, -4, true, "foreign"]
        )
        yield* CudaStream.synchronize(stream)
        assert.lengthOf(stub.calls("cuStreamDestroy_v2"), 0)
      })
    ))

  it.live("rejects a stream of another context", () =>
    opened(() =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(CudaStream.fromHandle(stub.foreignStream(-1)))
        assert.strictEqual(error.reason._tag, "InvalidContext")
      })
    ))

  it.live("query, waitEvent and waitStream are one call per step, without a context", () =>
    opened(() =>
      Effect.gen(function*() {
        const [one, two] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        const event = yield* CudaEvent.make()
        const query = yield* callsOf(CudaStream.query(one))
        assert.deepStrictEqual([query.result, query.lines], [true, [["cuStreamQuery", one.handle]]])
        const wait = yield* callsOf(CudaStream.waitEvent(one, event))
        assert.deepStrictEqual(wait.lines, [["cuStreamWaitEvent", one.handle, event.handle, 0]])
        const same = yield* callsOf(CudaEvent.wait(event, two))
        assert.deepStrictEqual(same.lines, [["cuStreamWaitEvent", two.handle, event.handle, 0]])
        yield* CudaStream.waitStream(one, two)
        const again = yield* callsOf(CudaStream.waitStream(one, two))
        const marker = Number(again.lines[0]![1])
        assert.deepStrictEqual(again.lines, [
          ["cuEventRecord", marker, two.handle],
          ["cuStreamWaitEvent", one.handle, marker, 0]
        ])
        assert.isTrue([...query.calls, ...wait.calls, ...again.calls].every((call) => call.context === 0))
      })
    ))

  it.live("query returns false for an unfinished stream, and synchronize records and queries a marker", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        assert.isFalse(yield* CudaStream.query(stream))
        stub.clear()
        const waiting = yield* Effect.forkChild(CudaStream.synchronize(stream))
        yield* until("the marker is asked about", () => stub.calls("cuEventQuery").length > 0)
        const marker = Number(stub.calls("cuEventCreate")[0]!.args[0])
        assert.deepStrictEqual(stub.calls("cuEventCreate")[0]!.args, [marker, 2])
        assert.deepStrictEqual(stub.calls("cuEventRecord")[0]!.args, [marker, stream.handle])
        assert.deepStrictEqual(stub.calls("cuEventQuery")[0]!.args, [marker])
        stub.finish(stream)
        yield* Fiber.join(waiting)
        assert.isTrue(yield* CudaStream.query(stream))
      })
    ))
})

describe("events", () => {
  const kinds: ReadonlyArray<readonly [CudaEvent.UntimedOptions | CudaEvent.TimedOptions, number]> = [
    [{}, 2],
    [{ timing: true }, 0],
    [{ blocking: true }, 3],
    [{ timing: true, blocking: true }, 1],
    [{ interprocess: true }, 6],
    [{ interprocess: true, blocking: true }, 7]
  ]
  for (const [options, flags] of kinds) {
    it.live(`make ${JSON.stringify(options)} creates an event with flags ${flags}`, () =>
      opened(({ context }) =>
        Effect.gen(function*() {
          const { lines, result: event } = yield* callsOf(
            options.timing === true ? CudaEvent.make(options) : CudaEvent.make(options)
          )
          assert.deepStrictEqual(lines, within(context, ["cuEventCreate", event.handle, flags]))
          assert.strictEqual(event.flags, flags)
        })
      ))
  }

  it.live("record and query are one call each, without a context", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const event = yield* CudaEvent.make()
        const record = yield* callsOf(CudaEvent.record(event, stream))
        assert.deepStrictEqual(record.lines, [["cuEventRecord", event.handle, stream.handle]])
        const query = yield* callsOf(CudaEvent.query(event))
        assert.deepStrictEqual([query.result, query.lines], [true, [["cuEventQuery", event.handle]]])
        const synchronize = yield* callsOf(CudaEvent.synchronize(event))
        assert.deepStrictEqual(synchronize.lines, [["cuEventQuery", event.handle]])
      })
    ))

  for (
    const [what, use] of [
      ["never recorded", () => Effect.void],
      ["seen to be done by a query", (event: CudaEvent.CudaEvent) => CudaEvent.query(event)],
      ["waited for", (event: CudaEvent.CudaEvent, stream: CudaStream.CudaStream) =>
        Effect.gen(function*() {
          stub.work(stream)
          yield* CudaEvent.record(event, stream)
          const fiber = yield* Effect.forkChild(CudaEvent.synchronize(event), { startImmediately: true })
          stub.finish(stream)
          yield* Fiber.join(fiber)
        })]
    ] as const
  ) {
    it.live(`an event that was ${what} is kept on release for reuse`, () =>
      opened(() =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          yield* Effect.scoped(Effect.gen(function*() {
            const event = yield* CudaEvent.make()
            if (what !== "never recorded") yield* CudaEvent.record(event, stream)
            yield* use(event, stream)
          }))
          assert.lengthOf(stub.calls("cuEventDestroy_v2"), 0)
          const [made] = stub.calls("cuEventCreate")
          const next = yield* callsOf(CudaEvent.make())
          assert.deepStrictEqual([next.result.handle, next.lines], [made!.args[0], []])
          assert.isTrue(yield* CudaEvent.query(next.result))
          assert.strictEqual((yield* callsOf(CudaEvent.make({ timing: true }))).lines[1]![0], "cuEventCreate")
        })
      ))
  }

  it.live("an event that may be pending, is shared, or exposed its handle, is destroyed on release", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const recorded = yield* callsOf(Effect.scoped(CudaStream.recordEvent(stream)))
        assert.strictEqual(recorded.lines.at(-1)![0], "cuEventDestroy_v2")
        const shared = yield* callsOf(Effect.scoped(CudaEvent.make({ interprocess: true })))
        assert.strictEqual(shared.lines.at(-1)![0], "cuEventDestroy_v2")
        const given = yield* callsOf(Effect.scoped(Effect.map(CudaEvent.make(), (event) => event.handle)))
        assert.deepStrictEqual(given.lines.at(-1), ["cuEventDestroy_v2", given.result])
      })
    ))

  it.live("no event is reused once the contexts are lost", () =>
    Effect.gen(function*() {
      stub.reset()
      yield* Effect.gen(function*() {
        yield* Effect.scoped(CudaEvent.make())
        const stream = yield* CudaStream.make()
        stub.fault = 700
        yield* Effect.flip(CudaStream.query(stream))
        const error = yield* Effect.flip(CudaEvent.make())
        assert.strictEqual(error.reason._tag, "IllegalAddress")
      }).pipe(Effect.scoped, Effect.provide(stubLayer(stub)))
    }))

  it.live("no more than a thousand events of a kind are kept", () =>
    opened(() =>
      Effect.gen(function*() {
        yield* Effect.scoped(Effect.forEach(Array.from({ length: 1030 }), () => CudaEvent.make(), { discard: true }))
        assert.strictEqual(stub.live.events, 1024)
      })
    ))

  it.live("recordEvent without an event creates one with timing disabled", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const { calls, result } = yield* callsOf(CudaStream.recordEvent(stream))
        assert.deepStrictEqual(calls[1]!.args, [result.handle, 2])
        assert.deepStrictEqual(calls.at(-1)!.args, [result.handle, stream.handle])
      })
    ))

  it.live("elapsedTime is one call, to the newer version if available", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const start = yield* CudaEvent.make({ timing: true })
        const end = yield* CudaEvent.make({ timing: true })
        const buffer = yield* CudaMemory.allocate(64)
        yield* CudaEvent.record(start, stream)
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* CudaMemory.fill(buffer, 2, stream)
        yield* CudaEvent.record(end, stream)
        const { lines, result } = yield* callsOf(CudaEvent.elapsedTime(start, end))
        assert.deepStrictEqual(lines, [["cuEventElapsedTime_v2", start.handle, end.handle]])
        // Three stub operations of one microsecond each, as a 32-bit float of milliseconds.
        assert.closeTo(Duration.toMillis(result), 0.003, 1e-6)
      })
    ))

  it.live("elapsedTime retries once when its events finish right after the first call", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
        yield* CudaEvent.record(start, stream)
        yield* CudaEvent.record(end, stream)
        stub.fail("cuEventElapsedTime_v2", 600)
        assert.closeTo(Duration.toMillis(yield* CudaEvent.elapsedTime(start, end)), 0.001, 1e-6)
        stub.fail("cuEventElapsedTime_v2", 600, { times: 2 })
        yield* failsWith(CudaEvent.elapsedTime(start, end), "NotReady")
      })
    ))

  it.live("elapsedTime uses the older version on an older driver", () => {
    const old = copyStub(["cuEventElapsedTime_v2=stub_hidden"])
    return onStub(
      old,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
        yield* CudaEvent.record(start, stream)
        yield* CudaEvent.record(end, stream)
        yield* CudaEvent.elapsedTime(start, end)
        assert.lengthOf(old.calls("cuEventElapsedTime"), 1)
      })
    )
  })

  it.live("ipcHandle returns the driver's 64 bytes, in the event's context", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const event = yield* CudaEvent.make({ interprocess: true })
        const { lines, result } = yield* callsOf(CudaEvent.ipcHandle(event))
        assert.deepStrictEqual(lines, within(context, ["cuIpcGetEventHandle", event.handle]))
        const pattern = Uint8Array.from({ length: 64 }, (_, index) => index * 7 + 3)
        new DataView(pattern.buffer).setBigUint64(0, BigInt(event.handle), true)
        assert.deepStrictEqual(result, pattern)
      })
    ))

  it.live("fromIpcHandle passes the 64 bytes by value, in the device's context", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const remote = stub.remoteEvent()
        const { lines, result: event } = yield* callsOf(CudaEvent.fromIpcHandle(remote.handle))
        assert.deepStrictEqual(
          lines,
          within(context, ["cuIpcOpenEventHandle", event.handle, Buffer.from(remote.handle).toString("hex")])
        )
        assert.isTrue(event.isInterprocess)
        assert.isFalse(yield* CudaEvent.query(event))
        remote.finish()
        assert.isTrue(yield* CudaEvent.query(event))
      })
    ))

  it.live("fromIpcHandle reads a view into a larger buffer from its offset", () =>
    opened(() =>
      Effect.gen(function*() {
        const remote = stub.remoteEvent()
        const large = new Uint8Array(256).fill(0xff)
        large.set(remote.handle, 100)
        yield* CudaEvent.fromIpcHandle(large.subarray(100, 164))
        remote.finish()
      })
    ))
})

describe("memory", () => {
  it.live("allocates from the pool on a dedicated stream, with 64-bit sizes", () =>
    opened(({ allocations, pool }) =>
      Effect.gen(function*() {
        const { lines, result: buffer } = yield* callsOf(CudaMemory.allocate(5 * gibibyte))
        assert.deepStrictEqual(lines, [
          ["cuMemAllocFromPoolAsync", buffer.address, 5 * gibibyte, pool, allocations],
          ["cuStreamQuery", allocations]
        ])
      })
    ))

  it.live("frees on the release stream, after the work of every stream that used the buffer", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const [one, two, idle] = yield* Effect.all([CudaStream.make(), CudaStream.make(), CudaStream.make()])
        yield* CudaStream.waitStream(idle, one)
        const { lines, result } = yield* callsOf(Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64)
          yield* CudaMemory.fill(buffer, 1, one)
          yield* CudaMemory.fill(buffer, 2, two)
          yield* CudaMemory.fill(buffer, 3, one)
          stub.clear()
          return buffer.address
        })))
        const marker = Number(lines[0]![1])
        assert.deepStrictEqual(lines, [
          ["cuEventRecord", marker, one.handle],
          ["cuStreamWaitEvent", releases, marker, 0],
          ["cuEventRecord", marker, two.handle],
          ["cuStreamWaitEvent", releases, marker, 0],
          ["cuMemFreeAsync", result, releases]
        ])
      })
    ))

  it.live("pins whole pages, portable, in the context of an open device", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const { calls, result: host } = yield* callsOf(CudaMemory.allocateHost(100))
        assert.deepStrictEqual(calls.map(({ args, name }) => [name, ...args]), [
          ...within(context, ["cuMemHostRegister_v2", host.address, 64 * 1024, 1])
        ])
        assert.strictEqual(host.address % 4096, 0)
        assert.strictEqual(host.bytes.byteLength, 100)
      })
    ))

  it.live("copies in each direction with its own call, offsets added to addresses", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(1000)
        const [from, to] = yield* Effect.all([CudaMemory.allocate(1000), CudaMemory.allocate(1000)])
        host.bytes.forEach((_, index) => host.bytes[index] = index % 251)
        const up = yield* callsOf(
          CudaMemory.copy(CudaMemory.slice(from, 10, 90), CudaMemory.slice(host, 20, 90), stream)
        )
        assert.deepStrictEqual(up.lines, [
          ["cuMemcpyHtoDAsync_v2", from.address + 10, host.address + 20, 90, stream.handle]
        ])
        const across = yield* callsOf(
          CudaMemory.copy(CudaMemory.slice(to, 30, 90), CudaMemory.slice(from, 10, 90), stream)
        )
        assert.deepStrictEqual(across.lines, [
          ["cuMemcpyDtoDAsync_v2", to.address + 30, from.address + 10, 90, stream.handle]
        ])
        const down = yield* callsOf(
          CudaMemory.copy(CudaMemory.slice(host, 500, 90), CudaMemory.slice(to, 30, 90), stream)
        )
        assert.deepStrictEqual(down.lines, [
          ["cuMemcpyDtoHAsync_v2", host.address + 500, to.address + 30, 90, stream.handle]
        ])
        assert.deepStrictEqual(host.bytes.slice(500, 590), host.bytes.slice(20, 110))
      })
    ))

  it.live("copies between devices with both contexts", () =>
    opened(
      ({ context }) =>
        Effect.gen(function*() {
          const other = yield* openDevice(1)
          const stream = yield* CudaStream.make({ device: 1 })
          const from = yield* CudaMemory.allocate(256)
          const to = yield* CudaMemory.allocate(256, { device: 1 })
          const first = yield* callsOf(CudaMemory.copy(to, from, stream))
          const { lines } = yield* callsOf(CudaMemory.copy(to, from, stream))
          const copied = ["cuMemcpyPeerAsync", to.address, other.context, from.address, context, 256, stream.handle]
          assert.deepStrictEqual(lines, [copied])
          const names = ["cuDeviceCanAccessPeer", "cuCtxPushCurrent_v2", "cuMemPoolSetAccess", "cuCtxPopCurrent_v2"]
          assert.deepStrictEqual(first.calls.map(({ name }) => name), [...names, ...names, "cuMemcpyPeerAsync"])
          assert.deepStrictEqual(first.lines.at(-1), copied)
          const access = first.calls.filter(({ name }) => name === "cuMemPoolSetAccess")
          assert.deepStrictEqual(access.map(({ args }) => args.slice(1)), [[0, 3], [1, 3]])
        }),
      { prepare: () => void (stub.devices = 2) }
    ))

  const fills: ReadonlyArray<readonly [8 | 16 | 32, CudaMemory.FillOperation, DriverFunctionName, number]> = [
    [8, CudaMemory.fill, "cuMemsetD8Async", 0xff],
    [16, CudaMemory.fill16, "cuMemsetD16Async", 0xfedc],
    [32, CudaMemory.fill32, "cuMemsetD32Async", 0xfedcba98]
  ]
  for (const [bits, fill, name, value] of fills) {
    it.live(`fills with ${bits} bits, counting elements`, () =>
      opened(() =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(64)
          const part = CudaMemory.slice(buffer, 16, 32)
          const { lines } = yield* callsOf(fill(part, value, stream))
          assert.deepStrictEqual(lines, [[name, buffer.address + 16, value, 32 / (bits / 8), stream.handle]])
        })
      ))
  }

  it.live("passes offsets and lengths above 4 GiB untruncated", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(6 * gibibyte)
        const far = CudaMemory.slice(buffer, 5 * gibibyte + 3, 7)
        const { lines } = yield* callsOf(CudaMemory.fill(far, 9, stream))
        assert.deepStrictEqual(lines, [["cuMemsetD8Async", buffer.address + 5 * gibibyte + 3, 9, 7, stream.handle]])
      })
    ))

  it.live("copies of a range longer than 4 GiB keep their length", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(12 * gibibyte)
          stub.pending = "copies"
          const to = CudaMemory.slice(buffer, 0, 5 * gibibyte)
          const from = CudaMemory.slice(buffer, 6 * gibibyte, 5 * gibibyte)
          stub.fail("cuMemcpyDtoDAsync_v2", 1)
          yield* Effect.flip(CudaMemory.copy(to, from, stream))
          assert.deepStrictEqual(stub.calls("cuMemcpyDtoDAsync_v2")[0]!.args, [
            buffer.address,
            buffer.address + 6 * gibibyte,
            5 * gibibyte,
            stream.handle
          ])
        }),
      { prepare: () => void (stub.memory = 16 * gibibyte) }
    ))

  it.live("a copy or fill of no bytes makes no driver call", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(64)
        const host = yield* CudaMemory.allocateHost(64)
        const empty = CudaMemory.slice(buffer, 64, 0)
        const { lines } = yield* callsOf(
          Effect.andThen(
            CudaMemory.copy(empty, CudaMemory.slice(host, 0, 0), stream),
            CudaMemory.fill(empty, 0, stream)
          )
        )
        assert.deepStrictEqual(lines, [])
      })
    ))

  it.live("uploads and downloads ordinary arrays through pinned memory", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const bytes = Uint8Array.from({ length: 2 * segment + 1000 }, (_, index) => (index * 31) % 253)
        const back = new Uint8Array(bytes.byteLength)
        const buffer = yield* CudaMemory.allocate(bytes.byteLength)
        yield* CudaMemory.upload(buffer, bytes, stream)
        yield* CudaMemory.download(back, buffer, stream)
        assert.isTrue(Buffer.from(bytes.buffer).equals(Buffer.from(back.buffer)))
        assert.deepStrictEqual(stub.calls("cuMemcpyHtoDAsync_v2").map(({ args }) => args[2]), [segment, segment, 1000])
        assert.deepStrictEqual(stub.calls("cuMemcpyDtoHAsync_v2").map(({ args }) => args[2]), [segment, segment, 1000])
      })
    ))

  it.live("reclaiming synchronizes with the finished release stream and trims the pool", () =>
    opened(({ pool, releases }) =>
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const { lines } = yield* callsOf(runtime.memoryReclaim(0))
        assert.deepStrictEqual(lines.slice(-2), [["cuStreamSynchronize", releases], ["cuMemPoolTrimTo", pool, 0]])
      })
    ))
})

describe("foreign contexts", () => {
  it.live("stay current, and no call that needs a context runs in them", () =>
    opened(({ context }) =>
      Effect.acquireUseRelease(
        Effect.sync(() => stub.pushForeign()),
        (foreign) =>
          Effect.gen(function*() {
            stub.clear()
            const host = yield* CudaMemory.allocateHost(64)
            const buffer = yield* CudaMemory.allocate(64)
            const stream = yield* CudaStream.make()
            const event = yield* CudaEvent.make()
            const byDefault = yield* CudaStream.defaultStream()
            yield* CudaDevice.memoryInfo()
            yield* CudaEvent.record(event, byDefault)
            yield* CudaStream.waitEvent(stream, event)
            yield* CudaStream.waitStream(byDefault, stream)
            yield* CudaMemory.copy(buffer, host, byDefault)
            yield* CudaMemory.fill(buffer, 0, byDefault)
            yield* CudaStream.synchronize(byDefault)
            yield* CudaDevice.synchronize()
            assert.strictEqual(stub.current, foreign)
            assert.strictEqual(stub.depth, 1)
            const inForeign = stub.calls().filter((call) => call.main && call.context !== context)
            assert.deepStrictEqual(inForeign.filter(({ args, name }) => needsContext(name, args)), [])
          }),
        () => Effect.sync(() => stub.popForeign())
      )
    ))

  /** Calls that depend on the current context: creation, and anything on a default stream. */
  const needsContext = (name: StubFunctionName, args: ReadonlyArray<number | string>): boolean =>
    ["cuStreamCreateWithPriority", "cuEventCreate", "cuMemHostRegister_v2", "cuMemGetInfo_v2"].includes(name) ||
    (streamArgument[name] !== undefined && Number(args[streamArgument[name]]) <= 2)

  const streamArgument: { readonly [Name in StubFunctionName]?: number } = {
    cuStreamQuery: 0,
    cuStreamGetId: 0,
    cuStreamWaitEvent: 0,
    cuEventRecord: 1,
    cuMemcpyHtoDAsync_v2: 3,
    cuMemsetD8Async: 3
  }
})

describe("the table", () => {
  it.live("asks the driver to describe unknown statuses", () =>
    opened(() =>
      Effect.gen(function*() {
        stub.fail("cuEventCreate", 12345)
        const error = yield* Effect.flip(CudaEvent.make())
        assert.include(error.message, "CUDA_ERROR_OF_THE_STUB (12345): a status that only the stub knows")
      })
    ))

  it.live("has the GPU wake the event loop for a long wait", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        const waiting = yield* Effect.forkChild(CudaStream.synchronize(stream))
        yield* until("the wake-up is arranged", () => stub.calls("cuLaunchHostFunc").length > 0)
        stub.finish(stream)
        yield* Fiber.join(waiting)
      })
    ))

  it.live("has the functions of modules and kernels, tested elsewhere", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
          yield* CudaModule.global(module, "counter")
          const nothing = yield* CudaKernel.get(module, "nothing", signatures.nothing)
          yield* CudaKernel.setAttribute(nothing, "nonPortableClusterSizeAllowed", 1)
          const config = { grid: 2, block: 1, cluster: 2 }
          yield* CudaKernel.activeBlocks(nothing, { block: 1 })
          yield* CudaKernel.bestBlock(nothing)
          yield* CudaKernel.activeClusters(nothing, config)
          yield* CudaKernel.maxClusterSize(nothing, config)
          yield* CudaKernel.launch(nothing, { grid: 1, block: 1 }, [], stream)
          yield* CudaKernel.launch(nothing, config, [], stream)
        })
    ))

  it.live("has the functions of other memory and copies, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const pool = yield* CudaMemoryPool.make()
        const from = yield* CudaMemory.allocate(64, { pool, stream })
        const to = yield* CudaMemory.allocateManaged(64)
        yield* CudaMemoryPool.statistics(pool)
        yield* CudaMemory.advise(to, { readMostly: true })
        yield* CudaMemory.prefetch(to, 0, stream)
        yield* CudaMemory.copy2D(CudaMemory.rows(to, 32), CudaMemory.rows(from, 16), { width: 8, height: 2 }, stream)
        const half = (offset: number) => ({
          destination: CudaMemory.slice(to, offset, 32),
          source: CudaMemory.slice(from, offset, 32)
        })
        yield* CudaMemory.copyBatch([half(0), half(32)], stream)
      })
    ))

  it.live("has the functions of graphs, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const backend = nativeBackend(stream)
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const nothing = yield* CudaKernel.get(module, "nothing", signatures.nothing)
        const bytes = 5 * segment
        const [buffer, host] = [yield* CudaMemory.allocate(bytes), yield* CudaMemory.allocateHost(bytes)]
        const event = ownEvent((yield* CudaEvent.make()).ref)
        const config = { grid: 1, block: 1, cooperative: true }
        const graph = graphOf(backend, [
          [launch(nothing, config, [])],
          [launch(nothing, config, [], { startsEarly: true }), 0],
          [fill(deviceMemory(buffer), 1), 1],
          [copy(buffer, host, bytes), 2],
          [record(event), 3]
        ], { events: [event], parameters: [["value", CudaParameter.u32]] })
        const instance = yield* instanceOf(backend, graph)
        assert.strictEqual(bind(backend, instance, graph), success)
        assert.strictEqual(backend.graphs.setEnabled(instance, graph.nodes[0]!, false), success)
        assert.strictEqual(backend.graphs.update(instance, graph, instance.bindings), success)
        assert.strictEqual(backend.graphs.upload(instance, ownStream(stream.ref)), success)
        assert.strictEqual(backend.graphs.launch(instance, graph, ownStream(stream.ref)), success)
      })
    ))

  it.live("has the functions of conditions in graphs, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const value = yield* CudaMemory.allocate(4)
        const graph = yield* CudaGraph.record(CudaGraph.when(value, CudaMemory.fill(value, 0)))
        yield* CudaGraph.instantiate(graph)
        assert.lengthOf(stub.calls("cuGraphConditionalHandleCreate"), 1)
        assert.lengthOf(stub.calls("cuGraphAddNode_v2"), 1)
      })
    ))

  it.live("has the functions of copies between devices in graphs, tested elsewhere", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const [here, there] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64, { device: 1 })]
          const copy = Effect.flatMap(CudaStream.current(), (stream) => CudaMemory.copy(here, there, stream))
          yield* CudaGraph.instantiate(yield* CudaGraph.record(copy))
          assert.lengthOf(stub.calls("cuMemPoolSetAccess"), 1)
        }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("has the functions of peer access, tested elsewhere", () =>
    opened(
      () =>
        Effect.gen(function*() {
          yield* CudaDevice.enablePeerAccess(1, 0)
          yield* CudaDevice.disablePeerAccess(1, 0)
          assert.lengthOf(stub.calls("cuCtxEnablePeerAccess"), 1)
          assert.lengthOf(stub.calls("cuCtxDisablePeerAccess"), 1)
        }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("has the functions of regions in graphs, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        const graph = yield* CudaGraph.record(CudaTiming.region(CudaMemory.fill(buffer, 1), "fill"))
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaTiming.timeline(CudaGraph.launch(exec))
        assert.lengthOf(stub.calls("cuGraphExecEventRecordNodeSetEvent"), 4)
      })
    ))

  it.live("has the functions of memory by address, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        yield* CudaMemory.fromAddress(buffer.address, 64)
      })
    ))

  it.live("has the functions of memory of other processes, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const shareable = yield* CudaMemoryPool.make({ shareable: true })
        const { descriptor, token } = yield* CudaInterprocess.sharePool(shareable)
        const pool = yield* CudaInterprocess.openPool({ ...token, id: "theirs" }, descriptor)
        const shared = yield* CudaInterprocess.share(yield* CudaMemory.allocate(64, { pool: shareable }))
        const own = yield* CudaInterprocess.share(yield* CudaInterprocess.allocate(64))
        const handle = Buffer.from(stub.remoteMemory(64)).toString("base64")
        for (const { kind } of [shared, own]) {
          const theirs = { _tag: own._tag, kind, handle, offset: 0, byteLength: 64 }
          yield* Effect.scoped(CudaInterprocess.open(theirs, { pool }))
        }
        yield* until("both are closed", () => stub.calls("cuIpcCloseMemHandle").length > 0)
      })
    ))

  it.live("has the functions of partitions, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const partition = yield* CudaPartition.make({ multiprocessors: 8 })
        yield* CudaStream.make({ partition })
      })
    ))

  it.live("tells the driver that a release has finished before its pool is destroyed", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.pending = "copies"
        const { lines, result: pool } = yield* callsOf(Effect.scoped(Effect.gen(function*() {
          const pool = yield* CudaMemoryPool.make()
          yield* CudaMemory.fill(yield* CudaMemory.allocate(64, { pool }), 1, stream)
          stub.clear()
          return pool
        })))
        const [marker] = lines.findLast(([name]) => name === "cuEventRecord")!.slice(1)
        assert.deepStrictEqual(lines.slice(-2), [["cuStreamQuery", releases], ["cuEventRecord", marker, releases]])
        stub.clear()
        stub.finish(stream)
        yield* until("the pool is destroyed", () => stub.calls("cuMemPoolDestroy").length > 0)
        assert.deepStrictEqual(stub.calls("cuEventSynchronize")[0]!.args, [marker])
        assert.deepStrictEqual(stub.calls().slice(-2).map(({ name }) => name), [
          "cuEventSynchronize",
          "cuMemPoolDestroy"
        ])
        assert.deepStrictEqual(stub.calls("cuMemPoolDestroy")[0]!.args, [pool.handle])
      })
    ))

  it.live("has the functions of growable memory, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.growable({ maxBytes: gibibyte, initial: 1 })
        yield* CudaMemory.shrink(buffer, 0)
      })
    ))

  it.live("has the functions of captures, tested elsewhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        const captured = CudaGraph.capture((stream) => Effect.sync(() => stub.nativeFill(stream, buffer, 1)))
        yield* CudaGraph.instantiate(yield* CudaGraph.record(captured))
        assert.lengthOf(stub.calls("cuGraphAddChildGraphNode"), 1)
      })
    ))

  it("has no function that these tests do not call", () => {
    stub.reset()
    assert.deepStrictEqual(
      Object.keys({ ...driverFunctions, ...optionalDriverFunctions }).filter((name) =>
        !stub.seen.has(name as StubFunctionName)
      ),
      ["cuEventElapsedTime"] // called where the newer version is missing
    )
  })
})
