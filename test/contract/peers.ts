/**
 * Access of devices to memory of other devices: refused until it is given, by device and by pool, and after it was taken away.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaGraph, CudaKernel, CudaMemory, CudaMemoryPool, CudaModule, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { program, signatures } from "../support/kernels.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const words = 1024

/** Ends the access of both devices however the test ends, because tests share a runtime. */
const apart = <A, E, R>(test: Effect.Effect<A, E, R>) =>
  Effect.ensuring(
    leavesNothing(test),
    Effect.orDie(Effect.andThen(CudaDevice.disablePeerAccess(0, 1), CudaDevice.disablePeerAccess(1, 0)))
  )

const filled = (value: number, options: CudaMemory.DeviceBufferOptions & { readonly device?: number }) =>
  Effect.tap(CudaMemory.allocate(4 * words, options), (buffer) =>
    Effect.andThen(
      CudaMemory.upload(buffer, new Float32Array(words).fill(value)),
      CudaDevice.synchronize(buffer.deviceIndex)
    ))

const floatsOf = (buffer: CudaMemory.DeviceBuffer) =>
  Effect.suspend(() => {
    const floats = new Float32Array(words)
    return Effect.as(CudaMemory.download(floats, buffer), floats)
  })

/** Adds the numbers of a buffer to those of another, on a device. */
const adding = Effect.map(
  Effect.flatMap(
    Effect.flatMap(program, (made) => CudaModule.load(made)),
    (module) => CudaKernel.get(module, "add", signatures.add)
  ),
  (add) => (to: CudaMemory.DeviceBuffer, from: CudaMemory.DeviceBuffer, device: number) =>
    Effect.flatMap(CudaStream.current(device), (stream) =>
      Effect.andThen(
        CudaKernel.launch(add, { grid: words / 256, block: 256 }, [to, from, words], stream),
        CudaStream.synchronize(stream)
      ))
)

export const peerContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("peers", (it) => {
    const test = it.effect.skipIf(rig.deviceCount < 2)

    test("a kernel uses memory of another device only while its device has access", () =>
      apart(Effect.gen(function*() {
        const add = yield* adding
        const [near, far] = [yield* filled(1, { device: 1 }), yield* filled(2, { device: 0 })]
        const { advice } = yield* failsWith(add(near, far, 1), "DeviceMismatch")
        assert.include(advice, "CudaDevice.enablePeerAccess(1, 0)")
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* add(near, far, 1)
        assert.isTrue((yield* floatsOf(near)).every((value) => value === 3))
        yield* add(far, near, 1)
        assert.isTrue((yield* floatsOf(far)).every((value) => value === 5))
        // The other way was not asked for.
        yield* failsWith(add(far, near, 0), "DeviceMismatch")
        yield* CudaDevice.disablePeerAccess(1, 0)
        yield* failsWith(add(near, far, 1), "DeviceMismatch")
      })))

    test("access is given and taken any number of times", () =>
      apart(Effect.gen(function*() {
        const [far, stream] = [yield* filled(2, { device: 0 }), yield* CudaStream.make({ device: 1 })]
        const clear = CudaMemory.fill(far, 0, stream)
        yield* CudaDevice.disablePeerAccess(1, 0)
        for (const _ of [1, 2]) {
          yield* CudaDevice.enablePeerAccess(1, 0)
          yield* CudaDevice.enablePeerAccess(1, 0)
          yield* clear
          yield* CudaDevice.disablePeerAccess(1, 0)
          yield* CudaDevice.disablePeerAccess(1, 0)
          yield* failsWith(clear, "DeviceMismatch")
        }
      })))

    test("taking access away waits for the work that may use it", () =>
      apart(Effect.gen(function*() {
        const [far, stream] = [yield* filled(2, { device: 0 }), yield* CudaStream.make({ device: 1 })]
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* (yield* Busy).enqueue(stream, 30)
        yield* CudaMemory.fill(far, 0, stream)
        const disabling = yield* Effect.forkChild(CudaDevice.disablePeerAccess(1, 0), { startImmediately: true })
        yield* failsWith(CudaMemory.fill(far, 1, stream), "DeviceMismatch")
        yield* Fiber.join(disabling)
        assert.isTrue(yield* CudaStream.query(stream))
        assert.isTrue((yield* floatsOf(far)).every((value) => value === 0))
      })))

    test("access that is given again while it is being taken away stays", () =>
      apart(Effect.gen(function*() {
        const [far, stream] = [yield* filled(2, { device: 0 }), yield* CudaStream.make({ device: 1 })]
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* (yield* Busy).enqueue(stream, 20)
        const disabling = yield* Effect.forkChild(CudaDevice.disablePeerAccess(1, 0), { startImmediately: true })
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* Fiber.join(disabling)
        yield* CudaMemory.fill(far, 0, stream)
        yield* CudaStream.synchronize(stream)
      })))

    test("an interrupted end of access leaves the memory refused, and can be repeated", () =>
      apart(Effect.gen(function*() {
        const [far, stream] = [yield* filled(2, { device: 0 }), yield* CudaStream.make({ device: 1 })]
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* (yield* Busy).enqueue(stream, 20)
        const disabling = yield* Effect.forkChild(CudaDevice.disablePeerAccess(1, 0), { startImmediately: true })
        yield* Fiber.interrupt(disabling)
        yield* failsWith(CudaMemory.fill(far, 1, stream), "DeviceMismatch")
        yield* CudaDevice.disablePeerAccess(1, 0)
        assert.isTrue(yield* CudaStream.query(stream))
      })))

    test("a pool without peers of its own follows its device, made before or after", () =>
      apart(Effect.gen(function*() {
        const before = yield* CudaMemoryPool.make({ device: 0 })
        yield* CudaDevice.enablePeerAccess(1, 0)
        const after = yield* CudaMemoryPool.make({ device: 0 })
        const add = yield* adding
        for (const pool of [before, after, yield* CudaMemoryPool.ofDevice(0)]) {
          assert.deepStrictEqual(CudaMemoryPool.peers(pool), [1])
          const [near, far] = [yield* filled(1, { device: 1 }), yield* filled(2, { pool })]
          yield* add(near, far, 1)
          assert.isTrue((yield* floatsOf(near)).every((value) => value === 3))
        }
        yield* CudaDevice.disablePeerAccess(1, 0)
        assert.deepStrictEqual([before, after].map(CudaMemoryPool.peers), [[], []])
      })))

    test("a pool with peers of its own keeps them", () =>
      apart(Effect.gen(function*() {
        const shared = yield* CudaMemoryPool.make({ device: 0, peers: [1] })
        const own = yield* CudaMemoryPool.make({ device: 0, peers: [] })
        const stream = yield* CudaStream.make({ device: 1 })
        const [open, closed] = [yield* filled(1, { pool: shared }), yield* filled(1, { pool: own })]
        yield* CudaMemory.fill(open, 0, stream)
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* failsWith(CudaMemory.fill(closed, 0, stream), "DeviceMismatch")
        yield* CudaDevice.disablePeerAccess(1, 0)
        yield* CudaMemory.fill(open, 0, stream)
        yield* own.pipe(CudaMemoryPool.allowAccess(1))
        yield* CudaMemory.fill(closed, 0, stream)
        yield* shared.pipe(CudaMemoryPool.denyAccess(1))
        yield* failsWith(CudaMemory.fill(open, 0, stream), "DeviceMismatch")
        assert.deepStrictEqual([shared, own].map(CudaMemoryPool.peers), [[], [1]])
        yield* CudaStream.synchronize(stream)
      })))

    test("memory of other code is accessible with its device", () =>
      apart(Effect.gen(function*() {
        const [owner, stream] = [yield* filled(1, { device: 0 }), yield* CudaStream.make({ device: 1 })]
        const foreign = yield* CudaMemory.fromAddress(owner.address, 4 * words, { device: 0 })
        yield* failsWith(CudaMemory.fill(foreign, 0, stream), "DeviceMismatch")
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* CudaMemory.fill(foreign, 0, stream)
        yield* CudaStream.synchronize(stream)
      })))

    test("native code and recorded kernels may use it too", () =>
      apart(Effect.gen(function*() {
        const [near, far] = [yield* filled(1, { device: 1 }), yield* filled(2, { device: 0 })]
        const add = yield* Effect.flatMap(
          Effect.flatMap(program, (made) => CudaModule.load(made)),
          (module) => CudaKernel.get(module, "add", signatures.add)
        )
        const stream = yield* CudaStream.make({ device: 1 })
        const used = CudaMemory.enqueue({ reads: [far], writes: [near], stream, simulate: () => {} }, () => {})
        yield* failsWith(used, "DeviceMismatch")
        yield* CudaDevice.enablePeerAccess(1, 0)
        yield* used
        const graph = yield* CudaGraph.record(
          CudaKernel.launch(add, { grid: words / 256, block: 256 }, [near, far, words])
        ).pipe(CudaDevice.withDevice(1))
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaGraph.launch(exec, {}, stream)
        yield* CudaStream.synchronize(stream)
        assert.isTrue((yield* floatsOf(near)).every((value) => value === 3))
        // The graph keeps what it needs.
        yield* CudaDevice.disablePeerAccess(1, 0)
        yield* CudaGraph.launch(exec, {}, stream)
        yield* CudaStream.synchronize(stream)
        assert.isTrue((yield* floatsOf(near)).every((value) => value === 5))
      })))

    test("copies of every kind work between devices, with and without access", () =>
      apart(Effect.gen(function*() {
        for (const hasAccess of [false, true]) {
          if (hasAccess) yield* CudaDevice.enablePeerAccess(1, 0)
          const pool = yield* CudaMemoryPool.make({ device: 0, peers: [] })
          const [from, to] = [yield* filled(7, { pool }), yield* filled(0, { device: 1 })]
          const stream = yield* CudaStream.make({ device: 1 })
          const half = (buffer: CudaMemory.DeviceBuffer, at: number) => CudaMemory.slice(buffer, at, 2 * words)
          const copies: ReadonlyArray<Effect.Effect<void, CudaError, CudaRuntime>> = [
            CudaMemory.copy(to, from, stream),
            CudaMemory.copyBatch(
              [0, 2 * words].map((at) => ({ destination: half(to, at), source: half(from, at) })),
              stream
            ),
            CudaMemory.copy2D(
              CudaMemory.rows(to, 64),
              CudaMemory.rows(from, 64),
              { width: 64, height: words / 16 },
              stream
            ),
            CudaMemory.copy2D(
              CudaMemory.rows(to, 64),
              CudaMemory.rows(from, 64),
              { width: 32, height: words / 16 },
              stream
            )
          ]
          for (const [index, copy] of copies.entries()) {
            yield* CudaMemory.fill(to, 0, stream)
            yield* copy
            yield* CudaStream.synchronize(stream)
            const sevens = (yield* floatsOf(to)).filter((value) => value === 7).length
            assert.strictEqual(sevens, index === 3 ? words / 2 : words, `copy ${index}`)
          }
        }
      })))

    test("a release waits for the work of a peer", () =>
      apart(Effect.gen(function*() {
        yield* CudaDevice.enablePeerAccess(1, 0)
        const stream = yield* CudaStream.make({ device: 1 })
        const busy = yield* Busy
        yield* Effect.scoped(Effect.gen(function*() {
          const far = yield* CudaMemory.allocate(4 * words, { device: 0 })
          yield* busy.enqueue(stream, 20)
          yield* CudaMemory.fill(far, 0, stream)
        }))
        const next = yield* filled(9, { device: 0 })
        yield* CudaStream.synchronize(stream)
        assert.isTrue((yield* floatsOf(next)).every((value) => value === 9))
      })))

    test("links are described, both ways", () =>
      Effect.gen(function*() {
        for (const [device, peer] of [[0, 1], [1, 0]] as const) {
          const link = yield* CudaDevice.link(device, peer)
          assert.strictEqual(link.canAccess, yield* CudaDevice.canAccessPeer(device, peer))
          assert.deepStrictEqual([link.device, link.peer], [device, peer])
          assert.isAtLeast(link.performanceRank, 0)
        }
      }))

    it.effect("usage counts the buffers and busy streams of a device", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const before = yield* CudaDevice.usage()
        yield* CudaMemory.allocate(4096)
        yield* (yield* Busy).enqueue(stream, 20)
        const during = yield* CudaDevice.usage()
        assert.deepStrictEqual(
          [during.buffers - before.buffers, during.bytes - before.bytes, during.busyStreams - before.busyStreams],
          [1, 4096, 1]
        )
        yield* CudaStream.synchronize(stream)
        assert.strictEqual((yield* CudaDevice.usage()).busyStreams, before.busyStreams)
      })))

    it.effect("a device is no peer of itself, nor of one that does not exist", () =>
      leavesNothing(Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ device: 0 })
        for (const peer of [0, rig.deviceCount, -1, Number.NaN]) {
          yield* refuses(CudaDevice.enablePeerAccess(0, peer), "peer")
          yield* refuses(CudaDevice.disablePeerAccess(0, peer), "peer")
          yield* refuses(CudaMemoryPool.allowAccess(pool, peer), "device")
          yield* refuses(CudaMemoryPool.denyAccess(pool, peer), "device")
          if (peer !== 0) yield* refuses(CudaMemoryPool.make({ device: 0, peers: [peer] }), "peers[0]")
        }
        yield* refuses(CudaDevice.link(0, 0), "peer")
        const released = yield* Effect.scoped(CudaMemoryPool.make())
        if (rig.deviceCount > 1) yield* failsWith(CudaMemoryPool.allowAccess(released, 1), "ResourceReleased")
      })))

    test("access cannot be taken away inside a recording", () =>
      apart(Effect.gen(function*() {
        yield* failsWith(CudaGraph.record(CudaDevice.disablePeerAccess(1, 0)), "CannotRecord")
      })))
  })
