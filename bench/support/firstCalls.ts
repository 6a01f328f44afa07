/**
 * A process that builds a runtime and makes its first calls, and prints how long each took in milliseconds: the layer,
 * the first stream, the first event, the first record. Arguments: "simulated" or "native", and the path of the driver
 * library if it is not the system's.
 */
import * as Effect from "effect/Effect"
import * as CudaEvent from "../../src/CudaEvent.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"
import * as SimulatedRuntime from "../../src/layers/SimulatedRuntime.ts"

const [kind, libraryPath] = process.argv.slice(2)
const layer = kind === "simulated" ? SimulatedRuntime.layer() : NativeRuntime.layer({ libraryPath })

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<readonly [A, number], E, R> =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.map(effect, (value) => [value, performance.now() - start] as const)
  })

const begun = performance.now()

const program = Effect.gen(function*() {
  yield* CudaRuntime
  const built = performance.now() - begun
  const [stream, madeStream] = yield* timed(CudaStream.make())
  const [event, madeEvent] = yield* timed(CudaEvent.make())
  const [, recorded] = yield* timed(CudaEvent.record(event, stream))
  yield* CudaStream.synchronize(stream)
  console.log(built, madeStream, madeEvent, recorded)
})

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(layer)))
