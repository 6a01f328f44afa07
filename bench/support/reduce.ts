/**
 * All-reduces of floats, as the benchmark of collectives measures them.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../src/CudaError.ts"
import type { DeviceBuffer } from "../../src/CudaMemory.ts"
import * as CudaNccl from "../../src/CudaNccl.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { measureEffect } from "./measure.ts"

/** In a row, or waiting after each. */
export type How = "reduce" | "wait"

/** A rank of this process. */
export interface Rank {
  readonly communicator: CudaNccl.Communicator
  readonly buffer: DeviceBuffer
  readonly stream: CudaStream.CudaStream
}

/** Reduces in place, one run for all ranks of the process, until their streams have done it. Returns nanoseconds per all-reduce. */
export const reduceOn =
  (ranks: ReadonlyArray<Rank>) => (how: How, bytes: number, count: number): Effect.Effect<number, CudaError> => {
    const collectives = ranks.map(({ buffer, communicator, stream }) =>
      CudaNccl.allReduce(communicator, { from: { buffer, offset: 0, byteLength: bytes }, type: "f32" }, stream)
    )
    const run = () => CudaNccl.run(...collectives)
    const waits = ranks.map(({ stream }) => CudaStream.synchronize(stream))
    const wait = waits.reduce((before, each) => Effect.andThen(before, each))
    const step = how === "wait" ? () => Effect.andThen(run(), wait) : run
    return Effect.suspend(() => {
      const begun = performance.now()
      const all = Effect.andThen(measureEffect(step, count), wait)
      return Effect.map(all, () => (performance.now() - begun) * 1e6 / count)
    })
  }
