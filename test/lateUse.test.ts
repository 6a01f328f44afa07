/**
 * Uses of what has ended: of handles after their scope or their runtime, by another runtime, and after the contexts are lost. Everything
 * fails with its reason.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaDevice,
  CudaInterprocess,
  CudaMemory,
  CudaMemoryPool,
  CudaNccl,
  CudaPartition,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { failsWith } from "./support/assertions.ts"

const size = 64
const machine = { devices: 2 }

const makeGiven = Effect.gen(function*() {
  const pool = yield* CudaMemoryPool.make({ shareable: true })
  const growable = yield* CudaMemory.growable({ maxBytes: 2 ** 22, initial: size })
  const partition = yield* CudaPartition.make({ multiprocessors: 8 })
  const pooled = yield* CudaMemory.allocate(size, { pool })
  const single = yield* CudaInterprocess.allocate(size)
  const stream = yield* CudaStream.make({ partition })
  const [communicator] = yield* CudaNccl.local([0])
  return { pool, growable, partition, pooled, single, stream, communicator: communicator! }
})

type Given = Effect.Success<typeof makeGiven>
type Use = (given: Given) => Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>

/** What uses a handle. */
const uses: Readonly<Record<string, Use>> = {
  grow: ({ growable }) => CudaMemory.grow(growable, 2 ** 22),
  shrink: ({ growable }) => CudaMemory.shrink(growable, 0),
  fill: ({ growable, stream }) => CudaMemory.fill(growable, 1, stream),
  allowAccess: ({ pool }) => CudaMemoryPool.allowAccess(pool, 1),
  denyAccess: ({ pool }) => CudaMemoryPool.denyAccess(pool, 1),
  sharePool: ({ pool }) => CudaInterprocess.sharePool(pool),
  "share memory of a pool": ({ pooled }) => CudaInterprocess.share(pooled),
  "share an allocation": ({ single }) => CudaInterprocess.share(single),
  lend: ({ single }) => CudaInterprocess.lend(single, () => Effect.void),
  "a stream of a partition": ({ partition }) => CudaStream.make({ partition }),
  "a pooled stream of a partition": ({ partition }) => CudaStream.fromPool({ partition }),
  within: ({ partition }) => CudaPartition.within(Effect.void, partition),
  "a collective": ({ communicator, pooled }) =>
    CudaNccl.run(CudaNccl.allReduce(communicator, { from: pooled, type: "u8" })),
  "a split": ({ communicator }) => CudaNccl.split(communicator, { color: 0 })
}

/** What needs a runtime alone. */
const makes: Readonly<Record<string, Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>>> = {
  growable: CudaMemory.growable({ maxBytes: size }),
  partition: CudaPartition.make({ multiprocessors: 8 }),
  allocation: CudaInterprocess.allocate(size),
  "pool with peers": CudaMemoryPool.make({ peers: [1] }),
  descriptor: CudaInterprocess.takeDescriptor(process.pid, 0),
  "peer access": CudaDevice.enablePeerAccess(1, 0),
  "no peer access": CudaDevice.disablePeerAccess(1, 0)
}

const fresh = SimulatedRuntime.make(machine)

const given = (runtime: CudaRuntime["Service"]) =>
  makeGiven.pipe(
    Effect.provide(Layer.provide(CudaNccl.layer(), Layer.succeed(CudaRuntime, runtime))),
    Effect.provideService(CudaRuntime, runtime)
  )

describe("a handle", () => {
  for (const [name, use] of Object.entries(uses)) {
    it.live(`whose scope has ended is refused: ${name}`, () =>
      Effect.gen(function*() {
        const { runtime } = yield* fresh
        const ended = yield* Effect.scoped(given(runtime))
        yield* failsWith(
          Effect.scoped(use(ended)).pipe(Effect.provideService(CudaRuntime, runtime)),
          "ResourceReleased"
        )
      }))

    it.live(`whose runtime has ended is refused: ${name}`, () =>
      Effect.gen(function*() {
        const [scope, inner] = [yield* Scope.make(), yield* Scope.make()]
        const { runtime } = yield* Scope.provide(fresh, scope)
        const ended = yield* Scope.provide(given(runtime), inner)
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(
          Effect.scoped(use(ended)).pipe(Effect.provideService(CudaRuntime, runtime)),
          "ResourceReleased"
        )
        yield* Scope.close(inner, Exit.void)
      }))

    it.live(`after the contexts are lost, fails with the origin: ${name}`, () =>
      Effect.gen(function*() {
        const { control, runtime } = yield* fresh
        const made = yield* given(runtime)
        yield* control.lose(0, "IllegalAddress")
        const error = yield* Effect.flip(
          Effect.scoped(use(made)).pipe(Effect.provideService(CudaRuntime, runtime), Effect.timeout("5 seconds"))
        )
        assert.strictEqual(error._tag === "CudaError" && error.reason._tag, "IllegalAddress", error.message)
      }))
  }
})

describe("a runtime", () => {
  for (const [name, make] of Object.entries(makes)) {
    it.live(`that has ended makes nothing: ${name}`, () =>
      Effect.gen(function*() {
        const { runtime } = yield* Effect.scoped(fresh)
        yield* failsWith(Effect.scoped(make).pipe(Effect.provideService(CudaRuntime, runtime)), "ResourceReleased")
      }))
  }

  it.live("refuses handles of another one", () =>
    Effect.gen(function*() {
      const [one, other] = [yield* fresh, yield* fresh]
      const { partition, pool, single, stream } = yield* given(one.runtime)
      const foreign = [
        CudaStream.make({ partition }),
        CudaStream.fromPool({ partition }),
        CudaPartition.within(Effect.void, partition),
        CudaMemory.allocate(size, { pool }),
        CudaMemory.growable({ maxBytes: size, initial: size }).pipe(
          Effect.flatMap((buffer) => CudaMemory.fill(buffer, 1, stream))
        ),
        other.runtime.memoryShare({ memory: single.ref, offset: 0, byteLength: size }),
        other.runtime.poolAllowAccess(pool.ref, 1),
        other.runtime.poolShare(pool.ref),
        other.runtime.partitionDestroy(partition.ref)
      ]
      for (const use of foreign) {
        yield* failsWith(
          Effect.scoped(use as Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>).pipe(
            Effect.provideService(CudaRuntime, other.runtime)
          ),
          "ForeignResource"
        )
      }
    }))
})
