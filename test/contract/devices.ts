/**
 * Devices: their properties, and the current device.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { deviceAttributes } from "../../src/cuda/flags.ts"
import type { DeviceAttribute } from "../../src/cuda/flags.ts"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import type { Rig } from "../support/Rig.ts"

export const deviceContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("devices", (it) => {
    it.effect("are counted, listed and got by index", () =>
      Effect.gen(function*() {
        const devices = yield* CudaDevice.all
        assert.strictEqual(devices.length, rig.deviceCount)
        assert.strictEqual(yield* CudaDevice.count, rig.deviceCount)
        for (const [index, device] of devices.entries()) {
          assert.strictEqual(yield* CudaDevice.get(index), device)
          assert.strictEqual(device.index, index)
        }
      }))

    it.effect("report their properties", () =>
      Effect.gen(function*() {
        for (const device of yield* CudaDevice.all) {
          assert.isNotEmpty(device.name)
          assert.match(device.uuid, /^GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/)
          assert.match(device.pciBusId, /^[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]$/)
          assert.isAbove(device.computeCapability.major, 0)
          const { major, minor } = device.computeCapability
          assert.strictEqual(yield* CudaDevice.attribute("computeCapabilityMajor", device), major)
          assert.strictEqual(yield* CudaDevice.attribute("computeCapabilityMinor", device), minor)
          const memory = yield* CudaDevice.memoryInfo(device)
          assert.isAtMost(memory.free, memory.total)
          assert.isAbove(memory.free, 0)
          assert.isAtMost(memory.total, device.totalMemory)
        }
      }))

    it.effect("return an integer for every named attribute", () =>
      Effect.gen(function*() {
        for (const name of Object.keys(deviceAttributes) as ReadonlyArray<DeviceAttribute>) {
          assert.isTrue(Number.isInteger(yield* CudaDevice.attribute(name)), name)
        }
        assert.strictEqual(yield* CudaDevice.attribute("warpSize"), 32)
        assert.strictEqual(yield* CudaDevice.attribute("memoryPoolsSupported"), 1)
      }))

    it.effect("have a priority range from least to greatest", () =>
      Effect.gen(function*() {
        const range = yield* CudaDevice.priorityRange()
        assert.strictEqual(range.least, 0)
        assert.isBelow(range.greatest, 0)
      }))

    for (const index of [-1, 99, 0.5, Number.NaN]) {
      it.effect(`rejects device ${index}`, () =>
        leavesNothing(Effect.gen(function*() {
          yield* refuses(CudaDevice.get(index), "device")
          yield* refuses(CudaDevice.memoryInfo(index), "device")
          yield* refuses(CudaDevice.synchronize(index), "device")
          yield* refuses(CudaDevice.canAccessPeer(0, index), "peer")
          yield* refuses(CudaDevice.withDevice(Effect.void, index), "device")
          yield* refuses(CudaStream.make({ device: index }), "device")
          yield* refuses(CudaStream.fromPool({ device: index }), "device")
          yield* refuses(CudaStream.defaultStream({ device: index }), "device")
        })))
    }

    it.effect("reject an unknown attribute", () =>
      refuses(CudaDevice.attribute("shoeSize" as DeviceAttribute), "attribute"))

    it.effect("withDevice sets the current device and restores it on every exit", () =>
      Effect.gen(function*() {
        const last = rig.deviceCount - 1
        const index = Effect.map(CudaDevice.current, (device) => device.index)
        assert.strictEqual(yield* index, 0)
        const nested = Effect.gen(function*() {
          assert.strictEqual(yield* index, last)
          assert.strictEqual(yield* CudaDevice.withDevice(index, 0), 0)
          assert.strictEqual(yield* index, last)
        })
        yield* CudaDevice.withDevice(nested, last)
        yield* Effect.exit(CudaDevice.withDevice(Effect.fail("no"), last))
        assert.strictEqual(yield* index, 0)
        const fiber = yield* Effect.forkChild(CudaDevice.withDevice(Effect.never, last), { startImmediately: true })
        fiber.interruptUnsafe()
        assert.strictEqual(yield* index, 0)
      }))

    it.effect("synchronize returns at once on an idle device", () => CudaDevice.synchronize())

    it.effect("withDevice passes failures through unchanged", () =>
      Effect.gen(function*() {
        const exit = yield* Effect.exit(CudaDevice.withDevice(Effect.fail("mine"), 0))
        assert.deepStrictEqual(exit, Exit.fail("mine"))
        yield* failsWith(CudaDevice.withDevice(CudaDevice.get(99), 0), "InvalidArgument")
      }))

    it.effect.skipIf(rig.deviceCount < 2)("report peer access in both directions", () =>
      Effect.gen(function*() {
        assert.strictEqual(yield* CudaDevice.canAccessPeer(0, 1), yield* CudaDevice.canAccessPeer(1, 0))
        assert.isFalse(yield* CudaDevice.canAccessPeer(0, 0))
      }))

    it.effect.skipIf(rig.deviceCount < 2)("attributes of a link agree with peer access, both ways", () =>
      Effect.gen(function*() {
        for (const [device, peer] of [[0, 1], [1, 0]] as const) {
          const isSupported = yield* CudaDevice.peerAttribute(device, peer, "accessSupported")
          assert.strictEqual(isSupported, Number(yield* CudaDevice.canAccessPeer(device, peer)))
          assert.isAtLeast(yield* CudaDevice.peerAttribute(device, peer, "performanceRank"), 0)
        }
        yield* refuses(CudaDevice.peerAttribute(0, 1, "shoeSize" as CudaDevice.PeerAttribute), "attribute")
      }))

    it.effect("a device has no link to itself, nor to one that does not exist", () =>
      Effect.gen(function*() {
        yield* refuses(CudaDevice.peerAttribute(0, 0, "accessSupported"), "peer")
        yield* refuses(CudaDevice.peerAttribute(0, rig.deviceCount, "accessSupported"), "peer")
      }))
  })
