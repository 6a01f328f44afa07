/**
 * Reads the reference and the runtime of a handle that was passed to an operation, which may be any value if the types are bypassed.
 *
 * `refOf…` returns the reference. A value that is not a handle is passed on unchanged, and the runtime refuses it by name. `runtimeOf…`
 * returns the runtime, or a stand-in that refuses every operation. Each kind of handle has its own pair of functions, so that each
 * sees objects of few shapes: one pair for all kinds would cost 9 ns more per call.
 */
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import * as Predicate from "effect/Predicate"
import type { CudaError } from "../CudaError.ts"
import { refusing, WrongHandle } from "../layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  EventRef,
  KernelRef,
  MemoryPoolRef,
  MemoryRange,
  MemoryRef,
  ModuleRef,
  StreamRef
} from "../layers/CudaRuntime.ts"

interface Given<Ref> {
  readonly runtime: CudaRuntimeService
  readonly ref: Ref
}

/** A part of a buffer. */
interface GivenPart {
  readonly buffer: Given<MemoryRef>
  readonly offset: number
  readonly byteLength: number
}

export const refOfStream = (stream: Pick<Given<StreamRef>, "ref">): StreamRef => stream?.ref ?? stream
export const runtimeOfStream = (stream: Given<StreamRef>): CudaRuntimeService =>
  stream?.runtime?.identity === undefined ? refusing(new WrongHandle("stream", stream, "a stream")) : stream.runtime

export const refOfEvent = (event: Given<EventRef>): EventRef => event?.ref ?? event
export const runtimeOfEvent = (event: Given<EventRef>): CudaRuntimeService =>
  event?.runtime?.identity === undefined ? refusing(new WrongHandle("event", event, "an event")) : event.runtime

export const refOfPool = (pool: Given<MemoryPoolRef>): MemoryPoolRef => pool?.ref ?? pool
export const runtimeOfPool = (pool: Given<MemoryPoolRef>): CudaRuntimeService =>
  pool?.runtime?.identity === undefined ? refusing(new WrongHandle("pool", pool, "a memory pool")) : pool.runtime

export const refOfModule = (module: Given<ModuleRef>): ModuleRef => module?.ref ?? module
export const runtimeOfModule = (module: Given<ModuleRef>): CudaRuntimeService =>
  module?.runtime?.identity === undefined ? refusing(new WrongHandle("module", module, "a module")) : module.runtime

export const refOfKernel = (kernel: Given<KernelRef>): KernelRef => kernel?.ref ?? kernel
export const runtimeOfKernel = (kernel: Given<KernelRef>): CudaRuntimeService =>
  kernel?.runtime?.identity === undefined ? refusing(new WrongHandle("kernel", kernel, "a kernel")) : kernel.runtime

export const rangeOf = (part: GivenPart): MemoryRange => ({
  memory: part?.buffer?.ref ?? part?.buffer ?? part,
  offset: part?.offset,
  byteLength: part?.byteLength
})
export const runtimeOfPart = (part: GivenPart): CudaRuntimeService => {
  const runtime = part?.buffer?.runtime
  return runtime?.identity === undefined
    ? refusing(new WrongHandle("buffer", part?.buffer ?? part, "a buffer or a part of one"))
    : runtime
}

/** Whether a value is a stream, for modules that `CudaStream` imports. */
export const isStream = (value: unknown): boolean => Predicate.isObject(value) && "~effect-cuda/CudaStream" in value

/** The wrong value that a stand-in runtime represents; undefined for a real runtime. */
export const wrongHandleOf = ({ identity }: CudaRuntimeService): WrongHandle | undefined =>
  identity instanceof WrongHandle ? identity : undefined

/**
 * Refuses a value that only reaches this point if the types were bypassed. Therefore the failure does not appear in the operation's
 * type.
 */
export function refuseForced(operation: string, argument: string, given: never, expected: string): Effect.Effect<never>
export function refuseForced(
  operation: string,
  argument: string,
  given: unknown,
  expected: string
): Effect.Effect<never, CudaError> {
  return Effect.suspend(() => new WrongHandle(argument, given, expected).refuse(operation))
}

/**
 * A failure that works as both forms of an operation: as the effect of the data-first form, and as the function of the data-last form.
 * For arguments that do not tell which form was meant.
 */
export const eitherForm = <E>(failure: Effect.Effect<never, E>): Effect.Effect<never, E> & (() => typeof failure) =>
  Object.setPrototypeOf(() => failure, Effectable.Prototype({ label: "Refused", evaluate: () => failure }))

/** Whether the first two arguments are a handle, right or wrong, and a name; otherwise the first is the name. */
export const isNamed = (first: unknown, second: unknown): boolean =>
  typeof first !== "string" || typeof second === "string"
