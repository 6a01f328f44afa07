/**
 * Managed memory on the native runtime, and what JavaScript sees of it.
 *
 * The host's view is a buffer over the memory itself, which nothing can take from JavaScript again. So memory that was looked
 * at is given back once its view has been collected, and not at its release; what is still seen then stays what it is.
 */
import type { DriverLibrary } from "../../cuda/library.ts"
import type { Address } from "../CudaRuntime.ts"
import { ManagedMemoryResource } from "../internal/resources.ts"
import type { Owner } from "../internal/resources.ts"

const nothing = new Uint8Array(0)

export class NativeManaged extends ManagedMemoryResource {
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

/** The released memory that JavaScript may still see. */
export class Views {
  readonly #counts = new Map<number, number>()
  readonly #registry: FinalizationRegistry<NativeManaged>

  constructor(onUnseen: (memory: NativeManaged) => void) {
    this.#registry = new FinalizationRegistry((memory) => {
      this.#counts.set(memory.device, this.of(memory.device) - 1)
      onUnseen(memory)
    })
  }

  /** Keeps memory until its view is collected; false for memory that nobody looked at. */
  hold(memory: NativeManaged): boolean {
    const view = memory.takeView()
    if (view === undefined) return false
    this.#counts.set(memory.device, this.of(memory.device) + 1)
    this.#registry.register(view, memory)
    return true
  }

  /** How much memory of a device is held. */
  of(device: number): number {
    return this.#counts.get(device) ?? 0
  }
}
