/**
 * Handles of libraries: made by one function, and destroyed by another once nothing uses them.
 */
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import type { HandleType } from "../../cuda/libraryParameters.ts"
import { notReady, success } from "../../cuda/status.ts"
import { annotations } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import type { AdoptedHandle, LibraryHandleOptions, LibraryRef } from "../CudaRuntime.ts"
import type { LibraryOperations } from "../runtime/libraries.ts"
import { refuseSimulate } from "./captures.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { dropExec, logged as logStatus } from "./graphInstances.ts"
import { namesOf, refuseOffThread, runOn, runPrepared } from "./libraryCalls.ts"
import { about, findFunction, isAlike, madeBy, placeOf, prepare, Prepared } from "./libraryFunctions.ts"
import type { FunctionCode } from "./libraryFunctions.ts"
import { Ordering } from "./ordering.ts"
import { HandleResource, ownHandle, StreamHandles, unusable } from "./resources.ts"
import type { StreamResource } from "./resources.ts"
import { watchUsers } from "./waits.ts"
import type { OnDone, Watch } from "./waits.ts"

export const handleOperations = (
  core: Core
): Pick<LibraryOperations, "libraryHandle" | "libraryAdopt" | "libraryDestroy"> => ({
  libraryHandle: (library, options, deviceIndex) => Effect.suspend(() => make(core, library, options, deviceIndex)),
  libraryAdopt: (library, adopted, deviceIndex) =>
    Effect.suspend(() => inContext(core, adopting, deviceIndex, () => adopt(core, library, adopted, deviceIndex))),
  libraryDestroy: (ref, options) =>
    Effect.uninterruptible(Effect.suspend(() => {
      const handle = ownHandle(ref)
      if (handle.owner !== core.backend) return refuseResource(releasing, core.backend, handle)
      if (options?.abort === true && handle instanceof HandleResource) abort(handle)
      if (handle.state !== "live") return Effect.void
      return handle instanceof HandleResource ? release(core, handle) : releaseAll(core, handle)
    }))
})

const making = "CudaLibrary.handle"
const releasing = "CudaLibrary.release"

const adopting = "CudaLibrary.fromHandle"

/** How each handle is destroyed. */
const destroyers = new WeakMap<HandleResource, { readonly destroy: FunctionCode; readonly abort?: FunctionCode }>()

/** Held while handles of streams are made or destroyed. */
const busy = new WeakMap<StreamHandles, Semaphore.Semaphore>()

/** Simulated handles are numbers that no device uses. */
let simulatedHandles = 0

/** How handles are made and destroyed. */
interface Recipe {
  readonly create: FunctionCode
  readonly values: ReadonlyArray<unknown>
  readonly destroy: FunctionCode
  readonly setStream: FunctionCode | undefined
  readonly kind: string
  readonly as: HandleType
  readonly ordered: boolean
}

const make = (
  core: Core,
  library: LibraryRef,
  options: LibraryHandleOptions,
  deviceIndex: number
): Effect.Effect<HandleResource | StreamHandles, CudaError> => {
  const recipe = recipeOf(core, library, options)
  if (Effect.isEffect(recipe)) return recipe
  if (options.perStream === true) return makePerStream(core, recipe, deviceIndex)
  return refuseOffThread(core, making, recipe.create) ??
    Effect.uninterruptible(makeOne(core, making, recipe, deviceIndex))
}

const recipeOf = (
  core: Core,
  library: LibraryRef,
  options: LibraryHandleOptions
): Recipe | Effect.Effect<never, CudaError> => {
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
  const ordered = options.ordered === true
  if (ordered && options.perStream === true) {
    return refuseDescribed(
      making,
      "ordered",
      "true, with perStream",
      "one of the two: a handle per stream needs no order"
    )
  }
  return { create, values: options.values, destroy, setStream, kind, as, ordered }
}

const makeOne = (
  core: Core,
  operation: string,
  { as, create, destroy, kind, ordered, setStream, values }: Recipe,
  deviceIndex: number,
  adopt?: (handle: HandleResource) => void
): Effect.Effect<HandleResource, CudaError> => {
  const run = () =>
    runOn(core, namesOf(operation, create), create, values, { deviceIndex }, (_, prepared) => {
      const address = create.native === undefined ? ++simulatedHandles : madeBy(prepared)
      const handle = new HandleResource(core.backend, { kind, as, handle: address, deviceIndex })
      if (setStream?.native !== undefined) handle.setStream = setterOf(handle, setStream)
      if (ordered) handle.ordering = new Ordering()
      destroyers.set(handle, { destroy })
      core.handles.add(handle)
      adopt?.(handle)
      return Effect.succeed(handle)
    })
  return create.native === undefined ? inContext(core, operation, deviceIndex, run) : run()
}

/** Finds the functions before the handle is taken. */
const adopt = (
  core: Core,
  library: LibraryRef,
  { abort: abortName, destroy: destroyName, endsGraphs, handle: address, kind }: AdoptedHandle,
  deviceIndex: number
): Effect.Effect<HandleResource, CudaError> => {
  const destroy = enderOf(core, library, "destroy", destroyName, kind)
  if (Effect.isEffect(destroy)) return destroy
  const abort = enderOf(core, library, "abort", abortName ?? destroyName, kind)
  if (Effect.isEffect(abort)) return abort
  if (!Number.isSafeInteger(address) || address <= 0) {
    return refuseArgument(adopting, "handle", address, "the address or the number of a handle")
  }
  const handle = new HandleResource(core.backend, { kind, as: destroy.as, handle: address, deviceIndex })
  if (endsGraphs === true) handle.captured = new Set()
  destroyers.set(handle, { destroy: destroy.code, abort: abort.code })
  core.handles.add(handle)
  return Effect.succeed(handle)
}

/** A function that ends handles of a kind. */
const enderOf = (core: Core, library: LibraryRef, argument: string, name: string, kind: string) => {
  const code = findFunction(core, adopting, library, name, argument)
  if (Effect.isEffect(code)) return code
  const [only, ...others] = code.spec.parameters
  return only?.kind === "handle" && only.of === kind && others.length === 0 && !code.spec.enqueues
    ? { code, as: only.as }
    : refuseArgument(adopting, argument, name, `a function with a ${kind} handle as its only parameter`)
}

/** Fails if the contexts are lost, which a function of the program does not notice as native code does. */
const inContext = <A>(
  core: Core,
  operation: string,
  deviceIndex: number,
  call: () => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  core.whenOpen(operation, deviceIndex, () => {
    const { captures } = core.backend
    const entered = captures.enter(deviceIndex)
    if (entered !== success) return core.failOn(operation, entered, deviceIndex, `device ${deviceIndex}`)
    captures.leave(deviceIndex)
    return call()
  })

/** Checks what can be checked before the first handle is made. */
const makePerStream = (
  core: Core,
  recipe: Recipe,
  deviceIndex: number
): Effect.Effect<StreamHandles, CudaError> =>
  core.whenOpen(making, deviceIndex, () => {
    const { create, values } = recipe
    const prepared = prepare(core, making, create, values, { deviceIndex })
    if (!(prepared instanceof Prepared)) return prepared
    if (create.native === undefined && create.spec.simulate === undefined) {
      return about(create.name, refuseSimulate(making, undefined))
    }
    const own = { ...recipe, values: [...values] }
    const handles = new StreamHandles(core.backend, { ...recipe, deviceIndex }, (handles, operation, stream) =>
      makeFor(core, operation, handles, own, stream))
    busy.set(handles, Semaphore.makeUnsafe(1))
    return Effect.succeed(handles)
  })

/** Makes the handle of a stream or of its recording. Another call may be making it, and everything may be released meanwhile. */
const makeFor = (
  core: Core,
  operation: string,
  handles: StreamHandles,
  recipe: Recipe,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { backend } = core
  const one = Effect.suspend((): Effect.Effect<void, CudaError> => {
    if (unusable(backend, handles) || unusable(backend, stream)) {
      return refuseResource(operation, backend, handles, stream)
    }
    const place = placeOf(core, stream)
    if (handles.find(place) !== undefined) return Effect.void
    // Launches of a graph may overlap on several streams.
    const own = { ...recipe, ordered: stream.recording !== undefined }
    const adopt = (handle: HandleResource) => {
      handles.add(place, handle)
      if (!own.ordered) setFirst(core, handle, stream)
    }
    return Effect.andThen(
      releaseUnneeded(core, handles),
      Effect.suspend(() => Effect.asVoid(makeOne(core, operation, own, handles.deviceIndex, adopt)))
    )
  })
  return busy.get(handles)!.withPermit(Effect.uninterruptible(one))
}

/** Some libraries forget what a handle was told, such as its workspace, when its stream is set. If this fails, the call does it. */
const setFirst = ({ backend: { captures } }: Core, handle: HandleResource, stream: StreamResource): void => {
  if (handle.setStream === undefined || stream.state !== "live" || captures.enter(handle.deviceIndex) !== success) {
    return
  }
  handle.setStream(stream.handle, stream)
  captures.leave(handle.deviceIndex)
}

/** Work may still use the handle, and end only with it. */
const abort = (handle: HandleResource): void => {
  if (handle.state === "released") return
  handle.isAborted = true
  handle.onAbort?.()
}

const release = (core: Core, handle: HandleResource): Effect.Effect<void, CudaError> => {
  handle.state = "closing"
  // The runtime is not released meanwhile. The fiber may yield at any step from here.
  core.libraryCalls.begin()
  const destroyed = Effect.onExit(untilUnused(core, handle), () => destroy(core, handle))
  return Effect.ensuring(destroyed, Effect.sync(() => core.libraryCalls.end()))
}

/** Waits for a handle that is being made, and releases all. */
const releaseAll = (core: Core, handles: StreamHandles): Effect.Effect<void> => {
  handles.state = "closing"
  core.libraryCalls.begin()
  const all = Effect.suspend(() => Effect.forEach(take(handles, () => true), (handle) => quietly(core, handle)))
  const released = Effect.andThen(busy.get(handles)!.withPermit(all), handles.releases.whenIdle)
  return Effect.ensuring(
    released,
    Effect.sync(() => {
      handles.state = "released"
      core.libraryCalls.end()
    })
  )
}

/** Releases those of streams that are gone, and begins to release those of graphs that are gone: their last launches may take long. */
const releaseUnneeded = (core: Core, handles: StreamHandles): Effect.Effect<void> =>
  Effect.forEach(take(handles, ({ isUnneeded }) => isUnneeded), (handle) => {
    if (handle.pendingUsers.length === 0) return quietly(core, handle)
    handles.releases.begin()
    const released = Effect.ensuring(quietly(core, handle), Effect.sync(() => handles.releases.end()))
    return Effect.asVoid(Effect.forkDetach(Effect.uninterruptible(released), { startImmediately: true }))
  }, { discard: true })

/** Takes some of the handles, without those that the runtime has released. */
const take = (
  { all }: StreamHandles,
  isTaken: (handle: HandleResource) => boolean
): ReadonlyArray<HandleResource> => {
  const taken = Array.from(all).filter(isTaken)
  for (const handle of taken) all.delete(handle)
  return taken.filter(({ state }) => state === "live")
}

const quietly = (core: Core, handle: HandleResource): Effect.Effect<void> =>
  handle.state === "live" ? Effect.catch(release(core, handle), logFailure) : Effect.void

/** Failures that follow from lost contexts are logged at debug level. */
const logFailure = (error: CudaError): Effect.Effect<void> =>
  Effect.annotateLogs(
    error.origin === undefined ? Effect.logWarning(error.message) : Effect.logDebug(error.message),
    annotations(error)
  )

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
  if (handle.isAborted) return Effect.void
  const users = handle.pendingUsers
  if (users.length === 0) return handle.calls.whenIdle
  const { streams } = core.backend
  const waited = core.wait(
    releasing,
    handle.deviceIndex,
    String(handle),
    unlessAborted(handle, watchUsers(streams, handle))
  )
  const isUsed = () =>
    !handle.isAborted && users.some((user) => user.state !== "released" && streams.query(user) === notReady)
  const unused = Effect.catch(waited, (error) => {
    const isHung = error.reason._tag === "NeverFinishes"
    const idle = Effect.whileLoop({ while: () => !isHung && isUsed(), body: () => Effect.sleep(1), step: () => {} })
    return Effect.andThen(idle, Effect.fail(error))
  })
  return Effect.ensuring(unused, Effect.suspend(() => handle.isAborted ? Effect.void : handle.calls.whenIdle))
}

/** Ends a watch when the handle is aborted. */
const unlessAborted = (handle: HandleResource, watch: Watch): Watch => (onDone, options) => {
  let isOver = false
  const end: OnDone = (status, stage) => {
    if (isOver) return
    isOver = true
    handle.onAbort = undefined
    onDone(status, stage)
  }
  const cancel = watch(end, options)
  if (!isOver) {
    handle.onAbort = () => {
      cancel()
      end(success)
    }
  }
  return () => {
    handle.onAbort = undefined
    cancel()
  }
}

/** Releases the graphs that were captured with a handle, if it can only be destroyed after them. */
const endGraphs = (core: Core, handle: HandleResource): Effect.Effect<void> => {
  if (handle.captured === undefined) return Effect.void
  const { captured } = handle
  const users = [...core.graphs].filter(({ graph }) => graph.handles.includes(handle))
  const logged = Effect.forEach(users, (exec) => {
    exec.endedBy = handle
    return logStatus(core, dropExec(core, exec), exec)
  }, { discard: true })
  return Effect.andThen(
    logged,
    Effect.sync(() => {
      for (const ref of captured) {
        const graph = ref.deref()
        if (graph !== undefined) core.backend.captures.drop(graph)
      }
      captured.clear()
    })
  )
}

const destroy = (core: Core, handle: HandleResource): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const enders = destroyers.get(handle)!
    const code = handle.isAborted ? enders.abort ?? enders.destroy : enders.destroy
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
      Effect.catchDefect(Effect.andThen(endGraphs(core, handle), call), (defect) =>
        Effect.logWarning(`${releasing} (${handle}): ${code.name} threw`, defect)),
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
