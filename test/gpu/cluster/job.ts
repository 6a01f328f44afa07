/** The job of the tests on two GPUs: in every step, NCCL adds up what the ranks bring. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { CudaJob } from "../../../src/cluster.ts"
import * as CudaDevice from "../../../src/CudaDevice.ts"
import * as CudaMemory from "../../../src/CudaMemory.ts"
import * as CudaNccl from "../../../src/CudaNccl.ts"
import * as CudaStream from "../../../src/CudaStream.ts"

export const job = CudaJob.make("nccl", {
  size: 2,
  payload: Schema.Struct({ steps: Schema.Int, every: Schema.Int, numbers: Schema.Int }),
  checkpoint: Schema.Struct({ total: Schema.Number }),
  success: Schema.Struct({ total: Schema.Number, epoch: Schema.Int, restored: Schema.Int }),
  heartbeat: "200 millis",
  timeout: "3 seconds",
  placement: "30 seconds"
})

type Rank = CudaJob.Rank<typeof job.payload.Type, typeof job.checkpoint.Type>

/** What a run of so many steps ends with, without failures. */
export const expected = (steps: number) => 3 * steps * (steps + 1) / 2

export const program = (rank: Rank, log: (event: string) => void) =>
  Effect.gen(function*() {
    const { every, numbers, steps } = rank.payload
    const restored = Option.match(rank.restored, { onNone: () => 0, onSome: ({ step }) => step })
    let total = Option.match(rank.restored, { onNone: () => 0, onSome: ({ value }) => value.total })
    const stream = yield* CudaStream.make()
    const buffer = yield* CudaMemory.allocate(4 * numbers)
    const host = new Float32Array(numbers)
    const communicator = yield* CudaJob.rendezvous(rank, {
      id: CudaNccl.uniqueId,
      join: (options) => CudaNccl.join({ ...options, timeout: "20 seconds" })
    })
    log(`rank ${rank.rank} epoch ${rank.epoch} device ${rank.device} restored ${restored}`)
    const work = Effect.gen(function*() {
      for (let step = restored; step < steps;) {
        yield* CudaMemory.upload(buffer, host.fill((step + 1) * (rank.rank + 1)), stream)
        yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
        yield* CudaMemory.download(host, buffer, stream)
        const [sum = NaN] = host
        if (!host.every((value) => value === sum)) return yield* Effect.die(new Error(`step ${step}: wrong sums`))
        total += sum
        yield* Effect.sleep("5 millis")
        if (++step % every !== 0) continue
        yield* rank.checkpoint(step, { total })
        log(`rank ${rank.rank} epoch ${rank.epoch} step ${step}`)
      }
      return { total, epoch: rank.epoch, restored }
    })
    return yield* work.pipe(CudaNccl.guard([communicator]))
  }).pipe(CudaDevice.withDevice(rank.device))
