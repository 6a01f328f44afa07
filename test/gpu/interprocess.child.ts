/**
 * The child process of the interprocess test: opens the given event, waits for it on a stream and in a fiber, and reports
 * the result.
 */
import { CudaEvent, CudaStream, NativeRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"

const program = Effect.gen(function*() {
  const event = yield* CudaEvent.fromIpcHandle(Uint8Array.from(Buffer.from(process.argv[2]!, "hex")))
  const stream = yield* CudaStream.make()
  yield* CudaStream.waitEvent(stream, event)
  const before = [yield* CudaEvent.query(event), yield* CudaStream.query(stream)]
  yield* CudaEvent.synchronize(event)
  const at = Date.now()
  yield* CudaStream.synchronize(stream)
  return { before, after: yield* CudaEvent.query(event), at, interprocess: event.isInterprocess }
}).pipe(Effect.scoped, Effect.provide(NativeRuntime.layer()))

const result = await Effect.runPromise(program)
process.stdout.write(JSON.stringify(result))
