/**
 * Managed memory on the native runtime, and what JavaScript sees of it.
 *
 * The driver frees it only while its device has no work, and would hold up the thread until then. So what is released is kept for
 * allocations of about the same size, and freed at a moment when the devices are idle.
 *
 * The host's view is a buffer over the memory itself, which nothing can take from JavaScript again. So memory that was looked
 * at is given back once its view has been collected; what is still seen then stays what it is, and keeps the device's context.
 */
import { attachGlobal } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { CUdeviceptr } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { success } from "../../cuda/status.ts"
import { ManagedMemoryResource } from "../shared/resources.ts"
import type { Owner } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"

const nothing = new Uint8Array(0)

export class NativeManagedMemory extends ManagedMemoryResource {
  /** Whether the driver was told how it will be used, which the next user knows nothing of. */
  isAdvised = false
  /** How many bytes the driver allocated. */
  readonly blockBytes: number
  readonly #library: DriverLibrary
  #bytes: Uint8Array<ArrayBuffer> | undefined
  constructor(owner: Owner, library: DriverLibrary, block: ManagedBlock, byteLength: number, deviceIndex: number) {
    super(owner, block.address, byteLength, deviceIndex)
    this.blockBytes = block.byteLength
    this.#library = library
  }
  get bytes(): Uint8Array<ArrayBuffer> {
    if (this.state === "released") return nothing
    return this.#bytes ??= new Uint8Array(this.#library.viewOf(this.address, this.byteLength))
  }
  override get isGivenAway(): boolean {
    return this.#bytes?.byteLength === 0
  }
  /** The buffer that JavaScript may still see, which this lets go of; none when nobody looked. */
  takeView(): ArrayBuffer | undefined {
    const buffer = this.#bytes?.buffer
    this.#bytes = undefined
    return buffer
  }
}

/** Memory as the driver allocated it. */
export interface ManagedBlock {
  readonly address: CUdeviceptr
  readonly byteLength: number
}

/** Memory that nobody uses. */
interface Block extends ManagedBlock {
  readonly isReusable: boolean
}

/** What is kept of a device's managed memory. */
class Kept {
  readonly blocks: Array<Block> = []
  /** How much released memory JavaScript may still see. */
  seen = 0
  /** Releases the device's context; set once the runtime is done with the device. */
  release: (() => void) | undefined
}

/** Those of which JavaScript still sees something. A registry that nothing refers to is collected, and then tells nobody. */
const seen = new Set<ManagedMemory>()

/** How long memory waits before it is looked again whether its device is idle, in milliseconds. */
const retryDelay = 10

export class ManagedMemory {
  /** What was allocated last. */
  taken: ManagedBlock = { address: nullHandle(), byteLength: 0 }
  readonly #driver: Driver
  /** Whether no device has work: those others may use the memory too. */
  readonly #isIdle: () => boolean
  readonly #kept = new Map<number, Kept>()
  readonly #out = new Out<CUdeviceptr>()
  readonly #collected = new FinalizationRegistry((memory: NativeManagedMemory) => this.#unseen(memory))
  #timer: NodeJS.Timeout | undefined
  #isStopped = false

  constructor(driver: Driver, isIdle: () => boolean) {
    this.#driver = driver
    this.#isIdle = isIdle
  }

  /** Allocates memory, in `taken`, of what is kept if anything there is large enough and not twice as large. */
  take(deviceIndex: number, byteLength: number): number {
    const fit = this.#driver.isLost ? undefined : this.#fitting(deviceIndex, byteLength)
    if (fit !== undefined) {
      this.taken = fit
      return success
    }
    const call = () => this.#driver.calls.cuMemAllocManaged(this.#out.words, byteLength, attachGlobal)
    const status = this.#driver.inContextOf(deviceIndex, "cuMemAllocManaged", call)
    if (status === success) this.taken = { address: this.#out.value, byteLength }
    return status
  }

  /** The smallest that serves, taken out of what is kept. */
  #fitting(deviceIndex: number, byteLength: number): Block | undefined {
    const { blocks } = this.#of(deviceIndex)
    let best: Block | undefined
    for (const block of blocks) {
      const serves = block.isReusable && block.byteLength >= byteLength && block.byteLength <= 2 * byteLength
      if (serves && block.byteLength < (best?.byteLength ?? Number.POSITIVE_INFINITY)) best = block
    }
    if (best !== undefined) blocks.splice(blocks.indexOf(best), 1)
    return best
  }

  /** Takes memory back whose users are done. */
  give(memory: NativeManagedMemory): void {
    const view = memory.takeView()
    if (view === undefined) return this.#keep(memory)
    this.#of(memory.deviceIndex).seen++
    seen.add(this)
    // Of memory that was transferred, the buffer that sees it is not known, so that it is never freed.
    if (view.byteLength > 0) this.#collected.register(view, memory)
  }

  #unseen(memory: NativeManagedMemory): void {
    const kept = this.#of(memory.deviceIndex)
    kept.seen--
    if (Array.from(this.#kept.values()).every(({ seen }) => seen === 0)) seen.delete(this)
    this.#keep(memory)
    if (kept.release === undefined) return
    this.#freeAll(memory.deviceIndex, kept)
    if (kept.seen === 0) kept.release()
  }

  #keep({ address, blockBytes, deviceIndex, isAdvised }: NativeManagedMemory): void {
    this.#of(deviceIndex).blocks.push({ address, byteLength: blockBytes, isReusable: !isAdvised })
    if (this.#timer === undefined && !this.#isStopped) this.#timer = setTimeout(this.#freeLater, 0).unref()
  }

  /** Frees what is kept, unless that would wait. */
  freeIfIdle(): void {
    if (!this.#isKept || !this.#isIdle()) return
    for (const [device, kept] of this.#kept) this.#freeAll(device, kept)
  }

  readonly #freeLater = (): void => {
    this.#timer = undefined
    this.freeIfIdle()
    if (this.#isKept) this.#timer = setTimeout(this.#freeLater, retryDelay).unref()
  }

  get #isKept(): boolean {
    return Array.from(this.#kept.values()).some(({ blocks }) => blocks.length > 0)
  }

  #freeAll(deviceIndex: number, kept: Kept): void {
    for (const { address } of kept.blocks.splice(0)) {
      const status = this.#driver.inContextOf(deviceIndex, "cuMemFree", () => this.#driver.calls.cuMemFree_v2(address))
      this.#driver.warn("cuMemFree", status, address)
    }
  }

  /** Looks for idle moments no more: the devices are being closed, one after the other. */
  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
  }

  /** Frees what is left of a device, after its last work. True if JavaScript still sees some of it: `release` comes after that. */
  close(deviceIndex: number, release: () => void): boolean {
    const kept = this.#of(deviceIndex)
    this.#freeAll(deviceIndex, kept)
    if (kept.seen === 0) return false
    kept.release = release
    return true
  }

  #of(deviceIndex: number): Kept {
    const known = this.#kept.get(deviceIndex)
    if (known !== undefined) return known
    const kept = new Kept()
    this.#kept.set(deviceIndex, kept)
    return kept
  }
}
