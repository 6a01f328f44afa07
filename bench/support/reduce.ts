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

/** So many are not counted, because ranks of other processes may begin later. */
const before = 100

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
    const begun = Effect.map(Effect.andThen(measureEffect(run, before), wait), () => performance.now())
    return Effect.flatMap(begun, (begun) =>
      Effect.map(
        Effect.andThen(measureEffect(step, count), wait),
        () => (performance.now() - begun) * 1e6 / count
      ))
  }
