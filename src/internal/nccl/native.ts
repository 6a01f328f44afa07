/**
 * Communicators of NCCL.
 *
 * A communicator has two of NCCL's. The first is non-blocking: whatever may wait for other ranks (joining, splitting, connections for
 * sending and receiving) goes on in NCCL's own threads, is polled, and can be aborted. But an event recorded right after a non-blocking
 * collective is done before that begins, and waiting until it has begun takes 70 µs. The second is a blocking one, split from the first:
 * its work is on its stream when a call returns, after some 10 µs. For that, it must be connected when it is made
 * (`NCCL_RUNTIME_CONNECT=0`); otherwise its first calls would wait for other ranks on the JS thread.
 */
import * as Effect from "effect/Effect"
import { environment } from "../../cuda/environment.ts"
import { CudaError } from "../../CudaError.ts"
import * as CudaLibrary from "../../CudaLibrary.ts"
import type { CudaRuntime, CudaRuntimeService, LibraryHandleRef, NativeFunction } from "../../layers/CudaRuntime.ts"
import { named } from "../handles.ts"
import type { Plan } from "./collective.ts"
import type { Shared } from "./communicator.ts"
import { configOf, inProgress, reasonOf, system } from "./library.ts"
import type { Nccl, NcclFunction } from "./library.ts"

/** The functions that are called in a turn of the event loop. */
export interface NativeCalls {
  readonly version: number
  readonly getAsyncError: NativeFunction
  readonly getCount: NativeFunction
  readonly getRank: NativeFunction
  readonly getLastError: NativeFunction | undefined
  readonly groupStart: NativeFunction
  readonly groupEnd: NativeFunction
  readonly collectives: { readonly [Kind in Plan["kind"]]: NativeFunction }
}

export const functionNames: { readonly [Kind in Plan["kind"]]: NcclFunction } = {
  allReduce: "ncclAllReduce",
  broadcast: "ncclBroadcast",
  reduce: "ncclReduce",
  allGather: "ncclAllGather",
  reduceScatter: "ncclReduceScatter",
  send: "ncclSend",
  receive: "ncclRecv"
}

/** Finds the functions; undefined on simulated devices. */
export const findCalls = Effect.fnUntraced(function*(library: Nccl) {
  const getVersion = yield* CudaLibrary.native(library, "ncclGetVersion")
  if (getVersion === undefined) return undefined
  const out = new Int32Array(1)
  getVersion(out)
  const find = (name: NcclFunction) => Effect.map(CudaLibrary.native(library, name), (found) => found!)
  const calls: NativeCalls = {
    version: out[0]!,
    getAsyncError: yield* find("ncclCommGetAsyncError"),
    getCount: yield* find("ncclCommCount"),
    getRank: yield* find("ncclCommUserRank"),
    getLastError: yield* Effect.orElseSucceed(CudaLibrary.native(library, "ncclGetLastError"), () => undefined),
    groupStart: yield* find("ncclGroupStart"),
    groupEnd: yield* find("ncclGroupEnd"),
    collectives: {
      allReduce: yield* find("ncclAllReduce"),
      broadcast: yield* find("ncclBroadcast"),
      reduce: yield* find("ncclReduce"),
      allGather: yield* find("ncclAllGather"),
      reduceScatter: yield* find("ncclReduceScatter"),
      send: yield* find("ncclSend"),
      receive: yield* find("ncclRecv")
    }
  }
  return calls
})

/** NCCL reads the variable when the process makes its first communicator. */
let connectsLate = false

/** Notes that communicators connect late, as NCCL does by itself. */
export const connectLate: Effect.Effect<boolean> = Effect.sync(() => {
  connectsLate = true
  return false
})

/** Makes communicators connect while they are made. Returns false if that was decided otherwise, or cannot be set. */
export const connectEarly: Effect.Effect<boolean, never, CudaRuntime> = Effect.suspend(() => {
  const given = environment[connectVariable]
  if (given !== undefined || connectsLate) return Effect.succeed(given === "0")
  return Effect.gen(function*() {
    const library = yield* CudaLibrary.load(system)
    const setenv = yield* CudaLibrary.native(library, "setenv")
    return Number(setenv?.(connectVariable, "0", 1)) === 0
  }).pipe(Effect.orElseSucceed(() => false))
})

const connectVariable = "NCCL_RUNTIME_CONNECT"

/** What NCCL said last about a failure; undefined before 2.13. */
export const lastWords = ({ getLastError }: NativeCalls): string | undefined => {
  const said: unknown = getLastError?.(0)
  return typeof said === "string" ? said : undefined
}

/** The error for a code, with the last words of NCCL. */
export const errorOf = (native: NativeCalls, operation: string, code: number, deviceIndex: number): CudaError =>
  new CudaError({ operation, deviceIndex, reason: reasonOf(code, lastWords(native)) })

const out = new Int32Array(1)

/** 0, the code of a failure, or `inProgress`. */
export const stateOf = ({ getAsyncError }: NativeCalls, handles: ReadonlyArray<LibraryHandleRef>): number => {
  let state = 0
  for (const { handle } of handles) {
    const code = Number(getAsyncError(handle, out)) || out[0]!
    if (code !== 0 && code !== inProgress) return code
    state ||= code
  }
  return state
}

/** How long to poll once per turn of the event loop, before once per millisecond. */
const eagerMillis = 3

/** Waits until communicators have finished what they are doing. Their own threads do it. */
export const untilReady = (
  native: NativeCalls,
  operation: string,
  handles: ReadonlyArray<LibraryHandleRef>
): Effect.Effect<void, CudaError> =>
  Effect.callback((resume) => {
    const begun = performance.now()
    let cancel = () => {}
    const check = () => {
      const gone = handles.find(({ state }) => state !== "live")
      if (gone !== undefined) return resume(Effect.fail(goneHandle(operation, gone)))
      const state = stateOf(native, handles)
      if (state === inProgress) return again()
      const { deviceIndex } = handles[0]!
      resume(state === 0 ? Effect.void : Effect.fail(errorOf(native, operation, state, deviceIndex)))
    }
    const again = () => {
      if (performance.now() - begun < eagerMillis) {
        const next = setImmediate(check)
        cancel = () => clearImmediate(next)
      } else {
        const next = setTimeout(check, 1)
        cancel = () => clearTimeout(next)
      }
    }
    check()
    return Effect.sync(() => cancel())
  })

const goneHandle = (operation: string, handle: LibraryHandleRef): CudaError =>
  new CudaError({
    operation,
    deviceIndex: handle.deviceIndex,
    reason: { _tag: "ResourceReleased", resource: String(handle) }
  })

/** Takes over a communicator that a call has made. */
const adopt = (
  { library, runtime }: Shared,
  made: BigUint64Array,
  deviceIndex: number
): Effect.Effect<LibraryHandleRef, CudaError> =>
  runtime.libraryAdopt(
    library.ref,
    { kind: "nccl", handle: Number(made[0]), destroy: "ncclCommDestroy", abort: "ncclCommAbort", endsGraphs: true },
    deviceIndex
  )

/** Ends a communicator without waiting for anything. */
export const abortHandle = (runtime: CudaRuntimeService, handle: LibraryHandleRef): Effect.Effect<void> =>
  Effect.ignore(runtime.libraryDestroy(handle, { abort: true }))

type Make = (out: BigUint64Array) => readonly [name: NcclFunction, values: ReadonlyArray<unknown>]

/** Where communicators are made, and which were: whoever began it aborts them if it does not succeed. */
export interface Making {
  readonly shared: Shared
  readonly native: NativeCalls
  readonly operation: string
  readonly deviceIndex: number
  readonly made: Array<LibraryHandleRef>
  /** Where communicators will be stored that others are making. */
  readonly pending: Set<BigUint64Array>
}

/** Begins to make a communicator. */
const begin = ({ deviceIndex, shared }: Making, make: Make, out: BigUint64Array): Effect.Effect<unknown, CudaError> => {
  const [name, values] = make(out)
  return shared.runtime.libraryRun(shared.library.ref, name, values, deviceIndex)
}

const take = ({ deviceIndex, made, shared }: Making, out: BigUint64Array): Effect.Effect<LibraryHandleRef, CudaError> =>
  Effect.map(adopt(shared, out, deviceIndex), (handle) => {
    made.push(handle)
    return handle
  })

/** Joins a non-blocking communicator, and waits until it can be used. */
export const makeJoint = (making: Making, make: Make): Effect.Effect<LibraryHandleRef, CudaError> => {
  const { native, operation } = making
  const begun = Effect.suspend(() => {
    const out = new BigUint64Array(1)
    return Effect.andThen(begin(making, make, out), Effect.suspend(() => take(making, out)))
  })
  return Effect.flatMap(
    Effect.uninterruptible(begun),
    (handle) => Effect.as(untilReady(native, operation, [handle]), handle)
  ).pipe(named(operation))
}

/** Makes a communicator from a non-blocking one, whose threads store it when it is complete. */
export const makeChild = (
  making: Making,
  parent: LibraryHandleRef,
  make: Make
): Effect.Effect<LibraryHandleRef, CudaError> =>
  Effect.suspend(() => {
    const { native, operation, pending } = making
    const out = new BigUint64Array(1)
    pending.add(out)
    const taken = Effect.suspend(() => {
      pending.delete(out)
      return take(making, out)
    })
    return Effect.andThen(
      Effect.uninterruptible(begin(making, make, out)),
      Effect.andThen(untilReady(native, operation, [parent]), Effect.uninterruptible(taken))
    ).pipe(named(operation))
  })

/** Like `makeChild`, for a non-blocking one, which has a state of its own. */
export const makeJointChild = (
  making: Making,
  parent: LibraryHandleRef,
  make: Make
): Effect.Effect<LibraryHandleRef, CudaError> =>
  Effect.flatMap(
    makeChild(making, parent, make),
    (handle) => Effect.as(untilReady(making.native, making.operation, [handle]), handle).pipe(named(making.operation))
  )

/** Aborts what was made, in the order in which it was: the threads of one may still be making the next. */
export const abandon = ({ deviceIndex, made, pending, shared }: Omit<Making, "native">): Effect.Effect<void> =>
  Effect.suspend(() => {
    const abort = (handle: LibraryHandleRef) => abortHandle(shared.runtime, handle)
    const stored = Effect.suspend(() =>
      Effect.forEach(
        [...pending].filter(([child]) => child !== 0n),
        (out) => Effect.ignore(Effect.flatMap(adopt(shared, out, deviceIndex), abort)),
        { discard: true }
      )
    )
    return Effect.andThen(Effect.forEach(made, abort, { discard: true }), stored)
  })

export const joining = (id: Uint8Array, rank: number, size: number, { version }: NativeCalls): Make => (out) => [
  "ncclCommInitRankConfig",
  [out, size, id, rank, configOf(false, version)]
]

export const splitting = (
  parent: LibraryHandleRef,
  color: number,
  key: number,
  isBlocking: boolean,
  { version }: NativeCalls
): Make =>
(out) => ["ncclCommSplit", [parent, color, key, out, configOf(isBlocking, version)]]

export const shrinking = (
  parent: LibraryHandleRef,
  without: ReadonlyArray<number>,
  isAborted: boolean,
  { version }: NativeCalls
): Make =>
(out) => [
  "ncclCommShrink",
  [parent, Int32Array.from(without), without.length, out, configOf(false, version), isAborted ? 1 : 0]
]

/** Splits the blocking communicator from a non-blocking one. */
export const makeDirect = (
  making: Making,
  joint: LibraryHandleRef,
  rank: number
): Effect.Effect<LibraryHandleRef, CudaError> =>
  makeChild(making, joint, splitting(joint, 0, rank, true, making.native))

/** The rank and the size of a communicator that is ready. */
export const placeIn = ({ getCount, getRank }: NativeCalls, { handle }: LibraryHandleRef) => {
  const [count, rank] = [new Int32Array(1), new Int32Array(1)]
  getCount(handle, count)
  getRank(handle, rank)
  return { rank: rank[0]!, size: count[0]! }
}

let simulatedHandles = 0

/** Stands for a communicator on simulated devices. */
export const pretendHandle = (shared: Shared, deviceIndex: number): Effect.Effect<LibraryHandleRef, CudaError> =>
  Effect.suspend(() => adopt(shared, BigUint64Array.of(BigInt(++simulatedHandles)), deviceIndex))

/** Makes the call of a collective. Returns its status. */
export const issue = ({ collectives }: NativeCalls, plan: Plan, stream: number): number => {
  const { count, fromAddress: from, kind, operatorCode: op, other, toAddress: to, typeCode: type } = plan
  const { handle } = plan.handles[0]!
  const call = collectives[kind]
  switch (kind) {
    case "allReduce":
    case "reduceScatter":
      return Number(call(from, to, count, type, op, handle, stream))
    case "allGather":
      return Number(call(from, to, count, type, handle, stream))
    case "broadcast":
      return Number(call(from, to, count, type, other, handle, stream))
    case "reduce":
      return Number(call(from, to, count, type, op, other, handle, stream))
    case "send":
      return Number(call(from, count, type, other, handle, stream))
    case "receive":
      return Number(call(to, count, type, other, handle, stream))
  }
}

export const groupStart = (native: NativeCalls): number => Number(native.groupStart())

/** Every group that was begun ends, because it belongs to the thread. Returns the first failure. */
export const groupEnd = (native: NativeCalls, status: number): number => {
  const ended = Number(native.groupEnd())
  return status || ended
}
