/**
 * Loads code images on a pool thread, and unloads them when that does not block.
 *
 * Loading needs no context and holds no context lock, so the JS thread continues while the driver compiles. The driver
 * returns success for any image and reports its problem only when a kernel is looked up, so the loader looks one up
 * immediately. A load cannot be stopped: after an interruption, it finishes and its result is unloaded.
 *
 * Unloading blocks in the driver until every device is idle, like loading code into a device. So a module that is released
 * while a device is busy is unloaded when all devices are idle, or at the latest when the runtime is released.
 */
import * as Effect from "effect/Effect"
import { inTurn } from "../../cuda/asyncCalls.ts"
import type { OnEnd } from "../../cuda/asyncCalls.ts"
import { jitOptions } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { CUkernel, CUlibrary } from "../../cuda/handles.ts"
import { messageOf } from "../../cuda/koffi.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { ModuleOptions } from "../CudaRuntime.ts"
import { ModuleResource } from "../shared/moduleResources.ts"
import type { Owner } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import { Out } from "./Device.ts"
import type { Warn } from "./Device.ts"

/** Size of the JIT compiler's log in bytes. */
const logSize = 16 * 1024

/** A name that no kernel can have. */
const noKernel = " "

/** Delay before the next attempt to unload while a device is busy, in milliseconds. */
const retryDelay = 50

/** A load in progress, with the memory that the driver reads and writes meanwhile. */
class Loading {
  isAbandoned = false
  readonly image: Uint8Array
  readonly library = new Out<CUlibrary>()
  readonly log = new Uint8Array(new ArrayBuffer(logSize))
  readonly options = Int32Array.of(jitOptions.errorLogBuffer, jitOptions.errorLogBufferSize)
  readonly values: BigUint64Array

  constructor(driver: DriverLibrary, image: Uint8Array) {
    this.image = image
    this.values = BigUint64Array.of(BigInt(driver.addressOf(this.log.buffer)), BigInt(logSize))
  }

  /** The compiler's log; undefined if it is empty. */
  get said(): string | undefined {
    const text = new TextDecoder().decode(this.log.subarray(0, this.log.indexOf(0))).trim()
    return text === "" ? undefined : text
  }
}

export class ModuleLoader {
  readonly #library: DriverLibrary
  readonly #owner: Owner
  readonly #warn: Warn
  /** True if no device has work of this runtime, so that unloading does not block. */
  readonly #isIdle: () => boolean
  readonly #loading = new Set<Loading>()
  readonly #retired: Array<CUlibrary> = []
  readonly #found = new Out<CUkernel>()
  #timer: NodeJS.Timeout | undefined
  /** Set while the runtime is being released: called when the last load has ended. */
  #onQuiet: (() => void) | undefined

  constructor(library: DriverLibrary, owner: Owner, isIdle: () => boolean, warn: Warn) {
    this.#library = library
    this.#owner = owner
    this.#isIdle = isIdle
    this.#warn = warn
  }

  load(
    image: Uint8Array,
    options: ModuleOptions,
    adopt: (module: ModuleResource) => void
  ): Effect.Effect<ModuleResource, DriverFailure> {
    return Effect.callback((resume) => {
      const loading = new Loading(this.#library, withEnd(image))
      this.#loading.add(loading)
      const takeBack = inTurn((onEnd) => this.#begin(loading, onEnd), (error, status) => {
        const failure = this.#check(loading, status)
        if (failure === undefined) {
          const module = new ModuleResource(this.#owner, loading.library.value, image.byteLength, options)
          adopt(module)
          resume(Effect.succeed(module))
        } else resume(Effect.fail(error === null ? failure : { ...failure, log: messageOf(error) }))
        this.#leave(loading)
      })
      return Effect.sync(() => {
        loading.isAbandoned = true
        if (takeBack()) this.#leave(loading)
      })
    })
  }

  #begin({ image, library, options, values }: Loading, onEnd: OnEnd): void {
    const load = this.#library.calls.cuLibraryLoadData
    load.async(library.words, image, options, values, options.length, nullHandle(), nullHandle(), 0, onEnd)
  }

  #leave(loading: Loading): void {
    this.#loading.delete(loading)
    if (this.#loading.size === 0) this.#onQuiet?.()
  }

  /** The failure of a load, or undefined for a usable library. Unloads a library that nothing will use. */
  #check(loading: Loading, loaded: number): DriverFailure | undefined {
    if (loaded !== success) return { call: "cuLibraryLoadData", status: loaded, log: loading.said }
    const library = loading.library.value
    if (loading.isAbandoned || this.#onQuiet !== undefined) {
      this.#retire(library)
      return { call: "", status: statuses.Deinitialized.code }
    }
    const status = this.#library.calls.cuLibraryGetKernel(this.#found.words, library, noKernel)
    if (status === success || status === statuses.NotFound.code) return undefined
    this.#retire(library)
    return { call: "cuLibraryGetKernel", status, log: loading.said }
  }

  /** Unloads a library now if that does not block, and otherwise later. */
  unload(library: CUlibrary): number {
    if (this.#isIdle()) return this.#library.calls.cuLibraryUnload(library)
    this.#retire(library)
    return success
  }

  #retire(library: CUlibrary): void {
    this.#retired.push(library)
    this.#schedule(0)
  }

  #schedule(delay: number): void {
    this.#timer ??= setTimeout(this.#unloadSome, delay).unref()
  }

  /** Unloads one library if no device has work, and schedules the next. */
  readonly #unloadSome = (): void => {
    this.#timer = undefined
    const isIdle = this.#isIdle()
    if (isIdle) this.#unloadFirst()
    if (this.#retired.length > 0) this.#schedule(isIdle ? 0 : retryDelay)
  }

  #unloadFirst(): void {
    const library = this.#retired.shift()
    if (library === undefined) return
    this.#warn("cuLibraryUnload", this.#library.calls.cuLibraryUnload(library), library)
  }

  /** Waits for the loads in progress, and unloads the remaining libraries. Call after all work has ended. */
  readonly close: Effect.Effect<void> = Effect.callback((resume) => {
    this.#onQuiet = () => {
      clearTimeout(this.#timer)
      while (this.#retired.length > 0) this.#unloadFirst()
      resume(Effect.void)
    }
    if (this.#loading.size === 0) this.#onQuiet()
  })
}

/** A private copy of an image, followed by the NUL character that must end PTX. Other images contain their length. */
const withEnd = (image: Uint8Array): Uint8Array => {
  const copy = new Uint8Array(image.byteLength + 1)
  copy.set(image)
  return copy
}
