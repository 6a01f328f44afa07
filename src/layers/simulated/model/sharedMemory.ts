/**
 * The shared pools and memory of all simulated runtimes in this process, each of which stands for a process.
 */
import { memoryHandleSize } from "../../../cuda/flags.ts"
import type { Owner } from "../../shared/resources.ts"
import type { Device } from "./parts.ts"
import { Storage } from "./Storage.ts"
import type { World } from "./World.ts"

/** Who shared something: a runtime, in its world. */
interface Sharer {
  readonly world: World
  readonly owner: Owner
  /** Identifies the pool. */
  readonly pool: object | undefined
}

/** Shared memory. */
export interface SharedAllocation extends Sharer {
  readonly storage: Storage
  readonly isLive: () => boolean
}

/** Descriptors of simulated pools are above all those of the system. */
const firstDescriptor = 2 ** 30

const descriptors = new Map<number, Sharer>()
const allocations = new Map<string, SharedAllocation>()

/** Distinguishes the handles of this process from those of others. */
const processMark = crypto.getRandomValues(new Uint8Array(16))
let made = 0

/** A new descriptor of a pool. */
export const describePool = (pool: Sharer): number => {
  const descriptor = firstDescriptor + made++
  descriptors.set(descriptor, pool)
  return descriptor
}

export const poolOf = (descriptor: number): Sharer | undefined => descriptors.get(descriptor)

export const forgetDescriptor = (descriptor: number): void => {
  descriptors.delete(descriptor)
}

/** Shares memory: writes a new handle for it, and returns the key for `withdrawMemory`. */
export const exportMemory = (memory: SharedAllocation, into: Uint8Array<ArrayBuffer>): string => {
  into.fill(0)
  into.set(new TextEncoder().encode("effect-cuda memory"), 0)
  into.set(processMark, 24)
  new DataView(into.buffer, into.byteOffset, memoryHandleSize).setFloat64(40, ++made)
  const key = keyOf(into)
  allocations.set(key, memory)
  return key
}

/** The memory of a handle; undefined if it was released or belongs to another process. */
export const sharedMemory = (handle: Uint8Array): SharedAllocation | undefined => {
  const found = allocations.get(keyOf(handle))
  return found?.isLive() === true ? found : undefined
}

export const withdrawMemory = (key: string): void => {
  allocations.delete(key)
}

const keyOf = (handle: Uint8Array): string => Buffer.from(handle).toString("hex")

/** Opened memory: a part of another runtime's, whose bytes stay even if that runtime frees them first. */
export class OpenedStorage extends Storage {
  readonly #bytes: Uint8Array<ArrayBuffer>

  constructor(device: Device, whole: Storage, offset: number, byteLength: number) {
    super(device, byteLength)
    this.#bytes = whole.touch().subarray(offset, offset + byteLength)
  }
  override touch(): Uint8Array<ArrayBuffer> {
    return this.#bytes
  }
  override get isGivenAway(): boolean {
    return false
  }
  override tryTouch(): boolean {
    return true
  }
  override detach(): void {}
  override drop(): void {}
}
