/**
 * Collectives between GPUs with NCCL: communicators, collectives as values, and groups of them.
 *
 * A service, so that programs without it never load NCCL. Depends on the interface of `CudaRuntime`, and on `CudaLibrary`, `CudaMemory` and
 * `CudaStream`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import type { DeviceInput, DeviceOptions } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { CudaError as CudaFailure, invalidArgument } from "./CudaError.ts"
import * as CudaLibrary from "./CudaLibrary.ts"
import type { DeviceBuffer, Slice } from "./CudaMemory.ts"
import type { CudaStream } from "./CudaStream.ts"
import { named, refuseArgument } from "./internal/handles.ts"
import { CollectiveImpl } from "./internal/nccl/collective.ts"
import type { CollectiveKind, Given } from "./internal/nccl/collective.ts"
import { CommunicatorImpl, CommunicatorRef, goneError, makeCommunicator } from "./internal/nccl/communicator.ts"
import type { Shared } from "./internal/nccl/communicator.ts"
import { definitionWith, idBytes, leastVersion, versionOf } from "./internal/nccl/library.ts"
import {
  abortCommunicator,
  closeCommunicator,
  timedOut,
  untilFailure,
  watchStreams
} from "./internal/nccl/lifecycle.ts"
import {
  abandon,
  abortHandle,
  connectEarly,
  connectLate,
  findCalls,
  joining,
  lastWords,
  makeDirect,
  makeJoint,
  makeJointChild,
  placeIn,
  pretendHandle,
  shrinking,
  splitting,
  untilReady
} from "./internal/nccl/native.ts"
import type { NativeCalls } from "./internal/nccl/native.ts"
import type { NcclOperator, NcclType } from "./internal/nccl/numbers.ts"
import { runAll } from "./internal/nccl/run.ts"
import { Rendezvous } from "./internal/nccl/simulated.ts"
import type { Meetings } from "./internal/nccl/simulated.ts"
import { isWhole } from "./internal/numbers.ts"
import { deviceIndexOf, resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, LibraryHandleRef, ResourceState } from "./layers/CudaRuntime.ts"

export type {
  /**
   * How elements of several ranks become one. Averages of integers are cut off.
   *
   * @category models
   * @since 0.1.0
   */
  NcclOperator,
  /**
   * The type of the elements of a collective.
   *
   * @category models
   * @since 0.1.0
   */
  NcclType
}

type Part = Slice<DeviceBuffer>

/**
 * The operations of the service.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaNcclService {
  /** The version of NCCL, such as `2.28.9`; undefined on simulated devices, which load nothing. */
  readonly version: string | undefined
  /** The file of the library, or its name for the system's loader; undefined on simulated devices. */
  readonly path: string | undefined
  /** Whether collectives are on their streams as soon as `run` has made its calls (see `NcclOptions.connect`). */
  readonly isDirect: boolean
  /** Makes the id of a new communicator. See `CudaNccl.uniqueId`. */
  readonly uniqueId: Effect.Effect<Uint8Array, CudaError>
  /** Joins a communicator. See `CudaNccl.join`. */
  readonly join: (options: JoinOptions) => Effect.Effect<Communicator, CudaError, Scope.Scope>
  /** Makes a communicator of devices of this process. See `CudaNccl.local`. */
  readonly local: (
    devices: ReadonlyArray<DeviceInput>,
    options?: WaitLimits
  ) => Effect.Effect<ReadonlyArray<Communicator>, CudaError, Scope.Scope>
}

/**
 * Collectives, as a service.
 *
 * **Example** (The version that was loaded)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const logged = Effect.flatMap(CudaNccl.CudaNccl, ({ path, version }) =>
 *   Effect.logInfo(version === undefined ? "simulated collectives" : `NCCL ${version} from ${path}`))
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class CudaNccl extends Context.Service<CudaNccl, CudaNcclService>()("effect-cuda/CudaNccl") {}

/**
 * Options for `layer`.
 *
 * @category options
 * @since 0.1.0
 */
export interface NcclOptions {
  /** The path of NCCL. Default: `EFFECT_CUDA_NCCL` from the configuration, otherwise the usual locations (see `CudaLibrary.load`). */
  readonly path?: string | undefined
  /**
   * When ranks connect. `early` (the default) connects everything while a communicator is made, and makes a second one of NCCL's for each,
   * whose work is on its stream when a call returns. `late` connects when something is first used, and every collective is polled until it is on
   * its stream: on two H200, that takes 50 µs more, and 1.3 GB less memory of each device.
   *
   * `early` sets `NCCL_RUNTIME_CONNECT=0`, which NCCL reads when the process makes its first communicator. If the variable has another value,
   * or a layer was `late` before, this one is too.
   */
  readonly connect?: "early" | "late" | undefined
}

/**
 * Loads NCCL, and provides communicators between devices.
 *
 * **Details**
 *
 * Fails with `LibraryUnavailable` if NCCL is not found, and with `FunctionMissing` before version 2.18. On simulated devices nothing is loaded:
 * ranks meet in this process, bytes really move, and the time is that of the links (`peerBandwidth`).
 *
 * **Example** (Collectives beside a runtime)
 *
 * ```ts
 * import { CudaNccl, NativeRuntime } from "effect-cuda"
 * import * as Layer from "effect/Layer"
 *
 * const runtime = CudaNccl.layer({ connect: "late" }).pipe(Layer.provideMerge(NativeRuntime.layer()))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: NcclOptions = {}): Layer.Layer<CudaNccl, CudaError, CudaRuntime> =>
  Layer.effect(CudaNccl, make(options))

const make = Effect.fnUntraced(function*(options: NcclOptions) {
  const operation = "CudaNccl.layer"
  if (typeof options !== "object" || options === null) {
    return yield* refuseArgument(operation, "options", options, "options for the layer")
  }
  const { connect = "early", path } = options
  if (connect !== "early" && connect !== "late") {
    return yield* refuseArgument(operation, "connect", connect, "\"early\" or \"late\"")
  }
  const runtime = yield* CudaRuntime
  let native: NativeCalls | undefined = undefined
  const library = yield* CudaLibrary.load(definitionWith(() => native && lastWords(native)), { path })
  native = yield* findCalls(library)
  if (native !== undefined && native.version < leastVersion) {
    const reason = { _tag: "FunctionMissing", functionName: "ncclCommSplit", library: "NCCL", since: "2.18" } as const
    return yield* new CudaFailure({ operation, reason })
  }
  const isDirect = native === undefined ? false : connect === "early" ? yield* connectEarly : yield* connectLate
  const shared: Shared = { runtime, library, native, isDirect, rendezvous: new Rendezvous() }
  return CudaNccl.of({
    version: native === undefined ? undefined : versionOf(native.version),
    path: library.path,
    isDirect: isDirect || native === undefined,
    uniqueId: makeId(shared),
    join: (options) => join_(shared, joinOperation, options),
    local: (devices, options = {}) => local_(shared, devices, options)
  })
})

const makeId = ({ library, native, runtime }: Shared): Effect.Effect<Uint8Array, CudaError> =>
  Effect.suspend(() => {
    const id = new Uint8Array(idBytes)
    if (native === undefined) return Effect.succeed(crypto.getRandomValues(id))
    const made = Effect.flatMap(
      resolveDevice(undefined),
      (device) => runtime.libraryRun(library.ref, "ncclGetUniqueId", [id], device)
    )
    return Effect.as(made, id).pipe(named("CudaNccl.uniqueId"))
  })

/**
 * Makes the id of a new communicator (`ncclGetUniqueId`), off the JS thread. Pass it to the other ranks, as bytes or with `toToken`.
 *
 * **Gotchas**
 *
 * The ranks find each other through the process that made the id, which must live until all have joined. An id is good for one communicator.
 *
 * **Example** (An id for all ranks)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const tell: (rank: number, token: string) => Effect.Effect<void>
 *
 * const first = Effect.gen(function*() {
 *   const id = yield* CudaNccl.uniqueId
 *   yield* tell(1, CudaNccl.toToken(id))
 *   return yield* CudaNccl.join({ id, rank: 0, size: 2 })
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const uniqueId: Effect.Effect<Uint8Array, CudaError, CudaNccl> = Effect.flatMap(
  CudaNccl,
  (service) => service.uniqueId
)

/**
 * An id as text, for messages, files and variables. `join` accepts it. Throws the `CudaError` if the value is not an id.
 *
 * **Example** (An id in a variable of a child)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import { fork } from "node:child_process"
 *
 * const started = Effect.map(CudaNccl.uniqueId, (id) =>
 *   fork("rank.js", { env: { ...process.env, NCCL_TOKEN: CudaNccl.toToken(id) } }))
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const toToken = (id: Uint8Array): string => {
  const bytes = idOf("CudaNccl.toToken", id)
  if (bytes instanceof CudaFailure) throw bytes
  return Buffer.from(bytes).toString("base64url")
}

const idOf = (operation: string, id: unknown): Uint8Array | CudaError => {
  const bytes = typeof id === "string" ? new Uint8Array(Buffer.from(id, "base64url")) : id
  return bytes instanceof Uint8Array && bytes.byteLength === idBytes
    ? bytes.slice()
    : invalidArgument(operation, "id", id, "an id of CudaNccl.uniqueId, or its token")
}

/**
 * How long to wait.
 *
 * @category options
 * @since 0.1.0
 */
export interface WaitLimits {
  /** How long to wait for the other ranks before the communicator is aborted. Default: 5 minutes. */
  readonly timeout?: Duration.Input | undefined
  /**
   * How long closing the scope, or that of a stream with its collectives, waits for work that does not end, before the communicator is aborted.
   * After a failure or an interruption, its scope waits 0.1 s at most. Default: 1 minute.
   */
  readonly closeTimeout?: Duration.Input | undefined
}

/**
 * Options for joining a communicator.
 *
 * @category options
 * @since 0.1.0
 */
export interface JoinOptions extends DeviceOptions, WaitLimits {
  /** The id that all ranks were given, or its token. */
  readonly id: Uint8Array | string
  /** From 0 to `size - 1`. */
  readonly rank: number
  readonly size: number
}

/**
 * A rank of a communicator, on a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface Communicator extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaNccl/Communicator": "~effect-cuda/CudaNccl/Communicator"
  readonly runtime: CudaRuntimeService
  readonly ref: { readonly state: ResourceState; readonly deviceIndex: number }
  readonly rank: number
  readonly size: number
  readonly deviceIndex: number
}

/**
 * Returns `true` if a value is a communicator.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCommunicator = (u: unknown): u is Communicator =>
  Predicate.hasProperty(u, "~effect-cuda/CudaNccl/Communicator")

const joinOperation = "CudaNccl.join"

/**
 * Joins a communicator as one of its ranks, on a device, by default the current one. Waits until all ranks have joined. The communicator
 * lives as long as its scope.
 *
 * **Details**
 *
 * Neither joining nor destroying runs on the JS thread (`ncclCommInitRankConfig`, `ncclCommSplit`, `ncclCommDestroy`). Interruption, a failure
 * and the timeout abort it (`ncclCommAbort`), so a rank that never comes costs the others no more than the timeout: `TimedOut`.
 *
 * Closing the scope waits until the work of the communicator has ended, releases the graphs that were recorded with it, whose launches then
 * fail with `ResourceReleased`, and destroys it.
 *
 * Fails with `InvalidArgument` for ranks and ids that are none, and with `LibraryFailed` if NCCL fails, such as for two ranks on one device.
 *
 * **Gotchas**
 *
 * Make streams before the communicator, so that they are released after it. A stream is released when its work has ended, and collectives
 * whose other ranks never come end only with the communicator. (Otherwise, this takes `closeTimeout`.)
 *
 * **Example** (One process per GPU)
 *
 * ```ts
 * import { CudaMemory, CudaNccl, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * export const averaged = (token: string, rank: number, size: number, gradients: CudaMemory.DeviceBuffer) =>
 *   Effect.gen(function*() {
 *     const stream = yield* CudaStream.make()
 *     const communicator = yield* CudaNccl.join({ id: token, rank, size, timeout: "30 seconds" })
 *     yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from: gradients, type: "f32", op: "avg" }, stream))
 *     yield* CudaStream.synchronize(stream)
 *   }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const join = (options: JoinOptions): Effect.Effect<Communicator, CudaError, CudaNccl | Scope.Scope> =>
  Effect.flatMap(CudaNccl, (service) => service.join(options))

/** What a communicator is made of. */
type Fields = Pick<CommunicatorRef, "rank" | "size" | "joint" | "direct" | "meetings">

interface Limits {
  readonly timeout: Duration.Duration
  readonly closeTimeout: Duration.Duration
}

const limitsOf = (operation: string, { closeTimeout, timeout }: WaitLimits): Limits | CudaError => {
  const limits = {
    timeout: Duration.fromInput(timeout ?? "5 minutes"),
    closeTimeout: Duration.fromInput(closeTimeout ?? "1 minute")
  }
  if (Option.isNone(limits.timeout)) return invalidArgument(operation, "timeout", timeout, "a duration")
  if (Option.isNone(limits.closeTimeout)) return invalidArgument(operation, "closeTimeout", closeTimeout, "a duration")
  return { timeout: limits.timeout.value, closeTimeout: limits.closeTimeout.value }
}

const join_ = (
  shared: Shared,
  operation: string,
  options: JoinOptions
): Effect.Effect<CommunicatorImpl, CudaError, Scope.Scope> =>
  Effect.suspend(() => {
    if (!Predicate.isObject(options)) {
      return refuseArgument(operation, "options", options, "an id, a rank and a size")
    }
    const { device, rank, size } = options
    const id = idOf(operation, options.id)
    if (id instanceof CudaFailure) return id
    if (!isWhole(size, 1, 2 ** 31 - 1)) return refuseArgument(operation, "size", size, "an integer of at least 1")
    if (!isWhole(rank, 0, size - 1)) return refuseArgument(operation, "rank", rank, `an integer from 0 to ${size - 1}`)
    const limits = limitsOf(operation, options)
    if (limits instanceof CudaFailure) return limits
    return Effect.flatMap(resolveDevice(device), (deviceIndex) =>
      makeScoped(shared, operation, deviceIndex, limits, "the other ranks", (making) => {
        const { native } = making
        if (native === undefined) {
          return meet(shared, making, shared.rendezvous.join(operation, id, rank, size), rank, size)
        }
        return connect({ ...making, native }, makeJoint({ ...making, native }, joining(id, rank, size, native)))
      }))
  }).pipe(Effect.withSpan(operation))

type Making = Omit<Parameters<typeof makeJoint>[0], "native"> & { readonly native: Shared["native"] }
type NativeMaking = Parameters<typeof makeJoint>[0]

/** Makes the blocking communicator beside a non-blocking one. */
const connect = (
  making: NativeMaking,
  joined: Effect.Effect<LibraryHandleRef, CudaError>
): Effect.Effect<Fields, CudaError> =>
  Effect.gen(function*() {
    const { native, shared } = making
    const joint = yield* joined
    const place = placeIn(native, joint)
    const direct = shared.isDirect ? yield* makeDirect(making, joint, place.rank) : undefined
    return { ...place, joint, direct, meetings: undefined }
  })

const connectChild = (
  making: NativeMaking,
  parent: LibraryHandleRef,
  make: Parameters<typeof makeJointChild>[2]
): Effect.Effect<Fields, CudaError> => connect(making, makeJointChild(making, parent, make))

/** Makes a communicator of simulated devices. */
const meet = (
  shared: Shared,
  { deviceIndex, made }: Making,
  joined: Effect.Effect<Meetings, CudaError>,
  rank: number,
  size: number
): Effect.Effect<Fields, CudaError> =>
  Effect.gen(function*() {
    const taken = Effect.map(pretendHandle(shared, deviceIndex), (handle) => {
      made.push(handle)
      return handle
    })
    const joint = yield* Effect.uninterruptible(taken)
    const meetings = yield* joined
    return { rank, size, joint, direct: undefined, meetings }
  })

/** Makes a communicator that lives as long as the scope. What was made of it is aborted if it does not come to be. */
const makeScoped = (
  shared: Shared,
  operation: string,
  deviceIndex: number,
  limits: Limits,
  awaited: string,
  connect: (making: Making) => Effect.Effect<Fields, CudaError>,
  parent?: CommunicatorRef
): Effect.Effect<CommunicatorImpl, CudaError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Effect.scope
      const making: Making = { shared, native: shared.native, operation, deviceIndex, made: [], pending: new Set() }
      const connected = connect(making).pipe(
        Effect.timeoutOrElse({
          duration: limits.timeout,
          orElse: () => timedOut(operation, awaited, limits.timeout, deviceIndex)
        })
      )
      // A thread of the parent may still be making the first of them, and ends with the parent.
      const left = parent === undefined ? Effect.void : Effect.suspend(() => abortCommunicator(parent))
      const abandoned = Effect.andThen(left, abandon(making))
      const fields = yield* Effect.onError(restore(connected), () => abandoned)
      const ref = new CommunicatorRef(shared, { ...fields, deviceIndex })
      const watcher = yield* Effect.forkDetach(watchStreams(ref, limits.closeTimeout))
      yield* Scope.addFinalizerExit(scope, (exit) =>
        Effect.andThen(Fiber.interrupt(watcher), closeCommunicator(ref, limits.closeTimeout, exit)))
      return makeCommunicator(ref)
    })
  ).pipe(named(operation))

/**
 * Makes a communicator of devices of this process, one rank per device, in their order.
 *
 * **Details**
 *
 * As `uniqueId`, and `join` for each device. Fails with `InvalidArgument` for a device that is named twice.
 *
 * **Gotchas**
 *
 * Issue the collectives of all ranks, with one `run` or from several fibers, before you wait for one: each waits on its stream for the others.
 *
 * **Example** (All GPUs of the machine)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 * import { CudaRuntime } from "effect-cuda/CudaRuntime"
 * import * as Effect from "effect/Effect"
 *
 * export const sums = (parts: ReadonlyArray<CudaMemory.DeviceBuffer>) =>
 *   Effect.gen(function*() {
 *     const { devices } = yield* CudaRuntime
 *     const communicators = yield* CudaNccl.local(devices)
 *     yield* CudaNccl.run(
 *       ...communicators.map((communicator, rank) => CudaNccl.allReduce(communicator, { from: parts[rank]!, type: "f32" }))
 *     )
 *   })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const local = (
  devices: ReadonlyArray<DeviceInput>,
  options?: WaitLimits
): Effect.Effect<ReadonlyArray<Communicator>, CudaError, CudaNccl | Scope.Scope> =>
  Effect.flatMap(CudaNccl, (service) => service.local(devices, options))

const local_ = (
  shared: Shared,
  devices: ReadonlyArray<DeviceInput>,
  options: WaitLimits
): Effect.Effect<ReadonlyArray<CommunicatorImpl>, CudaError, Scope.Scope> => {
  const operation = "CudaNccl.local"
  if (!Array.isArray(devices) || devices.length === 0) {
    return refuseArgument(operation, "devices", devices, "an array of devices")
  }
  const indices = devices.map((device: DeviceInput) => deviceIndexOf(device, 0))
  const twice = indices.find((device, index) => indices.indexOf(device) !== index)
  if (twice !== undefined) return refuseArgument(operation, "devices", devices, `device ${twice} once`)
  return Effect.flatMap(makeId(shared), (id) =>
    Effect.forEach(
      indices,
      (device, rank) => join_(shared, operation, { ...options, id, rank, size: indices.length, device }),
      { concurrency: "unbounded" }
    ))
}

/**
 * Options for splitting a communicator.
 *
 * @category options
 * @since 0.1.0
 */
export interface SplitOptions extends WaitLimits {
  /** Ranks of one color become one communicator: an integer of at least 0. */
  readonly color: number
  /** Ranks are in the order of their keys, and of their ranks before. Default: 0. */
  readonly key?: number | undefined
}

/**
 * Splits a communicator into one per color. Every rank must take part, with `split` or with `skipSplit`. The new communicator lives as long as
 * its scope, and is independent of the first.
 *
 * **Details**
 *
 * Off the JS thread (`ncclCommSplit`). Fails as `join` does; the first communicator is then aborted, because it waits for ranks that did
 * not come.
 *
 * **Example** (Groups of two ranks)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 *
 * export const pairOf = (all: CudaNccl.Communicator) => CudaNccl.split(all, { color: Math.floor(all.rank / 2) })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const split = (
  communicator: Communicator,
  options: SplitOptions
): Effect.Effect<Communicator, CudaError, Scope.Scope> =>
  Effect.suspend(() => {
    const operation = "CudaNccl.split"
    const ref = liveRef(operation, communicator)
    if (ref instanceof CudaFailure) return ref
    if (!Predicate.isObject(options)) return refuseArgument(operation, "options", options, "a color")
    const { color, key = 0 } = options
    if (!isWhole(color, 0, 2 ** 31 - 1)) return refuseArgument(operation, "color", color, "an integer of at least 0")
    if (!isWhole(key, -(2 ** 31), 2 ** 31 - 1)) return refuseArgument(operation, "key", key, "an integer")
    const limits = limitsOf(operation, options)
    if (limits instanceof CudaFailure) return limits
    const { deviceIndex, joint, shared } = ref
    const made = makeScoped(shared, operation, deviceIndex, limits, "the other ranks", (making) => {
      const { native } = making
      if (native === undefined) return meetColor(ref, making, color, key)
      return connectChild({ ...making, native }, joint, splitting(joint, color, key, false, native))
    }, ref)
    return ref.lock.withPermit(made)
  }).pipe(Effect.withSpan("CudaNccl.split"))

const meetColor = (
  ref: CommunicatorRef,
  making: Making,
  color: number,
  key: number
): Effect.Effect<Fields, CudaError> => {
  const { rank, shared, size } = ref
  const ranks = Array.from({ length: size }, (_, index) => index)
  return Effect.flatMap(ref.meetings!.agree(rank, ranks, { color, key }), ({ meetingsOf, said }) => {
    const members = ranks
      .filter((member) => said.get(member)!.color === color)
      .sort((one, other) => said.get(one)!.key - said.get(other)!.key || one - other)
    const meetings = meetingsOf(color, members.length)
    return meet(shared, making, Effect.succeed(meetings), members.indexOf(rank), members.length)
  })
}

/**
 * Takes part in the split of a communicator without becoming a member of a new one.
 *
 * **Example** (A communicator of all ranks but the first)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const workers = (all: CudaNccl.Communicator) =>
 *   all.rank === 0 ? Effect.as(CudaNccl.skipSplit(all), undefined) : CudaNccl.split(all, { color: 0 })
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const skipSplit = (
  communicator: Communicator,
  options: Pick<WaitLimits, "timeout"> = {}
): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const operation = "CudaNccl.skipSplit"
    const ref = liveRef(operation, communicator)
    if (ref instanceof CudaFailure) return ref
    const limits = limitsOf(operation, options)
    if (limits instanceof CudaFailure) return limits
    const { deviceIndex, joint, meetings, rank, runtime, shared: { library, native }, size } = ref
    const ranks = Array.from({ length: size }, (_, index) => index)
    const skipped = native === undefined
      ? Effect.asVoid(meetings!.agree(rank, ranks, { color: undefined, key: 0 }))
      : Effect.andThen(
        Effect.suspend(() => {
          const [name, values] = splitting(joint, noColor, 0, false, native)(new BigUint64Array(1))
          return runtime.libraryRun(library.ref, name, values, deviceIndex)
        }),
        untilReady(native, operation, [joint])
      )
    const limited = Effect.timeoutOrElse(skipped, {
      duration: limits.timeout,
      orElse: () => timedOut(operation, "the other ranks", limits.timeout, deviceIndex)
    })
    // If the other ranks do not agree, the communicator waits for them for ever.
    return ref.lock.withPermit(Effect.onError(limited, () => abortCommunicator(ref))).pipe(named(operation))
  })

/** `NCCL_SPLIT_NOCOLOR`. */
const noColor = -1

/**
 * Options for shrinking a communicator.
 *
 * @category options
 * @since 0.1.0
 */
export interface ShrinkOptions extends WaitLimits {
  /** The ranks that do not become members. They take no part. */
  readonly without: ReadonlyArray<number>
  /** Whether to abort the collectives in progress and the communicator, because a rank is gone. Default: false. */
  readonly abort?: boolean | undefined
}

/**
 * Makes a communicator of the remaining ranks, in their order, each of which must take part. It lives as long as its scope.
 *
 * **Details**
 *
 * Off the JS thread (`ncclCommShrink`, since NCCL 2.27; before that, fails with `FunctionMissing`). With `abort`, collectives that wait for a
 * rank that is gone end, and the old communicator cannot be used any more.
 *
 * **Gotchas**
 *
 * Without `abort`, the communicator must have no work in progress. What collectives that were aborted have written is undefined.
 *
 * **Example** (Going on without a rank that is gone)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 *
 * const remaining = (all: CudaNccl.Communicator, gone: number) =>
 *   CudaNccl.shrink(all, { without: [gone], abort: true, timeout: "10 seconds" })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const shrink = (
  communicator: Communicator,
  options: ShrinkOptions
): Effect.Effect<Communicator, CudaError, Scope.Scope> =>
  Effect.suspend(() => {
    const operation = "CudaNccl.shrink"
    const ref = liveRef(operation, communicator)
    if (ref instanceof CudaFailure) return ref
    if (!Predicate.isObject(options)) return refuseArgument(operation, "options", options, "the ranks to leave out")
    const { abort: isAborted = false } = options
    const without = withoutOf(operation, ref, options.without)
    if (without instanceof CudaFailure) return without
    const limits = limitsOf(operation, options)
    if (limits instanceof CudaFailure) return limits
    const { deviceIndex, direct, joint, runtime, shared } = ref
    const made = makeScoped(shared, operation, deviceIndex, limits, "the remaining ranks", (making) => {
      const { native } = making
      if (native === undefined) return meetWithout(ref, making, without)
      return connectChild({ ...making, native }, joint, shrinking(joint, without, isAborted, native))
    }, ref)
    if (!isAborted) return ref.lock.withPermit(made)
    const ended = Effect.andThen(
      Effect.sync(() => ref.meetings?.leave(ref.rank)),
      direct === undefined ? Effect.void : abortHandle(runtime, direct)
    )
    // The old communicator is aborted in the background, which takes up to a second.
    const old = Effect.forkDetach(abortCommunicator(ref), { startImmediately: true })
    return Effect.andThen(Effect.uninterruptible(ended), Effect.onExit(made, () => old))
  }).pipe(Effect.withSpan("CudaNccl.shrink"))

const withoutOf = (
  operation: string,
  { rank, size }: CommunicatorRef,
  given: ReadonlyArray<number>
): ReadonlyArray<number> | CudaError => {
  const isRank = (other: unknown): boolean => isWhole(other, 0, size - 1) && other !== rank
  return Array.isArray(given) && given.length > 0 && given.every(isRank) && new Set(given).size === given.length
    ? [...given].sort((one, other) => one - other)
    : invalidArgument(operation, "without", given, `other ranks from 0 to ${size - 1}, each once`)
}

const meetWithout = (
  ref: CommunicatorRef,
  making: Making,
  without: ReadonlyArray<number>
): Effect.Effect<Fields, CudaError> => {
  const { rank, shared, size } = ref
  const remaining = Array.from({ length: size }, (_, index) => index).filter((other) => !without.includes(other))
  return Effect.flatMap(ref.meetings!.agree(rank, remaining, { color: 0, key: 0 }), ({ meetingsOf }) =>
    meet(
      shared,
      making,
      Effect.succeed(meetingsOf(0, remaining.length)),
      remaining.indexOf(rank),
      remaining.length
    ))
}

const liveRef = (operation: string, communicator: unknown): CommunicatorRef | CudaError => {
  if (!(communicator instanceof CommunicatorImpl)) {
    return invalidArgument(operation, "communicator", communicator, "a communicator that CudaNccl has made")
  }
  return communicator.ref.state === "live" ? communicator.ref : goneError(operation, communicator.ref)
}

/**
 * A collective of one rank, or sending or receiving: a value, which `run` issues, as often as you like. Its options are read when it is first
 * issued, and its parts each time, as growable memory changes its size. Issuing the same value again saves checking it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Collective extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaNccl/Collective": "~effect-cuda/CudaNccl/Collective"
  readonly kind: "allReduce" | "broadcast" | "reduce" | "allGather" | "reduceScatter" | "send" | "receive"
  readonly communicator: Communicator
  /** Default: the current stream of the communicator's device. */
  readonly stream: CudaStream | undefined
}

/**
 * Returns `true` if a value is a collective.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCollective = (u: unknown): u is Collective =>
  Predicate.hasProperty(u, "~effect-cuda/CudaNccl/Collective")

const collective = (
  kind: CollectiveKind,
  communicator: Communicator,
  given: Given,
  stream: CudaStream | undefined
): Collective => new CollectiveImpl(kind, communicator as CommunicatorImpl, given, stream)

/**
 * Options for reducing on all ranks.
 *
 * @category options
 * @since 0.1.0
 */
export interface AllReduceOptions {
  readonly from: Part
  /** Where the result is stored, of the same size. Default: `from`. */
  readonly to?: Part | undefined
  readonly type: NcclType
  /** Default: `sum`. */
  readonly op?: NcclOperator | undefined
}

/**
 * Combines the elements of all ranks, and stores the result on each (`ncclAllReduce`).
 *
 * **Example** (The average of gradients)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * const average = (communicator: CudaNccl.Communicator, gradients: CudaMemory.DeviceBuffer) =>
 *   CudaNccl.run(CudaNccl.allReduce(communicator, { from: gradients, type: "f32", op: "avg" }))
 * ```
 *
 * @category collectives
 * @since 0.1.0
 */
export const allReduce = (communicator: Communicator, options: AllReduceOptions, stream?: CudaStream): Collective =>
  collective("allReduce", communicator, options, stream)

/**
 * Options for broadcasting.
 *
 * @category options
 * @since 0.1.0
 */
export interface BroadcastOptions {
  /** What the root sends. Other ranks need none. Default: `to`. */
  readonly from?: Part | undefined
  /** Where it is stored, of the same size. */
  readonly to: Part
  readonly type: NcclType
  readonly root: number
}

/**
 * Copies the elements of one rank to all (`ncclBroadcast`).
 *
 * **Example** (The weights of rank 0, for all)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * const share = (communicator: CudaNccl.Communicator, weights: CudaMemory.DeviceBuffer) =>
 *   CudaNccl.run(CudaNccl.broadcast(communicator, { to: weights, type: "f32", root: 0 }))
 * ```
 *
 * @category collectives
 * @since 0.1.0
 */
export const broadcast = (communicator: Communicator, options: BroadcastOptions, stream?: CudaStream): Collective =>
  collective("broadcast", communicator, options, stream)

/**
 * Options for reducing on one rank.
 *
 * @category options
 * @since 0.1.0
 */
export interface ReduceOptions extends AllReduceOptions {
  /** The rank that stores the result. The others need no `to`. */
  readonly root: number
}

/**
 * Combines the elements of all ranks, and stores the result on one (`ncclReduce`).
 *
 * **Example** (The largest values, on rank 0)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * const largest = (communicator: CudaNccl.Communicator, values: CudaMemory.DeviceBuffer) =>
 *   CudaNccl.run(CudaNccl.reduce(communicator, { from: values, type: "f32", op: "max", root: 0 }))
 * ```
 *
 * @category collectives
 * @since 0.1.0
 */
export const reduce = (communicator: Communicator, options: ReduceOptions, stream?: CudaStream): Collective =>
  collective("reduce", communicator, options, stream)

/**
 * Options for collectives with a larger and a smaller part.
 *
 * @category options
 * @since 0.1.0
 */
export interface GatherOptions {
  readonly from: Part
  readonly to: Part
  readonly type: NcclType
}

/**
 * Stores the elements of all ranks, in the order of the ranks, on each (`ncclAllGather`). `to` has the size of `from` times the number of
 * ranks, and `from` may be the rank's own piece of it.
 *
 * **Example** (The parts of all ranks, on each)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * const gather = (communicator: CudaNccl.Communicator, part: CudaMemory.DeviceBuffer, whole: CudaMemory.DeviceBuffer) =>
 *   CudaNccl.run(CudaNccl.allGather(communicator, { from: part, to: whole, type: "f32" }))
 * ```
 *
 * @category collectives
 * @since 0.1.0
 */
export const allGather = (communicator: Communicator, options: GatherOptions, stream?: CudaStream): Collective =>
  collective("allGather", communicator, options, stream)

/**
 * Options for reducing to pieces.
 *
 * @category options
 * @since 0.1.0
 */
export interface ReduceScatterOptions extends GatherOptions {
  /** Default: `sum`. */
  readonly op?: NcclOperator | undefined
}

/**
 * Combines the elements of all ranks, and stores one piece of the result on each, in the order of the ranks (`ncclReduceScatter`). `from` has
 * the size of `to` times the number of ranks, and `to` may be the rank's own piece of it.
 *
 * **Example** (Each rank sums up its part)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * const sumParts = (communicator: CudaNccl.Communicator, whole: CudaMemory.DeviceBuffer, part: CudaMemory.DeviceBuffer) =>
 *   CudaNccl.run(CudaNccl.reduceScatter(communicator, { from: whole, to: part, type: "f32" }))
 * ```
 *
 * @category collectives
 * @since 0.1.0
 */
export const reduceScatter = (
  communicator: Communicator,
  options: ReduceScatterOptions,
  stream?: CudaStream
): Collective => collective("reduceScatter", communicator, options, stream)

/**
 * Options for sending.
 *
 * @category options
 * @since 0.1.0
 */
export interface SendOptions {
  readonly from: Part
  readonly type: NcclType
  /** The rank that receives. */
  readonly peer: number
}

/**
 * Sends elements to a rank, which must `receive` as many (`ncclSend`).
 *
 * **Gotchas**
 *
 * Issue what a rank sends and receives at the same time with one `run`. Two ranks that first send and then receive wait for each other.
 *
 * **Example** (From rank 0 to rank 1)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * const pass = (communicator: CudaNccl.Communicator, values: CudaMemory.DeviceBuffer) =>
 *   CudaNccl.run(
 *     communicator.rank === 0
 *       ? CudaNccl.send(communicator, { from: values, type: "f32", peer: 1 })
 *       : CudaNccl.receive(communicator, { to: values, type: "f32", peer: 0 })
 *   )
 * ```
 *
 * @category collectives
 * @since 0.1.0
 */
export const send = (communicator: Communicator, options: SendOptions, stream?: CudaStream): Collective =>
  collective("send", communicator, options, stream)

/**
 * Options for receiving.
 *
 * @category options
 * @since 0.1.0
 */
export interface ReceiveOptions {
  readonly to: Part
  readonly type: NcclType
  /** The rank that sends. */
  readonly peer: number
}

/**
 * Receives elements from a rank (`ncclRecv`). See `send`.
 *
 * **Example** (From the rank before)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * // Each rank passes its values to the next one, in a ring.
 * const shift = (communicator: CudaNccl.Communicator, from: CudaMemory.DeviceBuffer, to: CudaMemory.DeviceBuffer) => {
 *   const { rank, size } = communicator
 *   return CudaNccl.run(
 *     CudaNccl.send(communicator, { from, type: "f32", peer: (rank + 1) % size }),
 *     CudaNccl.receive(communicator, { to, type: "f32", peer: (rank + size - 1) % size })
 *   )
 * }
 * ```
 *
 * @category collectives
 * @since 0.1.0
 */
export const receive = (communicator: Communicator, options: ReceiveOptions, stream?: CudaStream): Collective =>
  collective("receive", communicator, options, stream)

/**
 * Issues collectives on their streams, as one group in one turn of the event loop (`ncclGroupStart`, `ncclGroupEnd`). Ends when all are on
 * their streams: later work, records and marks of ordered buffers come after them.
 *
 * **Details**
 *
 * An operation like any other: its memory is checked and lives until the work is done, and uses of ordered buffers wait for each other. Inside
 * `CudaGraph.record`, the driver captures it.
 *
 * Sending and receiving, and with `connect: "late"` everything, is polled until it is on its stream, which takes 50 µs more, and the first
 * time waits for the other ranks. Interruption aborts the communicator meanwhile, because NCCL cannot take back what another rank never answers.
 *
 * Fails with `InvalidArgument` for sizes that do not fit together, for overlapping parts, and for ranks that are none; with `DeviceMismatch`,
 * `ForeignResource` and `ResourceReleased`; and with `LibraryFailed` if NCCL fails.
 *
 * **Gotchas**
 *
 * All ranks must issue the same collectives of a communicator in the same order, whatever their streams. Nobody checks this on a GPU: ranks
 * that do not agree wait for each other for ever, or get wrong bytes. Simulated devices tell.
 *
 * Collectives of two communicators over the same devices must not run at the same time in different orders on different devices.
 *
 * `run` does not wait for the other ranks to issue theirs. A stream whose collective waits for a rank that never comes never goes on: use
 * `guard`, or `abort`.
 *
 * **Example** (Exchanging halves)
 *
 * ```ts
 * import { CudaNccl } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * export const exchange = (
 *   communicator: CudaNccl.Communicator,
 *   from: CudaMemory.DeviceBuffer,
 *   to: CudaMemory.DeviceBuffer
 * ) =>
 *   CudaNccl.run(
 *     CudaNccl.send(communicator, { from, type: "f32", peer: 1 - communicator.rank }),
 *     CudaNccl.receive(communicator, { to, type: "f32", peer: 1 - communicator.rank })
 *   )
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const run = (...collectives: ReadonlyArray<Collective>): Effect.Effect<void, CudaError> => runAll(collectives)

/**
 * Ends a communicator at once, and with it the work that waits for its other ranks (`ncclCommAbort`, off the JS thread). What such work has
 * written is undefined. Later operations fail with `ResourceReleased`.
 *
 * **Example** (Giving up when a wait takes too long)
 *
 * ```ts
 * import { CudaNccl, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const finished = (communicator: CudaNccl.Communicator, stream: CudaStream.CudaStream) =>
 *   CudaStream.synchronize(stream).pipe(
 *     Effect.timeoutOrElse({ duration: "10 seconds", orElse: () => CudaNccl.abort(communicator) })
 *   )
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const abort = (communicator: Communicator): Effect.Effect<void, CudaError> =>
  communicator instanceof CommunicatorImpl
    ? abortCommunicator(communicator.ref)
    : refuseArgument("CudaNccl.abort", "communicator", communicator, "a communicator that CudaNccl has made")

/**
 * Fails when a communicator does: because NCCL reports it (`ncclCommGetAsyncError`), or because it was aborted or released. For racing.
 *
 * **Gotchas**
 *
 * NCCL notices ranks that are gone by their network connections. Between processes of one machine it notices nothing (tried with 2.28): a
 * collective waits for a killed process until it is aborted. Use a timeout as well (see `guard`).
 *
 * **Example** (A wait that ends when the communicator fails)
 *
 * ```ts
 * import { CudaNccl, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const finished = (communicator: CudaNccl.Communicator, stream: CudaStream.CudaStream) =>
 *   Effect.raceFirst(CudaStream.synchronize(stream), CudaNccl.failure(communicator, { every: "50 millis" }))
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const failure = (
  communicator: Communicator,
  options: { readonly every?: Duration.Input | undefined } = {}
): Effect.Effect<never, CudaError> =>
  Effect.suspend(() => {
    const operation = "CudaNccl.failure"
    if (!(communicator instanceof CommunicatorImpl)) {
      return refuseArgument(operation, "communicator", communicator, "a communicator that CudaNccl has made")
    }
    const every = Duration.fromInput(options.every ?? usualInterval)
    return Option.isNone(every)
      ? refuseArgument(operation, "every", options.every, "a duration")
      : untilFailure(operation, [communicator.ref], every.value)
  })

const usualInterval = "100 millis"

/**
 * Options for guarding an effect.
 *
 * @category options
 * @since 0.1.0
 */
export interface GuardOptions {
  /** How long the effect may take. Default: as long as it takes. */
  readonly timeout?: Duration.Input | undefined
  /** How often NCCL is asked for failures. Default: 100 ms. */
  readonly every?: Duration.Input | undefined
}

/**
 * Runs an effect that waits for collectives, and aborts the communicators if it fails, is interrupted, takes too long (`TimedOut`), or one of
 * them fails. They are aborted before the effect is interrupted, so that its streams can end.
 *
 * **Example** (A step that a lost rank cannot block)
 *
 * ```ts
 * import { CudaNccl, CudaStream } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * export const step = (
 *   communicator: CudaNccl.Communicator,
 *   gradients: CudaMemory.DeviceBuffer,
 *   stream: CudaStream.CudaStream
 * ) =>
 *   Effect.andThen(
 *     CudaNccl.run(CudaNccl.allReduce(communicator, { from: gradients, type: "f32" }, stream)),
 *     CudaStream.synchronize(stream)
 *   ).pipe(CudaNccl.guard([communicator], { timeout: "10 seconds" }))
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const guard: {
  (
    communicators: ReadonlyArray<Communicator>,
    options?: GuardOptions
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CudaError, R>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    communicators: ReadonlyArray<Communicator>,
    options?: GuardOptions
  ): Effect.Effect<A, E | CudaError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    communicators: ReadonlyArray<Communicator>,
    options: GuardOptions = {}
  ): Effect.Effect<A, E | CudaError, R> => {
    const operation = "CudaNccl.guard"
    const refs: Array<CommunicatorRef> = []
    if (!Array.isArray(communicators) || communicators.length === 0) {
      return refuseArgument(operation, "communicators", communicators, "an array of communicators")
    }
    for (const communicator of communicators) {
      const ref = liveRef(operation, communicator)
      if (ref instanceof CudaFailure) return Effect.fail(ref)
      refs.push(ref)
    }
    const timeout = options.timeout === undefined ? Option.none() : Duration.fromInput(options.timeout)
    if (options.timeout !== undefined && Option.isNone(timeout)) {
      return refuseArgument(operation, "timeout", options.timeout, "a duration")
    }
    const every = Duration.fromInput(options.every ?? usualInterval)
    if (Option.isNone(every)) return refuseArgument(operation, "every", options.every, "a duration")
    const failed = untilFailure(operation, refs, every.value)
    const late = Option.match(timeout, {
      onNone: () => Effect.never,
      onSome: (duration) =>
        Effect.andThen(
          Effect.sleep(duration),
          Effect.suspend(() => timedOut(operation, "the end of the collectives", duration, refs[0]!.deviceIndex))
        )
    })
    return guarded(self, refs, Effect.raceFirst(failed, late))
  }
)

const guarded = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  refs: ReadonlyArray<CommunicatorRef>,
  failed: Effect.Effect<never, CudaError>
): Effect.Effect<A, E | CudaError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkDetach(restore(self), { startImmediately: true })
      const aborted = (failure?: CudaError) =>
        Effect.forEach(refs, (ref) => abortCommunicator(ref, failure), { discard: true, concurrency: "unbounded" })
      const ended = yield* Effect.exit(restore(Effect.raceFirst(Fiber.await(fiber), failed)))
      if (Exit.isSuccess(ended)) {
        const exit: Exit.Exit<A, E> = ended.value
        if (Exit.isFailure(exit)) yield* aborted()
        return yield* exit
      }
      // Their work ends as soon as they begin to end, and the rest takes up to a second.
      const failure = Option.getOrUndefined(Exit.findErrorOption(ended))
      yield* Effect.forkDetach(aborted(failure), { startImmediately: true, uninterruptible: true })
      yield* Fiber.interrupt(fiber)
      return yield* Effect.failCause(ended.cause)
    })
  )
