/**
 * Placement on the devices of a runtime, whatever else they hold.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaHealth, CudaMemory, CudaPlacement, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import { failsWith, leavesNothing } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const mebi = 2 ** 20

export const placementContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("placement", (it) => {
    const test = it.effect.skipIf(rig.deviceCount < 2)

    it.effect("loads agree with what the devices say", () =>
      leavesNothing(Effect.gen(function*() {
        const loads = yield* CudaPlacement.loads
        assert.lengthOf(loads, rig.deviceCount)
        for (const [index, load] of loads.entries()) {
          assert.strictEqual(load.device, yield* CudaDevice.get(index))
          assert.deepStrictEqual([load.leases, load.reservedMemory, load.utilization], [0, 0, undefined])
          assert.isAtLeast(load.availableMemory, 1)
          assert.isAtMost(load.availableMemory, load.device.totalMemory)
        }
      })))

    it.effect("a device that is picked has the memory, and none has more than there is", () =>
      leavesNothing(Effect.gen(function*() {
        const device = yield* CudaPlacement.pick({ memory: 16 * mebi })
        yield* CudaMemory.allocate(16 * mebi, { device })
        yield* failsWith(CudaPlacement.pick({ memory: 2 ** 50 }), "OutOfMemory")
        yield* failsWith(CudaPlacement.lease({ memory: 2 ** 50 }), "OutOfMemory")
      })))

    test("a device with work is picked last", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make({ device: 0 })
        yield* busy.enqueue(stream, 50)
        assert.strictEqual((yield* CudaPlacement.pick({ devices: [0, 1] })).index, 1)
        yield* CudaStream.synchronize(stream)
      })))

    test("leases go to the devices in turn, and end with their scopes", () =>
      leavesNothing(Effect.gen(function*() {
        const places = yield* Effect.scoped(
          Effect.all(Array.from({ length: 6 }, () => CudaPlacement.lease({ devices: [0, 1] })), {
            concurrency: "unbounded"
          })
        )
        assert.deepStrictEqual(places.map(({ index }) => index).toSorted(), [0, 0, 0, 1, 1, 1])
        assert.isTrue((yield* CudaPlacement.loads).every(({ leases }) => leases === 0))
      })))

    it.effect("many fibers work on leased devices", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const work = Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(mebi)
          yield* busy.enqueue(stream, 50)
          yield* CudaMemory.fill(buffer, 1, stream)
          yield* CudaStream.synchronize(stream)
          return buffer.deviceIndex
        }).pipe(Effect.scoped, CudaPlacement.withLease({ memory: mebi, perDevice: 2 }))
        const where = yield* Effect.all(Array.from({ length: 24 }, () => work), { concurrency: "unbounded" })
        assert.lengthOf(new Set(where), rig.deviceCount)
      })))

    it.effect("utilization is known with the health of devices", () =>
      Effect.gen(function*() {
        const [load] = yield* CudaPlacement.loads
        assert.isAtLeast(load!.utilization ?? -1, 0)
        assert.isAtMost(load!.utilization ?? -1, 1)
      }).pipe(Effect.provide(CudaHealth.layerSimulated([{ utilization: { gpu: 0.25, memory: 0 } }]))))
  })
