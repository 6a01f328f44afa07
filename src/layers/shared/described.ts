/**
 * What operations do, in the attributes of spans, logs and metrics: which of them enqueue work, which take time on the host, and how many
 * bytes they move.
 */
import type {
  EnqueuedCall,
  GraphExecRef,
  KernelRef,
  LaunchConfig,
  MemoryRange,
  MemoryRef,
  MemoryTransfer,
  OperationMember,
  StreamRef
} from "../CudaRuntime.ts"

/** A value of an attribute. */
export type AttributeValue = string | number | boolean | ReadonlyArray<number>

export type AttributeEntries = Readonly<Record<string, AttributeValue>>

type Arguments = ReadonlyArray<never>

/** An operation that enqueues work. */
export interface Enqueued {
  /** The position of the stream among the arguments. */
  readonly stream: number
  /** What distinguishes this operation from others with its name, such as the kernel. */
  readonly subject?: (...args: Arguments) => string | undefined
  readonly attributes: (...args: Arguments) => AttributeEntries
}

/** The way that bytes go, as metrics and spans name it. */
export const directionOf = (to: MemoryRef, from: MemoryRef): string => {
  if (to.kind === "device" && from.kind === "device") {
    return to.deviceIndex === from.deviceIndex ? "device_to_device" : "peer_to_peer"
  }
  return `${from.kind}_to_${to.kind}`
}

/** The bytes of a batch by their direction. */
export const directionsOf = (transfers: ReadonlyArray<MemoryTransfer>): ReadonlyMap<string, number> => {
  const bytes = new Map<string, number>()
  for (const { from, to } of transfers) {
    const direction = directionOf(to.memory, from.memory)
    bytes.set(direction, (bytes.get(direction) ?? 0) + to.byteLength)
  }
  return bytes
}

const sizes = (dimensions: LaunchConfig["grid"]): ReadonlyArray<number> =>
  typeof dimensions === "number" ? [dimensions] : dimensions.map((size) => size ?? 1)

const copyAttributes = (to: MemoryRange, from: MemoryRange, bytes: number): AttributeEntries => ({
  "cuda.bytes": bytes,
  "cuda.copy.direction": directionOf(to.memory, from.memory)
})

const graphAttributes = ({ graph: { nodes } }: GraphExecRef): AttributeEntries => ({ "cuda.graph.nodes": nodes.length })

const enqueued = {
  memoryCopy: {
    stream: 2,
    attributes: (to: MemoryRange, from: MemoryRange) => copyAttributes(to, from, to.byteLength)
  },
  memoryCopy2D: {
    stream: 3,
    attributes: (to: MemoryRange, from: MemoryRange, size: { readonly width: number; readonly height: number }) =>
      copyAttributes(to, from, size.width * size.height)
  },
  memoryCopyBatch: {
    stream: 1,
    attributes: (transfers: ReadonlyArray<MemoryTransfer>) => {
      const bytes = directionsOf(transfers)
      const total = Array.from(bytes.values()).reduce((sum, some) => sum + some, 0)
      const [direction] = bytes.keys()
      return {
        "cuda.bytes": total,
        "cuda.copy.count": transfers.length,
        ...(bytes.size === 1 && direction !== undefined ? { "cuda.copy.direction": direction } : undefined)
      }
    }
  },
  memoryFill: { stream: 3, attributes: (to: MemoryRange) => ({ "cuda.bytes": to.byteLength }) },
  memoryPrefetch: {
    stream: 2,
    attributes: (range: MemoryRange, location: unknown) => ({
      "cuda.bytes": range.byteLength,
      "cuda.prefetch.location": String(location)
    })
  },
  memoryEnqueue: {
    stream: 2,
    subject: ({ names }: EnqueuedCall) => names?.call,
    attributes: ({ names }: EnqueuedCall): AttributeEntries =>
      names === undefined ? {} : { "cuda.function": names.call, "cuda.operation": names.operation }
  },
  libraryCall: {
    stream: 3,
    subject: (_: unknown, name: string) => name,
    attributes: (library: { readonly definition: { readonly name: string } }, name: string) => ({
      "cuda.library": library.definition.name,
      "cuda.function": name
    })
  },
  kernelLaunch: {
    stream: 3,
    subject: ({ name }: KernelRef) => name,
    attributes: (kernel: KernelRef, { block, grid, sharedBytes = 0 }: LaunchConfig) => ({
      "cuda.kernel": kernel.name,
      "cuda.grid": sizes(grid),
      "cuda.block": sizes(block),
      "cuda.shared_bytes": sharedBytes
    })
  },
  graphUpload: { stream: 1, attributes: graphAttributes },
  graphLaunch: { stream: 2, attributes: graphAttributes },
  graphMeasure: { stream: 3, attributes: graphAttributes }
} as const satisfies { readonly [M in OperationMember]?: Enqueued }

const enqueuedByMember: { readonly [M in OperationMember]?: Enqueued } = enqueued

/** How an operation enqueues work; undefined if it enqueues none. */
export const enqueuedOf = (member: OperationMember): Enqueued | undefined => enqueuedByMember[member]

/** The operations that take time on the host: waits, and those that compile, load, pin or reclaim. */
const lengthy: ReadonlySet<OperationMember> = new Set<OperationMember>([
  "deviceSynchronize",
  "streamSynchronize",
  "eventSynchronize",
  "memorySynchronize",
  "memoryReclaim",
  "memoryGrow",
  "memoryShrink",
  "managedAllocate",
  "hostAllocate",
  "hostPin",
  "moduleLoad",
  "programCompile",
  "graphInstantiate",
  "graphReplace",
  "libraryLoad",
  "libraryRun"
])

/** Whether an operation takes time on the host. */
export const isLengthy = (member: OperationMember): boolean => lengthy.has(member)

/** What distinguishes a call from others of its operation. Untyped callers can pass anything. */
export const subjectOf = (of: Enqueued, args: ReadonlyArray<unknown>): string | undefined =>
  read(() => of.subject?.(...args as Arguments))

/** The attributes of a call. */
export const attributesOf = (of: Enqueued, args: ReadonlyArray<unknown>): AttributeEntries =>
  read(() => of.attributes(...args as Arguments)) ?? {}

/** The stream of a call; undefined if the caller passed something else. */
export const streamOf = (of: Enqueued, args: ReadonlyArray<unknown>): StreamRef | undefined => {
  const stream = args[of.stream]
  return typeof stream === "object" && stream !== null && "isRecording" in stream ? stream as StreamRef : undefined
}

/** The attributes of a stream. */
export const streamAttributes = ({ deviceIndex, id, name }: StreamRef): AttributeEntries => ({
  "cuda.device": deviceIndex,
  "cuda.stream": id,
  ...(name === undefined ? undefined : { "cuda.stream.name": name })
})

const read = <A>(reading: () => A): A | undefined => {
  try {
    return reading()
  } catch {
    return undefined
  }
}
