/**
 * Pinned host memory that neither comes nor goes at the cost of the event loop.
 *
 * The driver holds its context's lock while it pins or unpins, and unpinning waits for a device that is busy, so a call on
 * any other thread would still stop the JS thread at its next driver call. Blocks are therefore ordinary ArrayBuffers whose
 * pages are touched on a pool thread and then pinned in short segments with turns of the event loop between them; released
 * blocks are kept for reuse; and kept blocks are unpinned segment by segment, while no device has work.
 *
 * A block belongs to JavaScript: a view that outlives its buffer is detached, never dangling.
 */
import * as Effect from "effect/Effect"
import { hostRegisterPortable } from "../../cuda/flags.ts"
import { offsetBy } from "../../cuda/handles.ts"
import type { HostPointer } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { statuses } from "../../cuda/status.ts"
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

/** Memory that is pinned from its first to its last page. */
export interface Block {
  /** Of up to one page more than the block. The pinned part starts at `offset`. */
  readonly buffer: ArrayBuffer
  readonly offset: number
  readonly address: HostPointer
  readonly size: number
}

export class PinnedMemory {
  readonly #library: DriverLibrary
  readonly #policy: PinnedPolicy
  /** Runs a call with a context current, and says how it failed. */
  readonly #inContext: (name: string, call: () => number) => DriverFailure | undefined
  readonly #warn: Warn
  /** True when no work of this runtime is on a device, so that unpinning has nothing to wait for. */
  readonly #isIdle: () => boolean
  readonly #retired: Array<{ readonly block: Block; pinned: number }> = []
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

  /** Keeps a block that nothing uses any more. */
  give(block: Block): void {
    const same = this.#kept.get(block.size)
    if (same === undefined) this.#kept.set(block.size, [block])
    else same.push(block)
    this.#keptBytes += block.size
    if (this.#keptBytes > this.#policy.keepBytes) this.#scheduleTrim(trimDelay)
  }

  /** Unpins a block that is not to be used again: the program gave its buffer to another thread. */
  drop(block: Block): void {
    this.#retire(block, block.size)
  }

  /** Unpins everything that is kept; after the last work has ended. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    clearTimeout(this.#trim)
    for (const block of [...this.#kept.values()].flat()) this.#retired.push({ block, pinned: block.size })
    this.#kept.clear()
    return Effect.whileLoop({
      while: () => this.#retired.length > 0,
      body: () => nextTurn,
      step: () => this.#unpinSegment()
    })
  })

  #pin(size: number): Effect.Effect<Block, DriverFailure> {
    if (this.#pinnedBytes + size > this.#policy.maxBytes) return this.#makeRoom(size)
    const page = size >= largePageSize ? largePageSize : pageSize
    const buffer = makeBuffer(size + page)
    if (buffer === undefined) return Effect.fail(noMemory)
    const start = this.#library.addressOf(buffer)
    const offset = Math.ceil(start / page) * page - start
    const address = offsetBy(start, offset)
    const block: Block = { buffer, offset, address, size }
    if (page === largePageSize) this.#library.wantLargePages?.(address, size)
    this.#pinnedBytes += size
    let pinned = 0
    const next = Effect.suspend((): Effect.Effect<void, DriverFailure> => {
      const bytes = Math.min(segmentSize, size - pinned)
      const failure = this.#inContext(
        "cuMemHostRegister",
        () => this.#library.calls.cuMemHostRegister_v2(offsetBy(address, pinned), bytes, hostRegisterPortable)
      )
      if (failure !== undefined) return Effect.fail(failure)
      pinned += bytes
      return Effect.void
    })
    const segments = Math.ceil(size / segmentSize)
    const each = Effect.forEach(
      Array.from({ length: segments }, (_, index) => index * segmentSize),
      (offset) => Effect.andThen(this.#touch(address + offset, Math.min(segmentSize, size - offset)), next),
      { discard: true }
    )
    return Effect.as(Effect.onError(each, () => Effect.sync(() => this.#retire(block, pinned))), block)
  }

  /** Has the system provide the pages, on a pool thread; without that the driver does, more slowly. */
  #touch(address: number, byteLength: number): Effect.Effect<void> {
    const { memset } = this.#library
    if (memset === undefined) return nextTurn
    return Effect.callback((resume) => memset(address, 0, byteLength, () => resume(Effect.void)))
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
  #retire(block: Block, pinned: number): void {
    this.#retired.push({ block, pinned })
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
    this.#retired.push({ block, pinned: block.size })
  }

  #unpinSegment(): void {
    const last = this.#retired.at(-1)
    if (last === undefined) return
    if (last.pinned > 0) {
      last.pinned = (Math.ceil(last.pinned / segmentSize) - 1) * segmentSize
      const address = offsetBy(last.block.address, last.pinned)
      const failure = this.#inContext("cuMemHostUnregister", () => this.#library.calls.cuMemHostUnregister(address))
      if (failure !== undefined) this.#warn(failure.call, failure.status, address)
    }
    if (last.pinned > 0) return
    this.#retired.pop()
    this.#pinnedBytes -= last.block.size
  }
}

/** The limit, or what JavaScript can hold; no call of the driver said so. */
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

const makeBuffer = (byteLength: number): ArrayBuffer | undefined => {
  try {
    return new ArrayBuffer(byteLength)
  } catch {
    return undefined
  }
}
