/**
 * What is made and released: memory, and the resources that may be left when the runtime ends.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, MemoryRef, ModuleRef, PartitionRef, StreamRef } from "../CudaRuntime.ts"
import { operations } from "../runtime/operations.ts"
import type { OperationMember } from "../runtime/operations.ts"
import { ownModule } from "../shared/moduleResources.ts"
import { GrowableMemoryResource, ownMemory } from "../shared/resources.ts"
import type { Watched } from "./watch.ts"
import { isEnqueued } from "./Watcher.ts"
import type { Watcher } from "./Watcher.ts"

export const watchedMemory = (watcher: Watcher, inner: CudaRuntimeService): Watched => {
  const { checks } = watcher
  const made = <A extends object>(
    member: OperationMember,
    run: Effect.Effect<A, CudaError>,
    next?: (made: A) => void
  ) =>
    Effect.suspend(() => {
      const { where } = watcher
      return Effect.map(run, (resource) => {
        watcher.made(resource, operations[member].name, where)
        if (isMemory(resource)) watcher.freed.made(resource)
        next?.(resource)
        return resource
      })
    })
  const gone = <A>(resource: object, run: Effect.Effect<A, CudaError>) =>
    Effect.suspend(() => {
      watcher.released(resource)
      return run
    })
  const inPartition = new WeakMap<PartitionRef, Set<StreamRef>>()
  /** The streams of a partition, which end with it. */
  const streamsOf = (partition: PartitionRef): Set<StreamRef> => {
    const streams = inPartition.get(partition) ?? new Set<StreamRef>()
    inPartition.set(partition, streams)
    return streams
  }
  const allocated = (memory: MemoryRef) => checks.allocate(memory)
  return {
    streamCreate: (options) => {
      const run = inner.streamCreate(options)
      const partition = options?.partition
      const noted = partition === undefined ?
        run :
        Effect.tap(run, (stream) => Effect.sync(() => void streamsOf(partition).add(stream)))
      return options?.pooled === true ? noted : made("streamCreate", noted)
    },
    partitionCreate: (device, sizes, options) =>
      Effect.suspend(() => {
        const { where } = watcher
        const note = (partitions: ReadonlyArray<PartitionRef>) => {
          for (const partition of partitions) watcher.made(partition, operations.partitionCreate.name, where)
        }
        const onMade = (partitions: ReadonlyArray<PartitionRef>) => {
          note(partitions)
          options?.onMade?.(partitions)
        }
        if (options?.onMade !== undefined) return inner.partitionCreate(device, sizes, { onMade })
        return Effect.tap(inner.partitionCreate(device, sizes), (partitions) => Effect.sync(() => note(partitions)))
      }),
    partitionDestroy: (partition) =>
      Effect.suspend(() => {
        watcher.released(partition)
        return Effect.onExit(inner.partitionDestroy(partition), () =>
          Effect.sync(() => {
            for (const stream of inPartition.get(partition) ?? []) endIfReleased(watcher, stream)
          }))
      }),
    streamDestroy: (stream) =>
      Effect.suspend(() => {
        watcher.released(stream)
        return isEnqueued(stream) && stream.origin === "owned"
          ? Effect.onExit(inner.streamDestroy(stream), () => Effect.sync(() => endIfReleased(watcher, stream)))
          : inner.streamDestroy(stream)
      }),
    eventCreate: (device, flags) => made("eventCreate", inner.eventCreate(device, flags)),
    eventFromIpcHandle: (device, handle) => made("eventFromIpcHandle", inner.eventFromIpcHandle(device, handle)),
    eventDestroy: (event) => gone(event, inner.eventDestroy(event)),
    memoryAllocate: (device, byteLength, options) =>
      made("memoryAllocate", inner.memoryAllocate(device, byteLength, options), (memory) => {
        const stream = options?.stream
        if (stream === undefined || !isEnqueued(stream)) allocated(memory)
        else checks.allocateIn(memory, stream)
      }),
    managedAllocate: (device, byteLength, options) =>
      made("managedAllocate", inner.managedAllocate(device, byteLength, options), allocated),
    memoryReserve: (device, maxBytes, options) =>
      made("memoryReserve", inner.memoryReserve(device, maxBytes, options), allocated),
    memoryShrink: (memory, byteLength) =>
      Effect.suspend(() => {
        const before = mappedBytesOf(memory)
        return Effect.onExit(inner.memoryShrink(memory, byteLength), () =>
          Effect.sync(() => {
            const after = mappedBytesOf(memory)
            if (after < before) checks.renewMemory(memory, after, before)
          }))
      }),
    hostAllocate: (byteLength, options) => made("hostAllocate", inner.hostAllocate(byteLength, options), allocated),
    hostPin: (bytes, options) => made("hostPin", inner.hostPin(bytes, options), allocated),
    memoryFromAddress: (device, address, byteLength, options) =>
      made(
        "memoryFromAddress",
        inner.memoryFromAddress(device, address, byteLength, options),
        (memory) => checks.adopt(memory)
      ),
    memoryAllocateShareable: (device, byteLength, options) =>
      made("memoryAllocateShareable", inner.memoryAllocateShareable(device, byteLength, options), allocated),
    memoryOpen: (device, shared, options) =>
      made("memoryOpen", inner.memoryOpen(device, shared, options), (memory) => checks.adopt(memory)),
    memoryFree: (memory) =>
      Effect.suspend(() => {
        watcher.released(memory)
        if (memory?.state === "live") watcher.host?.released(memory)
        if (memory?.state === "live") {
          checks.release(memory, isOwner(memory), watcher.where)
          if (isOwner(memory)) watcher.freed.release(memory, watcher.where)
          if (memory.isOrdered) watcher.turns.orders.releaseMemory(memory)
        }
        return inner.memoryFree(memory)
      }),
    poolCreate: (device, options) => made("poolCreate", inner.poolCreate(device, options)),
    poolOpen: (device, descriptor, id) => made("poolOpen", inner.poolOpen(device, descriptor, id)),
    poolDestroy: (pool) => gone(pool, inner.poolDestroy(pool)),
    moduleLoad: (image, options) => made("moduleLoad", inner.moduleLoad(image, options)),
    moduleGlobal: (module, name, device) =>
      Effect.tap(inner.moduleGlobal(module, name, device), (memory) => Effect.sync(() => checks.adopt(memory))),
    moduleUnload: (module) =>
      Effect.suspend(() => {
        watcher.released(module)
        // Its variables end with it, and their addresses may come back with another module.
        if (module?.state === "live") releaseGlobals(watcher, module)
        return inner.moduleUnload(module)
      }),
    graphInstantiate: (graph, instances) => made("graphInstantiate", inner.graphInstantiate(graph, instances)),
    graphDestroy: (exec) => gone(exec, inner.graphDestroy(exec)),
    libraryHandle: (library, options, device) => made("libraryHandle", inner.libraryHandle(library, options, device)),
    libraryAdopt: (library, handle, device) => made("libraryAdopt", inner.libraryAdopt(library, handle, device)),
    libraryDestroy: (handle, options) => gone(handle, inner.libraryDestroy(handle, options))
  }
}

const releaseGlobals = ({ checks, where }: Watcher, module: ModuleRef): void => {
  for (const memory of ownModule(module).globals.values()) checks.release(memory, true, where)
}

/** What was unmapped and is mapped again is other memory. */
const mappedBytesOf = (memory: MemoryRef): number => memory instanceof GrowableMemoryResource ? memory.mappedBytes : 0

const isMemory = (resource: object): resource is MemoryRef => "address" in resource && "byteLength" in resource

const isOwner = (memory: MemoryRef): boolean => {
  const own = ownMemory(memory)
  return own.kind === "host" || !(own.isForeign || own.opened !== undefined)
}

const endIfReleased = ({ checks, turns }: Watcher, stream: StreamRef): void => {
  if (stream.state !== "released") return
  turns.orders.endTimeline(checks.timelineOf(stream))
  checks.endTimeline(stream)
}
