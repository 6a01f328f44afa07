/** A program with failures to handle, whose test makes them happen: see test/examples/save.test.ts. */
import { CudaMemory, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"

/** The GPU is lost: this process cannot use it any more. */
export class GpuLost extends Data.TaggedError("GpuLost")<{ readonly cause: CudaError.CudaError }> {}

/** Sends bytes to the device and back. Waits for memory that others hold, up to three times. */
export const save = Effect.fn("save")(
  function*(bytes: Uint8Array) {
    const stream = yield* CudaStream.make()
    const buffer = yield* CudaMemory.allocate(bytes.byteLength).pipe(
      Effect.retry({ while: (error) => error.isRetryable, times: 3, schedule: Schedule.spaced("100 millis") })
    )
    yield* CudaMemory.upload(buffer, bytes, stream)
    const saved = new Uint8Array(bytes.byteLength)
    yield* CudaMemory.download(saved, buffer, stream)
    return saved
  },
  Effect.scoped,
  Effect.catchTag(
    "CudaError",
    (error): Effect.Effect<never, GpuLost | CudaError.CudaError> =>
      Effect.fail(error.isSticky ? new GpuLost({ cause: error }) : error)
  )
)

export const program = save(Uint8Array.of(1, 2, 3))
