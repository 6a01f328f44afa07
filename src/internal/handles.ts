/**
 * The foundation of the modules' handles: base classes, and the failures that modules make themselves.
 */
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import * as Pipeable from "effect/Pipeable"
import { annotations, CudaError, invalidArgument, isCudaError } from "../CudaError.ts"
import type { CudaRuntimeService, DeviceProperties, ResourceState } from "../layers/CudaRuntime.ts"

/**
 * Logs the failure of a release, which has no caller to fail to, unless the driver is already shut down. Consequences of a lost context
 * are logged at debug level, since the first failure was a warning.
 */
export const released = (release: Effect.Effect<void, CudaError>): Effect.Effect<void> =>
  Effect.catch(release, logRelease)

export const logRelease = (error: CudaError): Effect.Effect<void> => {
  if (error.reason._tag === "Deinitialized") return Effect.void
  const log = error.origin === undefined ? Effect.logWarning(error.message) : Effect.logDebug(error.message)
  return Effect.annotateLogs(log, annotations(error))
}

/** Makes failures name the operation that the program called instead of the one behind it. */
export const named = (operation: string) => <A, E, R>(self: Effect.Effect<A, E | CudaError, R>) =>
  Effect.mapError(self, (error) => isCudaError(error) ? new CudaError({ ...error, operation }) : error)

/** Refuses an argument before it reaches the runtime. */
export const refuseArgument = (
  operation: string,
  argument: string,
  value: unknown,
  expected: string
): Effect.Effect<never, CudaError> => Effect.fail(invalidArgument(operation, argument, value, expected))

/** Refuses a resource of another runtime. */
export const refuseForeign = (
  operation: string,
  { ref }: { readonly ref: object }
): Effect.Effect<never, CudaError> =>
  Effect.fail(new CudaError({ operation, reason: { _tag: "ForeignResource", resource: String(ref) } }))

/** Refuses a stream of a recording, for operations that need a result of the GPU. */
export const refuseToRecord = (operation: string, because: string): Effect.Effect<never, CudaError> =>
  Effect.fail(new CudaError({ operation, reason: { _tag: "CannotRecord", because, frame: undefined } }))

/** The base class of every value of the modules: it can be piped, and prints as one line. `toJSON` returns its details. */
export abstract class Handle implements Inspectable.Inspectable, Pipeable.Pipeable {
  abstract toString(): string
  abstract toJSON(): unknown
  [Inspectable.NodeInspectSymbol](): string {
    return this.toString()
  }
  /** The kind. Assertions of chai print long lines of values that have a tag, and the properties of others. */
  get [Symbol.toStringTag](): string {
    return this.toString().split("(", 1)[0]!
  }
  pipe() {
    return Pipeable.pipeArguments(this, arguments)
  }
}

/** Prints a handle as one line: its kind, and what distinguishes it from others of that kind. */
export const oneLine = (kind: string, ...details: ReadonlyArray<string | false | undefined>): string =>
  `${kind}(${details.filter((detail) => detail !== false && detail !== undefined).join(", ")})`

/** The state of a resource that can no longer be used, for `oneLine`. */
export const unlessLive = ({ state }: { readonly state: ResourceState }): string | undefined =>
  state === "live" ? undefined : state

/** Prints a count with its noun in the singular or plural. */
export const countOf = (count: number, thing: string): string => `${count} ${thing}${count === 1 ? "" : "s"}`

/** Prints an address as messages show it. */
export const hex = (address: number): string => `0x${address.toString(16)}`

/** A handle of a resource of a runtime. */
export abstract class ResourceHandle<out Ref> extends Handle {
  readonly runtime: CudaRuntimeService
  readonly ref: Ref
  constructor(runtime: CudaRuntimeService, ref: Ref) {
    super()
    this.runtime = runtime
    this.ref = ref
  }
}

/** A handle of a resource on one device. */
export abstract class DeviceHandle<out Ref extends { readonly deviceIndex: number }> extends ResourceHandle<Ref> {
  get deviceIndex(): number {
    return this.ref.deviceIndex
  }
  get device(): DeviceProperties {
    return this.runtime.devices[this.ref.deviceIndex]!
  }
}
