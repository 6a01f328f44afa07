/**
 * Where operations happen when they are not told: the current device, and the current stream of each device. Regions nest,
 * so a place knows the one around it, and a region costs one small object.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { DeviceInput } from "../CudaDevice.ts"
import type { CudaError } from "../CudaError.ts"
import type { CudaStream } from "../CudaStream.ts"
import { CudaRuntime } from "../layers/CudaRuntime.ts"
import type { CudaRuntimeService, StreamRef } from "../layers/CudaRuntime.ts"
import { named } from "./handles.ts"

/** A region's device, its stream if it set one, and the region around it. */
export interface Place {
  readonly device: number
  readonly stream: CudaStream | undefined
  readonly outer: Place | undefined
  /** Of a stream that the region has for its time only. */
  readonly lease?: { readonly isOver: boolean } | undefined
}

export const CurrentPlace = Context.Reference<Place>("effect-cuda/CurrentPlace", {
  defaultValue: () => ({ device: 0, stream: undefined, outer: undefined })
})

/** The place of a region on a stream. */
export const onStreamOf = (stream: CudaStream, outer: Place, lease?: Place["lease"]): Place => ({
  device: stream.deviceIndex,
  stream,
  outer,
  lease
})

/** The innermost region whose stream is still its own, and still there. */
export const openPlace = (place: Place): Place => {
  let at = place
  while ((at.lease?.isOver === true || isGone(at.stream)) && at.outer !== undefined) at = at.outer
  return at
}

const isGone = (stream: CudaStream | undefined): boolean => stream !== undefined && stream.ref.state !== "live"

/** The stream that the innermost region set on a device of a runtime; none stands for the default stream. */
export const regionStream = (
  place: Place,
  runtime: CudaRuntimeService,
  device: number
): CudaStream | undefined => {
  for (let at: Place | undefined = place; at !== undefined; at = at.outer) {
    if (at.device === device && at.stream?.runtime === runtime) return at.stream
  }
  return undefined
}

/** The device of an option, or the current one. */
export const resolveDevice = (device: DeviceInput | undefined): Effect.Effect<number> =>
  Effect.withFiber((fiber) => Effect.succeed(deviceIndexOf(device) ?? fiber.getRef(CurrentPlace).device))

/** What is forced past the types and is no device is not a number, for the runtime to refuse. */
export const deviceIndexOf = (device: DeviceInput | undefined): number | undefined =>
  typeof device === "object" ? device?.index ?? Number.NaN : device

/** Runs an operation on the given stream, or else on the current stream of a device, by default of the current one. */
export const onStream = <A, E, R>(
  runtime: CudaRuntimeService,
  device: number | undefined,
  stream: CudaStream | undefined,
  operation: (stream: StreamRef) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R> => {
  if (stream !== undefined) return operation(stream.ref)
  return Effect.withFiber((fiber) => streamOf(runtime, fiber.getRef(CurrentPlace), operation, device))
}

/** Runs an operation on the stream that is current at a place, by default that of its device. */
export const streamOf = <A, E, R>(
  runtime: CudaRuntimeService,
  place: Place,
  operation: (stream: StreamRef) => Effect.Effect<A, E, R>,
  device = place.device
): Effect.Effect<A, E | CudaError, R> => {
  const current = regionStream(place, runtime, device)
  return current === undefined
    ? Effect.flatMap(runtime.streamDefault(device, "legacy"), operation)
    : operation(current.ref)
}

/** Where work is forked: from the current stream, by a fiber in a context. */
export interface Origin {
  readonly runtime: CudaRuntimeService
  readonly origin: StreamRef
  readonly place: Place
  readonly fiber: Fiber.Fiber<unknown, unknown>
  readonly context: Context.Context<never>
}

/** Finds the current stream, around which something is to run on other streams. */
export const atOrigin = <A, E, R>(
  operation: string,
  body: (at: Origin) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
  Effect.withFiber((fiber): Effect.Effect<A, E | CudaError, R> => {
    const { context } = fiber
    const runtime = Context.getUnsafe(context, CudaRuntime)
    const place = fiber.getRef(CurrentPlace)
    const current = regionStream(place, runtime, place.device)
    if (current !== undefined) return body({ runtime, origin: current.ref, place, fiber, context })
    return Effect.flatMap(
      runtime.streamDefault(place.device, "legacy").pipe(named(operation)),
      (origin) => body({ runtime, origin, place, fiber, context })
    )
  })
