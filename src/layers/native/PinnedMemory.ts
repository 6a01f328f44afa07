/**
 * Pinned host memory, allocated and released without blocking the event loop.
 *
 * The driver holds its context lock while it pins or unpins, and unpinning also waits for a busy device. Making these calls
 * on another thread would not help: the next driver call of the JS thread would wait for the lock. Instead:
 *
 * - A new block is mapped, its pages are touched on a pool thread, and it is pinned in segments, with a turn of the event
 *   loop after each.
 * - A released block is kept for reuse.
 * - Kept blocks beyond the limit are unpinned segment by segment, while no device has work.
 *
 * Memory of the program is pinned in the same way, in segments that end where pages do. A part of memory that is pinned already shares the
 * pin. It ends while no device has work, once nothing needs it, and keeps the memory reachable until then.
 *
 * JavaScript accesses a block through an `ArrayBuffer`, which is detached at release, so no view dangles. The pages are
 * outside every heap. If a worker ends before its runtime is released, they stay mapped and pinned as long as a device may
 * use them. A terminated worker runs no cleanup, so its pages stay until the process ends.
 */
import * as Effect from "effect/Effect"
import { isMainThread } from "node:worker_threads"
import { inTurn } from "../../cuda/asyncCalls.ts"
import { hostRegisterPortable } from "../../cuda/flags.ts"
import { offsetBy } from "../../cuda/handles.ts"
import type { HostPointer } from "../../cuda/handles.ts"
import { mostViewBytes } from "../../cuda/library.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { statuses } from "../../cuda/status.ts"
import { guarded, movable, moved } from "../shared/buffers.ts"
import type { DriverFailure } from "../shared/waits.ts"
import type { Warn } from "./Device.ts"

/** Bytes pinned per call, which takes about a millisecond. A copy that crosses segments is enqueued in pieces. */
export const segmentSize = 16 * 1024 * 1024

const pageSize = 4096
/** Copies from large pages are a few percent faster, so blocks of at least this size are aligned to one. */
const largePageSize = 2 * 1024 * 1024
const smallestBlock = 64 * 1024
const trimDelay = 50

/** Limits on pinned memory, in bytes. */
export interface PinnedPolicy {
  /** In use and kept together. */
  readonly maxBytes: number
  /** Kept for reuse. */
  readonly keepBytes: number
}

/** A contiguous range of pages, pinned from the start. */
export class Block {
  readonly address: HostPointer
  readonly size: number
  /** The whole block, for JavaScript. Empty once the program has transferred it. */
  buffer: ArrayBuffer
  /** The number of bytes pinned so far, from the start. */
  pinned = 0
  /** True while a pool thread writes to it. */
  isTouched = false
  /** True if unpinning failed. */
  isStuck = false
  /** The mapping to free, which may begin before the block. Undefined for memory of the program. */
  readonly mapping: Mapping | undefined
  /** The bytes from the start of the first page to the block. Segments end at multiples of `segmentSize` from there. */
  readonly lead: number

  constructor(mapping: Mapping | undefined, address: HostPointer, size: number, buffer: ArrayBuffer, lead = 0) {
    this.lead = lead
    this.mapping = mapping
    this.address = address
    this.size = size
    this.buffer = buffer
  }

  /** True if the program has transferred the buffer, so that something may access the memory indefinitely. */
  get isGivenAway(): boolean {
    return this.buffer.byteLength === 0
  }

  /** Detaches every view of the memory. */
  detach(): void {
    if (!this.isGivenAway) this.buffer = moved(this.buffer)
  }
}

/** Memory of the program that is pinned. */
export class ProgramBlock extends Block {
  /** The number of buffers that need it pinned. */
  holders = 0

  constructor(address: HostPointer, size: number, buffer: ArrayBuffer) {
    super(undefined, address, size, buffer, address % pageSize)
  }

  get isUnneeded(): boolean {
    return this.holders === 0
  }

  /** False if the program has transferred the memory, because other memory may be there by now. */
  get isUsable(): boolean {
    return !this.isStuck && !this.isGivenAway && (this.holders > 0 || this.pinned > 0)
  }

  covers(address: number, size: number): boolean {
    return address >= this.address && address + size <= this.address + this.size
  }

  overlaps(address: number, size: number): boolean {
    return address < this.address + this.size && address + size > this.address
  }
}

interface Mapping {
  readonly address: HostPointer
  readonly byteLength: number
}

/** The pinned memory of this worker's runtimes, to clean up when the worker exits. */
const ofWorker = new Set<PinnedMemory>()
const abandonAll = () => {
  for (const pinned of ofWorker) pinned.abandon()
}

export class PinnedMemory {
  readonly #library: DriverLibrary
  readonly #policy: PinnedPolicy
  /** Makes a call with a context current, and returns its failure if it failed. */
  readonly #inContext: (name: string, call: () => number) => DriverFailure | undefined
  readonly #warn: Warn
  /** True if no device has work of this runtime, so that unpinning does not block. */
  readonly #isIdle: () => boolean
  readonly #blocks = new Set<Block>()
  readonly #retired: Array<Block> = []
  readonly #kept = new Map<number, Array<Block>>()
  #keptBytes = 0
  #pinnedBytes = 0
  #trim: NodeJS.Timeout | undefined

  constructor(
    library: DriverLibrary,
    policy: PinnedPolicy,
    inContext: (name: string, call: () => number) => DriverFailure | undefined,
    isIdle: () => boolean,
    warn: Warn
  ) {
    this.#library = library
    this.#policy = policy
    this.#inContext = inContext
    this.#isIdle = isIdle
    this.#warn = warn
    if (isMainThread) return
    ofWorker.add(this)
    if (!process.listeners("exit").includes(abandonAll)) process.once("exit", abandonAll)
  }

  /**
   * Takes or allocates a block of at least this size, with undefined contents. `mayReuse` is false once the contexts are lost,
   * because reusing a block would hide that.
   */
  take(byteLength: number, mayReuse: boolean): Effect.Effect<Block, DriverFailure> {
    return Effect.suspend(() => {
      const size = blockSize(byteLength)
      const kept = mayReuse ? this.#kept.get(size)?.pop() : undefined
      if (kept === undefined) return this.#pin(size)
      this.#keptBytes -= size
      return Effect.succeed(kept)
    })
  }

  /** Keeps an unused block for reuse, unless the program has transferred it and may still access it. */
  give(block: Block): void {
    if (block.isGivenAway) return this.#retire(block)
    const same = this.#kept.get(block.size)
    if (same === undefined) this.#kept.set(block.size, [block])
    else same.push(block)
    this.#keptBytes += block.size
    if (this.#keptBytes > this.#policy.keepBytes) this.#scheduleTrim(trimDelay)
  }

  /** Pins memory of the program. `mayShare` is false once the contexts are lost, like `mayReuse`. */
  pin(
    buffer: ArrayBuffer,
    address: HostPointer,
    size: number,
    mayShare: boolean
  ): Effect.Effect<ProgramBlock, DriverFailure> {
    return Effect.suspend(() => {
      const shared = () => mayShare ? this.#blockAround(address, size) : undefined
      const known = shared()
      if (known !== undefined) return this.#hold(known)
      const prepared = Effect.andThen(this.#unpinUnneeded(address, size), this.#makeRoomFor(size))
      const made = () => shared() ?? this.#programBlock(buffer, address, size)
      return Effect.andThen(prepared, Effect.suspend(() => this.#hold(made())))
    })
  }

  /** Ends a use of memory that `pin` returned. */
  unpin(block: ProgramBlock): void {
    block.holders--
    if (block.isUnneeded) this.#retire(block)
  }

  #blockAround(address: number, size: number): ProgramBlock | undefined {
    for (const block of this.#blocks) {
      if (block instanceof ProgramBlock && block.isUsable && block.covers(address, size)) return block
    }
    return undefined
  }

  #programBlock(buffer: ArrayBuffer, address: HostPointer, size: number): ProgramBlock {
    const block = new ProgramBlock(address, size, buffer)
    this.#blocks.add(block)
    this.#pinnedBytes += size
    return block
  }

  /** Pins what is not yet pinned of a block, with a turn of the event loop between segments. */
  #hold(block: ProgramBlock): Effect.Effect<ProgramBlock, DriverFailure> {
    block.holders++
    const isPinned = () => block.pinned >= block.size
    const turn = Effect.suspend(() => isPinned() ? Effect.void : nextTurn)
    const rest = Effect.whileLoop({
      while: () => !isPinned(),
      body: () => Effect.andThen(this.#pinSegment(block), turn),
      step: () => {}
    })
    return Effect.as(Effect.onError(rest, () => Effect.sync(() => this.unpin(block))), block)
  }

  /** Unpins memory that nothing needs any longer and that overlaps other memory, unless that would block. */
  #unpinUnneeded(address: number, size: number): Effect.Effect<void> {
    return Effect.suspend(() => {
      const isInTheWay = (block: Block) =>
        block instanceof ProgramBlock && block.isUnneeded && block.overlaps(address, size)
      const index = this.#retired.findIndex(isInTheWay)
      if (index < 0 || !this.#isIdle()) return Effect.void
      this.#retired.push(...this.#retired.splice(index, 1))
      this.#unpinSegment()
      return Effect.andThen(nextTurn, this.#unpinUnneeded(address, size))
    })
  }

  /** Unpins all kept blocks. Call after all work has ended. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    clearTimeout(this.#trim)
    for (const block of [...this.#kept.values()].flat()) this.#retired.push(block)
    this.#kept.clear()
    const loop = Effect.whileLoop({
      while: () => this.#retired.length > 0,
      body: () => nextTurn,
      step: () => this.#unpinSegment()
    })
    return Effect.andThen(loop, Effect.sync(() => void ofWorker.delete(this)))
  })

  /**
   * Unpins and frees as many blocks as possible while the worker exits, if no device has work. Synchronous, because the event loop
   * has stopped.
   */
  abandon(): void {
    if (!this.#isIdle()) return
    for (const block of this.#blocks) {
      if (block.isTouched) continue
      while (block.pinned > 0) this.#unpinLast(block)
      this.#letGo(block)
    }
  }

  #pin(size: number): Effect.Effect<Block, DriverFailure> {
    if (this.#pinnedBytes + size > this.#policy.maxBytes) return this.#makeRoom(size)
    const block = this.#map(size)
    if (block === undefined) return Effect.fail(noMemory)
    this.#blocks.add(block)
    this.#pinnedBytes += size
    const segments = Math.ceil(size / segmentSize)
    const each = Effect.forEach(
      Array.from({ length: segments }, (_, index) => index * segmentSize),
      (offset) => {
        const bytes = Math.min(segmentSize, size - offset)
        return Effect.andThen(this.#touch(block, offset, bytes), this.#pinSegment(block))
      },
      { discard: true }
    )
    return Effect.as(Effect.onError(each, () => Effect.sync(() => this.#retire(block))), block)
  }

  /** Maps pages for a block, aligned to large pages if it is large enough. */
  #map(size: number): Block | undefined {
    const { pages } = this.#library
    if (pages === undefined || size > mostViewBytes) return undefined
    const isLarge = size >= largePageSize
    const byteLength = isLarge ? size + largePageSize : size
    const start = pages.map(byteLength)
    if (start === undefined) return undefined
    const address = isLarge ? offsetBy(start, Math.ceil(start / largePageSize) * largePageSize - start) : start
    if (isLarge) this.#library.wantLargePages?.(address, size)
    try {
      const buffer = guarded(movable(this.#library.viewOf(address, size)))
      return new Block({ address: start, byteLength }, address, size, buffer)
    } catch {
      pages.unmap(start, byteLength)
      return undefined
    }
  }

  /** Unmaps the pages, unless JavaScript may still access them or they are still pinned. */
  #letGo(block: Block): void {
    // Memory of the program that stays pinned must stay reachable.
    if (block.mapping === undefined && block.isStuck) return
    this.#blocks.delete(block)
    if (block.mapping === undefined || block.isGivenAway || block.isStuck) return
    const { address, byteLength } = block.mapping
    block.detach()
    this.#library.pages?.unmap(address, byteLength)
  }

  /** Pins the next segment of a block, if there is one. */
  #pinSegment(block: Block): Effect.Effect<void, DriverFailure> {
    return Effect.suspend(() => {
      const bytes = Math.min(segmentSize - (block.lead + block.pinned) % segmentSize, block.size - block.pinned)
      if (bytes <= 0) return Effect.void
      const address = offsetBy(block.address, block.pinned)
      const failure = this.#inContext(
        "cuMemHostRegister",
        () => this.#library.calls.cuMemHostRegister_v2(address, bytes, hostRegisterPortable)
      )
      if (failure !== undefined) return Effect.fail(failure)
      block.pinned += bytes
      return Effect.void
    })
  }

  /** Makes the system provide the pages, on a pool thread. Otherwise the driver does that while it pins, more slowly. */
  #touch(block: Block, offset: number, byteLength: number): Effect.Effect<void> {
    const { memset } = this.#library
    if (memset === undefined) return nextTurn
    return Effect.callback((resume) => {
      block.isTouched = true
      inTurn((onEnd) => memset(block.address + offset, 0, byteLength, onEnd), () => {
        block.isTouched = false
        resume(Effect.void)
      })
    })
  }

  /** Reuses a larger kept block, or unpins kept blocks until a new one fits under the limit. */
  #makeRoom(size: number): Effect.Effect<Block, DriverFailure> {
    const larger = [...this.#kept].filter(([kept, blocks]) => kept > size && blocks.length > 0).map(([kept]) => kept)
    if (larger.length > 0) return this.take(Math.min(...larger), true)
    return Effect.andThen(this.#makeRoomFor(size), Effect.suspend(() => this.#pin(size)))
  }

  /** Unpins kept blocks until this many bytes fit under the limit. */
  #makeRoomFor(size: number): Effect.Effect<void, DriverFailure> {
    if (this.#pinnedBytes + size <= this.#policy.maxBytes) return Effect.void
    if (this.#retired.length === 0) this.#retireKept()
    if (this.#retired.length === 0 || !this.#isIdle()) return Effect.fail(noMemory)
    this.#unpinSegment()
    return Effect.andThen(nextTurn, Effect.suspend(() => this.#makeRoomFor(size)))
  }

  /** Schedules a block to be unpinned, from its end, when that does not block. */
  #retire(block: Block): void {
    if (!this.#retired.includes(block)) this.#retired.push(block)
    this.#scheduleTrim(0)
  }

  #scheduleTrim(delay: number): void {
    this.#trim ??= setTimeout(this.#trimSome, delay).unref()
  }

  /** Unpins one segment if no device has work, and schedules the next. */
  readonly #trimSome = (): void => {
    this.#trim = undefined
    const idle = this.#isIdle()
    if (idle && this.#retired.length === 0 && this.#keptBytes > this.#policy.keepBytes) this.#retireKept()
    if (idle) this.#unpinSegment()
    if (this.#retired.length > 0 || this.#keptBytes > this.#policy.keepBytes) this.#scheduleTrim(idle ? 0 : trimDelay)
  }

  #retireKept(): void {
    const sizes = [...this.#kept].filter(([, blocks]) => blocks.length > 0).map(([size]) => size)
    const block = this.#kept.get(Math.max(0, ...sizes))?.pop()
    if (block === undefined) return
    this.#keptBytes -= block.size
    this.#retired.push(block)
  }

  #unpinSegment(): void {
    const last = this.#retired.at(-1)
    if (last === undefined) return
    if (last instanceof ProgramBlock && !last.isUnneeded) {
      this.#retired.pop()
      return
    }
    if (last.pinned > 0) this.#unpinLast(last)
    if (last.pinned > 0) return
    this.#retired.pop()
    this.#pinnedBytes -= last.size
    this.#letGo(last)
  }

  /** Unpins the last pinned segment of a block. */
  #unpinLast(block: Block): void {
    const { lead, pinned } = block
    block.pinned = Math.max(0, (Math.ceil((lead + pinned) / segmentSize) - 1) * segmentSize - lead)
    const address = offsetBy(block.address, block.pinned)
    const failure = this.#inContext("cuMemHostUnregister", () => this.#library.calls.cuMemHostUnregister(address))
    if (failure === undefined) return
    block.isStuck = true
    this.#warn(failure.call, failure.status, address)
  }
}

/** Beyond the limit, or out of memory on the host. Not the status of a driver call. */
const noMemory: DriverFailure = { call: "", status: statuses.OutOfMemory.code }

/** Ends in the next turn of the event loop. */
export const nextTurn: Effect.Effect<void> = Effect.callback((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

/** Rounds up in steps of an eighth of a power of two, so that blocks can be reused. Wastes at most 12.5 %. */
const blockSize = (byteLength: number): number => {
  if (byteLength <= smallestBlock) return smallestBlock
  const step = Math.max(pageSize, 2 ** (Math.ceil(Math.log2(byteLength)) - 4))
  return Math.ceil(byteLength / step) * step
}
