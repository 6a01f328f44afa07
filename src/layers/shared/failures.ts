/**
 * Failures of operations, from a driver status or from a check before the call. None of this is on a hot path.
 */
import * as Effect from "effect/Effect"
import { CudaError, invalidArgument, reasonFromStatus, unknownStatus } from "../../CudaError.ts"
import type { CudaErrorFields, CudaErrorReason, FaultOrigin } from "../../CudaError.ts"
import type { Backend } from "./Backend.ts"
import { wrongOf } from "./resources.ts"
import type { DeviceMemoryResource, Owner, Resource } from "./resources.ts"
import { neverFinishes } from "./waits.ts"

/** The first fault of a runtime, which explains every sticky failure after it. */
export interface FaultOrigins {
  first: FaultOrigin | undefined
}

/** The failure for a status. Remembers the first one that ends the contexts of the process. */
export const fromStatus = (
  backend: Backend,
  origins: FaultOrigins,
  status: number,
  context: {
    readonly operation: string
    readonly deviceIndex: number
    readonly subject: string
    readonly call?: string
  }
): CudaError => {
  if (status === neverFinishes) return stuck(backend, context)
  const call = context.call ?? backend.call
  const explained = { ...context, ...backend.explain?.(status), call: call === "" ? undefined : call }
  return fromReason(origins, reasonOf(backend, status), explained)
}

/** The failure for a reason. Remembers the first status that ends the contexts of the process. */
export const fromReason = (
  origins: FaultOrigins,
  reason: CudaErrorReason,
  context: Omit<CudaErrorFields, "reason" | "origin"> & { readonly deviceIndex: number }
): CudaError => {
  if (!("isSticky" in reason && reason.isSticky)) return new CudaError({ ...context, reason })
  const origin = origins.first
  const { deviceIndex, operation } = context
  origins.first ??= { operation, deviceIndex, status: reason, at: Date.now() }
  return new CudaError({ ...context, reason, origin })
}

const stuck = (
  backend: Backend,
  context: { readonly operation: string; readonly deviceIndex: number; readonly subject: string }
): CudaError =>
  new CudaError({
    ...context,
    reason: {
      _tag: "NeverFinishes",
      resource: context.subject,
      because: backend.describeStatus(neverFinishes)?.description ?? "nothing it waits for can ever start"
    }
  })

const reasonOf = (backend: Backend, status: number) => {
  const known = reasonFromStatus(status)
  if (known._tag !== "UnknownStatus") return known
  const words = backend.describeStatus(status)
  return words === undefined ? known : unknownStatus(status, words.name, words.description)
}

/** A failure found before calling the driver. */
export const refuse = (operation: string, reason: CudaErrorReason): Effect.Effect<never, CudaError> =>
  Effect.fail(new CudaError({ operation, reason }))

/** Refuses an argument, and prints its value. */
export const refuseArgument = (
  operation: string,
  argument: string,
  value: unknown,
  expected: string
): Effect.Effect<never, CudaError> => Effect.fail(invalidArgument(operation, argument, value, expected))

/** Refuses an argument described in words, such as `2 values`. */
export const refuseDescribed = (
  operation: string,
  argument: string,
  value: string,
  expected: string
): Effect.Effect<never, CudaError> => refuse(operation, { _tag: "InvalidArgument", argument, value, expected })

/** The failure for the first unusable resource of several, of which at least one must be unusable. */
export const refuseResource = (
  operation: string,
  owner: Owner,
  ...resources: ReadonlyArray<Resource>
): Effect.Effect<never, CudaError> => {
  for (const resource of resources) {
    const wrong = wrongOf(resource)
    if (wrong !== undefined) return refuseArgument(operation, wrong.argument, wrong.given, wrong.expected)
    if (resource.owner !== owner) return refuse(operation, { _tag: "ForeignResource", resource: String(resource) })
    if (resource.state !== "live") return refuse(operation, { _tag: "ResourceReleased", resource: String(resource) })
    if ("isGivenAway" in resource && resource.isGivenAway) return refuseGivenAway(operation, resource)
  }
  return Effect.die(new Error(`${operation}: no resource to refuse`))
}

const refuseGivenAway = (operation: string, memory: Resource): Effect.Effect<never, CudaError> =>
  refuseDescribed(
    operation,
    "buffer",
    `${memory}, whose ArrayBuffer was transferred`,
    "a buffer that was not transferred: copy its bytes instead"
  )

/** What to do about memory of one device that work on another one is to use. */
export const peerAdvice = (memory: DeviceMemoryResource, device: number): string =>
  memory.isGrowable || (memory.opened !== undefined && memory.pool === undefined)
    ? "Copy the memory: no other device can access it."
    : `Copy the memory, or give access with CudaDevice.enablePeerAccess(${device}, ${memory.deviceIndex}) or CudaMemoryPool.allowAccess.`

/** Refuses memory that work on a stream of another device cannot use. */
export const refuseReach = (
  operation: string,
  memory: DeviceMemoryResource,
  stream: Resource & { readonly deviceIndex: number }
): Effect.Effect<never, CudaError> => {
  const deviceIndices = [memory.deviceIndex, stream.deviceIndex] as const
  const resources = [String(memory), String(stream)] as const
  return refuse(operation, {
    _tag: "DeviceMismatch",
    resources,
    deviceIndices,
    advice: peerAdvice(memory, stream.deviceIndex)
  })
}

/** Refuses two resources that are on different devices. */
export const refuseDevices = (
  operation: string,
  first: Resource & { readonly deviceIndex: number },
  second: Resource & { readonly deviceIndex: number }
): Effect.Effect<never, CudaError> =>
  refuse(operation, {
    _tag: "DeviceMismatch",
    resources: [String(first), String(second)],
    deviceIndices: [first.deviceIndex, second.deviceIndex]
  })
