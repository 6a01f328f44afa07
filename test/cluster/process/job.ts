/** The job of the two-process tests: every step adds the sum of what the ranks bring. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { CudaJob } from "../../../src/cluster.ts"

export const job = CudaJob.make("sum", {
  size: 2,
  payload: Schema.Struct({ steps: Schema.Int }),
  checkpoint: Schema.Struct({ total: Schema.Int }),
  success: Schema.Struct({ total: Schema.Int, epoch: Schema.Int, restored: Schema.Int }),
  heartbeat: "200 millis",
  timeout: "3 seconds",
  placement: "40 seconds"
})

export const every = 5

/** What a run of so many steps ends with, without failures. */
export const expected = (steps: number) => {
  let total = 0
  for (let step = 0; step < steps; step++) total += (step + 1) * 3
  return total
}

type Rank = Parameters<
  Parameters<typeof CudaJob.toLayer<{ steps: number }, { total: number }, unknown, never, never>>[1]
>[0]

export const program = (rank: Rank, log: (event: string) => void) =>
  Effect.gen(function*() {
    const restored = Option.match(rank.restored, { onNone: () => 0, onSome: ({ step }) => step })
    let total = Option.match(rank.restored, { onNone: () => 0, onSome: ({ value }) => value.total })
    log(`rank ${rank.rank} epoch ${rank.epoch} device ${rank.device} restored ${restored}`)
    for (let step = restored; step < rank.payload.steps;) {
      const values = yield* rank.gather("sum", Schema.Int, (step + 1) * (rank.rank + 1))
      for (const value of values) total += value
      yield* Effect.sleep("40 millis")
      step++
      if (step % every !== 0) continue
      yield* rank.checkpoint(step, { total })
      log(`rank ${rank.rank} epoch ${rank.epoch} step ${step}`)
    }
    return { total, epoch: rank.epoch, restored }
  })
