/**
 * A process that is one rank of a communicator: reduces, or is killed after the first time, and reports what it has seen.
 */
import { CudaMemory, CudaNccl, CudaStream, NativeRuntime } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"

const [, , token = "", given = "0", mode = "reduce"] = process.argv
const rank = Number(given)

const program = Effect.gen(function*() {
  const stream = yield* CudaStream.make({ device: rank })
  const buffer = yield* CudaMemory.allocate(4096, { device: rank })
  yield* CudaMemory.upload(buffer, new Float32Array(1024).fill(rank + 1), stream)
  const communicator = yield* CudaNccl.join({ id: token, rank, size: 2, device: rank, timeout: "30 seconds" })
  const reduced = Effect.andThen(
    CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream)),
    CudaStream.synchronize(stream)
  )
  yield* reduced
  if (mode === "kill" && rank === 1) process.kill(process.pid, "SIGKILL")
  if (mode === "kill") yield* Effect.sleep("300 millis")
  const guarded = CudaNccl.guard(reduced, [communicator], { timeout: "1 second" })
  const failed = yield* Effect.match(guarded, { onSuccess: () => "", onFailure: ({ reason }) => reason._tag })
  const values = new Float32Array(1024)
  if (mode === "reduce") yield* CudaMemory.download(values, buffer, stream)
  return { failed, first: values[0], last: values[1023] }
}).pipe(Effect.scoped, Effect.provide(CudaNccl.layer()))

const result = await Effect.runPromise(
  Effect.gen(function*() {
    const { failed, first, last } = yield* program
    const { handles } = yield* (yield* CudaRuntime).liveResources
    return { failed, first, last, handles }
  }).pipe(Effect.provide(NativeRuntime.layer()))
)
process.stdout.write(JSON.stringify(result))
