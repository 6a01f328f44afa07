/**
 * The operations that a checker watches.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { CudaError } from "../../CudaError.ts"
import type {
  CudaRuntimeService,
  KernelRef,
  LaunchConfig,
  MemoryAccess,
  MemoryRange,
  OperationMember,
  PointerArgument,
  StreamRef
} from "../CudaRuntime.ts"
import { directly, evaluate, operation } from "../shared/operation.ts"
import { ownMemory } from "../shared/resources.ts"
import type { Access, Checks, OpenWork, Use, Where } from "./Checks.ts"
import { orderedAmong } from "./handles.ts"
import type { Known, Timeline } from "./timelines.ts"
import { ofBatch, ofCall, ofCopy, ofCopy2D, ofFill, ofLibraryCall, planOf, readLaunch } from "./uses.ts"
import type { Collected } from "./uses.ts"
import { after, isEnqueued } from "./Watcher.ts"
import type { Watcher } from "./Watcher.ts"
import { Events, watchedEvents } from "./watchEvents.ts"
import { watchedGraphs } from "./watchGraphs.ts"
import { watchedMemory } from "./watchMemory.ts"
import { AccessTurns, usesOf } from "./watchTurns.ts"

/** The operations of a runtime that a layer replaces. */
export type Watched = { readonly [M in OperationMember]?: CudaRuntimeService[M] }

/** The uses of an operation. The runtime refuses arguments of the wrong kind, and reading them must not throw before that. */
const read = <A>(uses: () => A, otherwise: A): A => {
  try {
    return uses()
  } catch {
    return otherwise
  }
}

const nothing: ReadonlyArray<Use> = []
const nothingCollected = (operation: string): Collected => ({ operation, uses: [], raw: [] })

export const watched = (watcher: Watcher, inner: CudaRuntimeService): Watched => {
  const events = new Events()
  return {
    ...watchedCopies(watcher, inner),
    ...watchedCalls(watcher, inner),
    ...watchedAccesses(watcher, inner),
    ...watchedMemory(watcher, inner),
    ...watchedEvents(watcher, inner, events),
    ...watchedGraphs(watcher, inner, events)
  }
}

const watchedCopies = (watcher: Watcher, inner: CudaRuntimeService): Watched => ({
  ...watchedRepeated(watcher, inner),
  memoryCopy2D: (to, from, size, stream) =>
    Effect.suspend(() => {
      const run = inner.memoryCopy2D(to, from, size, stream)
      if (!isEnqueued(stream)) return run
      return watcher.enqueue("CudaMemory.copy2D", stream, read(() => ofCopy2D(to, from, size), nothing), run)
    }),
  memoryCopyBatch: (transfers, stream) =>
    Effect.suspend(() => {
      const run = inner.memoryCopyBatch(transfers, stream)
      if (!isEnqueued(stream)) return run
      return watcher.enqueue("CudaMemory.copyBatch", stream, read(() => ofBatch(transfers), nothing), run)
    })
})

/** Operations of which most repeat an earlier one, and then go straight to the driver. */
const watchedRepeated = (watcher: Watcher, inner: CudaRuntimeService): Watched => {
  const copy = directly(inner.memoryCopy)
  const fill = directly(inner.memoryFill)
  const launch = directly(inner.kernelLaunch)
  return {
    memoryCopy: operation((to: MemoryRange, from: MemoryRange, stream: StreamRef) => {
      if (!isEnqueued(stream)) return copy(to, from, stream)
      return repeatCopy(watcher, copy, to, from, stream) ??
        watcher.enqueue(copyName, stream, readCopy(to, from), inner.memoryCopy(to, from, stream))
    }),
    memoryFill: operation((to: MemoryRange, value: number, bits: 8 | 16 | 32, stream: StreamRef) => {
      if (!isEnqueued(stream)) return fill(to, value, bits, stream)
      return repeatFill(watcher, fill, to, value, bits, stream) ??
        watcher.enqueue(fillName, stream, readFill(to), inner.memoryFill(to, value, bits, stream))
    }),
    kernelLaunch: operation(
      (kernel: KernelRef, config: LaunchConfig, values: ReadonlyArray<unknown>, stream: StreamRef) => {
        if (!isEnqueued(stream) || kernel?.module?.state !== "live") {
          watcher.recordRaw(stream, kernel, values)
          return launch(kernel, config, values, stream)
        }
        return repeatLaunch(watcher, launch, kernel, config, values, stream) ??
          watcher.enqueueCollected(
            stream,
            readLaunch(kernel, values),
            inner.kernelLaunch(kernel, config, values, stream)
          )
      }
    )
  }
}

type Run = Effect.Effect<void, CudaError>

/** What an operation returns that has enqueued its work. Others return what they still have to do. */
const done: Run = Effect.void

const isFailure = (run: Run): boolean => Exit.isExit(run) && Exit.isFailure(run)

const copyName = "CudaMemory.copy"
const fillName = "CudaMemory.fill"

const repeatCopy = (
  watcher: Watcher,
  copy: CudaRuntimeService["memoryCopy"],
  to: MemoryRange,
  from: MemoryRange,
  stream: StreamRef
): Run | undefined => {
  const timeline = watcher.repeating(stream)
  if (timeline === undefined) return undefined
  const { checks, where } = watcher
  const known = checks.timelines.knownBy(timeline)
  const read = repeatedRange(checks, timeline, known, from, false, copyName, where)
  if (read === undefined) return undefined
  const write = repeatedRange(checks, timeline, known, to, true, copyName, where)
  if (write === undefined) return undefined
  const result = evaluate(copy(to, from, stream))
  if (result === done) {
    checks.renew(timeline, known, read)
    checks.renew(timeline, known, write)
    return result
  }
  return isFailure(result) ? result : watcher.enqueue(copyName, stream, readCopy(to, from), result)
}

const repeatFill = (
  watcher: Watcher,
  fill: CudaRuntimeService["memoryFill"],
  to: MemoryRange,
  value: number,
  bits: 8 | 16 | 32,
  stream: StreamRef
): Run | undefined => {
  const timeline = watcher.repeating(stream)
  if (timeline === undefined) return undefined
  const { checks, where } = watcher
  const known = checks.timelines.knownBy(timeline)
  const write = repeatedRange(checks, timeline, known, to, true, fillName, where)
  if (write === undefined) return undefined
  const result = evaluate(fill(to, value, bits, stream))
  if (result === done) {
    checks.renew(timeline, known, write)
    return result
  }
  return isFailure(result) ? result : watcher.enqueue(fillName, stream, readFill(to), result)
}

const repeatedRange = (
  checks: Checks,
  timeline: Timeline,
  known: Known,
  range: MemoryRange | undefined,
  writes: boolean,
  name: string,
  where: Where | undefined
): Access | undefined =>
  range === undefined || range === null
    ? undefined
    : checks.repeated(timeline, known, range.memory, range.offset, range.byteLength, writes, name, where)

const repeatLaunch = (
  watcher: Watcher,
  launch: CudaRuntimeService["kernelLaunch"],
  kernel: KernelRef,
  config: LaunchConfig,
  values: ReadonlyArray<unknown>,
  stream: StreamRef
): Run | undefined => {
  const timeline = watcher.repeating(stream)
  if (timeline === undefined) return undefined
  const { checks } = watcher
  const known = checks.timelines.knownBy(timeline)
  const accesses = spare ?? []
  spare = undefined
  const count = findRepeated(accesses, watcher, timeline, known, kernel, values)
  if (count < 0) {
    spare = accesses
    return undefined
  }
  const result = evaluate(launch(kernel, config, values, stream))
  if (result !== done) return launchAgain(watcher, kernel, values, stream, result)
  for (let at = 0; at < count; at++) checks.renew(timeline, known, accesses[at]!)
  spare = accesses
  return result
}

/** Room for the accesses of a launch. Code of a simulated kernel can launch others meanwhile. */
let spare: Array<Access> | undefined = []

const launchAgain = (
  watcher: Watcher,
  kernel: KernelRef,
  values: ReadonlyArray<unknown>,
  stream: StreamRef,
  run: Run
): Run => isFailure(run) ? run : watcher.enqueueCollected(stream, readLaunch(kernel, values), run)

/** The number of accesses that a launch repeats, which are put into an array; negative if it must be looked at. */
const findRepeated = (
  accesses: Array<Access>,
  { checks, where }: Watcher,
  timeline: Timeline,
  known: Known,
  kernel: KernelRef,
  values: ReadonlyArray<unknown>
): number => {
  if (!Array.isArray(values)) return -1
  try {
    const { operation: name, pointers } = planOf(kernel)
    for (let at = 0; at < pointers.length; at++) {
      const { access, index } = pointers[at]!
      const value: unknown = values[index]
      if (access === undefined || !hasBuffer(value)) return -1
      const { buffer, byteLength, offset } = value
      const writes = access !== "read"
      const found = checks.repeated(timeline, known, buffer?.ref, offset, byteLength, writes, name, where)
      if (found === undefined) return -1
      accesses[at] = found
    }
    return pointers.length
  } catch {
    return -1
  }
}

/** What is not a part of a buffer has nothing known of its memory, so a look at one property is enough. */
const hasBuffer = (value: unknown): value is PointerArgument =>
  typeof value === "object" && value !== null && "buffer" in value

const readCopy = (to: MemoryRange, from: MemoryRange): ReadonlyArray<Use> => {
  try {
    return ofCopy(to, from)
  } catch {
    return nothing
  }
}

const readFill = (to: MemoryRange): ReadonlyArray<Use> => {
  try {
    return ofFill(to)
  } catch {
    return nothing
  }
}

const watchedCalls = (watcher: Watcher, inner: CudaRuntimeService): Watched => ({
  memoryEnqueue: (work, call, stream) =>
    Effect.suspend(() => {
      const run = inner.memoryEnqueue(work, call, stream)
      if (!isEnqueued(stream)) return run
      return watcher.enqueueCollected(stream, read(() => ofCall(work), nothingCollected("CudaMemory.enqueue")), run)
    }),
  memoryEnqueueAll: (works, call) =>
    Effect.suspend(() => {
      const run = inner.memoryEnqueueAll(works, call)
      if (!Array.isArray(works)) return run
      return works.reduce((run, work) => {
        if (!isEnqueued(work.stream)) return run
        const collected = read(() => ofCall(work), nothingCollected("CudaMemory.enqueueAll"))
        return watcher.enqueueCollected(work.stream, collected, run)
      }, run)
    }),
  libraryCall: (library, name, values, stream) =>
    Effect.suspend(() => {
      const run = inner.libraryCall(library, name, values, stream)
      if (!isEnqueued(stream)) return run
      const collected = read(() => ofLibraryCall(library, name, values), nothingCollected("CudaLibrary.call"))
      const handles = read(() => orderedAmong(values), [])
      const timeline = watcher.checks.timelineOf(stream)
      watcher.handles.wait(timeline, handles)
      return watcher.enqueueCollected(stream, collected, run, () => watcher.handles.used(timeline, handles))
    })
})

/** Work that other code enqueues over a period of time. */
const watchedAccesses = (watcher: Watcher, inner: CudaRuntimeService): Watched => {
  const { checks } = watcher
  const open = new WeakMap<MemoryAccess, OpenWork>()
  const turns = new AccessTurns(watcher)
  const begin = (key: MemoryAccess, name: string, stream: StreamRef, uses: ReadonlyArray<Use>) => {
    if (!isEnqueued(stream) || watcher.isUnchecked) return
    const work = checks.begin(checks.timelineOf(stream), {
      operation: name,
      uses,
      where: watcher.where,
      isVoid: false
    })
    watcher.host?.begin(work)
    open.set(key, work)
    watcher.tracer?.opened(work, stream)
  }
  const end = (key: MemoryAccess) => {
    const run = evaluate(inner.memoryEnd(key))
    turns.end(key)
    const own = open.get(key)
    if (own === undefined) return run
    open.delete(key)
    return endOpen(watcher, own, key.stream, run)
  }
  return {
    memoryBegin: operation((access: MemoryAccess) =>
      turns.begin(
        access,
        inner.memoryBegin(access),
        () => begin(access, "CudaMemory.access", access.stream, usesOf(access))
      )
    ),
    memoryEnd: operation(end),
    memorySynchronize: (range) =>
      Effect.suspend(() => {
        const points = read(() => checks.pointsOf(wholeUse(range)), [])
        return after(inner.memorySynchronize(range), () => points.forEach((point) => checks.timelines.finish(point)))
      })
  }
}

const wholeUse = ({ byteLength, memory, offset }: MemoryRange): Use => ({
  memory: ownMemory(memory),
  offset,
  byteLength,
  kind: "reads and writes",
  argument: undefined
})

/** Work of other code is checked when it ends, because waits in between may order it. */
const endOpen = (
  watcher: Watcher,
  open: OpenWork,
  stream: StreamRef,
  run: Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> => {
  const { checks } = watcher
  const { since, timeline } = open
  const known = checks.knownBy(timeline, open)
  const reports = checks.find(timeline, known, open, since)
  checks.end(open)
  watcher.tracer?.closing(open, stream)
  checks.commit(timeline, known, open, since)
  watcher.host?.end(open, timeline.epoch, known)
  watcher.tracer?.committed(open, timeline, known, since)
  return reports.length === 0 ? run : watcher.meet(open.operation, stream.deviceIndex, reports, run, true)
}
