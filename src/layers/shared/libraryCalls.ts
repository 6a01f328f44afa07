/**
 * Calls of functions of libraries: on the JS thread, in the order of a stream or outside it, and on pool threads.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { inTurn } from "../../cuda/asyncCalls.ts"
import type { OnEnd } from "../../cuda/asyncCalls.ts"
import { elementConstructors } from "../../cuda/elements.ts"
import type { ElementType } from "../../cuda/elements.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { LibraryRef, StreamRef } from "../CudaRuntime.ts"
import type { LibraryOperations } from "../runtime/libraries.ts"
import { refuseSimulate } from "./captures.ts"
import type { Core } from "./Core.ts"
import { enqueueCall, foreignError } from "./enqueue.ts"
import type { CallNames } from "./enqueue.ts"
import { refuse, refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { reasonOf } from "./libraryFailures.ts"
import {
  about,
  deviceOf,
  findFunction,
  LibraryResource,
  prepare,
  Prepared,
  valueOf,
  withHandles,
  wrongResult
} from "./libraryFunctions.ts"
import type { FunctionCode } from "./libraryFunctions.ts"
import { operation as driverCall } from "./operation.ts"
import type { Refusal } from "./ranges.ts"
import { refuseInside } from "./recordings.ts"
import { ownStream, unusable } from "./resources.ts"
import type { HandleResource, StreamResource } from "./resources.ts"

export const callOperations = (
  core: Core
): Pick<LibraryOperations, "libraryFunction" | "libraryCall" | "libraryRun" | "libraryTurn"> => ({
  libraryTurn: driverCall((library: LibraryRef, calls: () => number, deviceIndex: number) =>
    core.whenOpen(turning, deviceIndex, () => takeTurn(core, library, calls, deviceIndex))
  ),
  libraryFunction: (library, name) =>
    Effect.suspend(() => {
      const code = findFunction(core, "CudaLibrary.native", library, name)
      return Effect.isEffect(code) ? code : Effect.succeed(code.native)
    }),
  libraryCall: driverCall((library: LibraryRef, name: string, values: ReadonlyArray<unknown>, stream: StreamRef) =>
    call(core, library, name, values, ownStream(stream))
  ),
  libraryRun: (library, name, values, place) =>
    Effect.suspend(() => {
      const code = findFunction(core, operation, library, name)
      if (Effect.isEffect(code)) return code
      const refused = refuseKind(code, false) ?? refuseOffThread(core, operation, code)
      if (refused !== undefined) return refused
      const stream = typeof place === "object" ? ownStream(place) : undefined
      const deviceIndex = deviceOf(core, values, typeof place === "object" ? place.deviceIndex : place)
      const site = { deviceIndex, stream }
      return runOn(
        core,
        namesOf(operation, code),
        code,
        values,
        site,
        (result) => Effect.succeed(valueOf(code, result))
      )
    })
})

const operation = "CudaLibrary.call"
const turning = "CudaLibrary.turn"

/** Native code may leave another context current than it found, which is why this one is pushed and popped. */
const takeTurn = (
  core: Core,
  library: LibraryRef,
  calls: () => number,
  deviceIndex: number
): Effect.Effect<void, CudaError> => {
  if (!(library instanceof LibraryResource) || library.owner !== core.backend) {
    return refuseArgument(turning, "library", library, "a library loaded with CudaLibrary.load")
  }
  const { captures } = core.backend
  const entered = captures.enter(deviceIndex)
  if (entered !== success) return core.failOn(turning, entered, deviceIndex, `device ${deviceIndex}`)
  let status: number
  try {
    status = calls()
  } finally {
    captures.leave(deviceIndex)
  }
  if (status === success || isPending(library, status)) return Effect.void
  const reason = reasonOf(core, turning, library, status, deviceIndex)
  if ("isSticky" in reason && reason.isSticky) core.backend.noteLost?.()
  const names = { begin: turning, end: turning, call: undefined }
  return Effect.fail(foreignError(core, names, reason, deviceIndex, `device ${deviceIndex}`))
}

/** The names of a call in failures. The call that failed may be another one, which sets the stream of a handle. */
interface Names extends CallNames {
  call: string
}

export const namesOf = (operation: string, { name }: FunctionCode): Names => ({
  begin: operation,
  end: operation,
  call: name
})

/** Refuses functions that are called in another way. */
const refuseKind = ({ makes, name, spec }: FunctionCode, enqueues: boolean): Refusal => {
  if (makes !== undefined) {
    return refuseArgument(operation, "name", name, "a function that makes no handle: CudaLibrary.handle calls those")
  }
  if (spec.enqueues === enqueues) return undefined
  return refuseArgument(operation, "name", name, `a function that enqueues ${enqueues ? "work" : "nothing"}`)
}

const call = (
  core: Core,
  library: LibraryRef,
  name: string,
  values: ReadonlyArray<unknown>,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const code = findFunction(core, operation, library, name)
  if (Effect.isEffect(code)) return code
  const refused = refuseKind(code, true)
  if (refused !== undefined) return refused
  if (unusable(core.backend, stream)) return refuseResource(operation, core.backend, stream)
  const prepared = prepare(core, operation, code, values, stream)
  if (!(prepared instanceof Prepared)) return prepared
  if (code.native === undefined && code.spec.simulate === undefined) {
    return about(name, refuseSimulate(operation, undefined))
  }
  if (prepared.missing.length > 0) {
    return withHandles(operation, prepared, stream, () => call(core, library, name, values, stream))
  }
  for (const handle of prepared.handles) handle.usedOn(stream)
  const names = namesOf(operation, code)
  const work = {
    reads: prepared.reads,
    writes: prepared.writes,
    status: { ref: code.library },
    simulate: simulationOf(code, prepared),
    handles: prepared.handles
  }
  return enqueueCall(core, names, work, (handle) => invoke(names, code, prepared, stream, handle), stream)
}

/** Makes the call. A handle that has a stream gets this one first, and none that ends with a capture stays in it. */
const invoke = (
  names: Names,
  { native, spec }: FunctionCode,
  { handles, natives, streamAt }: Prepared,
  stream: StreamResource,
  handle: number
): number | void => {
  const isCaptured = stream.recording !== undefined
  const set = setStreams(names, handles, handle, isCaptured ? undefined : stream)
  if (streamAt >= 0) natives[streamAt] = handle
  const result = set === success ? native!(...natives) : set
  if (isCaptured) { for (const { setStream } of handles) setStream?.(0, undefined) }
  return spec.returns === "void" && set === success ? undefined : Number(result)
}

/** Returns the status of the first call that failed. */
const setStreams = (
  names: Names,
  handles: ReadonlyArray<HandleResource>,
  handle: number,
  stream: StreamResource | undefined
): number => {
  for (const { setStream } of handles) {
    const status = setStream?.(handle, stream) ?? success
    if (status === success) continue
    names.call = setStream!.name
    return status
  }
  return success
}

type Parts = ReadonlyArray<Uint8Array<ArrayBuffer>>

/** The function of the program, with the memory as typed arrays in its place among the arguments. */
const simulationOf = (code: FunctionCode, { given, places }: Prepared) => {
  const { simulate } = code.spec
  if (simulate === undefined || code.native !== undefined) return undefined
  return (reads: Parts, writes: Parts): unknown => {
    const values = [...given]
    for (const { at, element, index, list } of places) {
      const bytes = (list === "reads" ? reads : writes)[index]!
      values[at] = element === undefined ? bytes : elementsOf(bytes, element)
    }
    const status = pretend(code, values)
    // The simulated device refuses it.
    if (Predicate.isPromiseLike(status)) return status
    if (code.spec.returns === "status" && status !== undefined && status !== success) {
      throw new Error(`${code.name} returned ${String(status)}`)
    }
    return undefined
  }
}

const elementsOf = ({ buffer, byteLength, byteOffset }: Uint8Array<ArrayBuffer>, element: ElementType) => {
  const Type = elementConstructors[element]
  return new Type(buffer, byteOffset, byteLength / Type.BYTES_PER_ELEMENT)
}

/** Calls the function of the program that stands in for native code. */
const pretend = ({ spec }: FunctionCode, values: ReadonlyArray<unknown>): unknown => {
  const simulate = spec.simulate as (...values: ReadonlyArray<unknown>) => unknown
  return simulate(...values)
}

/** The failure for the code that a function returned. */
const failed = (core: Core, names: CallNames, code: FunctionCode, status: number, deviceIndex: number) => {
  const reason = reasonOf(core, names.begin, code.library, status, deviceIndex)
  if ("isSticky" in reason && reason.isSticky) core.backend.noteLost?.()
  return Effect.fail(foreignError(core, names, reason, deviceIndex, `device ${deviceIndex}`))
}

/** Finishes a call with its result, as soon as it has ended. */
type Finish<A> = (result: unknown, prepared: Prepared) => Effect.Effect<A, CudaError>

/** Refuses a call that runs off the JS thread in a recording. */
export const refuseOffThread = ({ recordings }: Core, operation: string, { name, spec }: FunctionCode): Refusal => {
  const inside = spec.thread === "own" && recordings !== 0 ? refuseInside(operation, offThreadWords) : undefined
  return inside === undefined ? undefined : about(name, inside)
}

/** Makes a call that enqueues nothing, where its description says. */
export const runOn = <A>(
  core: Core,
  names: CallNames,
  code: FunctionCode,
  values: ReadonlyArray<unknown>,
  site: { readonly deviceIndex: number; readonly stream?: StreamResource | undefined },
  finish: Finish<A>
): Effect.Effect<A, CudaError> =>
  core.whenOpen(names.begin, site.deviceIndex, () => {
    const prepared = prepare(core, names.begin, code, values, site)
    if (!(prepared instanceof Prepared)) return prepared
    return prepared.missing.length === 0 || site.stream === undefined
      ? runPrepared(core, names, code, prepared, site.deviceIndex, finish)
      : withHandles(names.begin, prepared, site.stream, () => runOn(core, names, code, values, site, finish))
  })

const isPending = ({ definition: { pending } }: LibraryRef, result: unknown): boolean =>
  pending !== undefined && pending.includes(Number(result))

export const runPrepared = <A>(
  core: Core,
  names: CallNames,
  code: FunctionCode,
  prepared: Prepared,
  deviceIndex: number,
  finish: Finish<A>
): Effect.Effect<A, CudaError> => {
  const { returns, thread } = code.spec
  const end = (result: unknown) => {
    const isFailure = returns === "status" && result !== success && !isPending(code.library, result)
    return isFailure ? failed(core, names, code, Number(result), deviceIndex) : finish(result, prepared)
  }
  if (code.native === undefined) return simulated(names, code, prepared, end)
  if (thread === "own") return offThread(core, names, code, prepared, end)
  return onThread(core, names, code, prepared, deviceIndex, end)
}

const offThreadWords = "the function runs off the JS thread. Call it before or after the recording"

const simulated = <A>(
  names: CallNames,
  code: FunctionCode,
  { given }: Prepared,
  end: (result: unknown) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  if (code.spec.simulate === undefined) return about(code.name, refuseSimulate(names.begin, undefined))
  const result = pretend(code, given)
  const expected = wrongResult(code, result)
  if (expected === undefined) return end(result ?? (code.spec.returns === "status" ? success : undefined))
  // Its later failure would otherwise end the process.
  if (Predicate.isPromiseLike(result)) result.then(undefined, () => {})
  return about(code.name, refuseArgument(names.begin, "result", result, expected))
}

const onThread = <A>(
  core: Core,
  names: CallNames,
  { native, spec }: FunctionCode,
  { natives }: Prepared,
  deviceIndex: number,
  end: (result: unknown) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  if (!spec.context) return end(native!(...natives))
  const { captures } = core.backend
  const entered = captures.enter(deviceIndex)
  if (entered !== success) return core.failOn(names.begin, entered, deviceIndex, `device ${deviceIndex}`)
  let result: unknown
  try {
    result = native!(...natives)
  } finally {
    captures.leave(deviceIndex)
  }
  return end(result)
}

/** A call that has begun ends, even if its fiber is interrupted: its arguments, handles and the runtime live until then. */
const offThread = <A>(
  core: Core,
  names: CallNames,
  { native }: FunctionCode,
  prepared: Prepared,
  end: (result: unknown) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  Effect.callback((resume) => {
    const { handles, natives } = prepared
    const gone = refuseGone(core, names.begin, prepared)
    if (gone !== undefined) return resume(gone)
    const users = [core.libraryCalls, ...handles.map(({ calls }: HandleResource) => calls)]
    const release = () => users.forEach((user) => user.end())
    users.forEach((user) => user.begin())
    const begin = (onEnd: OnEnd) => {
      if (prepared.isMoved) throw moved
      native!.async(...natives, onEnd)
    }
    const cancel = inTurn(begin, (error, result) => {
      const ended = error === null ? ending(() => end(result)) : refuseBegin(names.begin, error)
      release()
      resume(ended)
    })
    return Effect.sync(() => {
      if (cancel()) release()
    })
  })

/** The fiber may yield before its call begins, and what the call uses may be released meanwhile. Releases come late themselves. */
const refuseGone = (core: Core, operation: string, { handles, isRelease }: Prepared): Refusal => {
  if (isRelease) return undefined
  if (core.closed) return refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" })
  const gone = handles.filter((handle) => unusable(core.backend, handle))
  return gone.length === 0 ? undefined : refuseResource(operation, core.backend, ...gone)
}

/** Functions of the program may throw, and the call must still be known to have ended. */
const ending = <A>(end: () => Effect.Effect<A, CudaError>): Effect.Effect<A, CudaError> => {
  try {
    return end()
  } catch (error) {
    return Effect.die(error)
  }
}

/** Thrown for a call that cannot begin. */
const moved = new Error("memory of the host was transferred")

const refuseBegin = (operation: string, error: unknown): Effect.Effect<never, CudaError> =>
  error === moved
    ? refuseDescribed(
      operation,
      "arguments",
      "an array whose ArrayBuffer was transferred before the call began",
      "an array that stays until the call has ended"
    )
    : Effect.die(error)
