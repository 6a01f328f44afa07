/**
 * A device opened by the native runtime: its primary context, its memory pool, and the runtime's internal streams and
 * events. Also the native streams and events, with the state that the completion engine keeps for them.
 */
import {
  allocationHandleTypes,
  eventFlags,
  locationTypes,
  pinnedAllocationType,
  poolAttributes,
  streamFlags
} from "../../cuda/flags.ts"
import type { DriverFunctions } from "../../cuda/functions.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type {
  CUcontext,
  CUdevice,
  CUevent,
  CUgreenCtx,
  CUmemoryPool,
  CUstream,
  HostPointer
} from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { success } from "../../cuda/status.ts"
import type { PriorityRange } from "../CudaRuntime.ts"
import { EventResource, StreamResource } from "../shared/resources.ts"
import type { PartitionResource } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import type { Lane, Point } from "./Lane.ts"

export class NativeStream extends StreamResource {
  /** Default streams are resolved in the current context. All other handles carry their context. */
  readonly needsContext = this.origin === "default"
  /** Counts the records on this stream, to order its waits. */
  records = 0
  lane: Lane | undefined
}

export class NativeEvent extends EventResource {
  /**
   * The stream and the count of the current record. No stream for an event of another process, and for a record in a graph that records
   * several events.
   */
  recordedOn: NativeStream | undefined
  recordNumber = 0
  /** True if the current record is known to have finished, or there is none. */
  isKnownDone = true
  /** How many executable graphs record it. It is destroyed after them. */
  holders = 0
  /** The point of the waits for the current record; undefined if there are none. */
  point: Point | undefined
  /**
   * True if the event is indistinguishable from a new one: its handle was never given out, and nothing on it is
   * pending.
   */
  get isAsNew(): boolean {
    return this.isKnownDone && !this.isGivenOut && (this.flags & eventFlags.interprocess) === 0
  }
}

/** Space for a handle, an address or a 64-bit number that the driver writes. */
export class Out<Value extends number = number> {
  readonly words = new Uint32Array(2)
  /** The value written last. */
  get value(): Value {
    return (this.words[1]! * 0x100000000 + this.words[0]!) as Value
  }
}

/** Logs a failed call of a release. Does nothing for status 0. */
export type Warn = (call: string, status: number, handle: number) => void

export class NativeDevice {
  readonly calls: DriverFunctions
  readonly index: number
  readonly handle: CUdevice
  readonly context: CUcontext
  priorities: PriorityRange = { least: 0, greatest: 0 }
  pool = nullHandle<CUmemoryPool>()
  /** How many buffers of the pool the driver has not been told to free. */
  inUse = 0
  /** Used for allocations only. It never waits for other work, so new memory is ready at once. */
  allocations = nullHandle<CUstream>()
  /** Used for frees only. It waits for the work on each buffer first. */
  releases = nullHandle<CUstream>()
  /** The partitions, by context. */
  readonly partitions = new Map<number, PartitionResource>()
  /** The streams that freed their own stream-ordered memory since the last wait for releases. */
  readonly freedOn = new Set<NativeStream>()
  /** The users of managed and growable memory, and of allocations outside of pools, which are released once their current work has finished. */
  readonly usersOfReleased = new Set<ReadonlyArray<StreamResource>>()
  /** The result of the last attempt to create a stream, an event or a pool. */
  made: DriverFailure = { call: "", status: success }
  readonly #markers: Array<CUevent> = []
  /** Unused events with nothing pending, by their flags. */
  readonly #events = new Map<number, Array<CUevent>>()
  readonly #event = new Out<CUevent>()
  readonly #stream = new Out<CUstream>()
  readonly #pool = new Out<CUmemoryPool>()
  readonly #left = new Out<CUcontext>()

  constructor(calls: DriverFunctions, index: number, handle: CUdevice, context: CUcontext) {
    this.calls = calls
    this.index = index
    this.handle = handle
    this.context = context
  }

  /** Makes the context current, or that of a partition. `leave` restores the previous one. */
  enter(context: CUcontext = this.context): number {
    return this.calls.cuCtxPushCurrent_v2(context)
  }

  leave(): void {
    this.calls.cuCtxPopCurrent_v2(this.#left.words)
  }

  /**
   * Reads the priority range, and creates the pool and the internal streams. Returns the call that failed and its
   * status.
   */
  setUp(warn: Warn): DriverFailure {
    const steps: ReadonlyArray<readonly [string, () => number]> = [
      ["cuCtxPushCurrent", () => this.enter()],
      ["cuCtxGetStreamPriorityRange", () => this.#readPriorities()],
      ["cuStreamCreateWithPriority", () => this.#makeStream((stream) => this.allocations = stream)],
      ["cuStreamCreateWithPriority", () => this.#makeStream((stream) => this.releases = stream)],
      ["cuMemPoolCreate", () => this.#makePool(poolProperties(this.index), (pool) => this.pool = pool)],
      ["cuMemPoolSetAttribute", () => this.setPool(this.pool, "releaseThreshold", keepAll)],
      ["cuMemPoolSetAttribute", () => this.setPool(this.pool, "reuseAllowInternalDependencies", 0n)]
    ]
    for (const [index, [call, step]] of steps.entries()) {
      const status = step()
      if (status === success) continue
      if (index > 0) {
        this.tearDown(warn)
        this.leave()
      }
      return { call, status }
    }
    this.leave()
    return { call: "", status: success }
  }

  /** Destroys what `setUp` created, and the kept events. */
  tearDown(warn: Warn, keepsPool = false): void {
    const { allocations, calls, pool, releases } = this
    for (const events of [this.#markers, ...this.#events.values()]) {
      for (const event of events.splice(0)) warn("cuEventDestroy", calls.cuEventDestroy_v2(event), event)
    }
    if (allocations !== 0) warn("cuStreamDestroy", calls.cuStreamDestroy_v2(allocations), allocations)
    if (releases !== 0) warn("cuStreamDestroy", calls.cuStreamDestroy_v2(releases), releases)
    if (pool !== 0 && !keepsPool) warn("cuMemPoolDestroy", calls.cuMemPoolDestroy(pool), pool)
    this.allocations = this.releases = nullHandle()
    this.pool = nullHandle()
  }

  /** Creates a stream for internal ordering or captures. Returns undefined on failure, with the reason in `made`. */
  makeStream(priority = 0): CUstream | undefined {
    let made: CUstream | undefined
    this.#make("cuStreamCreateWithPriority", () => this.#makeStream((stream) => made = stream, priority))
    return made
  }

  /** Like `makeStream`, for a stream of a green context. */
  makeStreamIn(green: CUgreenCtx, priority: number): CUstream | undefined {
    const { cuGreenCtxStreamCreate: create } = this.calls
    const status = create!(this.#stream.words, green, streamFlags.nonBlocking, priority)
    this.made = { call: "cuGreenCtxStreamCreate", status }
    return status === success ? this.#stream.value : undefined
  }

  /** Creates a pool, which the caller destroys. Returns undefined on failure, with the reason in `made`. */
  makePool(properties: Uint8Array): CUmemoryPool | undefined {
    let made: CUmemoryPool | undefined
    this.#make("cuMemPoolCreate", () => this.#makePool(properties, (pool) => made = pool))
    return made
  }

  /** Sets a pool attribute: a number of bytes, or 0 or 1 for the reuse policies. */
  setPool(pool: CUmemoryPool, name: keyof typeof poolAttributes, value: bigint): number {
    const memory = name.startsWith("reuse") ? Int32Array.of(Number(value)) : BigUint64Array.of(value)
    return this.calls.cuMemPoolSetAttribute(pool, poolAttributes[name], memory)
  }

  /** Takes or creates an event for internal ordering. Returns undefined on failure, with the reason in `made`. */
  takeMarker(): CUevent | undefined {
    const kept = this.#markers.pop()
    if (kept !== undefined) return kept
    this.#make("cuEventCreate", () => this.calls.cuEventCreate(this.#event.words, eventFlags.disableTiming))
    return this.made.status === success ? this.#event.value : undefined
  }

  #make(call: string, create: () => number): void {
    const entered = this.enter()
    if (entered !== success) {
      this.made = { call: "cuCtxPushCurrent", status: entered }
      return
    }
    this.made = { call, status: create() }
    this.leave()
  }

  /** Keeps a marker for reuse. Its record may still be pending, since a new record replaces it. */
  giveMarker(marker: CUevent): void {
    this.#markers.push(marker)
  }

  /** Takes a kept event with these flags; undefined if there is none. */
  takeEvent(flags: number): CUevent | undefined {
    return this.#events.get(flags)?.pop()
  }

  /** Whether another event with these flags can be kept. */
  hasRoomFor(flags: number): boolean {
    return (this.#events.get(flags)?.length ?? 0) < mostEvents
  }

  /** Keeps an event for reuse, which is faster than creating one. */
  keepEvent(flags: number, event: CUevent): void {
    const events = this.#events.get(flags)
    if (events === undefined) this.#events.set(flags, [event])
    else events.push(event)
  }

  #readPriorities(): number {
    const range = new Int32Array(2)
    const status = this.calls.cuCtxGetStreamPriorityRange(range.subarray(0, 1), range.subarray(1, 2))
    this.priorities = { least: range[0]!, greatest: range[1]! }
    return status
  }

  #makeStream(keep: (stream: CUstream) => void, priority = 0): number {
    const status = this.calls.cuStreamCreateWithPriority(this.#stream.words, streamFlags.nonBlocking, priority)
    if (status === success) keep(this.#stream.value)
    return status
  }

  #makePool(properties: Uint8Array, keep: (pool: CUmemoryPool) => void): number {
    const status = this.calls.cuMemPoolCreate(this.#pool.words, properties)
    if (status === success) keep(this.#pool.value)
    return status
  }
}

/** Maximum number of kept events, by flags. */
const mostEvents = 1024

/** The release threshold of a pool that never returns memory to the system automatically. */
export const keepAll = 0xffffffffffffffffn

/** `CUmemPoolProps`: pinned device memory, shared with other processes or not, with a maximum size; 0 means no limit. */
export const poolProperties = (index: number, maxBytes = 0, isShareable = false): Uint8Array => {
  const bytes = new Uint8Array(88)
  const view = new DataView(bytes.buffer)
  view.setInt32(0, pinnedAllocationType, true)
  view.setInt32(4, allocationHandleTypes[isShareable ? "posixFileDescriptor" : "none"], true)
  view.setInt32(8, locationTypes.device, true)
  view.setInt32(12, index, true)
  view.setBigUint64(24, BigInt(maxBytes), true)
  return bytes
}

/** The driver's name and description of a status. */
export const describeStatus = (
  library: DriverLibrary,
  status: number
): { readonly name: string; readonly description: string } | undefined => {
  const out = new Out<HostPointer>()
  if (library.calls.cuGetErrorName(status, out.words) !== success) return undefined
  const name = library.readText(out.value)
  library.calls.cuGetErrorString(status, out.words)
  return { name, description: library.readText(out.value) }
}
