/**
 * Managed memory on the native runtime, and what JavaScript sees of it.
 *
 * The driver frees it only while its device has no work, and would hold up the thread until then. So what is released is kept for
 * allocations of the same size, and freed at a moment when the device is idle.
 *
 * The host's view is a buffer over the memory itself, which nothing can take from JavaScript again. So memory that was looked
 * at is given back once its view has been collected; what is still seen then stays what it is, and keeps the device's context.
 */
import { attachGlobal } from "../../cuda/flags.ts"
import type { DriverFunctions } from "../../cuda/functions.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { success } from "../../cuda/status.ts"
import type { Address } from "../CudaRuntime.ts"
import { ManagedMemoryResource } from "../internal/resources.ts"
import type { Owner } from "../internal/resources.ts"
import { Out } from "./Device.ts"
import type { Warn } from "./Device.ts"

const nothing = new Uint8Array(0)

export class NativeManaged extends ManagedMemoryResource {
  /** Whether the driver was told how it will be used, which the next user knows nothing of. */
  isAdvised = false
  readonly #library: DriverLibrary
  #bytes: Uint8Array<ArrayBuffer> | undefined
  constructor(owner: Owner, library: DriverLibrary, address: Address, byteLength: number, device: number) {
    super(owner, address, byteLength, device)
    this.#library = library
  }
  get bytes(): Uint8Array<ArrayBuffer> {
    if (this.state === "released") return nothing
    return this.#bytes ??= new Uint8Array(this.#library.viewOf(this.address, this.byteLength))
  }
  /** The buffer that JavaScript may still see, which this lets go of; none when nobody looked. */
  takeView(): ArrayBuffer | undefined {
    const buffer = this.#bytes?.buffer
    this.#bytes = undefined
    return buffer
  }
}

/** Memory that nobody uses. */
interface Block {
  readonly address: number
  readonly byteLength: number
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
  /** The address of what was allocated last. */
  taken = 0
  readonly #calls: DriverFunctions
  /** Makes a call with the context of a device current, and notes how it failed. */
  readonly #inContextOf: (device: number, name: string, call: () => number) => number
  readonly #isIdle: (device: number) => boolean
  readonly #warn: Warn
  readonly #kept = new Map<number, Kept>()
  readonly #out = new Out()
  readonly #collected = new FinalizationRegistry((memory: NativeManaged) => this.#unseen(memory))
  #timer: NodeJS.Timeout | undefined

  constructor(
    calls: DriverFunctions,
    inContextOf: (device: number, name: string, call: () => number) => number,
    isIdle: (device: number) => boolean,
    warn: Warn
  ) {
    this.#calls = calls
    this.#inContextOf = inContextOf
    this.#isIdle = isIdle
    this.#warn = warn
  }

  /** Allocates memory; its address is in `taken`. */
  take(device: number, byteLength: number): number {
    const { blocks } = this.#of(device)
    const fit = blocks.findLastIndex((block) => block.isReusable && block.byteLength === byteLength)
    if (fit >= 0) {
      this.taken = blocks.splice(fit, 1)[0]!.address
      return success
    }
    const call = () => this.#calls.cuMemAllocManaged(this.#out.words, byteLength, attachGlobal)
    const status = this.#inContextOf(device, "cuMemAllocManaged", call)
    if (status === success) this.taken = this.#out.value
    return status
  }

  /** Takes memory back whose users are done. */
  give(memory: NativeManaged): void {
    const view = memory.takeView()
    if (view === undefined) return this.#keep(memory)
    this.#of(memory.device).seen++
    seen.add(this)
    this.#collected.register(view, memory)
  }

  #unseen(memory: NativeManaged): void {
    const kept = this.#of(memory.device)
    kept.seen--
    if (Array.from(this.#kept.values()).every(({ seen }) => seen === 0)) seen.delete(this)
    this.#keep(memory)
    if (kept.release === undefined) return
    this.#freeAll(memory.device, kept)
    if (kept.seen === 0) kept.release()
  }

  #keep({ address, byteLength, device, isAdvised }: NativeManaged): void {
    this.#of(device).blocks.push({ address, byteLength, isReusable: !isAdvised })
    if (this.#timer === undefined) this.#timer = setTimeout(this.#freeSome, 0).unref()
  }

  /** Frees what is kept of the devices that are idle. */
  readonly #freeSome = (): void => {
    this.#timer = undefined
    let isLeft = false
    for (const [device, kept] of this.#kept) {
      if (kept.blocks.length === 0) continue
      if (this.#isIdle(device)) this.#freeAll(device, kept)
      else isLeft = true
    }
    if (isLeft) this.#timer = setTimeout(this.#freeSome, retryDelay).unref()
  }

  /** Frees what is kept of a device, unless that would wait. */
  freeIfIdle(device: number): void {
    const kept = this.#of(device)
    if (kept.blocks.length > 0 && this.#isIdle(device)) this.#freeAll(device, kept)
  }

  #freeAll(device: number, kept: Kept): void {
    for (const { address } of kept.blocks.splice(0)) {
      const status = this.#inContextOf(device, "cuMemFree", () => this.#calls.cuMemFree_v2(address))
      this.#warn("cuMemFree", status, address)
    }
  }

  /** Frees what is left of a device, after its last work. True if JavaScript still sees some of it: `release` comes after that. */
  close(device: number, release: () => void): boolean {
    const kept = this.#of(device)
    this.#freeAll(device, kept)
    if (kept.seen === 0) return false
    kept.release = release
    return true
  }

  #of(device: number): Kept {
    const known = this.#kept.get(device)
    if (known !== undefined) return known
    const kept = new Kept()
    this.#kept.set(device, kept)
    return kept
  }
}
