/**
 * A service on a GPU that caches values in device memory. Requires only `CudaRuntime`, so the program that uses it
 * decides whether that is a GPU or, in a test, a simulated one.
 */
import { CudaMemory, CudaRuntime, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"

/** The device has no memory left for a value. */
export class CacheFull extends Data.TaggedError("CacheFull")<{ readonly key: string; readonly byteLength: number }> {}

/** No value exists for a key. */
export class NoValue extends Data.TaggedError("NoValue")<{ readonly key: string }> {}

/** The GPU failed. Callers cannot act on this, but should log it and raise an alert. */
export class CacheFailed extends Data.TaggedError("CacheFailed")<{ readonly cause: CudaError.CudaError }> {
  override readonly message = this.cause.isSticky ? `the GPU is lost: ${this.cause.message}` : this.cause.message
}

/** A value on the device, and its scope. Closing the scope releases the memory. */
interface Entry {
  readonly buffer: CudaMemory.DeviceBuffer
  readonly own: Scope.Closeable
}

export class DeviceCache extends Context.Service<DeviceCache, {
  readonly put: (key: string, value: Uint8Array) => Effect.Effect<void, CacheFull | CacheFailed>
  readonly get: (key: string) => Effect.Effect<Uint8Array, NoValue | CacheFailed>
}>()("examples/service/DeviceCache") {
  /** All resources live as long as the layer. */
  static readonly layer: Layer.Layer<DeviceCache, CudaError.CudaError, CudaRuntime.CudaRuntime> = Layer.effect(
    DeviceCache,
    Effect.gen(function*() {
      const runtime = yield* CudaRuntime.CudaRuntime
      const scope = yield* Effect.scope
      const stream = yield* CudaStream.make()
      const entries = new Map<string, Entry>()
      // One at a time, so that no value is replaced while it is being read.
      const turns = yield* Semaphore.make(1)

      const put = Effect.fn("DeviceCache.put")(function*(key: string, value: Uint8Array) {
        const own = yield* Scope.fork(scope)
        const buffer = yield* CudaMemory.allocate(value.byteLength).pipe(
          Effect.tap((made) => CudaMemory.upload(made, value, stream)),
          Effect.provideService(CudaRuntime.CudaRuntime, runtime),
          Scope.provide(own),
          Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
        )
        const replaced = entries.get(key)
        entries.set(key, { buffer, own })
        if (replaced !== undefined) yield* Scope.close(replaced.own, Exit.void)
      })

      const get = Effect.fn("DeviceCache.get")(function*(key: string) {
        const entry = entries.get(key)
        if (entry === undefined) return yield* new NoValue({ key })
        const value = new Uint8Array(entry.buffer.byteLength)
        yield* CudaMemory.download(value, entry.buffer, stream)
        return value
      })

      return DeviceCache.of({
        put: (key, value) =>
          put(key, value).pipe(
            turns.withPermit,
            Effect.catchReason("CudaError", "OutOfMemory", () =>
              Effect.fail(new CacheFull({ key, byteLength: value.byteLength }))),
            Effect.catchTag("CudaError", (cause) =>
              Effect.fail(new CacheFailed({ cause })))
          ),
        get: (key) =>
          get(key).pipe(
            turns.withPermit,
            Effect.catchTag("CudaError", (cause) => Effect.fail(new CacheFailed({ cause })))
          )
      })
    })
  )
}
