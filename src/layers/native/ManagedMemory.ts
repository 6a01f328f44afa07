/**
 * Managed memory of the native runtime, and its views in JavaScript.
 *
 * The driver frees managed memory only while the device is idle, and blocks the thread until then. So released memory is
 * kept for allocations of similar size, and freed when the devices are idle.
 *
 * The host's view is a buffer over the memory itself, which cannot be revoked. So memory with a view is kept or freed only
 * once the view has been garbage-collected. If that happens after the runtime was released, the device's context lives until then.
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
import { IdleMoments } from "./IdleMoments.ts"

const nothing = new Uint8Array(0)

export class NativeManagedMemory extends ManagedMemoryResource {
  /** Whether the driver was given advice, which must not affect the next allocation that reuses the memory. */
  isAdvised = false
  /** The size of the driver's allocation in bytes. */
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
  /** Returns the buffer that JavaScript may still hold, and drops it. Undefined if the memory was never viewed. */
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

/** Unused memory. */
interface Block extends ManagedBlock {
  readonly isReusable: boolean
}

/** The released managed memory of a device. */
class Kept {
  readonly blocks: Array<Block> = []
  /** The number of released buffers with a view that has not been collected. */
  seen = 0
  /** Releases the device's context. Set when the runtime closes the device. */
  release: (() => void) | undefined
}

/** Instances with views in JavaScript. Keeps their finalization registries reachable, which otherwise never call back. */
const seen = new Set<ManagedMemory>()

export class ManagedMemory {
  /** The last allocation. */
  taken: ManagedBlock = { address: nullHandle(), byteLength: 0 }
  readonly #driver: Driver
  /** Idle moments of all devices, since any device may use the memory. */
  readonly #idle: IdleMoments
  readonly #kept = new Map<number, Kept>()
  readonly #out = new Out<CUdeviceptr>()
  readonly #collected = new FinalizationRegistry((memory: NativeManagedMemory) => this.#unseen(memory))

  constructor(driver: Driver, isIdle: () => boolean) {
    this.#driver = driver
    const freeAll = () => this.#kept.forEach((kept, device) => this.#freeAll(device, kept))
    this.#idle = new IdleMoments(isIdle, freeAll, () => this.#isKept)
  }

  /** Allocates memory into `taken`. Reuses a kept block that is large enough and at most twice as large. */
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

  /** Removes and returns the smallest kept block that fits. */
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

  /** Takes back memory that no work uses any longer. */
  give(memory: NativeManagedMemory): void {
    const view = memory.takeView()
    if (view === undefined) return this.#keep(memory)
    this.#of(memory.deviceIndex).seen++
    seen.add(this)
    // Transferred memory is never freed, because the buffer that now holds it is unknown.
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
    this.#idle.request()
  }

  /** Frees all kept blocks, unless that would block. */
  freeIfIdle(): void {
    this.#idle.runIfIdle()
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

  /** Stops checking for idle devices. Called before the devices are closed, one after the other. */
  stop(): void {
    this.#idle.stop()
  }

  /** Frees the kept blocks of a device after its last work. Returns true if views remain; `release` is called when they are gone. */
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
