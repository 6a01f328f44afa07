/** The main program of a process. On Node.js 22.19 or later, `NodeRuntime.runMain` of `@effect/platform-node` does the same. */
import * as Runtime from "effect/Runtime"

/**
 * Runs a program as the main program: its failure is logged and sets the exit code, and a signal interrupts it, so that its scopes close. A
 * second signal ends the process at once.
 */
export const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  const stop = () => {
    forget()
    fiber.interruptUnsafe()
  }
  const forget = () => process.off("SIGINT", stop).off("SIGTERM", stop)
  process.on("SIGINT", stop).on("SIGTERM", stop)
  fiber.addObserver((exit) => {
    forget()
    teardown(exit, (code) => {
      process.exitCode = code
    })
  })
})
