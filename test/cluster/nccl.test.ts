// A job whose ranks exchange data by NCCL, on simulated devices of one process.
import { assert, describe, it } from "@effect/vitest"
import { CudaDevice, CudaMemory, CudaNccl, CudaRuntime, CudaStream, SimulatedRuntime } from "effect-cuda"
import { CudaJob } from "effect-cuda/cluster"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { nothingHeld } from "../support/assertions.ts"
import { passing, serving, storage } from "./support.ts"

const job = CudaJob.make("nccl", { size: 2, payload: Schema.Int, checkpoint: Schema.Number, success: Schema.Number })
type Rank = CudaJob.Rank<number, number>

const machine = CudaNccl.layer().pipe(Layer.provideMerge(SimulatedRuntime.layer({ devices: 2 })))

/** Adds up what all ranks bring in each step. */
const summing = (rank: Rank, before: (step: number) => Effect.Effect<unknown, unknown>) =>
  Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const buffer = yield* CudaMemory.allocate(4 * 256)
    const communicator = yield* CudaJob.rendezvous(rank, { id: CudaNccl.uniqueId, join: CudaNccl.join })
    const host = new Float32Array(256)
    let total = Option.match(rank.restored, { onNone: () => 0, onSome: ({ value }) => value })
    const from = Option.match(rank.restored, { onNone: () => 0, onSome: ({ step }) => step })
    const steps = Effect.gen(function*() {
      for (let step = from; step < rank.payload;) {
        yield* before(step)
        yield* CudaMemory.upload(buffer, host.fill((step + 1) * (rank.rank + 1)), stream)
        yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
        yield* CudaMemory.download(host, buffer, stream)
        assert.isTrue(host.every((value) => value === host[0]))
        total += host[0]!
        yield* rank.checkpoint(++step, total)
      }
      return total
    })
    return yield* steps.pipe(CudaNccl.guard([communicator]))
  }).pipe(CudaDevice.withDevice(rank.device))

describe("a job with NCCL", () => {
  it.effect("ends as without failures when a rank fails while the other waits in a collective", () =>
    Effect.gen(function*() {
      const epochs = new Set<number>()
      const program = (rank: Rank) =>
        Effect.andThen(
          Effect.sync(() => epochs.add(rank.epoch)),
          summing(rank, (step) =>
            step === 3 && rank.rank === 1 && rank.epoch === 1
              ? Effect.delay(Effect.fail("boom"), "1 second")
              : Effect.void)
        )
      const layer = serving(job, program).pipe(Layer.provide(storage), Layer.provideMerge(machine))
      yield* Effect.gen(function*() {
        const result = yield* passing(CudaJob.run(job, { id: "a", payload: 6 }))
        assert.deepStrictEqual(result, [63, 63])
        assert.deepStrictEqual([...epochs], [1, 2])
        assert.deepStrictEqual(yield* (yield* CudaRuntime.CudaRuntime).liveResources, nothingHeld)
      }).pipe(Effect.provide(layer))
    }))
})
