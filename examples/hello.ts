/** Sends numbers to a GPU and back. Without a GPU, the same program runs on a simulated one. */
import { AutoRuntime, CudaDevice, CudaMemory, CudaStream } from "effect-cuda"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Runtime from "effect/Runtime"

export const program = Effect.gen(function*() {
  const device = yield* CudaDevice.current
  const stream = yield* CudaStream.make()

  const numbers = yield* CudaMemory.fromArray(Float32Array.of(1, 2, 3, 4, 5, 6), { stream })
  yield* CudaMemory.fill(CudaMemory.elements(numbers, 0, 2), 0, stream)
  const answer = yield* CudaMemory.toArray(numbers, stream)

  yield* Console.log(`${device.name} answered ${answer.join(" ")}`)
})

// A failure is logged and becomes exit code 1. Ctrl-C interrupts the program, and its scopes close.
const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  process.once("SIGINT", () => fiber.interruptUnsafe())
  fiber.addObserver((exit) => teardown(exit, (code) => void (process.exitCode = code)))
})

runMain(program.pipe(Effect.scoped, Effect.provide(AutoRuntime.layer())))
