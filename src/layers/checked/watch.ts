/**
 * The operations that a checker watches.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type {
  CudaRuntimeService,
  KernelRef,
  LaunchConfig,
  MemoryAccess,
  MemoryRange,
  OperationMember,
  StreamRef
} from "../CudaRuntime.ts"
import { operation } from "../shared/operation.ts"
import { ownMemory } from "../shared/resources.ts"
import type { OpenWork, Use } from "./Checks.ts"
import { orderedAmong } from "./handles.ts"
import { ofBatch, ofCall, ofCopy, ofCopy2D, ofFill, ofLaunch, ofLibraryCall, ofRanges } from "./uses.ts"
import type { Collected } from "./uses.ts"
import { after, isEnqueued } from "./Watcher.ts"
import type { Watcher } from "./Watcher.ts"
import { Events, watchedEvents } from "./watchEvents.ts"
import { watchedGraphs } from "./watchGraphs.ts"
import { watchedMemory } from "./watchMemory.ts"

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
const nothingCollected = (operation: string): Collected => ({ operation, uses: [], unknown: 0 })

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
  memoryCopy: operation((to: MemoryRange, from: MemoryRange, stream: StreamRef) => {
    const run = inner.memoryCopy(to, from, stream)
    return isEnqueued(stream) ? watcher.enqueue("CudaMemory.copy", stream, readCopy(to, from), run) : run
  }),
  memoryFill: operation((to: MemoryRange, value: number, bits: 8 | 16 | 32, stream: StreamRef) => {
    const run = inner.memoryFill(to, value, bits, stream)
    return isEnqueued(stream) ? watcher.enqueue("CudaMemory.fill", stream, readFill(to), run) : run
  }),
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

const readLaunch = (kernel: KernelRef, values: ReadonlyArray<unknown>): Collected => {
  try {
    return ofLaunch(kernel, values)
  } catch {
    return nothingCollected("CudaKernel.launch")
  }
}

const watchedCalls = (watcher: Watcher, inner: CudaRuntimeService): Watched => ({
  kernelLaunch: operation(
    (kernel: KernelRef, config: LaunchConfig, values: ReadonlyArray<unknown>, stream: StreamRef) => {
      const run = inner.kernelLaunch(kernel, config, values, stream)
      if (!isEnqueued(stream) || kernel?.module?.state !== "live") return run
      return watcher.enqueueCollected(stream, readLaunch(kernel, values), run)
    }
  ),
  memoryEnqueue: (work, call, stream) =>
    Effect.suspend(() => {
      const run = inner.memoryEnqueue(work, call, stream)
      if (!isEnqueued(stream)) return run
      return watcher.enqueueCollected(stream, read(() => ofCall(work), nothingCollected("CudaMemory.enqueue")), run)
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
  const begin = (key: MemoryAccess, name: string, stream: StreamRef, uses: ReadonlyArray<Use>) => {
    if (!isEnqueued(stream) || watcher.isUnchecked) return
    open.set(
      key,
      checks.begin(checks.timelineOf(stream), { operation: name, uses, where: watcher.where, isVoid: false })
    )
  }
  const end = (key: MemoryAccess, run: Effect.Effect<void, CudaError>) =>
    Effect.suspend(() => {
      const own = open.get(key)
      if (own === undefined) return run
      open.delete(key)
      return endOpen(watcher, own, key.stream, run)
    })
  return {
    memoryBegin: (access) =>
      Effect.map(inner.memoryBegin(access), () => {
        const { reads, stream, writes } = access
        begin(access, "CudaMemory.access", stream, read(() => ofRanges(reads, writes), nothing))
      }),
    memoryEnd: (access) => end(access, inner.memoryEnd(access)),
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
  { deviceIndex }: StreamRef,
  run: Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> => {
  const { checks } = watcher
  const { since, timeline } = open
  const known = checks.knownBy(timeline, open)
  const reports = checks.find(timeline, known, open, since)
  checks.end(open)
  checks.commit(timeline, known, open, since)
  return reports.length === 0 ? run : watcher.meet(open.operation, deviceIndex, reports, run, true)
}
