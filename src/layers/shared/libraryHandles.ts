/**
 * Handles of libraries: made by one function, and destroyed by another once nothing uses them.
 */
import * as Effect from "effect/Effect"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { LibraryHandleOptions, LibraryRef } from "../CudaRuntime.ts"
import type { LibraryOperations } from "../runtime/libraries.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { namesOf, runOn, runPrepared } from "./libraryCalls.ts"
import { findFunction, isAlike, madeBy, Prepared } from "./libraryFunctions.ts"
import type { FunctionCode } from "./libraryFunctions.ts"
import { Ordering } from "./ordering.ts"
import { HandleResource, ownHandle } from "./resources.ts"
import type { StreamResource } from "./resources.ts"
import { watchUsers } from "./waits.ts"

export const handleOperations = (core: Core): Pick<LibraryOperations, "libraryHandle" | "libraryDestroy"> => ({
  libraryHandle: (library, options, deviceIndex) => Effect.suspend(() => make(core, library, options, deviceIndex)),
  libraryDestroy: (ref) =>
    Effect.uninterruptible(Effect.suspend(() => {
      const handle = ownHandle(ref)
      if (handle.owner !== core.backend) return refuseResource(releasing, core.backend, handle)
      if (handle.state !== "live") return Effect.void
      handle.state = "closing"
      // The runtime is not released meanwhile. The fiber may yield at any step from here.
      core.libraryCalls.begin()
      const destroyed = Effect.onExit(untilUnused(core, handle), () => destroy(core, handle))
      return Effect.ensuring(destroyed, Effect.sync(() => core.libraryCalls.end()))
    }))
})

const making = "CudaLibrary.handle"
const releasing = "CudaLibrary.release"

/** How each handle is destroyed. */
const destroyers = new WeakMap<HandleResource, FunctionCode>()

/** Simulated handles are numbers that no device uses. */
let simulatedHandles = 0

const make = (
  core: Core,
  library: LibraryRef,
  options: LibraryHandleOptions,
  deviceIndex: number
): Effect.Effect<HandleResource, CudaError> => {
  const create = findFunction(core, making, library, options.create, "create")
  if (Effect.isEffect(create)) return create
  const { makes } = create
  if (makes === undefined) return refuseArgument(making, "create", options.create, "a function that makes a handle")
  const { as, of: kind } = makes
  const destroy = findFunction(core, making, library, options.destroy, "destroy")
  if (Effect.isEffect(destroy)) return destroy
  const [only, ...others] = destroy.spec.parameters
  if (others.length > 0 || !isAlike(only, kind, as) || destroy.spec.enqueues) {
    return refuseArgument(making, "destroy", options.destroy, `a function with a ${kind} handle as its only parameter`)
  }
  const setStream = streamSetter(core, library, options.setStream, kind, as)
  if (Effect.isEffect(setStream)) return setStream
  return Effect.uninterruptible(
    runOn(core, namesOf(making, create), create, options.values, deviceIndex, (_, prepared) => {
      const address = create.native === undefined ? ++simulatedHandles : madeBy(prepared)
      const handle = new HandleResource(core.backend, { kind, as, handle: address, deviceIndex })
      if (setStream?.native !== undefined) handle.setStream = setterOf(handle, setStream)
      if (options.ordered === true) handle.ordering = new Ordering()
      destroyers.set(handle, destroy)
      core.handles.add(handle)
      return Effect.succeed(handle)
    })
  )
}

const streamSetter = (
  core: Core,
  library: LibraryRef,
  name: string | undefined,
  kind: string,
  as: HandleResource["as"]
): FunctionCode | undefined | Effect.Effect<never, CudaError> => {
  if (name === undefined) return undefined
  const code = findFunction(core, making, library, name, "setStream")
  if (Effect.isEffect(code)) return code
  const [first, second, ...others] = code.spec.parameters
  const isRight = isAlike(first, kind, as) && second?.kind === "stream" && others.length === 0 &&
    code.spec.returns === "status"
  return isRight
    ? code
    : refuseArgument(making, "setStream", name, `a function with a ${kind} handle and a stream that returns a status`)
}

/** Sets the stream of a handle if it has another one. Undefined stands for a stream that does not last. */
const setterOf = (handle: HandleResource, { name, native }: FunctionCode): HandleResource["setStream"] => {
  const set = (streamHandle: number, stream: StreamResource | undefined): number => {
    if (stream !== undefined && handle.stream === stream) return success
    const status = Number(native!(handle.handle, streamHandle))
    handle.stream = status === success ? stream : undefined
    return status
  }
  return Object.defineProperty(set, "name", { value: name })
}

/**
 * Waits until no work and no call uses the handle. If waiting fails for a reason other than a fault, the streams are polled, because
 * their work may still use it.
 */
const untilUnused = (core: Core, handle: HandleResource): Effect.Effect<void, CudaError> => {
  const users = handle.pendingUsers
  if (users.length === 0) return handle.calls.whenIdle
  const { streams } = core.backend
  const waited = core.wait(releasing, handle.deviceIndex, String(handle), watchUsers(streams, handle))
  const isUsed = () => users.some((user) => user.state !== "released" && streams.query(user) === notReady)
  const unused = Effect.catch(waited, (error) => {
    const isHung = error.reason._tag === "NeverFinishes"
    const idle = Effect.whileLoop({ while: () => !isHung && isUsed(), body: () => Effect.sleep(1), step: () => {} })
    return Effect.andThen(idle, Effect.fail(error))
  })
  return Effect.ensuring(unused, handle.calls.whenIdle)
}

const destroy = (core: Core, handle: HandleResource): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const code = destroyers.get(handle)!
    forgetStream(core, handle)
    const prepared = new Prepared()
    prepared.isRelease = true
    prepared.natives.push(handle.handle)
    prepared.given.push(handle.handle)
    const isPretended = code.native === undefined && code.spec.simulate === undefined
    const call = isPretended
      ? Effect.void
      : Effect.suspend(() =>
        runPrepared(core, namesOf(releasing, code), code, prepared, handle.deviceIndex, () => Effect.void)
      )
    return Effect.ensuring(
      Effect.catchDefect(call, (defect) => Effect.logWarning(`${releasing} (${handle}): ${code.name} threw`, defect)),
      Effect.sync(() => {
        handle.state = "released"
        handle.ordering?.close()
        core.handles.delete(handle)
      })
    )
  })

/** The library may look at the stream that it was last given, which may be gone. */
const forgetStream = (core: Core, handle: HandleResource): void => {
  const { captures } = core.backend
  if (handle.stream?.state !== "released" || captures.enter(handle.deviceIndex) !== success) return
  handle.setStream?.(0, undefined)
  captures.leave(handle.deviceIndex)
}
