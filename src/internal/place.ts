/**
 * The defaults of operations: the current device, and the current stream of each device. Regions nest, so each place refers to the one
 * around it, and a region costs one small object.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "../layers/CudaRuntime.ts"
import type { CudaRuntimeService, DeviceProperties, StreamRef } from "../layers/CudaRuntime.ts"
import { isStream, wrongHandleOf } from "./given.ts"
import { named, refuseArgument, refuseForeign } from "./handles.ts"

/** The part of a stream that places need. */
export interface AnyStream {
  readonly runtime: CudaRuntimeService
  readonly ref: StreamRef
  readonly deviceIndex: number
}

/** A device, as operations accept it. */
export type DeviceLike = number | DeviceProperties

/** A region's device, its stream if it sets one, and the region around it. */
export interface Place {
  readonly deviceIndex: number
  readonly stream: AnyStream | undefined
  readonly outer: Place | undefined
  /** The lease of the stream, if the region holds it only while it runs. */
  readonly lease?: { readonly isOver: boolean } | undefined
}

export const CurrentPlace = Context.Reference<Place>("effect-cuda/CurrentPlace", {
  defaultValue: () => ({ deviceIndex: 0, stream: undefined, outer: undefined })
})

/** The place of a region on a stream. */
export const onStreamOf = (stream: AnyStream, outer: Place, lease?: Place["lease"]): Place => ({
  deviceIndex: stream.deviceIndex,
  stream,
  outer,
  lease
})

/** The innermost region whose stream is still leased to it and still live. */
export const openPlace = (place: Place): Place => {
  let at = place
  while ((at.lease?.isOver === true || isGone(at.stream)) && at.outer !== undefined) at = at.outer
  return at
}

const isGone = (stream: AnyStream | undefined): boolean => stream !== undefined && stream.ref.state !== "live"

/** The stream that the innermost region set on a device; undefined means the default stream. */
const regionStream = (place: Place, deviceIndex: number): AnyStream | undefined => {
  for (let at: Place | undefined = place; at !== undefined; at = at.outer) {
    if (at.deviceIndex === deviceIndex && at.stream !== undefined) return at.stream
  }
  return undefined
}

/**
 * Passes the current stream of a device to an operation, or undefined for the default stream. Refuses a region's stream of another
 * runtime, because the operation would otherwise silently run on the default stream.
 */
export const withCurrent = <A, E, R>(
  operation: string,
  runtime: CudaRuntimeService,
  place: Place,
  deviceIndex: number,
  use: (stream: AnyStream | undefined) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R> => {
  const current = regionStream(place, deviceIndex)
  return current !== undefined && isForeign(current, runtime)
    ? refuseForeign(operation, current)
    : use(current)
}

/** The given device's index, or that of the current device. */
export const resolveDevice = (device: DeviceLike | undefined): Effect.Effect<number> =>
  Effect.withFiber((fiber) => Effect.succeed(deviceIndexOf(device, fiber.getRef(CurrentPlace).deviceIndex)))

/** The index of the given device, or another one by default. A value that is not a device is passed on unchanged, and the runtime refuses it. */
export const deviceIndexOf = (device: DeviceLike | undefined, otherwise: number): number => {
  if (device === undefined) return otherwise
  return typeof device === "object" ? device?.index ?? device : device
}

/** Runs an operation on the given stream, or on the current stream of a device, by default the current device. */
export const onStream = <A, E, R>(
  operation: string,
  runtime: CudaRuntimeService,
  deviceIndex: number | undefined,
  stream: AnyStream | undefined,
  use: (stream: StreamRef) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R> => {
  if (stream !== undefined) {
    return isStream(stream) ? use(stream.ref) : refuseArgument(operation, "stream", stream, "a stream")
  }
  const wrong = wrongHandleOf(runtime)
  if (wrong !== undefined) return wrong.refuse(operation)
  return Effect.withFiber((fiber) => streamOf(operation, runtime, fiber.getRef(CurrentPlace), use, deviceIndex))
}

/** Runs an operation on the current stream of a device at a place, by default the place's own device. */
export const streamOf = <A, E, R>(
  operation: string,
  runtime: CudaRuntimeService,
  place: Place,
  use: (stream: StreamRef) => Effect.Effect<A, E, R>,
  deviceIndex = place.deviceIndex
): Effect.Effect<A, E | CudaError, R> => {
  const current = regionStream(place, deviceIndex)
  if (current === undefined) return Effect.flatMap(runtime.streamDefault(deviceIndex, "legacy"), use)
  return isForeign(current, runtime) ? refuseForeign(operation, current) : use(current.ref)
}

const isForeign = (stream: AnyStream, { identity }: CudaRuntimeService): boolean => stream.runtime.identity !== identity

/** Where work is forked: the current stream, and the fiber and context that fork it. */
export interface Origin {
  readonly runtime: CudaRuntimeService
  readonly origin: StreamRef
  readonly place: Place
  readonly fiber: Fiber.Fiber<unknown, unknown>
  readonly context: Context.Context<never>
}

/** Finds the current stream, from which work on other streams is forked. */
export const atOrigin = <A, E, R>(
  operation: string,
  body: (at: Origin) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
  Effect.withFiber((fiber): Effect.Effect<A, E | CudaError, R> => {
    const { context } = fiber
    const runtime = Context.getUnsafe(context, CudaRuntime)
    const place = fiber.getRef(CurrentPlace)
    const begin = (origin: StreamRef) => body({ runtime, origin, place, fiber, context })
    return withCurrent(operation, runtime, place, place.deviceIndex, (current) =>
      current === undefined
        ? Effect.flatMap(runtime.streamDefault(place.deviceIndex, "legacy").pipe(named(operation)), begin)
        : begin(current.ref))
  })
