/**
 * Placement on simulated devices: what is preferred, what leases reserve and wait for, and what is refused.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaDevice, CudaHealth, CudaMemory, CudaPlacement, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "./support/assertions.ts"

const kibi = 1024

/** Device 2 has the most memory. */
const machine = SimulatedRuntime.layer({ devices: [4, 4, 8, 4].map((size) => ({ memory: size * kibi })) })

const indexOf = Effect.map((device: CudaDevice.CudaDevice) => device.index)
const picked = (options?: CudaPlacement.PickOptions) => indexOf(CudaPlacement.pick(options))
const leased = (options?: CudaPlacement.LeaseOptions) => indexOf(CudaPlacement.lease(options))

const test = <E>(name: string, program: Effect.Effect<unknown, E, Services>) =>
  it.live(name, () => Effect.provide(leavesNothing(program), machine))
type Services = Layer.Success<typeof machine> | Scope.Scope

describe("a pick", () => {
  test(
    "prefers memory if nothing is loaded, and then the first index",
    Effect.gen(function*() {
      assert.strictEqual(yield* picked(), 2)
      assert.strictEqual(yield* picked({ by: "memory" }), 2)
      assert.strictEqual(yield* picked({ devices: [3, 1, 0] }), 0)
      assert.strictEqual(yield* picked({ devices: [3, yield* CudaDevice.get(1)] }), 1)
    })
  )

  test(
    "prefers devices without work, unless it goes by memory",
    Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      const streams = yield* Effect.forEach([0, 2, 2], (device) => CudaStream.make({ device }))
      for (const stream of streams) yield* control.launch(stream, { duration: "30 millis" })
      assert.deepStrictEqual((yield* CudaPlacement.loads).map(({ busyStreams }) => busyStreams), [1, 0, 2, 0])
      assert.strictEqual(yield* picked(), 1)
      assert.strictEqual(yield* picked({ by: "memory" }), 2)
      for (const stream of streams) yield* CudaStream.synchronize(stream)
      assert.strictEqual(yield* picked(), 2)
    })
  )

  test(
    "needs enough memory, counting what the pool keeps",
    Effect.gen(function*() {
      assert.strictEqual(yield* picked({ memory: 5 * kibi, by: "load" }), 2)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* CudaMemory.allocate(6 * kibi, { device: 2 })
        assert.strictEqual(yield* picked({ memory: 3 * kibi }), 0)
        const error = yield* Effect.flip(CudaPlacement.pick({ memory: 5 * kibi }))
        assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaPlacement.pick", "OutOfMemory"])
        assert.deepStrictEqual(error.memory, { requested: 5 * kibi, free: 4 * kibi, total: 4 * kibi })
        assert.include(error.message, "any of devices 0, 1, 2, 3")
      }))
      assert.strictEqual(yield* picked({ memory: 8 * kibi }), 2)
    })
  )

  test(
    "refuses other options",
    Effect.gen(function*() {
      yield* refuses(CudaPlacement.pick({ memory: -1 }), "memory")
      yield* refuses(CudaPlacement.pick({ memory: 0.5 }), "memory")
      yield* refuses(CudaPlacement.pick({ by: "name" as never }), "by")
      yield* refuses(CudaPlacement.pick({ devices: [] }), "devices")
      yield* refuses(CudaPlacement.pick({ devices: [0, 4] }), "devices[1]")
      yield* refuses(CudaPlacement.pick({ devices: [null as never] }), "devices[0]")
      yield* refuses(CudaPlacement.lease({ perDevice: 0 }), "perDevice")
    })
  )

  it.live("goes by utilization if the health of devices is known, and without it if that fails", () =>
    Effect.gen(function*() {
      const control = yield* CudaHealth.SimulatedHealth
      for (const [device, gpu] of [0.9, 0.31, 0.32, 0.5].entries()) {
        yield* control.set(device, { utilization: { gpu, memory: 0 } })
      }
      const utilization = Effect.map(CudaPlacement.loads, (loads) => loads.map((load) => load.utilization))
      assert.deepStrictEqual(yield* utilization, [0.9, 0.31, 0.32, 0.5])
      // Equally busy in steps of 10 %, so memory decides.
      assert.strictEqual(yield* picked(), 2)
      yield* control.set(1, { utilization: { gpu: 0.1, memory: 0 } })
      assert.strictEqual(yield* picked(), 1)
      yield* control.set(1, { utilization: undefined })
      assert.strictEqual((yield* utilization)[1], undefined)
    }).pipe(Effect.provide(CudaHealth.layerSimulated().pipe(Layer.provideMerge(machine)))))
})

describe("a lease", () => {
  test(
    "spreads fibers over devices, and ends with its scope",
    Effect.gen(function*() {
      yield* Effect.scoped(Effect.gen(function*() {
        const where = yield* Effect.all(Array.from({ length: 8 }, () => leased()), { concurrency: "unbounded" })
        assert.deepStrictEqual(where, [2, 0, 1, 3, 2, 0, 1, 3])
        assert.deepStrictEqual((yield* CudaPlacement.loads).map(({ leases }) => leases), [2, 2, 2, 2])
      }))
      assert.deepStrictEqual((yield* CudaPlacement.loads).map(({ leases }) => leases), [0, 0, 0, 0])
    })
  )

  test(
    "reserves memory that its holder has not allocated yet, and not twice",
    Effect.gen(function*() {
      yield* Effect.scoped(Effect.gen(function*() {
        assert.strictEqual(yield* leased({ memory: 5 * kibi }), 2)
        const available = Effect.map(CudaPlacement.loads, (loads) => loads[2]!.availableMemory)
        assert.strictEqual(yield* available, 3 * kibi)
        yield* CudaMemory.allocate(5 * kibi, { device: 2 })
        assert.strictEqual(yield* available, 3 * kibi)
        assert.strictEqual(yield* picked({ memory: 3 * kibi, by: "memory" }), 0)
      }))
      assert.strictEqual((yield* CudaPlacement.loads)[2]!.availableMemory, 8 * kibi)
    })
  )

  test(
    "waits for the memory that others have reserved, in the order of asking",
    Effect.gen(function*() {
      const order: Array<string> = []
      const first = yield* Scope.make()
      yield* Scope.provide(CudaPlacement.lease({ memory: 6 * kibi }), first)
      const wait = (name: string, memory: number) =>
        Effect.forkChild(
          Effect.scoped(Effect.map(leased({ memory }), (index) => void order.push(`${name} on ${index}`))),
          { startImmediately: true }
        )
      const large = yield* wait("large", 7 * kibi)
      const small = yield* wait("small", kibi)
      yield* Effect.sleep(5)
      assert.deepStrictEqual(order, [])
      yield* Scope.close(first, Exit.void)
      yield* Fiber.join(large)
      yield* Fiber.join(small)
      assert.deepStrictEqual(order, ["large on 2", "small on 2"])
    })
  )

  test(
    "does not wait for memory that no device has",
    Effect.gen(function*() {
      yield* CudaPlacement.lease()
      yield* failsWith(CudaPlacement.lease({ memory: 9 * kibi }), "OutOfMemory")
      yield* CudaMemory.allocate(4 * kibi, { device: 2 })
      yield* failsWith(CudaPlacement.lease({ memory: 7 * kibi, devices: [0, 1] }), "OutOfMemory")
    })
  )

  test(
    "is limited per device, and an interrupted wait gives its turn away",
    Effect.gen(function*() {
      const held = yield* Scope.make()
      const one = Scope.provide(leased({ perDevice: 1, devices: [0] }), held)
      assert.strictEqual(yield* one, 0)
      const waiting = yield* Effect.forkChild(Effect.scoped(leased({ perDevice: 1, devices: [0] })), {
        startImmediately: true
      })
      const next = yield* Effect.forkChild(Effect.scoped(leased({ perDevice: 2, devices: [0] })), {
        startImmediately: true
      })
      yield* Effect.sleep(5)
      assert.deepStrictEqual([waiting.pollUnsafe(), next.pollUnsafe()], [undefined, undefined])
      yield* Fiber.interrupt(waiting)
      assert.strictEqual(yield* Fiber.join(next), 0)
      yield* Scope.close(held, Exit.void)
      assert.strictEqual((yield* CudaPlacement.loads)[0]!.leases, 0)
    })
  )

  test(
    "runs an effect on its device, and ends however the effect ends",
    Effect.gen(function*() {
      const current = Effect.map(CudaDevice.current, ({ index }) => index)
      assert.strictEqual(yield* CudaPlacement.withLease(current), 2)
      assert.strictEqual(yield* current.pipe(CudaPlacement.withLease({ devices: [1] })), 1)
      assert.deepStrictEqual(yield* Effect.exit(CudaPlacement.withLease(Effect.fail("no"))), Exit.fail("no"))
      const fiber = yield* Effect.forkChild(CudaPlacement.withLease(Effect.never), { startImmediately: true })
      yield* Effect.sleep(5)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual((yield* CudaPlacement.loads).map(({ leases }) => leases), [0, 0, 0, 0])
    })
  )

  test(
    "leaves none behind, whenever fibers that want one are interrupted",
    Effect.gen(function*() {
      for (let steps = 0; steps < 60; steps++) {
        const fiber = yield* Effect.forkChild(CudaPlacement.withLease(Effect.yieldNow, { perDevice: 1 }), {
          startImmediately: true
        })
        for (let step = 0; step < steps % 20; step++) yield* Effect.yieldNow
        yield* Fiber.interrupt(fiber)
      }
      assert.deepStrictEqual((yield* CudaPlacement.loads).map(({ leases }) => leases), [0, 0, 0, 0])
    })
  )

  test(
    "serves many fibers, never more at a time than there are places",
    Effect.gen(function*() {
      const running = [0, 0, 0, 0]
      let most = 0
      const work = Effect.flatMap(CudaDevice.current, ({ index }) =>
        Effect.gen(function*() {
          most = Math.max(most, ++running[index]!)
          yield* Effect.sleep(1)
          running[index]!--
          return index
        }))
      const jobs = Array.from({ length: 60 }, () => CudaPlacement.withLease(work, { perDevice: 3 }))
      const where = yield* Effect.all(jobs, { concurrency: "unbounded" })
      assert.strictEqual(most, 3)
      assert.deepStrictEqual([...new Set(where)].toSorted(), [0, 1, 2, 3])
    })
  )
})
