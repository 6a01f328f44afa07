/**
 * Wraps a runtime in a watcher.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService } from "../CudaRuntime.ts"
import { around } from "../runtime/operations.ts"
import type { OperationCall } from "../runtime/operations.ts"
import { evaluate, operation } from "../shared/operation.ts"
import { watched } from "./watch.ts"
import { currentFrame, lineOf, orFrame } from "./Watcher.ts"
import type { Watcher } from "./Watcher.ts"

export const wrap = (runtime: CudaRuntimeService, watcher: Watcher): CudaRuntimeService => {
  const members = watched(watcher, runtime)
  const wrapped = around(runtime, ({ member, name }, call) => {
    const watching = members[member] as OperationCall | undefined
    if (watching === undefined) return call
    const looking = watcher.host === undefined ? watching : withHostWrites(watcher, name, watching)
    return watcher.options.stacks ? withLine(watcher, looking) : looking
  })
  const { hostAccess, watchArray } = runtime
  return {
    ...wrapped,
    hostAccess: (range, operation) => {
      hostAccess?.(range, operation)
      if (operation === "address") watcher.giveOut(range.memory)
      else watcher.look(range, operation)
    },
    watchArray: watcher.host === undefined ? watchArray : (operation, stream) => watcher.watchArray(operation, stream)
  }
}

/** Reports the writes by the host that an operation has found. */
const withHostWrites = (watcher: Watcher, name: string, call: OperationCall): OperationCall =>
  operation((first: unknown, second: unknown, third: unknown, fourth: unknown) => {
    const { where } = watcher
    const run = evaluate(call(first, second, third, fourth))
    return Effect.matchCauseEffect(run, {
      onSuccess: (value) => watcher.meetHost(name, where, Effect.succeed(value)),
      onFailure: (cause) => {
        if (isSticky(cause)) watcher.host?.forget()
        return watcher.meetHost(name, where, Effect.failCause(cause))
      }
    })
  })

const isSticky = (cause: Cause.Cause<CudaError>): boolean =>
  cause.reasons.some((reason) =>
    Cause.isFailReason(reason) && "isSticky" in reason.error.reason && reason.error.reason.isSticky
  )

/** Notes the line of each call. */
const withLine = (watcher: Watcher, call: OperationCall): OperationCall => {
  const withLine: OperationCall = (...args) => {
    const line = lineOf(withLine)
    const run = call(...args)
    return Effect.suspend(() => {
      watcher.line = orFrame(line, currentFrame())
      const result = evaluate(run)
      watcher.line = undefined
      return result
    })
  }
  return withLine
}
