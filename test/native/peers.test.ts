/**
 * Access between devices on the driver: the exact calls, what copies and graphs keep, and devices that are connected from the start.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaDevice, CudaGraph, CudaMemory, CudaMemoryPool, CudaStream } from "effect-cuda"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Effect from "effect/Effect"
import { failsWith, refuses } from "../support/assertions.ts"
import { openStub } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"

const stub = openStub()
const { callsOf, opened, openDevice } = tracing(stub)

const machine = (devices: number, unlinked = false) => ({
  prepare: () => {
    stub.devices = devices
    stub.unlinked = unlinked
  }
})

/** Gives a device access to memory in a pool. */
const accessLine = (pool: number, device: number, flags: number) => ["cuMemPoolSetAccess", pool, device, flags] as const

describe("access of a device", () => {
  it.live("is given in its context, to the context and the pools of the peer, and taken in turn", () =>
    opened(
      ({ context, pool }) =>
        Effect.gen(function*() {
          const other = yield* openDevice(1)
          const own = yield* CudaMemoryPool.make({ device: 0 })
          yield* CudaMemoryPool.make({ device: 0, peers: [] })
          const given = yield* callsOf(CudaDevice.enablePeerAccess(1, 0))
          const asked = given.lines.filter(([name]) => name !== "cuDeviceCanAccessPeer")
          assert.deepStrictEqual(asked, [
            ...within(other.context, ["cuCtxEnablePeerAccess", context, 0]),
            ...within(context, [...accessLine(pool, 1, 3)]),
            ...within(context, [...accessLine(own.handle, 1, 3)])
          ])
          const again = yield* callsOf(CudaDevice.enablePeerAccess(1, 0))
          assert.deepStrictEqual(again.lines, within(other.context, ["cuCtxEnablePeerAccess", context, 0]))
          const taken = yield* callsOf(CudaDevice.disablePeerAccess(1, 0))
          assert.deepStrictEqual(taken.lines, [
            ...within(context, [...accessLine(pool, 1, 0)]),
            ...within(context, [...accessLine(own.handle, 1, 0)]),
            ...within(other.context, ["cuCtxDisablePeerAccess", context])
          ])
          yield* CudaDevice.disablePeerAccess(1, 0)
        }),
      machine(2)
    ))

  it.live("fails with the driver's reason where there is no link", () =>
    opened(
      () =>
        Effect.gen(function*() {
          yield* failsWith(CudaDevice.enablePeerAccess(1, 0), "PeerAccessUnsupported")
          const pool = yield* CudaMemoryPool.make()
          yield* failsWith(CudaMemoryPool.allowAccess(pool, 1), "PeerAccessUnsupported")
          yield* failsWith(CudaMemoryPool.make({ peers: [1] }), "PeerAccessUnsupported")
          assert.lengthOf(stub.calls("cuMemPoolDestroy"), 1)
          assert.lengthOf(stub.calls("cuMemPoolSetAccess"), 0)
        }),
      machine(2, true)
    ))
})

describe("the driver's access", () => {
  const prepared = Effect.gen(function*() {
    const stream = yield* CudaStream.make({ device: 1 })
    const pool = yield* CudaMemoryPool.make({ device: 0, peers: [1] })
    const from = yield* CudaMemory.allocate(64, { pool })
    const to = yield* CudaMemory.allocate(64, { device: 1 })
    return { from, pool, stream, to }
  })

  it.live("stays for copies, which kernels then may not use", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const { from, pool, stream, to } = yield* prepared
          yield* CudaMemory.copy(to, from, stream)
          const { calls } = yield* callsOf(CudaMemoryPool.denyAccess(pool, 1))
          assert.notInclude(calls.map(({ name }) => name), "cuMemPoolSetAccess")
          yield* failsWith(CudaMemory.fill(from, 0, stream), "DeviceMismatch")
          const copied = yield* callsOf(CudaMemory.copy(to, from, stream))
          assert.deepStrictEqual(copied.calls.map(({ name }) => name), ["cuMemcpyPeerAsync"])
        }),
      machine(2)
    ))

  it.live("stays for graphs that copy", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const { from, pool, to } = yield* prepared
          const copy = Effect.flatMap(CudaStream.current(1), (stream) => CudaMemory.copy(to, from, stream))
          yield* CudaGraph.instantiate(yield* CudaGraph.record(copy).pipe(CudaDevice.withDevice(1)))
          const { calls } = yield* callsOf(CudaMemoryPool.denyAccess(pool, 1))
          assert.notInclude(calls.map(({ name }) => name), "cuMemPoolSetAccess")
        }),
      machine(2)
    ))

  it.live("to memory in no pool stays for graphs, and comes with access to the device", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make({ device: 1 })
          const owner = yield* CudaMemory.allocate(64)
          stub.hidesPools = true
          const far = yield* CudaMemory.fromAddress(owner.address, 64, { device: 0 })
          yield* failsWith(CudaMemory.fill(far, 0, stream), "DeviceMismatch")
          yield* CudaDevice.enablePeerAccess(1, 0)
          yield* CudaMemory.fill(far, 0, stream)
          const work = Effect.flatMap(CudaStream.current(1), (current) => CudaMemory.fill(far, 1, current))
          yield* CudaGraph.instantiate(yield* CudaGraph.record(work).pipe(CudaDevice.withDevice(1)))
          const { calls } = yield* callsOf(CudaDevice.disablePeerAccess(1, 0))
          assert.notInclude(calls.map(({ name }) => name), "cuCtxDisablePeerAccess")
          yield* failsWith(CudaMemory.fill(far, 0, stream), "DeviceMismatch")
        }),
      machine(2)
    ))

  it.live("to memory in no pool is given again to graphs that were recorded with it", () =>
    opened(
      ({ context }) =>
        Effect.gen(function*() {
          const owner = yield* CudaMemory.allocate(64)
          stub.hidesPools = true
          const far = yield* CudaMemory.fromAddress(owner.address, 64, { device: 0 })
          yield* CudaDevice.enablePeerAccess(1, 0)
          const work = Effect.flatMap(CudaStream.current(1), (current) => CudaMemory.fill(far, 1, current))
          const graph = yield* CudaGraph.record(work).pipe(CudaDevice.withDevice(1))
          yield* CudaDevice.disablePeerAccess(1, 0)
          const { lines } = yield* callsOf(CudaGraph.instantiate(graph))
          assert.deepInclude(lines, ["cuCtxEnablePeerAccess", context, 0])
          const { calls } = yield* callsOf(CudaDevice.disablePeerAccess(1, 0))
          assert.notInclude(calls.map(({ name }) => name), "cuCtxDisablePeerAccess")
        }),
      machine(2)
    ))

  it.live("is not asked for once the pool of a buffer is released", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make({ device: 1 })
          const to = yield* CudaMemory.allocate(64, { device: 1 })
          const from = yield* Effect.scoped(CudaMemoryPool.make({ device: 0 })).pipe(
            Effect.flatMap(() => CudaMemory.allocate(64, { device: 0 }))
          )
          yield* CudaMemory.copy(to, from, stream)
          assert.lengthOf(stub.calls("cuMemcpyPeerAsync"), 1)
        }),
      machine(2)
    ))
})

describe("a runtime whose devices are peers", () => {
  it.live("connects each device that it opens with those before, both ways", () =>
    opened(
      () =>
        Effect.gen(function*() {
          yield* openDevice(2)
          yield* CudaStream.make({ device: 1 })
          assert.lengthOf(stub.calls("cuCtxEnablePeerAccess"), 4)
          const stream = yield* CudaStream.make({ device: 2 })
          yield* CudaMemory.fill(yield* CudaMemory.allocate(64, { device: 1 }), 0, stream)
        }),
      { ...machine(3), peers: "all" }
    ))

  it.live("leaves devices without a link apart", () =>
    opened(
      () =>
        Effect.gen(function*() {
          yield* openDevice(1)
          const stream = yield* CudaStream.make({ device: 1 })
          yield* failsWith(CudaMemory.fill(yield* CudaMemory.allocate(64), 0, stream), "DeviceMismatch")
          assert.lengthOf(stub.calls("cuCtxEnablePeerAccess"), 0)
        }),
      { ...machine(2, true), peers: "all" }
    ))

  it.live("leaves a device apart if connecting it fails, and can connect it later", () =>
    opened(
      () =>
        Effect.gen(function*() {
          stub.fail("cuCtxEnablePeerAccess", 711)
          yield* openDevice(1)
          const [to0, to1] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64, { device: 1 })]
          const streams = [yield* CudaStream.make(), yield* CudaStream.make({ device: 1 })] as const
          yield* failsWith(CudaMemory.fill(to0, 0, streams[1]), "DeviceMismatch")
          yield* CudaMemory.fill(to1, 0, streams[0])
          yield* CudaDevice.enablePeerAccess(1, 0)
          yield* CudaMemory.fill(to0, 0, streams[1])
        }),
      { ...machine(2), peers: "all" }
    ))

  it.live("takes no other setting", () =>
    refuses(Effect.scoped(NativeRuntime.make({ libraryPath: stub.path, peers: "some" as never })), "peers"))
})
