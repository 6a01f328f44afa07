/**
 * Injected failures: makes operations of any runtime fail a number of times. Shared by `FaultInjection` and by the
 * control of simulated devices.
 */
import * as Effect from "effect/Effect"
import { statuses } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import { CudaError, reasonFromStatus } from "../../CudaError.ts"
import type { FaultOrigin, StatusReason, UnknownStatus } from "../../CudaError.ts"
import type { CudaRuntimeService } from "../CudaRuntime.ts"
import type { FaultInjectionService, PendingFailure } from "../FaultInjection.ts"
import { around, operations } from "../runtime/operations.ts"
import type { Operation, OperationName } from "../runtime/operations.ts"
import { refuseArgument } from "./failures.ts"
import { operation as driverCall } from "./operation.ts"

interface PlannedFailure {
  readonly operation: OperationName
  readonly status: StatusTag
  /** How many calls pass first. */
  passing: number
  times: number
  isMet: boolean
}

/** The injected failures of one runtime, pending and past. */
export class Injection {
  /** True if an operation may have to fail. */
  isArmed = false
  #lost: FaultOrigin | undefined
  #planned: Array<PlannedFailure> = []

  /** The injected fault after which every operation fails, as if the contexts were lost. */
  get lost(): FaultOrigin | undefined {
    return this.#lost
  }

  lose(origin: FaultOrigin): void {
    this.#lost = origin
    this.isArmed = true
  }

  add(operation: OperationName, status: StatusTag, times: number, passing = 0): void {
    this.#planned.push({ operation, status, passing, times, isMet: false })
    this.isArmed = true
  }

  /** Consumes one failure of an operation. */
  take(operation: OperationName): StatusTag | undefined {
    const next = this.#planned.find((planned) => planned.operation === operation)
    if (next === undefined || next.passing-- > 0) return undefined
    next.isMet = true
    next.times--
    if (next.times === 0) this.#keep((planned) => planned !== next)
    return next.status
  }

  clear(operation: OperationName | undefined): void {
    this.#keep((planned) => operation !== undefined && planned.operation !== operation)
  }

  get pending(): ReadonlyArray<PendingFailure> {
    return this.#planned
      .filter(({ isMet, times }) => !isMet || times !== Infinity)
      .map(({ operation, status, times }) => ({ operation, status, times }))
  }

  #keep(isKept: (planned: PlannedFailure) => boolean): void {
    this.#planned = this.#planned.filter(isKept)
    this.isArmed = this.#planned.length > 0 || this.#lost !== undefined
  }
}

/** The service that injects failures. `owner` is its name in failures. */
export const injectionService = (
  injection: Injection,
  owner: "FaultInjection" | "SimulatedControl"
): FaultInjectionService => ({
  failNext: (operation, status, times = 1) =>
    Effect.suspend(() => {
      const refused = refuseFailure(`${owner}.failNext`, operation, status, times)
      if (refused === undefined) injection.add(operation, status, times)
      return refused ?? Effect.void
    }),
  clear: (operation) => Effect.sync(() => injection.clear(operation)),
  pending: Effect.sync(() => injection.pending)
})

const refuseFailure = (caller: string, operation: OperationName, status: StatusTag, times: number) => {
  if (!names.has(operation)) return refuseArgument(caller, "operation", operation, "the name of an operation")
  if (!Object.hasOwn(statuses, status)) return refuseArgument(caller, "status", status, "the tag of a status")
  if (times === Infinity || (Number.isSafeInteger(times) && times > 0)) return undefined
  return refuseArgument(caller, "times", times, "an integer above 0, or Infinity")
}

const names: ReadonlySet<string> = new Set(Object.values(operations).map(({ name }) => name))

/** Destroys the context of a device with a status. */
type EndContext = (deviceIndex: number, status: number) => void

/** By identity, how to destroy the contexts of runtimes that support it. */
const endContexts = new WeakMap<CudaRuntimeService["identity"], EndContext>()

/** Makes injected faults destroy the contexts of a runtime, even if layers wrap it. */
export const faultsEndContexts = ({ identity }: Pick<CudaRuntimeService, "identity">, endContext: EndContext): void => {
  endContexts.set(identity, endContext)
}

/** Wraps a runtime so that its operations fail as injected. No operation has more than four arguments. */
export const inject = (runtime: CudaRuntimeService, injection: Injection): CudaRuntimeService => {
  const endContext = endContexts.get(runtime.identity)
  return around(
    runtime,
    (operation, call) =>
      driverCall((a: unknown, b: unknown, c: unknown, d: unknown) =>
        injection.isArmed
          ? meet(injection, endContext, operation, [a, b, c, d], () => call(a, b, c, d))
          : call(a, b, c, d)
      )
  )
}

type Reason = StatusReason | UnknownStatus
type Run = () => Effect.Effect<unknown, CudaError>

const meet = (
  injection: Injection,
  endContext: EndContext | undefined,
  operation: Operation,
  args: ReadonlyArray<unknown>,
  run: Run
): Effect.Effect<unknown, CudaError> => {
  const { lost } = injection
  if (lost !== undefined && operation.kind !== "contextFree") {
    return fail(operation, args, run, reasonFromStatus(lost.status.code), lost)
  }
  const tag = injection.take(operation.name)
  if (tag === undefined) return run()
  const { code, isSticky } = statuses[tag]
  const reason = reasonFromStatus(code)
  const deviceIndex = operation.deviceOf(args)
  if (isSticky && endContext !== undefined) {
    // The operation reports the lost context. One that needs no context fails with the injected status.
    endContext(deviceIndex, code)
    return Effect.andThen(run(), Effect.suspend(() => Effect.fail(errorOf(operation, args, reason))))
  }
  const failed = fail(operation, args, run, reason)
  if (isSticky) injection.lose({ operation: operation.name, deviceIndex, status: reason, at: Date.now() })
  return failed
}

const fail = (
  operation: Operation,
  args: ReadonlyArray<unknown>,
  run: Run,
  reason: Reason,
  origin?: FaultOrigin
): Effect.Effect<unknown, CudaError> => {
  const failed = Effect.fail(errorOf(operation, args, reason, origin))
  return operation.kind === "release" ? Effect.andThen(run(), failed) : failed
}

const errorOf = (
  { call, deviceOf, describe, name }: Operation,
  args: ReadonlyArray<unknown>,
  reason: Reason,
  origin?: FaultOrigin
): CudaError =>
  new CudaError({ operation: name, reason, call, subject: describe(args), deviceIndex: deviceOf(args), origin })
