/**
 * Pinned host memory that neither comes nor goes at the cost of the event loop.
 *
 * The driver holds its context's lock while it pins or unpins, and unpinning waits for a device that is busy, so a call on
 * any other thread would still stop the JS thread at its next driver call. Blocks are therefore pages of the system that are
 * touched on a pool thread and then pinned in short segments with turns of the event loop between them; released
 * blocks are kept for reuse; and kept blocks are unpinned segment by segment, while no device has work.
 *
 * JavaScript sees a block through an ArrayBuffer that is detached at its release, so that no view dangles. The pages belong to
 * nobody's heap: those of a worker that ends before its runtime is released stay where they are, and pinned, while a device may
 * still use them. A worker that is terminated has no last word, so its pages stay until the process ends.
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

/** The most the driver pins at a time: about a millisecond of work. A copy is enqueued in pieces of a segment at most. */
export const segmentSize = 16 * 1024 * 1024

const pageSize = 4096
/** Copies of memory in large pages are some percent faster; blocks of this size and more start at one. */
const largePageSize = 2 * 1024 * 1024
const smallestBlock = 64 * 1024
const trimDelay = 50

/** How much pinned memory there may be, in bytes. */
export interface PinnedPolicy {
  /** Pinned at most, in use and kept. */
  readonly maxBytes: number
  /** Kept at most for reuse. */
  readonly keepBytes: number
}

/** Pages of the system, pinned from the first to the last. */
export class Block {
  readonly address: HostPointer
  readonly size: number
  /** All of the block, for JavaScript. Empty once the program transferred it. */
  buffer: ArrayBuffer
  /** How many bytes are pinned, from the first on. */
  pinned = 0
  /** A pool thread writes to it. */
  isTouched = false
  /** The driver would not unpin it. */
  isStuck = false
  /** The pages to give back, which include those before the block. */
  readonly mapping: Mapping

  constructor(mapping: Mapping, address: HostPointer, size: number, buffer: ArrayBuffer) {
    this.mapping = mapping
    this.address = address
    this.size = size
    this.buffer = buffer
  }

  /** Whether the program transferred the buffer, so that somebody may see the memory for ever. */
  get isGivenAway(): boolean {
    return this.buffer.byteLength === 0
  }

  /** Takes the memory from every view of it. */
  detach(): void {
    if (!this.isGivenAway) this.buffer = moved(this.buffer)
  }
}

interface Mapping {
  readonly address: HostPointer
  readonly byteLength: number
}

/** What the runtimes of a worker have pinned, for its end. */
const ofWorker = new Set<PinnedMemory>()
const abandonAll = () => {
  for (const pinned of ofWorker) pinned.abandon()
}

export class PinnedMemory {
  readonly #library: DriverLibrary
  readonly #policy: PinnedPolicy
  /** Runs a call with a context current, and says how it failed. */
  readonly #inContext: (name: string, call: () => number) => DriverFailure | undefined
  readonly #warn: Warn
  /** True when no work of this runtime is on a device, so that unpinning has nothing to wait for. */
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
   * A block of at least this many bytes; its contents are whatever was there. A block that was kept hides that the contexts are lost:
   * `mayReuse` is false then.
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

  /** Keeps a block that nothing uses any more, unless the program gave it away: somebody may see that for ever. */
  give(block: Block): void {
    if (block.isGivenAway) return this.#retire(block)
    const same = this.#kept.get(block.size)
    if (same === undefined) this.#kept.set(block.size, [block])
    else same.push(block)
    this.#keptBytes += block.size
    if (this.#keptBytes > this.#policy.keepBytes) this.#scheduleTrim(trimDelay)
  }

  /** Unpins everything that is kept; after the last work has ended. */
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
   * Gives back what it can while its worker ends, if no device has work that may use it and that would be waited for. There are
   * no turns of the event loop any more.
   */
  abandon(): void {
    if (!this.#isIdle()) return
    for (const block of this.#blocks) {
      if (block.isTouched) continue
      while (block.pinned > 0) this.#unpin(block)
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
        return Effect.andThen(this.#touch(block, offset, bytes), this.#pinSegment(block, bytes))
      },
      { discard: true }
    )
    return Effect.as(Effect.onError(each, () => Effect.sync(() => this.#retire(block))), block)
  }

  /** Pages that begin where large ones do, if there may be some. */
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

  /** Gives the pages back, unless somebody may see them, or the driver take others at the same address for them. */
  #letGo(block: Block): void {
    this.#blocks.delete(block)
    const { address, byteLength } = block.mapping
    if (block.isGivenAway || block.isStuck) return
    block.detach()
    this.#library.pages?.unmap(address, byteLength)
  }

  #pinSegment(block: Block, bytes: number): Effect.Effect<void, DriverFailure> {
    return Effect.suspend(() => {
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

  /** Has the system provide the pages, on a pool thread; without that the driver does, more slowly. */
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

  /** Unpins kept blocks until a new one fits under the limit. */
  #makeRoom(size: number): Effect.Effect<Block, DriverFailure> {
    const larger = [...this.#kept].filter(([kept, blocks]) => kept > size && blocks.length > 0).map(([kept]) => kept)
    if (larger.length > 0) return this.take(Math.min(...larger), true)
    if (this.#retired.length === 0) this.#retireKept()
    if (this.#retired.length === 0 || !this.#isIdle()) return Effect.fail(noMemory)
    this.#unpinSegment()
    return Effect.andThen(nextTurn, Effect.suspend(() => this.#pin(size)))
  }

  /** Has a block unpinned, from its end, as soon as that waits for nothing. */
  #retire(block: Block): void {
    this.#retired.push(block)
    this.#scheduleTrim(0)
  }

  #scheduleTrim(delay: number): void {
    this.#trim ??= setTimeout(this.#trimSome, delay).unref()
  }

  /** Unpins one segment, if no device has work, and comes back for the next. */
  readonly #trimSome = (): void => {
    this.#trim = undefined
    const idle = this.#isIdle()
    if (idle && this.#retired.length === 0) this.#retireKept()
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
    if (last.pinned > 0) this.#unpin(last)
    if (last.pinned > 0) return
    this.#retired.pop()
    this.#pinnedBytes -= last.size
    this.#letGo(last)
  }

  /** Unpins the last pinned segment of a block. */
  #unpin(block: Block): void {
    block.pinned = (Math.ceil(block.pinned / segmentSize) - 1) * segmentSize
    const address = offsetBy(block.address, block.pinned)
    const failure = this.#inContext("cuMemHostUnregister", () => this.#library.calls.cuMemHostUnregister(address))
    if (failure === undefined) return
    block.isStuck = true
    this.#warn(failure.call, failure.status, address)
  }
}

/** The limit, or what the system has; no call of the driver said so. */
const noMemory: DriverFailure = { call: "", status: statuses.OutOfMemory.code }

const nextTurn: Effect.Effect<void> = Effect.callback((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

/** Sizes come in steps of an eighth of a power of two, so that blocks fit again at the cost of 12.5 % at most. */
const blockSize = (byteLength: number): number => {
  if (byteLength <= smallestBlock) return smallestBlock
  const step = Math.max(pageSize, 2 ** (Math.ceil(Math.log2(byteLength)) - 4))
  return Math.ceil(byteLength / step) * step
}
