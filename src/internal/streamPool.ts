/**
 * The pooled streams of a runtime: 32 per device and priority, created on first use and handed out in turn. Combinators lease the streams
 * that they use: other leases take other streams, as long as any are free.
 */
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import type { CudaError } from "../CudaError.ts"
import { resolvePriority } from "../layers/CudaRuntime.ts"
import type { CudaRuntimeService, PartitionRef, Priority, PriorityRange, StreamRef } from "../layers/CudaRuntime.ts"
import { refuseArgument } from "./handles.ts"
import { placeOfStream } from "./partition.ts"
import type { AnyPartition } from "./partition.ts"
import { CurrentPlace, deviceIndexOf } from "./place.ts"
import type { AnyStream, DeviceLike } from "./place.ts"

/** Streams per device and priority. */
export const poolSize = 32

/** Which of a runtime's pools to use. */
interface PoolOptions {
  readonly device?: DeviceLike | undefined
  readonly priority?: Priority | undefined
  readonly outOfRange?: "fail" | "clamp" | undefined
  readonly partition?: AnyPartition | undefined
}

/** Creates the handle of a stream. */
type Wrap<Stream> = (runtime: CudaRuntimeService, ref: StreamRef) => Stream

/** Streams that are in no other lease until they are given back, unless all streams of the pool are leased. */
export class Leased<out Stream extends AnyStream> {
  readonly streams: ReadonlyArray<Stream>
  readonly refs: ReadonlyArray<StreamRef>
  isOver = false
  readonly #free: () => void
  constructor(streams: ReadonlyArray<Stream>, free: () => void) {
    this.streams = streams
    this.refs = streams.map((stream) => stream.ref)
    this.#free = free
  }
  giveBack(): void {
    if (this.isOver) return
    this.isOver = true
    this.#free()
  }
}

/**
 * The streams of one device and priority, shared by a runtime and the layers around it. Each of them gets separate handles, so that a
 * layer also sees the operations on pooled streams.
 */
class StreamPool<Stream extends AnyStream> {
  readonly #wrap: Wrap<Stream>
  readonly deviceIndex: number
  readonly #priority: number
  readonly #partition: PartitionRef | undefined
  readonly #refs: Array<StreamRef | undefined> = Array.from({ length: poolSize }, () => undefined)
  /** The handle last given out for each slot. If only one runtime asks, a stream has only one handle. */
  readonly #handles: Array<Stream | undefined> = Array.from({ length: poolSize }, () => undefined)
  readonly #leases = new Uint32Array(poolSize)
  readonly #making = Semaphore.makeUnsafe(1)
  /** Requests count up and leases count down, so that they rarely take the same stream. */
  #nextRequest = 0
  #nextLease = poolSize - 1

  constructor(wrap: Wrap<Stream>, deviceIndex: number, priority: number, partition: PartitionRef | undefined) {
    this.#wrap = wrap
    this.deviceIndex = deviceIndex
    this.#priority = priority
    this.#partition = partition
  }

  /** The next stream in turn, if it already exists and is live. */
  takeMade(runtime: CudaRuntimeService): Stream | undefined {
    const slot = this.#nextRequest
    const ref = this.#refs[slot]
    if (ref?.state !== "live") return undefined
    this.#nextRequest = (slot + 1) % poolSize
    return this.#handle(runtime, slot, ref)
  }

  /** The next stream in turn. */
  take(runtime: CudaRuntimeService): Effect.Effect<Stream, CudaError> {
    return Effect.suspend(() => {
      const slot = this.#nextRequest
      this.#nextRequest = (slot + 1) % poolSize
      return this.#stream(runtime, slot)
    })
  }

  /** Leases streams if all of them already exist. */
  tryLease(runtime: CudaRuntimeService, count: number, origin: StreamRef): Leased<Stream> | undefined {
    const turn = this.#nextLease
    const slots = this.#choose(count, origin)
    const streams: Array<Stream> = []
    for (const slot of slots) {
      const ref = this.#refs[slot]
      if (ref !== undefined) streams.push(this.#handle(runtime, slot, ref))
    }
    if (streams.length === count) return new Leased(streams, () => this.#free(slots))
    this.#free(slots)
    this.#nextLease = turn
    return undefined
  }

  /** Must run uninterruptibly, because the lease must be given back. The stream of the origin is the last to be leased. */
  lease(runtime: CudaRuntimeService, count: number, origin?: StreamRef): Effect.Effect<Leased<Stream>, CudaError> {
    return Effect.suspend(() => {
      const slots = this.#choose(count, origin)
      return Effect.forEach(slots, (slot) => this.#stream(runtime, slot)).pipe(
        Effect.map((streams) => new Leased(streams, () => this.#free(slots))),
        Effect.onError(() => Effect.sync(() => this.#free(slots)))
      )
    })
  }

  #choose(count: number, origin?: StreamRef): ReadonlyArray<number> {
    const slots: Array<number> = []
    while (slots.length < count) slots.push(this.#leaseSlot(origin))
    return slots
  }

  #free(slots: ReadonlyArray<number>): void {
    for (const slot of slots) this.#leases[slot]!--
  }

  /** The next slot that is neither leased nor the origin's, or the next one if there is none. */
  #leaseSlot(origin: StreamRef | undefined): number {
    let slot = this.#nextLease
    for (let tried = 1; tried < poolSize && !this.#isFree(slot, origin); tried++) slot = before(slot)
    this.#nextLease = before(slot)
    this.#leases[slot]!++
    return slot
  }

  #isFree(slot: number, origin: StreamRef | undefined): boolean {
    return this.#leases[slot] === 0 && (origin === undefined || this.#refs[slot] !== origin)
  }

  #stream(runtime: CudaRuntimeService, slot: number): Effect.Effect<Stream, CudaError> {
    const made = this.#refs[slot]
    if (made !== undefined) return Effect.succeed(this.#handle(runtime, slot, made))
    const make = Effect.suspend(() => {
      const known = this.#refs[slot]
      if (known !== undefined) return Effect.succeed(this.#handle(runtime, slot, known))
      return Effect.map(
        runtime.streamCreate({
          deviceIndex: this.deviceIndex,
          priority: this.#priority,
          nonBlocking: true,
          pooled: true,
          partition: this.#partition
        }),
        (ref) => this.#handle(runtime, slot, this.#refs[slot] = ref)
      )
    })
    return Effect.uninterruptible(this.#making.withPermit(make))
  }

  #handle(runtime: CudaRuntimeService, slot: number, ref: StreamRef): Stream {
    const known = this.#handles[slot]
    if (known?.runtime === runtime) return known
    return this.#handles[slot] = this.#wrap(runtime, ref)
  }
}

/** Where streams are that work with those of an origin. */
const besides = ({ deviceIndex, partition }: StreamRef, options: PoolOptions): PoolOptions =>
  partition !== undefined && deviceIndexOf(options.device, deviceIndex) === deviceIndex
    ? { ...options, partition: { ref: partition } }
    : options

const before = (slot: number): number => slot === 0 ? poolSize - 1 : slot - 1

/** The pools of a device by priority, and its priority range once that is known. */
class DevicePools<Stream extends AnyStream> {
  range: PriorityRange | undefined
  readonly #byPriority = new Map<number, StreamPool<Stream>>()
  readonly #byPartition = new WeakMap<PartitionRef, Map<number, StreamPool<Stream>>>()
  /** The pools of a partition, or those of streams that are in none. */
  of(partition: PartitionRef | undefined): Map<number, StreamPool<Stream>> {
    if (partition === undefined) return this.#byPriority
    const known = this.#byPartition.get(partition)
    if (known !== undefined) return known
    const made = new Map<number, StreamPool<Stream>>()
    this.#byPartition.set(partition, made)
    return made
  }
}

/** Where the streams of a pool are. */
export interface PoolPlace {
  readonly deviceIndex: number
  readonly partition: PartitionRef | undefined
}

const priorityOf = (range: PriorityRange, { outOfRange = "clamp", priority = "low" }: PoolOptions): number =>
  resolvePriority(range, priority, outOfRange)

/** The pools of all runtimes. Runtimes with the same identity share them. Recordings have separate ones. */
export class StreamPools<Stream extends AnyStream> {
  readonly #wrap: Wrap<Stream>
  readonly #byIdentity = new WeakMap<object, ReadonlyArray<DevicePools<Stream>>>()

  constructor(wrap: Wrap<Stream>) {
    this.#wrap = wrap
  }

  /** The pool of a device, or of a partition, and priority. A stream is a place too. */
  get(runtime: CudaRuntimeService, { deviceIndex, partition }: PoolPlace, priority: number): StreamPool<Stream> {
    const byPriority = this.#of(runtime)[deviceIndex]!.of(partition)
    const known = byPriority.get(priority)
    if (known !== undefined) return known
    const made = new StreamPool(this.#wrap, deviceIndex, priority, partition)
    byPriority.set(priority, made)
    return made
  }

  /** The pool for the given options. Clamps a priority outside the range unless `outOfRange` is `"fail"`. */
  resolve(runtime: CudaRuntimeService, options: PoolOptions): Effect.Effect<StreamPool<Stream>, CudaError> {
    return Effect.withFiber((fiber) => {
      const place = placeOfStream(fiber, options, fiber.getRef(CurrentPlace).deviceIndex)
      const { deviceIndex, partition } = place
      const expected = "a live partition of that device"
      if (partition !== undefined && (deviceIndex === undefined || partition?.deviceIndex !== deviceIndex)) {
        return refuseArgument("CudaStream.fromPool", "partition", partition, expected)
      }
      return Effect.map(runtime.devicePriorityRange(deviceIndex), (range) => {
        this.#of(runtime)[deviceIndex]!.range = range
        return this.get(runtime, place, priorityOf(range, options))
      })
    })
  }

  /**
   * Leases streams of several pools in turn. On the device of the origin, they are in its partition. Must run uninterruptibly, like a
   * lease of one.
   */
  leaseOver(
    runtime: CudaRuntimeService,
    pools: ReadonlyArray<PoolOptions>,
    count: number,
    origin: StreamRef
  ): Effect.Effect<Leased<Stream>, CudaError> {
    const leases: Array<Leased<Stream>> = []
    const giveBack = () => leases.forEach((lease) => lease.giveBack())
    const used = pools.slice(0, count)
    const lease = (options: PoolOptions, index: number) =>
      Effect.flatMap(
        this.resolve(runtime, besides(origin, options)),
        (pool) =>
          Effect.map(pool.lease(runtime, Math.ceil((count - index) / used.length), origin), (leased) => {
            leases.push(leased)
          })
      )
    return Effect.forEach(used, lease, { discard: true }).pipe(
      Effect.map(() => {
        const slots = Array.from({ length: count }, (_, slot) => slot)
        const streams = slots.map((slot) => leases[slot % used.length]!.streams[Math.floor(slot / used.length)]!)
        return new Leased(streams, giveBack)
      }),
      Effect.onError(() => Effect.sync(giveBack))
    )
  }

  /** The next stream of a pool, if nothing has to be created or queried first. */
  takeMade(
    runtime: CudaRuntimeService,
    { deviceIndex, partition }: PoolPlace,
    options: PoolOptions
  ): Effect.Effect<Stream> | undefined {
    const ofDevice = Number.isInteger(deviceIndex) ? this.#of(runtime)[deviceIndex] : undefined
    if (ofDevice?.range === undefined || (partition !== undefined && partition?.state !== "live")) return undefined
    const made = ofDevice.of(partition).get(priorityOf(ofDevice.range, options))?.takeMade(runtime)
    return made && Effect.succeed(made)
  }

  #of(runtime: CudaRuntimeService): ReadonlyArray<DevicePools<Stream>> {
    const key = runtime.recording ?? runtime.identity
    const known = this.#byIdentity.get(key)
    if (known !== undefined) return known
    const made = runtime.devices.map(() => new DevicePools<Stream>())
    this.#byIdentity.set(key, made)
    return made
  }
}
