/**
 * `npm run demo -- [FILE]`: streams a file through a GPU and back in chunks, on three streams that overlap, and compares
 * every byte; kernels count the bytes and make a checksum on the way. Then does the same one step at a time, and shows
 * what the overlap gained.
 *
 * Runs on a simulated GPU where there is no real one. The interesting part is `demo/Pipeline.ts`.
 */
import * as Runtime from "effect/Runtime"
import { main } from "./demo/Main.ts"

/** Runs a program as this process: Ctrl-C interrupts it, which closes its scopes; its end sets the exit code. */
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
