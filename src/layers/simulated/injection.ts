/**
 * Failures that are asked for: operations of a service made to fail a number of times.
 */
import * as Effect from "effect/Effect"
import { statuses } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import { CudaError, reasonFromStatus } from "../../CudaError.ts"
import type { CudaRuntimeService } from "../CudaRuntime.ts"
import { around } from "../runtime/operations.ts"
import type { Operation, OperationName } from "../runtime/operations.ts"
import type { SimulatedBackend } from "./backend.ts"

/** The failures still to come, by operation. */
export class Plan {
  readonly #failures = new Map<OperationName, Array<{ readonly status: StatusTag; times: number }>>()

  get isEmpty(): boolean {
    return this.#failures.size === 0
  }

  add(operation: OperationName, status: StatusTag, times: number): void {
    const failures = this.#failures.get(operation)
    if (failures === undefined) this.#failures.set(operation, [{ status, times }])
    else failures.push({ status, times })
  }

  /** Uses one failure up. */
  take(operation: OperationName): StatusTag | undefined {
    const failures = this.#failures.get(operation)
    const next = failures?.[0]
    if (failures === undefined || next === undefined) return undefined
    if (--next.times <= 0) failures.shift()
    if (failures.length === 0) this.#failures.delete(operation)
    return next.status
  }
}

/** The service, with the failures of a plan in it. */
export const inject = (service: CudaRuntimeService, backend: SimulatedBackend, plan: Plan): CudaRuntimeService =>
  around(service, (operation, inner) => (a, b, c, d) =>
    Effect.suspend(() => {
      const status = plan.isEmpty ? undefined : plan.take(operation.name)
      return status === undefined
        ? inner(a, b, c, d)
        : failWith(backend, operation, operation.about(a, b, c, d), status, () => inner(a, b, c, d))
    }))

/** A sticky failure ends the context first, and the operation finds that out by itself. */
const failWith = (
  backend: SimulatedBackend,
  { call, name: operation }: Operation,
  [device, subject]: readonly [device: number, subject: unknown],
  tag: StatusTag,
  run: () => Effect.Effect<unknown, CudaError>
): Effect.Effect<unknown, CudaError> => {
  const { code, isSticky } = statuses[tag]
  const fail = Effect.suspend(() =>
    Effect.fail(new CudaError({ operation, reason: reasonFromStatus(code), call, subject: String(subject), device }))
  )
  if (!isSticky || backend.devices[device] === undefined) return fail
  backend.lose(device, code)
  return Effect.andThen(run(), fail)
}
