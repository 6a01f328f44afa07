/**
 * `npm run demo -- [FILE]`: streams a file through a GPU and back in chunks, on three overlapping streams, and compares
 * every byte. Kernels count the bytes and compute a checksum on the way. Then does the same step by step, and shows how
 * much time the overlap saves.
 *
 * Runs on a simulated GPU if there is no real one. The interesting part is `demo/Pipeline.ts`.
 */
import * as Runtime from "effect/Runtime"
import { main } from "./demo/Main.ts"

/**
 * Runs a program as the main program of this process: Ctrl-C interrupts it and closes its scopes, and its result sets
 * the exit code.
 */
const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  const interrupt = () => fiber.interruptUnsafe()
  process.on("SIGINT", interrupt).on("SIGTERM", interrupt)
  fiber.addObserver((exit) => {
    process.off("SIGINT", interrupt).off("SIGTERM", interrupt)
    teardown(exit, (code) => {
      process.exitCode = code
    })
  })
})

runMain(main(process.argv.slice(2)), { disableErrorReporting: true })
